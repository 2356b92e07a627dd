"""Bytes as text that people can read and type, exact both ways.

Three forms, one for each place:
- command line arguments are the bytes the shell handed over, or hexadecimal digits with ``--hex``;
- one line on a screen is the bytes' UTF-8 text, with all else as ``\\xNN`` (`quote`, read back by `unquote`);
- a JSON object holds a field ``name`` when the bytes are UTF-8 text, else ``name_b64``; ``name_hex`` is taken as well.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

import msgspec

from keyva.errors import InvalidArgumentError

__all__ = [
    "ESCAPED",
    "LINE_BYTES_MAX",
    "check_fields",
    "field_bytes",
    "json_line",
    "numbered_lines",
    "parse_argument",
    "parse_crc",
    "parse_hex",
    "parse_json",
    "put_field",
    "quote",
    "split_words",
    "unquote",
]

LINE_BYTES_MAX = 1024 * 1024 * 1024
"""The longest JSON line that is read; a value of 64 MiB needs 85 MiB in base64, the records of a log may need more."""

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\", '"': b'"', "'": b"'", " ": b" "}
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
_WORD_PART = re.compile(rb"""\\x[0-9A-Fa-f]{2}|\\.|["']|[ \t]+|[^\\"' \t]+|\\""", re.DOTALL)


ESCAPED = "keyva.escaped"
"""How a text stream whose encoding lacks a character writes it (``errors=``): its UTF-8 bytes as ``\\xNN``, so that it can be typed."""


def _escape_unknown(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escape(error.object[error.start : error.end]), error.end


codecs.register_error(ESCAPED, _escape_unknown)


def parse_hex(text: str) -> bytes:
    """Return the bytes of hexadecimal digits, a ``0x`` before them allowed; raises `InvalidArgumentError`."""
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    try:
        return binascii.unhexlify(digits)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(f"{text!r} is not an even number of hexadecimal digits") from None


def parse_argument(text: str, *, as_hex: bool) -> bytes:
    """Return the bytes of a command line argument, exactly as the shell passed them."""
    if as_hex:
        return parse_hex(text)
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def quote(data: bytes) -> str:
    """Return one line of printable text; `unquote` gives the bytes back. About 1 us for a short key."""
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        character if character.isprintable() and character != "\\" else _SHORT.get(character) or _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def unquote(text: str) -> bytes:
    """Return the bytes of `quote`'s text; also takes ``\\"``, ``\\'``, ``\\0`` and ``\\ ``. Raises `InvalidArgumentError`."""
    parts = []
    for match in _WORD_PART.finditer(text.encode("utf-8", "surrogateescape")):
        part = match[0]
        parts.append(_unescape(part) if part[:1] == b"\\" else part)
    return b"".join(parts)


def split_words(line: str) -> list[bytes]:
    """Split a line of the prompt into words: blanks separate, quotation marks hold together, escapes work everywhere.

    Raises `InvalidArgumentError` for an open quotation mark or an unknown escape.
    """
    words: list[bytes] = []
    word: list[bytes] | None = None
    mark = b""
    for match in _WORD_PART.finditer(line.encode("utf-8", "surrogateescape")):
        part = match[0]
        if part == mark:
            mark = b""
        elif part in (b'"', b"'") and not mark:
            mark = part
            word = word if word is not None else []
        elif part[:1] in (b" ", b"\t") and not mark:
            if word is not None:
                words.append(b"".join(word))
                word = None
        else:
            word = word if word is not None else []
            word.append(_unescape(part) if part[:1] == b"\\" else part)
    if mark:
        raise InvalidArgumentError(f"the quotation mark {mark.decode()} is not closed")
    if word is not None:
        words.append(b"".join(word))
    return words


def _unescape(part: bytes) -> bytes:
    if part[1:2] == b"x" and len(part) == 4:
        return bytes((int(part[2:], 16),))
    found = _ESCAPES.get(part[1:].decode("utf-8", "replace"))
    if found is None:
        shown = part.decode("utf-8", "replace")
        raise InvalidArgumentError(f"{shown!r} is no escape; write \\xNN, \\n, \\t, \\r, \\0, \\\\, \\\" or \\'")
    return found


def put_field(target: dict[str, Any], name: str, data: bytes | None, *, as_hex: bool = False) -> None:
    """Add ``data`` to a JSON object: as ``name``, ``name_b64`` or (``as_hex``) ``name_hex``; None is null."""
    if data is None:
        target[name] = None
    elif as_hex:
        target[name + "_hex"] = data.hex()
    else:
        try:
            target[name] = data.decode()
        except UnicodeDecodeError:
            target[name + "_b64"] = base64.b64encode(data).decode()


def field_bytes(source: dict[str, Any], name: str, *, nullable: bool = False) -> bytes | None:
    """Return what `put_field` put; raises `InvalidArgumentError` when it is missing, there twice, or malformed."""
    found = [field for field in (name, name + "_b64", name + "_hex") if field in source]
    if len(found) != 1:
        asked = f"{name!r}, '{name}_b64' or '{name}_hex'"
        raise InvalidArgumentError(f"exactly one of {asked} is needed" if found else f"{asked} is missing")
    text = source[found[0]]
    if text is None and nullable and found[0] == name:
        return None
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{found[0]!r} must be text, not {json_line(text).decode().strip()[:40]}")
    if found[0] == name:
        return text.encode()
    try:
        return base64.b64decode(text, validate=True) if found[0].endswith("_b64") else parse_hex(text)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgumentError(f"{found[0]!r} cannot be decoded: {error}") from None


def parse_crc(source: dict[str, Any], name: str) -> int:
    """Return the checksum in a field of 8 hexadecimal digits; raises `InvalidArgumentError`."""
    text = source.get(name)
    if not isinstance(text, str) or not re.fullmatch("[0-9A-Fa-f]{8}", text):
        raise InvalidArgumentError(f"{name!r} must be 8 hexadecimal digits")
    return int(text, 16)


def check_fields(tree: dict[str, Any], known: Iterable[str], bytes_fields: Iterable[str] = ()) -> None:
    """Raise `InvalidArgumentError` that names a field that is none of ``known``, nor a form of ``bytes_fields``: a slip of the hand."""
    unknown = tree.keys() - set(known)
    for name in bytes_fields:
        unknown -= {name, name + "_b64", name + "_hex"}
    if unknown:
        raise InvalidArgumentError(f"unknown field {min(unknown)!r}")


def numbered_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of all lines that are not blank; raises `InvalidArgumentError` for one that is too long."""
    number = 0
    while line := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise InvalidArgumentError(f"line {number} is longer than {LINE_BYTES_MAX} bytes")
        if not line.isspace():
            yield number, line


def json_line(value: object) -> bytes:
    """Return ``value`` as one line of JSON in UTF-8."""
    return _encode_json(value) + b"\n"


def parse_json(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line; raises `InvalidArgumentError`, also for a field that is there twice."""
    try:
        found = _decode_json(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgumentError("not a JSON object")
    # Each name and each text has two quotation marks when none is escaped: a field that is there twice has two too many.
    # 0.3 us, where the exact look takes 4
    texts = len(found) + list(map(type, found.values())).count(str)
    if b"\\" in line or line.count(b'"') != 2 * texts:
        _check_names(line)
    return found


def _check_names(line: bytes) -> None:
    """Raise `InvalidArgumentError` for an object that has a field twice, at any depth: msgspec, which is much faster, cannot tell."""

    def unique(fields: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in fields]
        if len(set(names)) < len(names):
            name = next(name for name in names if names.count(name) > 1)
            raise InvalidArgumentError(f"field {name!r} is there twice")

    try:
        json.loads(line, object_pairs_hook=unique, parse_int=len, parse_float=len)  # digits are msgspec's matter
    except RecursionError as error:
        raise InvalidArgumentError(f"not JSON: {error}") from None
