"""What every worker does: its signs of life, its signals, receiving within limits, answering without ever blocking."""

from __future__ import annotations

import logging
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from keyva.workers.base import Server, Spec, Worker
from nodes import eventually

from keyva.endpoints import Endpoints
from keyva.errors import ProtocolError
from keyva.options import Options
from keyva.protocol import ERROR, OK, PROTOCOL_VERSION, Request, decode_body, decode_error, decode_request, decode_response, encode


@pytest.fixture
def node_socket(tmp_path: Path) -> Iterator[zmq.Socket[bytes]]:
    """Stands where the node listens."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(f"ipc://{tmp_path}/control")
    yield socket
    context.destroy(linger=0)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    endpoints = Endpoints(writer=f"ipc://{tmp_path}/writer", jobs=f"ipc://{tmp_path}/jobs", control=f"ipc://{tmp_path}/control", readers=())
    spec = Spec(
        role="writer",
        directory=str(tmp_path),
        options=Options.of(heartbeat_interval_s=0.05, heartbeat_timeout_s=1.0),
        endpoints=endpoints,
    )
    worker = Worker(spec)
    yield worker
    worker.close()
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for end in (worker._wake_read, worker._wake_write):
        end.close()


class Peer:
    """A client of a server under test."""

    def __init__(self, endpoint: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 1)
        self.socket.connect(endpoint)

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def server(worker: Worker, tmp_path: Path) -> Server:
    return Server(worker, [f"ipc://{tmp_path}/writer"], frame_bytes_max=100_000)


@pytest.fixture
def peer(server: Server, tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(f"ipc://{tmp_path}/writer")
    yield peer
    peer.close()


def request(number: int, op: str = "get", version: int = PROTOCOL_VERSION) -> bytes:
    return encode(Request(version, op, 0, number))


class TestWorker:
    def test_signs_of_life_come_at_most_once_per_interval_and_say_who(self, worker: Worker, node_socket: zmq.Socket[bytes]) -> None:
        beats = []
        end = time.monotonic() + 0.5
        calls = 0
        while time.monotonic() < end:
            worker.beat("working")
            worker.poll(0.005)
            calls += 1
        while node_socket.poll(200):
            _, header, body = node_socket.recv_multipart()
            assert decode_request(header).op == "beat"
            beats.append(decode_body(body))
        assert beats[0] == ["writer", 0, os.getpid(), "working"]
        assert 2 <= len(beats) <= 11 < calls

    def test_nobody_listening_blocks_nothing(self, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            for _ in range(1000):  # more than the queue holds
                worker.tell("beat")
        assert "takes no messages" in caplog.text

    def test_a_signal_ends_the_wait_at_once(self, worker: Worker) -> None:
        worker.spec = msgspec.structs.replace(worker.spec, options=Options.of(heartbeat_interval_s=50, heartbeat_timeout_s=100))
        assert not worker.stopping
        os.kill(os.getpid(), signal.SIGTERM)
        started = time.monotonic()
        worker.poll(40.0)
        assert time.monotonic() - started < 20
        assert worker.stopping

    def test_ctrl_c_is_left_to_the_node(self, worker: Worker) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        worker.poll(0.01)
        assert not worker.stopping

    def test_it_never_waits_longer_than_a_sign_of_life_is_due(self, worker: Worker) -> None:
        started = time.monotonic()
        worker.poll(3600)
        assert time.monotonic() - started < 30


def receive(server: Server) -> Any:
    """Wait for a good message; the malformed ones before it are dropped on the way."""
    return eventually(server.receive, "a request")


class TestServer:
    def test_the_socket_is_for_the_owner_alone(self, server: Server, tmp_path: Path) -> None:
        assert stat.S_IMODE((tmp_path / "writer").stat().st_mode) & 0o077 == 0

    def test_malformed_messages_are_dropped_counted_and_logged_once_a_second(
        self, server: Server, peer: Peer, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = [
            [b""],
            [request(1)],
            [request(1), b"", b""],
            [b"x"] * 1000,
            [b"", b""],
            [b"\x91" * 900, b""],
            [encode([1, "get", 0, 1]) + b"more", b""],
            [encode([1, "get", -1, 1]), b""],
            [encode([1, "get", 0, 1, 0, 0, 0]) + bytes(2000), b""],
        ]
        with caplog.at_level(logging.WARNING):
            for frames in bad:
                peer.socket.send_multipart(frames)
            peer.socket.send_multipart([request(7), b"body"])
            message = receive(server)
        assert (message.request.request, message.request.op, message.body) == (7, "get", b"body")
        assert server.malformed == len(bad)
        assert 1 <= caplog.text.count("malformed") <= 3
        assert message.peer.hex() in caplog.text
        assert server.receive() is None

    def test_another_version_is_answered_with_an_error(self, server: Server, peer: Peer) -> None:
        peer.socket.send_multipart([request(3, version=2), b""])
        peer.socket.send_multipart([request(4), b""])
        assert receive(server).request.request == 4
        assert peer.socket.poll(10_000)
        header, body = peer.socket.recv_multipart()
        response = decode_response(header)
        assert (response.request, response.status) == (3, ERROR)
        error = decode_error(body)
        assert isinstance(error, ProtocolError)
        assert "version 2" in str(error)

    def test_a_frame_over_the_limit_cuts_its_sender_off_and_nobody_else(self, server: Server, peer: Peer, tmp_path: Path) -> None:
        other = Peer(f"ipc://{tmp_path}/writer")
        try:
            other.socket.send_multipart([request(1), bytes(1_000_000)])
            peer.socket.send_multipart([request(2), bytes(100_000)])
            assert receive(server).request.request == 2
            assert server.receive() is None
        finally:
            other.close()

    def test_an_answer_to_a_peer_that_has_gone_is_dropped(self, server: Server, tmp_path: Path) -> None:
        peer = Peer(f"ipc://{tmp_path}/writer")
        peer.socket.send_multipart([request(1), b""])
        message = receive(server)
        peer.close()

        def dropped() -> bool:
            server.answer(message.peer, 1, b"")
            return bool(server.dropped_answers)

        eventually(dropped, "the peer is known to be gone")

    def test_a_peer_that_does_not_read_blocks_nobody(self, server: Server, peer: Peer, tmp_path: Path) -> None:
        peer.socket.send_multipart([request(1), b""])
        message = receive(server)
        for _ in range(5000):
            server.answer(message.peer, 1, bytes(10_000))
        assert server.dropped_answers > 0
        other = Peer(f"ipc://{tmp_path}/writer")
        try:
            other.socket.send_multipart([request(2), b""])
            message = receive(server)
            server.answer(message.peer, 2, b"answer", position=5)
            assert other.socket.poll(10_000)
            header, body = other.socket.recv_multipart()
            assert body == b"answer"
            assert decode_response(header) == decode_response(encode([PROTOCOL_VERSION, 2, OK, 5]))
        finally:
            other.close()
