"""The memtable: what one log holds, as dicts that change with a log and can be frozen for a snapshot at no cost.

A memtable is a short stack of layers, each a dict of key to value (None: tombstone). Writes go to the top layer. A snapshot pins
the layers it sees; the next write then puts a new layer on top, and unpinned layers are merged again later. Ordered reads go
through a `SortedList` of all keys, filled in bulk when the first one asks for it and dropped when it falls far behind.

Invariants: a pinned layer is never changed; a key's newest value is in the topmost layer that has the key; layers number at most
about log2(entries), however many snapshots come and go. Letting a snapshot go takes no lock, for the garbage collector may do it in any
allocation, also in one of a thread that holds the lock. An exception from a signal handler, which may come between any two steps,
leaves nothing half done that a later call believes.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice

from sortedcontainers import SortedList

from keyva.batch import Batch

__all__ = ["ENTRY_OVERHEAD_BYTES", "MISSING", "FrozenMemtable", "Memtable"]

MISSING = object()
"""Stands for "no entry", which is not the same as a tombstone (None)."""

ENTRY_OVERHEAD_BYTES = 150
"""Memory an entry takes beside its bytes: two bytes objects and a dict slot (measured with sys.getsizeof on CPython 3.11)."""

_PENDING_MAX = 1000


class _Layer:
    __slots__ = ("data", "pins")

    def __init__(self, data: Batch) -> None:
        self.data = data
        self.pins = 0


class Memtable:
    """The entries of one log. `apply` is for one thread at a time and waits while another one sorts the keys; reads may run beside it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.payload_bytes = 0
        self._layers = [_Layer({})]
        self._ordered: SortedList | None = None
        self._pending: set[bytes] = set()
        self._released: deque[list[_Layer]] = deque()
        """Layers of snapshots that have gone, whose pins are still to be taken away."""
        self._lock = threading.Lock()

    @property
    def dicts(self) -> tuple[Batch, ...]:
        """The layers' dicts, newest first."""
        return tuple(layer.data for layer in reversed(self._layers))

    @property
    def entries(self) -> int:
        """Entries over all layers; a key in two layers counts twice."""
        return sum(len(layer.data) for layer in self._layers)

    @property
    def size_bytes(self) -> int:
        """Estimated memory, in bytes."""
        return self.payload_bytes + ENTRY_OVERHEAD_BYTES * self.entries

    def apply(self, batch: Batch, payload_bytes: int) -> bool:
        """Add a batch; says whether `dicts` has changed (a layer was added). Hot: 0.1 us per entry."""
        self.payload_bytes += payload_bytes
        with self._lock:  # or a thread that is sorting would miss the batch, which would be in neither its keys nor the pending ones
            self._unpin()
            top = self._layers[-1]
            added = top.pins > 0
            if added:
                top = _Layer({})
                self._layers.append(top)
                self._merge_layers()
                top = self._layers[-1]
            if self._ordered is not None:
                self._pending.update(batch)  # before the entries are there: a key that is only pending does no harm
            top.data.update(batch)
            if self._ordered is not None and len(self._pending) > _PENDING_MAX + len(self._ordered) // 2:
                self._ordered = None  # nobody has asked for order for long; sorting anew is cheaper than keeping up
                self._pending = set()
        return added

    def _merge_layers(self) -> None:
        # Geometric, like an LSM in small: a layer is merged with the one below when that is at most twice as large. Always into
        # a copy: a layer comes on top only while a snapshot is open, and that has pinned all layers there were.
        layers = self._layers
        while len(layers) >= 3 and len(layers[-3].data) <= 2 * len(layers[-2].data):
            layers[-3:-1] = [_Layer({**layers[-3].data, **layers[-2].data})]

    def freeze(self) -> FrozenMemtable:
        """Pin what is here now; costs nothing per entry. The caller must `release` it."""
        with self._lock:
            self._unpin()
            layers = [layer for layer in self._layers if layer.data]
            for layer in layers:
                layer.pins += 1
        return FrozenMemtable(self, layers)

    def keys_between(self, start: bytes | None, stop: bytes | None, limit: int, reverse: bool) -> list[bytes]:
        """Return up to ``limit`` keys of [start, stop) in order, from the chosen end. The first call sorts all keys."""
        with self._lock:
            ordered = self._ordered
            if ordered is None or self._pending:
                self._ordered = None  # until it is whole again
                if ordered is None:
                    ordered = SortedList(set().union(*(layer.data for layer in self._layers)))
                else:
                    ordered.update([key for key in self._pending if key not in ordered])
                self._pending = set()
                self._ordered = ordered
            return list(islice(ordered.irange(start, stop, (True, False), reverse=reverse), limit))

    def _unpin(self) -> None:
        released = self._released
        while released:
            for layer in released.popleft():
                layer.pins -= 1


class FrozenMemtable:
    """What a memtable held at one moment."""

    __slots__ = ("_layers", "dicts", "memtable")

    def __init__(self, memtable: Memtable, layers: list[_Layer]) -> None:
        self.memtable = memtable
        self._layers = layers
        self.dicts: tuple[Batch, ...] = tuple(layer.data for layer in reversed(layers))

    def again(self) -> FrozenMemtable:
        """Pin the same moment once more, to be released by itself."""
        with self.memtable._lock:
            self.memtable._unpin()
            for layer in self._layers:
                layer.pins += 1
        return FrozenMemtable(self.memtable, self._layers)

    def release(self) -> None:
        """Unpin; may be called twice."""
        layers, self._layers = self._layers, []
        if layers:
            self.memtable._released.append(layers)

    def piece(
        self, start: bytes | None, stop: bytes | None, limit: int, reverse: bool
    ) -> tuple[list[bytes], list[bytes | None], bytes | None]:
        """Return up to ``limit`` entries of [start, stop) in order, and the last key looked at (None when none is left)."""
        candidates = self.memtable.keys_between(start, stop, limit, reverse)
        if not candidates:
            return [], [], None
        dicts = self.dicts
        if len(dicts) == 1:
            try:
                return candidates, list(map(dicts[0].__getitem__, candidates)), candidates[-1]
            except KeyError:  # a key that came after this moment
                pass
        keys: list[bytes] = []
        values: list[bytes | None] = []
        for key in candidates:
            for data in dicts:
                value = data.get(key, MISSING)
                if value is not MISSING:
                    keys.append(key)
                    values.append(value)  # type: ignore[arg-type]
                    break
        return keys, values, candidates[-1]
