"""keyva beside plyvel (LevelDB), rocksdict (RocksDB) and lmdb: microseconds per operation, in one run, through the public Python APIs.

    pip install '.[bench]'
    python benchmarks/compare.py                 # about three minutes
    python benchmarks/compare.py --num 200000 --rounds 5 --json result.json

Data is db_bench's: 16-byte keys in random order, 100-byte values. Systems alternate within each round, and the figure is the median over
the rounds. A peer that is not installed is left out and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keyva

KEY_BYTES, VALUE_BYTES, BATCH = 16, 100, 1000
Batch = list[tuple[bytes, bytes]]


class System:
    """One store under test; a subclass is its adapter."""

    name = ""
    setup = ""

    def __init__(self, directory: str) -> None:
        raise NotImplementedError

    def write(self, batch: Batch) -> None:
        """Write a batch, durable where the system's name does not say otherwise."""
        raise NotImplementedError

    def put(self, key: bytes, value: bytes) -> None:
        """Write one entry, durable."""
        raise NotImplementedError

    def get(self, key: bytes) -> bytes | None:
        raise NotImplementedError

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan(self, reverse: bool) -> int:
        raise NotImplementedError

    def settle(self) -> None:
        """Flush and compact."""

    def close(self) -> None:
        raise NotImplementedError


class Keyva(System):
    name = "keyva"
    setup = "defaults (durability = sync: every write is synced before it is acknowledged)"

    def __init__(self, directory: str) -> None:
        self.db = keyva.open(directory)
        self.get = self.db.get  # type: ignore[method-assign]
        self.get_many = self.db.get_many  # type: ignore[method-assign]

    def write(self, batch: Batch) -> None:
        self.db.put_many(batch)

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value)

    def scan(self, reverse: bool) -> int:
        return sum(1 for _ in self.db.iterator(reverse=reverse))

    def settle(self) -> None:
        self.db.compact_range()

    def close(self) -> None:
        self.db.close()


class Plyvel(System):
    name = "plyvel"
    setup = "write_buffer_size = 64 MB, lru_cache_size = 64 MB, bloom_filter_bits = 10; batches without sync"

    def __init__(self, directory: str) -> None:
        import plyvel

        self.db = plyvel.DB(directory, create_if_missing=True, write_buffer_size=64 << 20, lru_cache_size=64 << 20, bloom_filter_bits=10)
        self.get = self.db.get  # type: ignore[method-assign]

    def write(self, batch: Batch) -> None:
        with self.db.write_batch() as writing:
            for key, value in batch:
                writing.put(key, value)

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, sync=True)

    def scan(self, reverse: bool) -> int:
        return sum(1 for _ in self.db.iterator(reverse=reverse))

    def settle(self) -> None:
        self.db.compact_range()

    def close(self) -> None:
        self.db.close()


class Rocksdict(System):
    name = "rocksdict"
    setup = "raw mode, bloom filter of 10 bits, 64 MB block cache; batches without sync"

    def __init__(self, directory: str) -> None:
        from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBatch, WriteOptions

        options = Options(raw_mode=True)
        table = BlockBasedOptions()
        table.set_bloom_filter(10, False)
        table.set_block_cache(Cache(64 << 20))
        options.set_block_based_table_factory(table)
        self.db: Any = Rdict(directory, options)
        self._batch = WriteBatch
        self._synced = WriteOptions()
        self._synced.sync = True
        self.get = self.db.get  # type: ignore[method-assign]

    def write(self, batch: Batch) -> None:
        writing = self._batch(raw_mode=True)
        for key, value in batch:
            writing[key] = value
        self.db.write(writing)

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, write_opt=self._synced)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = self.db.get(keys)
        return values

    def scan(self, reverse: bool) -> int:
        return sum(1 for _ in self.db.items(backwards=reverse))

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range(None, None)

    def close(self) -> None:
        self.db.close()


class Lmdb(System):
    name = "lmdb"
    setup = "map_size = 4 GB, sync on: every transaction is durable; a transaction per get"

    def __init__(self, directory: str) -> None:
        import lmdb

        self.env = lmdb.open(directory, map_size=4 << 30)

    def write(self, batch: Batch) -> None:
        with self.env.begin(write=True) as transaction:
            transaction.cursor().putmulti(batch)

    def put(self, key: bytes, value: bytes) -> None:
        with self.env.begin(write=True) as transaction:
            transaction.put(key, value)

    def get(self, key: bytes) -> bytes | None:
        with self.env.begin() as transaction:
            value: bytes | None = transaction.get(key)
            return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        with self.env.begin() as transaction:
            return [transaction.get(key) for key in keys]

    def scan(self, reverse: bool) -> int:
        with self.env.begin() as transaction:
            cursor = transaction.cursor()
            return sum(1 for _ in (cursor.iterprev() if reverse else cursor.iternext()))

    def close(self) -> None:
        self.env.close()


