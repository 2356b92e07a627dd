"""The project's goals, row by row: keyva beside the peers that are named for the row.

A `Row` compares one figure of `keyva.bench.rounds` over systems, round by round. Where two systems differ in what they promise, the row
says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keyva.bench.rounds import Figures, Round
from keyva.bench.systems import SYSTEMS, available, why_missing
from keyva.bench.workloads import Plan

__all__ = ["COLUMNS", "ROWS", "Row", "RowResult", "hardest", "measure_rows", "named"]


class Row(NamedTuple):
    """``ours`` beside ``peers``, with the ratio to reach for each, or beside a fixed ``limit``."""

    name: str
    figure: str
    peers: tuple[tuple[str, float], ...] = ()
    ours: str = "keyva"
    unit: str = "entries/s"
    limit: float = 0.0

    @property
    def systems(self) -> list[str]:
        """All systems of the row, ours first."""
        return [self.ours, *(name for name, _ in self.peers)]

    def ratio(self, ours: float, theirs: float) -> float:
        """Return how many times better ours is: faster, quicker or smaller."""
        return ours / theirs if self.unit.endswith("/s") else theirs / ours


ROWS = (
    Row("fillbatch of 1000, durable (peers not synced)", "fillbatch", (("rocksdict", 2.0), ("plyvel", 2.0))),
    Row("fillbatch of 1000, durable", "fillbatch", (("redis", 3.0), ("lmdb", 3.0), ("sqlite", 3.0))),
    Row("fillrandom sustained, until quiet (rocksdict not synced)", "until quiet", (("rocksdict", 1.0),)),
    Row("put, one at a time, durable, 1 client", "put", (("redis", 1.0),)),
    Row("put, one at a time, durable, 16 client processes", "put by 16", (("redis", 1.5),)),
    Row("put, pipelined by 1000, durable", "pipeline", (("redis", 3.0),)),
    Row("get, local, hot keys (zipfian)", "readhot", (("lmdb", 1.0), ("rocksdict", 2.0), ("plyvel", 2.0))),
    Row("get, local, zipfian, default cache, cold", "readzipfian", (("lmdb", 1.0), ("rocksdict", 2.0), ("plyvel", 2.0))),
    Row("get, local, uniform, data 10x the cache", "read 10x", (("rocksdict", 1.0), ("plyvel", 1.0))),
    Row("get, local, absent key", "readmissing", (("plyvel", 1.3), ("rocksdict", 1.3))),
    Row("get_many of 1000, local", "readmany", (("rocksdict", 1.5),)),
    Row("get_many of 1000, over tcp", "readmany", (("redis-tcp", 1.0),), ours="keyva-tcp"),
    Row("get, remote, one at a time, tcp", "readrandom", (("redis-tcp", 0.9),), ours="keyva-tcp"),
    Row("get, remote, one at a time, unix socket", "readrandom", (("redis", 0.9),), ours="keyva-ipc"),
    Row("readseq", "readseq", (("plyvel", 2.0), ("rocksdict", 2.0), ("lmdb", 1.0))),
    Row("readreverse", "readreverse", (("plyvel", 2.0), ("rocksdict", 2.0), ("lmdb", 1.0))),
    Row("readwhilewriting, 4 reader processes", "readwhilewriting", (("lmdb", 1.0), ("redis", 3.0))),
    Row("ready after kill, all data and a full log", "restart", (("redis", 3.0),), unit="s"),
    Row("ready, empty store", "start", unit="s", limit=0.5),
    Row("memory (PSS) of all processes, all stored, quiet", "memory", (("redis", 4.0),), unit="MB"),
    Row("memory (PSS) of all processes, nothing stored", "memory empty", unit="MB", limit=150.0),
)
"""The goal of a row is the ratio to reach; "<= 0.25x" is 4 here."""

COLUMNS = ["row", "best peer", "keyva", "peer's", "unit", "ratio", "goal", "reached"]


class RowResult(NamedTuple):
    """One row beside one peer ("": a fixed limit). ``ours`` and ``theirs`` are medians; ``ratio`` is the median of the rounds' ratios."""

    row: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    goal: float
    rounds: list[tuple[float, float]]

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return self.ratio >= self.goal

    def cells(self) -> list[str]:
        """Return the result as text."""
        figures = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (self.ours, self.theirs)]
        peer = self.peer or "(limit)"
        return [self.row, peer, *figures, self.unit, f"{self.ratio:.2f}", f">= {self.goal:g}", "yes" if self.reached else "NO"]

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {**self._asdict(), "reached": self.reached}


def named(only: Sequence[str]) -> list[Row]:
    """Return the rows whose name contains one of the texts, all rows for none."""
    return [row for row in ROWS if not only or any(text in row.name for text in only)]


def measure_rows(
    rows: Sequence[Row], plan: Plan, rounds: int, parent: str, cache_bytes: int, say: Callable[[str], None]
) -> tuple[list[RowResult], dict[str, str]]:
    """Measure ``rows``; returns a result for each row and peer, and what was left out with the reason."""
    here = available()
    wanted: dict[str, set[str]] = {}
    for row in rows:
        wanted.setdefault(row.figure, set()).update(name for name in row.systems if name in here)
    figures = []
    for number in range(rounds):
        one = Round(wanted, plan, parent, cache_bytes, lambda text, number=number: say(f"round {number + 1}/{rounds}  {text}"))  # type: ignore[misc]
        figures.append(one.measure())
    left_out = {f"{row.name}: {name}": why_missing(SYSTEMS[name]) for row in rows for name in row.systems if name not in here}
    return [result for row in rows if row.ours in here for result in _results(row, figures, here)], left_out


def _results(row: Row, figures: list[Figures], here: dict[str, Any]) -> list[RowResult]:
    if row.limit:
        pairs = {("", 1.0): [(found[row.figure, row.ours], row.limit) for found in figures]}
    else:
        pairs = {
            (peer, goal): [(found[row.figure, row.ours], found[row.figure, peer]) for found in figures]
            for peer, goal in row.peers
            if peer in here
        }
    results = []
    for (peer, goal), values in pairs.items():
        ours, theirs = (statistics.median(pair[at] for pair in values) for at in (0, 1))
        results.append(
            RowResult(row.name, peer, ours, theirs, row.unit, statistics.median(row.ratio(*pair) for pair in values), goal, values)
        )
    return results


def hardest(results: Sequence[RowResult]) -> list[RowResult]:
    """Return for each row the result beside the peer that is hardest to reach: the least ratio to its goal."""
    found: dict[str, RowResult] = {}
    for result in results:
        best = found.setdefault(result.row, result)
        if result.ratio / result.goal < best.ratio / best.goal:
            found[result.row] = result
    return list(found.values())
