"""Reading through reader processes, for clients that are not on the node's host: the same calls and results as a local view.

A snapshot or iterator stays on the reader that holds it; when that one goes, `SnapshotLostError` says so. Single reads go to any reader
and to another one when it does not answer. A request holds as many keys as a reader takes; longer lists of keys are asked for in parts.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keyva.batch import Text, check_key, check_keys
from keyva.errors import ClosedError, ProtocolError, SnapshotLostError, UnavailableError
from keyva.iterator import Entries, Fetch, Iterator, range_bounds
from keyva.options import KEY_BYTES_MAX
from keyva.protocol import decode_body, encode
from keyva.reserved import Typed

__all__ = ["RemoteReads", "RemoteSnapshot"]

KEYS_PER_REQUEST = 100_000
BYTES_PER_REQUEST = 4 * 1024 * 1024
_KEY_HEADER_BYTES = 5

Call = Callable[[str, str, bytes, float | None], bytes]
"""(endpoint, op, body, timeout_s) -> answer's body; raises the answered error or `UnavailableError`. None: the client's own time-out."""


class _RemoteReader:
    """The read calls over one way of asking. ``_snapshot`` is 0 for "now"; a request has about ``_bytes_max`` bytes of keys at most."""

    _snapshot = 0
    _bytes_max: int

    def _ask(self, op: str, body: object) -> Any:
        raise NotImplementedError

    def get(self, key: Text, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        value = self._ask("get", [self._snapshot, check_key(key)])
        return default if value is None else value

    def get_many(self, keys: Iterable[Text]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None for those that are absent.

        Costs a round trip per 100,000 keys, 4 MiB of keys or 16 MiB of values. Each of these parts is of a moment of its own, but for a
        snapshot's.
        """
        return self._ask_many("get_many", check_keys(keys, "get_many"))

    def _ask_many(self, op: str, keys: list[bytes]) -> list[Any]:
        results: list[Any] = []
        count_max = KEYS_PER_REQUEST
        while len(results) < len(keys):
            part = self._part(keys[len(results) : len(results) + count_max])
            found = self._ask(op, [self._snapshot, part])
            if not isinstance(found, list) or not 0 < len(found) <= len(part):
                raise ProtocolError(f"{op!r} of {len(part)} keys was not answered with that many values")
            results += found
            # values were so large that the answer is short: keys that will not be answered need not be sent
            count_max = min(KEYS_PER_REQUEST, 2 * (count_max if len(found) == len(part) else len(found)))
        return results

    def _part(self, keys: list[bytes]) -> list[bytes]:
        """As many of ``keys`` from the first on as a request may hold, one at least."""
        if sum(map(len, keys)) + _KEY_HEADER_BYTES * len(keys) <= self._bytes_max:
            return keys
        sizes = list(itertools.accumulate(len(key) + _KEY_HEADER_BYTES for key in keys))
        return keys[: max(1, bisect.bisect_right(sizes, self._bytes_max))]

    def get_typed(self, key: Text) -> Typed | None:
        """Return value and content type of ``key`` at one moment, None when it is absent."""
        found = self._ask("get_typed", [self._snapshot, check_key(key)])
        return None if found is None else Typed(*found)

    def content_types(self, keys: Iterable[Text]) -> list[str | None]:
        """Return the content types of ``keys`` in their order, None where there is none."""
        return self._ask_many("content_types", check_keys(keys, "content_types"))

    def exists(self, key: Text) -> bool:
        """Say whether ``key`` has a value."""
        return self.get(key) is not None

    def iterator(
        self,
        start: Text | None = None,
        stop: Text | None = None,
        *,
        include_start: bool = True,
        include_stop: bool = False,
        prefix: Text | None = None,
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
    """Reads of the store as it is now, spread over ``readers`` (endpoints).

    A request is answered within ``timeout_s``, by whichever reader; one has at most ``bytes_max`` bytes of keys.
    """

    def __init__(self, call: Call, readers: Sequence[str], timeout_s: float, bytes_max: int) -> None:
        self._call = call
        self._readers = list(readers)
        self._timeout_s = timeout_s
        self._bytes_max = min(BYTES_PER_REQUEST, bytes_max)
        self._next = itertools.count()

    def _ask(self, op: str, body: object) -> Any:
        return decode_body(self._anywhere(op, encode(body))[1])

    def _anywhere(self, op: str, body: bytes) -> tuple[str, bytes]:
        """Ask one reader, and the others when it does not answer in its share of the time; returns which one did."""
        if not self._readers:
            raise UnavailableError("the node has no readers (setting 'readers' is 0), so it serves reads to no other host")
        first = next(self._next)
        deadline = time.monotonic() + self._timeout_s
        for left in range(len(self._readers), 0, -1):
            endpoint = self._readers[(first - left) % len(self._readers)]
            try:
                return endpoint, self._call(endpoint, op, body, (deadline - time.monotonic()) / left)
            except SnapshotLostError:
                raise
            except UnavailableError:
                if left == 1:
                    raise
        raise AssertionError

    def snapshot(self) -> RemoteSnapshot:
        """Return this moment of the store, held by one of the readers."""
        endpoint, body = self._anywhere("snapshot", encode(0))
        return RemoteSnapshot(self._call, endpoint, decode_body(body, int), self._bytes_max)

    def _iterator_source(self, include_value: bool) -> tuple[Fetch, Callable[[], None] | None]:
        snapshot = self.snapshot()  # one moment for the whole iterator, also after seek() and prev()
        return snapshot.fetch(include_value), snapshot.close


class RemoteSnapshot(_RemoteReader):
    """One moment of a store, held by a reader process. Dropped there when it is not used for ten minutes."""

    def __init__(self, call: Call, endpoint: str, number: int, bytes_max: int) -> None:
        self._call = call
        self._endpoint = endpoint
        self._bytes_max = bytes_max
        self._snapshot = number
        self.closed = False

    def _ask(self, op: str, body: object) -> Any:
        if self.closed:
            raise ClosedError("the snapshot is closed")
        return decode_body(self._call(self._endpoint, op, encode(body), None))

    def _iterator_source(self, include_value: bool) -> tuple[Fetch, Callable[[], None] | None]:
        return self.fetch(include_value), None

    def fetch(self, include_value: bool) -> Fetch:
        """Return a source of entries for `Iterator`."""

        def fetch(start: bytes, stop: bytes, reverse: bool) -> Entries:
            # no key is longer, so what is behind that decides nothing
            start, stop = start[: KEY_BYTES_MAX + 1], stop[: KEY_BYTES_MAX + 1]
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
        return RemoteSnapshot(self._call, self._endpoint, self._ask("snapshot", self._snapshot), self._bytes_max)

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
