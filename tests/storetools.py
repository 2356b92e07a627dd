"""Tools for tests of the engine: a store with small files, its jobs done in this process, and a disk that dies at the n-th operation."""

from __future__ import annotations

import errno
import os
from bisect import bisect_left
from random import Random
from typing import Any

import msgspec
import pytest
from faultfiles import Fault, FaultFiles

from keyva import wal
from keyva.batch import Batch, encode_batch
from keyva.errors import KeyvaError
from keyva.files import FILES, Files
from keyva.jobs import Job
from keyva.maintenance import Kind, Maintenance
from keyva.manifest import FileMeta, Run
from keyva.options import Options
from keyva.requests import Answer
from keyva.rewrite import flush_batch, run_job
from keyva.sst import SstWriter, new_header
from keyva.store import Store, WriteRequest

STORE_ID = bytes(range(16))
KINDS: tuple[Kind, ...] = ("flush", "compact")
SMALL = Options(
    write_buffer_size=8 * 1024,
    block_size=256,
    block_cache_size=64 * 1024,
    target_file_size_base=2048,
    max_bytes_for_level_base=8 * 1024,
    max_bytes_for_level_multiplier=3,
    max_runs_per_level=3,
    max_compaction_bytes=4096,
    level0_file_num_compaction_trigger=3,
)
"""Below what `Options.of` allows, so that a few hundred entries make several levels of several files."""


@pytest.fixture(autouse=True)
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let logs reserve little space, for `FaultFiles` copies a file with every sync; a test module takes it by importing it."""
    monkeypatch.setattr(wal, "_ALLOCATE_BYTES", 16 * 1024)


def small(**settings: Any) -> Options:
    return msgspec.structs.replace(SMALL, **settings)


class DiskDiedError(BaseException):
    """The machine stopped here: nothing after it has reached the disk."""


class DyingFiles(FaultFiles):
    """Stops for good at disk operation ``die_at`` (counted from 0), a write then being half done."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.die_at: int | None = None
        self.dead = False
        self.raises: int | None = None
        """An errno: the operation fails once with it and the disk lives on."""

    def arm(self, die_at: int | None, raises: int | None = None) -> None:
        self.operations, self.die_at, self.raises, self.dead = 0, die_at, raises, False

    def _enter(self, method: str) -> Fault | None:
        at = self.operations
        self.operations += 1
        if self.dead or (at == self.die_at and self.raises is None):
            if method == "pwritev" and not self.dead:
                self.dead = True
                return Fault(0, 1, errno.EIO, partial=70)
            self.dead = True
            raise DiskDiedError(method)
        if at == self.die_at and self.raises is not None:
            return Fault(0, 1, self.raises, partial=70)
        return super()._enter(method)

    def pwritev(self, fd: int, buffers: Any, offset: int) -> int:
        try:
            return super().pwritev(fd, buffers, offset)
        except OSError:
            if self.dead:
                raise DiskDiedError("pwritev") from None
            raise

    def revive(self, *, power_cut: bool, rng: Random | None = None) -> None:
        """Go on with what reached the disk: all that was written, or after a power cut what was synced."""
        self.arm(None)
        self.heal()
        if power_cut:
            self.power_cut(rng)


def write(store: Store, batch: Batch, **settings: Any) -> Answer:
    """Write one batch; raises the error it was answered with."""
    return write_request(store, WriteRequest(payload=encode_batch(batch), **settings))


def increment(store: Store, key: bytes, by: int = 1, **settings: Any) -> Answer:
    return write_request(store, WriteRequest(increment=(key, by), **settings))


def write_request(store: Store, request: WriteRequest) -> Answer:
    (answer,) = store.write([request])
    if isinstance(answer, KeyvaError):
        raise answer
    return answer


def crash(store: Store) -> None:
    """End the store as a kill does: descriptors and lock go, nothing is sealed, nothing is synced."""
    store._log.close()
    store._pulse.close()
    store._lock.release()


def do_jobs(store: Store, maintenance: Maintenance, kinds: tuple[Kind, ...] = KINDS, files: Files | None = None) -> list[Job]:
    """Do what is offered until nothing is; returns the jobs."""
    done: list[Job] = []
    for kind in kinds:
        for _ in range(1000):
            job = maintenance.offer(kind)
            if job is None:
                break
            maintenance.finish(run_job(store.directory, job, store.options, lambda _: None, files or store.files))
            done.append(job)
        else:
            raise AssertionError(f"the {kind} jobs do not come to an end")
    return done


def flush(store: Store, maintenance: Maintenance) -> None:
    ticket = maintenance.request_flush()
    do_jobs(store, maintenance, ("flush",))
    assert maintenance.flush_done(ticket)


def compact_all(store: Store, maintenance: Maintenance) -> None:
    ticket = maintenance.request_compaction(None, None)
    for _ in range(1000):
        if maintenance.compaction_done(ticket):
            return
        do_jobs(store, maintenance)
    raise AssertionError("the compaction does not come to an end")


def make_file(directory: str, number: int, entries: Batch, sequences: tuple[int, int] = (1, 1), options: Options = SMALL) -> FileMeta:
    """Write SST ``number``."""
    return flush_batch(directory, entries, number, STORE_ID, sequences, options)


def make_run(directory: str, run_id: int, *files: Batch, options: Options = SMALL) -> Run:
    """Write a run whose files are numbered from 10 times its id."""
    return Run(id=run_id, files=tuple(make_file(directory, 10 * run_id + at, batch, options=options) for at, batch in enumerate(files)))


def write_sst(directory: str, number: int, blocks: list[Batch], options: Options = SMALL) -> FileMeta:
    """Write SST ``number`` with these very blocks."""
    header = new_header(number, STORE_ID, (1, 1), options.compression, options.block_size, options.bloom_filter_bits)
    writer = SstWriter(directory, header, files=FILES)
    for block in blocks:
        writer._add_block(list(block), list(block.values()))
    return FileMeta.of(writer.finish())


def damage(path: str, offset: int) -> None:
    """Flip the bits of one byte; a negative offset counts from the end."""
    with open(path, "r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


class ModelIterator:
    """plyvel's iterator over a sorted list: a position between entries."""

    def __init__(self, entries: list[tuple[bytes, bytes]], reverse: bool) -> None:
        self.entries = entries
        self.reverse = reverse
        self.at = len(entries) if reverse else 0

    def step(self, forward: bool) -> tuple[bytes, bytes] | None:
        if forward != self.reverse:
            if self.at == len(self.entries):
                return None
            self.at += 1
            return self.entries[self.at - 1]
        if self.at == 0:
            return None
        self.at -= 1
        return self.entries[self.at]

    def seek(self, target: bytes) -> None:
        self.at = bisect_left(self.entries, (target,))
