"""The reactor on uvloop: what Twisted's own tests of reactors do not ask. Each test has a process of its own."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

pytest.importorskip("uvloop", reason="the extra uvloop")


def printed_by(program: str) -> str:
    """What a program prints that runs on the reactor."""
    head = """
        import asyncio, os, socket
        from twisted_smtpguard.reactors import uvloopreactor
        reactor = uvloopreactor.install()
        from twisted.internet import defer, protocol, task
    """
    source = dedent(head) + dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("known_by", ["the end of the process", "the signal alone"])
def test_child_processes_are_reaped(known_by: str) -> None:
    assert (
        printed_by(
            f"""
            if "{known_by}" == "the signal alone":
                # As before Linux 5.3.
                del os.pidfd_open
            class Child(protocol.ProcessProtocol):
                def outReceived(self, data):
                    print(data.decode(), end="")
                def processEnded(self, reason):
                    print(reason.value.exitCode)
                    reactor.stop()
            script = "echo hello; exec <&- >&- 2>&-; sleep 0.1; exit 3"
            reactor.callWhenRunning(reactor.spawnProcess, Child(), "/bin/sh", ["sh", "-c", script])
            reactor.run()
            """
        )
        == "hello\n3\n"
    )


def test_child_processes_are_reaped_beside_those_of_asyncio() -> None:
    assert (
        printed_by(
            """
            ended = defer.Deferred()
            class Child(protocol.ProcessProtocol):
                def processExited(self, reason):
                    ended.callback(reason.value.exitCode)
            async def main():
                first = await asyncio.create_subprocess_exec("true")
                await first.wait()
                before = os.listdir("/proc/self/fd")
                reactor.callLater(20, ended.callback, "not reaped")
                # Without pipes, which would show that it has ended.
                reactor.spawnProcess(Child(), "/bin/sh", ["sh", "-c", "sleep 0.1; exit 3"], childFDs={})
                print(await ended.asFuture(asyncio.get_running_loop()))
                print(os.listdir("/proc/self/fd") == before)
                reactor.stop()
            reactor.callWhenRunning(lambda: defer.Deferred.fromFuture(asyncio.ensure_future(main())))
            reactor.run()
            """
        )
        == "3\nTrue\n"
    )


def test_asyncio_code_runs_on_the_same_loop() -> None:
    assert (
        printed_by(
            """
            async def main():
                await asyncio.sleep(0.01)
                print(asyncio.get_running_loop() is reactor._asyncioEventloop)
                reactor.stop()
            reactor.callWhenRunning(lambda: defer.Deferred.fromFuture(asyncio.ensure_future(main())))
            reactor.run()
            """
        )
        == "True\n"
    )


def test_it_works_in_a_loop_that_runs_already() -> None:
    source = """
import asyncio, uvloop
from twisted_smtpguard.reactors import uvloopreactor

async def main():
    reactor = uvloopreactor.install(asyncio.get_running_loop())
    from twisted.internet import endpoints, protocol
    from twisted.protocols.wire import Echo
    reactor.startRunning(installSignalHandlers=False)
    port = await endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
        protocol.Factory.forProtocol(Echo)
    ).asFuture(asyncio.get_running_loop())
    reader, writer = await asyncio.open_connection("127.0.0.1", port.getHost().port)
    writer.write(b"hello")
    print(await reader.readexactly(5), type(asyncio.get_running_loop()).__module__)

