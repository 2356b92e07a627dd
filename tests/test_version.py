from __future__ import annotations

import os
from pathlib import Path
from random import Random

import msgspec
import pytest
from storetools import SMALL, STORE_ID, damage, make_run, write_sst

from keyva.batch import Batch
from keyva.block import Columns
from keyva.cache import BlockCache
from keyva.errors import CorruptionError
from keyva.filename import index_path, sst_path
from keyva.manifest import LogMeta, Manifest, Run
from keyva.memtable import MISSING
from keyva.sst import DamagedTable, Table
from keyva.version import Version, open_version, rows_bytes


def manifest_of(*levels: tuple[Run, ...]) -> Manifest:
    return Manifest(
        store_id=STORE_ID, generation=2, last_sequence=1, next_number=1000, logs=(LogMeta(number=999, first_sequence=2),), levels=levels
    )


def opened(directory: str, *levels: tuple[Run, ...], capacity_bytes: int = 1 << 20) -> Version:
    return open_version(directory, manifest_of(*levels), {}, BlockCache(capacity_bytes, 3600))


def entries(first: int, last: int, value: bytes | None) -> Batch:
    return {b"%04d" % key: value for key in range(first, last)}


def test_the_newest_run_that_has_the_key_answers(store_dir: str) -> None:
    oldest = make_run(store_dir, 1, entries(0, 100, b"old"), entries(100, 200, b"old"))
    middle = make_run(store_dir, 2, entries(50, 150, b"middle"))
    newest = make_run(store_dir, 3, {b"0060": None, b"0070": b"new"})
    version = opened(store_dir, (newest, middle), (oldest,))
    assert version.get(b"0049") == b"old"
    assert version.get(b"0050") == version.get(b"0149") == b"middle"
    assert version.get(b"0060") is None
    assert version.get(b"0070") == b"new"
    assert version.get(b"0199") == b"old"
    for absent in (b"", b"00601", b"0200", b"\xfe"):
        assert version.get(absent) is MISSING


@pytest.mark.parametrize("bits", [0.0, 10.0])
def test_every_key_is_found_with_and_without_filters(store_dir: str, bits: float) -> None:
    options = msgspec.structs.replace(SMALL, bloom_filter_bits=bits)
    batch: Batch = {b"%04d" % (2 * key): b"%d" % key for key in range(300)}
    version = opened(store_dir, (make_run(store_dir, 1, batch, options=options),))
    assert all(version.get(key) == value for key, value in batch.items())
    assert all(version.get(b"%04d" % (2 * key + 1)) is MISSING for key in range(300))


def test_entries_below_a_raised_smallest_are_no_part_of_the_store(store_dir: str) -> None:
    (file,) = make_run(store_dir, 1, entries(0, 100, b"cut")).files
    trimmed = Run(id=1, files=(msgspec.structs.replace(file, smallest=b"0050"),))
    below = make_run(store_dir, 2, entries(0, 50, b"moved"))
    version = opened(store_dir, (trimmed,), (below,))
    assert version.get(b"0049") == b"moved"
    assert version.get(b"0050") == b"cut"


def test_a_run_knows_whether_it_has_tombstones(store_dir: str) -> None:
    without, both = make_run(store_dir, 1, entries(0, 10, b"1")), make_run(store_dir, 2, entries(0, 10, b"1"), {b"0020": None})
    assert [run.tombstones for run in opened(store_dir, (both,), (without,)).runs] == [True, False]


def test_the_next_version_opens_only_what_is_new(store_dir: str) -> None:
    first, second = make_run(store_dir, 1, entries(0, 10, b"1")), make_run(store_dir, 2, entries(10, 20, b"2"))
    cache = BlockCache(0, 3600)
    before = open_version(store_dir, manifest_of((first,)), {}, cache)
    after = open_version(store_dir, manifest_of((second, first)), before.tables, cache)
    assert after.tables[10] is before.tables[10]
    assert set(after.tables) == {10, 20}


def test_a_file_that_was_removed_is_read_on(store_dir: str) -> None:
    version = opened(store_dir, (make_run(store_dir, 1, entries(0, 100, b"1")),), capacity_bytes=0)
    for path in (sst_path(store_dir, 10), index_path(store_dir, 10)):
        os.unlink(path)
    assert version.get(b"0042") == b"1"
    assert not Path(index_path(store_dir, 10)).exists(), "the index of a removed file is not brought back"


def test_descriptors_are_closed_with_the_last_version(store_dir: str) -> None:
    version = opened(store_dir, (make_run(store_dir, 1, entries(0, 100, b"1")),))
    descriptor = version.tables[10]._fd
    os.fstat(descriptor)
    del version
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_missing_file_is_a_file_not_found(store_dir: str) -> None:
    run = make_run(store_dir, 1, entries(0, 10, b"1"))
    os.unlink(sst_path(store_dir, 10))
    with pytest.raises(FileNotFoundError):
        opened(store_dir, (run,))


