"""What the writer does beside writing: offers jobs to flusher and compactor, takes their results into the manifest, and says when
writes must slow down or wait. No sockets, no processes; the clock is a parameter.

Invariants: at most one flush and one compaction step are under way; flushes are taken in log order; a result that is not of the job
under way is ignored (its files are swept at the next start, their numbers are never used again); a job that failed is tried
again with growing pauses; a damaged file is left out of compaction from then on, and everything else goes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from keyva.compaction import Step, apply_step, last_level, level_capacity, pending_bytes, pick_manual, pick_step, touched
from keyva.errors import CorruptionError, KeyvaError, NoSpaceError, by_name
from keyva.filename import index_path, parse_number, sst_path
from keyva.jobs import CompactionJob, FlushJob, Job, JobResult, RemoveJob
from keyva.manifest import FileMeta, Manifest, Run
from keyva.rewrite import flush_batch
from keyva.store import Store

__all__ = ["Maintenance", "Stall"]

log = logging.getLogger("keyva.maintenance")

_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 5.0
_MANUAL_MAX = 64
Kind = Literal["flush", "compact"]
_replace = msgspec.structs.replace


class Stall(NamedTuple):
    """Why writes do not go at full speed. ``stop``: they wait; else they are slowed down to ``delayed_write_rate``."""

    stop: bool
    reason: str
    text: str


class _Manual(NamedTuple):
    """A compaction of [start, stop] that somebody asked for, of what was there up to the sequence number ``until``."""

    ticket: int
    start: bytes | None
    stop: bytes | None
    until: int


class _Retry:
    """Pauses between tries: 0.5 s, doubled up to 5 s."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._not_before = 0.0
        self.error = ""

    def failed(self, error: str) -> None:
        pause = min(_PAUSE_MAX_S, _PAUSE_FIRST_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        self._not_before = self._clock() + pause
        self.error = error

    def succeeded(self) -> None:
        self._failures = 0
        self._not_before = 0.0
        self.error = ""

    def try_now(self) -> None:
        """Somebody asked: what failed before no longer counts."""
        self._not_before = 0.0
        self.error = ""

    @property
    def wait_s(self) -> float:
        return max(0.0, self._not_before - self._clock())


class Maintenance:
    """Flushing, compaction and stalls of one `Store`."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._clock = clock
        self._job_id = int.from_bytes(os.urandom(4), "little") << 20  # so that an answer to an earlier writer's job is not taken for ours
        self._flush: FlushJob | None = None
        self._compaction: tuple[CompactionJob | RemoveJob, Step | None] | None = None
        self._retry = {"flush": _Retry(clock), "compact": _Retry(clock)}
        self._removed: set[int] = set()
        self._manual: list[_Manual] = []
        self._manual_is_next = True
        self._manual_errors: dict[int, KeyvaError] = {}
        self._tickets = 0
        self._to_seal = 0
        """The log whose memtable somebody wants to be flushed; 0, or a log that is not the active one: none."""
        self._rotate_error: NoSpaceError | None = None
        self.damaged: dict[int, str] = store.damaged_tables()
        for number, error in self.damaged.items():
            log.error("SST %d is damaged: %s", number, error)

    # Stalls and rotation

    def after_write(self) -> None:
        """Rotate the memtable when it is full and there is room for one more; raises `FatalError`."""
        store = self.store
        if store.memtable_full and self._room_to_rotate:
            try:
                store.rotate()
                self._rotate_error = None
            except NoSpaceError as error:
                if self._rotate_error is None:
                    log.error("no space to rotate the memtable: %s", error)
                self._rotate_error = error

    @property
    def _room_to_rotate(self) -> bool:
        return self.store.immutable_memtables < self.store.options.max_write_buffer_number - 1

    def stall(self) -> Stall | None:
        """Say whether writes must wait or slow down now, and why; None when they need not."""
        store, options = self.store, self.store.options
        if store.memtable_full:
            self.after_write()
            if store.memtable_full:
                if self._rotate_error is not None:
                    return Stall(True, "no_space", str(self._rotate_error))
                return Stall(True, "memtable_limit", f"{store.immutable_memtables} full memtables wait to be flushed{self._why('flush')}")
        runs = len(store.manifest.levels[0])
        if runs >= options.level0_stop_writes_trigger and not self.damaged:
            return Stall(True, "level0_stop", f"level 0 has {runs} runs and compaction is behind{self._why('compact')}")
        if runs >= options.level0_slowdown_writes_trigger:
            return Stall(False, "level0_slowdown", f"level 0 has {runs} runs{self._why('compact')}")
        return None

    def _why(self, kind: Kind) -> str:
        error = self._retry[kind].error
        return f" (last try failed: {error})" if error else ""

    # Jobs

    def offer(self, kind: Kind) -> Job | None:
        """Return the job an idle worker of this kind should do now: the one under way again, or the next; None when there is none.

        Raises `FatalError`. Files that only move are moved right here.
        """
        try:
            return self._offer_flush() if kind == "flush" else self._offer_compaction()
        except NoSpaceError as error:
            self._retry[kind].failed(str(error))
            return None

    def wait_s(self, kind: Kind) -> float | None:
        """Return the seconds until a job of this kind may be tried again, None when no retry is waiting."""
        wait = self._retry[kind].wait_s
        return wait or None

    def _offer_flush(self) -> Job | None:
        if self._flush is not None or self._retry["flush"].wait_s:
            return self._flush
        self._seal_asked()
        if self.store.immutable_memtables:
            meta = self.store.manifest.logs[0]
            assert meta.sealed_bytes is not None
            (output,) = self.store.take_numbers(1)
            self._flush = FlushJob(
                id=self._next_id(), store_id=self.store.manifest.store_id, log=meta.number, sealed_bytes=meta.sealed_bytes, output=output
            )
        return self._flush

    def _offer_compaction(self) -> Job | None:
        if self._compaction is not None:
            return self._compaction[0]
        if self._retry["compact"].wait_s:
            return None
        obsolete = tuple(number for number in self.store.manifest.obsolete if number not in self._removed)
        if obsolete:
            job = RemoveJob(id=self._next_id(), numbers=obsolete)
            self._compaction = (job, None)
            return job
        while (step := self._pick()) is not None:
            if not step.moves:
                return self._start(step)
            self._take_step(step, ())
            self.store.counters["moves"] += len(step.moves)
            log.debug("moved %d SSTs from level %d to level %d", len(step.moves), step.level, step.target_level)
        return None

    def _pick(self) -> Step | None:
        """Return the next step: in turns one that somebody asked for and one that is due by itself, so that neither waits for ever."""
        store = self.store
        asked, due = self._pick_manual(), pick_step(store.manifest, store.options, self.damaged)
        if asked is None or due is None:
            return asked or due
        self._manual_is_next = not self._manual_is_next
        return due if self._manual_is_next else asked

    def _pick_manual(self) -> Step | None:
        store = self.store
        while self._manual:
            ticket, start, stop, until = self._manual[0]
            if store.manifest.logs[0].first_sequence <= until:
                return None  # its flush comes first
            step = pick_manual(store.manifest, store.options, start, stop, self.damaged, until)
            if step is not None:
                met = touched(step, self.damaged)
                if not met:
                    return step
                names = "; ".join(self.damaged[number] for number in met)
                self._manual_errors[ticket] = CorruptionError(f"the compaction came to an end at damaged files: {names}")
            del self._manual[0]
        return None

    def _start(self, step: Step) -> CompactionJob:
        store = self.store
        size = sum(file.size_bytes for files in step.inputs for file in files)
        count = 4 + 2 * size // store.options.target_file_size_base
        job = CompactionJob(
            id=self._next_id(),
            store_id=store.manifest.store_id,
            runs=step.inputs,
            start=step.start,
            stop=step.stop,
            drop_tombstones=step.drop_tombstones,
            outputs=store.take_numbers(count),
        )
        self._compaction = (job, step)
        return job

    def _next_id(self) -> int:
        self._job_id += 1
        return self._job_id

    def finish(self, result: JobResult) -> None:
        """Take a result in; raises `FatalError`. A result of a job that is not under way is ignored."""
        if self._flush is not None and result.id == self._flush.id:
            self._finish_flush(self._flush, result)
        elif self._compaction is not None and result.id == self._compaction[0].id:
            job, step = self._compaction
            self._finish_compaction(job, step, result)
        else:
            log.info("ignored the result of job %d, which is not under way", result.id)
            self._discard(result.files)

    def _discard(self, files: tuple[FileMeta, ...]) -> None:
        """Remove the output of a job that did not get into the manifest; its numbers were never in one and never will be.

        On a disk that is nearly full each try would leave its files behind, until a restart sweeps them.
        """
        live = self.store.manifest.all_files()
        for file in files:
            if file.number not in live:
                self.store.files.unlink(sst_path(self.store.directory, file.number))
                self.store.files.unlink(index_path(self.store.directory, file.number))

    def _finish_flush(self, job: FlushJob, result: JobResult) -> None:
        files = result.files
        try:
            if result.error == CorruptionError.__name__:
                # The sealed log is damaged, but the memtable it was the log of is still here
                log.error("flush of log %d: %s; writing the SST from memory", job.log, result.message)
                files = (self._flush_from_memory(job),)
            elif result.error:
                raise by_name(result.error, result.message)
            (built,) = files
            self._take_flush(job, built)
        except (KeyvaError, OSError) as error:
            log.error("flush of log %d failed, trying again later: %s", job.log, error)
            self._retry["flush"].failed(str(error))
            self._discard(files)
        else:
            self._retry["flush"].succeeded()
        self._flush = None

    def _flush_from_memory(self, job: FlushJob) -> FileMeta:
        store = self.store
        memtable = store.oldest_memtable()
        entries: dict[bytes, bytes | None] = {}
        for data in reversed(memtable.dicts):
            entries.update(data)
        first, following = store.manifest.logs[0].first_sequence, store.manifest.logs[1].first_sequence
        (output,) = store.take_numbers(1)
        return flush_batch(store.directory, entries, output, job.store_id, (first, following - 1), store.options, files=store.files)

    def _take_flush(self, job: FlushJob, built: FileMeta) -> None:
        store = self.store
        manifest = store.manifest
        run = Run(id=store.take_numbers(1)[0], files=(built,))
        manifest = store.manifest
        levels = ((run, *manifest.levels[0]), *manifest.levels[1:])
        store.save_requests()
        self._commit(
            _replace(
                manifest,
                logs=manifest.logs[1:],
                levels=levels,
                last_sequence=built.largest_sequence,
                obsolete=(*manifest.obsolete, job.log),
            )
        )
        store.drop_oldest_memtable(job.log)
        store.counters["flushes"] += 1
        store.counters["flushed_bytes"] += built.size_bytes
        log.debug("flushed log %d: %d entries, %d bytes in SST %d", job.log, built.entries, built.size_bytes, built.number)

    def _finish_compaction(self, job: CompactionJob | RemoveJob, step: Step | None, result: JobResult) -> None:
        self._compaction = None
        retry = self._retry["compact"]
        try:
            if self._note_damage(result):
                return  # the next step leaves the file out, so there is nothing to wait for
            if result.error:
                raise by_name(result.error, result.message)
            if isinstance(job, RemoveJob) or step is None:
                self._removed.update(job.numbers if isinstance(job, RemoveJob) else ())
                return
            self._take_step(step, result.files)
        except (KeyvaError, OSError) as error:
            log.error("compaction failed: %s", error)
            retry.failed(str(error))
            self._discard(result.files)
            return
        retry.succeeded()
        counters = self.store.counters
        counters["compactions"] += 1
        counters["copied_blocks"] += result.copied_blocks
        counters["compacted_bytes_read"] += job.input_bytes
        counters["compacted_bytes_written"] += sum(file.size_bytes for file in result.files)
        log.debug(
            "compacted level %d into level %d: %d bytes in, %d SSTs out", step.level, step.target_level, job.input_bytes, len(result.files)
        )

    def _take_step(self, step: Step, outputs: tuple[FileMeta, ...]) -> None:
        run_id = self.store.take_numbers(1)[0]
        self._commit(apply_step(self.store.manifest, step, outputs, run_id))

    def _commit(self, manifest: Manifest) -> None:
        removed = self._removed
        self.store.commit(_replace(manifest, obsolete=tuple(number for number in manifest.obsolete if number not in removed)))
        self._removed = removed & set(self.store.manifest.obsolete)

    def _note_damage(self, result: JobResult) -> bool:
        """Remember the live SST that a job found damaged; says whether there was one."""
        if result.error == CorruptionError.__name__:
            parsed = parse_number(os.path.basename(result.path))
            if parsed is not None and parsed[0] in self.store.manifest.all_files():
                self.damaged[parsed[0]] = result.message
                log.error("SST %d is damaged and is left out of compaction: %s", parsed[0], result.message)
                return True
        return False

    # What users ask for

    def request_flush(self) -> int:
        """Begin to flush what is in memory; returns a ticket for `flush_done`. Raises `NoSpaceError` or `FatalError`.

        When there are as many full memtables as there may be, the active one has its turn after the next of their flushes.
        """
        ticket = self._seal()
        self._retry["flush"].try_now()
        return ticket

    def _seal(self) -> int:
        """Rotate the memtable out, now or as soon as there is room; returns the number above those of the logs that hold what is there."""
        store = self.store
        if store.memtable_empty:
            return store.manifest.logs[-1].number
        self._to_seal = store.manifest.logs[-1].number
        self._seal_asked()
        return self._to_seal + 1

    def _seal_asked(self) -> None:
        if self._room_to_rotate and self.store.manifest.logs[-1].number == self._to_seal:
            self.store.rotate()

    def flush_done(self, ticket: int) -> bool:
        """Say whether everything that was in memory at `request_flush` is in SSTs; raises the error the flush met."""
        if self.store.manifest.logs[0].number >= ticket:
            return True
        error = self._retry["flush"].error
        if error:
            raise KeyvaError(f"the flush failed and will be tried again: {error}")
        return False

    def request_compaction(self, start: bytes | None, stop: bytes | None) -> int:
        """Ask for a compaction of what is in [start, stop] now; returns a ticket for `compaction_done`."""
        if len(self._manual) >= _MANUAL_MAX:
            raise KeyvaError(f"{_MANUAL_MAX} compactions are waiting already")
        self._seal()
        for retry in self._retry.values():
            retry.try_now()
        self._tickets += 1
        self._manual.append(_Manual(self._tickets, start, stop, self.store.last_sequence))
        return self._tickets

    def compaction_done(self, ticket: int) -> bool:
        """Say whether the compaction is done; raises `CorruptionError` when it had to leave damaged files out."""
        error = self._manual_errors.pop(ticket, None)
        if error is not None:
            raise error
        if all(waiting.ticket != ticket for waiting in self._manual):
            return True
        error_text = self._retry["compact"].error or self._retry["flush"].error
        if error_text and not self.damaged:
            self._manual = [waiting for waiting in self._manual if waiting.ticket != ticket]
            raise KeyvaError(f"the compaction failed: {error_text}")
        return False

    def _jobs(self) -> list[dict[str, Any]]:
        """What flusher and compactor are doing, for people to see."""
        jobs: list[dict[str, Any]] = []
        if self._flush is not None:
            jobs.append({"kind": "flush", "from_level": None, "to_level": 0, "files": 1, "bytes": self._flush.sealed_bytes})
        if self._compaction is not None and (step := self._compaction[1]) is not None:
            files = [file for run in step.inputs for file in run]
            size = sum(file.size_bytes for file in files)
            jobs.append({"kind": "compaction", "from_level": step.level, "to_level": step.target_level, "files": len(files), "bytes": size})
        return jobs

    def stats(self) -> dict[str, Any]:
        """Return the store's figures; sizes in bytes."""
        store = self.store
        manifest = store.manifest
        stall = self.stall()
        levels = [
            {
                "level": number,
                "runs": len(runs),
                "files": sum(len(run.files) for run in runs),
                "bytes": sum(run.size_bytes for run in runs),
                "entries": sum(file.entries for run in runs for file in run.files),
                "capacity_bytes": level_capacity(number, store.options) if number else 0,
            }
            for number, runs in enumerate(manifest.levels)
        ]
        return {
            "directory": store.directory,
            "store_id": manifest.store_id.hex(),
            "last_sequence": store.last_sequence,
            "generation": manifest.generation,
            "memtable_bytes": store._memtables[-1].size_bytes,
            "memtable_entries": store._memtables[-1].entries,
            "immutable_memtables": store.immutable_memtables,
            "wal_bytes": store.position & 0xFFFFFFFF,
            "levels": levels,
            "last_level": last_level(manifest),
            "pending_compaction_bytes": pending_bytes(manifest, store.options),
            "stall": stall._asdict() if stall else None,
            "jobs": self._jobs(),
            "damaged": [{"sst": number, "error": error} for number, error in sorted(self.damaged.items())],
            "flush_error": self._retry["flush"].error,
            "compaction_error": self._retry["compact"].error,
            "recovered_dropped_bytes": store.dropped_bytes,
            **store.counters,
        }
