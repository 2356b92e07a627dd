"""What a run found, as rows, and rows as text, Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from keyva.bench.runner import Result

__all__ = ["Measurement", "compare_rows", "markdown", "plain"]


class Measurement:
    """All rounds of one workload on one system."""

    def __init__(self, workload: str, system: str, setup: str) -> None:
        self.workload = workload
        self.system = system
        self.setup = setup
        self.results: list[Result] = []

    @property
    def per_second(self) -> float:
        """Median over the rounds, entries per second."""
        return statistics.median(result.per_second for result in self.results)

    def ratio_to(self, other: Measurement) -> float:
        """Median of the ratios round by round: above 1 when this one is faster."""
        return statistics.median(mine.per_second / its.per_second for mine, its in zip(self.results, other.results, strict=True))

    def median(self, name: str) -> float:
        """Median over the rounds of one figure of `Result`."""
        return float(statistics.median(getattr(result, name) for result in self.results))

    def as_json(self) -> dict[str, Any]:
        """Return all rounds as plain data."""
        rounds = [
            {
                "entries": r.entries,
                "seconds": r.seconds,
                "per_second": r.per_second,
                "p50_us": r.p50_us,
                "p99_us": r.p99_us,
                "p999_us": r.p999_us,
            }
            for r in self.results
        ]
        return {"workload": self.workload, "system": self.system, "setup": self.setup, "rounds": rounds}


def compare_rows(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Return rows of text, a workload's systems one below the other, with the ratio of the first system to each."""
    rows = []
    first: dict[str, Measurement] = {}
    for found in measurements:
        base = first.setdefault(found.workload, found)
        ratio = "" if found is base else f"{base.ratio_to(found):.2f}"
        latency = [_figure(found.median(name)) for name in ("p50_us", "p99_us", "p999_us")]
        rows.append([found.workload, found.system, f"{found.per_second:,.0f}", _figure(found.median("us")), *latency, ratio])
    return rows


def _figure(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


COLUMNS = ["workload", "system", "entries/s", "us/entry", "p50 us", "p99 us", "p99.9 us", "ratio"]


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in aligned columns, numbers to the right."""
    widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]
    lines = []
    for row in [columns, *rows]:
        cells = [cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
