"""A crowd with a whole IPv6 /48: however many addresses it uses, it has the allowance of the network."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path

import pytest
from fakes import Guard
from ownnetwork import run_in_own_network

from twisted_smtpguard.limits.units import Rate

pytestmark = [pytest.mark.xdist_group("load"), pytest.mark.timeout(300)]

NETWORK = int(IPv6Address("2001:db8::"))
CROWD = {64: 10_000, 56: 90_000, 48: 900_000}
"""How many addresses come of each network, spread over all of it: a million together."""


def test_a_million_addresses_of_a_48_are_one_three_and_nine_allowances_wide() -> None:
    guard = Guard(
        connection_rate=Rate(100, 600), ipv6_networks=(56, 48), network_factor=3, max_tracked_clients=1_000
    )
    clients = guard.factory.clients
    rate = clients.rate("connection_rate")
    assert rate is not None
    admitted, admitted_of = 0, []
    for bits, number in CROWD.items():
        for each in range(number):
            # An odd multiple visits each address of the network once.
            address = IPv6Address(NETWORK | each * 0x9E3779B97F4A7C15 % 2 ** (128 - bits))
            answer = rate.count(clients.key_of(address))
            admitted += type(answer) is int and answer <= rate.most
        admitted_of.append(admitted)
    assert admitted_of == [100, 300, 900]
    # Those that were refused take no place in the table.
    assert sum(guard.factory.own_counters.sizes().values()) <= 900 + 256 + 1


PROGRAM = """
import random
import socket
import sys
from pathlib import Path

from processes import ExecutedGuard

IPV6_FREEBIND = 78
base = int.from_bytes(socket.inet_pton(socket.AF_INET6, "2001:db8::"), "big")
dice = random.Random(1)
held = []


def comes(port, bits):
    client = socket.socket(socket.AF_INET6)
    client.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    address = (base | dice.getrandbits(128 - bits)).to_bytes(16, "big")
    client.bind((socket.inet_ntop(socket.AF_INET6, address), 0))
    client.settimeout(30)
    client.connect(("2001:db8::1", port))
    line = client.makefile("rb").readline()
    if line.startswith(b"220 "):
        held.append(client)
    else:
        client.close()
    return line


options = ("--max-connections-per-client=5", "--ipv6-networks=56,48", "--network-factor=3")
options += ("--deliver=discard:", "--max-log-lines=0", *sys.argv[2:])
with ExecutedGuard(Path(sys.argv[1]), *options, listen=["tcp6:0"]) as guard:
    port = guard.addresses[0][1]
    for bits, number in ((64, 300), (56, 600), (48, 1500)):
        lines = {comes(port, bits) for _ in range(number)}
        print(bits, len(held), len(lines))
    for client in held:
        client.close()
    seen = [line for line in guard.log.decode().splitlines() if " network=" in line]
    print(sum("network=2001:db8::/56 limit=15 value=16" in line for line in seen) > 0)
    print(sum("network=2001:db8::/48 limit=45 value=46" in line for line in seen) > 0)
"""


@pytest.mark.parametrize("workers", [(), ("--workers=2",)], ids=["one", "workers"])
def test_real_connections_from_all_over_a_48_hold_what_each_width_may(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    local = "ip -6 route add local 2001:db8::/48 dev lo"
    lines = run_in_own_network(local, PROGRAM, str(tmp_path), *workers, seconds=120)
    # One line for those that come in, and one for those that do not.
    assert lines == ["64 5 2", "56 15 2", "48 45 2", "True", "True"]
