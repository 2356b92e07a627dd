"""Range requests of RFC 9110, section 14: one range of bytes. A request for several is answered with the whole value, as it allows."""

from __future__ import annotations

import re

from .replies import ProblemError

__all__ = ["range_of"]

_RANGE = re.compile(rb"bytes[ \t]*=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*\Z", re.IGNORECASE)


def range_of(field: bytes, size: int) -> tuple[int, int] | None:
    """Return first and end of the bytes asked for; None when the field is to be ignored.

    Raises `ProblemError` 416 when there are no such bytes.
    """
    found = _RANGE.match(field)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        first, end = max(0, size - int(found[2])), size
    else:
        first = int(found[1])
        if found[2] and int(found[2]) < first:
            return None
        end = min(size, int(found[2]) + 1) if found[2] else size
    if first >= end:
        raise ProblemError(416, f"the value has {size} bytes", headers=[(b"content-range", b"bytes */%d" % size)])
    return first, end
