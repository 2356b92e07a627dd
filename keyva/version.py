"""A version: the open SSTs of one manifest generation, and point reads over them.

Versions share open tables, so making the next one opens only what is new; a table's descriptor is closed when the last version or
snapshot that has it is gone. An open file outlives its unlink, so nothing a compaction removes can be missed by a reader.

Invariant: `runs` goes from newest to oldest, so the first entry found for a key is the newest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Sequence

import msgspec

from keyva.block import Columns, decode_columns
from keyva.cache import BlockCache
from keyva.errors import CorruptionError
from keyva.files import FILES, Files
from keyva.manifest import FileMeta, Manifest, Run
from keyva.memtable import ENTRY_OVERHEAD_BYTES, MISSING
from keyva.options import RESERVED_PREFIX
from keyva.sst import EVERYTHING, DamagedTable, Table

__all__ = ["OpenRun", "Version", "open_version", "rows_bytes"]


_ROWS_PART = 4
"""The part of the block cache's capacity that each of the two generations of single rows may take on top of it; all of it when that is
enough for every row there is."""


class OpenRun:
    """A run with its tables open; ``smallest`` and ``largest`` are the manifest's bounds, file by file; ``tombstones`` says whether it has
    any."""

    __slots__ = ("largest", "smallest", "tables", "tombstones")

    def __init__(self, run: Run, tables: dict[int, Table]) -> None:
        self.smallest = [file.smallest for file in run.files]
        self.largest = [file.largest for file in run.files]
        self.tables = [tables[file.number] for file in run.files]
        self.tombstones = any(file.tombstones for file in run.files)


class Version:
    """Point lookups over the SSTs of one manifest."""

    __slots__ = (
        "_all_fits",
        "_old_rows",
        "_row_room",
        "_rows_full",
        "_rows_seen",
        "cache",
        "filters",
        "manifest",
        "probes",
        "rows",
        "runs",
        "tables",
    )

    def __init__(self, manifest: Manifest, tables: dict[int, Table], cache: BlockCache) -> None:
        self.manifest = manifest
        self.tables = tables
        self.cache = cache
        self.runs = [OpenRun(run, tables) for run in manifest.runs()]
        self.probes = [(run.smallest[0], run.largest[-1], run.tables[0] if len(run.tables) == 1 else None, run) for run in self.runs]
        self.filters = self._known_filters()
        """The filter of each run that is one SST, for `keyva.view`; None where `find` has to look."""
        # Found keys of this version alone: the next version has other SSTs and begins with none. The cache drops them when idle
        # They have two generations, as blocks have; `rows` is the young one
        self.rows: dict[bytes, bytes | None] = {}
        self._old_rows: dict[bytes, bytes | None] = {}
        self._row_room = cache.capacity_bytes // _ROWS_PART
        self._rows_full = False
        self._rows_seen: set[bytes] = set()
        cache.rows = (self.rows, self._old_rows)
        self._all_fits = _fits(tables.values(), cache.capacity_bytes)
        """Whether all rows there are take less than the cache may: then they are kept without counting, and from the second look into a
        block on all of its rows."""

    def get(self, key: bytes) -> bytes | object | None:
        """Return the newest value in the SSTs, None for a tombstone, `MISSING` when no SST has the key. Hot."""
        row = self.rows.get(key)
        return self.find(key) if row is None else row

    def _known_filters(self) -> list[Container[bytes] | None]:
        return [None if table is None or table.bloom is EVERYTHING else table.bloom for _, _, table, _ in self.probes]

    def find(self, key: bytes, passed: Container[bytes] | None = None) -> bytes | object | None:
        """`get` without a look at the young rows; ``passed`` is the filter that has not ruled the key out already. Hot."""
        for smallest, largest, table, run in self.probes:
            if not smallest <= key <= largest:
                continue
            if table is None:  # several files
                at = bisect_left(run.largest, key)
                if key < run.smallest[at]:
                    continue
                table = run.tables[at]
            bloom = table.bloom
            if bloom is not passed and key not in bloom:
                continue
            row = self._old_rows.get(key)
            if row is not None:
                self._add_row(key, row)
                return row
            index = table._index
            if index is None:
                index = table.index
                self.filters = self._known_filters()
            number = bisect_right(index.first_keys, key) - 1
            if number < 0:
                continue
            cached = self.cache.young.get(table.cache_base + number)
            raw = cached if cached is not None else self._load(table, number)
            try:
                keys, values = decode_columns(raw)
                at = bisect_left(keys, key)
                if at == len(keys) or keys[at] != key:
                    continue
                value = values[at]
            except (msgspec.MsgspecError, IndexError) as error:
                raise CorruptionError(f"block cannot be decoded: {error}", table.path, index.offsets[number]) from error
            if value is not None:
                if self._rows_full:  # `_keep_row`, without the call
                    self._add_if_seen(key, value)
                else:
                    self._keep_row(key, value)
                    if self._all_fits and cached is not None:
                        self._keep_rows(keys, values, run)
            return value
        return MISSING

    def find_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """Return the newest values of ``keys``, which ascend, None for a tombstone; those no SST has are left out. Each block is decoded
        once: 5 us per key when each is in another block that is not cached, 1 us when they lie side by side."""
        found: dict[bytes, bytes | None] = {key: row for key in keys if (row := self.rows.get(key)) is not None}
        if len(found) == len(keys):
            return found
        old = self._old_rows
        for key in [key for key in keys if key in old and key not in found]:
            row = old.get(key)  # unless it has just been dropped as idle
            if row is not None:
                found[key] = row
                self._add_row(key, row)
        for run in self.runs:
            rest = [key for key in keys if key not in found] if found else keys
            if not rest:
                break
            begin = 0
            while begin < len(rest) and (at := bisect_left(run.largest, rest[begin])) < len(run.largest):
                end = bisect_right(rest, run.largest[at], begin)
                part = rest[bisect_left(rest, run.smallest[at], begin, end) : end]
                if part:
                    found |= self._find_in(run, run.tables[at], part)
                begin = end
        return found

    def _find_in(self, run: OpenRun, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """Look ``keys``, which ascend, up in one SST of ``run``."""
        index = table._index
        if index is None:
            index = table.index
            self.filters = self._known_filters()
        bloom = table.bloom
        found: dict[bytes, bytes | None] = {}
        block = -1
        block_keys: list[bytes] = []
        values: list[bytes | None] = []
        for key in [key for key in keys if key in bloom]:
            number = bisect_right(index.first_keys, key) - 1
            if number < 0:
                continue
            if number != block:
                looked_into = table.cache_base + number in self.cache.young
                block_keys, values = self.read_block(table, number)
                block = number
                if looked_into and self._all_fits:
                    self._keep_rows(block_keys, values, run)
            at = bisect_left(block_keys, key)
            if at < len(block_keys) and block_keys[at] == key:
                found[key] = value = values[at]
                if value is not None:
                    self._keep_row(key, value)
        return found

    def _keep_row(self, key: bytes, value: bytes) -> None:
        """Remember a key just found, so that its next lookup needs no search in filter, index and block. Not a reserved one: `View.get`
        answers from here without a look at the key."""
        if self._all_fits:
            if key < RESERVED_PREFIX:
                self.rows[key] = value
        elif self._rows_full:
            self._add_if_seen(key, value)
        else:
            self._add_row(key, value)

    def _keep_rows(self, keys: list[bytes], values: list[bytes | None], run: OpenRun) -> None:
        """Remember the rows of a block of ``run`` that count: those whose keys no newer run has, by its filters. None of them, when some
        are beyond the bounds of their SST in the manifest or reserved. A tombstone is kept as None, which `get` takes for unknown.
        Costs as much as finding five keys in the block, and one more for each newer run."""
        first, last = keys[0], keys[-1]
        at = bisect_left(run.largest, last)
        if last >= RESERVED_PREFIX or at == len(run.largest) or first < run.smallest[at]:
            return
        rows: dict[bytes, bytes | None] | None = None
        for newer in self.runs:
            if newer is run:
                break
            for at in range(bisect_left(newer.largest, first), len(newer.largest)):
                if newer.smallest[at] > last:
                    break
                bloom = newer.tables[at].bloom
                if bloom is EVERYTHING:
                    return
                if rows is None:
                    rows = dict(zip(keys, values, strict=False))
                rows = {key: value for key, value in rows.items() if key not in bloom}
        self.rows.update(zip(keys, values, strict=False) if rows is None else rows)

    def _add_row(self, key: bytes, value: bytes) -> None:
        """Add to the young rows, and turn them over when they have become too many bytes."""
        if key < RESERVED_PREFIX:
            self.rows[key] = value
            self._row_room = room = self._row_room - len(key) - len(value) - ENTRY_OVERHEAD_BYTES
            if room < 0:
                self._turn_rows()

    def _add_if_seen(self, key: bytes, value: bytes) -> None:
        """`_add_row` once the rows are full: as blocks, when a key is found a second time within as many others as there are rows."""
        seen = self._rows_seen
        if key in seen:
            seen.discard(key)
            self._add_row(key, value)
        else:
            seen.add(key)
            if len(seen) > len(self._old_rows):
                seen.clear()

    def _turn_rows(self) -> None:
        self._rows_full = True
        self._old_rows = self.rows
        self.rows = {}
        self.cache.rows = (self.rows, self._old_rows)
        self._row_room = self.cache.capacity_bytes // _ROWS_PART

    def read_block(self, table: Table, number: int) -> Columns:
        """Return the entries of a block, by way of the cache; the lists are the caller's own."""
        raw = self.cache.young.get(table.cache_base + number)
        if raw is None:
            raw = self._load(table, number)
        try:
            keys, values = decode_columns(raw)
            if 0 < len(keys) == len(values):
                return keys, values
            error: object = "its keys and values are not as many"
        except msgspec.MsgspecError as found:
            error = found
        raise CorruptionError(f"block cannot be decoded: {error}", table.path, table.index.offsets[number])

    def _load(self, table: Table, number: int) -> bytes:
        """Return a block from the cache's old generation or the file, verified and decompressed."""
        cache = self.cache
        block_id = table.cache_base + number
        if block_id in cache.old:
            raw = cache.get_old(block_id)
            if raw is not None:
                return raw
        raw = table.unpack_block(number)
        cache.put(block_id, raw)
        return raw


