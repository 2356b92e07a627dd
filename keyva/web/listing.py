"""`/api/keys` and `/api/count`: parts of the key space, in threads, within limits of entries, bytes and time."""

from __future__ import annotations

import time
from typing import Any

from keyva.client import Client
from keyva.iterator import range_bounds
from keyva.view import Snapshot

from .names import key_in_json, to_base64
from .sniff import sniff

__all__ = ["COUNT_MAX", "count", "page"]

COUNT_MAX = 100_000
COUNT_S = 5.0
PAGE_BYTES = 64 * 1024 * 1024
"""Bytes of values after which a page ends early: sizes and types are those of the values, so they are read."""


def page(reads: Client, prefix: bytes, start: bytes | None, limit: int, reverse: bool) -> dict[str, Any]:
    """Return up to ``limit`` keys with ``prefix`` from ``start`` (inclusive) on, in the direction asked for, as of one moment."""
    low, high = range_bounds(None, None, True, False, prefix)
    if start is not None and reverse:
        high = min(high, start + b"\0")
    elif start is not None:
        low = max(low, start)
    found: list[tuple[bytes, bytes]] = []
    after: bytes | None = None
    snapshot = reads.snapshot()
    try:
        size = 0
        for key, value in snapshot.iterator(low, high, reverse=reverse):
            if len(found) == limit or size > PAGE_BYTES:
                after = key
                break
            size += len(value)
            found.append((key, value))
        assert isinstance(snapshot, Snapshot)
        types = snapshot.content_types([key for key, _ in found])
    finally:
        snapshot.close()
    keys = [
        {**key_in_json(key), "size": len(value), "content_type": kind if kind is not None else sniff(value).decode()}
        for (key, value), kind in zip(found, types, strict=True)
    ]
    return {"keys": keys, "next": None if after is None else to_base64(after)}


def count(reads: Client, prefix: bytes) -> dict[str, Any]:
    """Count the keys with ``prefix``, up to `COUNT_MAX` and for `COUNT_S` at most; ``complete`` says whether these are all."""
    deadline = time.monotonic() + COUNT_S
    total = 0
    for _ in reads.iterator(prefix=prefix, include_value=False):
        if total == COUNT_MAX or (total % 1024 == 0 and time.monotonic() > deadline):
            return {"count": total, "complete": False}
        total += 1
    return {"count": total, "complete": True}
