"""Every system that is installed: what its adapter does is what its name says, and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import eventually

from keyva.bench.data import key_of
from keyva.bench.machine import is_alive, scratch
from keyva.bench.runner import run_workload
from keyva.bench.system import System
from keyva.bench.systems import SYSTEMS, available, version_of, why_missing
from keyva.bench.workloads import WORKLOADS, Plan
from keyva.endpoints import running_node
from keyva.errors import ConfigError

ENTRIES = [(key_of(number), b"value %d" % number) for number in range(100)]


def installed(names: list[str]) -> list[object]:
    """Return the systems as parameters; those that cannot run here are skipped with the reason (`.ci/run` installs all)."""
    missing = {name: why_missing(SYSTEMS[name]) for name in names}
    return [pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=why)) for name, why in missing.items()]


@pytest.fixture(scope="module", params=installed(list(SYSTEMS)))
def store(request: pytest.FixtureRequest) -> Iterator[System]:
    """Yield every system with `ENTRIES` in it. In a directory with a short name, for sockets are made there."""
    with scratch(None) as directory:
        system = SYSTEMS[request.param](directory)
        pids = list(system.pids().values())
        try:
            system.write(ENTRIES)
            yield system
        finally:
            system.close()
        assert not [pid for pid in pids if is_alive(pid)]
    assert not os.path.exists(directory)


def test_reads_what_was_written(store: System) -> None:
    assert store.get(key_of(5)) == b"value 5"
    assert store.get(key_of(5) + b".") is None
    assert list(store.get_many([key_of(3), key_of(1), key_of(3) + b"."])) == [b"value 3", b"value 1", None]


def test_puts_and_deletes(store: System) -> None:
    store.put(b"other", b"1")
    store.put(b"other", b"2")
    assert store.get(b"other") == b"2"
    store.delete(b"other")
    assert store.get(b"other") is None


def test_a_pipeline_writes_every_entry(store: System) -> None:
    if type(store).pipeline is System.pipeline:
        with pytest.raises(NotImplementedError):
            store.pipeline(ENTRIES)
        return
    store.pipeline([(b"piped 1", b"a"), (b"piped 2", b"b")])
    assert list(store.get_many([b"piped 1", b"piped 2"])) == [b"a", b"b"]
    store.delete(b"piped 1")
    store.delete(b"piped 2")


def test_scans_in_key_order_and_seeks(store: System) -> None:
    if type(store).scan is System.scan:
        with pytest.raises(NotImplementedError):
            store.scan()
        return
    entries = [(bytes(key), bytes(value)) for key, value in store.scan()]
    assert entries == ENTRIES
    assert [bytes(key) for key, _ in store.scan(True)] == [key for key, _ in reversed(ENTRIES)]
    assert store.seek(key_of(50), 10) == 10
    assert store.seek(key_of(95), 10) == 5


def test_can_be_settled_and_be_quiet(store: System) -> None:
    store.quiet()
    store.settle()
    assert store.get(key_of(5)) == b"value 5"


def test_other_processes_may_use_it_where_the_adapter_says_so(store: System) -> None:
    if type(store).processes:
        found = run_workload(store, WORKLOADS["readrandom"], Plan(num=100, reads=20), processes=2)
        assert found.entries == 20
        assert store.get(key_of(7)) == b"value 7"  # still open


def test_says_its_version_and_settings(store: System) -> None:
    assert version_of(type(store))[0].isdigit()
    assert type(store).setup


def test_names_say_whether_writes_are_synced() -> None:
    unsynced = {name for name, kind in SYSTEMS.items() if not kind.sync}
    assert unsynced == {"keyva-nosync", "plyvel", "rocksdict", "diskcache", "redis-everysec"}


@pytest.mark.parametrize("name", [name for name in available() if not name.endswith(("-ipc", "-tcp", "-nosync"))])
def test_what_was_written_is_there_after_opening_again(name: str) -> None:
    with scratch(None) as directory:
        for expected in (None, b"1"):
            system = SYSTEMS[name](directory)
            try:
                assert system.get(b"a") == expected
                system.put(b"a", b"1")
            finally:
                system.close()


def test_a_missing_library_and_a_missing_program_are_named() -> None:
    class NoLibrary(System):
        module = "keyva_has_no_such_module"

    class NoProgram(System):
        program = "keyva-has-no-such-program"

    assert why_missing(NoLibrary) == "keyva_has_no_such_module is not installed"
    assert why_missing(NoProgram) == "keyva-has-no-such-program is not installed"


@pytest.mark.parametrize("ready", [False, True])
def test_a_node_that_nobody_has_closed_is_ended_before_its_directory_goes(ready: bool) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(None) as directory:
        command = [sys.executable, "-m", "keyva.workers.node", "--no-http", "--dir", os.path.join(directory, "store")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/")
        if ready:
            eventually(lambda: running_node(os.path.join(directory, "store")), "the node is ready")
        raise KeyboardInterrupt
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert not os.path.exists(directory)


def test_a_node_that_another_process_started_is_found_by_its_lock() -> None:
    with scratch(None) as directory:
        command = [sys.executable, "-m", "keyva.workers.node", "--no-http", "--dir", os.path.join(directory, "store")]
        program = (
            f"import subprocess; p = subprocess.Popen({command!r}, stdout=subprocess.PIPE, text=True); print(p.pid, p.stdout.readline())"
        )
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, timeout=60, cwd="/")
        pid = int(done.stdout.split()[0])
        assert is_alive(pid)
    assert not is_alive(pid)
    assert not os.path.exists(directory)


@pytest.mark.skipif("redis" not in available(), reason=why_missing(SYSTEMS["redis"]))
def test_redis_in_a_directory_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ConfigError, match="too long for a unix socket"):
        SYSTEMS["redis"](str(deep))
