from __future__ import annotations

import errno
import gc
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from crc32c import crc32c
from faultfiles import FaultFiles
from hypothesis import given
from hypothesis import strategies as st

from keyva import sst as sst_module
from keyva.batch import Batch
from keyva.block import BLOCK_HEADER_BYTES
from keyva.errors import CorruptionError, FormatVersionError
from keyva.filename import index_path, sst_path
from keyva.files import FILES, Files
from keyva.sst import BuiltSst, SstHeader, SstWriter, Table

STORE_ID = bytes(range(16))
SMALL: Batch = {b"": b"empty key", b"apple": b"red" * 9, b"banana": None, b"cherry": b"dark", b"\xfe\xff": b"\x00\xff"}


def header(number: int = 5, codec: str = "lz4", block_size: int = 32, bits: float = 10.0) -> SstHeader:
    return SstHeader(
        version=1,
        number=number,
        store_id=STORE_ID,
        smallest_sequence=3,
        largest_sequence=90,
        compression=codec,
        block_size=block_size,
        bits_per_key=bits,
        created_ms=1_700_000_000_000,
    )


def build(
    directory: str, entries: Batch, *, number: int = 5, codec: str = "lz4", block_size: int = 32, bits: float = 10.0, files: Files = FILES
) -> BuiltSst:
    writer = SstWriter(directory, header(number, codec, block_size, bits), files=files)
    writer.add(list(entries), list(entries.values()))
    return writer.finish()


def many(count: int = 2000) -> Batch:
    return {b"key%06d" % number: None if number % 50 == 0 else b"value %d " % number * 4 for number in range(count)}


def lookup(table: Table, key: bytes) -> bytes | None:
    return dict(zip(*table.read_block(table.find_block(key)), strict=True))[key]


