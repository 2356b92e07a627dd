"""The project's goals, row by row: keyva beside the best peer that is named for the row, at the same durability.

A row's ratio is taken round by round, on stores that hold the same data; where two stores differ in what they promise, the row says so.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keyva.bench.machine import proportional_memory_bytes, scratch
from keyva.bench.runner import run_workload
from keyva.bench.systems import CACHE_BYTES, Keyva, Redis, System, available
from keyva.bench.workloads import WORKLOADS, Plan

__all__ = ["ROWS", "Row", "RowResult", "measure_rows"]

EMPTY_READY_S = 0.5
EMPTY_MEMORY_BYTES = 150_000_000

Say = Callable[[str], None]


class Row(NamedTuple):
    """``ours`` on ``workload`` beside ``peers``, with the ratio to reach for each."""

    name: str
    workload: str
    peers: tuple[tuple[str, float], ...]
    ours: str = "keyva"
    processes: int = 1
    settle: bool = False
    """Whether the time until nothing is left to do in the background counts."""

    filled: bool = False
    """Whether it reads a store that was filled and compacted before."""

    cache_part: int = 0
    """The data is so many times the cache; 0: the cache has its default size."""

    num_part: int = 1
    """The row makes so many times fewer calls than the others, for each is slow."""


ROWS = (
    Row("fillbatch of 1000, durable, beside peers that do not sync", "fillbatch", (("rocksdict", 2.0), ("plyvel", 2.0))),
    Row("fillbatch of 1000, durable", "fillbatch", (("redis", 3.0), ("lmdb", 3.0), ("sqlite", 3.0))),
    Row("fillrandom in batches, until quiet (rocksdict: not synced)", "fillbatch", (("rocksdict", 1.0),), settle=True),
    Row("put, one at a time, durable, 1 client", "fillsync", (("redis", 1.0),), num_part=1),
    Row("put, one at a time, durable, 16 client processes", "fillsync", (("redis", 1.5),), processes=16),
    Row("put, pipelined by 1000, durable", "fillpipeline", (("redis", 3.0),)),
    Row("get, hot keys (zipfian)", "readzipfian", (("lmdb", 1.0), ("rocksdict", 2.0), ("plyvel", 2.0)), filled=True),
    Row("get, uniform, data 10x the cache", "readrandom", (("rocksdict", 1.0), ("plyvel", 1.0)), filled=True, cache_part=10),
    Row("get, absent key", "readmissing", (("plyvel", 1.3), ("rocksdict", 1.3)), filled=True),
    Row("get_many of 1000, local", "readmany", (("rocksdict", 1.5),), filled=True),
    Row("get_many of 1000, over tcp (redis: unix socket)", "readmany", (("redis", 1.0),), ours="keyva-tcp", filled=True),
    Row("get, remote, one at a time (redis: unix socket)", "readrandom", (("redis", 0.9),), ours="keyva-tcp", filled=True, num_part=20),
    Row("readseq", "readseq", (("plyvel", 2.0), ("rocksdict", 2.0), ("lmdb", 1.0)), filled=True),
    Row("readreverse", "readreverse", (("plyvel", 2.0), ("rocksdict", 2.0), ("lmdb", 1.0)), filled=True),
    Row("readwhilewriting, 4 reader processes", "readwhilewriting", (("lmdb", 1.0), ("redis", 3.0)), processes=4, filled=True),
)


class RowResult(NamedTuple):
    """One row beside one peer. ``ours`` and ``theirs`` are medians in ``unit``; ``ratio`` is the median of the rounds' ratios."""

    row: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    goal: float

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return self.ratio >= self.goal

    def cells(self) -> list[str]:
        """Return the row as text."""
        figures = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (self.ours, self.theirs)]
        return [self.row, self.peer or "-", *figures, self.unit, f"{self.ratio:.2f}", f">= {self.goal:g}", "yes" if self.reached else "NO"]


COLUMNS = ["row", "peer", "keyva", "peer's", "unit", "ratio", "goal", "reached"]


def measure_rows(plan: Plan, rounds: int, parent: str, say: Say, only: Sequence[str] = ()) -> tuple[list[RowResult], dict[str, str]]:
    """Measure all rows (those whose name contains one of ``only``); returns results, and what was left out with the reason."""
    here = available()
    left_out: dict[str, str] = {}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    rows = [row for row in ROWS if not only or any(part in row.name for part in only)]
    for round_number in range(rounds):
        for row in rows:
            say(f"round {round_number + 1}/{rounds}  {row.name}")
            peers = [name for name, _ in row.peers if name in here]
            for name, _ in row.peers:
                if name not in here:
                    left_out[f"{row.name} beside {name}"] = "not installed"
            speeds = _measure_row(row, [row.ours, *peers], plan, parent)
            for peer in peers:
                found.setdefault((row.name, peer), []).append((speeds[row.ours], speeds[peer]))
    goals = {(row.name, peer): goal for row in rows for peer, goal in row.peers}
    results = [
        RowResult(
            name,
            peer,
            statistics.median(ours for ours, _ in pairs),
            statistics.median(theirs for _, theirs in pairs),
            "entries/s",
            statistics.median(ours / theirs for ours, theirs in pairs),
            goals[name, peer],
        )
        for (name, peer), pairs in found.items()
    ]
    for name, special in (("ready after start", start_rows), ("memory", memory_rows)):
        if not only or any(part in name for part in only):
            say(name)
            results += special(plan, parent, "redis" in here)
    return results, left_out


