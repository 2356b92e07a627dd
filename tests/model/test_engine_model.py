"""The engine in one process against a dict: random operations, jobs, snapshots, walks, restarts, crashes and power cuts.

What is held: reads of store, view and snapshots equal the model at their moment; an iterator walks as plyvel's does; after a crash all
that was acknowledged is there; after a power cut the store is a prefix of the acknowledged order with everything in it that was
acknowledged as durable; a repeated request is answered as the first time and makes nothing twice.

More seeds than the usual: KEYVA_MODEL_SEEDS=200 pytest tests/model/test_engine_model.py
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

import pytest
from faultfiles import FaultFiles
from storetools import ModelIterator, compact_all, crash, do_jobs, small
from storetools import small_reserve as small_reserve

from keyva import rewrite
from keyva.batch import Batch, decode_trusted, encode_batch
from keyva.errors import NoSpaceError
from keyva.maintenance import Maintenance
from keyva.requests import Answer
from keyva.rewrite import run_job
from keyva.store import Store, WriteRequest
from keyva.view import Reads, Snapshot, View

SEEDS = int(os.environ.get("KEYVA_MODEL_SEEDS", "8"))
STEPS = 260
KEYS = 400
STYLES = ("lazy_leveled", "leveled", "tiered")
State = dict[bytes, bytes]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "_CHUNK_ENTRIES", 40)


class Machine:
    """The store, the dict, and what may be done to both."""

    def __init__(self, directory: str, seed: int, style: str) -> None:
        self.random = Random(f"{style} {seed}")
        self.directory = directory
        self.options = small(
            compaction_style=style,
            max_bytes_for_level_base=3000,
            target_file_size_base=self.random.choice([700, 2000]),
            max_compaction_bytes=self.random.choice([1500, 4000, 10**9]),
            write_buffer_size=self.random.choice([8_000, 30_000]),
            durability=self.random.choice(["sync", "os"]),
            compression=self.random.choice(["lz4", "zstd", "none"]),
            block_cache_size=self.random.choice([0, 20_000]),
            bloom_filter_bits=self.random.choice([0.0, 10.0]),
        )
        self.files = FaultFiles()
        self.model: State = {}
        self.states: list[State] = [{}]
        """Every state since the newest one that is durable, that one first."""
        self.answers: dict[int, tuple[WriteRequest, Answer]] = {}
        self.request = 0
        self.snapshots: list[tuple[Snapshot, State]] = []
        self.start()

    def start(self) -> None:
        self.store = Store(self.directory, self.options, files=self.files)
        self.maintenance = Maintenance(self.store)
        self.view = View(self.directory, self.options)

    def stop(self) -> None:
        for snapshot, _ in self.snapshots:
            snapshot.close()
        self.snapshots = []
        self.view.close()

    # Writing

    def key(self) -> bytes:
        if self.random.random() < 0.03:
            return self.random.choice([b"", b"\0", b"\xff", b"\xff\xfe\xff", b"k" * 300])
        return b"%04d" % self.random.randrange(KEYS)

    def batch(self) -> Batch:
        random = self.random
        first = random.randrange(KEYS)
        if random.random() < 0.1:  # keys in a row, so that files can move
            return {b"%04d" % key: b"%d" % key for key in range(first, min(KEYS, first + 60))}
        return {
            self.key(): None
            if random.random() < 0.25
            else random.randbytes(random.choice([0, 3, 30, 30, 2000 if random.random() < 0.05 else 8]))
            for _ in range(random.choice([1, 1, 5, 40]))
        }

    def new_request(self) -> WriteRequest:
        self.request += 1
        sync = self.random.choice([True, False, None])
        common = {"sync": sync, "client": 7, "request": self.request, "floor": max(1, self.request - 20), "as_of": self.store.position}
        if self.random.random() < 0.2:
            return WriteRequest(increment=(b"counter%d" % self.random.randrange(3), self.random.randrange(-9, 9)), **common)  # type: ignore[arg-type]
        return WriteRequest(payload=encode_batch(self.batch()), **common)  # type: ignore[arg-type]

    def apply(self, request: WriteRequest, answer: Answer) -> None:
        if request.increment is not None:
            key, by = request.increment
            value = int(self.model.get(key, b"0")) + by
            assert answer[1] == value
            self.model[key] = b"%d" % value
        else:
            for key, new in decode_trusted(request.payload).items():
                if new is None:
                    self.model.pop(key, None)
                else:
                    self.model[key] = new
        self.states.append(dict(self.model))
        self.answers[request.request] = (request, answer)

    def write(self) -> None:
        group = [self.new_request() for _ in range(self.random.choice([1, 1, 1, 4]))]
        if self.maintenance.stall() is not None:
            self.jobs()
        before = self.store.position
        for request, answer in zip(group, self.store.write(group), strict=True):
            assert type(answer) is tuple
            self.apply(request, answer)
        assert self.store.position > before
        default = self.options.durability == "sync"
        if any(default if request.sync is None else request.sync for request in group):
            self.states = self.states[-1:]
        self.maintenance.after_write()

    def write_without_room(self) -> None:
        self.files.fail("pwritev", errno.ENOSPC, partial=self.random.randrange(200))
        assert all(isinstance(answer, NoSpaceError) for answer in self.store.write([self.new_request(), self.new_request()]))
        self.states = self.states[-1:]  # the log was cut back and synced
        self.files.heal()

    def repeat(self) -> None:
        recent = [number for number in self.answers if number > self.request - 15]
        if recent:
            request, answer = self.answers[self.random.choice(recent)]
            again = WriteRequest(
                payload=request.payload,
                increment=request.increment,
                client=7,
                request=request.request,
                floor=request.floor,
                as_of=request.as_of,
                repeated=True,
            )
            (found,) = self.store.write([again])
            assert type(found) is tuple and found[0] == answer[0]
            assert request.increment is None or found == answer

    # Jobs

    def jobs(self) -> None:
        do_jobs(self.store, self.maintenance)

    def one_job(self) -> None:
        kind = self.random.choice(["flush", "compact"])
        job = self.maintenance.offer("flush" if kind == "flush" else "compact")
        if job is not None:
            self.maintenance.finish(run_job(self.directory, job, self.options, lambda _: None, self.files))

    def flush(self) -> None:
        self.maintenance.request_flush()
        self.states = self.states[-1:]
        if self.random.random() < 0.7:
            do_jobs(self.store, self.maintenance, ("flush",))

    def compact(self) -> None:
        compact_all(self.store, self.maintenance)
        self.states = self.states[-1:]
        assert sum(file.tombstones for file in self.store.manifest.all_files().values()) == 0
        assert sum(file.entries for file in self.store.manifest.all_files().values()) == len(self.model)

    # Reading

    def any_reads(self) -> tuple[Reads, State]:
        if self.snapshots and self.random.random() < 0.5:
            return self.random.choice(self.snapshots)
        return self.random.choice([self.store, self.view]), self.model

    def get(self) -> None:
        reads, state = self.any_reads()
        keys = [self.key() for _ in range(30)] + [b"counter0"]
        assert reads.get_many(keys) == [state.get(key) for key in keys]
        assert [reads.get(key) for key in keys[:5]] == [state.get(key) for key in keys[:5]]

    def scan(self) -> None:
        reads, state = self.any_reads()
        start, stop = sorted((self.key(), self.key()))
        reverse = self.random.random() < 0.5
        settings = {"include_start": self.random.random() < 0.5, "include_stop": self.random.random() < 0.5}
        low, high = start + b"\0" * (not settings["include_start"]), stop + b"\0" * settings["include_stop"]
        wanted = sorted(((key, value) for key, value in state.items() if low <= key < high), reverse=reverse)
        assert list(reads.iterator(start, stop, reverse=reverse, **settings)) == wanted  # type: ignore[arg-type]

    def walk(self) -> None:
        """Step about in an iterator, with changes to the store in between that it must not see."""
        reads, state = self.any_reads()
        random = self.random
        start, stop = sorted((self.key(), self.key()))
        reverse = random.random() < 0.5
        with reads.iterator(start, stop, reverse=reverse) as found:
            model = ModelIterator(sorted((key, value) for key, value in state.items() if start <= key < stop), reverse)
            for _ in range(random.choice([20, 150])):
                step = random.choice(["next"] * 8 + ["prev"] * 6 + ["seek", "start", "stop", "change"])
                if step == "next":
                    assert next(found, None) == model.step(True)
                elif step == "prev":
                    try:
                        entry = found.prev()
                    except StopIteration:
                        entry = None
                    assert entry == model.step(False)
                elif step == "seek":
                    target = self.key()
                    found.seek(target)
                    model.seek(target)
                elif step == "start":
                    found.seek_to_start()
                    model.at = 0
                elif step == "stop":
                    found.seek_to_stop()
                    model.at = len(model.entries)
                elif random.random() < 0.3:
                    random.choice([self.write, self.one_job])()

    def snapshot(self) -> None:
        source: Store | View = self.random.choice([self.store, self.view])  # type: ignore[assignment]
        self.snapshots.append((source.snapshot(), dict(self.model)))
        if len(self.snapshots) > 4:
            snapshot, state = self.snapshots.pop(self.random.randrange(len(self.snapshots)))
            self.check(snapshot, state)
            snapshot.close()

    def check(self, reads: Reads, state: State) -> None:
        assert list(reads.iterator()) == sorted(state.items())
        assert list(reads.iterator(reverse=True)) == sorted(state.items(), reverse=True)

    def check_all(self) -> None:
        self.check(self.store, self.model)
        self.check(self.view, self.model)
        for snapshot, state in self.snapshots:
            self.check(snapshot, state)
        self.store.manifest.check()

    # Restarts

    def reopen(self) -> None:
        self.store.close()
        self.states = self.states[-1:]
        self.restart()

    def crash(self) -> None:
        """As by a kill; what the processes of readers have open goes on."""
        crash(self.store)
        self.restart()

    def restart(self) -> None:
        view = self.view
        self.start()
        self.states = self.states[-1:]  # what a start has recovered is durable
        self.view.close()
        self.view = view
        self.check_all()

    def power_cut(self) -> None:
        self.stop()
        crash(self.store)
        self.files.power_cut(self.random if self.random.random() < 0.7 else None)
        self.start()
        found = dict(self.store.iterator())
        assert found in self.states, "neither the durable state nor any later one"
        self.model, self.states = found, [dict(found)]
        self.answers = {}  # those of requests that were not durable may be gone
        self.check_all()

    def step(self) -> None:
        operations = [self.write] * 14 + [self.get, self.scan] * 3 + [self.walk] * 2 + [self.one_job] * 8 + [self.snapshot] * 2
        operations += [self.jobs] * 2 + [self.flush] * 2 + [self.repeat] * 2
        if self.random.random() < 0.2:
            operations = [self.compact, self.reopen, self.crash, self.power_cut, self.write_without_room, self.check_all]
        self.random.choice(operations)()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_engine_does_what_a_dict_does(tmp_path: Path, seed: int, style: str) -> None:
    machine = Machine(str(tmp_path / "store"), seed, style)
    for _ in range(STEPS):
        machine.step()
    machine.check_all()
    machine.compact()
    machine.check_all()
    machine.reopen()
    do_jobs(machine.store, machine.maintenance)
    names = set(machine.store.manifest.all_files())
    assert {int(name.split(".")[0]) for name in os.listdir(os.path.join(machine.directory, "sst"))} == names
    machine.stop()
    machine.store.close()