def test_reads_of_a_file_of_another_size_or_store_are_refused_and_others_go_on(store_dir: str) -> None:
    (file,) = make_run(store_dir, 1, entries(0, 10, b"1")).files
    version = opened(store_dir, (Run(id=1, files=(msgspec.structs.replace(file, size_bytes=file.size_bytes + 1),)),))
    assert version.get(b"zzz") is MISSING
    with pytest.raises(CorruptionError, match="cannot be read"):
        version.get(b"0005")
    foreign = msgspec.structs.replace(manifest_of((Run(id=1, files=(file,)),)), store_id=bytes(16))
    version = open_version(store_dir, foreign, {}, BlockCache(0, 3600))
    table = version.tables[10]
    assert isinstance(table, DamagedTable)
    assert "another store" in str(table.error)
    with pytest.raises(CorruptionError, match="cannot be read"):
        version.get(b"0005")


def test_a_block_is_read_once_and_then_cached(store_dir: str) -> None:
    version = opened(store_dir, (make_run(store_dir, 1, entries(0, 100, b"1")),))
    assert version.get(b"0042") == b"1"
    assert version.cache.misses == 1
    os.truncate(sst_path(store_dir, 10), 0)
    assert version.get(b"0042") == b"1"
    version.cache.clear()


def test_a_damaged_block_fails_its_own_keys_only(store_dir: str) -> None:
    file = write_sst(store_dir, 10, [entries(0, 10, b"1"), entries(10, 20, b"1"), entries(20, 30, b"1")])
    version = opened(store_dir, (Run(id=1, files=(file,)),))
    offset = version.tables[10].index.offsets[1]
    damage(sst_path(store_dir, 10), offset + 30)
    for _ in range(2):  # damage is never cached
        with pytest.raises(CorruptionError, match="checksum") as caught:
            version.get(b"0015")
        assert (caught.value.path, caught.value.offset) == (sst_path(store_dir, 10), offset)
    assert version.get(b"0005") == version.get(b"0025") == b"1"
    version.cache.clear()


