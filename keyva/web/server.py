"""uvicorn, with limits that it does not have: on headers, on connections, and on clients that send or read too slowly.

Invariants: a connection holds at most `HEAD_BYTES_MAX` of an unfinished request head; one that makes too little progress for its limit
of time is cut off by `Connections.sweep`, once a second, whatever the application waits for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Limits", "Protocol", "Server", "make_server"]

URL_BYTES_MAX = 3 * 65536 + 64
"""A path with the longest key, every byte of it percent-encoded."""

HEADER_BYTES_MAX = 32 * 1024
HEAD_BYTES_MAX = URL_BYTES_MAX + HEADER_BYTES_MAX
HEADERS_MAX = 100
_PARSE_URL_BYTES = 65000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. A body must come at ``body_bytes_per_s`` or more once ``body_s`` have passed; an answer must be taken likewise."""

    connections: int = 1000
    keep_alive_s: int = 30
    head_s: float = 10.0
    body_s: float = 20.0
    body_bytes_per_s: int = 1024
    write_s: float = 30.0


LIMITS = Limits()


class Protocol(HttpToolsProtocol):
    """One connection."""

    limits = LIMITS

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or refuse it when there are too many."""
        super().connection_made(transport)
        self._head_since: float | None = time.monotonic()
        self._head_bytes = self._header_bytes = 0
        self._body_since = 0.0
        self._body_bytes = 0
        self._behind_since: float | None = None
        self._refused = False
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "Service Unavailable", f"{self.limits.connections} connections are open already; try again later")

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what an unfinished head takes."""
        if self._refused:
            return
        if self._head_since is None and (self.cycle is None or self.cycle.response_complete):
            self._head_since = time.monotonic()
        super().data_received(data)
        if self._head_since is not None and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(431, "Request Header Fields Too Large", f"request line and headers have at most {HEAD_BYTES_MAX} bytes")

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        super().on_url(url)
        if len(self.url) > URL_BYTES_MAX:
            self._refuse(414, "URI Too Long", f"a URL has at most {URL_BYTES_MAX} bytes")
            raise ValueError("URL too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        super().on_header(name, value)
        self._header_bytes = len(name) + len(value) + (self._header_bytes if len(self.headers) > 1 else 0)
        if len(self.headers) > HEADERS_MAX or self._header_bytes > HEADER_BYTES_MAX:
            self._refuse(
                431, "Request Header Fields Too Large", f"a request has at most {HEADERS_MAX} headers, of {HEADER_BYTES_MAX} bytes together"
            )
            raise ValueError("headers too large")

    def on_headers_complete(self) -> None:
        """Start the request. The parser's own URL parser takes 65,535 bytes only, fewer than an encoded key may have."""
        self._head_since = None
        self._head_bytes = 0
        self._body_since, self._body_bytes = time.monotonic(), 0
        url = self.url
        if len(url) <= _PARSE_URL_BYTES:
            super().on_headers_complete()
            return
        path, _, query = url.partition(b"?")
        if not path.startswith(b"/"):
            raise ValueError("not a path")
        self.url = b"/"
        super().on_headers_complete()  # the application runs in a later turn of the loop
        self.scope["raw_path"], self.scope["path"], self.scope["query_string"] = path, unquote(path.decode("ascii")), query

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def resume_writing(self) -> None:
        """Go on writing: the client has taken what was waiting."""
        self._behind_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        if not self._refused:
            self._refuse(400, "Bad Request", "this is not a valid HTTP/1.1 request; in a path, other bytes than ASCII are percent-encoded")

    def _refuse(self, status: int, title: str, detail: str) -> None:
        """Answer without the application, and close."""
        self._refused = True
        body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
        fields = f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        head = f"HTTP/1.1 {status} {title}\r\n{fields}\r\n"
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(head.encode() + body)
        self.transport.close()

    def check_progress(self, now: float) -> None:
        """Cut the connection off when its client is too slow."""
        limits = self.limits
        if self._head_since is not None and now - self._head_since > limits.head_s:
            if not self._refused:
                self._refuse(408, "Request Timeout", f"the request's headers did not come within {limits.head_s:g} s")
                self._head_since = now
            else:
                self.transport.abort()
            return
        if self.transport.get_write_buffer_size() == 0:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since > limits.write_s:
            self.transport.abort()
            return
        cycle = self.cycle
        # Only while the application wants more: a paused reader is not the client's fault
        if cycle is not None and cycle.more_body and not cycle.response_complete and not self.flow.read_paused:
            late = now - self._body_since - limits.body_s
            if late > 0 and self._body_bytes < late * limits.body_bytes_per_s:
                self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: a worker has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    def sweep(self) -> None:
        """Look at all connections; costs 1 us each."""
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.check_progress(now)


def make_server(app: Any, *, limits: Limits = LIMITS) -> Server:
    """Return a server of ``app``; run it with ``serve(sockets=[...])``."""
    protocol = type("LimitedProtocol", (Protocol,), {"limits": limits})
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="none",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=3,
    )
    return Server(config)
