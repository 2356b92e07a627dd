"""Slow and greedy clients: cut off, whatever the application waits for. The limits are short here; the sockets are real."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from nodes import DEADLINE_S, eventually
from webtools import connect, parse, raw_request, read_to_end

from keyva.web.listen import listen_on, url_of
from keyva.web.server import HEAD_BYTES_MAX, LIMITS, REST_BYTES_MAX, Limits, Protocol, Server, make_server

SHORT = Limits(
    connections=20,
    keep_alive_s=1,
    head_s=0.5,
    body_s=0.5,
    body_bytes_per_s=100_000,
    write_s=0.5,
    linger_s=0.5,
    linger_bytes=16_000_000,
)
LARGE = 64 * 1024 * 1024


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Take the body; answer /large with more than socket buffers hold, in pieces, /early before the body, /names with those of the headers,
    and /stream until the client goes.
    """
    taken = 0
    if scope["path"] == "/early":
        await send({"type": "http.response.start", "status": 412, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})
        return
    while (message := await receive())["type"] == "http.request":
        taken += len(message["body"])
        if not message["more_body"]:
            break
    else:
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/names":
        await send({"type": "http.response.body", "body": b",".join(name for name, _ in scope["headers"])})
        return
    if scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    if scope["path"] == "/large":
        for _ in range(LARGE // 65536):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b"%d" % taken})


class Running:
    """A server in a thread, swept twenty times a second."""

    def __init__(self, limits: Limits) -> None:
        self.server: Server = make_server(application, limits=limits)
        self._listener = listen_on("127.0.0.1:0")
        self.url = url_of(self._listener)
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()

    async def _run(self) -> None:
        serving = asyncio.create_task(self.server.serve(sockets=[self._listener]))
        while not serving.done():
            self.server.sweep()
            await asyncio.wait([serving], timeout=0.05)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    server = Running(SHORT)
    yield server
    server.stop()


def ends(connection: socket.socket) -> bytes:
    """Wait until the server has closed the connection, and return what it said."""
    connection.settimeout(DEADLINE_S)
    return read_to_end(connection)


def test_a_client_that_sends_nothing_is_cut_off(running: Running) -> None:
    with connect(running.url) as connection:
        assert parse(ends(connection)).status == 408


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"\r\n"])
def test_a_client_that_drips_its_headers_is_cut_off(running: Running, start: bytes) -> None:
    with connect(running.url) as connection:
        connection.sendall(start)
        drip = threading.Event()

        def send() -> None:
            while not drip.wait(0.05):
                try:
                    connection.sendall(b"\r\n" if start == b"\r\n" else b"x")
                except OSError:
                    return

        thread = threading.Thread(target=send)
        thread.start()
        try:
            assert parse(ends(connection)).status in (400, 408)
        finally:
            drip.set()
            thread.join()


