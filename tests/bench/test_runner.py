"""Measuring: what is counted, workers side by side, and their errors."""

from __future__ import annotations

import os
import time

import psutil
import pytest
from bench.memory import Memory

from keyva.bench.keyvas import Keyva
from keyva.bench.machine import scratch
from keyva.bench.runner import Result, run_job, run_workload
from keyva.bench.workloads import WORKLOADS, Job, Plan

PLAN = Plan(num=600, batch=50, seed=3)


def test_the_time_in_which_arguments_are_made_does_not_count() -> None:
    def slow_to_make() -> object:
        for number in range(3):
            end = time.perf_counter() + 0.05
            while time.perf_counter() < end:
                pass
            yield (number,)

    result = run_job(Job(lambda _: None, slow_to_make()))  # type: ignore[arg-type]
    assert result.entries == 3 and result.seconds < 0.1


def test_percentiles_are_those_of_the_calls() -> None:
    def wait(ms: float) -> None:
        end = time.perf_counter() + ms / 1000
        while time.perf_counter() < end:
            pass

    result = run_job(Job(wait, [(1,)] * 90 + [(20,)] * 5))
    assert 1000 <= result.p50_us < 20_000 <= result.p99_us <= result.p999_us


def test_progress_adds_up_to_all_entries() -> None:
    seen: list[int] = []
    run_workload(Memory(), WORKLOADS["fillbatch"], PLAN, progress=seen.append)
    assert sum(seen) == 600


def test_a_result_of_nothing_has_no_speed() -> None:
    assert (Result(0, 0.0, 0, 0, 0).per_second, Result(0, 0.0, 0, 0, 0).us) == (0.0, 0.0)


def test_an_error_in_a_thread_is_raised() -> None:
    class Broken(Memory):
        def get(self, key: bytes) -> bytes | None:
            raise OSError("the disk is on fire")

    with pytest.raises(OSError, match="on fire"):
        run_workload(Broken(), WORKLOADS["readrandom"], PLAN, threads=2)


def test_a_system_that_cannot_be_shared_says_so() -> None:
    class Alone(Memory):
        threads = False

    with pytest.raises(NotImplementedError, match="several threads"):
        run_workload(Alone(), WORKLOADS["readrandom"], PLAN, threads=2)
    with pytest.raises(NotImplementedError, match="several processes"):
        run_workload(Memory(), WORKLOADS["readrandom"], PLAN, processes=2)


def worker_processes() -> list[int]:
    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_processes_share_a_workload_beside_a_writer_and_end() -> None:
    with scratch(None) as directory:
        store = Keyva(directory)
        try:
            filled = run_workload(store, WORKLOADS["fillbatch"], PLAN, processes=2)
            assert filled.entries == 600 == sum(1 for _ in store.scan())
            read = run_workload(store, WORKLOADS["readwhilewriting"], PLAN, processes=2)
            assert read.entries == 600 and read.seconds > 0 and read.p50_us > 0
            assert not worker_processes()
        finally:
            store.close()


def test_an_error_in_a_worker_process_is_raised_with_its_message_and_the_others_end() -> None:
    with scratch(None) as directory:
        store = Keyva(directory)
        try:
            missing = PLAN._replace(distribution="no such distribution")
            with pytest.raises(RuntimeError, match="keyva: KeyError: 'no such distribution'"):
                run_workload(store, WORKLOADS["readrandom"], missing, processes=2)
            assert not worker_processes()
        finally:
            store.close()
    assert not os.path.exists(directory)
