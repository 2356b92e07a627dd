"""Keys of the store's own, which begin with FF FF: content types and sequences. Format: docs/format.md, "Reserved keys".

Invariants: no client reads, writes or iterates over these keys by name; a key's content type is written and removed in the same batch
as the key.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, NamedTuple

import msgspec

from keyva.batch import Text, check_key, show_key
from keyva.errors import InvalidArgumentError
from keyva.options import KEY_BYTES_MAX, RESERVED_PREFIX

__all__ = [
    "CONTENT_TYPE_CHARS_MAX",
    "Condition",
    "Typed",
    "Update",
    "check_content_type",
    "check_sequence",
    "sequence_key",
    "type_key",
    "value_digest",
]

TYPE_PREFIX = RESERVED_PREFIX + b"\x01"
SEQUENCE_PREFIX = RESERVED_PREFIX + b"\x02"
CONDITIONS_MAX = 10_000
CONTENT_TYPE_CHARS_MAX = 255
"""RFC 6838, 4.2: type and subtype have at most 127 characters each; parameters longer than this are no longer a type."""


class Typed(NamedTuple):
    """A value and the content type it was written with (None: none)."""

    value: bytes
    content_type: str | None


class Condition(msgspec.Struct, array_like=True, frozen=True):
    """What a key must be for an update to be made: absent (``digest`` None), or of the value with this `value_digest` and this type."""

    key: bytes
    digest: bytes | None
    content_type: str | None = None


class Update(msgspec.Struct, array_like=True, frozen=True):
    """A batch with conditions, of which all must hold, and content types of keys it puts."""

    batch: msgspec.Raw
    conditions: Annotated[list[Condition], msgspec.Meta(max_length=CONDITIONS_MAX)] = []
    types: dict[bytes, str] = {}


def value_digest(value: bytes) -> bytes:
    """Return the 16 bytes that stand for a value in a condition: BLAKE2b, for values may be made by those who want them confused."""
    return hashlib.blake2b(value, digest_size=16).digest()


def check_content_type(key: bytes, content_type: str) -> str:
    """Return ``content_type``; raises TypeError or `InvalidArgumentError` when it is no header value of a sensible length."""
    if not isinstance(content_type, str):
        raise TypeError(f"content type of key {show_key(key)} must be str, not {type(content_type).__name__}")
    if not content_type or len(content_type) > CONTENT_TYPE_CHARS_MAX:
        raise InvalidArgumentError(f"content type of key {show_key(key)} must have 1 to {CONTENT_TYPE_CHARS_MAX} characters")
    if not (content_type.isascii() and content_type.isprintable()):
        raise InvalidArgumentError(f"content type of key {show_key(key)} is not printable ASCII: {content_type[:80]!r}")
    return content_type


def type_key(key: bytes) -> bytes:
    """Return the key under which the content type of ``key`` lies."""
    return TYPE_PREFIX + key


def check_type_key(key: bytes) -> bytes:
    """Return `type_key`; raises `InvalidArgumentError` for a key that is too long to have one."""
    if len(key) > KEY_BYTES_MAX - len(TYPE_PREFIX):
        raise InvalidArgumentError(
            f"key {show_key(key)} is too long to have a content type ({KEY_BYTES_MAX - len(TYPE_PREFIX)} bytes at most)"
        )
    return TYPE_PREFIX + key


def sequence_key(name: Text) -> bytes:
    """Return the key under which the next number of the sequence ``name`` lies; raises like `check_sequence`."""
    return SEQUENCE_PREFIX + check_sequence(name)


def check_sequence(name: Text) -> bytes:
    """Return the name of a sequence as bytes; raises like `check_key`, but FF FF may begin it, for it is no key."""
    if not isinstance(name, bytes) or name[:2] != RESERVED_PREFIX:
        name = check_key(name)
    if len(name) > KEY_BYTES_MAX - len(SEQUENCE_PREFIX):
        raise InvalidArgumentError(f"sequence name {show_key(name)} is longer than {KEY_BYTES_MAX - len(SEQUENCE_PREFIX)} bytes")
    return name
