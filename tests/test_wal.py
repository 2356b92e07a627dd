from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from random import Random

import pytest
from crc32c import crc32c
from faultfiles import FaultFiles

from keyva import files as files_module
from keyva import wal as wal_module
from keyva.batch import Batch, decode_trusted, encode_batch
from keyva.errors import CorruptionError, FormatVersionError
from keyva.filename import wal_path
from keyva.files import FILES, Files
from keyva.wal import HEADER_BYTES, LOG_BYTES_MAX, RECORD_BYTES, LogHeader, LogTail, LogWriter, RecoveredLog, encode_record, recover_log

STORE_ID = bytes(range(16))
BATCHES: list[Batch] = [{b"a": b"1"}, {b"b": b"2", b"c": None}, {b"": b""}, {b"d": b"4" * 20}]


def count(payload: bytes) -> int:
    return len(decode_trusted(payload))


def recover(path: str, sealed_bytes: int | None = None, files: Files = FILES, synced_bytes: int = 0) -> RecoveredLog:
    return recover_log(path, sealed_bytes=sealed_bytes, synced_bytes=synced_bytes, count_entries=count, files=files)


def batches_of(log: RecoveredLog) -> list[Batch]:
    return [decode_trusted(record.payload) for record in log.records]


def append(log: LogWriter, sequence: int, *batches: Batch) -> int:
    return log.append([(encode_batch(batch), len(batch), 7, number) for number, batch in enumerate(batches)], sequence)


def make_log(directory: str, batches: list[Batch], *, sync: bool = True, number: int = 7, files: Files = FILES) -> LogWriter:
    """Return an open log with a record per batch, each appended (and synced) by itself; sequence numbers begin at 10."""
    log = LogWriter.create(directory, number, STORE_ID, 10, files=files)
    sequence = 10
    for batch in batches:
        sequence = append(log, sequence, batch)
        if sync:
            log.sync()
    return log


def sealed_log(directory: str, batches: list[Batch]) -> tuple[Path, bytes]:
    log = make_log(directory, batches)
    log.seal()
    log.close()
    return Path(log.path), Path(log.path).read_bytes()


def record_starts(path: Path) -> list[int]:
    return [record.offset for record in recover(str(path)).records]


class TestGoodLogs:
    def test_records_come_back_in_order_with_all_they_carry(self, store_dir: str) -> None:
        log = make_log(store_dir, [])
        assert append(log, 10, BATCHES[0], BATCHES[1]) == 13
        log.sync()
        assert append(log, 13, BATCHES[2]) == 14
        log.close()
        found = recover(log.path)
        assert batches_of(found) == BATCHES[:3]
        assert [record.first_sequence for record in found.records] == [10, 11, 13]
        assert [record.synced for record in found.records] == [HEADER_BYTES, HEADER_BYTES, found.records[2].offset]
        assert [(record.client, record.request) for record in found.records] == [(7, 0), (7, 1), (7, 0)]
        assert (found.end, found.next_sequence, found.dropped_bytes, found.dropped_reason) == (log.offset, 14, 0, "")

    def test_an_empty_log_is_a_log(self, store_dir: str) -> None:
        log = make_log(store_dir, [])
        log.close()
        found = recover(log.path)
        assert (found.records, found.end, found.next_sequence) == ([], HEADER_BYTES, 10)
        assert found.header == LogHeader(7, STORE_ID, 10, found.header.salt)

    def test_reserved_space_is_the_clean_end(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES)
        assert os.path.getsize(log.path) > log.offset + 1024 * 1024
        log.close()
        found = recover(log.path)
        assert batches_of(found) == BATCHES
        assert found.dropped_bytes == 0

    def test_sealing_cuts_reserved_space_off(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES, sync=False)
        size = log.seal()
        log.close()
        assert os.path.getsize(log.path) == size == log.offset == log.synced
        assert batches_of(recover(log.path, sealed_bytes=size)) == BATCHES

    def test_a_log_may_begin_with_records_encoded_for_it(self, store_dir: str) -> None:
        salt = LogHeader.decode(LogHeader.encode(7, STORE_ID, 10), "").salt
        payload = encode_batch(BATCHES[0])
        content = [encode_record(salt, HEADER_BYTES, 10, HEADER_BYTES, 1, 2, payload), payload]
        files = FaultFiles()
        log = LogWriter.create(store_dir, 7, STORE_ID, 10, content=content, files=files)
        append(log, 11, BATCHES[1])
        log.sync()
        log.close()
        files.power_cut()
        assert batches_of(recover(log.path)) == BATCHES[:2]

    def test_an_orphan_of_the_same_number_is_replaced(self, store_dir: str) -> None:
        Path(wal_path(store_dir, 7)).write_bytes(b"left by a start that died")
        log = make_log(store_dir, BATCHES)
        log.close()
        assert batches_of(recover(log.path)) == BATCHES

    def test_a_huge_value_takes_one_record(self, store_dir: str) -> None:
        batch: Batch = {b"k": os.urandom(20 * 1024 * 1024)}
        log = make_log(store_dir, [batch, BATCHES[0]])
        log.close()
        assert batches_of(recover(log.path)) == [batch, BATCHES[0]]

    def test_more_records_at_once_than_the_system_takes_buffers(self, store_dir: str) -> None:
        log = make_log(store_dir, [])
        many: list[Batch] = [{b"%d" % number: b""} for number in range(2000)]
        append(log, 10, *many)
        log.close()
        assert batches_of(recover(log.path)) == many


