"""The systems under test: keyva and its peers, each behind a few lines of adapter.

A system is opened in a directory of its own and keeps nothing elsewhere. ``sync`` says whether a write returns when it survives a power
cut; the same store with and without is two systems. Peers get the settings their documentation recommends, which ``setup`` says.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import keyva

__all__ = ["CACHE_BYTES", "SYSTEMS", "Batch", "System", "available", "version_of", "why_missing"]

Batch = Sequence[tuple[bytes, bytes]]

CACHE_BYTES = 64 * 1024 * 1024
"""Block cache of every system that has one; keyva's default."""

_START_S = 60.0


class System:
    """One store of one directory. Methods that a system lacks raise NotImplementedError, and the workload is left out for it."""

    name: ClassVar[str] = ""
    setup: ClassVar[str] = ""
    module: ClassVar[str] = ""
    """Distribution that must be installed, "" for none."""

    program: ClassVar[str] = ""
    """Program that must be installed, "" for none."""

    sync: ClassVar[bool] = True
    processes: ClassVar[bool] = False
    """Whether several processes may use the store at once."""

    threads: ClassVar[bool] = True

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        self.directory = directory

    @classmethod
    def attach(cls, directory: str, cache_bytes: int = CACHE_BYTES) -> System:
        """Return what a further process uses: the store as it is, opened again."""
        return cls(directory, cache_bytes)

    def put(self, key: bytes, value: bytes) -> None:
        """Write one entry."""
        raise NotImplementedError

    def delete(self, key: bytes) -> None:
        """Remove one entry."""
        raise NotImplementedError

    def write(self, batch: Batch) -> None:
        """Write a batch, atomically where the system can."""
        raise NotImplementedError

    def pipeline(self, batch: Batch) -> None:
        """Write entries one by one, in one message."""
        raise NotImplementedError

    def get(self, key: bytes) -> bytes | None:
        """Read one entry."""
        raise NotImplementedError

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Read several entries."""
        return [self.get(key) for key in keys]

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        """Iterate over all entries."""
        raise NotImplementedError

    def seek(self, key: bytes, count: int) -> int:
        """Read up to ``count`` entries from ``key`` on; return how many there were."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait until nothing is left to be done in the background: flushed and compacted."""

    def pids(self) -> list[int]:
        """Return the processes that belong to the store, this one not among them."""
        return []

    def close(self) -> None:
        """Close it; the directory stays."""


class Keyva(System):
    name = "keyva"
    setup = "defaults: every write is synced (fdatasync)"
    processes = True
    _settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(directory)
        self.db = keyva.open(directory, block_cache_size=cache_bytes, **self._settings)
        self.get = self.db.get  # type: ignore[method-assign]
        self.get_many = self.db.get_many  # type: ignore[method-assign]

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, sync=self.sync)

    def delete(self, key: bytes) -> None:
        self.db.delete(key, sync=self.sync)

    def write(self, batch: Batch) -> None:
        self.db.put_many(batch, sync=self.sync)

    def pipeline(self, batch: Batch) -> None:
        pipeline = self.db.pipeline(sync=self.sync)
        for key, value in batch:
            pipeline.put(key, value)
        pipeline.execute()

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        return self.db.iterator(reverse=reverse)

    def seek(self, key: bytes, count: int) -> int:
        with self.db.iterator(start=key) as found:
            return sum(1 for _ in zip(range(count), found, strict=False))

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range()

    def pids(self) -> list[int]:
        from keyva.client import node_processes

        return [int(process["pid"]) for process in node_processes(self.directory)]

    def close(self) -> None:
        self.db.close()


class KeyvaRemote(Keyva):
    name = "keyva-tcp"
    processes = False
    setup = "defaults, through keyva.connect over tcp on loopback: every read is a message"

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        System.__init__(self, directory)
        port = _free_port(3)
        endpoint = f"tcp://127.0.0.1:{port}"
        self._owner = keyva.open(directory, listen=endpoint, block_cache_size=cache_bytes)
        self.db = keyva.connect(endpoint)
        self.get = self.db.get  # type: ignore[method-assign]
        self.get_many = self.db.get_many  # type: ignore[method-assign]

    def close(self) -> None:
        self.db.close()
        self._owner.close()


class KeyvaNoSync(Keyva):
    name = "keyva-nosync"
    setup = "as keyva, but writes survive crashes of processes only"
    sync = False


class Plyvel(System):
    name = "plyvel"
    setup = "LevelDB; bloom filter of 10 bits; writes are not synced"
    module = "plyvel"
    sync = False

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        import plyvel

        super().__init__(directory)
        self.db = plyvel.DB(directory, create_if_missing=True, bloom_filter_bits=10, lru_cache_size=cache_bytes)
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
    setup = "LevelDB; bloom filter of 10 bits; every write is synced"
    sync = True


