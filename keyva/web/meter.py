"""What the gateway counts about itself: requests by route, method and status, and how long they took. No locks: one event loop."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

__all__ = ["BOUNDS_S", "Meter", "Moment", "quantile"]

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the histogram's buckets, in seconds; one more holds the rest."""


class Moment(NamedTuple):
    """Counts up to now, to take differences of. ``reads`` and ``writes`` are the histograms of /kv."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Meter:
    """Counters of one gateway process."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.buckets: dict[tuple[str, str], list[int]] = {}
        self.seconds: dict[tuple[str, str], float] = {}
        self.streams = 0

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request. Hot."""
        key = (route, method, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        kind = (route, method)
        buckets = self.buckets.get(kind)
        if buckets is None:
            buckets = self.buckets[kind] = [0] * (len(BOUNDS_S) + 1)
            self.seconds[kind] = 0.0
        buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds[kind] += seconds

    def moment(self) -> Moment:
        """Return the counts of reads and writes of keys."""
        return Moment(self._sum("GET", "HEAD"), self._sum("PUT", "POST", "DELETE"))

    def _sum(self, *methods: str) -> tuple[int, ...]:
        parts = [self.buckets[kind] for method in methods if (kind := ("/kv", method)) in self.buckets]
        return tuple(map(sum, zip(*parts, strict=True))) if parts else (0,) * (len(BOUNDS_S) + 1)


def quantile(counts: tuple[int, ...], share: float) -> float | None:
    """Return the upper bound, in seconds, of the bucket where ``share`` of the counts is reached; None without counts."""
    total = sum(counts)
    if total == 0:
        return None
    left = share * total
    for number, count in enumerate(counts):
        left -= count
        if left <= 0:
            return BOUNDS_S[min(number, len(BOUNDS_S) - 1)]
    return BOUNDS_S[-1]
