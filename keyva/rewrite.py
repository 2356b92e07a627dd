"""Running jobs: a sealed log becomes an SST, runs are merged into new SSTs, files that nobody names are removed.

Stands apart from processes: `run_job` takes a job and gives its result; flusher and compactor are loops around it.

Invariants: every input block's checksum is verified before its entries are written anew, so damage never gets a fresh checksum;
an output file is synced with its index before the result names it; after an error no output is left behind.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from keyva.batch import Batch, decode_trusted
from keyva.block import BLOCK_HEADER_BYTES, CODECS, Columns, decode_block, parse_block
from keyva.errors import CorruptionError, KeyvaError
from keyva.filename import index_path, sst_path, wal_path
from keyva.files import FILES, Files, translate
from keyva.jobs import CompactionJob, FlushJob, Job, JobResult, RemoveJob
from keyva.manifest import FileMeta, Run
from keyva.merge import end_of_range
from keyva.options import Options
from keyva.sst import SstWriter, Table, new_header
from keyva.version import OpenRun
from keyva.wal import recover_log

__all__ = ["Progress", "flush_batch", "run_job"]

Progress = Callable[[int], None]
"""Called every some thousand entries with the input bytes done; a worker shows life, and may raise to give up."""

_CHUNK_ENTRIES = 4096
_CHUNK_BYTES = 1024 * 1024
_PIECE_BLOCKS = 16
_PIECE_BYTES = 512 * 1024


def run_job(directory: str, job: Job, options: Options, progress: Progress, files: Files = FILES) -> JobResult:
    """Do a job and return its result; errors of disk and data come back in the result, never as exceptions."""
    try:
        if isinstance(job, FlushJob):
            return _flush(directory, job, options, progress, files)
        if isinstance(job, CompactionJob):
            return _Compaction(directory, job, options, progress, files).run()
        return _remove(directory, job, files)
    except KeyvaError as error:
        return JobResult(id=job.id, error=type(error).__name__, message=str(error), path=getattr(error, "path", ""))
    except OSError as error:
        found = translate(error, f"running a {type(job).__name__}")
        return JobResult(id=job.id, error=type(found).__name__, message=str(found), path=str(error.filename or ""))


def _flush(directory: str, job: FlushJob, options: Options, progress: Progress, files: Files) -> JobResult:
    path = wal_path(directory, job.log)
    entries: Batch = {}

    def count(payload: bytes | memoryview) -> int:
        batch = decode_trusted(payload)
        entries.update(batch)
        progress(0)
        return len(batch)

    try:
        log = recover_log(path, sealed_bytes=job.sealed_bytes, count_entries=count, files=files, progress=lambda: progress(0))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptionError(f"the disk cannot read this: {error.strerror}", path, 0) from error  # the writer has it in memory
    if log.header.store_id != job.store_id:
        raise CorruptionError("log belongs to another store", path, 24)
    sequences = (log.header.first_sequence, log.next_sequence - 1)
    built = flush_batch(directory, entries, job.output, job.store_id, sequences, options, progress, files)
    return JobResult(id=job.id, files=(built,))


def flush_batch(
    directory: str,
    entries: Batch,
    number: int,
    store_id: bytes,
    sequences: tuple[int, int],
    options: Options,
    progress: Progress = lambda _: None,
    files: Files = FILES,
) -> FileMeta:
    """Write all of ``entries`` (at least one) as SST ``number``. Costs about 1 us per entry."""
    header = new_header(number, store_id, sequences, options.compression, options.block_size, options.bloom_filter_bits)
    files.unlink(sst_path(directory, number))  # a try of this same job that died
    writer = SstWriter(directory, header, files=files)
    try:
        keys = sorted(entries)
        for start in range(0, len(keys), _CHUNK_ENTRIES):
            chunk = keys[start : start + _CHUNK_ENTRIES]
            # looked up chunk by chunk, values are still in the processor's cache when they are encoded
            writer.add(chunk, list(map(entries.__getitem__, chunk)))
            progress(writer.offset)
        return FileMeta.of(writer.finish())
    except BaseException:
        writer.abandon()
        raise


def _remove(directory: str, job: RemoveJob, files: Files) -> JobResult:
    for number in job.numbers:
        for path in (wal_path(directory, number), sst_path(directory, number), index_path(directory, number)):
            files.unlink(path)
    return JobResult(id=job.id)


class _Input:
    """One run as a source of pieces of up to 16 blocks that keep their stored bytes, so that they can be copied."""

    def __init__(self, run: OpenRun, start: bytes, stop: bytes | None) -> None:
        self._run = run
        self._start = start
        self._stop = stop
        self._file = 0
        self._block = -1
        self.keys: list[bytes] = []
        self.values: list[bytes | None] = []
        self.position = 0
        self.blocks: list[tuple[Columns, bytes]] = []
        self.read_bytes = 0

    def advance(self) -> bool:
        """Load the next piece; False at the end."""
        run = self._run
        while self._file < len(run.tables):
            table = run.tables[self._file]
            low = max(run.smallest[self._file], self._start)
            if self._block < 0:
                self._block = max(0, table.find_block(low))
            first_keys = table.index.first_keys
            high = run.largest[self._file]
            if (
                self._block >= len(first_keys)
                or (self._stop is not None and first_keys[self._block] >= self._stop)
                or first_keys[self._block] > high
            ):
                self._file += 1
                self._block = -1
                continue
            last = table.reach(self._block, _PIECE_BLOCKS, _PIECE_BYTES)
            self._load(table, self._block, last)
            self._block = last
            self._cut(low, high)
            if self.keys:
                return True
        self.keys, self.values, self.blocks = [], [], []
        return False

    def _load(self, table: Table, first: int, last: int) -> None:
        keys: list[bytes] = []
        values: list[bytes | None] = []
        blocks = []
        for _, data, offset in table.read_stored(first, last):
            block = decode_block(data, table.salt, offset, table.path)
            if keys and block[0][0] <= keys[-1]:
                raise CorruptionError("keys do not ascend", table.path, offset)
            keys += block[0]
            values += block[1]
            blocks.append((block, data))
            self.read_bytes += len(data)
        self.keys, self.values, self.blocks, self.position = keys, values, blocks, 0

    def _cut(self, low: bytes, high: bytes) -> None:
        keys = self.keys
        if keys[0] >= low and keys[-1] <= high and (self._stop is None or keys[-1] < self._stop):
            return
        kept = [
            (key, value)
            for key, value in zip(keys, self.values, strict=True)
            if low <= key <= high and (self._stop is None or key < self._stop)
        ]
        self.keys, self.values = [key for key, _ in kept], [value for _, value in kept]
        self.blocks = []  # not whole any more


class _Compaction:
    def __init__(self, directory: str, job: CompactionJob, options: Options, progress: Progress, files: Files) -> None:
        self._directory = directory
        self._job = job
        self._options = options
        self._progress = progress
        self._files = files
        self._outputs = list(job.outputs)
        self._writer: SstWriter | None = None
        self._built: list[FileMeta] = []
        self._keys: list[bytes] = []
        self._values: list[bytes | None] = []
        self._waiting_bytes = 0
        self._copied = 0
        inputs = [file for run in job.runs for file in run]
        self._sequences = (min(file.smallest_sequence for file in inputs), max(file.largest_sequence for file in inputs))

    def run(self) -> JobResult:
        try:
            self._merge(self._open_inputs())
            self._write_waiting()
            self._finish_file()
        except BaseException:
            self._abandon()
            raise
        return JobResult(id=self._job.id, files=tuple(self._built), copied_blocks=self._copied)

    def _open_inputs(self) -> list[_Input]:
        tables = {}
        for run in self._job.runs:
            for file in run:
                table = Table(self._directory, file.number, files=self._files)
                if table.size_bytes != file.size_bytes:
                    raise CorruptionError(
                        f"SST has {table.size_bytes} bytes, the manifest says {file.size_bytes}", table.path, table.size_bytes
                    )
                tables[file.number] = table
        runs = [OpenRun(Run(id=0, files=run), tables) for run in self._job.runs if run]
        return [_Input(run, self._job.start, self._job.stop) for run in runs]

    def _merge(self, inputs: list[_Input]) -> None:
        active = [source for source in inputs if source.advance()]
        while active:
            self._progress(sum(source.read_bytes for source in inputs))
            lowest = min(active, key=_first_key)
            others = [source for source in active if source is not lowest]
            if lowest.position == 0 and (not others or lowest.keys[-1] < min(map(_first_key, others))):
                self._take_piece(lowest)
                if not lowest.advance():
                    active = others
                continue
            bound = min(source.keys[-1] for source in active)
            merged: Batch = {}
            ended = False
            for source in active:
                keys, position = source.keys, source.position
                end = end_of_range(keys, bound, position, False)
                merged.update(zip(keys[position:end], source.values[position:end], strict=True))
                if end == len(keys):
                    ended = not source.advance() or ended
                else:
                    source.position = end
            if ended:
                active = [source for source in active if source.keys]
            keys = sorted(merged)
            self._emit(keys, list(map(merged.__getitem__, keys)))

    def _take_piece(self, source: _Input) -> None:
        """Take a piece whose key range no other input touches: its blocks are copied as they are when they may be."""
        codec = CODECS[self._options.compression]
        for block, data in source.blocks:
            _, _, raw_bytes, _, stored_codec = parse_block(data)
            whole = raw_bytes * 2 >= self._options.block_size and stored_codec in (0, codec)
            if not whole or (self._job.drop_tombstones and None in block[1]):
                self._emit(*block)
                continue
            self._write_waiting()
            self._open_writer().add_copied(block, data[BLOCK_HEADER_BYTES:], raw_bytes, stored_codec)
            self._copied += 1
            self._cut_file()
        if not source.blocks:
            self._emit(source.keys, source.values)

    def _emit(self, keys: list[bytes], values: list[bytes | None]) -> None:
        if self._job.drop_tombstones and None in values:
            kept = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
            keys, values = [key for key, _ in kept], [value for _, value in kept]
        self._keys.extend(keys)
        self._values.extend(values)
        try:
            self._waiting_bytes += sum(map(len, values))  # type: ignore[arg-type]
        except TypeError:  # tombstones
            self._waiting_bytes += sum(len(value) for value in values if value is not None)
        if len(self._keys) >= _CHUNK_ENTRIES or self._waiting_bytes >= _CHUNK_BYTES:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._keys:
            self._open_writer().add(self._keys, self._values)
            self._keys, self._values, self._waiting_bytes = [], [], 0
            self._cut_file()

    def _open_writer(self) -> SstWriter:
        if self._writer is None:
            number = self._outputs.pop(0)
            options = self._options
            header = new_header(
                number, self._job.store_id, self._sequences, options.compression, options.block_size, options.bloom_filter_bits
            )
            self._files.unlink(sst_path(self._directory, number))
            self._writer = SstWriter(self._directory, header, files=self._files)
        return self._writer

    def _cut_file(self) -> None:
        # the last number takes all that is left: the writer handed out more numbers than the inputs can fill
        if self._writer is not None and self._writer.offset >= self._options.target_file_size_base and self._outputs:
            self._finish_file()

    def _finish_file(self) -> None:
        if self._writer is not None:
            self._built.append(FileMeta.of(self._writer.finish()))
            self._writer = None

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
        for file in self._built:
            self._files.unlink(sst_path(self._directory, file.number))
            self._files.unlink(index_path(self._directory, file.number))


def _first_key(source: _Input) -> bytes:
    return source.keys[source.position]
