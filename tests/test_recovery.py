from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from random import Random

import msgspec
import pytest
from faultfiles import FaultFiles
from storetools import SMALL, DiskDiedError, DyingFiles, crash, damage, do_jobs, flush, increment, write
from storetools import small_reserve as small_reserve

from keyva.batch import Batch
from keyva.errors import CorruptionError, FormatVersionError, StoreError
from keyva.filename import MANIFEST, index_path, sst_path, wal_path
from keyva.maintenance import Maintenance
from keyva.manifest import Manifest, load_manifest, store_manifest
from keyva.store import Store
from keyva.wal import RECORD_BYTES


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def start(directory: str, files: FaultFiles | None = None) -> Store:
    return Store(directory, SMALL) if files is None else Store(directory, SMALL, files=files)


def crashed(directory: str, *batches: Batch) -> tuple[str, list[int]]:
    """Write ``batches`` and crash; returns the active log's path and where each record ends."""
    store = start(directory)
    ends = []
    for batch in batches:
        write(store, batch)
        ends.append(store._log.offset)
    path = store._log.path
    crash(store)
    return path, ends


def manifest_of(directory: str) -> Manifest:
    manifest = load_manifest(directory)
    assert manifest is not None
    return manifest


def everything(store: Store) -> Batch:
    return dict(store.iterator())


def names(directory: str) -> set[str]:
    return {os.path.join(folder, name) for folder in ("wal", "sst") for name in os.listdir(os.path.join(directory, folder))}


# The first start


@pytest.mark.parametrize("power_cut", [False, True])
def test_a_first_start_may_die_at_every_disk_operation_and_be_done_again(directory: str, power_cut: bool) -> None:
    for die_at in range(200):
        path = f"{directory}{die_at}"
        files = DyingFiles()
        files.arm(die_at)
        done = False
        try:
            store = start(path, files)
            try:
                write(store, {b"a": b"1"})
                done = True
            finally:
                crash(store)
        except DiskDiedError:
            pass
        files.revive(power_cut=power_cut)
        store = start(path, files)
        assert everything(store) == {b"a": b"1"} or not done
        write(store, {b"b": b"2"})
        crash(store)
        files.power_cut()
        store = start(path, files)
        assert store.get(b"b") == b"2"
        store.close()
        if done:
            assert die_at > 15
            return
    pytest.fail("never got through")


def test_a_first_start_removes_nothing(directory: str) -> None:
    for name in ("wal", "sst"):
        os.makedirs(os.path.join(directory, name))
    left = Path(directory, "sst", "000009.sst.1.tmp")
    left.write_bytes(b"whose?")
    start(directory).close()
    assert left.exists()
    start(directory).close()
    assert not left.exists()


@pytest.mark.parametrize("name", ["wal/000007.wal", "sst/000007.sst", "wal/notes.txt"])
def test_a_missing_manifest_beside_files_is_refused_not_replaced(directory: str, name: str) -> None:
    for folder in ("wal", "sst"):
        os.makedirs(os.path.join(directory, folder))
    Path(directory, name).write_bytes(b"data")
    with pytest.raises(StoreError, match="MANIFEST is missing"):
        start(directory)
    assert Path(directory, name).read_bytes() == b"data"
    assert not Path(directory, MANIFEST).exists()


def test_a_lost_manifest_is_refused_and_nothing_is_touched(directory: str) -> None:
    crashed(directory, {b"a": b"1"})
    os.unlink(os.path.join(directory, MANIFEST))
    before = names(directory)
    with pytest.raises(StoreError, match="refusing"):
        start(directory)
    assert names(directory) == before


# The log's end


