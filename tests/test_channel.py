"""One connection: answers matched by number, repeats, waits and their limits. The server is a real ROUTER of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from nodes import eventually

from keyva.channel import Channel, Curve
from keyva.errors import ConfigError, InvalidArgumentError, NoSpaceError, OutcomeUnknownError, ProtocolError, UnavailableError
from keyva.protocol import ERROR, FLAG_REPEATED, OK, WAIT, Request, Response, decode_request, encode, error_body

Script = Callable[[int, Request, bytes], Iterable[list[bytes]]]
"""(how many requests came before, header, body) -> the messages to answer with."""


class Server:
    """Answers as a script says, in a thread; keeps what it got."""

    def __init__(self, path: Path, script: Script) -> None:
        self.endpoint = f"ipc://{path}/server"
        self.got: list[Request] = []
        self.context: zmq.Context[Any] = zmq.Context()
        self._router = self.context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.bind(self.endpoint)
        self._script = script
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._router.poll(20):
                peer, header, body = self._router.recv_multipart()
                request = decode_request(header)
                messages = self._script(len(self.got), request, body)
                self.got.append(request)  # before the answer, for that may end the test
                for message in messages:
                    self._router.send_multipart([peer, *message])
        self._router.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.context.term()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[Script], tuple[Channel, Server]]]:
    made: list[tuple[Channel, Server]] = []

    def make(script: Script) -> tuple[Channel, Server]:
        server = Server(tmp_path, script)
        made.append((Channel(server.context, server.endpoint), server))
        return made[-1]

    yield make
    for channel, server in made:
        channel.close()
        server.close()


Connect = Callable[[Script], tuple[Channel, Server]]


def answer(request: Request, body: bytes = b"\xc0", status: int = OK, position: int = 0, number: int | None = None) -> list[bytes]:
    return [encode(Response(1, request.request if number is None else number, status, position)), body]


def test_an_answer_comes_with_the_position(connect: Connect) -> None:
    channel, server = connect(lambda _, request, body: [answer(request, body + b"!", position=77)])
    assert channel.call("get", b"x", timeout_s=5.0) == (b"x!", 77)
    assert channel.position == 77
    assert (server.got[0].op, server.got[0].client, server.got[0].request, server.got[0].floor) == ("get", channel.client, 1, 1)


def test_answers_to_other_requests_are_dropped(connect: Connect) -> None:
    channel, _ = connect(lambda _, request, body: [answer(request, b"old", number=request.request - 1), answer(request, b"new")])
    assert [channel.call("get", b"", timeout_s=5.0).body for _ in range(3)] == [b"new"] * 3


def test_an_error_is_raised_as_what_it_is(connect: Connect) -> None:
    channel, _ = connect(lambda _, request, body: [answer(request, error_body(NoSpaceError("full")), ERROR)])
    with pytest.raises(NoSpaceError, match="full"):
        channel.call("write", b"", timeout_s=5.0, changes=True)
    assert not channel.broken


def test_without_an_answer_the_same_request_is_sent_again_as_a_repeat(connect: Connect) -> None:
    channel, server = connect(lambda before, request, body: [answer(request)] if before == 2 else [])
    channel.call("write", b"b", timeout_s=20.0, as_of=5, flags=2, changes=True)
    first, *repeats = server.got
    assert first.flags == 2
    assert len(repeats) == 2
    assert all(repeat == Request(1, "write", first.client, first.request, first.floor, 5, 2 | FLAG_REPEATED) for repeat in repeats)


@pytest.mark.parametrize(("changes", "error"), [(True, OutcomeUnknownError), (False, UnavailableError)])
def test_giving_up_says_whether_something_may_have_changed(connect: Connect, changes: bool, error: type[Exception]) -> None:
    channel, _ = connect(lambda *_: [])
    with pytest.raises(error, match="did not answer 'op' in"):
        channel.call("op", b"", timeout_s=0.2, changes=changes)
    assert channel.broken


def test_a_wait_gives_more_time(connect: Connect) -> None:
    timeout_s = 1.0
    later = threading.Event()

    def script(_: int, request: Request, body: bytes) -> Iterator[list[bytes]]:
        yield answer(request, encode("level 0 is full"), WAIT)
        later.wait(30)
        yield answer(request, b"done")

    channel, server = connect(script)
    start = time.monotonic()

    def let_it_answer() -> None:
        if time.monotonic() > start + timeout_s:
            later.set()

    assert channel.call("write", b"", timeout_s=timeout_s, on_silence=let_it_answer).body == b"done"
    assert len(server.got) == 1


def test_a_malformed_answer_breaks_the_channel(connect: Connect) -> None:
    channel, _ = connect(lambda *_: [[b"nonsense", b""]])
    with pytest.raises(ProtocolError):
        channel.call("get", b"", timeout_s=5.0)
    assert channel.broken


def test_silence_can_end_the_wait(connect: Connect) -> None:
    channel, _ = connect(lambda *_: [])

    def nobody() -> None:
        raise UnavailableError("the node has gone")

    with pytest.raises(UnavailableError, match="gone"):
        channel.call("get", b"", timeout_s=20.0, on_silence=nobody)
    assert channel.broken


def test_a_lost_connection_is_noticed_and_the_request_sent_at_once(tmp_path: Path) -> None:
    first = Server(tmp_path, lambda *_: [])
    context: zmq.Context[Any] = zmq.Context()
    channel = Channel(context, first.endpoint)
    servers: list[Server] = []

    def replace_server() -> None:
        if first.got and not servers:
            first.close()
            servers.append(Server(tmp_path, lambda _, request, body: [answer(request, b"second")]))

    assert channel.call("write", b"", timeout_s=20.0, on_silence=replace_server, changes=True).body == b"second"
    assert servers[0].got[0].flags & FLAG_REPEATED
    channel.close()
    servers[0].close()
    context.term()


def test_an_exception_out_of_the_middle_of_a_call_breaks_the_channel(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, _ = connect(lambda _, request, body: [answer(request)])
    channel.call("get", b"", timeout_s=5.0)
    assert not channel.broken

    def half(socket: zmq.Socket[bytes]) -> list[bytes]:
        if socket is not channel._socket:
            return real(socket)
        socket.recv()
        raise KeyboardInterrupt

    real = zmq.Socket.recv_multipart

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zmq.Socket, "recv_multipart", half)
        channel.call("get", b"", timeout_s=5.0)
    assert channel.broken


def test_a_request_follows_the_server_to_where_it_is_now(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    channel, old = connect(lambda *_: [])
    new = Server(tmp_path / "new", lambda _, request, body: [answer(request, b"new")])
    assert channel.call("write", b"", timeout_s=20.0, on_silence=lambda: new.endpoint, changes=True).body == b"new"
    assert channel.endpoint == new.endpoint
    assert (new.got[0].client, new.got[0].request) == (channel.client, 1)
    assert new.got[0].flags & FLAG_REPEATED
    assert channel.call("write", b"", timeout_s=20.0).body == b"new"
    new.close()


def test_a_lost_connection_is_to_be_greeted_again(tmp_path: Path) -> None:
    first = Server(tmp_path, lambda _, request, body: [answer(request)])
    context: zmq.Context[Any] = zmq.Context()
    channel = Channel(context, first.endpoint)
    channel.call("hello", b"", timeout_s=20.0)
    channel.greeted = True
    channel.check_connection()
    assert channel.greeted
    first.close()

    def lost() -> bool:
        channel.check_connection()
        return not channel.greeted

    eventually(lost, "the loss is noticed")
    channel.close()
    channel.close()
    context.term()


@pytest.mark.parametrize("endpoint", ["tcp://h", "tcp://", "ipc://" + "/x" * 100, "ipc:///\udcff"])
def test_an_endpoint_that_cannot_be_is_named(endpoint: str) -> None:
    context: zmq.Context[Any] = zmq.Context()
    with pytest.raises(InvalidArgumentError, match="cannot connect to"):
        Channel(context, endpoint)
    context.term()


@pytest.mark.parametrize("key", [b" " * 40, b"short", "é".encode() * 40])
def test_a_key_that_is_none_is_named(key: bytes) -> None:
    public, secret = zmq.curve_keypair()
    context: zmq.Context[Any] = zmq.Context()
    with pytest.raises(ConfigError, match=r"the server's public key b.* is not a CURVE key"):
        Channel(context, "tcp://127.0.0.1:1", Curve(key, public, secret))
    with pytest.raises(ConfigError, match="the client's secret key is not a CURVE key"):
        Channel(context, "tcp://127.0.0.1:1", Curve(public, public, key))
    context.term()
