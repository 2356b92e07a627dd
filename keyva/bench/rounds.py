"""One round of the table: every figure once on every system that needs it, the systems taking turns in a random order.

Stores are filled once (which is a figure by itself) and then read by all rows that read. Figures that write one by one use small stores
of their own. A figure is entries per second, seconds or megabytes.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

from keyva.bench.machine import proportional_memory_bytes, scratch
from keyva.bench.runner import Result, run_workload
from keyva.bench.system import System, close_all
from keyva.bench.systems import SYSTEMS
from keyva.bench.workloads import WORKLOADS, Plan
from keyva.options import Options

__all__ = ["Figures", "Round", "restart_s"]

Figures = dict[tuple[str, str], float]
"""By figure and system."""

WARM_PART = 20
"""Before a read figure so many times fewer calls are made, unmeasured."""

SMALL = {"put": ("fillsync", 1), "put by 16": ("fillsync", 16), "pipeline": ("fillpipeline", 1)}
"""Workload and client processes of the figures that are measured on stores of their own."""

READ = {
    "readzipfian": ("readzipfian", 1),
    "readrandom": ("readrandom", 1),
    "readmissing": ("readmissing", 1),
    "readmany": ("readmany", 1),
    "readseq": ("readseq", 1),
    "readreverse": ("readreverse", 1),
    "readwhilewriting": ("readwhilewriting", 4),
}
"""Workload and processes of the figures that read filled stores; the last one also writes."""

CACHED = {
    "readhot": ("readzipfian", 4.0, 1),
    "read 10x": ("readrandom", 0.1, WARM_PART),
}
"""Workload, cache of each system by the bytes of all keys and values, and how many times fewer unmeasured calls are made before, of the
figures for which stores are opened again. Four times the data holds it in any system, with what it takes beside the bytes."""

FILLED = {"fillbatch", "until quiet", "memory", "restart", *READ, *CACHED}

READS_MAX = 1_000_000
REMOTE_READS_MAX = 50_000
"""Of single reads over a socket, each of which is a message."""

FILL_BYTES_BESIDE = 150
"""What keyva counts per entry of a memtable beside its bytes."""


class Round:
    """``wanted`` maps figures to the systems that need them."""

    def __init__(self, wanted: Mapping[str, Iterable[str]], plan: Plan, parent: str, cache_bytes: int, say: Callable[[str], None]) -> None:
        self._wanted = {figure: set(names) for figure, names in wanted.items()}
        self._plan = plan
        self._parent = parent
        self._cache_bytes = cache_bytes
        self._say = say
        self._figures: Figures = {}
        self._random = random.Random()

    def measure(self) -> Figures:
        """Measure everything once."""
        for figure in ("start", "memory empty"):
            for name in self._turns(figure):
                self._empty(figure, name)
        for figure, (workload, processes) in SMALL.items():
            for name in self._turns(figure):
                self._small(figure, name, workload, processes)
        names = {name for figure in FILLED for name in self._wanted.get(figure, ())}
        if names:
            self._filled(self._random.sample(sorted(names), len(names)))
        return self._figures

    def _turns(self, figure: str) -> list[str]:
        """The systems that need a figure, in the order in which they take their turns."""
        names = sorted(self._wanted.get(figure, ()))
        return self._random.sample(names, len(names))

    def _empty(self, figure: str, name: str) -> None:
        self._say(f"{figure}: {name}")
        with scratch(self._parent) as directory:
            begun = time.perf_counter()
            system = SYSTEMS[name](directory, self._cache_bytes)
            try:
                system.get(b"a")
                self._figures["start", name] = time.perf_counter() - begun
                if figure == "memory empty":
                    self._figures[figure, name] = proportional_memory_bytes(system.pids().values()) / 1e6
            finally:
                system.close()

    def _small(self, figure: str, name: str, workload: str, processes: int) -> None:
        self._say(f"{figure}: {name}")
        with scratch(self._parent) as directory:
            system = SYSTEMS[name](directory, self._cache_bytes)
            try:
                system.put(b"first", b"1")  # connected
                self._figures[figure, name] = run_workload(system, WORKLOADS[workload], self._plan, processes=processes).per_second
            finally:
                system.close()

    def _filled(self, names: list[str]) -> None:
        stores: dict[str, System] = {}
        with ExitStack() as stack:
            paths = {name: stack.enter_context(scratch(self._parent)) for name in names}
            stack.callback(close_all, stores)
            for name in names:
                self._fill(stores, name, paths[name])
            self._read(stores)
            for figure, (workload, part, warm_part) in CACHED.items():
                self._read_with_cache(stores, paths, figure, workload, part, warm_part)
            self._restart(stores, paths)

    def _fill(self, stores: dict[str, System], name: str, path: str) -> None:
        self._say(f"fillbatch: {name}")
        store = stores[name] = SYSTEMS[name](path, self._cache_bytes)
        store.put(b"first", b"1")
        result = run_workload(store, WORKLOADS["fillbatch"], self._plan)
        begun = time.perf_counter()
        store.quiet()
        seconds = result.seconds + time.perf_counter() - begun
        self._figures["fillbatch", name] = result.per_second
        self._figures["until quiet", name] = result.entries / seconds
        self._figures["memory", name] = proportional_memory_bytes(store.pids().values()) / 1e6
        store.settle()

    def _read(self, stores: Mapping[str, System]) -> None:
        for figure, (workload, processes) in READ.items():
            for name in self._turns(figure):
                self._say(f"{figure}: {name}")
                result = self._reads(stores[name], workload, processes)
                self._figures[figure, name] = result.per_second
                if WORKLOADS[workload].writes_beside:
                    stores[name].quiet()

    def _reads(self, store: System, workload: str, processes: int, cache_bytes: int = 0, warm_part: int = WARM_PART) -> Result:
        remote = type(store).remote and workload != "readmany"
        plan = self._plan._replace(reads=min(self._plan.num, REMOTE_READS_MAX if remote else READS_MAX))
        cache = cache_bytes or self._cache_bytes
        if processes == 1:
            run_workload(store, WORKLOADS[workload], plan._replace(reads=max(1, plan.reads // warm_part), seed=plan.seed + 1))
        gc.collect()
        return run_workload(store, WORKLOADS[workload], plan, processes=processes, cache_bytes=cache)

    def _read_with_cache(
        self, stores: dict[str, System], paths: Mapping[str, str], figure: str, workload: str, part: float, warm_part: int
    ) -> None:
        cache = max(1 << 20, int(self._plan.num * (16 + self._plan.value_bytes) * part))
        for name in self._turns(figure):
            self._say(f"{figure}: {name}")
            stores.pop(name).close()
            stores[name] = SYSTEMS[name](paths[name], cache)
            self._figures[figure, name] = self._reads(stores[name], workload, 1, cache, warm_part).per_second

    def _restart(self, stores: dict[str, System], paths: Mapping[str, str]) -> None:
        for name in self._turns("restart"):
            self._say(f"restart: {name}")
            store = stores.pop(name)
            fill_log(store, self._plan)
            self._figures["restart", name] = restart_s(store, paths[name], self._cache_bytes)


def fill_log(system: System, plan: Plan) -> int:
    """Write entries until a log of keyva's is nearly full; other systems get as many. Returns how many."""
    room = int(0.9 * Options().write_buffer_size)
    count = max(100, min(plan.num, room // (16 + plan.value_bytes + FILL_BYTES_BESIDE)))
    run_workload(system, WORKLOADS["fillbatch"], plan._replace(num=count))
    return count


def restart_s(system: System, path: str, cache_bytes: int) -> float:
    """Kill (SIGKILL) the processes of a store, and return the seconds until it has answered a read and a write of a new client."""
    system.kill()
    system.close()
    begun = time.perf_counter()
    fresh = type(system)(path, cache_bytes)
    try:
        fresh.get(b"0" * 16)
        fresh.put(b"ready", b"1")
        return time.perf_counter() - begun
    finally:
        fresh.close()
