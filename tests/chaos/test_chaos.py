"""Writers at changing speeds while processes are killed: every acknowledged write is there at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nodes import eventually, is_alive

import keyva
from keyva.client import node_processes

SETTINGS = Path(__file__).with_name("settings.json")
SECONDS = float(os.environ.get("KEYVA_CHAOS_SECONDS", "15"))
WRITERS = 4


@pytest.mark.timeout(240 + 2 * SECONDS)
def test_every_acknowledged_write_survives_processes_being_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("KEYVA_CHAOS_SEED", str(random.randrange(2**31))))
    print(f"KEYVA_CHAOS_SEED={seed} KEYVA_CHAOS_SECONDS={SECONDS:g}")
    rng = random.Random(seed)
    directory, stop_file = str(tmp_path / "store"), str(tmp_path / "stop")
    db = keyva.open(directory, **json.loads(SETTINGS.read_text()))
    endpoint = f"ipc://{directory}/run/writer"
    writers = []
    for number in range(WRITERS):
        arguments = [directory, str(seed + number), stop_file, endpoint if number == WRITERS - 1 else ""]
        writers.append(
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("chaos_writer.py")), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    kills: dict[str, int] = {}
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.05, 1.0))
            try:
                processes = node_processes(directory)
            except keyva.KeyvaError:
                continue  # the node was killed and is being started by a client
            victim = processes[0] if rng.random() < 0.12 else rng.choice(processes[1:])
            if victim["pid"]:
                try:
                    os.kill(victim["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills[victim["role"]] = kills.get(victim["role"], 0) + 1
    finally:
        Path(stop_file).touch()
        outputs = [writer.communicate(timeout=90) for writer in writers]
    print("killed:", kills)
    for writer, (_, stderr) in zip(writers, outputs, strict=True):
        assert writer.returncode == 0, stderr
    results = [json.loads(stdout) for stdout, _ in outputs]
    remote = keyva.connect(endpoint)
    for reads in (db, remote):
        for result in results:
            assert result["errors"] == []
            keys = list(result["known"])
            for key, got in zip(keys, reads.get_many(keys), strict=True):
                value = got.decode() if got is not None else None
                assert value in result["known"][key], (key, value, result["known"][key])
            low, maybe = result["counter"]
            assert low <= int(reads.get(f"counter-{result['seed']}", b"0")) <= low + maybe
            for slot in range(50):
                values = set(reads.get_many([f"{result['seed']}-batch-{slot}-{number}" for number in range(100)]))
                assert len(values) == 1, "half a batch"
    numbers = sorted(number for result in results for number in result["numbers"])
    assert len(set(numbers)) == len(numbers), "a number of the sequence was given twice"
    missing = db.sequence_next("shared by all") - len(numbers)
    assert 0 <= missing <= sum(result["numbers_maybe"] for result in results), "a number of the sequence was lost"
    assert sum(len(result["known"]) for result in results) > 100
    everything = dict(db.iterator())
    assert everything == dict(remote.iterator())
    db.flush()
    db.compact_range()
    assert dict(db.iterator()) == everything
    assert db.stats()["damaged"] == []
    remote.close()
    processes = node_processes(directory)
    db.close()
    left = [psutil.Process(process["pid"]) for process in processes if psutil.pid_exists(process["pid"])]
    eventually(lambda: not any(is_alive(process) for process in left), "the node stops when its last client has gone")
