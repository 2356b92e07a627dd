"""Pictures of a report: one chart per workload, one of all ratios, or the curves of growth. Needs matplotlib (extra ``plot``)."""

from __future__ import annotations

import os
from typing import Annotated, Any

import msgspec

from keyva.errors import ConfigError, InvalidArgumentError

__all__ = ["plot_file"]


CURVES = (
    "fill_us", "settle_s", "get_us", "absent_us", "scan_us", "bytes_written_per_byte_given", "bytes_kept_per_byte_given",
    "bytes_read_per_get", "memory_bytes", "start_s", "recovery_s",
)  # fmt: skip
"""The costs that are drawn over the number of entries."""


class _Round(msgspec.Struct):
    per_second: float
    p50_us: float
    p99_us: float
    p999_us: float


class _Measured(msgspec.Struct):
    workload: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]+$")]
    """Becomes the name of a file."""

    system: str
    rounds: Annotated[list[_Round], msgspec.Meta(min_length=1)]


class _Row(msgspec.Struct):
    row: str
    peer: str
    ratio: float
    goal: float
    reached: bool


_Point = msgspec.defstruct("_Point", [("system", str), ("entries", int), *((name, float | None) for name in CURVES)])


class _Report(msgspec.Struct):
    """What is drawn of a report; each command writes one of the three."""

    measurements: list[_Measured] = []
    points: list[_Point] = []  # type: ignore[valid-type]
    rows: list[_Row] = []


def plot_file(path: str, target: str) -> list[str]:
    """Draw the report in ``path`` into directory ``target``; returns the files made. Raises `InvalidArgumentError` or `ConfigError`."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'keyva[plot]'") from None
    mpl.use("Agg")
    with open(path, "rb") as file:
        data = file.read()
    try:
        report = msgspec.json.decode(data, type=_Report)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(f"{path} is no report of keyva-bench: {error}") from None
    os.makedirs(target, exist_ok=True)
    if report.measurements:
        return _bars(report.measurements, target)
    if report.points:
        return _curves(report.points, target)
    if report.rows:
        return _ratios(report.rows, target)
    raise InvalidArgumentError(f"{path} holds no measurements (of run), rows (of table) or points (of measure)")


def _bars(measurements: list[_Measured], target: str) -> list[str]:
    from matplotlib import pyplot

    made = []
    for name in dict.fromkeys(found.workload for found in measurements):
        mine = [found for found in measurements if found.workload == name]
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 0.6 * len(mine) + 1.5), layout="constrained")
        labels = [found.system for found in mine]
        left.barh(labels, [_median(found, "per_second") for found in mine])
        left.set_xlabel("entries per second (median)")
        for at, label in enumerate(("p50_us", "p99_us", "p999_us")):
            right.plot([_median(found, label) for found in mine], labels, "o", label=("p50", "p99", "p99.9")[at])
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


def _median(found: _Measured, field: str) -> float:
    values: list[float] = sorted(getattr(one, field) for one in found.rounds)
    return values[len(values) // 2]


def _curves(points: list[Any], target: str) -> list[str]:
    from matplotlib import pyplot

    made = []
    for field in CURVES:
        figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for system in dict.fromkeys(point.system for point in points):
            mine = [point for point in points if point.system == system]
            known = [point for point in mine if getattr(point, field) is not None]
            if known:
                axis.plot([point.entries for point in known], [getattr(point, field) for point in known], "o-", label=system)
        axis.set_xscale("log")
        axis.set_xlabel("entries")
        axis.set_ylabel(field.replace("_", " "))
        if axis.get_lines():
            axis.legend()
        made.append(os.path.join(target, f"growth-{field}.png"))
        figure.savefig(made[-1])
        pyplot.close(figure)
    return made


def _ratios(rows: list[_Row], target: str) -> list[str]:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 0.3 * len(rows) + 1.5), layout="constrained")
    labels = [f"{row.row}: {row.peer or 'limit'}" for row in rows]
    places = range(len(rows))
    axis.barh(places, [row.ratio for row in rows], color=["tab:green" if row.reached else "tab:red" for row in rows])
    axis.plot([row.goal for row in rows], places, "k|", markersize=12, label="goal")
    axis.set_yticks(places, labels, fontsize="small")
    axis.set_xscale("log")
    axis.set_xlabel("ratio to the peer (more is better)")
    axis.invert_yaxis()
    axis.legend()
    path = os.path.join(target, "table.png")
    figure.savefig(path)
    pyplot.close(figure)
    return [path]
