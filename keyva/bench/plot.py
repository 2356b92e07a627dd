"""Pictures of a report: one chart per workload, one of all ratios, or the curves of growth. Needs matplotlib (extra ``plot``)."""

from __future__ import annotations

import json
import os
from typing import Any

from keyva.errors import ConfigError, InvalidArgumentError

__all__ = ["plot_file"]


CURVES = (
    "fill_us", "settle_s", "get_us", "absent_us", "scan_us", "bytes_written_per_byte_given", "bytes_kept_per_byte_given",
    "bytes_read_per_get", "memory_bytes", "start_s", "recovery_s",
)  # fmt: skip
"""The costs that are drawn over the number of entries."""


def plot_file(path: str, target: str) -> list[str]:
    """Draw the report in ``path`` into directory ``target``; returns the files made. Raises `InvalidArgumentError` or `ConfigError`."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'keyva[plot]'") from None
    mpl.use("Agg")
    with open(path) as file:
        try:
            report = json.load(file)
        except ValueError as error:
            raise InvalidArgumentError(f"{path} is no report of keyva-bench: {error}") from None
    os.makedirs(target, exist_ok=True)
    if isinstance(report, dict) and "measurements" in report:
        return _bars(report["measurements"], target)
    if isinstance(report, dict) and "points" in report:
        return _curves(report["points"], target)
    if isinstance(report, dict) and "rows" in report:
        return _ratios(report["rows"], target)
    raise InvalidArgumentError(f"{path} holds no measurements (of run), rows (of table) or points (of measure)")


def _bars(measurements: list[dict[str, Any]], target: str) -> list[str]:
    from matplotlib import pyplot

    made = []
    for name in dict.fromkeys(found["workload"] for found in measurements):
        mine = [found for found in measurements if found["workload"] == name]
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 0.6 * len(mine) + 1.5), layout="constrained")
        labels = [found["system"] for found in mine]
        medians = [sorted(r["per_second"] for r in found["rounds"])[len(found["rounds"]) // 2] for found in mine]
        left.barh(labels, medians)
        left.set_xlabel("entries per second (median)")
        for at, label in enumerate(("p50_us", "p99_us", "p999_us")):
            values = [sorted(r[label] for r in found["rounds"])[len(found["rounds"]) // 2] for found in mine]
            right.plot(values, labels, "o", label=("p50", "p99", "p99.9")[at])
        right.set_xscale("log")
        right.set_xlabel("latency of a call, us (median of rounds)")
        right.legend()
        for axis in (left, right):
            axis.invert_yaxis()
        figure.suptitle(name)
        made.append(os.path.join(target, f"{name}.png"))
        figure.savefig(made[-1])
        pyplot.close(figure)
    return made


def _curves(points: list[dict[str, Any]], target: str) -> list[str]:
    from matplotlib import pyplot

    made = []
    for field in CURVES:
        figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for system in dict.fromkeys(point["system"] for point in points):
            mine = [point for point in points if point["system"] == system]
            known = [point for point in mine if point[field] is not None]
            if known:
                axis.plot([point["entries"] for point in known], [point[field] for point in known], "o-", label=system)
        axis.set_xscale("log")
        axis.set_xlabel("entries")
        axis.set_ylabel(field.replace("_", " "))
        if axis.get_lines():
            axis.legend()
        made.append(os.path.join(target, f"growth-{field}.png"))
        figure.savefig(made[-1])
        pyplot.close(figure)
    return made


def _ratios(rows: list[dict[str, Any]], target: str) -> list[str]:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 0.3 * len(rows) + 1.5), layout="constrained")
    labels = [f"{row['row']}: {row['peer'] or 'limit'}" for row in rows]
    places = range(len(rows))
    axis.barh(places, [row["ratio"] for row in rows], color=["tab:green" if row["reached"] else "tab:red" for row in rows])
    axis.plot([row["goal"] for row in rows], places, "k|", markersize=12, label="goal")
    axis.set_yticks(places, labels, fontsize="small")
    axis.set_xscale("log")
    axis.set_xlabel("ratio to the peer (more is better)")
    axis.invert_yaxis()
    axis.legend()
    path = os.path.join(target, "table.png")
    figure.savefig(path)
    pyplot.close(figure)
    return [path]
