"""The IP filters of networks: those on the command line, and those in a file, which is read again at a reload."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import cast

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from twisted_smtpguard.filters.networklist import find_line, parse_network, read_networks, read_table
from twisted_smtpguard.filters.networktable import NetworkTable, TableBuilder
from twisted_smtpguard.hooks.threads import ReadInThread, ThreadedReactor, yield_gil
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import (
    IExplainingFilter,
    IIPFilter,
    IIPFilterFactory,
    IPreparedReload,
    IReadsFiles,
)
from twisted_smtpguard.limits.units import parse_path
from twisted_smtpguard.values import PASS, TRUST, Address, Peer, Verdict, refuse


@implementer(IIPFilter)
class NetworksFilter:
    """Refuses the networks `deny` and trusts the networks `trust`. The longest prefix decides; a network in both is
    refused. Each is an address or CIDR; ValueError names one that is not."""

    @checked
    def __init__(self, deny: Iterable[str] = (), trust: Iterable[str] = ()) -> None:
        builder = TableBuilder()
        for verdict, networks in ((refuse(), deny), (TRUST, trust)):
            index = builder.index(verdict)
            for network in networks:
                builder.add(*parse_network(network), index)
        self._table = builder.build(lambda: None)

    def check(self, peer: Peer) -> Verdict:
        return _verdict(self._table, peer)


@implementer(IExplainingFilter, IPreparedReload, IReadsFiles)
class NetworksFile(ReadInThread[NetworkTable]):
    """Decides by the list of networks in the file `path`: see docs/reference/filters.md.

    The file is read at once, and again at a reload, in one of the reactor's threads. ValueError: the file cannot be
    read, or a line of it is wrong; at a reload the old list then stays in force.
    """

    @checked
    def __init__(self, path: str | os.PathLike[str], reactor: ThreadedReactor) -> None:
        super().__init__(reactor)
        self._path = path
        self._table = read_table(path)

    def check(self, peer: Peer) -> Verdict:
        return _verdict(self._table, peer)

    def explain(self, peer: Peer) -> Deferred[str]:
        """The line that gives the verdict on `peer`. The file is read for that, and may have changed meanwhile."""
        if peer.address is None:
            return succeed("")
        verdict = self.check(peer)
        found = self._in_thread(find_line, self._path, peer.address, verdict, yield_gil)
        return found.addCallback(self._explained, verdict)

    def _explained(self, line: str, verdict: Verdict) -> str:
        changed = "" if verdict == PASS else f"{os.fspath(self._path)}, which has changed since it was read"
        return line or changed

    @property
    def files(self) -> Mapping[str, str]:
        return {str(self._path): ""}

    def _read(self) -> NetworkTable:
        return read_table(self._path, yield_gil)

    def _take(self, table: NetworkTable) -> None:
        self._table = table


@implementer(IPreparedReload, IReadsFiles)
class NamedNetworks(ReadInThread[NetworkTable]):
    """The networks that the file `path` names, one on each line, with comments after a `#`. It is read at once, and
    again at a reload, as that of a NetworksFile."""

    @checked
    def __init__(self, path: str | os.PathLike[str], reactor: ThreadedReactor) -> None:
        super().__init__(reactor)
        self._path = path
        self._table = read_networks(path)

    def has(self, address: Address) -> bool:
        """Whether an address is in one of the networks."""
        return self._table.verdict(address) is TRUST

    @property
    def files(self) -> Mapping[str, str]:
        return {str(self._path): ""}

    def _read(self) -> NetworkTable:
        return read_networks(self._path, yield_gil)

    def _take(self, table: NetworkTable) -> None:
        self._table = table


@implementer(IIPFilterFactory)
class NetworksFactory:
    """`--ip-filter networks:PATH`."""

    name = "networks"
    summary = "Allow, trust or deny the networks of a file."
    argument_format = (
        "The path of the file, such as networks:/etc/smtpguard/networks. It is read again on SIGHUP. Its lines are "
        "`allow NETWORK`, `trust NETWORK` and `deny NETWORK [reply]`; a network is an address or CIDR, and the "
        "longest prefix decides."
    )

    def make_filter(self, argument: str, reactor: object) -> IIPFilter:
        if not argument:
            raise ValueError("networks needs a path, such as networks:/etc/smtpguard/networks")
        return NetworksFile(parse_path(argument), cast(ThreadedReactor, reactor))


def _verdict(table: NetworkTable, peer: Peer) -> Verdict:
    return PASS if peer.address is None else table.verdict(peer.address)
