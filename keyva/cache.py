"""The block cache: blocks verified and decompressed, bounded in bytes, with idle ones dropped.

Blocks are kept as bytes and decoded at each use: 1.4 us, and half the memory of 34 keys and values as objects, so twice as many fit. What
is asked for again and again is kept as objects one level above, row by row (`keyva.version`).

Two generations instead of a linked list: a hit in the young one costs one dict lookup and no bookkeeping; a hit in the old one
moves the block over. What comes in pushes out of the old one what lies there longest; when the young one holds half the capacity, it is
put behind what is left of the old one. That is an approximation of LRU with O(1) per block that uses the whole capacity (compare SLRU:
Karedla, Love, Wherry, "Caching Strategies to Improve Disk System Performance", 1994). What nobody reads for a while is dropped, which gives
idle memory back.

Once full, a block is kept only when it is missed a second time within as many other misses as the cache has blocks: what is
read once does not push out what is read often (2Q: Johnson, Shasha, VLDB 1994), and the objects of a block that is not kept are freed at
once and their memory, still in the processor's cache, serves the next one.

Invariant: both generations together are at most the capacity.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

__all__ = ["BlockCache"]

_BLOCK_BYTES = 200
"""What a block takes beside its bytes: the object, two dict slots, an int."""


class BlockCache:
    """Maps a block's id (an int) to its bytes. Safe to share between threads: a lookup is one atomic dict operation, all else is
    done under a lock."""

    def __init__(self, capacity_bytes: int, idle_s: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.idle_s = idle_s
        self.young: dict[int, bytes] = {}
        self.old: dict[int, bytes] = {}
        self.rows: tuple[dict[bytes, bytes | None], ...] = ()
        """The rows a version keeps beside the blocks (`keyva.version`), to be dropped with them."""
        self._victims: Iterator[int] = iter(())
        """The keys of the old generation, the next to go first; some may have been moved over."""
        self._full = False
        self._turned = False
        """Whether blocks have grown old by number, not by time, since the timer looked last."""
        self._seen: set[int] = set()
        self._seen_max = 0
        self._young_bytes = 0
        self._old_bytes = 0
        self.hits_old = 0
        self.misses = 0
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def get_old(self, block_id: int) -> bytes | None:
        """Take a block that is in `old` (and not in `young`), and move it over; None when it has just been pushed out."""
        with self._lock:
            block = self.old.pop(block_id, None)
            if block is None:  # another thread was quicker
                return self.young.get(block_id)
            self._old_bytes -= len(block) + _BLOCK_BYTES
            self._insert(block_id, block)
            self.hits_old += 1
            return block

    def put(self, block_id: int, block: bytes) -> None:
        """Add a block just read, a miss."""
        self.misses += 1
        if not self.capacity_bytes:
            return
        if self._full:
            seen = self._seen
            if block_id not in seen:
                seen.add(block_id)
                if len(seen) > self._seen_max:
                    seen.clear()
                return
            seen.discard(block_id)
        with self._lock:
            if block_id not in self.young and block_id not in self.old:  # else another thread has met the same miss
                self._insert(block_id, block)

    def _insert(self, block_id: int, block: bytes) -> None:
        size = len(block) + _BLOCK_BYTES
        if 2 * size > self.capacity_bytes:
            return
        self.young[block_id] = block
        self._young_bytes += size
        if 2 * self._young_bytes > self.capacity_bytes:
            self._turn_over()
            self._turned = True
        while self._young_bytes + self._old_bytes > self.capacity_bytes:
            self._full = True
            self._push_one_out()
            self._seen_max = len(self.young) + len(self.old)
        if self._timer is None:
            self._start_timer()

    def _turn_over(self) -> None:
        self.old |= self.young
        self._old_bytes += self._young_bytes
        self._victims = iter(list(self.old))
        self.young = {}
        self._young_bytes = 0

    def _push_one_out(self) -> None:
        for victim in self._victims:
            block = self.old.pop(victim, None)
            if block is not None:
                self._old_bytes -= len(block) + _BLOCK_BYTES
                return
        self._turn_over()

    def _start_timer(self) -> None:
        timer = threading.Timer(self.idle_s, _tick, (weakref.ref(self),))
        timer.daemon = True
        timer.name = "keyva-cache-idle"
        self._timer = timer
        timer.start()

    def drop_idle(self) -> None:
        """Drop the blocks that nobody read since the last call but one; called every ``idle_s`` by a timer while there are any."""
        with self._lock:
            self._timer = None
            if not self._turned:  # else what is old may have been read since the last call
                self._full = False
                self._seen.clear()
                self.old = {}
                self._old_bytes = 0
            self._turn_over()
            self._turned = False
            self._clear_rows()
            if self.old:
                self._start_timer()

    def _clear_rows(self) -> None:
        for rows in self.rows:
            rows.clear()

    def clear(self) -> None:
        """Drop everything and stop the timer."""
        with self._lock:
            self.young, self.old = {}, {}
            self._victims = iter(())
            self._young_bytes = self._old_bytes = 0
            self._full = False
            self._seen.clear()
            self._clear_rows()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    @property
    def size_bytes(self) -> int:
        """Estimated memory of the cached blocks."""
        return self._young_bytes + self._old_bytes


def _tick(reference: weakref.ref[BlockCache]) -> None:
    cache = reference()
    if cache is not None:
        cache.drop_idle()
