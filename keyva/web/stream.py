"""`/api/stats/stream`: one event a second with what the page shows live, made once for all who listen, and only while somebody does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from keyva.errors import KeyvaError

from .meter import Meter, Moment, quantile
from .status import Status

__all__ = ["LISTENERS_MAX", "Stream"]

log = logging.getLogger("keyva.web")

INTERVAL_S = 1.0
LISTENERS_MAX = 100
_RATES = ("writes", "batches", "groups", "flushed_bytes", "compacted_bytes_read", "compacted_bytes_written", "wal_syncs")


class Stream:
    """Makes the events. Listeners that come while it runs get the newest one at once."""

    def __init__(self, status: Status, meter: Meter) -> None:
        self._status = status
        self._meter = meter
        self._event: bytes | None = None
        self._fresh = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._before: tuple[float, dict[str, Any] | None, Moment] | None = None

    async def events(self) -> AsyncIterator[bytes]:
        """Yield encoded events until the client goes or the gateway stops."""
        self._meter.streams += 1
        if self._task is None or self._task.done():
            self._event = self._before = None
            self._task = asyncio.create_task(self._run())
        try:
            yield b"retry: 1000\n\n"
            last = None
            while not self._stopping:
                if self._event is None or self._event is last:
                    async with self._fresh:
                        await self._fresh.wait()
                    continue
                last = self._event
                yield last
        finally:
            self._meter.streams -= 1

    async def close(self) -> None:
        """End all streams."""
        self._stopping = True
        async with self._fresh:
            self._fresh.notify_all()
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._meter.streams and not self._stopping:
            started = time.monotonic()
            try:
                data = await self._sample()
            except Exception:  # whoever listens must not wait for ever: the next one may be better
                log.exception("no figures")
                await asyncio.sleep(INTERVAL_S)
                continue
            self._event = b"event: stats\ndata: " + msgspec.json.encode(data) + b"\n\n"
            async with self._fresh:
                self._fresh.notify_all()
            await asyncio.sleep(max(0.0, INTERVAL_S - (time.monotonic() - started)))

    async def _sample(self) -> dict[str, Any]:
        stats, processes = await asyncio.gather(self._status.stats(), self._status.processes(), return_exceptions=True)
        for result in (stats, processes):
            if isinstance(result, BaseException) and not isinstance(result, KeyvaError):
                raise result
        now, moment = time.monotonic(), self._meter.moment()
        figures = stats if isinstance(stats, dict) else None
        rates: dict[str, float | None] = dict.fromkeys([*_RATES, "http_reads", "http_writes"])
        latency: dict[str, float | None] = dict.fromkeys(["read_p50_s", "read_p99_s", "write_p50_s", "write_p99_s"])
        if self._before is not None:
            then, earlier, before = self._before
            seconds = max(now - then, 1e-3)
            if figures and earlier and figures["writer_pid"] == earlier["writer_pid"]:
                rates |= {name: (figures[name] - earlier[name]) / seconds for name in _RATES}
            for name, new, old in (("read", moment.reads, before.reads), ("write", moment.writes, before.writes)):
                counts = tuple(a - b for a, b in zip(new, old, strict=True))
                rates[f"http_{name}s"] = sum(counts) / seconds
                latency |= {f"{name}_p50_s": quantile(counts, 0.5), f"{name}_p99_s": quantile(counts, 0.99)}
        self._before = (now, figures, moment)
        return {
            "time": time.time(),
            "available": figures is not None,
            "error": "" if figures is not None else str(stats),
            "rates": rates,
            "latency": latency,
            "memtable": None
            if figures is None
            else {
                "bytes": figures["memtable_bytes"],
                "entries": figures["memtable_entries"],
                "capacity_bytes": figures["write_buffer_size"],
                "immutable": figures["immutable_memtables"],
                "wal_bytes": figures["wal_bytes"],
            },
            "levels": self._levels(figures),
            "jobs": figures["jobs"] if figures else [],
            "stall": figures["stall"] if figures else None,
            "damaged": figures["damaged"] if figures else [],
            "pending_compaction_bytes": figures["pending_compaction_bytes"] if figures else None,
            "processes": processes if isinstance(processes, list) else [],
        }

    def _levels(self, figures: dict[str, Any] | None) -> list[dict[str, Any]]:
        """The tree as it is read here, which goes on without a writer, with the capacities that the writer knows."""
        capacities = {level["level"]: level["capacity_bytes"] for level in figures["levels"]} if figures else {}
        try:
            return [{**level, "capacity_bytes": capacities.get(level["level"], 0)} for level in self._status.levels()]
        except KeyvaError:
            return []
