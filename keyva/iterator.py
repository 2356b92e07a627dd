"""Iterators: plyvel's meaning, over any source of sorted entries (a local snapshot, or a cursor on a reader process).

An iterator stands in a gap between two keys. `next` gives the entry behind the gap (before it, with ``reverse``) and steps over it;
`prev` gives the one before and steps back; ``seek(key)`` moves to the gap just below ``key``. An iterator sees the store as it was
when it was made.

Invariant: what moves or closes the iterator inside a ``for`` loop over it takes effect at once. A loop runs in C over list iterators;
those it stands on are exhausted when others take their place, so that it asks for the new ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Iterator as Iterable_
from itertools import chain
from typing import Any

from keyva.batch import Text, check_key, show_key
from keyva.errors import ClosedError, InvalidArgumentError
from keyva.options import KEY_BYTES_MAX, RESERVED_PREFIX

__all__ = ["Iterator", "range_bounds"]

Entries = Iterable_[tuple[list[bytes], list[bytes]]]
_NO_KEYS: list[bytes] = []
"""Of an iterator that has loaded nothing; never changed."""

Fetch = Callable[[bytes, bytes, bool], Entries]
"""(start, stop, reverse) -> the live entries of [start, stop), in lists of keys and values in that direction."""


def prefix_end(prefix: bytes) -> bytes:
    """Return the smallest key above all keys that begin with ``prefix``, at most the first reserved key."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return RESERVED_PREFIX
    return min(stripped[:-1] + bytes([stripped[-1] + 1]), RESERVED_PREFIX)


def range_bounds(
    start: Text | None, stop: Text | None, include_start: bool, include_stop: bool, prefix: Text | None
) -> tuple[bytes, bytes]:
    """Turn plyvel's range arguments into [low, high).

    Raises TypeError when ``prefix`` comes with ``start`` or ``stop``, and for what is no text or bytes; `InvalidArgumentError` for text
    that is not valid UTF-8. A bound may be longer than any key, and above the last one.
    """
    if prefix is not None:
        if start is not None or stop is not None:
            raise TypeError("'prefix' cannot be used together with 'start' or 'stop'")
        low = _as_bytes(prefix, "prefix")
        return low, prefix_end(low)
    low, high = b"", RESERVED_PREFIX
    if start is not None:
        low = _as_bytes(start, "start")
        if not include_start:
            low += b"\0"
    if stop is not None:
        high = _as_bytes(stop, "stop")
        if include_stop:
            high += b"\0"
        high = min(high, RESERVED_PREFIX)
    return low, high


def _as_bytes(value: Any, name: str) -> bytes:
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"{name} {show_key(value)} is not valid UTF-8 text: {error.reason}") from None
    elif not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{name} must be bytes or str, not {type(value).__name__}")
    bound = bytes(value)
    # no key lies between a longer one and this, for which a message has room
    return bound if len(bound) <= KEY_BYTES_MAX else bound[:KEY_BYTES_MAX] + b"\0"


class Iterator:
    """Iterates over the entries of [low, high); gives (key, value), key, value, or None, as ``include_*`` say.

    Not for several threads at once. Costs about 0.1 us per entry in a ``for`` loop; holds some hundred entries in memory.
    """

    def __init__(
        self,
        fetch: Fetch,
        low: bytes,
        high: bytes,
        *,
        reverse: bool = False,
        include_key: bool = True,
        include_value: bool = True,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._fetch = fetch
        self._low = low
        self._high = max(low, high)
        self._reverse = reverse
        self._include = (include_key, include_value)
        self._on_close = on_close
        self._closed = False
        self._cursor: Any = iter(())
        self._at: Any = self._cursor
        self._values_at: Any = self._cursor
        self._reset(self._high if reverse else self._low)

    def _reset(self, gap: bytes) -> None:
        self._gap = gap  # where the loaded chunk begins, as a gap below this key
        self._ahead: Entries | None = None
        self._take(_NO_KEYS, _NO_KEYS)

    def __iter__(self) -> Iterable_[Any]:
        """Iterate from where the iterator stands; a C-level loop over lists of entries."""
        self._check_open()
        return chain.from_iterable(self._chunks())

    def _chunks(self) -> Iterable_[Any]:
        while True:
            cursor = self._cursor
            yield cursor
            # prev(), seek() or close() inside the loop replaced the cursor: go on there
            if cursor is self._cursor and not self._load_next():
                return

    def __next__(self) -> Any:
        self._check_open()
        while True:
            for item in self._cursor:
                return item
            if not self._load_next():
                raise StopIteration

    def prev(self) -> Any:
        """Step back and return the entry stepped over; raises StopIteration at the beginning."""
        self._check_open()
        position = len(self._keys) - self._at.__length_hint__()
        if position == 0:
            if not self._load_previous():
                raise StopIteration
            position = len(self._keys)
        self._place(position - 1)
        item = next(self._cursor)
        self._place(position - 1)
        return item

    def _place(self, position: int) -> None:
        """Stand before the entry at ``position`` of the loaded chunk."""
        self._at.__setstate__(sys.maxsize)  # to their ends: a loop that stands on them is to ask for those made here
        self._values_at.__setstate__(sys.maxsize)
        include_key, include_value = self._include
        at: Any
        if include_key:
            at = iter(self._keys)
        else:
            at = iter(self._values if include_value else [None] * len(self._keys))
        at.__setstate__(position)
        self._cursor = self._at = self._values_at = at
        if include_key and include_value:
            values: Any = iter(self._values)
            values.__setstate__(position)
            self._values_at = values
            self._cursor = zip(at, values, strict=True)  # in a loop that takes each pair apart it makes one tuple for all of them

    def _load_next(self) -> bool:
        self._check_open()
        gap = self._gap_behind()
        if self._ahead is None:
            self._ahead = self._fetch(self._low, gap, True) if self._reverse else self._fetch(gap, self._high, False)
        try:
            for keys, values in self._ahead:
                self._gap = gap
                self._take(keys, values)
                return True
        except BaseException:
            self._ahead = None  # a generator that has raised would say next time that this is the end
            raise
        return False

    def _load_previous(self) -> bool:
        gap = self._gap
        behind = self._fetch(gap, self._high, False) if self._reverse else self._fetch(self._low, gap, True)
        for keys, values in behind:
            keys, values = keys[::-1], values[::-1]
            self._take(keys, values)
            self._gap = keys[0] + b"\0" if self._reverse else keys[0]
            self._place(len(keys))
            self._ahead = None
            return True
        return False

    def _take(self, keys: list[bytes], values: list[bytes]) -> None:
        self._keys = keys
        self._values = values
        self._place(0)

    def _gap_behind(self) -> bytes:
        """The gap behind the last loaded entry."""
        if not self._keys:
            return self._gap
        return self._keys[-1] if self._reverse else self._keys[-1] + b"\0"

    def seek(self, target: Text) -> None:
        """Move to the gap just below ``target``, so that `next` gives it or the first above (the first below, reversed)."""
        self._check_open()
        key = check_key(target)
        self._reset(min(max(key, self._low), self._high))

    def seek_to_start(self) -> None:
        """Move to the gap before the smallest key of the range."""
        self._check_open()
        self._reset(self._low)

    def seek_to_stop(self) -> None:
        """Move to the gap after the largest key of the range."""
        self._check_open()
        self._reset(self._high)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the iterator is closed")

    def close(self) -> None:
        """Let the snapshot under the iterator go. May be called twice."""
        if not self._closed:
            self._reset(self._gap)
            self._closed = True
            if self._on_close is not None:
                self._on_close()

    def __enter__(self) -> Iterator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
