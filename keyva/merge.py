"""Merging sorted sources key range by key range.

Sources give pieces: some entries in key order as two lists. A step takes the largest key range that every source has in memory,
updates one dict with it from the oldest source to the newest, and sorts the dict's keys; Timsort finds the presorted pieces. All
per-entry work is in C (dict.update, sorted, zip), which beat heapq.merge with per-entry Python several times over.

Invariants: sources come oldest first; the entries given out ascend strictly (descend with ``reverse``); tombstones are kept here, for
only the caller knows whether something older lies below.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from keyva.block import Columns
from keyva.memtable import FrozenMemtable
from keyva.sst import Table
from keyva.version import OpenRun, Version

__all__ = ["MemtableSource", "Pieces", "RunSource", "Source", "live_entries", "merge"]

Pieces = Columns
"""Keys in the direction of the merge, and their values."""

_MEMTABLE_FIRST_PIECE = 16  # looking an entry up costs 0.3 us, and many reads want few
_MEMTABLE_PIECE = 256
_READAHEAD_BLOCKS = 32
_READAHEAD_BYTES = 512 * 1024


class Source:
    """Gives pieces in order until it returns empty ones."""

    tombstones = True
    """Whether there may be tombstones among the entries."""

    def next_piece(self) -> Pieces:
        """Return the next piece; two empty lists at the end."""
        raise NotImplementedError


class MemtableSource(Source):
    """The entries of a frozen memtable in [start, stop)."""

    def __init__(self, frozen: FrozenMemtable, start: bytes | None, stop: bytes | None, reverse: bool) -> None:
        self._frozen = frozen
        self._start = start
        self._stop = stop
        self._reverse = reverse
        self._limit = _MEMTABLE_FIRST_PIECE

    def next_piece(self) -> Pieces:
        """See `Source`."""
        while True:
            keys, values, last = self._frozen.piece(self._start, self._stop, self._limit, self._reverse)
            if last is None:
                return [], []
            if self._reverse:
                self._stop = last
            else:
                self._start = last + b"\0"
            self._limit = min(2 * self._limit, _MEMTABLE_PIECE)
            if keys:
                return keys, values


class RunSource(Source):
    """The entries of one run in [start, stop). The first block comes through the cache, later ones are read ahead past it, so
    that a scan does not push hot blocks out.
    """

    def __init__(self, version: Version, run: OpenRun, start: bytes | None, stop: bytes | None, reverse: bool, readahead: int = 1) -> None:
        self._version = version
        self._run = run
        self._start = start
        self._stop = stop
        self._reverse = reverse
        self._readahead = readahead
        self.tombstones = run.tombstones
        count = len(run.tables)
        if not reverse:
            self._file = bisect_left(run.largest, start) if start is not None else 0
        else:
            self._file = (bisect_left(run.smallest, stop) if stop is not None else count) - 1
        self._block: int | None = None  # next block of the current file; None: not positioned yet

    def next_piece(self) -> Pieces:
        """See `Source`."""
        run = self._run
        while 0 <= self._file < len(run.tables):
            low, high = run.smallest[self._file], run.largest[self._file]
            if (not self._reverse and self._stop is not None and low >= self._stop) or (
                self._reverse and self._start is not None and high < self._start
            ):
                return [], []
            table = run.tables[self._file]
            pieces = self._from_table(table, low, high)
            if pieces is None:
                self._file += -1 if self._reverse else 1
                self._block = None
            elif pieces[0]:
                return pieces
        return [], []

    def _from_table(self, table: Table, low: bytes, high: bytes) -> Pieces | None:
        """Return the table's next piece, empty when its bounds cut all of it, None at the table's end."""
        first_keys = table.index.first_keys
        blocks = len(first_keys)
        start, stop = self._start, self._stop
        if start is None or start < low:
            start = low
        block = self._block
        if not self._reverse:
            if block is None:
                block = max(0, bisect_right(first_keys, start) - 1)
            if block >= blocks or first_keys[block] > high or (stop is not None and first_keys[block] >= stop):
                return None
            first, last = block, table.reach(block, self._readahead, _READAHEAD_BYTES)
            if stop is not None and first_keys[last - 1] >= stop:
                # blocks behind the range cost time, and damage in them is no matter of ours
                last = bisect_left(first_keys, stop, block + 1, last)
            self._block = last
        else:
            if block is None:
                block = bisect_right(first_keys, high) - 1
                if stop is not None and stop <= high:
                    block = bisect_left(first_keys, stop) - 1
            if block < 0 or (block + 1 < blocks and first_keys[block + 1] <= start):
                return None
            first, last = table.reach_back(block + 1, self._readahead, _READAHEAD_BYTES), block + 1
            first = max(first, bisect_right(first_keys, start, first, last) - 1)
            self._block = first - 1
        keys, values = self._load(table, first, last)
        self._readahead = min(2 * self._readahead, _READAHEAD_BLOCKS)
        return self._cut(keys, values, start, high)

    def _load(self, table: Table, first: int, last: int) -> Pieces:
        if last - first == 1:
            return self._version.read_block(table, first)
        return table.read_blocks(first, last)

    def _cut(self, keys: list[bytes], values: list[bytes | None], start: bytes, high: bytes) -> Pieces:
        if keys[0] < start:
            at = bisect_left(keys, start)
            keys, values = keys[at:], values[at:]
        if keys and (keys[-1] > high or (self._stop is not None and keys[-1] >= self._stop)):
            at = bisect_right(keys, high)
            if self._stop is not None:
                at = min(at, bisect_left(keys, self._stop))
            keys, values = keys[:at], values[:at]
        if self._reverse:
            keys.reverse()
            values.reverse()
        return keys, values


def merge(sources: Sequence[Source], reverse: bool = False) -> Iterator[Pieces]:
    """Yield merged pieces, the newest value of each key; ``sources`` come oldest first. Costs about 0.3 us per entry."""
    active: list[list] = []  # type: ignore[type-arg]  # [source, keys, values, position]
    for source in sources:
        keys, values = source.next_piece()
        if keys:
            active.append([source, keys, values, 0])
    while len(active) > 1:
        bound = (max if reverse else min)(state[1][-1] for state in active)
        merged: dict[bytes, bytes | None] = {}
        used_up = []
        for state in active:
            source, keys, values, position = state
            end = end_of_range(keys, bound, position, reverse)
            if end == position:
                continue
            if position == 0 and end == len(keys):
                merged.update(zip(keys, values, strict=True))
            else:
                merged.update(zip(keys[position:end], values[position:end], strict=True))
            if end == len(keys):
                used_up.append(state)
            else:
                state[3] = end
        out = sorted(merged, reverse=reverse)
        yield out, list(map(merged.__getitem__, out))
        for state in used_up:  # not before somebody wants more: a read of ten entries ends here
            state[1], state[2] = state[0].next_piece()
            state[3] = 0
        active = [state for state in active if state[1]]
    for source, keys, values, position in active:
        if position:
            keys, values = keys[position:], values[position:]
        while keys:
            yield keys, values
            keys, values = source.next_piece()


def end_of_range(keys: list[bytes], bound: bytes, position: int, reverse: bool) -> int:
    """Return where in ``keys``, from ``position`` on, the entries up to and including ``bound`` end."""
    if not reverse:
        if keys[-1] <= bound:
            return len(keys)
        return bisect_right(keys, bound, position)
    if keys[-1] >= bound:
        return len(keys)
    low, high = position, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] >= bound:
            low = middle + 1
        else:
            high = middle
    return low


def live_entries(sources: Sequence[Source], reverse: bool = False) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Merge ``sources`` and drop tombstones; where there are none, nobody looks for them (a scan spends 7 % on that)."""
    pieces = merge(sources, reverse)
    if not any(source.tombstones for source in sources):
        return pieces  # type: ignore[return-value]
    return _without_tombstones(pieces)


def _without_tombstones(pieces: Iterator[Pieces]) -> Iterator[tuple[list[bytes], list[bytes]]]:
    for keys, values in pieces:
        if None in values:
            kept = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
            if kept:
                yield [key for key, _ in kept], [value for _, value in kept]
        else:
            yield keys, values  # type: ignore[misc]
