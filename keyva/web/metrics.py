"""`/metrics`: the store's, the processes' and the gateway's figures for Prometheus, in its names and base units.

The library's own registry is not used: it would show this process's start time and Python's garbage collector as if they were the store's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from keyva import __version__

from .meter import BOUNDS_S, Meter

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

COUNTERS = {
    "writes": ("keyva_writes", "Keys written or deleted since the writer started."),
    "batches": ("keyva_write_batches", "Batches written since the writer started."),
    "groups": ("keyva_commit_groups", "Groups of batches committed together since the writer started."),
    "wal_syncs": ("keyva_wal_syncs", "Syncs of the log since the writer started."),
    "write_errors": ("keyva_write_errors", "Writes that failed since the writer started."),
    "flushes": ("keyva_flushes", "Memtables flushed since the writer started."),
    "flushed_bytes": ("keyva_flushed_bytes", "Bytes of SSTs made by flushes since the writer started."),
    "compactions": ("keyva_compactions", "Compaction steps since the writer started."),
    "compacted_bytes_read": ("keyva_compaction_read_bytes", "Bytes read by compaction since the writer started."),
    "compacted_bytes_written": ("keyva_compaction_written_bytes", "Bytes written by compaction since the writer started."),
    "malformed_messages": ("keyva_malformed_messages", "Messages the writer could not decode since it started."),
}

GAUGES = {
    "last_sequence": ("keyva_last_sequence", "Sequence number of the newest write."),
    "memtable_bytes": ("keyva_memtable_bytes", "Estimated memory of the active memtable."),
    "memtable_entries": ("keyva_memtable_entries", "Keys in the active memtable."),
    "immutable_memtables": ("keyva_immutable_memtables", "Full memtables that wait to be flushed."),
    "wal_bytes": ("keyva_wal_bytes", "Bytes of the active log."),
    "pending_compaction_bytes": ("keyva_pending_compaction_bytes", "Bytes that compaction still has to move."),
    "held_writes": ("keyva_held_writes", "Writes that wait for a stall to end."),
    "writer_started_at": ("keyva_writer_start_time_seconds", "When the writer started, in seconds since 1970."),
}


class _Figures:
    """One scrape's figures as prometheus_client wants them."""

    def __init__(self, stats: dict[str, Any] | None, processes: list[dict[str, Any]], cache: dict[str, Any], meter: Meter) -> None:
        self._stats = stats
        self._processes = processes
        self._cache = cache
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield InfoMetricFamily("keyva_build", "The version that runs.", {"version": __version__})
        yield GaugeMetricFamily("keyva_up", "Whether the writer answered (1) or is being restarted (0).", int(self._stats is not None))
        if self._stats is not None:
            yield from self._of_store(self._stats)
        yield from self._of_processes()
        yield from self._of_gateway()

    def _of_store(self, stats: dict[str, Any]) -> Iterator[Metric]:
        for name, (metric, text) in COUNTERS.items():
            yield CounterMetricFamily(metric, text, stats[name])
        for name, (metric, text) in GAUGES.items():
            yield GaugeMetricFamily(metric, text, stats[name])
        for name, text in (("bytes", "Bytes"), ("files", "SSTs"), ("runs", "Sorted runs"), ("entries", "Entries")):
            family = GaugeMetricFamily(f"keyva_level_{name}", f"{text} of a level.", labels=["level"])
            for level in stats["levels"]:
                family.add_metric([str(level["level"])], level[name])
            yield family
        stalls = CounterMetricFamily("keyva_stall_seconds", "Seconds for which writes were slowed down or waited.", labels=["reason"])
        for reason, seconds in stats["stall_seconds"].items():
            stalls.add_metric([reason], seconds)
        yield stalls
        yield GaugeMetricFamily("keyva_damaged_files", "SSTs left out of compaction because they are damaged.", len(stats["damaged"]))
        jobs = GaugeMetricFamily("keyva_running_jobs", "Flushes and compactions under way.", labels=["kind"])
        for kind in ("flush", "compaction"):
            jobs.add_metric([kind], sum(job["kind"] == kind for job in stats["jobs"]))
        yield jobs

    def _of_processes(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("keyva_process_up", "Whether a process of the node is running.", labels=["role"])
        restarts = CounterMetricFamily("keyva_process_restarts", "Times the node started a process again.", labels=["role"])
        for process in self._processes:
            running.add_metric([process["role"]], int(process["state"] == "running"))
            restarts.add_metric([process["role"]], process["restarts"])
        yield running
        yield restarts

    def _of_gateway(self) -> Iterator[Metric]:
        meter = self._meter
        yield GaugeMetricFamily("keyva_http_cache_bytes", "Decoded blocks the gateway keeps.", self._cache["cache_bytes"])
        yield CounterMetricFamily("keyva_http_cache_misses", "Blocks the gateway had to read and decode.", self._cache["cache_misses"])
        yield GaugeMetricFamily("keyva_http_streams", "Clients that listen to /api/stats/stream.", meter.streams)
        requests = CounterMetricFamily(
            "keyva_http_requests", "Requests answered since the gateway started.", labels=["route", "method", "status"]
        )
        for (route, method, status), count in sorted(meter.requests.items()):
            requests.add_metric([route, method, str(status)], count)
        yield requests
        duration = HistogramMetricFamily(
            "keyva_http_request_duration_seconds", "From a request's headers to its answer's last byte.", labels=["route", "method"]
        )
        for (route, method), buckets in sorted(meter.buckets.items()):
            total = 0
            pairs = []
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), buckets, strict=True):
                total += count
                pairs.append((bound, float(total)))
            duration.add_metric([route, method], pairs, meter.seconds[route, method])
        yield duration


def render(stats: dict[str, Any] | None, processes: list[dict[str, Any]], cache: dict[str, Any], meter: Meter) -> bytes:
    """Return the text that Prometheus scrapes. ``stats`` None: the writer did not answer."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(stats, processes, cache, meter))
    return generate_latest(registry)
