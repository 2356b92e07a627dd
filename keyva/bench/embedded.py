"""Peers that live in the caller's process: LevelDB, RocksDB, LMDB, SQLite, diskcache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from keyva.bench.machine import wait_until
from keyva.bench.system import CACHE_BYTES, WRITE_BUFFER_BYTES, Batch, System

__all__ = ["Diskcache", "Lmdb", "Plyvel", "PlyvelSync", "Rocksdict", "RocksdictSync", "Sqlite"]


class Plyvel(System):
    name = "plyvel"
    setup = "LevelDB; bloom filter of 10 bits, write buffer 64 MB; writes are not synced"
    module = "plyvel"
    sync = False

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        import plyvel

        super().__init__(directory)
        self.db = plyvel.DB(
            directory, create_if_missing=True, bloom_filter_bits=10, lru_cache_size=cache_bytes, write_buffer_size=WRITE_BUFFER_BYTES
        )
        self.get = self.db.get  # type: ignore[method-assign]

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, sync=self.sync)

    def delete(self, key: bytes) -> None:
        self.db.delete(key, sync=self.sync)

    def write(self, batch: Batch) -> None:
        with self.db.write_batch(sync=self.sync) as writing:
            put = writing.put
            for key, value in batch:
                put(key, value)

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        return self.db.iterator(reverse=reverse)  # type: ignore[no-any-return]

    def seek(self, key: bytes, count: int) -> int:
        with self.db.iterator(start=key) as found:
            return sum(1 for _ in zip(range(count), found, strict=False))

    def settle(self) -> None:
        self.db.compact_range()

    def close(self) -> None:
        self.db.close()


class PlyvelSync(Plyvel):
    name = "plyvel-sync"
    setup = "LevelDB; bloom filter of 10 bits, write buffer 64 MB; every write is synced"
    sync = True


_ROCKSDB = (
    "RocksDB; raw mode, bloom filter of 10 bits, dynamic level bytes, bytes_per_sync 1 MB, a background job per core, "
    "4 KB blocks, filters and index outside the cache"
)


class Rocksdict(System):
    name = "rocksdict"
    setup = f"{_ROCKSDB}; writes are not synced"
    module = "rocksdict"
    sync = False

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBatch, WriteOptions

        super().__init__(directory)
        options = Options(raw_mode=True)
        table = BlockBasedOptions()
        table.set_bloom_filter(10, False)
        table.set_block_cache(Cache(cache_bytes))
        options.set_block_based_table_factory(table)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_level_compaction_dynamic_level_bytes(True)
        options.set_bytes_per_sync(1 << 20)
        options.set_max_background_jobs(max(2, os.cpu_count() or 2))
        self.db: Any = Rdict(directory, options)
        self._batch: Any = WriteBatch
        self._how = WriteOptions()
        self._how.sync = self.sync
        self.get = self.db.get  # type: ignore[method-assign]

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, write_opt=self._how)

    def delete(self, key: bytes) -> None:
        self.db.delete(key, write_opt=self._how)

    def write(self, batch: Batch) -> None:
        writing = self._batch(raw_mode=True)
        for key, value in batch:
            writing[key] = value
        self.db.write(writing, write_opt=self._how)

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        return self.db.get(keys)  # type: ignore[no-any-return]

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        return self.db.items(backwards=reverse)  # type: ignore[no-any-return]

    def seek(self, key: bytes, count: int) -> int:
        return sum(1 for _ in zip(range(count), self.db.items(from_key=key), strict=False))

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range(None, None)

    def quiet(self) -> None:
        self.db.flush()
        names = ("mem-table-flush-pending", "num-running-flushes", "compaction-pending", "num-running-compactions")
        wait_until(lambda: not any(self.db.property_int_value(f"rocksdb.{name}") for name in names), "rocksdict is quiet")

    def close(self) -> None:
        self.db.close()


class RocksdictSync(Rocksdict):
    name = "rocksdict-sync"
    setup = f"{_ROCKSDB}; every write is synced"
    sync = True


class Lmdb(System):
    name = "lmdb"
    setup = "map_size of 64 GB, defaults: every transaction is synced; a transaction per get"
    module = "lmdb"
    processes = True

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        import lmdb

        super().__init__(directory)
        self.db: Any = lmdb.open(directory, map_size=64 << 30, max_readers=256)

    def put(self, key: bytes, value: bytes) -> None:
        with self.db.begin(write=True) as transaction:
            transaction.put(key, value)

    def delete(self, key: bytes) -> None:
        with self.db.begin(write=True) as transaction:
            transaction.delete(key)

    def write(self, batch: Batch) -> None:
        with self.db.begin(write=True) as transaction:
            transaction.cursor().putmulti(batch)

    def get(self, key: bytes) -> bytes | None:
        with self.db.begin() as transaction:
            return transaction.get(key)  # type: ignore[no-any-return]

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        with self.db.begin() as transaction:
            return [transaction.get(key) for key in keys]

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        cursor = self.db.begin().cursor()  # which keeps its transaction, and the iterator keeps the cursor
        return cursor.iterprev() if reverse else cursor.iternext()  # type: ignore[no-any-return]

    def seek(self, key: bytes, count: int) -> int:
        with self.db.begin() as transaction:
            cursor = transaction.cursor()
            cursor.set_range(key)
            return sum(1 for _ in zip(range(count), cursor.iternext(), strict=False))

    def close(self) -> None:
        self.db.close()


class Sqlite(System):
    name = "sqlite"
    setup = "journal_mode=WAL, synchronous=FULL, WITHOUT ROWID"
    processes = True
    threads = False

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        import sqlite3

        super().__init__(directory)
        self.db = sqlite3.connect(os.path.join(directory, "db.sqlite"), isolation_level=None, timeout=60)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute(f"PRAGMA cache_size=-{cache_bytes // 1024}")
        self.db.execute("CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def put(self, key: bytes, value: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def delete(self, key: bytes) -> None:
        self.db.execute("DELETE FROM kv WHERE key = ?", (key,))

    def write(self, batch: Batch) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", batch)
        self.db.execute("COMMIT")

    def get(self, key: bytes) -> bytes | None:
        row = self.db.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        return self.db.execute(f"SELECT key, value FROM kv ORDER BY key {'DESC' if reverse else ''}")

    def seek(self, key: bytes, count: int) -> int:
        return len(self.db.execute("SELECT key, value FROM kv WHERE key >= ? ORDER BY key LIMIT ?", (key, count)).fetchall())

    def settle(self) -> None:
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.db.close()


class Diskcache(System):
    name = "diskcache"
    setup = "defaults (SQLite, synchronous=NORMAL: a power cut may lose writes), no eviction"
    module = "diskcache"
    sync = False
    processes = True

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        import diskcache

        super().__init__(directory)
        self.db: Any = diskcache.Cache(directory, eviction_policy="none", size_limit=1 << 40)
        self.get = self.db.get  # type: ignore[method-assign]

    def put(self, key: bytes, value: bytes) -> None:
        self.db[key] = value

    def delete(self, key: bytes) -> None:
        self.db.delete(key)

    def write(self, batch: Batch) -> None:
        with self.db.transact():
            for key, value in batch:
                self.db[key] = value

    def close(self) -> None:
        self.db.close()
