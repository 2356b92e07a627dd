"""What each workload asks of a store."""

from __future__ import annotations

from collections import Counter

import pytest
from bench.memory import Memory

from keyva.bench.data import key_of
from keyva.bench.runner import run_workload
from keyva.bench.workloads import WORKLOADS, Plan

PLAN = Plan(num=1000, batch=100, seed=7)

MIXES = {
    "ycsb-a": {"get": 0.5, "put": 0.5},
    "ycsb-b": {"get": 0.95, "put": 0.05},
    "ycsb-c": {"get": 1.0},
    "ycsb-d": {"get": 0.95, "put": 0.05},
    "ycsb-e": {"seek": 0.95, "put": 0.05},
    "ycsb-f": {"get": 2 / 3, "put": 1 / 3},  # every call reads, half of them write too
}


def filled(plan: Plan = PLAN) -> Memory:
    store = Memory()
    run_workload(store, WORKLOADS["fillbatch"], plan)
    store.calls.clear()
    return store


def keys_of(store: Memory, call: str) -> list[bytes]:
    return [what[1] for what in store.calls if what[0] == call]


@pytest.mark.parametrize("name", ["fillseq", "fillrandom", "fillbatch", "fillpipeline"])
@pytest.mark.parametrize("workers", [1, 3])
def test_filling_writes_every_entry_once(name: str, workers: int) -> None:
    store = Memory()
    result = run_workload(store, WORKLOADS[name], PLAN, threads=workers)
    assert list(store.entries) == [key_of(number) for number in range(1000)]
    assert {len(value) for value in store.entries.values()} == {100}
    assert result.entries == 1000
    if name in ("fillseq", "fillrandom"):
        assert len(store.calls) == 1000
        if workers == 1:
            assert (keys_of(store, "put") == sorted(keys_of(store, "put"))) == (name == "fillseq")
    elif workers == 1:
        assert store.calls == [("write", 100)] * 10


def test_fillsync_writes_a_hundredth() -> None:
    store = Memory()
    assert run_workload(store, WORKLOADS["fillsync"], PLAN).entries == len(store.entries) == 10


@pytest.mark.parametrize("distribution", ["uniform", "zipfian", "latest"])
def test_readrandom_reads_keys_that_are_there(distribution: str) -> None:
    store = filled()
    run_workload(store, WORKLOADS["readrandom"], PLAN._replace(distribution=distribution))
    assert len(store.calls) == 1000 and set(keys_of(store, "get")) <= set(store.entries)


def test_reads_says_how_many_calls_of_all_workers_together() -> None:
    store = filled()
    assert run_workload(store, WORKLOADS["readrandom"], PLAN._replace(reads=70), threads=3).entries == 70


def test_readmissing_reads_keys_that_are_not_there_but_between_those_that_are() -> None:
    store = filled()
    run_workload(store, WORKLOADS["readmissing"], PLAN)
    keys = set(keys_of(store, "get"))
    assert keys and not keys & set(store.entries)
    assert min(store.entries) < min(keys)


def test_readhot_reads_one_percent_of_the_keys() -> None:
    store = filled()
    run_workload(store, WORKLOADS["readhot"], PLAN)
    assert set(keys_of(store, "get")) <= {key_of(number) for number in range(10)}


def test_readmany_reads_in_calls_of_a_batch() -> None:
    store = filled()
    result = run_workload(store, WORKLOADS["readmany"], PLAN._replace(reads=250))
    assert result.entries == 250 == len(keys_of(store, "get"))


@pytest.mark.parametrize("name", ["readseq", "readreverse"])
def test_walks_meet_every_entry(name: str) -> None:
    assert run_workload(filled(), WORKLOADS[name], PLAN).entries == 1000


def test_seekrandom_makes_a_tenth_of_the_calls() -> None:
    store = filled()
    run_workload(store, WORKLOADS["seekrandom"], PLAN)
    assert len(store.calls) == 100 and {call[2] for call in store.calls} == {10}


def test_overwrite_and_deleterandom_stay_among_the_keys() -> None:
    store = filled()
    run_workload(store, WORKLOADS["overwrite"], PLAN)
    assert len(store.entries) == 1000 and len(keys_of(store, "put")) == 1000
    run_workload(store, WORKLOADS["deleterandom"], PLAN)
    assert len(store.entries) == 1000 - len(set(keys_of(store, "delete")))


def test_readwhilewriting_writes_while_it_reads() -> None:
    store = filled()
    result = run_workload(store, WORKLOADS["readwhilewriting"], PLAN, threads=2)
    assert result.entries == 1000 == len(keys_of(store, "get"))
    assert set(keys_of(store, "put")) <= set(store.entries) and len(store.entries) == 1000


@pytest.mark.parametrize("name", sorted(MIXES))
def test_ycsb_mixes_its_calls_as_the_paper_says(name: str) -> None:
    plan = PLAN._replace(reads=20_000)
    store = filled()
    assert run_workload(store, WORKLOADS[name], plan).entries == 20_000
    counts = Counter(call[0] for call in store.calls)
    for call, share in MIXES[name].items():
        assert counts[call] / counts.total() == pytest.approx(share, abs=0.02)
    assert set(counts) == set(MIXES[name])
    inserts = [key for key in keys_of(store, "put") if key >= key_of(1000)]
    if name in ("ycsb-d", "ycsb-e"):
        assert inserts == keys_of(store, "put") and len(set(inserts)) == len(inserts)
    else:
        assert not inserts and len(store.entries) == 1000
    if name == "ycsb-e":
        assert {call[2] for call in store.calls if call[0] == "seek"} == set(range(1, 101))


@pytest.mark.parametrize("name", ["ycsb-d", "ycsb-e"])
def test_ycsb_reads_what_it_inserted_and_nothing_else(name: str) -> None:
    store = filled()
    run_workload(store, WORKLOADS[name], PLAN._replace(reads=5000))
    there = {key_of(number) for number in range(1000)}
    read_new = 0
    for call in store.calls:
        if call[0] == "put":
            there.add(call[1])
        else:
            assert call[1] in there
            read_new += call[1] >= key_of(1000)
    assert read_new


def test_ycsb_workers_insert_different_keys() -> None:
    store = filled()
    run_workload(store, WORKLOADS["ycsb-d"], PLAN._replace(reads=2000), threads=3)
    assert len(keys_of(store, "put")) == len(set(keys_of(store, "put"))) == len(store.entries) - 1000


@pytest.mark.parametrize("name", sorted(name for name, workload in WORKLOADS.items() if not workload.writes_beside))
def test_the_same_seed_makes_the_same_calls(name: str) -> None:
    # not beside a writer: how much that writes is up to the clock
    calls = []
    for _ in range(2):
        store = filled()
        run_workload(store, WORKLOADS[name], PLAN)
        calls.append(store.calls)
    assert calls[0] == calls[1]
