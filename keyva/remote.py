"""Reading through reader processes, for clients that are not on the node's host: the same calls and results as a local view.

A snapshot or iterator stays on the reader that holds it; when that one goes, `SnapshotLostError` says so. Single reads go to any reader
and to another one when it does not answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from keyva.batch import check_key
from keyva.errors import ClosedError, SnapshotLostError, UnavailableError
from keyva.iterator import Entries, Fetch, Iterator, range_bounds
from keyva.protocol import decode_body, encode
from keyva.reserved import Typed

__all__ = ["RemoteReads", "RemoteSnapshot"]

KEYS_PER_REQUEST = 100_000

Call = Callable[[str, str, bytes], bytes]
"""(endpoint, op, body) -> answer's body; raises the answered error or `UnavailableError`."""


class _RemoteReader:
    """The read calls over one way of asking. ``_snapshot`` is 0 for "now"."""

    _snapshot = 0

    def _ask(self, op: str, body: object) -> Any:
        raise NotImplementedError

    def get(self, key: bytes | str, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        value = self._ask("get", [self._snapshot, check_key(key)])
        return default if value is None else value

    def get_many(self, keys: Sequence[bytes | str]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None for those that are absent."""
        checked = [check_key(key) for key in keys]
        values: list[bytes | None] = []
        while len(values) < len(checked):
            part = self._ask("get_many", [self._snapshot, checked[len(values) :]])
            values += part
        return values

    def get_typed(self, key: bytes | str) -> Typed | None:
        """Return value and content type of ``key`` at one moment, None when it is absent."""
        found = self._ask("get_typed", [self._snapshot, check_key(key)])
        return None if found is None else Typed(*found)

    def content_types(self, keys: Sequence[bytes | str]) -> list[str | None]:
        """Return the content types of ``keys`` in their order, None where there is none."""
        checked = [check_key(key) for key in keys]
        parts = range(0, len(checked), KEYS_PER_REQUEST)
        return [kind for at in parts for kind in self._ask("content_types", [self._snapshot, checked[at : at + KEYS_PER_REQUEST]])]

    def exists(self, key: bytes | str) -> bool:
        """Say whether ``key`` has a value."""
        return self.get(key) is not None

    def iterator(
        self,
        start: bytes | str | None = None,
        stop: bytes | str | None = None,
        *,
        include_start: bool = True,
        include_stop: bool = False,
        prefix: bytes | str | None = None,
        reverse: bool = False,
        include_key: bool = True,
        include_value: bool = True,
    ) -> Iterator:
        """Return an `Iterator` over a range."""
        low, high = range_bounds(start, stop, include_start, include_stop, prefix)
        fetch, on_close = self._iterator_source(include_value)
        return Iterator(fetch, low, high, reverse=reverse, include_key=include_key, include_value=include_value, on_close=on_close)

    def _iterator_source(self, include_value: bool) -> tuple[Fetch, Callable[[], None] | None]:
        """Return what an iterator fetches from, and what is to be done when it is closed."""
        raise NotImplementedError


class RemoteReads(_RemoteReader):
    """Reads of the store as it is now, spread over ``readers`` (endpoints)."""

    def __init__(self, call: Call, readers: Sequence[str]) -> None:
        self._call = call
        self._readers = list(readers)
        self._next = itertools.count()

    def _ask(self, op: str, body: object) -> Any:
        return decode_body(self._anywhere(op, encode(body))[1])

    def _anywhere(self, op: str, body: bytes) -> tuple[str, bytes]:
        """Ask one reader, and the others when it does not answer; returns which one did."""
        if not self._readers:
            raise UnavailableError("the node has no readers (setting 'readers' is 0), so it serves reads to no other host")
        first = next(self._next)
        for attempt in range(len(self._readers)):
            endpoint = self._readers[(first + attempt) % len(self._readers)]
            try:
                return endpoint, self._call(endpoint, op, body)
            except SnapshotLostError:
                raise
            except UnavailableError:
                if attempt == len(self._readers) - 1:
                    raise
        raise AssertionError

    def snapshot(self) -> RemoteSnapshot:
        """Return this moment of the store, held by one of the readers."""
        endpoint, body = self._anywhere("snapshot", encode(0))
        return RemoteSnapshot(self._call, endpoint, decode_body(body, int))

    def _iterator_source(self, include_value: bool) -> tuple[Fetch, Callable[[], None] | None]:
        snapshot = self.snapshot()  # one moment for the whole iterator, also after seek() and prev()
        return snapshot.fetch(include_value), snapshot.close


class RemoteSnapshot(_RemoteReader):
    """One moment of a store, held by a reader process. Dropped there when it is not used for ten minutes."""

    def __init__(self, call: Call, endpoint: str, number: int) -> None:
        self._call = call
        self._endpoint = endpoint
        self._snapshot = number
        self.closed = False

    def _ask(self, op: str, body: object) -> Any:
        if self.closed:
            raise ClosedError("the snapshot is closed")
        return decode_body(self._call(self._endpoint, op, encode(body)))

    def _iterator_source(self, include_value: bool) -> tuple[Fetch, Callable[[], None] | None]:
        return self.fetch(include_value), None

    def fetch(self, include_value: bool) -> Fetch:
        """Return a source of entries for `Iterator`."""

        def fetch(start: bytes, stop: bytes, reverse: bool) -> Entries:
            cursor, keys, values = self._ask("scan", [self._snapshot, start, stop, reverse, include_value])
            try:
                while True:
                    if keys:
                        yield keys, values if values is not None else [b""] * len(keys)
                    if not cursor:
                        return
                    number, cursor = cursor, 0
                    cursor, keys, values = self._ask("next", number)
            finally:
                if cursor and not self.closed:
                    try:
                        self._ask("close", cursor)
                    except (UnavailableError, ClosedError):
                        pass  # the reader drops it by itself

        return fetch

    def close(self) -> None:
        """Let the reader drop it. May be called twice."""
        if not self.closed:
            try:
                self._ask("release", self._snapshot)
            except (UnavailableError, ClosedError):
                pass  # the reader has gone, or drops it by itself
            self.closed = True

    release = close

    def snapshot(self) -> RemoteSnapshot:
        """Return another handle on the same moment, closed by itself."""
        return RemoteSnapshot(self._call, self._endpoint, self._ask("snapshot", self._snapshot))

    def __enter__(self) -> RemoteSnapshot:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            try:
                self.close()
            except Exception:  # interpreter shutdown
                self.closed = True