def test_a_client_that_stops_in_its_body_is_cut_off(running: Running) -> None:
    with connect(running.url) as connection:
        connection.sendall(b"PUT /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc")
        assert ends(connection) == b""
    with connect(running.url) as connection:
        connection.sendall(b"PUT /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        assert ends(connection) == b""


def test_a_client_that_does_not_read_is_cut_off(running: Running) -> None:
    with connect(running.url) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connections = running.server.server_state.connections
        # nothing is read until the server has given up: its side is gone then, and far less than the answer has come
        eventually(lambda: connections, "the connection is taken")
        eventually(lambda: not connections, "the connection is cut off")
        assert len(ends(connection)) < LARGE


def test_a_client_that_goes_on_after_the_answer_is_cut_off(running: Running) -> None:
    assert httpx.get(running.url).status_code == 200
    with connect(running.url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ends(connection).endswith(b"0\r\n\r\n")  # keep-alive runs out


def test_fast_clients_are_served_meanwhile(running: Running) -> None:
    slow = [connect(running.url) for _ in range(5)]
    try:
        body = os.urandom(3_000_000)
        assert httpx.put(running.url + "/a", content=body).text == str(len(body))
        assert len(httpx.get(running.url + "/large", timeout=DEADLINE_S).content) == LARGE + 1
    finally:
        for connection in slow:
            connection.close()


HOST = b" HTTP/1.1\r\nHost: localhost\r\n"


def read_until(connection: socket.socket, end: bytes) -> bytes:
    taken = b""
    while not taken.endswith(end):
        part = connection.recv(65536)
        assert part, taken
        taken += part
    return taken


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_before_the_body_is_seen_by_a_client_that_sends_first(running: Running, chunked: bool) -> None:
    body = b"x" * 5_000_000
    wire = (
        b"Transfer-Encoding: chunked\r\n\r\n4c4b40\r\n" + body + b"\r\n0\r\n\r\n" if chunked else b"Content-Length: 5000000\r\n\r\n" + body
    )
    with connect(running.url) as connection:
        connection.sendall(b"PUT /early" + HOST + wire + b"GET /" + HOST + b"\r\n")
        said = ends(connection)
    answer = parse(said)
    assert (answer.status, answer.headers["connection"], answer.body) == (412, "close", b"no")


def test_a_short_rest_of_a_body_is_dropped_and_the_connection_goes_on(running: Running) -> None:
    with connect(running.url) as connection:
        connection.sendall(b"PUT /early" + HOST + b"Content-Length: %d\r\n\r\n" % REST_BYTES_MAX)
        assert b"connection" not in read_until(connection, b"no")
        for _ in range(4):
            connection.sendall(b"x" * (REST_BYTES_MAX // 4))
        connection.sendall(b"PUT /" + HOST + b"Content-Length: 3\r\n\r\nabc")
        assert read_until(connection, b"0\r\n\r\n").endswith(b"\r\n\r\n1\r\n3\r\n0\r\n\r\n")
        connection.sendall(b"PUT /early" + HOST + b"Content-Length: 1000\r\n\r\n")
        read_until(connection, b"no")
        connection.sendall(b"x" * 1000)
        assert ends(connection) == b""  # keep-alive runs out, without a word


def test_after_an_early_answer_the_rest_must_come_in_time(running: Running) -> None:
    with connect(running.url) as connection:
        connection.sendall(b"PUT /early" + HOST + b"Content-Length: 1000\r\n\r\nabc")
        read_until(connection, b"no")
        assert ends(connection) == b""


def test_a_client_that_waits_to_continue_is_answered_and_left(running: Running) -> None:
    with connect(running.url) as connection:
        connection.sendall(b"PUT /early" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        answer = parse(ends(connection))
        assert (answer.status, answer.headers["connection"]) == (412, "close")


def test_a_client_that_is_to_continue_is_told(running: Running) -> None:
    with connect(running.url) as connection:
        connection.sendall(b"PUT /" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert read_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert b"200 OK" in read_until(connection, b"0\r\n\r\n")


def test_closing_waits_for_a_bounded_time_and_number_of_bytes(running: Running) -> None:
    connections = running.server.server_state.connections
    eventually(lambda: not connections, "earlier tests are over")
    with connect(running.url) as connection:
        connection.sendall(b"PUT /early" + HOST + b"Content-Length: 5000000\r\n\r\nabc")
        ends(connection)
        eventually(lambda: not connections, "the server has waited long enough")
    with connect(running.url) as connection:
        connection.sendall(b"PUT /early" + HOST + b"Content-Length: 500000000\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(500):
                connection.sendall(b"x" * 1_000_000)


def test_trailers_are_no_headers(running: Running) -> None:
    head, body = b"PUT /names" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\nContent-Type: image/png\r\n\r\n"
    with connect(running.url) as connection:
        connection.sendall(head + body + head + body)
        for _ in range(2):
            assert b"host,transfer-encoding\r\n" in read_until(connection, b"0\r\n\r\n")[:200]
            connection.sendall(head + body)


def test_what_is_no_request_does_not_take_the_answer_of_the_one_before(running: Running) -> None:
    with connect(running.url) as connection:
        connection.sendall(b"PUT /" + HOST + b"Content-Length: 3\r\n\r\nabcrubbish\r\n\r\n")
        answer = parse(ends(connection))
    assert (answer.status, answer.headers["connection"], answer.body) == (200, "close", b"1\r\n3\r\n0\r\n\r\n")


class FakeTransport:
    """A transport whose buffer a test fills and empties."""

    def __init__(self) -> None:
        self.waiting = 0
        self.reading = True
        self.aborted = self.ended = False
        self.written = b""
        self._socket = socket.socket()

    def get_extra_info(self, name: str) -> Any:
        return self._socket if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.ended = True
        self._socket.close()

    def write_eof(self) -> None:
        self.ended = True


def connected(transport: FakeTransport) -> Protocol:
    config: uvicorn.Config = make_server(application).config
    config.load()
    kind: Any = config.http_protocol_class
    protocol = kind(config=config, server_state=uvicorn.server.ServerState(), app_state={})
    assert isinstance(protocol, Protocol)
    protocol.connection_made(transport)
    return protocol


def seconds_until_cut_off(taken_per_s: int) -> int:
    """Let a client take an answer of 10 MB, and return when it is cut off; 0 when it is not."""

    async def main() -> int:
        transport = FakeTransport()
        protocol = connected(transport)
        protocol._head_since = None
        transport.waiting = 10_000_000
        try:
            for second in range(10_000_000):
                protocol.check_progress(float(second))
                if transport.aborted:
                    return second
                if transport.waiting == 0:
                    break
                transport.waiting = max(0, transport.waiting - taken_per_s)
            return 0
        finally:
            transport.close()

    return asyncio.run(main())


def test_a_slow_client_may_take_its_time_but_not_for_ever() -> None:
    write_s = int(LIMITS.write_s)
    assert seconds_until_cut_off(LIMITS.write_bytes_per_s) == 0
    assert seconds_until_cut_off(0) == write_s + 1
    assert write_s < seconds_until_cut_off(LIMITS.write_bytes_per_s // 2) <= 2 * write_s
    assert write_s < seconds_until_cut_off(1) <= 2 * write_s


@pytest.mark.parametrize(
    "start",
    [
        b"GET /stream" + HOST + b"\r\nGET /" + HOST + b"X: ",
        b"GET /stream" + HOST + b"\r\nGET /",
        b"PUT /" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: ",
        b"PUT /" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3;",
        b"PUT /early" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3;",
    ],
    ids=["header behind an answer", "URL behind an answer", "trailer", "chunk extension", "chunk extension behind an answer"],
)
def test_what_has_no_end_is_refused_wherever_it_stands(start: bytes) -> None:
    async def main() -> None:
        transport = FakeTransport()
        protocol = connected(transport)
        protocol.data_received(start)
        while b"/stream" in start and b"first" not in transport.written:
            await asyncio.sleep(0)
        taken = 0
        while not transport.ended:
            protocol.data_received(b"a" * 1000)
            await asyncio.sleep(0)
            taken += 1000
            assert taken <= HEAD_BYTES_MAX + 1000
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)
        transport.close()

    asyncio.run(main())


def test_a_client_that_has_gone_needs_no_answer() -> None:
    async def main() -> None:
        transport = FakeTransport()
        protocol = connected(transport)

        def gone() -> None:
            raise OSError(errno.ENOTCONN, "the client has gone")

        transport.write_eof = gone  # type: ignore[method-assign]
        protocol.data_received(b"rubbish\r\n\r\n")
        assert transport.aborted
        transport.close()

    asyncio.run(main())


def test_requests_behind_one_that_is_served_wait_in_the_socket() -> None:
    """The one that is served takes its body; with that no more of them are read. When the client goes, it is told, too."""

    async def main() -> None:
        transport = FakeTransport()
        protocol = connected(transport)
        protocol.data_received(b"PUT /stream" + HOST + b"Content-Length: 3\r\n\r\nabc" + (b"GET /" + HOST + b"\r\n") * 3)
        while b"first" not in transport.written:
            await asyncio.sleep(0)
        assert not transport.reading
        protocol.connection_lost(ConnectionResetError())
        await asyncio.gather(*protocol.tasks)
        transport.close()

    asyncio.run(main())


def test_connections_are_bounded(running: Running) -> None:
    held = [connect(running.url) for _ in range(SHORT.connections)]
    try:
        answer = raw_request(running.url)
        assert answer.status in (503, 0)
        problem = msgspec.json.decode(answer.body)
        assert "20 connections" in problem["detail"]
    finally:
        for connection in held:
            connection.close()


def test_the_limits_of_the_gateway_are_sensible() -> None:
    assert 1 <= LIMITS.head_s <= 60
    assert 1 <= LIMITS.write_s <= 120
    assert 64 <= LIMITS.connections <= 10_000
