"""Slow and greedy clients: cut off, whatever the application waits for. The limits are short here; the sockets are real."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from nodes import DEADLINE_S, eventually
from webtools import connect, parse, raw_request, read_to_end

from keyva.web.listen import listen_on, url_of
from keyva.web.server import LIMITS, Limits, Server, make_server

SHORT = Limits(connections=20, keep_alive_s=1, head_s=0.5, body_s=0.5, body_bytes_per_s=100_000, write_s=0.5)
LARGE = 64 * 1024 * 1024


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Take the body; answer /large with more than socket buffers hold, in pieces."""
    taken = 0
    while (message := await receive())["type"] == "http.request":
        taken += len(message["body"])
        if not message["more_body"]:
            break
    else:
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
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
