from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
from storetools import SMALL, compact_all, crash, damage, do_jobs, flush, small, write

from keyva.batch import Batch
from keyva.errors import ClosedError, CorruptionError, InvalidArgumentError, StoreError
from keyva.filename import MANIFEST, index_path, sst_path, wal_path
from keyva.files import Files
from keyva.maintenance import Maintenance
from keyva.pulse import Pulse
from keyva.store import Store
from keyva.view import View
from keyva.wal import RECORD_BYTES

DEADLINE_S = 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "store"), SMALL)
    yield store
    store.close()


@pytest.fixture
def view(store: Store) -> Iterator[View]:
    view = View(store.directory, SMALL)
    yield view
    view.close()


def entries(first: int, last: int, value: bytes | None = b"v") -> Batch:
    return {b"%05d" % key: value for key in range(first, last)}


# What is seen


def test_what_was_acknowledged_is_seen_at_once(store: Store, view: View) -> None:
    write(store, {b"a": b"1", b"b": b"2"})
    assert view.get(b"a") == b"1"
    write(store, {b"a": None})
    assert view.get(b"a") is None
    assert view.get(b"a", b"default") == b"default"
    assert view.get_many(["b", b"a", b"b"]) == [b"2", None, b"2"]
    assert view.exists("b") and not view.exists("a")
    assert dict(view.iterator()) == {b"b": b"2"}
    assert view.sequence == store.last_sequence == 3


def test_flushes_and_compactions_change_nothing_that_is_read(store: Store, view: View) -> None:
    maintenance = Maintenance(store)
    model: Batch = {}
    for at in range(12):
        batch = entries(at * 20, at * 20 + 100, b"%d" % at)
        write(store, batch)
        model.update(batch)
        if at % 3 == 0:
            assert dict(view.iterator()) == model
        flush(store, maintenance)
        assert view.get_many(list(model)) == list(model.values())
        do_jobs(store, maintenance)
        assert dict(view.iterator()) == model
    assert view.manifest == store.manifest
    compact_all(store, maintenance)
    assert dict(view.iterator(reverse=True)) == model


def test_a_view_made_late_sees_everything(store: Store) -> None:
    write(store, entries(0, 50))
    flush(store, Maintenance(store))
    write(store, entries(50, 100))
    store.rotate()
    write(store, entries(100, 150))
    view = View(store.directory, SMALL)
    assert dict(view.iterator()) == entries(0, 150)
    assert view.sequence == store.last_sequence
    view.close()


def test_a_view_follows_a_store_that_crashed_and_came_back(store: Store, view: View) -> None:
    write(store, {b"a": b"1"})
    assert view.get(b"a") == b"1"
    write(store, {b"b": b"2"})
    crash(store)
    assert view.get(b"b") == b"2"
    again = Store(store.directory, SMALL)
    assert dict(view.iterator()) == {b"a": b"1", b"b": b"2"}
    write(again, {b"c": b"3"})
    assert view.get(b"c") == b"3"
    again.close()


def test_a_view_sees_a_write_from_the_store_of_its_position_on(store: Store, view: View) -> None:
    """Whatever moment of the publication a reader hits, or the writer dies at: what one reader has seen no other misses afterwards."""
    write(store, {b"a": b"1"})
    assert view.get(b"a") == b"1"
    words = store._pulse.words
    seen: list[tuple[int, list[object]]] = []

    class Watched:
        def __getitem__(self, at: int) -> int:
            return words[at]

        def __setitem__(self, at: int, value: int) -> None:
            words[at] = value
            fresh = View(store.directory, SMALL)
            seen.append((at, [view.get(b"b"), view.get(b"b"), fresh.get(b"b")]))
            fresh.close()

    store._pulse.words = Watched()  # type: ignore[assignment]
    write(store, {b"b": b"2"})
    store._pulse.words = words
    assert seen == [(2, [None] * 3), (0, [b"2"] * 3)]
    assert view._applied == words[2]


