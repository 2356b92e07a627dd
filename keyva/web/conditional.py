"""Entity tags, and the conditions of RFC 9110, section 13, that name them. There are no dates, so conditions on dates are not met here."""

from __future__ import annotations

import re

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from keyva.reserved import Typed

from .replies import ProblemError

__all__ = ["check_conditions", "etag_of", "matches"]

_TAG = re.compile(rb'[ \t,]*(?:(W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)|\Z)')
"""Empty elements of a list count for nothing (RFC 9110, 5.6.1)."""

WHOLE_BYTES_MAX = 65535
"""Of a value that is hashed together with its type; of a longer one its own hash is, so that it is not copied."""


def etag_of(value: bytes, content_type: str | None) -> bytes:
    """Return the strong entity tag of a value and its content type, in quotes. XXH3 128 bits: 0.3 us for 1 KB, 5 ms for 64 MiB."""
    # read from the end: the form, the type's length, the type, and what is left; so no two pairs make the same bytes
    kind = (content_type or "").encode()
    if len(value) <= WHOLE_BYTES_MAX:
        return b'"%b"' % xxh3_128_hexdigest(b"%b%b%c\0" % (value, kind, len(kind))).encode()
    return b'"%b"' % xxh3_128_hexdigest(b"%b%d:%b%c\1" % (xxh3_128_digest(value), len(value), kind, len(kind))).encode()


def matches(field: bytes, etag: bytes | None, *, weak: bool) -> bool:
    """Say whether a list of entity tags (or ``*``) names ``etag``; None is absent. Raises `ProblemError`
    for a malformed list.
    """
    if field.strip() == b"*":
        return etag is not None
    at = 0
    found = False
    while at < len(field):
        tag = _TAG.match(field, at)
        if tag is None:
            raise ProblemError(400, 'If-Match and If-None-Match take * or a list of entity tags in quotes, like "3f2a", "77b0"')
        found = found or (tag[2] == etag and (weak or not tag[1]))
        at = tag.end()
    return found


def check_conditions(headers: dict[bytes, bytes], current: Typed | None) -> bool:
    """Evaluate If-Match and If-None-Match against what is stored now; says whether a GET is answered with 304.

    Raises `ProblemError` 412 when If-Match is not met, which holds for every method. Methods that write turn True into 412.
    """
    if_match = headers.get(b"if-match")
    if_none_match = headers.get(b"if-none-match")
    etag = None if current is None else etag_of(*current)
    if if_match is not None and not matches(if_match, etag, weak=False):
        raise failed(etag)
    return if_none_match is not None and matches(if_none_match, etag, weak=True)


def failed(etag: bytes | None) -> ProblemError:
    """Return the 412 of a condition, which tells what is stored now."""
    now = "it is absent" if etag is None else f"its entity tag is {etag.decode()}"
    return ProblemError(412, f"the key is not as the condition says: {now}", headers=() if etag is None else [(b"etag", etag)])
