"""Runs a job and measures it: one worker in this thread, or several threads or processes that begin at the same moment.

Throughput is taken over all calls, without the time in which their arguments are made; latency of every call where a call is slow, of
each 16th where it is not, so that reading the clock does not become what is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from hdrh.histogram import HdrHistogram

from keyva.bench.data import Values, key_of
from keyva.bench.system import CACHE_BYTES, System
from keyva.bench.systems import SYSTEMS
from keyva.bench.workloads import WORKLOADS, Job, Plan, Workload

__all__ = ["Result", "run_job", "run_workload"]

_CHUNK = 10_000
_SAMPLE = 16
_QUICK_NS = 20_000
"""Calls quicker than this are sampled."""

_LATENCY_MAX_NS = 600 * 10**9
_START_S = 300.0
_LIMIT_S = 7200.0

Progress = Callable[[int], None]
"""Called with the number of entries done since the last call."""


class Result(NamedTuple):
    """What was measured: entries, seconds, and percentiles of the latency of a call in microseconds."""

    entries: int
    seconds: float
    p50_us: float
    p99_us: float
    p999_us: float

    @property
    def per_second(self) -> float:
        """Entries per second."""
        return self.entries / self.seconds if self.seconds else 0.0

    @property
    def us(self) -> float:
        """Microseconds per entry, of all workers together."""
        return self.seconds / self.entries * 1e6 if self.entries else 0.0


class _Measured(NamedTuple):
    entries: int
    started: float  # of the system-wide monotonic clock
    ended: float
    busy_s: float
    latencies_ns: list[int]


def _call_with_one(call: Callable[..., object], items: Sequence[tuple[Any]]) -> None:
    for (argument,) in items:
        call(argument)


def _call_with_two(call: Callable[..., object], items: Sequence[tuple[Any, Any]]) -> None:
    for one, two in items:
        call(one, two)


def _call_with_all(call: Callable[..., object], items: Sequence[tuple[Any, ...]]) -> None:
    for arguments in items:
        call(*arguments)


_CALLERS: dict[int, Callable[..., None]] = {1: _call_with_one, 2: _call_with_two}
"""By the number of arguments: loops as a program has them. ``call(*arguments)`` would add some 0.1 us to calls that take 0.2."""


def _measure(job: Job, progress: Progress) -> _Measured:
    """Make all calls of a job, in chunks whose arguments are made while the clock stands still."""
    call, latencies = job.call, []
    items = iter(job.items)
    entries = 0
    busy = 0
    every = 1
    clock = time.perf_counter_ns
    started = time.monotonic()
    while chunk := list(islice(items, _CHUNK if every > 1 else 100)):
        begun = clock()
        if every == 1:
            for arguments in chunk:
                at = clock()
                done = call(*arguments)
                latencies.append(clock() - at)
        else:
            call_with: Callable[..., None] = _CALLERS.get(len(chunk[0]), _call_with_all)
            for number in range(0, len(chunk), every):
                at = clock()
                call(*chunk[number])
                latencies.append(clock() - at)
                call_with(call, chunk[number + 1 : number + every])
        spent = clock() - begun
        busy += spent
        if spent < _QUICK_NS * len(chunk):
            every = _SAMPLE
        count = done if job.weight is None else sum(len(arguments[0]) for arguments in chunk) if job.weight > 1 else len(chunk)
        entries += count
        progress(count)
    return _Measured(entries, started, time.monotonic(), busy / 1e9, latencies)


def run_job(job: Job, progress: Progress = lambda _: None) -> Result:
    """Measure one worker's job in this thread."""
    found = _measure(job, progress)
    return _result([found], found.busy_s)


def _result(parts: list[_Measured], seconds: float) -> Result:
    histogram = HdrHistogram(1, _LATENCY_MAX_NS, 3)
    for part in parts:
        for latency in part.latencies_ns:
            histogram.record_value(min(max(latency, 1), _LATENCY_MAX_NS))
    percentiles = [histogram.get_value_at_percentile(percent) / 1000 for percent in (50, 99, 99.9)]
    return Result(sum(part.entries for part in parts), seconds, *percentiles)


def run_workload(
    system: System,
    workload: Workload,
    plan: Plan,
    *,
    threads: int = 1,
    processes: int = 1,
    cache_bytes: int = CACHE_BYTES,
    progress: Progress = lambda _: None,
) -> Result:
    """Run ``workload``, split over threads or processes; raises NotImplementedError when the system cannot do that."""
    workers = max(threads, processes) if workload.together else 1
    if workers == 1 and not workload.writes_beside:
        return run_job(workload.make(system, plan), progress)
    if processes > 1 or (workload.writes_beside and type(system).processes):
        if not type(system).processes:
            raise NotImplementedError(f"{system.name} cannot be used by several processes")
        return _with_processes(system, workload, plan, workers, cache_bytes)
    if not type(system).threads:
        raise NotImplementedError(f"{system.name} cannot be used by several threads")
    return _with_threads(system, workload, plan, workers)