class TestDamage:
    """Every byte counts: what was synced is refused when damaged, what may be torn is dropped, zeros are harmless."""

    @pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
    def test_any_changed_byte_below_a_later_synced_record_is_refused_with_its_record(self, store_dir: str, mask: int) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        starts = record_starts(path)
        for at in range(starts[-1]):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            with pytest.raises(CorruptionError) as raised:
                recover(str(path))
            assert raised.value.path == str(path)
            assert raised.value.offset == (0 if at < HEADER_BYTES else max(start for start in starts if start <= at))

    @pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
    def test_any_changed_byte_of_the_last_record_is_a_torn_tail(self, store_dir: str, mask: int) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        last = record_starts(path)[-1]
        for at in range(last, len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            found = recover(str(path))
            assert batches_of(found) == BATCHES[:-1]
            assert found.end == last
            assert found.dropped_bytes == len(good) - last
            assert found.dropped_reason

    @pytest.mark.parametrize("mask", [0x01, 0xFF])
    def test_any_changed_byte_of_a_sealed_log_is_refused(self, store_dir: str, mask: int) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            with pytest.raises(CorruptionError) as raised:
                recover(str(path), sealed_bytes=len(good))
            assert raised.value.path == str(path)

    def test_any_changed_byte_below_what_the_manifest_calls_synced_is_refused(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        last = record_starts(path)[-1]
        for at in range(last, len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(CorruptionError, match=f"synced up to offset {len(good)}") as raised:
                recover(str(path), synced_bytes=len(good))
            assert raised.value.offset == last
            assert batches_of(recover(str(path), synced_bytes=last)) == BATCHES[:-1]
        path.write_bytes(good[:last])
        with pytest.raises(CorruptionError, match="cut short"):
            recover(str(path), synced_bytes=len(good))

    def test_a_changed_byte_in_the_zeros_behind_the_records_is_harmless(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        tail = 100
        for at in range(tail):
            path.write_bytes(good + bytes(at) + b"\x5a" + bytes(tail - at - 1))
            found = recover(str(path))
            assert batches_of(found) == BATCHES
            assert found.end == len(good)
            assert found.dropped_bytes == at + 1

    def test_an_active_log_cut_short_anywhere_keeps_its_whole_records(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        ends = [record.end for record in recover(str(path)).records]
        for size in range(HEADER_BYTES, len(good)):
            path.write_bytes(good[:size])
            found = recover(str(path))
            whole = sum(end <= size for end in ends)
            assert batches_of(found) == BATCHES[:whole]
            assert found.dropped_bytes == len(good[:size].rstrip(b"\0")) - found.end or found.dropped_bytes == 0

    def test_a_log_cut_short_within_its_header_is_refused(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        for size in range(HEADER_BYTES):
            path.write_bytes(good[:size])
            with pytest.raises(CorruptionError, match="header is cut short"):
                recover(str(path))

    def test_a_sealed_log_cut_short_anywhere_is_refused(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        for size in range(len(good)):
            path.write_bytes(good[:size])
            with pytest.raises(CorruptionError):
                recover(str(path), sealed_bytes=len(good))

    def test_a_sealed_size_within_a_record_is_refused(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        for size in set(range(HEADER_BYTES + 1, len(good))) - set(record_starts(path)):
            with pytest.raises(CorruptionError):
                recover(str(path), sealed_bytes=size)

    def test_a_page_of_zeros_over_a_synced_record_is_refused(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        start = record_starts(path)[1]
        path.write_bytes(good[:start] + bytes(RECORD_BYTES) + good[start + RECORD_BYTES :])
        with pytest.raises(CorruptionError, match="says that this place was synced") as raised:
            recover(str(path))
        assert raised.value.offset == start

    def test_whole_records_behind_a_torn_one_that_nobody_acknowledged_are_dropped(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES, sync=False)
        log.close()
        path = Path(log.path)
        good = path.read_bytes()[: log.offset]
        starts = record_starts(path)
        path.write_bytes(good[: starts[1]] + b"\xff" + good[starts[1] + 1 :])
        found = recover(log.path)
        assert batches_of(found) == BATCHES[:1]
        assert found.dropped_bytes == len(good) - starts[1]

    @pytest.mark.parametrize("step", [-1, 1, 5])
    def test_a_gap_in_the_sequence_numbers_is_refused(self, store_dir: str, step: int) -> None:
        log = make_log(store_dir, BATCHES[:1])
        append(log, 11 + step, BATCHES[1])
        log.close()
        with pytest.raises(CorruptionError, match=f"sequence number {11 + step}, expected 11") as raised:
            recover(log.path)
        assert raised.value.offset > HEADER_BYTES

    def test_the_first_record_must_have_the_number_the_header_says(self, store_dir: str) -> None:
        log = make_log(store_dir, [])
        append(log, 11, BATCHES[0])
        log.close()
        with pytest.raises(CorruptionError, match="expected 10"):
            recover(log.path)


class TestForeignRecords:
    def test_a_record_copied_to_another_offset_never_validates(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        records = recover(str(path)).records
        for record in records:
            for gap in range(3):
                path.write_bytes(good + bytes(gap) + good[record.offset : record.end])
                found = recover(str(path))
                assert batches_of(found) == BATCHES
                assert found.end == len(good)

    def test_a_record_of_a_log_that_had_the_place_before_never_validates(self, store_dir: str) -> None:
        _, old = sealed_log(store_dir, BATCHES)
        log = LogWriter.create(store_dir, 7, bytes(16), 10)
        append(log, 10, BATCHES[0])
        log.sync()
        log.close()
        path = Path(log.path)
        path.write_bytes(path.read_bytes()[: log.offset] + old[log.offset :])
        assert batches_of(recover(log.path)) == BATCHES[:1]

    def test_a_copy_of_the_log_in_a_value_does_not_confuse_recovery(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES)
        copy = Path(log.path).read_bytes()[: log.offset]
        start = log.offset
        append(log, 15, {b"copy": copy * 3})
        log.sync()
        log.close()
        path = Path(log.path)
        good = path.read_bytes()[: log.offset]
        assert batches_of(recover(log.path)) == [*BATCHES, {b"copy": copy * 3}]
        for at in range(start, len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
            found = recover(log.path)
            assert batches_of(found) == BATCHES
            assert found.end == start

    def test_a_copy_of_the_log_in_a_value_does_not_hide_damage_below_it(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES)
        copy = Path(log.path).read_bytes()[: log.offset]
        append(log, 15, {b"copy": copy})
        log.close()
        path = Path(log.path)
        good = path.read_bytes()[: log.offset]
        start = record_starts(path)[1]
        path.write_bytes(good[: start + 4] + b"\0\0\0\0" + good[start + 8 :])
        with pytest.raises(CorruptionError):
            recover(log.path)

    def test_a_value_full_of_look_alikes_does_not_slow_recovery_down(self, store_dir: str) -> None:
        alike = struct.pack("<4sIIIQQQQ", b"KVR\x01", 0, 1000, 0, 10, 64, 0, 0)
        log = make_log(store_dir, [{b"k": alike * 40_000}])
        log.close()
        path = Path(log.path)
        data = bytearray(path.read_bytes()[: log.offset])
        data[HEADER_BYTES + 4] ^= 1
        path.write_bytes(data)
        assert recover(log.path).records == []


class TestNewerLogs:
    def edit_header(self, path: Path, offset: int, value: bytes) -> None:
        head = bytearray(path.read_bytes()[:HEADER_BYTES])
        head[offset : offset + len(value)] = value
        head[60:] = struct.pack("<I", crc32c(bytes(head[:60])))
        path.write_bytes(head)

    @pytest.mark.parametrize(("offset", "value"), [(8, b"\x02\0"), (12, b"\x01"), (10, b"\x80\0")])
    def test_a_newer_header_is_refused_as_newer(self, store_dir: str, offset: int, value: bytes) -> None:
        path, _ = sealed_log(store_dir, [])
        self.edit_header(path, offset, value)
        with pytest.raises(FormatVersionError, match="newer"):
            recover(str(path))
        with pytest.raises(FormatVersionError, match="newer"):
            LogTail(store_dir, 7)

    @pytest.mark.parametrize("sealed", [False, True])
    def test_a_whole_record_with_unknown_flags_is_refused_as_newer_and_not_dropped(self, store_dir: str, sealed: bool) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        last = recover(str(path)).records[-1]
        data = bytearray(good)
        data[last.offset + 12] = 1
        salt = recover(str(path)).header.salt
        crc = crc32c(bytes(data[last.offset + 8 :]), crc32c(struct.pack("<Q", last.offset), salt))
        data[last.offset + 4 : last.offset + 8] = struct.pack("<I", crc)
        path.write_bytes(data)
        with pytest.raises(FormatVersionError, match=f"offset {last.offset} has flags 0x1"):
            recover(str(path), sealed_bytes=len(good) if sealed else None)
        tail = LogTail(store_dir, 7)
        with pytest.raises(FormatVersionError):
            list(tail.read_to(len(good)))
        tail.close()

    def test_a_payload_that_is_no_map_is_refused_as_newer_and_not_dropped(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES)
        log.append([(b"\x92\x80\x90", 1, 0, 0)], 15)
        log.close()
        with pytest.raises(FormatVersionError, match="newer"):
            recover(log.path)

    def test_another_file_is_no_log(self, store_dir: str) -> None:
        Path(wal_path(store_dir, 7)).write_bytes(b"KEYVASST" + bytes(100))
        with pytest.raises(CorruptionError, match="wrong magic"):
            recover(wal_path(store_dir, 7))


class TestFailedWrites:
    @pytest.mark.parametrize("partial", [0, 1, 47, 48, 60, 110, 150])
    def test_a_failed_append_leaves_the_log_as_it_was(self, store_dir: str, partial: int) -> None:
        files = FaultFiles()
        log = make_log(store_dir, BATCHES[:2], files=files)
        size = log.offset
        files.fail("pwritev", errno.EIO, partial=partial)
        with pytest.raises(OSError):
            append(log, 13, BATCHES[3], BATCHES[2])
        assert log.offset == os.path.getsize(log.path) == size
        files.power_cut()
        assert batches_of(recover(log.path)) == BATCHES[:2]

    def test_writes_work_again_after_a_failed_one(self, store_dir: str) -> None:
        files = FaultFiles()
        log = make_log(store_dir, BATCHES[:2], files=files)
        files.fail("pwritev", errno.EIO, partial=100)
        with pytest.raises(OSError):
            append(log, 13, BATCHES[3], BATCHES[2])
        append(log, 13, BATCHES[2])
        log.sync()
        log.close()
        assert batches_of(recover(log.path)) == BATCHES[:3]

    @pytest.mark.parametrize("step", ["truncate", "fdatasync"])
    def test_a_log_that_cannot_be_cut_back_takes_nothing_more(self, store_dir: str, step: str) -> None:
        files = FaultFiles()
        log = make_log(store_dir, [], files=files)
        files.fail("pwritev", errno.EIO, partial=2 * (RECORD_BYTES + 7))
        files.fail(step, errno.ENOSPC)
        with pytest.raises(OSError, match="could not be cut off"):
            append(log, 10, {b"x": b"1"}, {b"y": b"2"}, {b"z": b"3"})
        for _ in range(2):  # a first record of the same size would let the failed second one count again
            with pytest.raises(OSError, match="nothing can be appended"):
                append(log, 10, {b"n": b"9"})
        log.close()

    def test_a_full_disk_takes_nothing_until_there_is_room(self, store_dir: str) -> None:
        files = FaultFiles()
        log = make_log(store_dir, BATCHES[:1], files=files)
        files.truncate(log._fd, log.offset)
        log._allocated = log.offset
        files.space_bytes = 10
        for _ in range(2):
            with pytest.raises(OSError) as raised:
                append(log, 11, BATCHES[1])
            assert raised.value.errno == errno.ENOSPC
        files.space_bytes = 1000
        append(log, 11, BATCHES[1])
        log.sync()
        log.close()
        assert batches_of(recover(log.path)) == BATCHES[:2]

    def test_a_file_system_that_cannot_reserve_space_serves_too(self, store_dir: str) -> None:
        files = FaultFiles()
        files.fail("allocate", errno.EOPNOTSUPP, times=100)
        log = make_log(store_dir, BATCHES, files=files)
        assert os.path.getsize(log.path) == log.offset
        log.close()
        assert batches_of(recover(log.path)) == BATCHES

    @pytest.mark.parametrize("step", ["open_write", "pwritev", "fdatasync", "fsync_dir"])
    def test_a_log_that_cannot_be_made_leaves_no_file(self, store_dir: str, step: str) -> None:
        files = FaultFiles()
        files.fail(step)
        with pytest.raises(OSError):
            LogWriter.create(store_dir, 7, STORE_ID, 10, files=files)
        assert os.listdir(os.path.join(store_dir, "wal")) == []

    def test_much_content_is_written_and_read_in_parts_with_signs_of_life(self, store_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wal_module, "SYNC_BYTES", 4096)
        monkeypatch.setattr(files_module, "SYNC_BYTES", 4096)
        files = FaultFiles()
        first = make_log(store_dir, [], files=files)
        batches: list[Batch] = [{b"%03d" % at: bytes(1000)} for at in range(20)]
        append(first, 10, *batches)
        first.seal()
        first.close()
        life: list[int] = []
        log = recover_log(first.path, sealed_bytes=None, count_entries=count, files=files, progress=lambda: life.append(1))
        assert len(log.records) == 20 and len(life) == 6
        content: list[bytes] = []
        salt = LogHeader.decode(LogHeader.encode(2, STORE_ID, 10), "").salt
        offset = HEADER_BYTES
        for record in log.records:
            payload = bytes(record.payload)
            content += [encode_record(salt, offset, record.first_sequence, HEADER_BYTES, 0, 0, payload), payload]
            offset += len(content[-2]) + len(payload)
        life.clear()
        syncs = files.calls["fdatasync"]
        second = LogWriter.create(store_dir, 2, STORE_ID, 10, content=content, files=files, progress=lambda: life.append(1))
        assert files.calls["fdatasync"] - syncs == len(life) == 5
        assert (second.offset, second.synced) == (offset, offset)
        second.close()
        assert len(recover_log(second.path, sealed_bytes=offset, count_entries=count, files=files).records) == 20

    def test_a_failed_sync_is_not_taken_for_a_sync(self, store_dir: str) -> None:
        files = FaultFiles()
        log = make_log(store_dir, BATCHES[:1], files=files)
        append(log, 11, BATCHES[1])
        files.fail("fdatasync")
        with pytest.raises(OSError):
            log.sync()
        assert log.synced < log.offset
        log.close()

    def test_a_sync_with_nothing_new_costs_nothing(self, store_dir: str) -> None:
        files = FaultFiles()
        log = make_log(store_dir, BATCHES[:1], files=files)
        syncs = files.calls["fdatasync"]
        log.sync()
        assert files.calls["fdatasync"] == syncs
        log.close()

    def test_a_log_does_not_grow_past_what_pulse_can_say(self, store_dir: str) -> None:
        log = make_log(store_dir, [])
        log.offset = LOG_BYTES_MAX - 20
        with pytest.raises(OSError) as raised:
            append(log, 10, BATCHES[0])
        assert raised.value.errno == errno.EFBIG
        assert os.path.getsize(log.path) == HEADER_BYTES
        log.close()


class TestPowerCut:
    @pytest.mark.parametrize("seed", range(60))
    def test_recovery_gives_a_prefix_with_everything_that_was_synced(self, store_dir: str, seed: int) -> None:
        rng = Random(seed)
        files = FaultFiles()
        log = make_log(store_dir, [], files=files)
        written: list[Batch] = []
        synced = 0
        sequence = 10
        for _ in range(rng.randrange(1, 30)):
            group: list[Batch] = [{rng.randbytes(5): rng.randbytes(rng.choice((3, 300, 3000)))} for _ in range(rng.randrange(1, 4))]
            if rng.random() < 0.1:
                files.fail("pwritev", partial=rng.randrange(2000))
                with pytest.raises(OSError):
                    append(log, sequence, *group)
                synced = len(written)
                continue
            sequence = append(log, sequence, *group)
            written += group
            if rng.random() < 0.4:
                log.sync()
                synced = len(written)
        files.power_cut(rng)
        found = batches_of(recover(log.path))
        assert found == written[: len(found)], f"seed {seed}"
        assert len(found) >= synced, f"seed {seed}"

    def test_a_log_that_was_made_survives(self, store_dir: str) -> None:
        files = FaultFiles()
        log = LogWriter.create(store_dir, 7, STORE_ID, 10, files=files)
        files.power_cut()
        assert recover(log.path).records == []


class TestLogTail:
    def test_it_reads_on_from_where_it_stopped(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES[:2])
        tail = LogTail(store_dir, 7)
        assert [decode_trusted(record.payload) for record in tail.read_to(log.offset)] == BATCHES[:2]
        assert list(tail.read_to(log.offset)) == []
        append(log, 13, BATCHES[2], BATCHES[3])
        assert [record.first_sequence for record in tail.read_to(log.offset)] == [13, 14]
        assert tail.offset == log.offset
        tail.close()
        log.close()

    def test_it_never_reads_past_what_is_committed(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES[:1])
        committed = log.offset
        append(log, 11, BATCHES[1])
        tail = LogTail(store_dir, 7)
        assert len(list(tail.read_to(committed))) == 1
        tail.close()
        log.close()

    def test_an_iteration_left_half_way_gives_the_unfinished_record_again(self, store_dir: str) -> None:
        log = make_log(store_dir, BATCHES)
        tail = LogTail(store_dir, 7)
        for record in tail.read_to(log.offset):
            assert decode_trusted(record.payload) == BATCHES[0]
            break
        assert [decode_trusted(record.payload) for record in tail.read_to(log.offset)] == BATCHES
        tail.close()
        log.close()

    @pytest.mark.parametrize("mask", [0x01, 0xFF])
    def test_any_changed_byte_below_the_committed_position_is_noticed(self, store_dir: str, mask: int) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        starts = record_starts(path)
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            with pytest.raises(CorruptionError) as raised:
                tail = LogTail(store_dir, 7)
                list(tail.read_to(len(good)))
            assert raised.value.path == str(path)
            assert raised.value.offset == (0 if at < HEADER_BYTES else max(start for start in starts if start <= at))

    def test_committed_bytes_that_are_missing_or_zero_are_noticed(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        tail = LogTail(store_dir, 7)
        with pytest.raises(CorruptionError, match="cut short"):
            list(tail.read_to(len(good) + 10))
        path.write_bytes(good + bytes(200))
        with pytest.raises(CorruptionError, match="zeros where a committed record should be"):
            list(tail.read_to(len(good) + 200))
        tail.close()

    def test_a_position_within_a_record_is_noticed(self, store_dir: str) -> None:
        _, good = sealed_log(store_dir, BATCHES)
        tail = LogTail(store_dir, 7)
        with pytest.raises(CorruptionError, match="cut short"):
            list(tail.read_to(len(good) - 1))
        tail.close()

    def test_a_log_under_another_number_is_refused(self, store_dir: str) -> None:
        path, good = sealed_log(store_dir, BATCHES)
        Path(wal_path(store_dir, 8)).write_bytes(good)
        with pytest.raises(CorruptionError, match="says it is number 7"):
            LogTail(store_dir, 8)
        with pytest.raises(CorruptionError, match="says it is number 7"):
            recover(wal_path(store_dir, 8))
