from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
from faultfiles import FaultFiles
from storetools import SMALL, STORE_ID, damage, make_run, small, write_sst

from keyva import rewrite
from keyva.batch import Batch, encode_batch
from keyva.errors import CorruptionError, NoSpaceError
from keyva.filename import index_path, sst_path, wal_path
from keyva.files import FILES, Files
from keyva.jobs import CompactionJob, FlushJob, JobResult, RemoveJob
from keyva.manifest import FileMeta, Run
from keyva.options import Options
from keyva.rewrite import run_job
from keyva.sst import Table
from keyva.wal import LogWriter

OUTPUTS = tuple(range(900, 960))


def work(directory: str, job: FlushJob | CompactionJob | RemoveJob, options: Options = SMALL, files: Files = FILES) -> JobResult:
    return run_job(directory, job, options, lambda _: None, files)


def contents(directory: str, files: tuple[FileMeta, ...]) -> list[tuple[bytes, bytes | None]]:
    """Read files back and hold them against what was said of them."""
    found = []
    for file in files:
        table = Table(directory, file.number)
        entries = list(table.iterate())
        assert (entries[0][0], entries[-1][0], len(entries)) == (file.smallest, file.largest, file.entries)
        assert sum(value is None for _, value in entries) == file.tombstones
        assert table.size_bytes == file.size_bytes
        assert Path(index_path(directory, file.number)).read_bytes() == table.rebuild_index()
        found += entries
    return found


def seal_log(directory: str, *batches: Batch, number: int = 7, store_id: bytes = STORE_ID) -> FlushJob:
    log = LogWriter.create(directory, number, store_id, 10)
    sequence = 10
    for batch in batches:
        sequence = log.append([(encode_batch(batch), len(batch), 0, 0)], sequence)
    sealed = log.seal()
    log.close()
    return FlushJob(id=1, store_id=STORE_ID, log=number, sealed_bytes=sealed, output=900)


def compaction(
    *runs: tuple[FileMeta, ...], start: bytes = b"", stop: bytes | None = None, drop: bool = False, outputs: tuple[int, ...] = OUTPUTS
) -> CompactionJob:
    return CompactionJob(id=2, store_id=STORE_ID, runs=runs, start=start, stop=stop, drop_tombstones=drop, outputs=outputs)


def entries(first: int, last: int, value: bytes | None = b"v", step: int = 1) -> Batch:
    return {b"%05d" % key: value for key in range(first, last, step)}


def ssts(directory: str) -> list[str]:
    return sorted(os.listdir(os.path.join(directory, "sst")))


# Flush


def test_repeated_writes_to_one_key_leave_one_entry_in_the_sst(store_dir: str) -> None:
    job = seal_log(store_dir, *[{b"k": b"%d" % at} for at in range(100)], {b"a": b"1", b"k": b"last"}, {b"a": None})  # type: ignore[arg-type]
    result = work(store_dir, job)
    assert result.error == ""
    assert contents(store_dir, result.files) == [(b"a", None), (b"k", b"last")]
    (file,) = result.files
    assert (file.smallest_sequence, file.largest_sequence) == (10, 112)


def test_a_flush_done_twice_gives_the_same_entries(store_dir: str) -> None:
    job = seal_log(store_dir, entries(0, 300))
    first = contents(store_dir, work(store_dir, job).files)
    assert contents(store_dir, work(store_dir, job).files) == first


def test_a_flush_that_was_cut_off_can_be_done_again(store_dir: str) -> None:
    job = seal_log(store_dir, entries(0, 300))
    Path(sst_path(store_dir, 900)).write_bytes(b"half of it")
    assert contents(store_dir, work(store_dir, job).files) == sorted(entries(0, 300).items())


def test_a_damaged_sealed_log_is_never_flushed(store_dir: str) -> None:
    job = seal_log(store_dir, entries(0, 300))
    damage(wal_path(store_dir, 7), 1000)
    result = work(store_dir, job)
    assert (result.error, result.path) == (CorruptionError.__name__, wal_path(store_dir, 7))
    assert ssts(store_dir) == []


def test_a_log_of_another_store_is_never_flushed(store_dir: str) -> None:
    assert work(store_dir, seal_log(store_dir, entries(0, 3), store_id=bytes(16))).error == CorruptionError.__name__


def test_values_larger_than_blocks_and_empty_ones_are_kept(store_dir: str) -> None:
    batch: Batch = {b"%03d" % at: os.urandom(3000) if at % 7 == 0 else b"" for at in range(100)}
    assert contents(store_dir, work(store_dir, seal_log(store_dir, batch)).files) == sorted(batch.items())


# Compaction