def test_a_torn_last_record_is_dropped_and_logged_with_offset_and_bytes(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    path, ends = crashed(directory, {b"a": b"1"}, {b"b": b"2"}, {b"c": b"x" * 100})
    os.truncate(path, ends[2] - 10)
    with caplog.at_level(logging.WARNING):
        store = start(directory)
    assert everything(store) == {b"a": b"1", b"b": b"2"}
    torn = ends[2] - 10 - ends[1]
    assert store.dropped_bytes == torn
    (record,) = [record for record in caplog.records if record.name == "keyva.recovery"]
    assert f"{path}: dropped a torn tail at offset {ends[1]}, {torn} bytes" in record.getMessage()
    assert write(store, {b"c": b"3"}) == (3, None), "its sequence number is free again"
    store.close()
    store = start(directory)
    assert store.dropped_bytes == 0
    store.close()


def test_every_cut_of_the_last_record_leaves_all_before_it(directory: str) -> None:
    path, ends = crashed(directory, {b"a": b"1"}, {b"b": b"x" * 20})
    for size in range(ends[0], ends[1] + 1):
        copy = f"{directory}-{size}"
        shutil.copytree(directory, copy)
        os.truncate(os.path.join(copy, "wal", os.path.basename(path)), size)
        store = start(copy)
        assert everything(store) == ({b"a": b"1"} if size < ends[1] else {b"a": b"1", b"b": b"x" * 20})
        store.close()


def test_damage_below_what_was_synced_is_refused(directory: str) -> None:
    path, ends = crashed(directory, {b"a": b"1"}, {b"b": b"2"}, {b"c": b"3"})
    damage(path, ends[0] + RECORD_BYTES + 1)
    before = names(directory)
    for _ in range(2):
        with pytest.raises(CorruptionError) as caught:
            start(directory)
        assert (caught.value.path, caught.value.offset) == (path, ends[0])
    assert names(directory) == before, "nothing was removed or cut"


def test_damage_of_the_last_record_is_refused_after_a_clean_stop(directory: str) -> None:
    store = start(directory)
    write(store, {b"a": b"1"})
    write(store, {b"b": b"2"})
    path = store._log.path
    store.close()
    assert manifest_of(directory).logs[-1].synced_bytes == os.path.getsize(path)
    damage(path, os.path.getsize(path) - 1)
    with pytest.raises(CorruptionError, match="the manifest says that it was synced"):
        start(directory)


def test_damage_of_what_was_recovered_is_refused_though_nothing_was_written_since(directory: str) -> None:
    crashed(directory, {b"a": b"1"})
    store = start(directory)
    path, end = store._log.path, store._log.offset
    crash(store)
    damage(path, end - 1)
    with pytest.raises(CorruptionError, match="the manifest says that it was synced"):
        start(directory)


def test_damage_anywhere_in_a_sealed_log_is_refused(directory: str) -> None:
    store = start(directory)
    write(store, {b"a": b"1"}, sync=False)
    offset = store._log.offset
    write(store, {b"b": b"2"}, sync=False)
    path = store._log.path
    store.rotate()
    crash(store)
    damage(path, offset + RECORD_BYTES + 2)
    with pytest.raises(CorruptionError, match="sealed log is damaged") as caught:
        start(directory)
    assert (caught.value.path, caught.value.offset) == (path, offset)


def test_what_was_recovered_from_the_tail_survives_the_next_power_cut(directory: str) -> None:
    files = FaultFiles()
    store = start(directory, files)
    write(store, {b"a": b"1"}, sync=False)
    crash(store)
    store = start(directory, files)
    assert store.get(b"a") == b"1"
    crash(store)
    files.power_cut()
    store = start(directory, files)
    assert store.get(b"a") == b"1", "it was served, so it must stay"
    store.close()


@pytest.mark.parametrize("seed", range(15))
def test_after_a_power_cut_the_store_is_a_prefix_of_the_acknowledged_order(directory: str, seed: int) -> None:
    random = Random(seed)
    files = FaultFiles()
    store = start(directory, files)
    model: Batch = {}
    states: list[Batch] = [{}]
    durable = 0
    for _ in range(6):
        for _ in range(random.randrange(12)):
            batch: Batch = {b"%d" % random.randrange(9): random.choice([None, os.urandom(random.choice([3, 700]))]) for _ in range(3)}
            sync = random.random() < 0.3
            write(store, batch, sync=sync)
            model.update(batch)
            states.append({key: value for key, value in model.items() if value is not None})
            durable = len(states) - 1 if sync else durable
            if random.random() < 0.1:
                store.rotate()
                durable = len(states) - 1
        crash(store)
        if random.random() < 0.7:
            files.power_cut(random if random.random() < 0.7 else None)
        else:
            durable = len(states) - 1
        store = start(directory, files)
        found = everything(store)
        prefixes = [at for at in range(durable, len(states)) if states[at] == found]
        assert prefixes, f"seed {seed}: neither what was durable nor any later state"
        model = dict(found)
        states, durable = [found], 0
    store.close()


# What the manifest names


def test_a_missing_sst_is_refused(directory: str) -> None:
    store = start(directory)
    write(store, {b"a": b"1"})
    flush(store, Maintenance(store))
    (number,) = store.manifest.all_files()
    store.close()
    os.unlink(sst_path(directory, number))
    with pytest.raises(CorruptionError, match="missing") as caught:
        start(directory)
    assert caught.value.path == sst_path(directory, number)


@pytest.mark.parametrize("which", ["sealed", "active"])
def test_a_missing_log_is_refused(directory: str, which: str) -> None:
    store = start(directory)
    write(store, {b"a": b"1"})
    store.rotate()
    path = wal_path(directory, store.manifest.logs[0 if which == "sealed" else 1].number)
    crash(store)
    os.unlink(path)
    with pytest.raises(CorruptionError, match="missing") as caught:
        start(directory)
    assert caught.value.path == path


def test_a_missing_index_is_no_harm(directory: str) -> None:
    store = start(directory)
    write(store, {b"a": b"1"})
    flush(store, Maintenance(store))
    (number,) = store.manifest.all_files()
    store.close()
    good = Path(index_path(directory, number)).read_bytes()
    os.unlink(index_path(directory, number))
    store = start(directory)
    assert store.get(b"a") == b"1"
    assert Path(index_path(directory, number)).read_bytes() == good
    store.close()


def test_a_damaged_manifest_is_refused(directory: str) -> None:
    crashed(directory, {b"a": b"1"})
    path = os.path.join(directory, MANIFEST)
    for offset in range(0, os.path.getsize(path), 7):
        damage(path, offset)
        with pytest.raises(CorruptionError) as caught:
            start(directory)
        assert caught.value.path == path
        damage(path, offset)
    start(directory).close()


def test_a_store_of_a_newer_format_is_refused(directory: str) -> None:
    crashed(directory, {b"a": b"1"})
    before = names(directory)
    for newer in ({"format": 2}, {"features": ("expiry",)}):
        manifest = manifest_of(directory)
        store_manifest(directory, msgspec.structs.replace(manifest, **newer))
        with pytest.raises(FormatVersionError):
            start(directory)
        store_manifest(directory, manifest)
    assert names(directory) == before


def test_a_log_of_another_store_is_refused(directory: str) -> None:
    path, _ = crashed(directory, {b"a": b"1"})
    other, _ = crashed(f"{directory}-other", {b"a": b"2"})
    assert os.path.basename(path) == os.path.basename(other)
    shutil.copy(other, path)
    with pytest.raises(CorruptionError, match="another store"):
        start(directory)


def test_logs_must_follow_one_another(directory: str) -> None:
    store = start(directory)
    for key in (b"a", b"b", b"c"):
        write(store, {key: b""})
        store.rotate()
    crash(store)
    manifest = manifest_of(directory)
    store_manifest(directory, msgspec.structs.replace(manifest, logs=(manifest.logs[0], *manifest.logs[2:])))
    with pytest.raises(CorruptionError, match="expected 2"):
        start(directory)


def test_a_manifest_and_a_log_that_disagree_are_refused(directory: str) -> None:
    crashed(directory, {b"a": b"1"})
    manifest = manifest_of(directory)
    log = msgspec.structs.replace(manifest.logs[0], first_sequence=5)
    store_manifest(directory, msgspec.structs.replace(manifest, logs=(log,)))
    with pytest.raises(CorruptionError, match="the manifest says 5"):
        start(directory)


# What no manifest names


def test_what_no_manifest_names_is_swept(directory: str) -> None:
    crashed(directory, {b"a": b"1"})
    orphans = ["wal/000777.wal", "sst/000778.sst", "sst/000778.index", "sst/000001.index.77.tmp", f"{MANIFEST}.123.tmp"]
    kept = ["wal/notes.txt", "sst/1.sst", "README"]
    for name in orphans + kept:
        Path(directory, name).write_bytes(b"x")
    start(directory).close()
    assert [name for name in orphans if Path(directory, name).exists()] == []
    assert [name for name in kept if not Path(directory, name).exists()] == []
    assert manifest_of(directory).next_number < 777, "orphans do not count"


def test_only_live_logs_are_left_after_a_start(directory: str) -> None:
    for at in range(4):
        store = start(directory)
        write(store, {b"%d" % at: b""})
        crash(store)
    store = start(directory)
    assert names(directory) == {f"wal/{store._log.number:06d}.wal"}
    assert everything(store) == {b"%d" % at: b"" for at in range(4)}
    store.close()


# Starts that die


@pytest.mark.parametrize("power_cut", [False, True])
def test_a_recovery_may_die_at_every_disk_operation(directory: str, power_cut: bool) -> None:
    acknowledged: Batch = {b"n": b"5", b"old": b"1", b"b": b"2"}
    for die_at in range(200):
        path = f"{directory}{die_at}"
        files = DyingFiles()
        store = start(path, files)
        as_of = store.position
        maintenance = Maintenance(store)
        write(store, {b"old": b"1", b"b": b"1"})
        flush(store, maintenance)
        write(store, {b"b": b"2"})
        store.rotate()
        answer = increment(store, b"n", 5, client=7, request=1, floor=1)
        write(store, {b"lost?": b"x"}, sync=False)
        crash(store)
        if power_cut:
            files.power_cut()
        files.arm(die_at)
        try:
            store = start(path, files)
            crash(store)
            done = True
        except DiskDiedError:
            done = False
        files.revive(power_cut=power_cut)
        store = start(path, files)
        found = everything(store)
        assert found == acknowledged | ({} if power_cut else {b"lost?": b"x"})
        assert increment(store, b"n", 5, client=7, request=1, as_of=as_of, repeated=True) == answer
        maintenance = Maintenance(store)
        flush(store, maintenance)
        do_jobs(store, maintenance)
        assert everything(store) == found
        store.close()
        if done:
            assert die_at > 15
            return
    pytest.fail("never got through")


def test_progress_is_shown_per_record(directory: str) -> None:
    crashed(directory, *[{b"%d" % at: b""} for at in range(20)])  # type: ignore[arg-type]
    calls: list[int] = []
    Store(directory, SMALL, progress=lambda: calls.append(1)).close()
    assert len(calls) == 22, "and once when the log has been read, and when it has been written anew"
