"""Flusher and compactor as processes: what they ask for, what they make of jobs and of nonsense, and dying in the middle of one."""

from __future__ import annotations

import os
import random
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zmq
from keyva.workers.base import Spec, run_worker
from multiprocess import get_context
from nodes import RunningNode, eventually

import keyva
from keyva.endpoints import Endpoints
from keyva.files import FILES
from keyva.jobs import FlushJob, JobResult, RemoveJob, decode_result
from keyva.jobs import encode as encode_job
from keyva.manifest import load_manifest
from keyva.options import Options
from keyva.protocol import ERROR, OK, PROTOCOL_VERSION, Request, Response, decode_body, decode_request, encode
from keyva.store import Store, WriteRequest


class FlusherProcess:
    """A real flusher whose writer and node are the test."""

    def __init__(self, directory: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoints = Endpoints(writer="", jobs=f"ipc://{directory}/run/jobs", control=f"ipc://{directory}/run/control", readers=())
        self.jobs, self.control = self._bind(endpoints.jobs), self._bind(endpoints.control)
        spec = Spec(role="flusher", directory=directory, options=Options(heartbeat_interval_s=0.1), endpoints=endpoints)
        self.process = get_context("spawn").Process(target=run_worker, args=(msgspec.msgpack.encode(spec),), daemon=True)
        self.process.start()
        self.peer = b""

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(endpoint)
        return socket

    def take(self, op: str) -> bytes:
        """Return the body of the next message with this op."""
        while self.jobs.poll(20_000):
            self.peer, header, body = self.jobs.recv_multipart()
            request: Request = decode_request(header)
            if request.op == op:
                return body
        raise AssertionError(f"no {op!r} came")

    def offer(self, job: FlushJob | RemoveJob) -> JobResult:
        self.take("idle")
        self.send([encode(Response(PROTOCOL_VERSION, 1, OK)), encode_job(job)])
        return decode_result(self.take("result"))

    def send(self, frames: list[bytes]) -> None:
        self.jobs.send_multipart([self.peer, *frames])

    def close(self) -> None:
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(20)
        assert self.process.exitcode == 0
        self.process.close()
        self.context.destroy(linger=0)


@pytest.fixture
def sealed(store_dir: str) -> tuple[str, FlushJob, dict[bytes, bytes]]:
    """A store with a sealed log, and the job that flushes it."""
    os.makedirs(os.path.join(store_dir, "run"))
    entries = {b"key-%04d" % number: b"v" * 50 for number in range(2000)}
    store = Store(store_dir, Options())
    store.write([WriteRequest(payload=encode(entries))])
    store.rotate()
    meta = store.manifest.logs[0]
    assert meta.sealed_bytes is not None
    job = FlushJob(id=5, store_id=store.manifest.store_id, log=meta.number, sealed_bytes=meta.sealed_bytes, output=store.take_numbers(1)[0])
    store.close()
    return store_dir, job, entries


def test_a_flusher_asks_does_its_job_and_survives_nonsense(sealed: tuple[str, FlushJob, dict[bytes, bytes]]) -> None:
    directory, job, entries = sealed
    flusher = FlusherProcess(directory)
    try:
        assert decode_body(flusher.take("idle")) == "flush"
        for nonsense in (
            [b"junk"],
            [b"junk", b"junk"],
            [b"a", b"b", b"c"],
            [encode(Response(PROTOCOL_VERSION, 1, ERROR)), encode_job(job)],
            [encode(Response(PROTOCOL_VERSION, 1, OK)), b"\x91" * 5000],
            [encode(Response(PROTOCOL_VERSION, 1, OK)), encode({"type": "dance", "id": 1})],
        ):
            flusher.send(nonsense)
        result = flusher.offer(job)
        assert (result.id, result.error) == (5, "")
        (built,) = result.files
        assert (built.number, built.entries, built.smallest, built.largest) == (job.output, len(entries), min(entries), max(entries))
        # the same job once more, as when an offer crosses an asking: its output may be live by now and is not touched
        path = Path(directory, "sst", f"{job.output:06d}.sst")
        inode = path.stat().st_ino
        assert flusher.offer(job) == result
        assert path.stat().st_ino == inode
        gone = flusher.offer(msgspec.structs.replace(job, id=6, log=999))
        assert gone.id == 6
        assert gone.error
        assert gone.files == ()
        other = flusher.offer(msgspec.structs.replace(job, id=7, store_id=bytes(16)))
        assert other.error == "CorruptionError"
        assert "another store" in other.message
        assert flusher.offer(RemoveJob(id=8, numbers=(job.output, 998))) == JobResult(id=8)
        assert list(Path(directory, "sst").iterdir()) == []
        # signs of life went to the node all the while
        beats = set()
        while flusher.control.poll(0):
            beats.add(decode_request(flusher.control.recv_multipart()[1]).op)
        assert beats == {"ready", "beat"}
    finally:
        flusher.close()


FLAGS = ("--write-buffer-size=1000000", "--target-file-size-base=65536", "--level0-file-num-compaction-trigger=36", "--log-level=debug")


def fill(db: keyva.Client, rounds: int = 4) -> dict[bytes, bytes]:
    """Write overlapping runs for a compaction that takes a moment."""
    rng = random.Random(2)
    entries: dict[bytes, bytes] = {}
    for _ in range(rounds):
        new = {b"key-%06d" % rng.randrange(40_000): rng.randbytes(60) for _ in range(15_000)}
        db.put_many(new)
        db.flush()
        entries |= new
    return entries


def named_files(directory: str) -> set[int]:
    manifest = load_manifest(directory, FILES)
    assert manifest is not None
    return set(manifest.all_files())


def files_present(directory: str) -> set[int]:
    return {int(path.name.split(".")[0]) for path in Path(directory, "sst").iterdir()}


def wait_for_output(directory: str, before: set[int], compaction: Future[None]) -> None:
    eventually(lambda: compaction.done() or files_present(directory) - before, "output of the compaction")


@pytest.mark.parametrize("who", ["compactor", "writer"])
def test_dying_in_the_middle_of_a_compaction_loses_nothing_and_leaves_nothing(tmp_path: Path, who: str) -> None:
    with RunningNode(tmp_path / "d", *FLAGS) as node, keyva.open(node.directory) as db, ThreadPoolExecutor(1) as pool:
        entries = fill(db)
        for _ in range(2):
            before = files_present(node.directory)
            compaction = pool.submit(db.compact_range)  # asked for again by the client when the writer has gone
            wait_for_output(node.directory, before, compaction)
            os.kill(node.pid_of(who), signal.SIGKILL)
            compaction.result(60)
            assert dict(db.iterator()) == entries
            entries |= fill(db, 1)
        db.compact_range()
        assert dict(db.iterator()) == entries
        assert node.stop() == 0
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
        assert dict(db.iterator()) == entries
        eventually(lambda: files_present(node.directory) == named_files(node.directory), "no other file is left")


def test_stopping_in_the_middle_of_a_compaction_loses_nothing(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d", *FLAGS) as node, ThreadPoolExecutor(1) as pool:
        with keyva.connect(node.endpoint) as patient:
            entries = fill(patient)
        db = keyva.connect(node.endpoint, timeout_s=1.0)
        before = files_present(node.directory)
        compaction = pool.submit(db.compact_range)
        wait_for_output(node.directory, before, compaction)
        assert node.stop() == 0
        if not isinstance(compaction.exception(60), keyva.UnavailableError):
            assert compaction.exception() is None
        db.close()
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
        assert dict(db.iterator()) == entries
        assert db.stats()["recovered_dropped_bytes"] == 0
        eventually(lambda: files_present(node.directory) == named_files(node.directory), "no other file is left")


def test_files_that_were_compacted_away_are_removed(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d", *FLAGS) as node, keyva.open(node.directory) as db:
        entries = fill(db, 2)
        before = files_present(node.directory)
        db.compact_range()
        eventually(lambda: files_present(node.directory) == named_files(node.directory), "only the new files are left")
        assert not before & files_present(node.directory)
        assert len(list((tmp_path / "d" / "wal").iterdir())) == 1
        assert dict(db.iterator()) == entries
