"""The table of goals: what a row says, and that every row can be measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keyva.bench.rounds import FILLED, SMALL
from keyva.bench.systems import SYSTEMS, available
from keyva.bench.table import ROWS, Row, RowResult, hardest, measure_rows, named
from keyva.bench.workloads import Plan


def result(peer: str, ratio: float, goal: float) -> RowResult:
    return RowResult("a row", peer, ratio, 1.0, "entries/s", ratio, goal, [(ratio, 1.0)])


def test_rows_name_systems_and_figures_that_exist() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert set(row.systems) <= set(SYSTEMS)
        assert row.figure in FILLED | set(SMALL) | {"start", "memory empty"}
        assert bool(row.peers) != bool(row.limit)


def test_rows_of_durable_writes_are_beside_peers_that_sync_unless_they_say_otherwise() -> None:
    for row in ROWS:
        if row.figure in ("fillbatch", "until quiet", *SMALL):
            assert all(SYSTEMS[name].sync for name in row.systems) or "not synced" in row.name


def test_more_is_better_in_every_unit() -> None:
    assert Row("speed", "put").ratio(20, 10) == 2
    assert Row("time", "start", unit="s").ratio(0.1, 0.5) == 5
    assert Row("bytes", "memory", unit="MB").ratio(100, 400) == 4


def test_the_hardest_peer_is_the_one_farthest_from_its_goal() -> None:
    near, far = result("lmdb", 0.9, 1.0), result("plyvel", 1.2, 2.0)
    assert hardest([near, far]) == [far] and hardest([far, near]) == [far]
    assert not far.reached and result("plyvel", 2.0, 2.0).reached


def test_every_row_is_measured_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALL, "put by 16", ("fillsync", 2))  # to start 16 Pythons takes seconds
    said: list[str] = []
    results, left_out = measure_rows(ROWS, Plan(num=300), 1, "/tmp" if len(str(tmp_path)) > 60 else str(tmp_path), 1 << 20, said.append)
    here = available()
    expected = [(row.name, peer) for row in ROWS for peer in ([name for name, _ in row.peers if name in here] if row.peers else [""])]
    assert [(found.row, found.peer) for found in results] == expected
    assert len(left_out) == sum(name not in here for row in ROWS for name in row.systems)
    for found in results:
        assert found.ours > 0 and found.theirs > 0 and len(found.rounds) == 1
        (pair,) = found.rounds
        assert pair == (found.ours, found.theirs)
        assert found.ratio == pytest.approx(pair[1] / pair[0] if found.unit in ("s", "MB") else pair[0] / pair[1])
    assert said and os.listdir(tmp_path) == []


def test_rows_are_chosen_by_a_part_of_their_name() -> None:
    assert [row.name for row in named(["readseq", "empty store"])] == ["readseq", "ready, empty store"]
    assert named([]) == list(ROWS)