uvloop.run(main()) if hasattr(uvloop, "run") else uvloop.new_event_loop().run_until_complete(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("b'hello' uvloop\n", "")


def test_a_call_made_while_input_is_delivered_comes_after_the_input_of_the_others() -> None:
    assert (
        printed_by(
            """
            class Talker(protocol.Protocol):
                def dataReceived(self, data):
                    print("input", data.decode())
                    reactor.callLater(0, print, "call", data.decode())
            made = []
            factory = protocol.Factory.forProtocol(Talker)
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            clients = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in "ab"]
            def speak():
                for client, word in zip(clients, "ab"):
                    client.sendall(word.encode())
            reactor.callLater(0.05, speak)
            reactor.callLater(0.2, reactor.stop)
            reactor.run()
            """
        )
        == "input a\ninput b\ncall a\ncall b\n"
    )


def test_an_error_in_one_call_leaves_the_others_and_the_descriptors() -> None:
    assert (
        printed_by(
            """
            from twisted.python import log
            log.startLoggingWithObserver(lambda event: event["isError"] and print(event["failure"].value), False)
            class Talker(protocol.Protocol):
                def dataReceived(self, data):
                    self.transport.write(data)
                    reactor.callLater(0, lambda: 1 / 0)
                    reactor.callLater(0, print, "the next call")
            factory = protocol.Factory.forProtocol(Talker)
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            async def main():
                reader, writer = await asyncio.open_connection("127.0.0.1", port.getHost().port)
                for word in (b"a", b"b"):
                    writer.write(word)
                    print(await reader.read(1))
                reactor.callLater(0.05, reactor.stop)
            reactor.callWhenRunning(lambda: defer.Deferred.fromFuture(asyncio.ensure_future(main())))
            reactor.run()
            """
        )
        .splitlines()
        .count("the next call")
        == 2
    )


def test_a_timer_is_kept_to_while_a_connection_never_stops_sending() -> None:
    assert (
        printed_by(
            """
            class Sink(protocol.Protocol):
                pass
            class Source(protocol.Protocol):
                def connectionMade(self):
                    self.transport.registerProducer(self, True)
                    self.resumeProducing()
                def resumeProducing(self):
                    self.produces = True
                    while self.produces:
                        self.transport.write(bytes(65536))
                def pauseProducing(self):
                    self.produces = False
                stopProducing = pauseProducing
            port = reactor.listenTCP(0, protocol.Factory.forProtocol(Sink), interface="127.0.0.1")
            reactor.connectTCP("127.0.0.1", port.getHost().port, protocol.ClientFactory.forProtocol(Source))
            ticks = []
            task.LoopingCall(ticks.append, 1).start(0.02)
            reactor.callLater(0.5, reactor.stop)
            reactor.run()
            print(len(ticks) > 5)
            """
        )
        == "True\n"
    )


@pytest.mark.parametrize("without_log_context", [True, False])
def test_an_error_of_a_protocol_that_loses_its_connection_is_in_twisteds_log(
    without_log_context: bool,
) -> None:
    assert (
        printed_by(
            f"""
            from twisted.python import log
            log.startLoggingWithObserver(lambda event: event["isError"] and print(event["failure"].value), False)
            class Careless(protocol.Protocol):
                def connectionMade(self):
                    self.transport.without_log_context = {without_log_context}
                def connectionLost(self, reason):
                    reactor.callLater(0, reactor.stop)
                    raise ValueError("careless")
            port = reactor.listenTCP(0, protocol.Factory.forProtocol(Careless), interface="127.0.0.1")
            client = socket.create_connection(("127.0.0.1", port.getHost().port))
            reactor.callLater(0.01, client.close)
            reactor.run()
            """
        )
        == "careless\n"
    )


def test_a_timer_wakes_the_reactor_once() -> None:
    assert (
        printed_by(
            """
            turns = []
            run = reactor.runUntilCurrent
            reactor.runUntilCurrent = lambda: (turns.append(1), run())
            async def main():
                for _ in range(20):
                    await task.deferLater(reactor, 0.0123)
                reactor.stop()
            reactor.callWhenRunning(lambda: defer.ensureDeferred(main()))
            reactor.run()
            print(len(turns) < 30 or len(turns))
            """
        )
        == "True\n"
    )


@pytest.mark.parametrize("without_log_context", [True, False])
def test_a_protocol_that_raises_at_input_loses_its_connection_and_no_other(without_log_context: bool) -> None:
    assert (
        printed_by(
            f"""
            from twisted.python import log
            log.startLoggingWithObserver(lambda event: event["isError"] and print(event["failure"].value), False)
            class Picky(protocol.Protocol):
                def connectionMade(self):
                    self.transport.without_log_context = {without_log_context}
                def dataReceived(self, data):
                    if data == b"bad":
                        raise ValueError("picky")
                    self.transport.write(data)
            port = reactor.listenTCP(0, protocol.Factory.forProtocol(Picky), interface="127.0.0.1")
            async def main():
                ends = [await asyncio.open_connection("127.0.0.1", port.getHost().port) for _ in "ab"]
                for (_, writer), word in zip(ends, (b"bad", b"good")):
                    writer.write(word)
                for reader, _ in ends:
                    print(await reader.read(10))
                reactor.stop()
            reactor.callWhenRunning(lambda: defer.Deferred.fromFuture(asyncio.ensure_future(main())))
            reactor.run()
            """
        )
        == "picky\nb''\nb'good'\n"
    )


@pytest.mark.parametrize("without_log_context", [True, False])
def test_a_connection_that_another_ends_in_the_same_turn_gets_no_input_any_more(
    without_log_context: bool,
) -> None:
    assert (
        printed_by(
            f"""
            from twisted.python import log
            log.startLoggingWithObserver(lambda event: event["isError"] and print(event), False)
            connections = []
            class Jealous(protocol.Protocol):
                def connectionMade(self):
                    self.transport.without_log_context = {without_log_context}
                    connections.append(self)
                def dataReceived(self, data):
                    print("input")
                    for other in connections:
                        if other is not self:
                            other.transport.abortConnection()
                    reactor.callLater(0, reactor.stop)
            port = reactor.listenTCP(0, protocol.Factory.forProtocol(Jealous), interface="127.0.0.1")
            clients = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in "ab"]
            def speak():
                for client in clients:
                    client.sendall(b"x")
            reactor.callLater(0.05, speak)
            reactor.run()
            """
        )
        == "input\n"
    )


def test_a_crowd_of_new_connections_leaves_others_their_turn() -> None:
    assert (
        printed_by(
            """
            class Crowd(protocol.Factory):
                accepted = 0
                def buildProtocol(self, address):
                    if not self.accepted:
                        reactor.callLater(0, lambda: print(0 < self.accepted < 200))
                        reactor.callLater(0, reactor.stop)
                    self.accepted += 1
                    return protocol.Protocol()
            port = reactor.listenTCP(0, Crowd(), backlog=200, interface="127.0.0.1")
            clients = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(200)]
            reactor.run()
            """
        )
        == "True\n"
    )


def test_a_connection_that_cannot_begin_is_closed_and_the_port_accepts_the_next() -> None:
    assert (
        printed_by(
            """
            from twisted.python import log
            log.startLoggingWithObserver(lambda event: event["isError"] and print(event["failure"].value), False)
            class Shy(protocol.Factory):
                accepted = 0
                def buildProtocol(self, address):
                    self.accepted += 1
                    if self.accepted == 1:
                        raise ValueError("shy")
                    return protocol.Protocol()
            factory = Shy()
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            async def main():
                refused, _ = await asyncio.open_connection("127.0.0.1", port.getHost().port)
                print(await refused.read())
                for _ in "ab":
                    await asyncio.open_connection("127.0.0.1", port.getHost().port)
                while factory.accepted < 3:
                    await asyncio.sleep(0)
                reactor.stop()
            reactor.callWhenRunning(lambda: defer.Deferred.fromFuture(asyncio.ensure_future(main())))
            reactor.run()
            """
        )
        == "shy\nb''\n"
    )


def test_a_refused_connection_gets_its_line_and_under_tls_a_reset_and_neither_gets_a_transport() -> None:
    assert (
        printed_by(
            """
            from twisted.python import log
            from twisted_smtpguard.replies import TOO_MANY_CONNECTIONS
            from twisted_smtpguard.transport.turnaway import SilentTurnAway, TurnAway
            log.startLoggingWithObserver(lambda event: event["isError"] and print(event), False)
            def factory_of(refusing):
                factory = protocol.Factory()
                factory.buildProtocol = lambda address: refusing
                refusing.makeConnection = lambda transport: print("it has a transport")
                return factory
            async def main():
                for refusing in (TurnAway(TOO_MANY_CONNECTIONS), SilentTurnAway()):
                    port = reactor.listenTCP(0, factory_of(refusing), interface="127.0.0.1")
                    client = socket.create_connection(("127.0.0.1", port.getHost().port))
                    client.sendall(b"EHLO too.early")
                    client.setblocking(False)
                    try:
                        print((await asyncio.get_running_loop().sock_recv(client, 100)).decode().strip())
                        print(await asyncio.get_running_loop().sock_recv(client, 100))
                    except ConnectionResetError:
                        print("reset")
                reactor.stop()
            reactor.callWhenRunning(lambda: defer.Deferred.fromFuture(asyncio.ensure_future(main())))
            reactor.run()
            """
        )
        == "421 4.7.0 Too many connections, try again later\nb''\nreset\n"
    )
