"""docs/benchmarks.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from keyva.bench.amplification import GROWTH_COLUMNS
from keyva.bench.data import DISTRIBUTIONS
from keyva.bench.report import COLUMNS
from keyva.bench.systems import SYSTEMS
from keyva.bench.workloads import WORKLOADS

TEXT = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()


def test_every_workload_system_and_distribution_is_explained_and_none_that_is_not_there() -> None:
    first_cells = {word for cell in re.findall(r"^\| ([^|]+) \|", TEXT, re.MULTILINE) for word in cell.split(", ")}
    assert set(WORKLOADS) | set(SYSTEMS) | set(DISTRIBUTIONS) <= first_cells
    named = set(re.findall(r"\b(?:ycsb-\w|fill\w+|read\w+|keyva-(?:nosync|ipc|tcp)|redis-(?:tcp|everysec))\b", TEXT))
    assert {name for name in named if name.startswith(("ycsb", "keyva-", "redis-"))} <= {*WORKLOADS, *SYSTEMS}


def test_every_column_is_explained() -> None:
    for column in [*GROWTH_COLUMNS, *COLUMNS]:
        assert re.search(rf"\b{re.escape(column.removesuffix(' us'))}\b", TEXT), column
