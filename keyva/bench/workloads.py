"""The workloads, by the names of LevelDB's db_bench and of YCSB.

A workload makes a `Job` for each worker: a call, its arguments, and how many entries one call is worth. Arguments are made before the
clock runs. YCSB: Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010, table 2.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from keyva.bench.data import DISTRIBUTIONS, Values, key_of
from keyva.bench.system import System

__all__ = ["WORKLOADS", "Job", "Plan", "Workload", "batches", "entries"]

SCAN_ENTRIES_MAX = 100
"""YCSB E reads 1 to this many entries from a key on."""

SEEK_ENTRIES = 10


class Plan(NamedTuple):
    """How much: ``num`` entries in all, ``reads`` calls of the workloads that do not fill (0: ``num``), this ``worker`` of ``workers``."""

    num: int
    value_bytes: int = 100
    batch: int = 1000
    distribution: str = "uniform"
    seed: int = 1
    worker: int = 0
    workers: int = 1
    reads: int = 0

    @property
    def calls(self) -> range:
        """The calls of this worker in a workload that does not fill."""
        count = self.reads or self.num
        return range(count * self.worker // self.workers, count * (self.worker + 1) // self.workers)

    @property
    def share(self) -> range:
        """The numbers of this worker's keys."""
        return range(self.num * self.worker // self.workers, self.num * (self.worker + 1) // self.workers)

    def random(self, name: str) -> random.Random:
        """Return the source of chance for one purpose; other workers have others."""
        return random.Random(f"{self.seed} {name} {self.worker}")


class Job(NamedTuple):
    """``call(*arguments)`` for each of ``items``; one call is worth ``weight`` entries (None: as many as it returns)."""

    call: Callable[..., Any]
    items: Iterable[tuple[Any, ...]]
    weight: int | None = 1


class Workload(NamedTuple):
    """``durable`` leaves out systems that do not sync; ``fills`` makes the data that the others read."""

    name: str
    what: str
    make: Callable[[System, Plan], Job]
    fills: bool = False
    durable: bool = False
    together: bool = True
    """Whether it can be split over several workers."""

    writes_beside: bool = False
    """Whether one more worker writes all the while."""

    part: int = 1
    """It makes so many times fewer calls than asked for."""

    def total(self, plan: Plan) -> int | None:
        """Return how many entries all workers will have done, None when only the store knows."""
        return (plan.num if self.fills else plan.reads or plan.num) // self.part if self.together else None


def entries(plan: Plan, *, shuffled: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """Yield the worker's entries."""
    numbers: Iterable[int] = plan.share
    if shuffled:
        numbers = list(numbers)
        plan.random("order").shuffle(numbers)
    values = Values(plan.value_bytes, plan.seed + plan.worker)
    for number in numbers:
        yield key_of(number), values.next()


def batches(items: Iterable[tuple[bytes, bytes]], size: int) -> Iterator[tuple[list[tuple[bytes, bytes]]]]:
    """Yield the entries in lists of ``size``, as arguments of a call."""
    source = iter(items)
    while part := list(islice(source, size)):
        yield (part,)


def _fillseq(system: System, plan: Plan) -> Job:
    return Job(system.put, entries(plan))


def _fillrandom(system: System, plan: Plan) -> Job:
    return Job(system.put, entries(plan, shuffled=True))


def _fillsync(system: System, plan: Plan) -> Job:
    return Job(system.put, islice(entries(plan, shuffled=True), max(1, len(plan.share) // 100)))


def _fillbatch(system: System, plan: Plan) -> Job:
    return Job(system.write, batches(entries(plan, shuffled=True), plan.batch), plan.batch)


def _fillpipeline(system: System, plan: Plan) -> Job:
    return Job(system.pipeline, batches(entries(plan, shuffled=True), plan.batch), plan.batch)


def _overwrite(system: System, plan: Plan) -> Job:
    values = Values(plan.value_bytes, plan.seed + 1000 + plan.worker)
    return Job(system.put, ((key, values.next()) for (key,) in _keys(plan, "overwrite")))


def _keys(plan: Plan, name: str, distribution: str = "", among: int = 0) -> Iterator[tuple[bytes]]:
    seed = plan.random(name).getrandbits(32)
    chooser = DISTRIBUTIONS[distribution or plan.distribution](among or plan.num, seed)
    for _ in plan.calls:
        yield (key_of(chooser.next()),)


def _readrandom(system: System, plan: Plan) -> Job:
    return Job(system.get, _keys(plan, "readrandom"))


def _readmissing(system: System, plan: Plan) -> Job:
    return Job(system.get, ((key + b".",) for (key,) in _keys(plan, "readmissing")))


def _readhot(system: System, plan: Plan) -> Job:
    return Job(system.get, _keys(plan, "readhot", "uniform", max(1, plan.num // 100)))


def _readzipfian(system: System, plan: Plan) -> Job:
    return Job(system.get, _keys(plan, "readzipfian", "zipfian"))


def _readmany(system: System, plan: Plan) -> Job:
    keys = (key for (key,) in _keys(plan, "readmany"))
    return Job(system.get_many, ((part,) for part in iter(lambda: list(islice(keys, plan.batch)), [])), plan.batch)


def _walk(system: System, reverse: bool) -> int:
    count = 0
    for _ in system.scan(reverse):
        count += 1
    return count


def _readseq(system: System, plan: Plan) -> Job:
    return Job(_walk, [(system, False)], None)


def _readreverse(system: System, plan: Plan) -> Job:
    return Job(_walk, [(system, True)], None)


def _seekrandom(system: System, plan: Plan) -> Job:
    return Job(system.seek, ((key, SEEK_ENTRIES) for (key,) in islice(_keys(plan, "seekrandom"), max(1, len(plan.calls) // 10))))


def _deleterandom(system: System, plan: Plan) -> Job:
    return Job(system.delete, _keys(plan, "deleterandom"))


def _compact(system: System, plan: Plan) -> Job:
    return Job(system.settle, [()])


def _ycsb(mix: dict[str, float], distribution: str) -> Callable[[System, Plan], Job]:
    """Return a YCSB core workload: the parts of read, update, insert, scan and modify (read, then write) in ``mix``."""

    def make(system: System, plan: Plan) -> Job:
        chance = plan.random("ycsb")
        latest = distribution == "latest"
        # As in YCSB: scrambled numbers are spread over what will have been inserted, and drawn again while they are not there yet
        to_come = 0 if latest or plan.workers > 1 else int(2 * len(plan.calls) * mix.get("insert", 0))
        chooser = DISTRIBUTIONS[distribution](plan.num + to_come, chance.getrandbits(32))
        values = Values(plan.value_bytes, plan.seed + 2000 + plan.worker)
        get, put, seek = system.get, system.put, system.seek

        def read(key: bytes, _: bytes, __: int) -> None:
            get(key)

        def update(key: bytes, value: bytes, _: int) -> None:
            put(key, value)

        def scan(key: bytes, _: bytes, count: int) -> None:
            seek(key, count)

        def modify(key: bytes, value: bytes, _: int) -> None:
            get(key)
            put(key, value)

        calls = {"read": read, "update": update, "insert": update, "scan": scan, "modify": modify}
        names, weights = list(mix), list(mix.values())

        def items() -> Iterator[tuple[Any, ...]]:
            inserted = 0
            for _ in plan.calls:
                (name,) = chance.choices(names, weights)
                if name == "insert":
                    # workers insert side by side: numbers from the first free one on, in steps
                    number = plan.num + inserted * plan.workers + plan.worker
                    inserted += 1
                    if latest and plan.workers == 1:
                        chooser.grown(number + 1)
                else:
                    number = chooser.next()
                    while number >= plan.num + inserted:
                        number = chooser.next()
                value = values.next() if name in ("update", "insert", "modify") else b""
                yield calls[name], key_of(number), value, chance.randint(1, SCAN_ENTRIES_MAX)

        return Job(_dispatch, items())

    return make


def _dispatch(call: Callable[..., None], key: bytes, value: bytes, count: int) -> None:
    call(key, value, count)


_DB_BENCH = [
    Workload("fillseq", "write num entries in key order, one by one", _fillseq, fills=True),
    Workload("fillrandom", "write num entries in random order, one by one", _fillrandom, fills=True),
    Workload("fillsync", "write num/100 entries in random order, each synced", _fillsync, fills=True, durable=True, part=100),
    Workload("fillbatch", "write num entries in random order, in batches of --batch-size", _fillbatch, fills=True),
    Workload("fillpipeline", "write num entries in random order, --batch-size calls in one message", _fillpipeline, fills=True),
    Workload("overwrite", "overwrite num random entries, one by one", _overwrite),
    Workload("readrandom", "read num random keys (of --distribution)", _readrandom),
    Workload("readmissing", "read num keys that are not there", _readmissing),
    Workload("readhot", "read num random keys of 1 % of all", _readhot),
    Workload("readzipfian", "read num keys, popular ones most often (theta 0.99)", _readzipfian),
    Workload("readmany", "read num random keys, --batch-size in one call", _readmany),
    Workload("readseq", "read all entries in key order", _readseq, together=False),
    Workload("readreverse", "read all entries in reverse key order", _readreverse, together=False),
    Workload("seekrandom", f"num/10 times: seek to a random key and read {SEEK_ENTRIES} entries", _seekrandom, part=10),
    Workload("readwhilewriting", "readrandom, while one more worker writes", _readrandom, writes_beside=True),
    Workload("deleterandom", "delete num random keys, one by one", _deleterandom),
    Workload("compact", "flush and compact all, until nothing is left to do", _compact, together=False),
]
_YCSB = [
    Workload("ycsb-a", "update heavy: 50 % reads, 50 % updates, zipfian", _ycsb({"read": 0.5, "update": 0.5}, "zipfian")),
    Workload("ycsb-b", "read mostly: 95 % reads, 5 % updates, zipfian", _ycsb({"read": 0.95, "update": 0.05}, "zipfian")),
    Workload("ycsb-c", "read only, zipfian", _ycsb({"read": 1.0}, "zipfian")),
    Workload("ycsb-d", "read latest: 95 % reads, 5 % inserts", _ycsb({"read": 0.95, "insert": 0.05}, "latest")),
    Workload("ycsb-e", "short ranges: 95 % scans of 1 to 100 entries, 5 % inserts", _ycsb({"scan": 0.95, "insert": 0.05}, "zipfian")),
    Workload("ycsb-f", "read-modify-write: 50 % reads, 50 % reads followed by an update", _ycsb({"read": 0.5, "modify": 0.5}, "zipfian")),
]
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _DB_BENCH + _YCSB}