def test_a_view_that_is_up_to_date_looks_at_one_word(store: Store, view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, {b"a": b"1"})
    assert view.get(b"a") == b"1"
    monkeypatch.setattr(view, "_catch_up", lambda: pytest.fail("there is nothing new"))
    assert view.get(b"a") == b"1" and view.get(b"b") is None and view.get_many([b"a"]) == [b"1"]


def test_nothing_acknowledged_is_missed_while_a_writer_starts(store: Store) -> None:
    """A recovery names a new log in the manifest before PULSE names it: a view made in between must not take it for empty."""
    write(store, {b"a": b"1"})
    crash(store)
    answers: list[object] = []
    threads: list[threading.Thread] = []

    def read() -> None:
        try:
            view = View(store.directory, SMALL)
            answers.append(view.get(b"a"))
            view.close()
        except BaseException as error:
            answers.append(error)

    class ReadsAfterManifest(Files):
        def rename(self, source: str, target: str) -> None:
            super().rename(source, target)
            if os.path.basename(target) == MANIFEST:
                thread = threading.Thread(target=read)
                threads.append(thread)
                thread.start()
                thread.join(0.1)  # time to read something wrong

    again = Store(store.directory, SMALL, files=ReadsAfterManifest())
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == [b"1"] * len(threads) != []
    again.close()


