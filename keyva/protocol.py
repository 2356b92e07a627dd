"""Messages between clients, workers and node: how they become frames and back. No sockets here.

Written down in docs/protocol.md. Every message is two frames, a header and a body, both msgpack. A client's DEALER sends a `Request`
header and gets a `Response` header with the same request number. Nothing here trusts its input: whatever cannot be decoded raises
`ProtocolError`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from keyva.errors import CorruptionError, KeyvaError, ProtocolError, by_name

__all__ = [
    "ERROR",
    "FLAG_NO_SYNC",
    "FLAG_REPEATED",
    "FLAG_SYNC",
    "HEADER_BYTES_MAX",
    "OK",
    "PROTOCOL_VERSION",
    "WAIT",
    "Request",
    "Response",
    "decode_body",
    "decode_error",
    "decode_request",
    "decode_response",
    "encode",
    "error_body",
]

PROTOCOL_VERSION = 1
HEADER_BYTES_MAX = 1024
OK, ERROR, WAIT = 0, 1, 2
FLAG_REPEATED, FLAG_SYNC, FLAG_NO_SYNC = 1, 2, 4


class Request(msgspec.Struct, array_like=True):
    """Header of a request. ``client`` (random, 64 bits), ``request`` (grows by one) and ``floor`` (the lowest number not answered yet)
    let a repeat be recognised; ``as_of`` is the commit position known when it was first sent."""

    version: int
    op: str
    client: int
    request: int
    floor: int = 0
    as_of: int = 0
    flags: int = 0


class Response(msgspec.Struct, array_like=True):
    """Header of an answer. ``status`` is OK, ERROR, or WAIT (not the answer yet: the request is alive, the body says why it waits)."""

    version: int
    request: int
    status: int
    position: int = 0


encode = msgspec.msgpack.Encoder().encode
_U64 = 2**64
_request_decoder = msgspec.msgpack.Decoder(Request)
_response_decoder = msgspec.msgpack.Decoder(Response)
_any_decoder = msgspec.msgpack.Decoder()


def decode_request(frame: bytes) -> Request:
    """Decode a request header; raises `ProtocolError`."""
    if len(frame) > HEADER_BYTES_MAX:
        raise ProtocolError(f"header of {len(frame)} bytes, more than {HEADER_BYTES_MAX}")
    try:
        request = _request_decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"header cannot be decoded: {error}") from None
    if not (0 <= request.client < _U64 and 0 <= request.request < _U64 and 0 <= request.floor < _U64 and 0 <= request.as_of < _U64):
        raise ProtocolError("a number in the header is outside of 64 bits")
    return request


def decode_response(frame: bytes) -> Response:
    """Decode an answer's header; raises `ProtocolError`."""
    try:
        return _response_decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"header cannot be decoded: {error}") from None


def decode_body(frame: bytes, kind: Any = Any) -> Any:
    """Decode a body as ``kind`` (a type); raises `ProtocolError`."""
    try:
        if kind is Any:
            return _any_decoder.decode(frame)
        return msgspec.msgpack.decode(frame, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"body cannot be decoded: {error}") from None


def error_body(error: BaseException) -> bytes:
    """Encode an error for the wire: its class name, its text, and for corruption the file and offset."""
    name = type(error).__name__ if isinstance(error, KeyvaError | TypeError) else "KeyvaError"
    message = str(error) if isinstance(error, KeyvaError | TypeError) else f"{type(error).__name__}: {error}"
    path, offset = (error.path, error.offset) if isinstance(error, CorruptionError) else ("", 0)
    return encode([name, message, path, offset])


def decode_error(frame: bytes) -> Exception:
    """Build the error that `error_body` encoded; raises `ProtocolError` when it is none."""
    name, message, path, offset = decode_body(frame, tuple[str, str, str, int])
    if name == "TypeError":
        return TypeError(message)
    error = by_name(name, message)
    if isinstance(error, CorruptionError):
        error.path, error.offset = path, offset
    return error