def test_the_newest_entry_of_every_key_is_kept(store_dir: str) -> None:
    old = make_run(store_dir, 1, entries(0, 200, b"old"), entries(200, 400, b"old")).files
    middle = make_run(store_dir, 2, entries(100, 300, b"middle", 3)).files
    new = make_run(store_dir, 3, {**entries(0, 400, b"new", 10), b"00150": None, b"00399": None}).files
    wanted = {**entries(0, 400, b"old"), **entries(100, 300, b"middle", 3), **entries(0, 400, b"new", 10), b"00150": None, b"00399": None}
    result = work(store_dir, compaction(old, middle, new))
    assert contents(store_dir, result.files) == sorted(wanted.items())
    dropped = work(store_dir, compaction(old, middle, new, drop=True, outputs=tuple(range(960, 990))))
    assert contents(store_dir, dropped.files) == sorted((k, v) for k, v in wanted.items() if v is not None)


def test_outputs_have_about_the_target_size_and_do_not_overlap(store_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "_CHUNK_ENTRIES", 50)  # files are cut between chunks
    options = small(target_file_size_base=4000, compression="none")
    batch: Batch = {b"%05d" % at: os.urandom(50) for at in range(2000)}
    other = entries(0, 2000, b"x" * 50, 7)
    runs = [make_run(store_dir, at + 1, part, options=options).files for at, part in enumerate((batch, other))]
    result = work(store_dir, compaction(*runs), options)
    assert contents(store_dir, result.files) == sorted({**batch, **other}.items())
    assert all(4000 <= file.size_bytes < 4000 + 50 * 70 + 300 for file in result.files[:-1])
    assert len(result.files) > 15
    for before, after in zip(result.files, result.files[1:], strict=False):
        assert before.largest < after.smallest


def test_the_last_output_number_takes_all_that_is_left(store_dir: str) -> None:
    options = small(target_file_size_base=300)
    runs = [make_run(store_dir, at, entries(0, 5000, b"%d" % at)).files for at in (1, 2)]
    result = work(store_dir, compaction(*runs, outputs=(900, 901)), options)
    assert [file.number for file in result.files] == [900, 901]
    assert contents(store_dir, result.files) == sorted(entries(0, 5000, b"2").items())


def test_only_the_range_of_the_step_is_merged(store_dir: str) -> None:
    runs = [make_run(store_dir, at, entries(0, 1000, b"%d" % at)).files for at in (1, 2)]
    result = work(store_dir, compaction(*runs, start=b"00100", stop=b"00250"))
    assert contents(store_dir, result.files) == sorted(entries(100, 250, b"2").items())


def test_what_was_cut_off_an_input_does_not_come_back(store_dir: str) -> None:
    (file,) = make_run(store_dir, 1, entries(0, 1000, b"stale")).files
    trimmed = msgspec.structs.replace(file, smallest=b"00500")
    other = make_run(store_dir, 2, {b"00100": b"x"}).files
    result = work(store_dir, compaction((trimmed,), other))
    assert contents(store_dir, result.files) == sorted({**entries(500, 1000, b"stale"), b"00100": b"x"}.items())


def test_a_step_that_leaves_nothing_makes_no_file(store_dir: str) -> None:
    files = make_run(store_dir, 1, entries(0, 100, None)).files
    result = work(store_dir, compaction(files, drop=True))
    assert (result.error, result.files) == ("", ())
    assert ssts(store_dir) == ["000010.index", "000010.sst"]


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_blocks_that_nothing_overlaps_are_copied_as_they_are(store_dir: str, codec: str) -> None:
    options = small(compression=codec, target_file_size_base=1 << 20)
    batch: Batch = {b"%05d" % at: b"%d" % (at * 7919) * 5 for at in range(3000)}
    old = make_run(store_dir, 1, batch, options=options).files
    new = make_run(store_dir, 2, {b"00000": b"new", b"02999": b"new"}, options=options).files
    result = work(store_dir, compaction(old, new), options)
    blocks = len(Table(store_dir, 10).index.first_keys)
    assert result.copied_blocks > blocks * 0.8
    assert contents(store_dir, result.files) == sorted({**batch, b"00000": b"new", b"02999": b"new"}.items())


def test_blocks_of_another_codec_or_much_too_small_are_written_anew(store_dir: str) -> None:
    batch: Batch = {b"%05d" % at: b"abc" * 20 for at in range(500)}
    files = make_run(store_dir, 1, batch, options=small(compression="zstd")).files
    result = work(store_dir, compaction(files), small(compression="lz4"))
    assert result.copied_blocks == 0
    assert contents(store_dir, result.files) == sorted(batch.items())
    tiny = write_sst(store_dir, 800, [{key: value} for key, value in batch.items()])
    result = work(store_dir, compaction((tiny,), outputs=(961,)))
    assert result.copied_blocks == 0
    assert len(Table(store_dir, 961).index.first_keys) < 300