def _with_threads(system: System, workload: Workload, plan: Plan, workers: int) -> Result:
    jobs = [workload.make(system, plan._replace(worker=worker, workers=workers)) for worker in range(workers)]
    jobs = [job._replace(items=list(job.items)) for job in jobs]
    found: list[_Measured | BaseException] = []
    barrier = threading.Barrier(workers + 1)
    stop = threading.Event()

    def work(job: Job) -> None:
        try:
            barrier.wait(_START_S)
            found.append(_measure(job, lambda _: None))
        except BaseException as error:
            found.append(error)

    def write_beside() -> None:
        try:
            _write_until(system, plan, stop.is_set)
        except BaseException as error:
            found.append(error)

    running = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
    beside = threading.Thread(target=write_beside, daemon=True)
    for thread in running:
        thread.start()
    if workload.writes_beside:
        beside.start()
    barrier.wait(_START_S)
    for thread in running:
        thread.join(_LIMIT_S)
    stop.set()
    if workload.writes_beside:
        beside.join(_START_S)
    if len([part for part in found if isinstance(part, _Measured)]) < workers and not any(isinstance(p, BaseException) for p in found):
        raise RuntimeError(f"a worker thread gave no answer within {_LIMIT_S:g} s")
    return _together(found)


def _write_until(system: System, plan: Plan, stopped: Callable[[], bool]) -> int:
    values = Values(plan.value_bytes, plan.seed + 3000)
    chance = plan.random("beside")
    count = 0
    while not stopped():
        system.put(key_of(chance.randrange(plan.num)), values.next())
        count += 1
    return count


def _with_processes(system: System, workload: Workload, plan: Plan, workers: int, cache_bytes: int) -> Result:
    """Measure from the moment in which all have opened the store and made their arguments."""
    context = multiprocessing.get_context("spawn")
    begin, stop = context.Event(), context.Event()
    results: Any = context.Queue()
    arguments = (system.name, system.directory, cache_bytes, workload.name)
    running = [
        context.Process(target=_process, args=(*arguments, plan._replace(worker=worker, workers=workers), begin, stop, results))
        for worker in range(workers)
    ]
    if workload.writes_beside:
        running.append(context.Process(target=_process, args=(*arguments, plan._replace(worker=-1), begin, stop, results)))
    try:
        for process in running:
            process.start()
        for _ in running:
            _get(results, running, _START_S)  # ready
        begin.set()
        found = [_get(results, running, _LIMIT_S) for _ in range(workers)]
        stop.set()
        for process in running:
            process.join(_START_S)
    finally:
        for process in running:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()
        results.close()
    return _together(found)


def _get(results: Any, running: Iterable[Any], limit_s: float) -> Any:
    """Return what a worker process put next; raises the error that it met, or `RuntimeError` when one ended without an answer."""
    end = time.monotonic() + limit_s
    while True:
        try:
            found = results.get(timeout=1)
        except queue.Empty:
            dead = [process.exitcode for process in running if process.exitcode]
            if dead:
                raise RuntimeError(f"a worker process ended with {dead[0]}") from None
            if time.monotonic() > end:
                raise RuntimeError(f"a worker process gave no answer within {limit_s:g} s") from None
            continue
        if isinstance(found, BaseException):
            raise found
        return found


def _process(name: str, directory: str, cache_bytes: int, workload: str, plan: Plan, begin: Any, stop: Any, results: Any) -> None:
    """Is the entry of a worker process; ``plan.worker`` -1 is the one that writes beside."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of the terminal; the parent ends this one
    parent = os.getppid()
    try:
        system = SYSTEMS[name].attach(directory, cache_bytes)
        job = None
        if plan.worker >= 0:
            job = WORKLOADS[workload].make(system, plan)
            job = job._replace(items=list(job.items))
            system.get(key_of(0))  # connected, and caught up
        results.put(os.getpid())
        if not begin.wait(_START_S):
            raise TimeoutError(f"the other workers were not ready within {_START_S:g} s")
        if job is None:
            _write_until(system, plan._replace(worker=0), lambda: stop.is_set() or os.getppid() != parent)
        else:
            results.put(_measure(job, lambda _: None))
        system.close()
    except Exception as error:
        results.put(RuntimeError(f"{name}: {type(error).__name__}: {error}"))


def _together(found: list[Any]) -> Result:
    """Return the result of workers that ran at the same time: from the first's beginning to the last's end."""
    for part in found:
        if isinstance(part, BaseException):
            raise part
    return _result(found, max(part.ended for part in found) - min(part.started for part in found))
