"""What a store costs beside time: bytes written and kept per byte given, bytes read per get, memory, and how that grows with the data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from keyva.bench.machine import directory_bytes, proportional_memory_bytes, scratch
from keyva.bench.runner import run_workload
from keyva.bench.systems import System
from keyva.bench.workloads import WORKLOADS, Plan

__all__ = ["GROWTH_COLUMNS", "growth", "measure_costs"]

GROWTH_COLUMNS = [
    "system",
    "entries",
    "fill us",
    "settle s",
    "get us",
    "absent us",
    "scan us",
    "written/given",
    "kept/given",
    "MB in memory",
]
GROWTH_GETS_MAX = 200_000


def _io(pids: list[int], field: str) -> int:
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
    """Fill a store in random order, overwrite as much again, settle, and read; returns the costs by name, with their units in it."""
    with scratch(parent) as directory:
        begun = time.perf_counter()
        system = kind(directory, cache_bytes)
        system.get(b"a")
        start_s = time.perf_counter() - begun
        try:
            pids = [os.getpid(), *system.pids()]
            empty = proportional_memory_bytes(system.pids())
            written = _io(pids, "write_bytes")
            fill = run_workload(system, WORKLOADS["fillbatch"], plan)
            run_workload(system, WORKLOADS["fillbatch"], plan._replace(seed=plan.seed + 1))
            begun = time.perf_counter()
            system.settle()
            settle_s = time.perf_counter() - begun
            written = _io([os.getpid(), *system.pids()], "write_bytes") - written
            given = plan.num * (16 + plan.value_bytes)
            reads = plan._replace(num=min(plan.num, GROWTH_GETS_MAX))
            before = _io([os.getpid()], "rchar")
            get = run_workload(system, WORKLOADS["readrandom"], _over(plan, reads))
            read = (_io([os.getpid()], "rchar") - before) / get.entries
            absent = run_workload(system, WORKLOADS["readmissing"], reads)
            try:
                scan_us = run_workload(system, WORKLOADS["readseq"], plan).us
            except NotImplementedError:
                scan_us = float("nan")
            memory = {pid: proportional_memory_bytes([pid]) for pid in system.pids()}
            return {
                "system": system.name,
                "entries": plan.num,
                "start_s": start_s,
                "fill_us": fill.us,
                "settle_s": settle_s,
                "get_us": get.us,
                "absent_us": absent.us,
                "scan_us": scan_us,
                "bytes_written_per_byte_given": written / (2 * given),
                "bytes_kept_per_byte_given": directory_bytes(directory) / given,
                "bytes_read_per_get": read,
                "memory_empty_bytes": empty,
                "memory_bytes": sum(memory.values()),
                "memory_by_process_bytes": list(memory.values()),
            }
        finally:
            system.close()


def _over(plan: Plan, reads: Plan) -> Plan:
    """Return a plan that makes as many calls as ``reads``, over all keys of ``plan``: as one of so many workers."""
    return plan._replace(workers=max(1, plan.num // reads.num))


def growth(
    kinds: list[type[System]], plan: Plan, sizes: list[int], parent: str, cache_bytes: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the costs at several sizes."""
    points = []
    for size in sizes:
        for kind in kinds:
            say(f"{kind.name}: {size:,} entries")
            points.append(measure_costs(kind, plan._replace(num=size), parent, cache_bytes))
    return points


def cells(point: dict[str, Any]) -> list[str]:
    """Return a point as the text of `GROWTH_COLUMNS`."""
    return [
        point["system"],
        f"{point['entries']:,}",
        *(f"{point[name]:.2f}" for name in ("fill_us", "settle_s", "get_us", "absent_us", "scan_us")),
        f"{point['bytes_written_per_byte_given']:.2f}",
        f"{point['bytes_kept_per_byte_given']:.2f}",
        f"{point['memory_bytes'] / 1e6:.0f}" if point["memory_bytes"] else "in the caller",
    ]
