"""uvicorn, with limits that it does not have: on headers, on connections, and on clients that send or read too slowly.

Invariants: a connection holds at most `HEAD_BYTES_MAX` and one piece from the socket of an unfinished head or trailer, and the requests of
one such piece behind the one that is served. One that makes too little progress for its limit of time is cut off by `Server.sweep`,
once a second, whatever the application waits for. Every request has at most one answer: what comes of its body behind the answer is
dropped, and never taken for the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import re
import struct
import termios
import time
from collections.abc import Coroutine, Iterator
from typing import Any
from urllib.parse import unquote

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["Limits", "Protocol", "Server", "make_server"]

URL_BYTES_MAX = 3 * 65536 + 64
"""A path with the longest key, every byte of it percent-encoded."""

HEADER_BYTES_MAX = 32 * 1024
HEAD_BYTES_MAX = URL_BYTES_MAX + HEADER_BYTES_MAX
HEADERS_MAX = 100

BODY_HELD_BYTES = 64 * 1024
"""Of a body, unread by the application: then the socket is no longer read."""

REST_BYTES_MAX = 64 * 1024
"""Of a body whose answer is given already: so much is waited for and dropped, and the connection kept. For more it is closed."""

_TARGET = re.compile(rb"(?:(?i:https?)://([^/?]*))?(/[^?]*|(?=\?|\Z))(?:\?(.*))?\Z", re.DOTALL)
_NO_TARGET = re.compile(rb"[^!\"$-~]")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. A body must come at ``body_bytes_per_s`` or more once ``body_s`` have passed; of an answer that waits,
    ``write_s * write_bytes_per_s`` must be taken in every ``write_s``. ``linger_s`` and ``linger_bytes``: how much is still read and
    dropped from a connection that is being closed.
    """

    connections: int = 1000
    keep_alive_s: int = 30
    head_s: float = 10.0
    body_s: float = 20.0
    body_bytes_per_s: int = 1024
    write_s: float = 60.0
    write_bytes_per_s: int = 1024
    linger_s: float = 30.0
    linger_bytes: int = 256 * 1024 * 1024


LIMITS = Limits()


