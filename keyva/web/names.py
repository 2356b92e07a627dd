"""Keys in URLs and in JSON: any bytes, percent-encoded there, as text or base64 here."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from msgspec import UnsetType

from keyva.options import KEY_BYTES_MAX, RESERVED_PREFIX
from keyva.reserved import SEQUENCE_PREFIX

from .replies import ProblemError

__all__ = ["bytes_of", "key_in_json", "key_of_base64_path", "key_of_path", "name_of_path", "to_base64"]

NAME_BYTES_MAX = KEY_BYTES_MAX - len(SEQUENCE_PREFIX)
"""Of a sequence: it is kept under a key of the store's own."""

_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def key_of_path(raw_path: bytes, prefix_bytes: int) -> bytes:
    """Return the key in a path as it came over the wire, behind its first ``prefix_bytes`` bytes. Hot."""
    key = raw_path[prefix_bytes:]
    return check(unquoted(key) if b"%" in key else key)


def key_of_base64_path(raw_path: bytes, prefix_bytes: int) -> bytes:
    """Return the key whose base64 stands in a path behind its first ``prefix_bytes`` bytes."""
    return check(from_base64(unquoted(raw_path[prefix_bytes:]).decode("latin-1"), "the path"))


def name_of_path(raw_path: bytes, prefix_bytes: int) -> bytes:
    """Return the name of a sequence in a path, behind its first ``prefix_bytes`` bytes; raises `ProblemError` when it is too long."""
    name = unquoted(raw_path[prefix_bytes:])
    if len(name) > NAME_BYTES_MAX:
        raise ProblemError(414, f"a sequence's name has at most {NAME_BYTES_MAX} bytes, this one {len(name)}")
    return name


def unquoted(encoded: bytes) -> bytes:
    """Return what is percent-encoded in a path; raises `ProblemError` for a % that stands alone."""
    if _BROKEN.search(encoded):
        raise ProblemError(400, "the path holds a % that is not followed by two hexadecimal digits; a % in a key is written %25")
    return unquote_to_bytes(encoded)


def check(key: bytes) -> bytes:
    """Return ``key``; raises `ProblemError` when it is too long or the store's own."""
    if len(key) > KEY_BYTES_MAX:
        raise ProblemError(414, f"a key has at most {KEY_BYTES_MAX} bytes, this one {len(key)}")
    if key.startswith(RESERVED_PREFIX):
        raise ProblemError(400, "keys that begin with the bytes FF FF are the store's own")
    return key


def to_base64(key: bytes) -> str:
    """Return URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode()


def from_base64(text: str, name: str) -> bytes:
    """Read base64 of either alphabet, padded or not; raises `ProblemError`."""
    if text.endswith("==="):
        raise ProblemError(400, f"{name} is not base64")
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ProblemError(400, f"{name} is not base64") from None


def bytes_of(text: str | UnsetType | None, encoded: str | UnsetType | None, name: str) -> bytes | None:
    """Return what is given as text (``name``) or as base64 (``name_base64``); None for neither, `ProblemError` for both."""
    text = None if isinstance(text, UnsetType) else text
    encoded = None if isinstance(encoded, UnsetType) else encoded
    if text is not None and encoded is not None:
        raise ProblemError(400, f"give {name} or {name}_base64, not both")
    if encoded is not None:
        return from_base64(encoded, f"{name}_base64")
    try:
        return None if text is None else text.encode()
    except UnicodeEncodeError:
        raise ProblemError(400, f"{name} is not valid Unicode; bytes are given as {name}_base64") from None


def key_in_json(key: bytes) -> dict[str, Any]:
    """Return a key's members in JSON: ``key`` is null when it is no UTF-8."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = None
    return {"key": text, "key_base64": to_base64(key)}
