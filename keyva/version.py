"""A version: the open SSTs of one manifest generation, and point reads over them.

Versions share open tables, so making the next one opens only what is new; a table's descriptor is closed when the last version or
snapshot that has it is gone. An open file outlives its unlink, so nothing a compaction removes can be missed by a reader.

Invariant: `runs` goes from newest to oldest, so the first entry found for a key is the newest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from keyva.batch import Batch
from keyva.cache import BlockCache
from keyva.errors import CorruptionError
from keyva.files import FILES, Files
from keyva.filter import hash_key
from keyva.manifest import Manifest, Run
from keyva.memtable import MISSING
from keyva.sst import Table

__all__ = ["OpenRun", "Version", "open_version"]


class OpenRun:
    """A run with its tables open; ``smallest`` and ``largest`` are the manifest's bounds, file by file."""

    __slots__ = ("largest", "smallest", "tables")

    def __init__(self, run: Run, tables: dict[int, Table]) -> None:
        self.smallest = [file.smallest for file in run.files]
        self.largest = [file.largest for file in run.files]
        self.tables = [tables[file.number] for file in run.files]


class Version:
    """Point lookups over the SSTs of one manifest."""

    __slots__ = ("_probes", "cache", "manifest", "runs", "tables")

    def __init__(self, manifest: Manifest, tables: dict[int, Table], cache: BlockCache) -> None:
        self.manifest = manifest
        self.tables = tables
        self.cache = cache
        self.runs = [OpenRun(run, tables) for run in manifest.runs()]
        self._probes = [(run.largest, run.smallest, run.tables) for run in self.runs]

    def get(self, key: bytes) -> bytes | object | None:
        """Return the newest value in the SSTs, None for a tombstone, `MISSING` when no SST has the key. Hot."""
        hashed = -1
        for largest, smallest, tables in self._probes:
            if len(largest) == 1:
                at = 0
            elif (at := bisect_left(largest, key)) == len(largest):
                continue
            if not smallest[at] <= key <= largest[at]:
                continue
            table = tables[at]
            index = table._index or table.index
            bloom = index.filter
            if bloom is not None:
                if hashed < 0:
                    hashed = hash_key(key)
                if hashed not in bloom:
                    continue
            number = bisect_right(index.first_keys, key) - 1
            if number < 0:
                continue
            block = self.cache.young.get(table.cache_base + number)
            if block is None:
                block = self.load_block(table, number)
            value = block.get(key, MISSING)
            if value is not MISSING:
                return value
        return MISSING

    def load_block(self, table: Table, number: int) -> Batch:
        """Return a block from the cache's old generation or the file."""
        cache = self.cache
        block_id = table.cache_base + number
        block = cache.get_old(block_id)
        if block is None:
            block = table.read_block(number)
            offsets = table._index.offsets if table._index else table.index.offsets
            # lz4 makes typical data about half as large; the entries' true size would cost a pass over them
            cache.put(block_id, block, 2 * (offsets[number + 1] - offsets[number]))
        return block


def open_version(
    directory: str, manifest: Manifest, known: dict[int, Table], cache: BlockCache, *, mmap_reads: bool = False, files: Files = FILES
) -> Version:
    """Open what ``manifest`` names, reusing ``known`` tables. Raises FileNotFoundError when a file has gone, which for a reader
    means that a newer manifest exists.
    """
    tables = {}
    for number, meta in manifest.all_files().items():
        table = known.get(number)
        if table is None:
            table = Table(directory, number, mmap_reads=mmap_reads, files=files)
            if table.size_bytes != meta.size_bytes:
                raise CorruptionError(
                    f"SST has {table.size_bytes} bytes where the manifest says {meta.size_bytes}", table.path, table.size_bytes
                )
            if table.header.store_id != manifest.store_id:
                raise CorruptionError("SST belongs to another store", table.path, 0)
        tables[number] = table
    return Version(manifest, tables, cache)