def timed(call: Callable[[], Any], operations: int) -> float:
    """Return microseconds per operation."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) / operations * 1e6


def in_flight(system: System, batches: list[Batch], threads: int) -> None:
    """Write the batches from several threads that share one client."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(system.write, batches))


def one_round(systems: list[System], number: int, rng: random.Random, results: dict[str, dict[str, list[float]]], singles: int) -> None:
    """Run every row once on every system, the systems taking turns."""

    def record(row: str, calls: dict[str, tuple[Callable[[], Any], int]]) -> None:
        for name in rng.sample(sorted(calls), len(calls)):
            call, operations = calls[name]
            results.setdefault(row, {}).setdefault(name, []).append(timed(call, operations))

    keys = [b"%016d" % rng.randrange(10**15) for _ in range(number)]
    values = [rng.randbytes(VALUE_BYTES) for _ in range(BATCH)]
    batches = [list(zip(keys[at : at + BATCH], values, strict=False)) for at in range(0, number, BATCH)]
    half = len(batches) // 2
    record("put, batches of 1000", {s.name: (lambda s=s: [s.write(batch) for batch in batches[:half]], half * BATCH) for s in systems})  # type: ignore[misc]
    record(
        "put, batches of 1000, 8 threads",
        {s.name: (lambda s=s: in_flight(s, batches[half:], 8), (len(batches) - half) * BATCH) for s in systems},  # type: ignore[misc]
    )
    some = rng.sample(keys, singles)
    record("put, one at a time, synced", {s.name: (lambda s=s: [s.put(key, values[0]) for key in some], singles) for s in systems})  # type: ignore[misc]
    for system in systems:
        system.settle()
    hot = rng.sample(keys, 2000)
    for system in systems:
        for key in hot:
            assert system.get(key) is not None
    record("get, cached", {s.name: (lambda get=s.get: [get(key) for key in hot * 5], 10_000) for s in systems})  # type: ignore[misc]
    absent = [key + b"x" for key in rng.sample(keys, 20_000)]
    record("get, absent", {s.name: (lambda get=s.get: [get(key) for key in absent], 20_000) for s in systems})  # type: ignore[misc]
    anywhere = rng.sample(keys, 20_000)
    record("get, any key", {s.name: (lambda get=s.get: [get(key) for key in anywhere], 20_000) for s in systems})  # type: ignore[misc]
    record("get_many of 1000", {s.name: (lambda s=s: [s.get_many(hot[at : at + 1000]) for at in (0, 1000)], 2000) for s in systems})  # type: ignore[misc]
    counts = {system.name: system.scan(False) for system in systems}
    assert len(set(counts.values())) == 1, counts
    record("scan", {s.name: (lambda s=s: s.scan(False), counts[s.name]) for s in systems})  # type: ignore[misc]
    record("scan, reverse", {s.name: (lambda s=s: s.scan(True), counts[s.name]) for s in systems})  # type: ignore[misc]


def open_all(kinds: list[type[System]], directory: str) -> Iterator[System]:
    """Open the systems that are installed."""
    for kind in kinds:
        try:
            yield kind(os.path.join(directory, kind.name))
        except ImportError as error:
            print(f"left out: {kind.name} ({error})")


def table(results: dict[str, dict[str, list[float]]], names: list[str]) -> str:
    """Return the medians as a Markdown table, with keyva's time over the best peer's."""
    lines = [f"| us per operation | {' | '.join(names)} | keyva : best peer |", "|---|" + "---:|" * (len(names) + 1)]
    for row, by_system in results.items():
        medians = {name: statistics.median(by_system[name]) for name in names}
        peers = [medians[name] for name in names if name != "keyva"]
        ratio = f"{medians['keyva'] / min(peers):.2f}" if peers else "-"
        lines.append(f"| {row} | {' | '.join(f'{medians[name]:.2f}' for name in names)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200_000, help="entries per round (default: 200000)")
    parser.add_argument("--singles", type=int, default=1000, help="single synced puts per round (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each on new stores (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the random data (default: 1)")
    parser.add_argument("--dir", default=None, help="where to put the stores (default: a temporary directory)")
    parser.add_argument("--json", default=None, metavar="FILE", help="write all figures there too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}, load {load:.2f}, seed {options.seed}")
    if load > 0.5:
        print("warning: this machine is busy, the figures will be off")
    kinds: list[type[System]] = [Keyva, Plyvel, Rocksdict, Lmdb]
    rng = random.Random(options.seed)
    results: dict[str, dict[str, list[float]]] = {}
    names: list[str] = []
    for number in range(options.rounds):
        directory = tempfile.mkdtemp(prefix="keyva-bench-", dir=options.dir)
        try:
            systems = list(open_all(kinds, directory))
            names = [system.name for system in systems]
            if number == 0:
                for system in systems:
                    print(f"{system.name} {importlib.metadata.version(system.name)}: {system.setup}")
            one_round(systems, options.num, rng, results, options.singles)
            for system in systems:
                system.close()
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    print()
    print(table(results, names))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "load": load, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
