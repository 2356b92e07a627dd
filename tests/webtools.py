"""HTTP as bytes: what an HTTP client library would mend or refuse to send."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, Sized
from typing import NamedTuple
from urllib.parse import urlsplit

from nodes import RunningNode, eventually

DEADLINE_S = 30.0


class RawAnswer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    everything: bytes


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port), DEADLINE_S)


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that the server sends until it closes."""
    parts = []
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def parse(answer: bytes) -> RawAnswer:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RawAnswer(int(first.split()[1]) if first else 0, headers, body, answer)


def raw_request(
    url: str,
    method: str = "GET",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    raw: bytes | None = None,
) -> RawAnswer:
    """Send a request as it stands and read until the server closes. ``raw`` is sent instead of all else."""
    fields = {"host": urlsplit(url).netloc, "connection": "close", **(headers or {})}
    if body:
        fields["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    wire = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body if raw is None else raw
    with connect(url) as connection:
        try:
            connection.sendall(wire)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all of it was sent: the answer may be there
        return parse(read_to_end(connection))


def wait_for_more(seen: Sized, count: int) -> None:
    """Wait until ``seen`` has ``count`` entries more than now."""
    before = len(seen)
    eventually(lambda: len(seen) > before + count, f"{count} more")


def kill_and_wait(node: RunningNode, role: str) -> None:
    """Kill a worker with -9 and wait until it was started again."""
    restarts = node.restarts_of(role)
    os.kill(node.pid_of(role), signal.SIGKILL)
    eventually(lambda: node.restarts_of(role) > restarts, f"{role} is back")
