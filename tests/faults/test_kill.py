"""kill -9 of any process at any time: it comes back, nothing acknowledged is lost, no batch is half there, counters count once."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from nodes import RawClient, RunningNode, eventually, is_alive

import keyva
from keyva.client import node_processes
from keyva.errors import StoreLockedError
from keyva.files import FILES
from keyva.options import Options
from keyva.recovery import prepare_directory
from keyva.store import Store

BUSY = (
    "--write-buffer-size=65536",
    "--target-file-size-base=65536",
    "--max-bytes-for-level-base=131072",
    "--max-bytes-for-level-multiplier=2",
    "--block-size=1024",
    "--readers=2",
)
"""So small that flusher and compactor always have something to do."""


class Load:
    """Threads that write without pause and remember what was acknowledged."""

    BATCH_KEYS = 50

    def __init__(self, make_client: Callable[[int], keyva.Client], threads: int = 3) -> None:
        self.known: list[dict[str, str | None]] = [{} for _ in range(threads)]
        self.counted = [0] * threads
        self.maybe_counted = [0] * threads
        self.last_batch = [0] * threads
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._clients = [make_client(number) for number in range(threads)]
        self._threads = [threading.Thread(target=self._guard, args=(number,)) for number in range(threads)]

    def _guard(self, number: int) -> None:
        try:
            self._write(number)
        except BaseException as error:
            self.errors.append(error)

    def _write(self, number: int) -> None:
        rng, db, known = random.Random(number), self._clients[number], self.known[number]
        while not self._stop.is_set():
            kind = rng.random()
            if kind < 0.3:
                value = db.increment(f"counter-{number}")
                self.counted[number] += 1
                assert value == self.counted[number], "an increment happened twice or not at all"
            elif kind < 0.5:
                key, value_text = f"{number}-{rng.randrange(500)}", "x" * rng.randrange(2000)
                db.put(key, value_text)
                known[key] = value_text
                got = db.get(key)
                assert got == value_text.encode(), "an acknowledged write is not seen"
            elif kind < 0.6:
                key = f"{number}-{rng.randrange(500)}"
                db.delete(key)
                known[key] = None
            else:
                batch = self.last_batch[number] + 1
                db.put_many({f"batch-{number}-{at:02d}": f"{batch}" for at in range(self.BATCH_KEYS)})
                self.last_batch[number] = batch
                keys = [f"batch-{number}-{at:02d}" for at in range(self.BATCH_KEYS)]
                assert set(db.get_many(keys)) == {str(batch).encode()}, "half a batch"

    @property
    def writes(self) -> int:
        """How many writes were acknowledged, roughly."""
        return sum(self.counted) + sum(self.last_batch)

    def go_on(self) -> None:
        """Wait until some more writes have been acknowledged."""
        before = self.writes
        eventually(lambda: self.errors or self.writes >= before + 10, "writes go on")

    def check(self, reads: keyva.Client) -> None:
        """Compare the store with what was acknowledged; the threads have ended."""
        assert self.errors == []
        for number, known in enumerate(self.known):
            keys = list(known)
            assert dict(zip(keys, reads.get_many(keys), strict=True)) == {
                key: None if value is None else value.encode() for key, value in known.items()
            }
            assert int(reads.get(f"counter-{number}", b"0")) == self.counted[number]
            batch = dict(reads.iterator(prefix=f"batch-{number}-"))
            assert set(batch.values()) <= {str(self.last_batch[number]).encode()}
            assert len(batch) in (0, self.BATCH_KEYS)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        for client in self._clients:
            client.close()


def local_and_remote(node: RunningNode) -> Callable[[int], keyva.Client]:
    return lambda number: keyva.connect(node.endpoint) if number == 0 else keyva.open(node.directory)


def new_pid_of(node: RunningNode, role: str, before: int) -> int:
    return int(eventually(lambda: (pid := node.pid_of(role)) != before and pid, f"a new {role}"))


def wait_until_gone(family: list[psutil.Process]) -> None:
    eventually(lambda: not any(is_alive(process) for process in family), "the workers are gone", 2.0)


@pytest.mark.parametrize("role", ["writer", "flusher", "compactor", "reader-0"])
def test_a_worker_killed_again_and_again_under_writes_loses_nothing(tmp_path: Path, role: str) -> None:
    rng = random.Random(role)
    with RunningNode(tmp_path / "d", *BUSY) as node:
        with Load(local_and_remote(node)) as load:
            pid = 0
            for _ in range(4):
                load.go_on()
                pid = new_pid_of(node, role, pid)
                threading.Event().wait(rng.uniform(0, 0.1))  # any moment of its work, its start included
                os.kill(pid, signal.SIGKILL)
            load.go_on()
        with keyva.open(node.directory) as db, keyva.connect(node.endpoint) as remote:
            load.check(db)
            load.check(remote)
            db.flush()
            db.compact_range()
            load.check(db)
            assert db.stats()["damaged"] == []
        assert node.restarts_of(role) >= 4
        assert node.stop() == 0
    # with back-off: each pause longer than the last
    pauses = [float(found[1]) for line in node.log if (found := re.search(rf"{role} ended .* again in (\S+) s", line))]
    assert pauses[:4] == sorted(pauses[:4])
    assert pauses[3] > pauses[0]


def test_all_workers_killed_at_once_under_writes_lose_nothing(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d", *BUSY) as node, Load(local_and_remote(node)) as load:
        for _ in range(3):
            load.go_on()
            for role in ("writer", "flusher", "compactor", "reader-0", "reader-1"):
                os.kill(node.pid_of(role), signal.SIGKILL)
        load.go_on()
        load.__exit__()
        with keyva.open(node.directory) as db:
            load.check(db)


def background_family(directory: Path) -> list[psutil.Process]:
    """Return the node that a client started, first, and its workers, when one is ready."""

    def find() -> list[psutil.Process] | None:
        try:
            root = psutil.Process(node_processes(directory)[0]["pid"])
            return [root, *root.children(recursive=True)]
        except (keyva.UnavailableError, psutil.NoSuchProcess):
            return None

    return list(eventually(find, "a node runs"))


def test_the_node_killed_under_writes_is_recovered_by_the_next_start(tmp_path: Path) -> None:
    settings = {"write_buffer_size": 65536, "target_file_size_base": 65536, "idle_stop_s": 1.0}
    with keyva.open(tmp_path / "d", **settings) as db, Load(lambda _: keyva.open(tmp_path / "d", **settings)) as load:
        for _ in range(3):
            load.go_on()
            family = background_family(tmp_path / "d")
            family[0].kill()
            wait_until_gone(family)
        load.go_on()
        load.__exit__()
        load.check(db)
        family = background_family(tmp_path / "d")
    eventually(lambda: not any(is_alive(process) for process in family), "the node stops by itself")
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
        load.check(db)
        assert db.stats()["recovered_dropped_bytes"] == 0


def test_a_node_killed_while_it_starts_leaves_a_store_that_starts(tmp_path: Path) -> None:
    rng = random.Random(3)
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
        db.put_many({f"{number}": "x" * 100 for number in range(1000)})
        node.kill()
    for _ in range(6):
        starting = subprocess.Popen(
            [sys.executable, "-m", "keyva.workers.node", "--no-http", "--dir", str(tmp_path / "d")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        try:
            starting.wait(rng.uniform(0.1, 0.6))
        except subprocess.TimeoutExpired:
            family = psutil.Process(starting.pid).children(recursive=True)
            starting.kill()
            starting.wait()
            wait_until_gone(family)
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
        assert len(list(db.iterator())) == 1000


def test_a_stopped_writer_dies_with_its_node_and_never_writes_again(tmp_path: Path) -> None:
    node = RunningNode(tmp_path / "d")
    try:
        writer = psutil.Process(node.pid_of("writer"))
        with keyva.connect(node.endpoint) as db:
            db.put("a", "1")
        writer.send_signal(signal.SIGSTOP)
        node.kill()
        eventually(lambda: not is_alive(writer), "the stopped writer is gone", 2.0)
    finally:
        node.__exit__()
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
        assert db.get("a") == b"1"


def test_a_hanging_writer_is_killed_before_another_one_writes(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d", "--heartbeat-timeout-s=2", "--heartbeat-interval-s=0.2") as node, RawClient(node.endpoint) as raw:
        pid = node.pid_of("writer")
        assert raw.ask("hello")["pid"] == pid
        os.kill(pid, signal.SIGSTOP)
        raw.send("increment", b"\x92\xc4\x01n\x01")  # waits in the sleeping writer's socket and is lost with it
        eventually(lambda: not psutil.pid_exists(pid), "the sleeper is killed")
        with keyva.open(node.directory) as db:
            assert db.increment("n") == 1
            assert db.stats()["writer_pid"] != pid
        assert any("no life" in line for line in node.log)


def test_a_second_writer_of_a_directory_is_refused(tmp_path: Path) -> None:
    directory = str(tmp_path / "d")
    prepare_directory(directory, FILES)
    store = Store(directory, Options())
    try:
        with pytest.raises(StoreLockedError, match=str(os.getpid())):
            Store(directory, Options())
        done = subprocess.run(
            [sys.executable, "-m", "keyva.workers.node", "--no-http", "--dir", directory],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            check=False,
        )
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("keyva-node: ")]
        assert f"written to by process {os.getpid()}" in line
        assert "5 tries" in line
    finally:
        store.close()


def test_a_write_under_way_when_its_node_is_lost_for_good_has_an_unknown_outcome(tmp_path: Path) -> None:
    with keyva.open(tmp_path / "d") as db, ThreadPoolExecutor(1) as pool:
        db.put("a", "1")
        family = background_family(tmp_path / "d")
        writer = psutil.Process(int(db.stats()["writer_pid"]))
        writer.send_signal(signal.SIGSTOP)
        write = pool.submit(db.put, "b", "2")
        with pytest.raises(TimeoutError):
            write.result(0.3)  # sent, and perhaps written
        (tmp_path / "d" / "MANIFEST").write_bytes(b"damaged")
        family[0].kill()
        with pytest.raises(keyva.OutcomeUnknownError, match=r"MANIFEST.*may or may not"):
            write.result(30)
        assert db.get("a") == b"1"  # what has been read can still be
        wait_until_gone(family)
