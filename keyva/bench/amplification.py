"""What a store costs beside time: bytes written and kept per byte given, bytes read per get, memory, and how that
grows with the data."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from keyva.bench.machine import MemoryPeaks, directory_bytes, proportional_memory_bytes, scratch
from keyva.bench.rounds import fill_log, restart_s
from keyva.bench.runner import run_workload
from keyva.bench.system import System
from keyva.bench.workloads import WORKLOADS, Plan

__all__ = ["GROWTH_COLUMNS", "growth", "measure_costs"]

GROWTH_COLUMNS = [
    "system",
    "entries",
    "start s",
    "fill us",
    "settle s",
    "get us",
    "absent us",
    "scan us",
    "written/given",
    "kept/given",
    "read B/get",
    "memory MB",
    "recovery s",
]
READS_MAX = 200_000


def _io(pids: Iterable[int], field: str) -> int:
    """Return a field of /proc/PID/io, summed; a process that has gone counts 0."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/io") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(field + ":"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


def measure_costs(kind: type[System], plan: Plan, parent: str, cache_bytes: int) -> dict[str, Any]:
    """Fill a store in random order, overwrite as much again, settle, read, and kill it with a full log; returns the costs by name, with
    their units in it. What a system cannot tell is None.
    """
    with scratch(parent) as directory:
        begun = time.perf_counter()
        system = kind(directory, cache_bytes)
        try:
            system.get(b"a")
            start_s = time.perf_counter() - begun
            empty = memory_of(system)
            written = _io([os.getpid(), *system.pids().values()], "write_bytes")
            with MemoryPeaks(system.pids()) as peaks:
                fill = run_workload(system, WORKLOADS["fillbatch"], plan)
                run_workload(system, WORKLOADS["fillbatch"], plan._replace(seed=plan.seed + 1))
                begun = time.perf_counter()
                system.settle()
                settle_s = time.perf_counter() - begun
            written = _io([os.getpid(), *system.pids().values()], "write_bytes") - written
            kept = directory_bytes(directory)
            given = plan.num * (16 + plan.value_bytes)
            quiet = peaks.sample()
            reads = plan._replace(reads=min(plan.num, READS_MAX // 10 if kind.remote else READS_MAX))
            before = _io([os.getpid()], "rchar")
            get = run_workload(system, WORKLOADS["readrandom"], reads)
            read = (_io([os.getpid()], "rchar") - before) / get.entries
            absent = run_workload(system, WORKLOADS["readmissing"], reads)
            try:
                scan_us = run_workload(system, WORKLOADS["readseq"], plan).us
            except NotImplementedError:
                scan_us = None
            log_entries = fill_log(system, plan) if system.pids() else 0
            return {
                "entries": plan.num,
                "start_s": start_s,
                "fill_us": fill.us,
                "settle_s": settle_s,
                "get_us": get.us,
                "absent_us": absent.us,
                "scan_us": scan_us,
                "bytes_written_per_byte_given": written / (2 * given),
                "bytes_kept_per_byte_given": kept / given,
                "bytes_read_per_get": None if kind.remote else read,
                "memory_empty_bytes": sum(empty.values()) or None,
                "memory_bytes": sum(quiet.values()) or None,
                "memory_by_process_bytes": quiet,
                "memory_peak_by_process_bytes": peaks.bytes,
                "recovery_log_entries": log_entries or None,
                "recovery_s": restart_s(system, directory, cache_bytes) if system.pids() else None,
            }
        finally:
            system.close()


def memory_of(system: System) -> dict[str, int]:
    """Return the PSS of each process of a store by what it does, in bytes."""
    return {role: proportional_memory_bytes([pid]) for role, pid in system.pids().items()}


def growth(
    kinds: Mapping[str, type[System]],
    plan: Plan,
    sizes: Sequence[int],
    rounds: int,
    parent: str,
    cache_bytes: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure the costs at several sizes; each figure is its median over the rounds, in which the systems take turns."""
    points = []
    for size in sizes:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
        for number in range(rounds):
            for name, kind in kinds.items():
                say(f"round {number + 1}/{rounds}  {name}: {size:,} entries")
                found[name].append(measure_costs(kind, plan._replace(num=size), parent, cache_bytes))
        points += [{"system": name, **_medians(several)} for name, several in found.items()]
    return points


def _medians(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, first in several[0].items():
        if isinstance(first, dict):
            result[name] = _medians([one[name] for one in several])
        else:
            values = [one[name] for one in several if one.get(name) is not None]
            result[name] = statistics.median(values) if values else None
    return result


def cells(point: Mapping[str, Any]) -> list[str]:
    """Return a point as the text of `GROWTH_COLUMNS`."""

    def text(name: str, divided_by: float = 1) -> str:
        value = point[name]
        return "-" if value is None else f"{value / divided_by:,.0f}" if value / divided_by >= 100 else f"{value / divided_by:.2f}"

    names = ("start_s", "fill_us", "settle_s", "get_us", "absent_us", "scan_us")
    amplification = ("bytes_written_per_byte_given", "bytes_kept_per_byte_given", "bytes_read_per_get")
    return [
        point["system"],
        f"{point['entries']:,}",
        *map(text, (*names, *amplification)),
        text("memory_bytes", 1e6),
        text("recovery_s"),
    ]