def test_a_copied_block_with_tombstones_keeps_or_loses_them(store_dir: str) -> None:
    batch: Batch = {b"%05d" % at: None if at % 50 == 0 else b"abc%d" % at for at in range(1000)}
    files = make_run(store_dir, 1, batch).files
    kept = work(store_dir, compaction(files))
    assert kept.copied_blocks > 0
    assert contents(store_dir, kept.files) == sorted(batch.items())
    dropped = work(store_dir, compaction(files, drop=True, outputs=tuple(range(970, 990))))
    assert dropped.copied_blocks > 0
    assert contents(store_dir, dropped.files) == sorted((k, v) for k, v in batch.items() if v is not None)


@pytest.mark.parametrize("place", ["copied", "merged"])
def test_damage_never_gets_a_fresh_checksum(store_dir: str, place: str) -> None:
    old = make_run(store_dir, 1, entries(0, 3000, b"v" * 20)).files
    new = make_run(store_dir, 2, {b"00000": b"x"} if place == "copied" else entries(0, 3000, b"new", 2)).files
    table = Table(store_dir, 10)
    offset = table.index.offsets[20]
    damage(table.path, offset + 25)
    before = ssts(store_dir)
    result = work(store_dir, compaction(old, new))
    assert (result.error, result.path) == (CorruptionError.__name__, table.path)
    assert f"offset {offset}" in result.message
    assert ssts(store_dir) == before, "no output is left behind"


def test_an_input_that_is_not_the_file_of_the_manifest_is_refused(store_dir: str) -> None:
    (file,) = make_run(store_dir, 1, entries(0, 10)).files
    result = work(store_dir, compaction((msgspec.structs.replace(file, size_bytes=file.size_bytes + 1),)))
    assert result.error == CorruptionError.__name__
    os.unlink(sst_path(store_dir, 10))
    assert work(store_dir, compaction((file,))).error == "FileNotFoundError"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("method", ["pwritev", "fdatasync", "rename", "fsync_dir", "open_write"])
def test_a_job_that_fails_leaves_nothing_behind(store_dir: str, method: str, code: int) -> None:
    runs = [make_run(store_dir, at, entries(0, 3000, b"%d" % at * 10)).files for at in (1, 2)]
    job = seal_log(store_dir, entries(0, 3000, b"%d" * 10))
    before = ssts(store_dir)
    for each in (compaction(*runs), job):
        for after in range(30):
            files = FaultFiles()
            files.fail(method, code, after=after)
            result = work(store_dir, each, files=files)
            if not result.error:
                break
            assert result.error == (NoSpaceError.__name__ if code == errno.ENOSPC else "OSError")
            assert ssts(store_dir) == before
        else:
            pytest.fail("never got through")
        for file in result.files:
            os.unlink(sst_path(store_dir, file.number))
            os.unlink(index_path(store_dir, file.number))


def test_a_worker_that_gives_up_leaves_nothing_behind(store_dir: str) -> None:
    runs = [make_run(store_dir, at, entries(0, 3000, b"%d" % at)).files for at in (1, 2)]
    before = ssts(store_dir)
    calls = []

    def stop(done: int) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(store_dir, compaction(*runs), SMALL, stop)
    assert ssts(store_dir) == before
    assert calls == sorted(calls)


def test_an_index_that_is_damaged_does_not_stop_a_compaction(store_dir: str) -> None:
    files = make_run(store_dir, 1, entries(0, 100)).files
    damage(index_path(store_dir, 10), 40)
    result = work(store_dir, compaction(files))
    assert contents(store_dir, result.files) == sorted(entries(0, 100).items())


# Removal


def test_files_are_removed_whichever_exist(store_dir: str) -> None:
    make_run(store_dir, 1, entries(0, 10), entries(10, 20))
    seal_log(store_dir, entries(0, 3), number=7)
    job = RemoveJob(id=3, numbers=(7, 10, 12345))
    for _ in range(2):
        assert work(store_dir, job).error == ""
    assert ssts(store_dir) == ["000011.index", "000011.sst"]
    assert os.listdir(os.path.join(store_dir, "wal")) == []


def test_inputs_of_a_run_are_read_in_order_across_files(store_dir: str) -> None:
    files = make_run(store_dir, 1, *[entries(at, at + 50) for at in range(0, 500, 50)]).files
    upper = make_run(store_dir, 2, {b"00049": None, b"00050": None, b"00499": b"last"}).files
    result = work(store_dir, compaction(files, upper, drop=True))
    wanted = {**entries(0, 500), b"00499": b"last"}
    for key in (b"00049", b"00050"):
        del wanted[key]
    assert contents(store_dir, result.files) == sorted(wanted.items())
    assert Run(id=1, files=result.files).size_bytes < Run(id=1, files=files).size_bytes