@pytest.mark.parametrize("harm", ["missing", "damaged", "cut short"])
def test_an_index_that_is_missing_or_damaged_is_rebuilt_byte_by_byte(store_dir: str, harm: str) -> None:
    run = make_run(store_dir, 1, entries(0, 100, b"1"))
    path = Path(index_path(store_dir, 10))
    good = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        damage(str(path), len(good) // 2)
    else:
        path.write_bytes(good[:-1])
    version = opened(store_dir, (run,))
    assert version.get(b"0042") == b"1"
    assert version.tables[10].index_rebuilt
    assert path.read_bytes() == good


def test_rows_found_are_kept_in_two_generations_of_bounded_size(store_dir: str) -> None:
    run = make_run(store_dir, 1, entries(0, 2000, b"v" * 100))
    version = opened(store_dir, (run,), capacity_bytes=200_000)
    per_generation = 200_000 // 4 // (4 + 100)
    for key in range(2000):
        assert version.get(b"%04d" % key) == b"v" * 100
        assert version.get(b"0007") == b"v" * 100, "a key that is read again and again stays"
        assert len(version.rows) + len(version._old_rows) <= 2 * per_generation
        assert b"0007" in version.rows or b"0007" in version._old_rows or key < 7
    assert len(version.rows) + len(version._old_rows) > 100
    version.cache.drop_idle()
    assert not version.rows and not version._old_rows
    assert version.get(b"0007") == b"v" * 100


def test_reserved_keys_and_tombstones_are_never_among_the_rows(store_dir: str) -> None:
    run = make_run(store_dir, 1, {b"a": None, b"b": b"1", b"\xff\xff\x01b": b"x/y"})
    version = opened(store_dir, (run,))
    assert (version.get(b"a"), version.get(b"b"), version.get(b"\xff\xff\x01b")) == (None, b"1", b"x/y")
    assert version.rows == {b"b": b"1"}


class TestAllRowsFit:
    """When all rows fit into the cache, a block that is looked into again gives all of its rows."""

    def test_a_second_look_into_a_block_keeps_all_of_it(self, store_dir: str) -> None:
        blocks = [entries(0, 10, b"1"), entries(10, 20, b"2"), entries(20, 30, b"3")]
        version = opened(store_dir, (Run(id=1, files=(write_sst(store_dir, 10, blocks),)),))
        assert version.get(b"0012") == b"2"
        assert version.rows == {b"0012": b"2"}
        assert version.get(b"0013") == b"2"
        assert version.rows == blocks[1]
        assert version.get(b"0022") == b"3"
        assert version.rows == blocks[1] | {b"0022": b"3"}

    def test_what_does_not_fit_is_kept_row_by_row(self, store_dir: str) -> None:
        run = make_run(store_dir, 1, entries(0, 20, b"1"))
        room = rows_bytes(opened(store_dir, (run,)).tables[10])
        for capacity, kept in ((room, 20), (room - 1, 2)):
            version = opened(store_dir, (run,), capacity_bytes=capacity)
            assert version.get(b"0000") == version.get(b"0001") == b"1"
            assert len(version.rows) == kept

    def test_rows_that_newer_runs_may_have_are_left_out(self, store_dir: str) -> None:
        file = write_sst(store_dir, 10, [entries(0, 10, b"old"), entries(10, 20, b"old"), entries(20, 30, b"old")])
        trimmed = Run(id=1, files=(msgspec.structs.replace(file, smallest=b"0005"),))
        newer = make_run(store_dir, 2, {b"0015": b"new", b"0017": None}, {b"0024": b"new"}, {b"0040": b"new"})
        version = opened(store_dir, (newer,), (trimmed,))
        assert version.get(b"0015") == version.get(b"0024") == b"new"  # their filters are loaded
        for key in (b"0007", b"0008", b"0012", b"0013", b"0022", b"0023"):
            assert version.get(key) == version.get(key) == b"old"
        kept = set(version.rows)
        assert kept & set(entries(0, 10, b"")) == {b"0007", b"0008"}, "a block that the bounds cut into gives single rows"
        assert {b"0012", b"0013", b"0022", b"0023"} <= kept and len(kept) > 18, "but for false positives"
        assert [version.rows.get(key) for key in (b"0015", b"0017", b"0024")] == [b"new", None, b"new"]
        assert version.get(b"0004") is MISSING
        assert (version.get(b"0015"), version.get(b"0017")) == (b"new", None)

    @pytest.mark.parametrize("capacity_bytes", [0, 300, 3000, 1 << 20])
    @pytest.mark.parametrize("seed", range(40))
    def test_any_order_of_reads_gives_what_the_newest_runs_say(self, store_dir: str, seed: int, capacity_bytes: int) -> None:
        chance = Random(seed)
        universe = sorted([b"%03d" % number for number in range(60)] + [b"\xff\xff\x01%d" % number for number in range(4)])
        truth: dict[bytes, bytes | None] = {}
        runs = []
        for run in range(1, chance.randint(2, 5)):  # from the oldest to the newest
            low = chance.randrange(len(universe))
            keys = sorted(chance.sample(universe[low:], chance.randint(1, len(universe) - low)))
            batch = {key: chance.choice([None, b"%d of run %d" % (chance.randrange(9), run)]) for key in keys}
            cuts = sorted(chance.sample(range(1, len(keys)), min(len(keys) - 1, chance.randint(0, 4))))
            parts = [keys[one:other] for one, other in zip([0, *cuts], [*cuts, len(keys)], strict=True)]
            if chance.random() < 0.5:
                files = [write_sst(store_dir, 10 * run, [{key: batch[key] for key in part} for part in parts])]
            else:
                files = [write_sst(store_dir, 10 * run + at, [{key: batch[key] for key in part}]) for at, part in enumerate(parts)]
            smallest = chance.choice(keys) if chance.random() < 0.3 else keys[0]  # what is below has moved down
            files = [msgspec.structs.replace(file, smallest=max(file.smallest, smallest)) for file in files if file.largest >= smallest]
            truth.update({key: value for key, value in batch.items() if key >= smallest})
            runs.append(Run(id=run, files=tuple(files)))
        version = opened(store_dir, tuple(reversed(runs)), capacity_bytes=capacity_bytes)
        for _ in range(300):
            key = chance.choice(universe)
            assert version.get(key) == truth.get(key, MISSING), (seed, key)
            if chance.random() < 0.2:
                some = sorted(chance.sample(universe, chance.randint(0, 20)))
                assert version.find_many(some) == {key: truth[key] for key in some if key in truth}, (seed, some)
        assert version.rows.items() <= truth.items()
        assert not any(key >= b"\xff\xff" for key in version.rows)


def test_keys_side_by_side_are_found_with_one_look_at_each_block(store_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [entries(first, first + 10, b"%d" % first) for first in range(0, 100, 10)]
    files = [write_sst(store_dir, 10, blocks[:5]), write_sst(store_dir, 11, blocks[5:])]
    version = opened(store_dir, (Run(id=1, files=tuple(files)),), capacity_bytes=0)
    looked: list[tuple[int, int]] = []
    read_block = Version.read_block

    def watched(self: Version, table: Table, number: int) -> Columns:
        looked.append((table.number, number))
        return read_block(self, table, number)

    monkeypatch.setattr(Version, "read_block", watched)
    assert version.find_many(sorted(entries(35, 65, b""))) == {
        key: value for block in blocks for key, value in block.items() if b"0035" <= key < b"0065"
    }
    assert looked == [(10, 3), (10, 4), (11, 0), (11, 1)]
    looked.clear()
    assert version.find_many([b"", b"0000", b"0099", b"\xfe"]) == {b"0000": b"0", b"0099": b"90"}
    assert looked == [(10, 0), (11, 4)]
    assert version.find_many([]) == {}