@pytest.mark.parametrize("options", [SMALL, small(allow_mmap_reads=True, block_cache_size=0)], ids=["pread", "mmap"])
def test_a_view_racing_the_writer_sees_every_acknowledged_write(tmp_path: Path, options: object) -> None:
    directory = str(tmp_path / "store")
    store = Store(directory, small(write_buffer_size=3000, durability="os"))
    maintenance = Maintenance(store)
    view = View(directory, options)  # type: ignore[arg-type]
    acknowledged: Queue[int | None] = Queue()
    problems: list[str] = []

    def produce() -> None:
        try:
            for at in range(1500):
                write(store, {b"%05d" % at: b"%d" % at, b"last": b"%05d" % at, b"%05d" % (at - 700): None})
                acknowledged.put(at)
                maintenance.after_write()
                if at % 20 == 0:
                    do_jobs(store, maintenance)
        except BaseException as error:
            problems.append(repr(error))
        finally:
            acknowledged.put(None)

    def check(at: int, last_seen: int) -> int:
        # the key may have been deleted since, and only by a write that is seen too
        if view.get(b"%05d" % at) != b"%d" % at and int(view.get(b"last")) < at + 700:
            problems.append(f"{at} was acknowledged and is not seen")
        last = int(view.get(b"last"))
        if last < max(at, last_seen):
            problems.append(f"last went back to {last}")
        if at % 50 == 0:
            with view.snapshot() as snapshot:
                last = int(snapshot.get(b"last"))
                found = [key for key in snapshot.iterator(include_value=False) if key != b"last"]
                if found != [b"%05d" % key for key in range(max(0, last - 699), last + 1)]:
                    problems.append(f"a snapshot at {last} has {len(found)} keys from {found[:1]}")
        return last

    threads = [threading.Thread(target=produce)]

    def consume() -> None:
        last = 0
        try:
            while (at := acknowledged.get(timeout=DEADLINE_S)) is not None:
                last = check(at, last)
            acknowledged.put(None)
        except BaseException as error:
            problems.append(repr(error))

    threads += [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert problems == []
    assert store.counters["compactions"] + store.counters["moves"] > 3
    view.close()
    store.close()


# Snapshots and iterators


def test_a_snapshot_is_frozen_while_everything_changes(store: Store, view: View) -> None:
    maintenance = Maintenance(store)
    model: Batch = {}
    held = []
    for at in range(10):
        batch = entries(at * 7, at * 7 + 40, b"%d" % at if at % 3 else None)
        write(store, batch)
        model.update(batch)
        live = {key: value for key, value in model.items() if value is not None}
        held.append((view.snapshot(), live, store.last_sequence))
        if at % 2:
            flush(store, maintenance)
            do_jobs(store, maintenance)
    compact_all(store, maintenance)
    for snapshot, live, sequence in held:
        assert snapshot.sequence == sequence
        assert dict(snapshot.iterator()) == live
        assert list(snapshot.iterator(reverse=True)) == sorted(live.items(), reverse=True)
        assert snapshot.get_many(list(model)) == [live.get(key) for key in model]
        snapshot.close()


def test_snapshots_let_go_of_files_and_layers(store: Store, view: View) -> None:
    write(store, entries(0, 50))
    flush(store, Maintenance(store))
    for at in range(200):
        with view.snapshot() as snapshot:
            write(store, {b"%d" % at: b""})
            assert snapshot.get(b"%d" % at) is None
    dicts, _ = view._state
    assert len(dicts) <= 12
    write(store, {b"last": b""})
    assert view.get(b"last") == b""
    assert not any(layer.pins for memtable in view._memtables.values() for layer in memtable._layers)


def test_open_snapshots_survive_the_view(store: Store) -> None:
    write(store, entries(0, 50))
    flush(store, Maintenance(store))
    write(store, entries(50, 60))
    view = View(store.directory, SMALL)
    snapshot = view.snapshot()
    iterator = view.iterator()
    view.close()
    assert dict(snapshot.iterator()) == dict(iterator) == entries(0, 60)
    snapshot.close()
    iterator.close()


def test_an_iterator_sees_the_store_as_it_was_when_it_was_made(store: Store, view: View) -> None:
    write(store, entries(0, 500))
    iterator = view.iterator(include_value=False)
    first = [next(iterator) for _ in range(3)]
    write(store, entries(0, 500, None))
    flush(store, Maintenance(store))
    assert first + list(iterator) == sorted(entries(0, 500))
    assert iterator.prev() == b"00499"
    iterator.seek_to_start()
    assert next(iterator) == b"00000"
    iterator.close()
    assert list(view.iterator()) == []


def test_ranges_and_prefixes(store: Store, view: View) -> None:
    write(store, {b"a": b"", b"b1": b"", b"b2": b"", b"b\xff": b"", b"c": b"", b"\xff": b"", b"\xff\xfe": b""})

    def keys(**settings: object) -> list[bytes]:
        return list(view.iterator(include_value=False, **settings))  # type: ignore[arg-type]

    assert keys(prefix=b"b") == [b"b1", b"b2", b"b\xff"]
    assert keys(prefix=b"\xff") == [b"\xff", b"\xff\xfe"]
    assert keys(prefix="b", reverse=True) == [b"b\xff", b"b2", b"b1"]
    assert keys(start=b"b1", stop=b"b2") == [b"b1"]
    assert keys(start="b1", stop="b2", include_start=False, include_stop=True) == [b"b2"]
    assert keys(stop=b"b") == [b"a"]
    assert keys(start=b"c", reverse=True) == [b"\xff\xfe", b"\xff", b"c"]


# Files


def test_a_view_reads_on_when_its_files_are_removed(store: Store, view: View) -> None:
    maintenance = Maintenance(store)
    for at in range(3):
        write(store, entries(at, 300, b"%d" % at))
        flush(store, maintenance)
    snapshot = view.snapshot()
    files = set(store.manifest.all_files())
    compact_all(store, maintenance)
    do_jobs(store, maintenance)
    assert not any(os.path.exists(sst_path(store.directory, number)) for number in files)
    assert dict(snapshot.iterator()) == {b"%05d" % key: b"%d" % min(key, 2) for key in range(300)}
    snapshot.close()


def test_a_manifest_that_names_a_missing_file_is_reported_not_waited_for(store: Store) -> None:
    write(store, entries(0, 50))
    flush(store, Maintenance(store))
    (number,) = store.manifest.all_files()
    path = sst_path(store.directory, number)
    os.rename(path, f"{path}.away")
    with pytest.raises(CorruptionError, match="missing") as caught:
        View(store.directory, SMALL)
    assert caught.value.path == path


def test_a_file_missed_while_a_writer_starts_is_no_damage(store: Store) -> None:
    write(store, entries(0, 50))
    crash(store)
    started: list[Store] = []

    class MeanwhileAWriterStarts(Files):
        """Between the view's reading of the manifest and its opening of the log; that writer has not published yet."""

        def open_read(self, path: str) -> int:
            if path.endswith(".wal") and not started:
                with pytest.MonkeyPatch.context() as patched:
                    patched.setattr(Pulse, "publish", lambda *_: None)
                    started.append(Store(store.directory, SMALL))
                return super().open_read(path)
            if started:
                started[0]._publish()
            return super().open_read(path)

    view = View(store.directory, SMALL, files=MeanwhileAWriterStarts())
    assert len(dict(view.iterator())) == 50
    view.close()
    started[0].close()


def test_keys_looked_up_together_are_of_one_moment(store: Store, view: View) -> None:
    keys = [b"%05d" % key for key in range(2000)]
    write(store, dict.fromkeys(keys, b"0"))
    stop = threading.Event()

    def go_on_writing() -> None:
        for at in range(100):
            write(store, dict.fromkeys(keys, b"%d" % at))
        stop.set()

    def follow() -> None:
        while not stop.is_set():
            view.get(keys[0])

    others = [threading.Thread(target=target) for target in (go_on_writing, follow)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for other in others:
            other.start()
        found = []
        while not stop.is_set():
            found.append(len(set(view.get_many(keys))))
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for other in others:
            other.join()
    assert set(found) == {1}


def test_one_key_is_not_taken_for_many(view: View) -> None:
    with view.snapshot() as snapshot:
        for reads in (view, snapshot):
            for key in ("abc", b"abc"):
                with pytest.raises(TypeError, match="not one key"):
                    reads.get_many(key)  # type: ignore[arg-type]
                with pytest.raises(TypeError, match="not one key"):
                    reads.content_types(key)  # type: ignore[arg-type]


def test_keys_may_be_of_any_type_with_bytes_in_it(store: Store, view: View) -> None:
    write(store, {b"k": b"v"})
    for key in ("k", bytearray(b"k"), memoryview(b"k"), memoryview(bytearray(b"k"))):
        assert view.get(key) == b"v"


def test_a_directory_without_a_store_is_refused(tmp_path: Path, store: Store) -> None:
    os.rename(os.path.join(store.directory, MANIFEST), os.path.join(store.directory, "away"))
    with pytest.raises(StoreError):
        View(store.directory, SMALL)
    with pytest.raises(FileNotFoundError):
        View(str(tmp_path / "nothing"), SMALL)


def test_damage_in_an_sst_fails_its_own_block_only(store: Store) -> None:
    model: Batch = {b"%05d" % key: os.urandom(20) for key in range(200)}
    write(store, model)
    flush(store, Maintenance(store))
    (number,) = store.manifest.all_files()
    path = sst_path(store.directory, number)
    damage(path, os.path.getsize(path) // 2)
    view = View(store.directory, SMALL)
    failed, paths = [], set()
    for key, value in model.items():
        try:
            assert view.get(key) == value
        except CorruptionError as error:
            failed.append(key)
            paths.add(error.path)
    assert paths == {path}
    assert 0 < len(failed) < 20
    assert failed == sorted(model)[sorted(model).index(failed[0]) :][: len(failed)]
    below, above = sorted(key for key in model if key < failed[0]), sorted(key for key in model if key > failed[-1])
    for reverse in (False, True):
        assert sorted(view.iterator(stop=failed[0], include_value=False, reverse=reverse)) == below
        assert sorted(view.iterator(start=above[0], include_value=False, reverse=reverse)) == above
    with pytest.raises(CorruptionError):
        list(view.iterator())
    view.close()


def test_damage_in_a_log_is_never_answered_with_wrong_data(store: Store) -> None:
    write(store, {b"a": b"1"})
    offset = store._log.offset
    write(store, {b"b": b"2"})
    damage(wal_path(store.directory, store._log.number), offset + RECORD_BYTES + 2)
    with pytest.raises(CorruptionError) as caught:
        View(store.directory, SMALL)
    assert caught.value.offset == offset


def test_a_damaged_index_is_rebuilt(store: Store) -> None:
    write(store, entries(0, 200))
    flush(store, Maintenance(store))
    (number,) = store.manifest.all_files()
    path = Path(index_path(store.directory, number))
    good = path.read_bytes()
    damage(str(path), 100)
    view = View(store.directory, SMALL)
    assert dict(view.iterator()) == entries(0, 200)
    assert path.read_bytes() == good
    view.close()


def test_the_cache_is_bounded_and_given_back(store: Store, view: View) -> None:
    write(store, {b"%05d" % key: os.urandom(100) for key in range(3000)})
    flush(store, Maintenance(store))
    for key in range(3000):
        view.get(b"%05d" % key)
    assert 0 < view.cache.size_bytes <= SMALL.block_cache_size + 5000
    view.cache.drop_idle()
    view.cache.drop_idle()
    assert view.cache.size_bytes == 0


# Misuse


def test_keys_that_are_not_allowed_are_refused(view: View) -> None:
    for key in (b"\xff\xff", b"\xff\xffx", b"k" * 65537):
        with pytest.raises(InvalidArgumentError):
            view.get(key)
        with pytest.raises(InvalidArgumentError):
            view.get_many([b"a", key])
    for key in (None, 7, ["a"]):  # type: ignore[assignment]
        with pytest.raises(TypeError):
            view.get(key)
    assert view.get(bytearray(b"a")) is None
    assert view.get(b"k" * 65536) is None


def test_a_closed_view_says_so(store: Store) -> None:
    write(store, {b"a": b"1"})
    view = View(store.directory, SMALL)
    view.close()
    view.close()
    for call in (lambda: view.get(b"a"), lambda: view.get_many([b"a"]), view.snapshot, view.iterator, lambda: view.exists(b"a")):
        with pytest.raises(ClosedError):
            call()


def removed_files_open(directory: str) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the directory's own
            continue
        if target.startswith(directory) and target.endswith("(deleted)"):
            found.append(target)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_view_that_nobody_reads_lets_go_of_files_and_memory(store: Store) -> None:
    maintenance = Maintenance(store)
    view = View(store.directory, SMALL)
    for at in range(3):
        write(store, entries(0, 300, b"%d" % at))
        flush(store, maintenance)
        assert view.get(b"00001") == b"%d" % at
    snapshot = view.snapshot()
    compact_all(store, maintenance)
    write(store, {b"new": b"n"})
    assert removed_files_open(os.path.realpath(store.directory))
    view.let_go_if_idle()
    assert view.get(b"new") == b"n", "somebody reads"
    view.let_go_if_idle()
    compact_all(store, maintenance)
    view.let_go_if_idle()
    assert not view._memtables and view._version is None
    assert snapshot.get(b"00001") == b"2" and snapshot.get(b"new") is None, "a snapshot keeps what it needs"
    snapshot.close()
    assert not removed_files_open(os.path.realpath(store.directory))
    assert (view.get(b"00001"), view.get(b"new"), view.get(b"none")) == (b"2", b"n", None)
    view.let_go_if_idle()
    view.let_go_if_idle()
    assert view.get_many([b"00001", b"none", b"new"]) == [b"2", None, b"n"]
    view.let_go_if_idle()
    view.let_go_if_idle()
    assert len(dict(view.iterator())) == 301
    view.close()
    view.let_go_if_idle()
    with pytest.raises(ClosedError):
        view.get(b"new")


def test_reads_beside_a_view_that_lets_go_miss_nothing(store: Store, view: View) -> None:
    write(store, {b"a": b"1"})
    flush(store, Maintenance(store))
    write(store, {b"b": b"2"})
    stop = threading.Event()

    def let_go() -> None:
        while not stop.is_set():
            view.let_go_if_idle()

    other = threading.Thread(target=let_go)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        other.start()
        for _ in range(1500):
            assert (view.get(b"a"), view.get(b"b"), view.get(b"c")) == (b"1", b"2", None)
            assert view.get_many([b"a", b"b"]) == [b"1", b"2"]
            typed = view.get_typed(b"b")
            assert typed is not None and typed.value == b"2"
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()


def test_how_far_a_view_lags_behind_is_known(store: Store, view: View) -> None:
    view.get(b"a")
    assert view.lag_bytes() == 0
    before = store.position
    write(store, {b"a": b"1"})
    assert view.lag_bytes() == store.position - before
    view.get(b"a")
    assert (view.lag_bytes(), view.position) == (0, store.position)