class Lingering:
    """The transport of the last answer on a connection whose client may still be sending: `close` lingers."""

    def __init__(self, protocol: Protocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.linger


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    protocol: Protocol
    early = False
    """The answer began before the body had come."""

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        """Send a part of the answer. Hot."""
        if self.more_body and not self.response_started:
            self.protocol.answer_early(self)
        return super().send(message)

    async def receive(self) -> Any:
        """Take a part of the body. uvicorn's own lets the socket be read again when all of it is there: for the requests behind it."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if self.more_body:
                self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def disconnect(self) -> None:
        """Tell the application that nobody waits for its answer."""
        if not self.response_complete:
            self.disconnected = True
        self.message_event.set()


class Protocol(HttpToolsProtocol):
    """One connection."""

    limits = LIMITS

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or refuse it when there are too many."""
        super().connection_made(transport)
        self._running: Cycle | None = None  # the request that is served; ``cycle`` is the one that was parsed last
        self._in_body = False  # the parser is behind a request's head and before its end
        self._head_since: float | None = time.monotonic()
        self._head_bytes = self._header_bytes = 0
        self._body_since = 0.0
        self._body_bytes = 0
        self._behind_since: float | None = None
        self._behind_bytes = self._taken_bytes = 0
        self._refused = False
        self._linger_since: float | None = None
        self._lingered_bytes = 0
        if len(self.connections) > self.limits.connections:
            self._refused = True
            self._write_problem(503, "Service Unavailable", f"{self.limits.connections} connections are open already; try again later")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is served, too, when others wait behind it."""
        if self._running is not None:
            self._running.disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what an unfinished head or trailer takes. Hot."""
        if self._refused:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > self.limits.linger_bytes:
                self.transport.abort()
            return
        if self._head_since is None and not self._in_body and (self._running is None or self._running.response_complete):
            self._head_since = time.monotonic()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self._refused:
            self._refuse(431, "Request Header Fields Too Large", f"request line and headers have at most {HEAD_BYTES_MAX} bytes")

    # What the parser finds

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self.url += url
        if len(self.url) > URL_BYTES_MAX:
            self._refuse(414, "URI Too Long", f"a URL has at most {URL_BYTES_MAX} bytes")
            raise ValueError("URL too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; drop a trailer, which comes when the request may be served already. Hot."""
        if self._in_body:
            return
        super().on_header(name, value)
        self._header_bytes = len(name) + len(value) + (self._header_bytes if len(self.headers) > 1 else 0)
        if len(self.headers) > HEADERS_MAX or self._header_bytes > HEADER_BYTES_MAX:
            self._refuse(
                431, "Request Header Fields Too Large", f"a request has at most {HEADERS_MAX} headers, of {HEADER_BYTES_MAX} bytes together"
            )
            raise ValueError("headers too large")
        if len(name) == 17 and name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self._refuse(501, "Not Implemented", "of transfer codings, chunked alone is known")
            raise ValueError("unknown transfer coding")

    def on_headers_complete(self) -> None:
        """Start the request, or let it wait for the one before it. Hot."""
        self._head_since = None
        self._head_bytes = self._body_bytes = 0
        self._body_since = time.monotonic()
        scope, parser = self.scope, self.parser
        scope["method"] = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        scope["http_version"] = version
        self._take_target()
        cycle = self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        cycle.protocol = self
        self._in_body = True
        if self._running is None or self._running.response_complete:
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _take_target(self) -> None:
        """Take the request's target apart (RFC 9112, 3.2). The parser's own function takes 65,535 bytes only, fewer than an encoded key
        may have, and leaves a fragment out.
        """
        target = self.url
        found = None if _NO_TARGET.search(target) else _TARGET.match(target)
        if found is None:
            if target != b"*" or self.scope["method"] != "OPTIONS":
                raise ValueError("not a path")
            host, path, query = None, target, None
        else:
            host, path, query = found.groups()
        if host is not None:
            path = path or b"/"
            # it counts instead of the Host header; none or two of these are left to be refused
            at = [number for number, (name, _) in enumerate(self.headers) if name == b"host"]
            if len(at) == 1:
                self.headers[at[0]] = (b"host", host)
        elif not path:
            raise ValueError("not a path")
        text = path.decode("ascii")
        scope = self.scope
        scope["raw_path"] = path
        scope["path"] = unquote(text) if "%" in text else text
        scope["query_string"] = query or b""

    def on_body(self, body: bytes) -> None:
        """Take a part of the body. Hot."""
        self._head_bytes = 0
        self._body_bytes += len(body)
        cycle = self.cycle
        assert isinstance(cycle, Cycle)
        if cycle.early or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > BODY_HELD_BYTES:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Go on to the next request. Hot."""
        self._head_bytes = 0
        self._in_body = False
        cycle = self.cycle
        cycle.more_body = False
        cycle.message_event.set()
        if cycle.response_complete:
            self._wait_for_next()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        if not self._refused:
            self._refuse(400, "Bad Request", "this is not a valid HTTP/1.1 request; in a path, other bytes than ASCII are percent-encoded")

    # Answers

    def _start(self, cycle: Cycle) -> None:
        self._running = cycle
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        """Start the request that came behind, or wait for one. Hot."""
        self.server_state.total_requests += 1
        if self._refused or self.transport.is_closing():
            return
        if self.pipeline:
            cycle, _ = self.pipeline.pop()
            assert isinstance(cycle, Cycle)
            self._start(cycle)
        else:
            self._wait_for_next()
        if not self.pipeline:
            self.flow.resume_reading()

    def _wait_for_next(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def answer_early(self, cycle: Cycle) -> None:
        """Make ready for an answer whose request has not come to its end: keep the connection for a short rest, else let it be the last.

        A client that waits for 100 Continue may send the body or not (RFC 9110, 10.1.1): nothing can be told behind it.
        """
        cycle.early = True
        cycle.body = bytearray()
        length = next((int(value) for name, value in cycle.scope["headers"] if name == b"content-length"), None)
        if length is None or length - self._body_bytes > REST_BYTES_MAX or cycle.waiting_for_100_continue:
            self._make_last(cycle)
        self.flow.resume_reading()

    def _make_last(self, cycle: Cycle) -> None:
        cycle.keep_alive = False
        cycle.transport = Lingering(self)  # type: ignore[assignment]

    def _refuse(self, status: int, title: str, detail: str) -> None:
        """Answer what is being parsed without the application, and close. A request before it is answered first, by itself, but cut off
        when its answer has begun: it may be one without an end.
        """
        self._refused = True
        self._head_since = None
        self.pipeline.clear()
        running = self._running
        if running is not None and not running.response_complete:
            if running.response_started:
                self.transport.close()
                return
            if running is not self.cycle or not self._in_body:
                self._make_last(running)
                self.flow.pause_reading()
                return
            running.disconnect()
        if not (self._in_body and self.cycle.response_complete):
            self._write_problem(status, title, detail)
        self.linger()

    def _write_problem(self, status: int, title: str, detail: str) -> None:
        body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
        fields = f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(f"HTTP/1.1 {status} {title}\r\n{fields}\r\n".encode() + body)

    def linger(self) -> None:
        """Close when the client has: to close while it sends would make its system throw the answer away (RFC 9112, 9.6)."""
        self._refused = True
        if self._linger_since is not None or self.transport.is_closing():
            return
        self._linger_since = time.monotonic()
        self._head_since = None
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        try:
            self.transport.write_eof()
        except OSError:  # asyncio's own loop: the client has gone
            self.transport.abort()
            return
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """Come to an end with the request that is served."""
        if self._linger_since is not None:
            self.transport.close()
        else:
            super().shutdown()

    # Slow clients

    def resume_writing(self) -> None:
        """Go on writing: the client has taken what was waiting."""
        self._behind_since = None
        super().resume_writing()

    def check_progress(self, now: float) -> None:
        """Cut the connection off when its client is too slow."""
        limits = self.limits
        if self._linger_since is not None:
            if now - self._linger_since > limits.linger_s:
                self.transport.abort()
            return
        if self._head_since is not None and now - self._head_since > limits.head_s:
            self._refuse(408, "Request Timeout", f"the request's headers did not come within {limits.head_s:g} s")
            return
        if not self._takes(now):
            self.transport.abort()
            return
        # Only while the application wants more: a paused reader is not the client's fault
        if self._in_body and not self.flow.read_paused:
            late = now - self._body_since - limits.body_s
            if late > 0 and self._body_bytes < late * limits.body_bytes_per_s:
                self.transport.abort()

    def _takes(self, now: float) -> bool:
        """Say whether the client takes what is sent, or has time left. More is only written behind `resume_writing` or in small events:
        so what waits, here and in the kernel, gets less as the client takes it.
        """
        waiting = self.transport.get_write_buffer_size()
        if waiting == 0:
            self._behind_since = None
            return True
        waiting += _unacknowledged(self.transport)
        if self._behind_since is None:
            self._behind_since, self._taken_bytes = now, 0
        else:
            self._taken_bytes += max(0, self._behind_bytes - waiting)
        self._behind_bytes = waiting
        if now - self._behind_since > self.limits.write_s:
            if self._taken_bytes < self.limits.write_s * self.limits.write_bytes_per_s:
                return False
            self._behind_since, self._taken_bytes = now, 0
        return True


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Return the bytes that the kernel holds for the client. It asks for more when a third of its buffer, of megabytes, is free: too
    seldom to see a slow client's progress.
    """
    sock = transport.get_extra_info("socket")
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0  # closed already, or a system without this


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
