from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

import pytest
from faultfiles import FaultFiles
from storetools import KINDS, SMALL, DiskDiedError, DyingFiles, compact_all, crash, damage, do_jobs, flush, increment, small, write
from storetools import small_reserve as small_reserve

from keyva import maintenance as maintenance_module
from keyva import rewrite
from keyva.batch import Batch
from keyva.errors import CorruptionError, KeyvaError, NoSpaceError
from keyva.filename import index_path, sst_path, wal_path
from keyva.jobs import CompactionJob, FlushJob, Job, JobResult, RemoveJob
from keyva.maintenance import Kind, Maintenance, Stall
from keyva.options import Options
from keyva.rewrite import run_job
from keyva.store import FatalError, Store, WriteRequest
from keyva.view import View

STYLES = ("lazy_leveled", "leveled", "tiered")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction cuts its files between chunks; with small ones it makes many files of little data."""
    monkeypatch.setattr(rewrite, "_CHUNK_ENTRIES", 40)


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "store")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def start(directory: str, options: Options = SMALL, files: FaultFiles | None = None) -> tuple[Store, Maintenance]:
    store = Store(directory, options) if files is None else Store(directory, options, files=files)
    return store, Maintenance(store)


def work(store: Store, job: Job | None) -> JobResult:
    assert job is not None
    return run_job(store.directory, job, store.options, lambda _: None)


def everything(store: Store) -> Batch:
    return dict(store.iterator())


def entries(first: int, last: int, value: bytes | None = b"v", step: int = 1) -> Batch:
    return {b"%05d" % key: value for key in range(first, last, step)}


def files_on_disk(store: Store) -> set[str]:
    return {f"{name}/{entry}" for name in ("wal", "sst") for entry in os.listdir(os.path.join(store.directory, name))}


def files_named(store: Store) -> set[str]:
    ssts = {f"sst/{number:06d}.{kind}" for number in store.manifest.all_files() for kind in ("sst", "index")}
    return ssts | {f"wal/{log.number:06d}.wal" for log in store.manifest.logs}


def overwrite(store: Store, maintenance: Maintenance, rounds: int, keys: int, random: Random) -> Batch:
    """Write random batches, each flushed, and do no compaction."""
    model: Batch = {}
    for at in range(rounds):
        batch: Batch = {
            b"%05d" % random.randrange(keys): None if random.random() < 0.2 else b"%d" % at for _ in range(random.randrange(20, 150))
        }
        write(store, batch)
        model.update(batch)
        flush(store, maintenance)
    return {key: value for key, value in model.items() if value is not None}


# Flush


def test_a_flush_takes_the_log_and_the_memtable_away(directory: str) -> None:
    store, maintenance = start(directory)
    for at in range(20):
        write(store, {b"same": b"%d" % at})
    flush(store, maintenance)
    assert (store.immutable_memtables, store.memtable_empty) == (0, True)
    (file,) = store.manifest.all_files().values()
    assert (file.entries, file.smallest_sequence, file.largest_sequence) == (1, 1, 20)
    assert store.manifest.last_sequence == 20
    assert store.get(b"same") == b"19"
    do_jobs(store, maintenance, ("compact",))
    assert files_on_disk(store) == files_named(store), "the log is gone"
    store.close()


def test_flushes_are_taken_in_log_order(directory: str) -> None:
    store, maintenance = start(directory)
    for at in range(3):
        write(store, {b"key": b"%d" % at})
        store.rotate()
    logs = [log.number for log in store.manifest.logs[:-1]]
    done = do_jobs(store, maintenance, ("flush",))
    assert [job.log for job in done if isinstance(job, FlushJob)] == logs
    assert store.get(b"key") == b"2"
    assert len(store.manifest.levels[0]) == 3
    store.close()


def test_a_job_under_way_is_offered_again_until_its_result_comes(directory: str) -> None:
    store, maintenance = start(directory)
    write(store, {b"a": b"1"})
    store.rotate()
    job = maintenance.offer("flush")
    assert job is not None
    assert maintenance.offer("flush") == job
    result = work(store, job)
    maintenance.finish(result)
    maintenance.finish(result)  # a repeat of the answer is ignored
    assert maintenance.offer("flush") is None
    assert store.counters["flushes"] == 1
    assert store.get(b"a") == b"1"
    store.close()


def test_the_result_of_another_writers_job_is_ignored_and_removed(directory: str) -> None:
    store, maintenance = start(directory)
    write(store, {b"a": b"1"})
    store.rotate()
    old = maintenance.offer("flush")
    assert isinstance(old, FlushJob)
    crash(store)
    store, maintenance = start(directory)
    result = work(store, old)
    new = maintenance.offer("flush")
    assert isinstance(new, FlushJob)
    assert (new.id, new.output) != (old.id, old.output)
    maintenance.finish(result)
    assert not os.path.exists(sst_path(directory, old.output))
    assert store.manifest.all_files() == {}
    maintenance.finish(work(store, new))
    assert store.get(b"a") == b"1"
    maintenance.finish(JobResult(id=new.id, files=tuple(store.manifest.all_files().values())))
    assert os.path.exists(sst_path(directory, new.output)), "live files stay"
    store.close()


def test_a_sealed_log_that_got_damaged_is_flushed_from_memory(directory: str) -> None:
    store, maintenance = start(directory)
    write(store, entries(0, 50))
    write(store, {b"00000": None, b"x": b"1"})
    store.rotate()
    job = maintenance.offer("flush")
    assert isinstance(job, FlushJob)
    damage(wal_path(directory, job.log), 200)
    result = work(store, job)
    assert result.error == CorruptionError.__name__
    maintenance.finish(result)
    assert store.immutable_memtables == 0
    expected = entries(1, 50) | {b"x": b"1"}
    assert everything(store) == expected
    store.close()
    store, _ = start(directory)
    assert everything(store) == expected
    (file,) = store.manifest.all_files().values()
    assert (file.smallest_sequence, file.largest_sequence) == (1, 52)
    store.close()


def test_pauses_between_tries_grow_and_end_with_success(directory: str) -> None:
    clock = Clock()
    store = Store(directory, SMALL)
    maintenance = Maintenance(store, clock)
    write(store, {b"a": b"1"})
    ticket = maintenance.request_flush()
    pauses = []
    for _ in range(9):
        job = maintenance.offer("flush")
        assert job is not None
        maintenance.finish(JobResult(id=job.id, error="OSError", message="the disk is on fire"))
        assert maintenance.offer("flush") is None
        pause = maintenance.wait_s("flush")
        assert pause is not None
        pauses.append(pause)
        with pytest.raises(KeyvaError, match="on fire"):
            maintenance.flush_done(ticket)
        assert "on fire" in maintenance.stats()["flush_error"]
        clock.now += pause - 0.01
        assert maintenance.offer("flush") is None
        clock.now += 0.02
    assert pauses == [0.5, 1, 2, 4, 5, 5, 5, 5, 5]
    maintenance.finish(work(store, maintenance.offer("flush")))
    assert maintenance.flush_done(ticket)
    assert maintenance.wait_s("flush") is None
    assert maintenance.stats()["flush_error"] == ""
    store.close()


@pytest.mark.parametrize("after", range(12))
def test_a_flush_that_finds_no_room_is_done_later_and_leaves_nothing(directory: str, after: int) -> None:
    clock = Clock()
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    maintenance = Maintenance(store, clock)
    write(store, entries(0, 100))
    store.rotate()
    files.fail("pwritev", errno.ENOSPC, after=after, times=10**6)
    for _ in range(6):
        job = maintenance.offer("flush")
        if job is not None:
            maintenance.finish(run_job(directory, job, SMALL, lambda _: None, files))
        assert everything(store) == entries(0, 100)
        clock.now += 40
    if store.immutable_memtables:
        assert "no space" in maintenance.stats()["flush_error"]
        assert files_on_disk(store) == files_named(store), "tries must not fill the disk further"
    files.heal()
    do_jobs(store, maintenance)
    assert store.immutable_memtables == 0
    assert everything(store) == entries(0, 100)
    assert files_on_disk(store) == files_named(store)
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_sst_whose_manifest_finds_no_room_is_removed(directory: str, kind: Kind) -> None:
    clock = Clock()
    files = FaultFiles()
    store = Store(directory, small(level0_file_num_compaction_trigger=2), files=files)
    maintenance = Maintenance(store, clock)
    for _ in range(2):
        write(store, entries(0, 100))
        do_jobs(store, maintenance)
        maintenance.request_flush()
    if kind == "compact":
        do_jobs(store, maintenance, ("flush",))
        while isinstance(maintenance.offer("compact"), RemoveJob):
            maintenance.finish(work(store, maintenance.offer("compact")))
    result = work(store, maintenance.offer(kind))
    assert result.files
    files.fail("pwritev", errno.ENOSPC)
    maintenance.finish(result)
    assert not any(os.path.exists(sst_path(directory, file.number)) for file in result.files)
    assert maintenance.wait_s(kind) == 0.5
    clock.now += 1
    do_jobs(store, maintenance)
    assert everything(store) == entries(0, 100)
    assert files_on_disk(store) == files_named(store)
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_sst_that_cannot_be_read_is_not_taken(directory: str, kind: Kind) -> None:
    store = Store(directory, small(level0_file_num_compaction_trigger=2))
    clock = Clock()
    maintenance = Maintenance(store, clock)
    for _ in range(2):
        write(store, entries(0, 100))
        do_jobs(store, maintenance)
        maintenance.request_flush()
    if kind == "compact":
        do_jobs(store, maintenance, ("flush",))
        while isinstance(maintenance.offer("compact"), RemoveJob):
            maintenance.finish(work(store, maintenance.offer("compact")))
    result = work(store, maintenance.offer(kind))
    os.truncate(sst_path(directory, result.files[0].number), 40)
    maintenance.finish(result)
    assert everything(store) == entries(0, 100)
    assert files_on_disk(store) == files_named(store)
    clock.now += 1
    do_jobs(store, maintenance)
    assert everything(store) == entries(0, 100)
    assert not maintenance.damaged
    store.close()


# Stalls


def test_writes_wait_when_memtables_are_full(directory: str) -> None:
    store, maintenance = start(directory, small(max_write_buffer_number=2))
    assert maintenance.stall() is None
    number = 0
    while (stall := maintenance.stall()) is None:
        write(store, {b"%d" % number: os.urandom(500)})
        maintenance.after_write()
        number += 1
    assert stall == Stall(True, "memtable_limit", "1 full memtables wait to be flushed")
    assert maintenance.stats()["stall"]["reason"] == "memtable_limit"
    do_jobs(store, maintenance, ("flush",))
    assert maintenance.stall() is None
    assert store.memtable_empty, "asking makes the rotation up for"
    store.close()


def test_flushes_that_are_asked_for_keep_the_limit_of_memtables(directory: str) -> None:
    store, maintenance = start(directory, small(max_write_buffer_number=3))
    tickets = []
    for at in range(10):
        write(store, {b"%d" % at: b"v"})
        tickets.append(maintenance.request_flush())
        assert store.immutable_memtables <= 2
    assert not any(map(maintenance.flush_done, tickets[1:]))
    do_jobs(store, maintenance)
    assert all(map(maintenance.flush_done, tickets))
    assert store.memtable_empty
    write(store, {b"a": b"v"})
    for _ in range(2):
        maintenance.request_flush()
        write(store, {b"b": b"v"})
    ticket = maintenance.request_compaction(None, None)
    assert store.immutable_memtables == 2
    do_jobs(store, maintenance)
    assert maintenance.compaction_done(ticket) and store.memtable_empty
    assert [len(runs) for runs in store.manifest.levels] == [0, 1]
    store.close()


def test_a_stall_says_why_the_flush_does_not_get_on(directory: str) -> None:
    store, maintenance = start(directory, small(max_write_buffer_number=2))
    while maintenance.stall() is None:
        write(store, {os.urandom(8): os.urandom(500)})
    job = maintenance.offer("flush")
    assert job is not None
    maintenance.finish(JobResult(id=job.id, error="NoSpaceError", message="disk full"))
    stall = maintenance.stall()
    assert stall is not None
    assert stall.text.endswith("(last try failed: disk full)")
    store.close()


def test_writes_wait_when_there_is_no_room_for_a_new_log(directory: str) -> None:
    files = FaultFiles()
    store, maintenance = start(directory, files=files)
    while not store.memtable_full:
        write(store, {os.urandom(8): os.urandom(500)})
    files.fail("pwritev", errno.ENOSPC, times=10**6)
    maintenance.after_write()
    stall = maintenance.stall()
    assert stall is not None
    assert (stall.stop, stall.reason) == (True, "no_space")
    files.heal()
    assert maintenance.stall() is None
    assert store.immutable_memtables == 1
    store.close()


def test_writes_slow_down_and_then_wait_for_level_0(directory: str) -> None:
    store, maintenance = start(directory, small(level0_slowdown_writes_trigger=3, level0_stop_writes_trigger=5))
    seen = []
    for at in range(6):
        write(store, {b"%d" % at: b""})
        flush(store, maintenance)
        stall = maintenance.stall()
        seen.append((stall.stop, stall.reason) if stall else None)
    assert seen == [None, None, *[(False, "level0_slowdown")] * 2, *[(True, "level0_stop")] * 2]
    do_jobs(store, maintenance)
    assert maintenance.stall() is None
    store.close()


# Compaction


@pytest.mark.parametrize("style", STYLES)
def test_every_step_of_a_compaction_gives_right_reads(directory: str, style: str) -> None:
    store, maintenance = start(
        directory, small(compaction_style=style, max_compaction_bytes=2500, target_file_size_base=1000, max_bytes_for_level_base=3000)
    )
    view = View(directory, SMALL)
    random = Random(style)
    model: Batch = {}
    drains = trimmed = steps = 0
    for at in range(16):
        batch: Batch = {b"%05d" % random.randrange(900): None if at % 5 == 4 else random.randbytes(20) for _ in range(150)}
        write(store, batch)
        model.update(batch)
        flush(store, maintenance)
        for _ in range(random.randrange(30)):
            job = maintenance.offer("compact")
            if job is None:
                break
            maintenance.finish(work(store, job))
            steps += isinstance(job, CompactionJob)
            drains += store.manifest.drain is not None
            ssts = {number: file.smallest for number, file in store.manifest.all_files().items()}
            trimmed += any(smallest > store._version.tables[number].footer.smallest for number, smallest in ssts.items())
            live = sorted((key, value) for key, value in model.items() if value is not None)
            for reads in (store, view):
                assert list(reads.iterator()) == live
                start_key = b"%05d" % random.randrange(900)
                assert list(reads.iterator(start=start_key, reverse=True)) == [e for e in live[::-1] if e[0] >= start_key]
                keys = random.sample(sorted(model), 60)
                assert reads.get_many(keys) == [model[key] for key in keys]
    assert steps > 15
    assert drains > 5
    assert trimmed > 5, "some files were read with their beginning cut off"
    view.close()
    store.close()


@pytest.mark.parametrize("style", STYLES)
def test_a_compacted_store_has_no_tombstones_and_one_run(directory: str, style: str) -> None:
    store, maintenance = start(directory, small(compaction_style=style))
    model = overwrite(store, maintenance, 12, 800, Random(1))
    assert sum(file.tombstones for file in store.manifest.all_files().values()) > 0
    compact_all(store, maintenance)
    do_jobs(store, maintenance)
    assert sum(file.tombstones for file in store.manifest.all_files().values()) == 0
    assert sum(len(runs) for runs in store.manifest.levels) == 1
    assert sum(file.entries for file in store.manifest.all_files().values()) == len(model)
    assert everything(store) == model
    assert files_on_disk(store) == files_named(store)
    store.close()


def test_tombstones_are_kept_above_the_last_level(directory: str) -> None:
    store, maintenance = start(directory, small(max_bytes_for_level_base=10**6, compaction_style="tiered"))
    for value in (b"old", None):
        for _ in range(3):
            write(store, entries(0, 100, value))
            flush(store, maintenance)
        do_jobs(store, maintenance)
    assert sum(file.tombstones for file in store.manifest.all_files().values()) == 100
    assert everything(store) == {}
    compact_all(store, maintenance)
    assert store.manifest.all_files() == {}
    assert everything(store) == {}
    store.close()


@pytest.mark.parametrize("style", STYLES)
def test_sequential_keys_are_moved_and_never_rewritten(directory: str, style: str) -> None:
    store, maintenance = start(directory, small(compaction_style=style))
    model: Batch = {}
    for at in range(30):
        batch: Batch = {b"%06d" % key: os.urandom(10) for key in range(at * 100, at * 100 + 100)}
        write(store, batch)
        model.update(batch)
        flush(store, maintenance)
        do_jobs(store, maintenance)
    assert store.counters["moves"] >= 27
    assert (store.counters["compactions"], store.counters["compacted_bytes_written"]) == (0, 0)
    assert len(store.manifest.levels) > 2
    assert everything(store) == model
    store.close()


def test_blocks_that_nothing_overlaps_are_copied(directory: str) -> None:
    store, maintenance = start(directory, small(level0_file_num_compaction_trigger=2))
    write(store, {b"%05d" % key: os.urandom(20) for key in range(1000)})
    flush(store, maintenance)
    write(store, {b"00500": b"new", b"00501": b"new"})
    flush(store, maintenance)
    do_jobs(store, maintenance)
    assert store.counters["copied_blocks"] > 60
    assert store.get(b"00500") == b"new"
    assert len(everything(store)) == 1000
    store.close()


def test_a_drain_goes_on_after_a_crash(directory: str) -> None:
    options = small(compaction_style="leveled", max_compaction_bytes=1000, target_file_size_base=1000)
    store, maintenance = start(directory, options)
    random = Random(9)
    model: Batch = {}
    crashes = 0
    for at in range(40):
        batch: Batch = {b"%05d" % random.randrange(2000): b"%d" % at for _ in range(100)}
        write(store, batch)
        model.update(batch)
        flush(store, maintenance)
        while (job := maintenance.offer("compact")) is not None:
            maintenance.finish(work(store, job))
            if store.manifest.drain is not None and crashes < 25:
                crash(store)
                store, maintenance = start(directory, options)
                crashes += 1
                assert everything(store) == model
    assert crashes == 25
    assert store.manifest.drain is None
    store.close()


def test_a_compaction_of_a_range_can_be_asked_for(directory: str) -> None:
    store, maintenance = start(directory)
    overwrite(store, maintenance, 2, 300, Random(3))
    write(store, {b"00100": b"in memory"})
    ticket = maintenance.request_compaction(b"00100", b"00200")
    assert not maintenance.compaction_done(ticket)
    do_jobs(store, maintenance)
    assert maintenance.compaction_done(ticket)
    assert len(store.manifest.levels[0]) == 0
    assert maintenance.compaction_done(maintenance.request_compaction(b"x", None)) is False
    do_jobs(store, maintenance)
    store.close()


@pytest.mark.parametrize("style", STYLES)
def test_a_compaction_that_was_asked_for_and_those_that_are_due_take_turns(directory: str, style: str) -> None:
    """While others write: the one comes to an end, and level 0 does not fill up meanwhile."""
    options = small(compaction_style=style, max_bytes_for_level_base=64 * 1024, max_compaction_bytes=64 * 1024)
    store, maintenance = start(directory, options)
    random = Random(4)
    model: Batch = {}

    def write_some(count: int) -> None:
        batch: Batch = {b"%05d" % random.randrange(3000): random.randbytes(100) for _ in range(count)}
        write(store, batch)
        model.update(batch)
        flush(store, maintenance)

    for _ in range(20):
        write_some(300)
        do_jobs(store, maintenance)
    for _ in range(6):
        write_some(300)
    ticket = maintenance.request_compaction(None, None)
    most_runs = steps = 0
    while not maintenance.compaction_done(ticket):
        steps += 1
        assert steps < 500
        write_some(20)
        for _ in range(2):  # one may be the removal of files
            if (job := maintenance.offer("compact")) is not None:
                maintenance.finish(work(store, job))
        most_runs = max(most_runs, len(store.manifest.levels[0]))
    assert steps > 2
    assert most_runs <= 4
    assert everything(store) == model
    store.close()


def test_requests_for_compactions_are_bounded(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_module, "_MANUAL_MAX", 3)
    store, maintenance = start(directory)
    for _ in range(3):
        maintenance.request_compaction(None, None)
    with pytest.raises(KeyvaError, match="waiting already"):
        maintenance.request_compaction(None, None)
    do_jobs(store, maintenance)
    maintenance.request_compaction(None, None)
    store.close()


def test_a_compaction_that_fails_says_so_and_is_tried_again(directory: str) -> None:
    clock = Clock()
    store = Store(directory, SMALL)
    maintenance = Maintenance(store, clock)
    model = overwrite(store, maintenance, 3, 100, Random(3))
    do_jobs(store, maintenance, ("flush",))
    ticket = maintenance.request_compaction(None, None)
    while isinstance(job := maintenance.offer("compact"), RemoveJob):
        maintenance.finish(work(store, job))
    assert isinstance(job, CompactionJob)
    maintenance.finish(JobResult(id=job.id, error="NoSpaceError", message="disk full"))
    with pytest.raises(KeyvaError, match="disk full"):
        maintenance.compaction_done(ticket)
    assert "disk full" in maintenance.stats()["compaction_error"]
    assert maintenance.offer("compact") is None
    clock.now += 1
    do_jobs(store, maintenance)
    assert maintenance.stats()["compaction_error"] == ""
    assert len(store.manifest.levels[0]) == 0
    assert everything(store) == model
    store.close()


def test_removed_files_leave_the_manifest(directory: str) -> None:
    store, maintenance = start(directory)
    overwrite(store, maintenance, 6, 100, Random(3))
    do_jobs(store, maintenance)
    assert len(store.manifest.obsolete) > 3
    write(store, {b"a": b""})
    flush(store, maintenance)  # with the next change
    assert len(store.manifest.obsolete) == 1
    store.close()


def test_a_removal_that_fails_is_tried_again(directory: str) -> None:
    clock = Clock()
    store = Store(directory, SMALL)
    maintenance = Maintenance(store, clock)
    write(store, {b"a": b""})
    flush(store, maintenance)
    job = maintenance.offer("compact")
    assert isinstance(job, RemoveJob)
    maintenance.finish(JobResult(id=job.id, error="PermissionError", message="no"))
    assert maintenance.offer("compact") is None
    clock.now += 1
    do_jobs(store, maintenance)
    assert files_on_disk(store) == files_named(store)
    store.close()


# Damage


def test_a_damaged_sst_stops_the_compaction_that_meets_it_and_not_the_store(directory: str) -> None:
    clock = Clock()
    store = Store(directory, small(level0_stop_writes_trigger=6, level0_slowdown_writes_trigger=6, block_cache_size=0))
    maintenance = Maintenance(store, clock)
    model: Batch = {}
    for at in range(3):
        batch: Batch = {b"%05d" % key: b"%d" % at * 10 for key in range(at, 300, 2)}
        write(store, batch)
        model.update(batch)
        flush(store, maintenance)
    do_jobs(store, maintenance)
    bad = next(iter(store.manifest.all_files().values()))
    path = sst_path(directory, bad.number)
    damage(path, bad.size_bytes // 3)

    for at in range(30):
        batch = {b"%05d" % key: b"%d" % at for key in range(at % 10, 300, 10)}
        write(store, batch)
        model.update(batch)
        flush(store, maintenance)
        do_jobs(store, maintenance)
        clock.now += 60
        stall = maintenance.stall()
        assert stall is None or not stall.stop
    (damaged,) = maintenance.stats()["damaged"]
    assert damaged["sst"] == bad.number
    assert path in damaged["error"]
    assert bad.number in store.manifest.all_files()
    assert len(store.manifest.levels[0]) <= 8, "level 0 is merged among itself"
    readable = 0
    for key, value in model.items():
        try:
            assert store.get(key) == value
            readable += 1
        except CorruptionError:
            pass
    assert readable >= 270

    ticket = maintenance.request_compaction(None, None)
    with pytest.raises(CorruptionError, match="damaged"):
        for _ in range(100):
            do_jobs(store, maintenance)
            clock.now += 60
            assert not maintenance.compaction_done(ticket)
    assert everything_readable(store, model)
    store.close()


def test_a_place_that_the_disk_cannot_read_is_damage_of_one_file(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, small(level0_file_num_compaction_trigger=3, block_cache_size=0), files=files)
    maintenance = Maintenance(store, clock := Clock())
    for _ in range(3):
        write(store, entries(0, 300, b"1"))
        flush(store, maintenance)
    files.fail("pread", errno.EIO, times=1_000_000)
    (answer,) = store.write([WriteRequest(increment=(b"00001", 1))])
    assert isinstance(answer, CorruptionError), "the writer lives on, and says which file it is"
    assert write(store, {b"other": b"1"}) == (901, None)
    job = maintenance.offer("compact")
    while isinstance(job, RemoveJob):
        maintenance.finish(work(store, job))
        job = maintenance.offer("compact")
    assert isinstance(job, CompactionJob)
    maintenance.finish(run_job(directory, job, store.options, lambda _: None, files))
    assert maintenance.damaged and maintenance.wait_s("compact") is None
    maintenance.request_flush()
    flushing = maintenance.offer("flush")
    assert isinstance(flushing, FlushJob)
    result = run_job(directory, flushing, store.options, lambda _: None, files)
    files.heal()
    maintenance.finish(result)
    assert store.counters["flushes"] == 4, "the log could not be read, but what it holds is in memory"
    clock.now += 60
    assert store.get(b"other") == b"1"
    store.close()


def everything_readable(store: Store, model: Batch) -> bool:
    """Whether reads give right data or an error for every key, and data for most."""
    found = 0
    for key, value in model.items():
        try:
            assert store.get(key) == value
            found += 1
        except CorruptionError:
            pass
    return found > len(model) * 0.8


# Dying


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("scenario", ["flush", "compact"])
def test_a_job_and_its_commit_may_die_at_every_disk_operation(directory: str, scenario: str, power_cut: bool) -> None:
    options = small(level0_file_num_compaction_trigger=2, target_file_size_base=600, max_compaction_bytes=600, max_bytes_for_level_base=600)
    model = entries(0, 60, b"1") | entries(10, 50, b"2") | {b"new": b"3", b"n": b"5"}
    for die_at in range(400):
        files = DyingFiles()
        store, maintenance = start(f"{directory}{die_at}", options, files)
        as_of = store.position
        answer = increment(store, b"n", 5, client=7, request=1, floor=1)
        write(store, entries(0, 60, b"1"))
        if scenario == "compact":
            flush(store, maintenance)
        write(store, entries(10, 50, b"2"))
        if scenario == "compact":
            flush(store, maintenance)
        else:
            maintenance.request_flush()
        write(store, {b"new": b"3"})
        files.arm(die_at)
        try:
            do_jobs(store, maintenance)
            done = True
        except DiskDiedError:
            done = False
        crash(store)
        files.revive(power_cut=power_cut)
        store, maintenance = start(store.directory, options, files)
        assert everything(store) == model
        do_jobs(store, maintenance)
        assert everything(store) == model
        assert files_on_disk(store) == files_named(store)
        crash(store)
        files.power_cut()
        store, maintenance = start(store.directory, options, files)
        assert increment(store, b"n", 5, client=7, request=1, as_of=as_of, repeated=True) == answer
        assert everything(store) == model
        store.close()
        if done:
            assert die_at > 25
            return
    pytest.fail("never got through")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("scenario", ["flush", "compact"])
def test_a_job_and_its_commit_may_fail_at_every_disk_operation(directory: str, scenario: str, code: int) -> None:
    """One operation fails and the disk lives on: the job is done later, or the store stops and is started again."""
    options = small(level0_file_num_compaction_trigger=2, target_file_size_base=600, max_compaction_bytes=600, max_bytes_for_level_base=600)
    model = entries(0, 60, b"1") | entries(10, 50, b"2") | {b"new": b"3"}
    fatal = retried = 0
    for fail_at in range(400):
        clock = Clock()
        files = DyingFiles()
        store = Store(f"{directory}{fail_at}", options, files=files)
        maintenance = Maintenance(store, clock)
        write(store, entries(0, 60, b"1"))
        if scenario == "compact":
            flush(store, maintenance)
        write(store, entries(10, 50, b"2"))
        if scenario == "compact":
            flush(store, maintenance)
        else:
            maintenance.request_flush()
        write(store, {b"new": b"3"})
        files.arm(fail_at, raises=code)
        try:
            do_jobs(store, maintenance)
            retried += bool(maintenance.stats()["flush_error"] or maintenance.stats()["compaction_error"])
            clock.now += 100
            do_jobs(store, maintenance)
        except (FatalError, OSError):
            fatal += 1
        hit = files.operations > fail_at
        assert everything(store) == model
        crash(store)
        files.revive(power_cut=True)
        store = Store(store.directory, options, files=files)
        do_jobs(store, Maintenance(store))
        assert everything(store) == model
        assert files_on_disk(store) == files_named(store)
        store.close()
        if not hit:
            assert fail_at > 25
            assert retried > 10
            return
    pytest.fail("never got through")


# Figures


def test_stats_tell_the_whole_story(directory: str) -> None:
    store, maintenance = start(directory)
    write(store, entries(0, 100))
    flush(store, maintenance)
    write(store, {b"a": b"1"})
    stats = maintenance.stats()
    assert stats["directory"] == directory
    assert bytes.fromhex(stats["store_id"]) == store.manifest.store_id
    assert (stats["last_sequence"], stats["memtable_entries"], stats["immutable_memtables"]) == (101, 1, 0)
    assert (stats["writes"], stats["batches"], stats["flushes"]) == (101, 2, 1)
    (level,) = stats["levels"]
    (file,) = store.manifest.all_files().values()
    assert level == {"level": 0, "runs": 1, "files": 1, "bytes": file.size_bytes, "entries": 100, "capacity_bytes": 0}
    assert stats["flushed_bytes"] == file.size_bytes
    assert (stats["damaged"], stats["stall"], stats["flush_error"], stats["recovered_dropped_bytes"]) == ([], None, "", 0)
    assert os.path.exists(index_path(directory, file.number))
    store.close()


def test_no_space_for_a_flush_request_is_told(directory: str) -> None:
    files = FaultFiles()
    store, maintenance = start(directory, files=files)
    write(store, {b"a": b"1"})
    files.fail("pwritev", errno.ENOSPC, times=10)
    with pytest.raises(NoSpaceError):
        maintenance.request_flush()
    files.heal()
    assert maintenance.flush_done(maintenance.request_flush()) is False
    do_jobs(store, maintenance)
    assert maintenance.flush_done(store.manifest.logs[-1].number)
    store.close()