def rows_bytes(table: Table) -> int:
    """Return the estimated memory of all entries of an SST as keys and values in a dict."""
    return table.footer.raw_bytes + table.footer.entries * ENTRY_OVERHEAD_BYTES


def _fits(tables: Iterable[Table], capacity_bytes: int) -> bool:
    """Say whether the entries of ``tables``, as rows, take at most ``capacity_bytes``."""
    room = capacity_bytes
    for table in tables:
        if isinstance(table, DamagedTable):  # nobody knows
            return False
        room -= rows_bytes(table)
        if room < 0:
            return False
    return True


def open_version(
    directory: str, manifest: Manifest, known: dict[int, Table], cache: BlockCache, *, mmap_reads: bool = False, files: Files = FILES
) -> Version:
    """Open what ``manifest`` names, reusing ``known`` tables. Raises FileNotFoundError when a file has gone, which for a reader
    means that a newer manifest exists.
    """
    tables: dict[int, Table] = {}
    for number, meta in manifest.all_files().items():
        table = known.get(number)
        if table is None:
            try:
                table = _open_table(directory, number, meta, manifest, mmap_reads, files)
            except CorruptionError as error:
                table = DamagedTable(directory, number, error)  # not the whole store
        tables[number] = table
    return Version(manifest, tables, cache)


def _open_table(directory: str, number: int, meta: FileMeta, manifest: Manifest, mmap_reads: bool, files: Files) -> Table:
    table = Table(directory, number, mmap_reads=mmap_reads, files=files)
    if table.size_bytes != meta.size_bytes:
        raise CorruptionError(f"SST has {table.size_bytes} bytes where the manifest says {meta.size_bytes}", table.path, table.size_bytes)
    if table.header.store_id != manifest.store_id:
        raise CorruptionError("SST belongs to another store", table.path, 0)
    return table
