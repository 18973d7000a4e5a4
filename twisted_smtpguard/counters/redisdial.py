"""How a connection to a Redis server is made: found, by Sentinel too, logged in, and tried before it is used."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from twisted_smtpguard.counters.redisconnection import RedisConnection, RedisError
from twisted_smtpguard.counters.redisurl import Login, RedisServer
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.tls.certificates import read_certificates, read_pairs

if TYPE_CHECKING:
    from twisted.internet.interfaces import IStreamClientEndpoint

CONNECT_SECONDS = 3.0
"""The time limit for the look-up of a name and TCP together. After that each answer has its own limit."""


async def connect(server: RedisServer, reactor: Any, lease_milliseconds: int) -> RedisConnection:
    """A connection to `server` in which the script has run. RedisError says why there is none."""
    if not server.master:
        host = server.hosts[0] if server.hosts else None
        return await _open(server, host, reactor, lease_milliseconds)
    problem = ""
    for sentinel in server.hosts:
        try:
            master = await _ask_sentinel(server, sentinel, reactor)
        except RedisError as error:
            problem = str(error)
        else:
            return await _open(server, master, reactor, lease_milliseconds)
    raise RedisError(problem)


async def _open(
    server: RedisServer, host: tuple[str, int] | None, reactor: Any, lease: int
) -> RedisConnection:
    connection = await _dial(server, host, reactor)
    try:
        await _log_in(connection, server.login)
        if server.database:
            await connection.ask("SELECT", server.database)
        await connection.load_script()
        await _try_out(connection, server.prefix, lease)
    except BaseException as error:
        # Also when the guard stops meanwhile, which cancels this.
        connection.fail(str(error))
        raise
    return connection


async def _dial(server: RedisServer, host: tuple[str, int] | None, reactor: Any) -> RedisConnection:
    endpoint: IStreamClientEndpoint
    if host is None:
        endpoint = UNIXClientEndpoint(reactor, server.path)
    else:
        endpoint = HostnameEndpoint(reactor, host[0].encode(), host[1])
        if server.tls:
            endpoint = wrapClientTLS(_tls_options(server, host[0]), endpoint)
    dialling: Deferred[Any] = endpoint.connect(Factory.forProtocol(lambda: RedisConnection(reactor)))
    # The endpoint's own limit does not hold for the look-up of a name.
    dialling.addTimeout(CONNECT_SECONDS, reactor, _too_late)
    dialling.addErrback(_not_connected)
    return await dialling  # type: ignore[no-any-return]


def _too_late(outcome: object, seconds: float) -> None:
    raise RedisError(f"no connection within {seconds:g} s")


def _not_connected(failure: Failure) -> None:
    if failure.check(ConnectingCancelledError, CancelledError):
        # The guard stops: no other server is asked.
        raise CancelledError
    if not failure.check(RedisError):
        raise RedisError(f"no connection: {failure.getErrorMessage()}") from None
    failure.raiseException()


def _tls_options(server: RedisServer, name: str) -> Any:
    """They are made anew for each connection, as the files may have changed."""
    # Imported late, since the imports take time and not every guard uses TLS with Redis.
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
    )
    from twisted.internet import ssl  # noqa: PLC0415

    trusted = certificate = None
    try:
        if server.ca:
            trusted = ssl.trustRootFromCertificates(
                ssl.Certificate.load(each.public_bytes(Encoding.DER)) for each in read_certificates(server.ca)
            )
        if server.cert:
            (pair,) = read_pairs([server.cert], [])
            key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            certificate = ssl.PrivateCertificate.loadPEM(pair.certificate.public_bytes(Encoding.PEM) + key)
    except ValueError as error:
        raise RedisError(str(error)) from error
    return ssl.optionsForClientTLS(name, trustRoot=trusted, clientCertificate=certificate)


async def _log_in(connection: RedisConnection, login: Login) -> None:
    if not login.password:
        return
    words = [login.user, login.password] if login.user else [login.password]
    try:
        await connection.ask("AUTH", *words)
    except RedisError as error:
        if connection.problem:
            raise
        # Its text may repeat the command, and is not shown.
        if "without any password" in str(error):
            raise RedisError("it asks for no password, and the URL has one") from None
        raise RedisError("it refuses the user or the password") from None


async def _try_out(connection: RedisConnection, prefix: str, lease: int) -> None:
    """Use each command of the script once: a replica, an ACL or a full memory refuses it now rather than later."""
    owner = f"try-{secrets.token_hex(8)}"
    name = f"p:try:{owner}"
    place, window = (name, 0, 0, 1), (f"w:try:1:{owner}", 0, 1000, 1)
    tried = gatherResults(
        [
            connection.run_script(prefix, "take", owner, lease, *place, *window),
            connection.run_script(prefix, "renew", owner, lease, f"{owner}.0", 1, 1, name, 2, 2),
            connection.run_script(prefix, "look", owner, lease, *place, *window),
            connection.run_script(prefix, "give_back", owner, lease, "-", *place, *window),
            connection.run_script(prefix, "renew", owner, lease, f"{owner}.1", 1, 1),
            connection.run_script(prefix, "purge", owner, lease),
            *_records_tried(connection, prefix, lease),
        ],
        consumeErrors=True,
    )
    try:
        await tried
    except FirstError as error:
        error.subFailure.raiseException()


def _records_tried(connection: RedisConnection, prefix: str, lease: int) -> list[Deferred[Any]]:
    """Records that live for a moment, and of which there may be one."""
    put = partial(connection.run_script, prefix, "put_records", "-", lease, "try", 1)
    return [
        put(0, "a", 1, "+", "b", 2, "+", "a", 1, "-"),
        put(1, "c", 1, "+"),
        connection.run_script(prefix, "records_since", "-", lease, "try", 0, 0),
    ]


async def _ask_sentinel(server: RedisServer, sentinel: tuple[str, int], reactor: Any) -> tuple[str, int]:
    """The address of the master, as one Sentinel knows it."""
    connection = await _dial(server, sentinel, reactor)
    try:
        await _log_in(connection, server.sentinel_login)
        answer = await connection.ask("SENTINEL", "get-master-addr-by-name", server.master)
        match answer:
            case [str(host), str(port)] if port.isdecimal() and 0 < int(port) < 65536:
                return host, int(port)
            case None:
                raise RedisError(f"Sentinel knows no master {server.master}")
        raise RedisError(f"Sentinel answered {escape_text(repr(answer))[:100]}")
    finally:
        connection.fail("it has been asked")
