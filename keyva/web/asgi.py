"""The little of ASGI that handlers need: a request, its body within limits, an answer in pieces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

__all__ = ["BodyBudget", "Headers", "Receive", "Request", "Scope", "Send", "answer"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

PIECE_BYTES = 256 * 1024
"""A large answer is handed over in such pieces, each when the last has left: at most one waits in the connection's buffer."""

STEP_BYTES = 1024 * 1024
"""Room for a body is taken in such steps."""


class DisconnectedError(Exception):
    """Is raised when the client went away before its request was complete."""


class TooLargeError(Exception):
    """Is raised when a body has more bytes than are allowed."""


class NoRoomError(Exception):
    """Is raised when the bodies under way take all the memory that they may."""


class Request:
    """One request: its scope, and its headers by name (repeated ones joined as RFC 9110, 5.3 says)."""

    __slots__ = ("headers", "method", "raw_path", "receive", "scope", "send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.headers: dict[bytes, bytes] = {}
        headers = self.headers
        for name, value in scope["headers"]:
            headers[name] = headers[name] + b", " + value if name in headers else value


class BodyBudget:
    """The memory that request bodies may take together, in bytes."""

    def __init__(self, total: int) -> None:
        self._left = total

    async def read(self, request: Request, limit: int) -> bytes:
        """Read a body of at most ``limit`` bytes; raises `TooLargeError`, `NoRoomError` or `DisconnectedError`. The server throws
        away what is not read, and cuts off slow clients.
        """
        headers = request.headers
        length = headers.get(b"content-length")
        if length is not None and int(length) > limit:
            raise TooLargeError
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        if not message.get("more_body"):
            body: bytes = message["body"]
            if len(body) > limit:
                raise TooLargeError
            return body
        parts = bytearray(message["body"])
        taken = 0
        try:
            while True:
                if len(parts) > limit:
                    raise TooLargeError
                if len(parts) > taken:
                    # what has come, not what was announced: a slow client must not keep room that it does not fill
                    more = len(parts) - taken + STEP_BYTES
                    if more > self._left:
                        raise NoRoomError
                    self._left -= more
                    taken += more
                if not message.get("more_body"):
                    return bytes(parts)
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                parts += message["body"]
        finally:
            self._left += taken


async def answer(send: Send, status: int, headers: Headers, body: bytes = b"", *, head: bool = False) -> None:
    """Send an answer; ``head`` leaves the body out but not its length. Hot for small bodies."""
    fields = list(headers)
    if status not in (204, 304):
        fields.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    if head or len(body) <= PIECE_BYTES:
        await send({"type": "http.response.body", "body": b"" if head else body})
        return
    view = memoryview(body)
    for at in range(0, len(body), PIECE_BYTES):
        piece = bytes(view[at : at + PIECE_BYTES])
        await send({"type": "http.response.body", "body": piece, "more_body": at + PIECE_BYTES < len(body)})