class Rocksdict(System):
    name = "rocksdict"
    setup = "RocksDB; raw mode, bloom filter of 10 bits; writes are not synced"
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

    def close(self) -> None:
        self.db.close()


class RocksdictSync(Rocksdict):
    name = "rocksdict-sync"
    setup = "RocksDB; raw mode, bloom filter of 10 bits; every write is synced"
    sync = True


class Lmdb(System):
    name = "lmdb"
    setup = "map_size of 16 GB, defaults: every transaction is synced; a transaction per get"
    module = "lmdb"
    processes = True

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        import lmdb

        super().__init__(directory)
        self.db: Any = lmdb.open(directory, map_size=16 << 30, max_readers=256)

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

    def scan(self, reverse: bool = False) -> Iterator[Any]:
        with self.db.begin() as transaction:
            cursor = transaction.cursor()
            yield from cursor.iterprev() if reverse else cursor.iternext()

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


class Redis(System):
    name = "redis"
    setup = 'redis-server on a unix socket, appendonly yes, appendfsync always, save ""; redis-py with hiredis'
    module = "redis"
    program = "redis-server"
    processes = True
    _fsync: ClassVar[str] = "always"

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(directory)
        self._path = os.path.join(directory, "redis.sock")
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server and wait until it serves."""
        import redis

        command = ["redis-server", "--port", "0", "--unixsocket", self._path, "--dir", self.directory, "--save", ""]
        self._server = subprocess.Popen(
            [*command, "--appendonly", "yes", "--appendfsync", self._fsync],
            stdout=subprocess.DEVNULL,
        )
        self.db: Any = redis.Redis(unix_socket_path=self._path)
        end = time.monotonic() + _START_S
        while True:
            try:
                self.db.ping()
                break
            except redis.exceptions.ConnectionError:
                if time.monotonic() > end or self._server.poll() is not None:
                    raise
                time.sleep(0.01)
        self.get = self.db.get  # type: ignore[method-assign]

    @classmethod
    def attach(cls, directory: str, cache_bytes: int = CACHE_BYTES) -> System:
        import redis

        other = object.__new__(cls)
        System.__init__(other, directory)
        other._server = None
        other.db = redis.Redis(unix_socket_path=os.path.join(directory, "redis.sock"))
        other.get = other.db.get  # type: ignore[method-assign]
        return other

    def put(self, key: bytes, value: bytes) -> None:
        self.db.set(key, value)

    def delete(self, key: bytes) -> None:
        self.db.delete(key)

    def write(self, batch: Batch) -> None:
        self.db.mset(dict(batch))

    def pipeline(self, batch: Batch) -> None:
        pipeline = self.db.pipeline(transaction=False)
        for key, value in batch:
            pipeline.set(key, value)
        pipeline.execute()

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        return self.db.mget(keys)  # type: ignore[no-any-return]

    def pids(self) -> list[int]:
        return [self._server.pid] if self._server is not None else []

    def close(self) -> None:
        self.db.close()
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            self._server.wait(60)


class RedisEverysec(Redis):
    name = "redis-everysec"
    setup = "as redis, but appendfsync everysec: a power cut may lose a second of writes"
    sync = False
    _fsync = "everysec"


SYSTEMS: dict[str, type[System]] = {
    kind.name: kind
    for kind in (
        Keyva, KeyvaNoSync, KeyvaRemote, Plyvel, PlyvelSync, Rocksdict, RocksdictSync, Lmdb, Sqlite, Diskcache, Redis, RedisEverysec,
    )
}  # fmt: skip


def why_missing(kind: type[System]) -> str:
    """Return why a system cannot run here, "" when it can."""
    if kind.module:
        try:
            importlib.import_module(kind.module)
        except ImportError:
            return f"{kind.module} is not installed"
    if kind.program and shutil.which(kind.program) is None:
        return f"{kind.program} is not installed"
    return ""


def available() -> dict[str, type[System]]:
    """Return the systems that can run here."""
    return {name: kind for name, kind in SYSTEMS.items() if not why_missing(kind)}


def version_of(kind: type[System]) -> str:
    """Return the version of what is measured."""
    if kind.program:
        return subprocess.run([kind.program, "--version"], capture_output=True, text=True, check=True).stdout.split("v=")[-1].split()[0]
    if kind.module:
        return importlib.metadata.version(kind.module)
    if kind is Sqlite:
        import sqlite3

        return sqlite3.sqlite_version
    return keyva.__version__


def _free_port(count: int) -> int:
    """Return the first of ``count`` free tcp ports in a row."""
    import random
    import socket

    for _ in range(1000):
        first = random.SystemRandom().randrange(10000, 30000)
        probes = [socket.socket() for _ in range(count)]
        try:
            for number, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return first
    raise OSError("no free ports")