def _measure_row(row: Row, names: list[str], plan: Plan, parent: str) -> dict[str, float]:
    """Return entries per second of each system, each in turn on a store of its own."""
    here = available()
    workload = WORKLOADS[row.workload]
    cache = CACHE_BYTES if not row.cache_part else max(1 << 20, plan.num * (16 + plan.value_bytes) // row.cache_part)
    speeds = {}
    for name in names:
        with scratch(parent) as directory:
            system = here[name](directory, cache)
            try:
                if row.filled:
                    run_workload(system, WORKLOADS["fillbatch"], plan)
                    system.settle()
                    run_workload(system, workload, plan._replace(num=max(100, plan.num // 20)), processes=row.processes, cache_bytes=cache)
                else:
                    system.put(b"first", b"1")  # connected
                part = plan._replace(num=max(100, plan.num // row.num_part)) if not row.filled else plan
                result = run_workload(system, workload, part, processes=row.processes, cache_bytes=cache)
                seconds = result.seconds
                if row.settle:
                    begun = time.perf_counter()
                    system.settle()
                    seconds += time.perf_counter() - begun
                speeds[name] = result.entries / seconds
            finally:
                system.close()
    return speeds


def start_rows(plan: Plan, parent: str, with_redis: bool) -> list[RowResult]:
    """Measure how long it takes until a killed store serves again, with all data of ``plan`` and a full log; and an empty one."""
    with scratch(parent) as directory:
        begun = time.perf_counter()
        store = Keyva(directory)
        store.db.get(b"a")
        empty_s = time.perf_counter() - begun
        results = [RowResult("node ready, empty store", "", empty_s, EMPTY_READY_S, "s", EMPTY_READY_S / empty_s, 1.0)]
        _fill(store, plan)
        store.settle()
        _fill(store, plan._replace(num=_log_entries(plan, store)))
        ours_s = _restart(store, lambda: Keyva(directory))
    if with_redis:
        with scratch(parent) as directory:
            peer = Redis(directory)
            _fill(peer, plan)
            theirs_s = _restart(peer, lambda: Redis(directory))
        results.append(RowResult("ready after kill -9, all data and a full log", "redis", ours_s, theirs_s, "s", theirs_s / ours_s, 3.0))
    return results


def _log_entries(plan: Plan, store: Keyva) -> int:
    """How many entries nearly fill a log."""
    options = store.db._connections().hello["options"]
    return max(1000, min(plan.num, int(0.9 * options["write_buffer_size"]) // (16 + plan.value_bytes + 150)))


def _fill(system: System, plan: Plan) -> None:
    run_workload(system, WORKLOADS["fillbatch"], plan)


def _restart(system: System, again: Callable[[], System]) -> float:
    """Kill all processes of a store, and return the seconds until it has answered a read and a write of a new client."""
    pids = system.pids()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if isinstance(system, Redis) and system._server is not None:
        system._server.wait(60)
        system._server = None
    end = time.monotonic() + 30
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    system.close()
    begun = time.perf_counter()
    fresh = again()
    fresh.get(b"0" * 16)
    fresh.put(b"ready", b"1")
    seconds = time.perf_counter() - begun
    fresh.close()
    return seconds


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def memory_rows(plan: Plan, parent: str, with_redis: bool) -> list[RowResult]:
    """Measure the PSS of all processes: nothing stored, and with all data of ``plan`` when nothing goes on."""
    results = []
    with scratch(parent) as directory:
        store = Keyva(directory)
        empty = proportional_memory_bytes(store.pids())
        results.append(
            RowResult("memory, nothing stored", "", empty / 1e6, EMPTY_MEMORY_BYTES / 1e6, "MB", EMPTY_MEMORY_BYTES / empty, 1.0)
        )
        _fill(store, plan)
        store.settle()
        ours: Any = proportional_memory_bytes(store.pids())
        store.close()
    if with_redis:
        with scratch(parent) as directory:
            peer = Redis(directory)
            _fill(peer, plan)
            theirs = proportional_memory_bytes(peer.pids())
            peer.close()
        results.append(RowResult("memory of all processes, all stored, quiet", "redis", ours / 1e6, theirs / 1e6, "MB", theirs / ours, 4.0))
    return results