class TestGoodFiles:
    @pytest.mark.parametrize("mmap_reads", [False, True])
    @pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
    @pytest.mark.parametrize("block_size", [1, 256, 4096, 1024 * 1024])
    def test_all_entries_come_back_in_order(self, store_dir: str, codec: str, block_size: int, mmap_reads: bool) -> None:
        entries = many()
        build(store_dir, entries, codec=codec, block_size=block_size)
        table = Table(store_dir, 5, mmap_reads=mmap_reads)
        assert list(table.iterate()) == list(entries.items())
        assert all(lookup(table, key) == entries[key] for key in list(entries)[::37])
        assert not table.index_rebuilt

    def test_what_the_writer_reports_is_what_the_file_says(self, store_dir: str) -> None:
        entries = many()
        built = build(store_dir, entries)
        data = Path(sst_path(store_dir, 5)).read_bytes()
        assert built == BuiltSst(5, len(data), 2000, 40, b"key000000", b"key001999", 3, 90, crc32c(data))
        table = Table(store_dir, 5)
        assert table.header == header()
        assert (table.footer.entries, table.footer.tombstones) == (2000, 40)
        assert (table.footer.smallest, table.footer.largest) == (b"key000000", b"key001999")
        assert table.index.header.sst_crc32c == crc32c(data)

    def test_the_files_are_private_and_nothing_else_is_left(self, store_dir: str) -> None:
        build(store_dir, SMALL)
        assert sorted(os.listdir(os.path.join(store_dir, "sst"))) == ["000005.index", "000005.sst"]
        assert all(os.stat(path).st_mode & 0o777 == 0o600 for path in (sst_path(store_dir, 5), index_path(store_dir, 5)))

    @given(
        entries=st.dictionaries(st.binary(max_size=12), st.none() | st.binary(max_size=300), min_size=1, max_size=60),
        block_size=st.sampled_from([16, 256, 4096]),
        pieces=st.integers(1, 5),
    )
    def test_any_entries_in_any_pieces(
        self, tmp_path_factory: pytest.TempPathFactory, entries: Batch, block_size: int, pieces: int
    ) -> None:
        directory = tmp_path_factory.mktemp("s")
        (directory / "sst").mkdir()
        keys = sorted(entries)
        writer = SstWriter(str(directory), header(block_size=block_size))
        for piece in range(pieces):
            part = keys[piece * len(keys) // pieces : (piece + 1) * len(keys) // pieces]
            writer.add(part, [entries[key] for key in part])
        writer.finish()
        table = Table(str(directory), 5)
        assert list(table.iterate()) == [(key, entries[key]) for key in keys]
        assert all(lookup(table, key) == entries[key] for key in keys)

    def test_blocks_have_about_the_size_they_should(self, store_dir: str) -> None:
        build(store_dir, many(), codec="none", block_size=4096)
        offsets = Table(store_dir, 5).index.offsets
        sizes = [after - before - BLOCK_HEADER_BYTES for before, after in pairwise(offsets)]
        assert 3000 < sum(sizes) / len(sizes) < 5000
        assert max(sizes) <= 2 * 4096

    @pytest.mark.parametrize("at", [0, 50, 99])
    def test_a_large_value_does_not_drag_its_neighbours_along(self, store_dir: str, at: int) -> None:
        entries: Batch = {b"%03d" % number: b"x" * (1_000_000 if number == at else 100) for number in range(100)}
        build(store_dir, entries, codec="none", block_size=4096)
        table = Table(store_dir, 5)
        large = table.read_block(table.find_block(b"%03d" % at))
        assert sum(len(value or b"") for key, value in zip(*large, strict=True) if key != b"%03d" % at) < 4096
        assert list(table.iterate()) == list(entries.items())

    def test_a_huge_value(self, store_dir: str) -> None:
        entries: Batch = {b"a": b"", b"b": os.urandom(64 * 1024 * 1024), b"c": None}
        build(store_dir, entries)
        assert dict(Table(store_dir, 5).iterate()) == entries

    def test_a_key_of_the_largest_size(self, store_dir: str) -> None:
        entries: Batch = {bytes([number]) * 65536: b"v" for number in range(5)}
        build(store_dir, entries, block_size=4096)
        assert dict(Table(store_dir, 5).iterate()) == entries

    def test_a_key_below_the_first_is_in_no_block(self, store_dir: str) -> None:
        build(store_dir, {b"b": b"1", b"d": b"2"}, block_size=1)
        table = Table(store_dir, 5)
        assert [table.find_block(key) for key in (b"", b"a", b"b", b"c", b"d", b"e")] == [-1, -1, 0, 0, 1, 1]

    @pytest.mark.parametrize("count", [1, 3, 1000])
    @pytest.mark.parametrize("bytes_max", [0, 100, 700, 10**6])
    def test_a_read_of_many_blocks_keeps_its_limits(self, store_dir: str, count: int, bytes_max: int) -> None:
        build(store_dir, many(200), codec="none", block_size=256)
        table = Table(store_dir, 5)
        offsets = table.index.offsets
        blocks = len(offsets) - 1
        for at in range(blocks):
            last = table.reach(at, count, bytes_max)
            first = table.reach_back(at + 1, count, bytes_max)
            assert at < last <= min(blocks, at + count)
            assert max(0, at + 1 - count) <= first <= at
            assert last == at + 1 or offsets[last] - offsets[at] <= bytes_max
            assert first == at or offsets[at + 1] - offsets[first] <= bytes_max
            assert last in (blocks, at + count) or offsets[last + 1] - offsets[at] > bytes_max
            assert first in (0, at + 1 - count) or offsets[at + 1] - offsets[first - 1] > bytes_max

    def test_no_bits_mean_no_filter(self, store_dir: str) -> None:
        build(store_dir, SMALL, bits=0)
        assert Table(store_dir, 5).index.filter is None

    def test_the_filter_knows_every_key_tombstones_too(self, store_dir: str) -> None:
        build(store_dir, many())
        bloom = Table(store_dir, 5).index.filter
        assert bloom is not None
        assert all(key in bloom for key in many())

    def test_copied_blocks_keep_their_entries_in_another_file(self, store_dir: str) -> None:
        build(store_dir, many(), block_size=1024)
        table = Table(store_dir, 5)
        writer = SstWriter(store_dir, header(number=6, block_size=1024))
        blocks = len(table.index.first_keys)
        for number, data, offset in table.read_stored(0, blocks):
            assert offset == table.index.offsets[number]
            raw_bytes, codec = struct.unpack_from("<I4xB", data, 8)
            writer.add_copied(table.read_block(number), data[BLOCK_HEADER_BYTES:], raw_bytes, codec)
        writer.finish()
        copy = Table(store_dir, 6)
        assert dict(copy.iterate()) == many()
        assert len(copy.index.first_keys) == blocks
        assert copy.rebuild_index() == Path(index_path(store_dir, 6)).read_bytes()

    def test_an_open_table_outlives_its_file(self, store_dir: str) -> None:
        build(store_dir, SMALL)
        table = Table(store_dir, 5)
        os.unlink(sst_path(store_dir, 5))
        os.unlink(index_path(store_dir, 5))
        assert dict(table.iterate()) == SMALL
        assert lookup(table, b"cherry") == b"dark"
        assert os.listdir(os.path.join(store_dir, "sst")) == []

    def test_a_closed_table_gives_its_descriptor_back(self, store_dir: str) -> None:
        build(store_dir, SMALL)
        table = Table(store_dir, 5)
        table.close()
        table.close()
        with pytest.raises(OSError):
            list(table.iterate())


class TestDamage:
    def read_all(self, directory: str) -> list[tuple[bytes, bytes | None]]:
        table = Table(directory, 5)
        try:
            return list(table.iterate())
        finally:
            table.close()

    @pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
    @pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
    def test_any_changed_byte_is_noticed_with_file_and_offset(self, store_dir: str, mask: int, codec: str) -> None:
        built = build(store_dir, SMALL, codec=codec)
        path = Path(sst_path(store_dir, 5))
        good = path.read_bytes()
        offsets = Table(store_dir, 5).index.offsets
        for at in range(built.size_bytes):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            with pytest.raises(CorruptionError) as raised:
                self.read_all(store_dir)
            assert raised.value.path == str(path)
            if offsets[0] <= at < offsets[-1]:
                assert raised.value.offset == max(offset for offset in offsets if offset <= at)
            else:
                assert (raised.value.offset < offsets[0]) == (at < offsets[0])

    @pytest.mark.parametrize("mmap_reads", [False, True])
    def test_a_file_cut_short_anywhere_is_noticed(self, store_dir: str, mmap_reads: bool) -> None:
        build(store_dir, SMALL)
        path = Path(sst_path(store_dir, 5))
        good = path.read_bytes()
        for size in range(len(good)):
            path.write_bytes(good[:size])
            with pytest.raises(CorruptionError) as raised:
                Table(store_dir, 5, mmap_reads=mmap_reads)
            assert raised.value.path == str(path)

    def test_bytes_behind_the_end_are_noticed(self, store_dir: str) -> None:
        build(store_dir, SMALL)
        with open(sst_path(store_dir, 5), "ab") as file:
            file.write(b"\0")
        with pytest.raises(CorruptionError, match="no valid footer"):
            Table(store_dir, 5)

    def test_a_damaged_block_leaves_the_others_readable(self, store_dir: str) -> None:
        build(store_dir, many(), block_size=1024)
        table = Table(store_dir, 5)
        number = table.find_block(b"key001000")
        with open(sst_path(store_dir, 5), "r+b") as file:
            file.seek(table.index.offsets[number] + 30)
            file.write(b"\x5a\xa5")
        with pytest.raises(CorruptionError) as raised:
            lookup(table, b"key001000")
        assert raised.value.offset == table.index.offsets[number]
        good = [at for at in range(len(table.index.first_keys)) if at != number]
        assert all(table.read_block(at) for at in good)

    def test_two_blocks_that_changed_places_are_noticed(self, store_dir: str) -> None:
        entries: Batch = {b"%d" % number: b"value" for number in range(4)}
        build(store_dir, entries, codec="none", block_size=1)
        offsets = Table(store_dir, 5).index.offsets
        path = Path(sst_path(store_dir, 5))
        data = path.read_bytes()
        blocks = [data[before:after] for before, after in pairwise(offsets)]
        assert len(set(map(len, blocks))) == 1
        path.write_bytes(data[: offsets[0]] + blocks[1] + blocks[0] + data[offsets[2] :])
        with pytest.raises(CorruptionError, match="checksum"):
            self.read_all(store_dir)

    def test_a_block_of_another_file_is_noticed(self, store_dir: str) -> None:
        build(store_dir, SMALL, codec="none")
        build(store_dir, SMALL, codec="none", number=6)
        one, other = Path(sst_path(store_dir, 5)), Path(sst_path(store_dir, 6))
        offsets = Table(store_dir, 5).index.offsets
        data, foreign = one.read_bytes(), other.read_bytes()
        one.write_bytes(data[: offsets[1]] + foreign[offsets[1] : offsets[2]] + data[offsets[2] :])
        with pytest.raises(CorruptionError) as raised:
            self.read_all(store_dir)
        assert raised.value.offset == offsets[1]

    def test_a_file_under_another_number_is_refused(self, store_dir: str) -> None:
        build(store_dir, SMALL, number=6)
        os.rename(sst_path(store_dir, 6), sst_path(store_dir, 5))
        with pytest.raises(CorruptionError, match="says it is number 6"):
            Table(store_dir, 5)

    @pytest.mark.parametrize("mmap_reads", [False, True])
    def test_no_descriptor_leaks_when_a_file_is_refused(self, store_dir: str, mmap_reads: bool) -> None:
        Path(sst_path(store_dir, 5)).write_bytes(b"KEYVASST nonsense" * 10)
        gc.collect()  # tables of earlier tests
        before = len(os.listdir("/dev/fd"))
        for _ in range(20):
            with pytest.raises(CorruptionError):
                Table(store_dir, 5, mmap_reads=mmap_reads)
        assert len(os.listdir("/dev/fd")) == before

    @pytest.mark.parametrize("changes", [{"version": 2}, {"features": ["blob_files"]}])
    def test_newer_versions_and_features_are_refused_as_newer(self, store_dir: str, changes: dict[str, object]) -> None:
        writer = SstWriter(store_dir, msgspec.structs.replace(header(), **changes))
        writer.add(list(SMALL), list(SMALL.values()))
        writer.finish()
        with pytest.raises(FormatVersionError, match="newer"):
            Table(store_dir, 5)


class TestIndex:
    @pytest.mark.parametrize("bits", [0.0, 0.3, 10.0])
    @pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
    def test_a_rebuilt_index_is_the_same_byte_for_byte(self, store_dir: str, codec: str, bits: float) -> None:
        build(store_dir, many(), codec=codec, bits=bits, block_size=512)
        original = Path(index_path(store_dir, 5)).read_bytes()
        assert Table(store_dir, 5).rebuild_index() == original

    def break_nothing(self, path: Path) -> None:
        pass

    def remove(self, path: Path) -> None:
        path.unlink()

    def empty(self, path: Path) -> None:
        path.write_bytes(b"")

    def flip(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)

    def cut(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    @pytest.mark.parametrize("mmap_reads", [False, True])
    @pytest.mark.parametrize("damage", [remove, empty, flip, cut])
    def test_a_missing_or_damaged_index_is_rebuilt_and_put_in_place(
        self, store_dir: str, damage: Callable[[TestIndex, Path], None], mmap_reads: bool
    ) -> None:
        build(store_dir, many())
        path = Path(index_path(store_dir, 5))
        original = path.read_bytes()
        damage(self, path)
        table = Table(store_dir, 5, mmap_reads=mmap_reads)
        assert lookup(table, b"key000777") == many()[b"key000777"]
        assert table.index_rebuilt
        assert path.read_bytes() == original
        again = Table(store_dir, 5)
        assert again.find_block(b"key000777") == table.find_block(b"key000777")
        assert not again.index_rebuilt

    def test_the_index_of_another_sst_is_not_believed(self, store_dir: str) -> None:
        build(store_dir, many(), number=6)
        build(store_dir, SMALL)
        os.replace(index_path(store_dir, 6), index_path(store_dir, 5))
        table = Table(store_dir, 5)
        assert lookup(table, b"cherry") == b"dark"
        assert table.index_rebuilt

    def test_any_changed_byte_of_the_index_gives_right_answers(self, store_dir: str) -> None:
        build(store_dir, SMALL)
        path = Path(index_path(store_dir, 5))
        good = path.read_bytes()
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
            table = Table(store_dir, 5)
            assert all(lookup(table, key) == value for key, value in SMALL.items())
            assert table.index_rebuilt
            table.close()

    @pytest.mark.parametrize("step", ["open_write", "pwritev", "fdatasync", "rename", "fsync_dir"])
    def test_a_full_disk_does_not_keep_a_rebuilt_index_from_serving(self, store_dir: str, step: str) -> None:
        build(store_dir, SMALL)
        os.unlink(index_path(store_dir, 5))
        files = FaultFiles()
        files.fail(step, errno.ENOSPC)
        assert lookup(Table(store_dir, 5, files=files), b"cherry") == b"dark"

    def test_a_missing_index_over_a_damaged_block_names_the_block(self, store_dir: str) -> None:
        build(store_dir, SMALL)
        offsets = Table(store_dir, 5).index.offsets
        os.unlink(index_path(store_dir, 5))
        with open(sst_path(store_dir, 5), "r+b") as file:
            file.seek(offsets[1] + 21)
            file.write(b"\xff\xff")
        with pytest.raises(CorruptionError) as raised:
            Table(store_dir, 5).find_block(b"x")
        assert (raised.value.path, raised.value.offset) == (sst_path(store_dir, 5), offsets[1])


class TestWriting:
    def test_keys_that_do_not_ascend_are_a_bug_of_the_caller(self, store_dir: str) -> None:
        writer = SstWriter(store_dir, header())
        writer.add([b"m"], [b""])
        with pytest.raises(AssertionError):
            writer.add([b"m"], [b""])
        writer.abandon()

    def test_an_existing_number_is_never_written_over(self, store_dir: str) -> None:
        build(store_dir, SMALL)
        with pytest.raises(FileExistsError):
            build(store_dir, many())
        assert dict(Table(store_dir, 5).iterate()) == SMALL

    def test_an_abandoned_file_leaves_nothing(self, store_dir: str) -> None:
        writer = SstWriter(store_dir, header())
        writer.add(list(SMALL), list(SMALL.values()))
        writer.abandon()
        assert os.listdir(os.path.join(store_dir, "sst")) == []

    @pytest.mark.parametrize("step", ["pwritev", "fdatasync", "open_write", "rename", "fsync_dir"])
    @pytest.mark.parametrize("after", [0, 1])
    def test_a_failed_file_can_be_abandoned_at_any_step(self, store_dir: str, step: str, after: int) -> None:
        files = FaultFiles()
        files.fail(step, errno.ENOSPC, after=after, partial=10)
        try:
            writer = SstWriter(store_dir, header(), files=files)
        except OSError:
            assert os.listdir(os.path.join(store_dir, "sst")) == []
            return
        try:
            writer.add(list(SMALL), list(SMALL.values()))
            writer.finish()
        except OSError:
            writer.abandon()
            assert os.listdir(os.path.join(store_dir, "sst")) == []
        else:
            assert after > 0

    def test_a_finished_file_survives_a_power_cut_with_its_index(self, store_dir: str) -> None:
        files = FaultFiles()
        build(store_dir, SMALL, files=files)
        files.power_cut()
        table = Table(store_dir, 5)
        assert dict(table.iterate()) == SMALL
        assert table.find_block(b"") == 0
        assert not table.index_rebuilt


def test_a_large_file_is_synced_in_parts(store_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sst_module, "SYNC_BYTES", 4096)
    monkeypatch.setattr(sst_module, "_WRITE_BYTES", 1024)
    files = FaultFiles()
    build(store_dir, {b"%05d" % at: os.urandom(100) for at in range(300)}, files=files)
    assert files.calls["fdatasync"] >= 300 * 100 // (4096 + 1024)


def test_a_place_that_the_disk_cannot_read_is_damage(store_dir: str) -> None:
    files = FaultFiles()
    built = build(store_dir, many(), files=files)
    table = Table(store_dir, built.number, files=files)
    first_keys = len(table.index.first_keys)
    for read in (lambda: table.read_block(1), lambda: table.unpack_block(1), lambda: table.read_blocks(1, 3)):
        files.fail("pread", errno.EIO)
        with pytest.raises(CorruptionError, match="the disk cannot read this") as caught:
            read()
        assert (caught.value.path, caught.value.offset) == (table.path, table.index.offsets[1])
    assert len(table.read_block(first_keys - 1)[0]) > 0
    files.fail("pread", errno.ENOMEM)
    with pytest.raises(OSError):
        table.read_block(1)
