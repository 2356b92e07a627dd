"""Reading a store: `View` follows a running node's store by reading its files, `Snapshot` is one moment of it.

A view holds the open SSTs of one manifest generation and a replica of the memtables, built from the logs' tails. Before each read it
compares a word of PULSE with what it has applied, and reads the log's tail or the manifest when they differ. The writer
publishes before it acknowledges, so whatever was acknowledged before a read began is seen by it, without a message.

A view that nobody reads lets go of everything after ``block_cache_idle_s`` or two, and loads it anew at the next read (some milliseconds,
and 0.2 us per entry in the logs): else it would keep memory, and the space on the disk of SSTs that compaction has long removed.

Invariants: what a view has applied is a prefix of what was committed; state is replaced as one tuple, so a thread never sees memtables
of one moment with the SSTs of an earlier one; a snapshot changes never.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable
from collections.abc import Iterator as Iterable_
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from keyva.batch import Batch, Text, check_key, check_keys, decode_trusted
from keyva.cache import BlockCache
from keyva.errors import ClosedError, CorruptionError, StoreError, UnavailableError
from keyva.files import FILES, Files
from keyva.iterator import Entries, Iterator, range_bounds
from keyva.manifest import LogMeta, Manifest, load_manifest
from keyva.memtable import MISSING, FrozenMemtable, Memtable
from keyva.merge import MemtableSource, RunSource, Source, live_entries
from keyva.options import KEY_BYTES_MAX, RESERVED_PREFIX, Options
from keyva.pulse import Pulse, split_position, sum_of
from keyva.reserved import Typed, type_key
from keyva.version import Version, open_version
from keyva.wal import HEADER_BYTES, LogTail

__all__ = ["Reads", "Snapshot", "View"]

_ATTEMPTS_MAX = 20
_PAUSE_MAX_S = 0.1

State = tuple[tuple[Batch, ...], Version]
"""The memtables' dicts, newest first, and the SSTs under them."""


def lookup(state: State, key: bytes) -> bytes | None:
    """Return the value of ``key`` in one state, None when it is absent or deleted."""
    dicts, version = state
    return _below(version, key, _in_memory(dicts, key))


def _in_memory(dicts: tuple[Batch, ...], key: bytes) -> Any:
    """Return what the memtables hold for ``key``; MISSING when they know nothing of it."""
    for data in dicts:
        value = data.get(key, MISSING)
        if value is not MISSING:
            return value
    return MISSING


def _below(version: Version, key: bytes, value: Any) -> bytes | None:
    """Return ``value``, or where it is MISSING what the SSTs hold for ``key``."""
    if value is MISSING:
        value = version.get(key)
    return None if value is MISSING else value


class Reads:
    """The read calls, over whatever `_state` gives. Keys are bytes or str; a missing key is no error."""

    _state: State
    _guard: AbstractContextManager[object] = nullcontext()
    """Held while several keys are looked up in the memtables, so that all are of one moment; SSTs never change."""

    def _refresh(self) -> None:
        """Bring `_state` up to date."""
        raise NotImplementedError

    def get(self, key: Text, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        key = check_key(key)
        self._refresh()
        value = lookup(self._state, key)
        return default if value is None else value

    def get_many(self, keys: Iterable[Text]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None for those that are absent."""
        return self._lookup_many(check_keys(keys, "get_many"))

    def _lookup_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Look keys up; in key order, so that each block is decoded once."""
        found: dict[bytes, Any] = {}
        rest: set[bytes] | list[bytes] = set(keys)
        with self._guard:
            self._refresh()
            dicts, version = self._state
            for data in dicts:
                hits = {key: data[key] for key in rest if key in data}
                if hits:
                    found.update(hits)
                    rest = [key for key in rest if key not in hits]
        found |= version.find_many(sorted(rest))
        return list(map(found.get, keys))

    def get_typed(self, key: Text) -> Typed | None:
        """Return value and content type of ``key`` at one moment, None when it is absent."""
        key = check_key(key)
        kind_key = type_key(key)
        with self._guard:
            self._refresh()
            dicts, version = self._state
            value, kind = _in_memory(dicts, key), _in_memory(dicts, kind_key)
        value = _below(version, key, value)
        return None if value is None else Typed(value, _text(_below(version, kind_key, kind)))

    def content_types(self, keys: Iterable[Text]) -> list[str | None]:
        """Return the content types of ``keys`` in their order, None where there is none."""
        return list(map(_text, self._lookup_many(list(map(type_key, check_keys(keys, "content_types"))))))

    def exists(self, key: Text) -> bool:
        """Say whether ``key`` has a value."""
        return self.get(key) is not None

    def snapshot(self) -> Snapshot:
        """Return this moment of the store."""
        raise NotImplementedError

    def iterator(
        self,
        start: Text | None = None,
        stop: Text | None = None,
        *,
        include_start: bool = True,
        include_stop: bool = False,
        prefix: Text | None = None,
        reverse: bool = False,
        include_key: bool = True,
        include_value: bool = True,
    ) -> Iterator:
        """Return an `Iterator` over a range, as the store is now."""
        low, high = range_bounds(start, stop, include_start, include_stop, prefix)
        snapshot = self.snapshot()
        return Iterator(
            snapshot.entries,
            low,
            high,
            reverse=reverse,
            include_key=include_key,
            include_value=include_value,
            on_close=snapshot.close,
        )


def _text(content_type: bytes | None) -> str | None:
    return None if content_type is None else content_type.decode("ascii")


class Snapshot(Reads):
    """One moment of a store. Costs nothing to take; while it is open its SSTs stay on disk and its memtables in memory."""

    def __init__(self, frozen: list[FrozenMemtable], version: Version, sequence: int) -> None:
        self._frozen = frozen  # newest first
        self._version = version
        self.sequence = sequence
        self._state = (tuple(data for memtable in frozen for data in memtable.dicts), version)
        self.closed = False

    def _refresh(self) -> None:
        if self.closed:
            raise ClosedError("the snapshot is closed")

    def snapshot(self) -> Snapshot:
        """Return another handle on the same moment, closed by itself."""
        self._refresh()
        frozen = [memtable.again() for memtable in self._frozen]
        return Snapshot(frozen, self._version, self.sequence)

    def entries(self, start: bytes, stop: bytes, reverse: bool) -> Entries:
        """Yield the live entries of [start, stop) as lists of keys and values; what iterators and cursors stand on."""
        return live_entries(self.sources(start, stop, reverse), reverse)

    def sources(self, start: bytes, stop: bytes, reverse: bool) -> list[Source]:
        """Return what has to be merged for a range, oldest first."""
        if start >= stop:
            return []
        sources: list[Source] = [
            RunSource(self._version, run, start, stop, reverse)
            for run in reversed(self._version.runs)
            if run.largest[-1] >= start and run.smallest[0] < stop
        ]
        sources.extend(MemtableSource(memtable, start, stop, reverse) for memtable in reversed(self._frozen))
        return sources

    def close(self) -> None:
        """Let files and memory go. May be called twice."""
        if not self.closed:
            self.closed = True
            for memtable in self._frozen:
                memtable.release()
            self._frozen = []
            del self._state, self._version

    release = close

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()


class View(Reads):
    """Reads the store in ``directory`` while a node runs it. Safe to share between threads; not across a fork."""

    def __init__(self, directory: str, options: Options, *, cache: BlockCache | None = None, files: Files = FILES) -> None:
        self.directory = directory
        self.sequence = 0
        self.closed = False
        self._options = options
        self._files = files
        self.cache = cache or BlockCache(options.block_cache_size, options.block_cache_idle_s)
        self._pulse = Pulse(directory)
        self._words = self._pulse.words
        self._position = self._generation = self._applied = -1
        self._logs: tuple[LogMeta, ...] = ()
        self._memtables: dict[int, Memtable] = {}
        self._tails: dict[int, LogTail] = {}
        self._version: Version | None = None
        self._timer: threading.Timer | None = None
        self._guard = self._lock = threading.RLock()
        try:
            self._catch_up()
        except BaseException:
            self.close()
            raise

    def get(self, key: Text, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``. Hot: 0.15 us from memory, 0.35 us when absent, else a block has to be searched."""
        if self._words[2] != self._applied:
            self._catch_up()
        dicts, version = self._state
        try:
            for data in dicts:  # raises _LetGoError when another thread has just let go
                value = data.get(key, MISSING)  # type: ignore[arg-type]
                if value is not MISSING:
                    if key >= RESERVED_PREFIX:  # type: ignore[operator]
                        check_key(key)
                    return default if value is None else value
            # what was found before lies here, and nothing newer can: reserved keys never do
            value = version.rows.get(key)  # type: ignore[arg-type]
            if value is not None:
                return value
            # most absent keys are told here by the filters, without a call
            found: Any = MISSING
            for bloom in version.filters:
                if bloom is None or key in bloom:
                    found = version.find(key, bloom)  # type: ignore[arg-type]
                    break
            if key >= RESERVED_PREFIX or len(key) > KEY_BYTES_MAX:  # type: ignore[operator]  # not bytes: TypeError, and once more below
                check_key(key)
        except (TypeError, ValueError, BytesWarning):  # the last two: a memoryview of a bytearray, and a str under `python -bb`
            if type(key) is bytes:
                raise
            return self.get(check_key(key), default)
        except _LetGoError:
            return self.get(key, default)
        return default if found is MISSING or found is None else found

    def _refresh(self) -> None:
        if self.closed:
            raise ClosedError("the client is closed")
        if self._words[2] != self._applied:
            self._catch_up()

    @property
    def manifest(self) -> Manifest:
        """The manifest the view stands on now."""
        with self._lock:
            if self._version is None:
                self._refresh()
            assert self._version is not None
            return self._version.manifest

    @property
    def committed_position(self) -> int:
        """The commit position as the writer has published it."""
        return self._words[0]

    @property
    def position(self) -> int:
        """The commit position that has been applied."""
        return self._position

    def lag_bytes(self) -> int:
        """Bytes of committed log that the view has not applied yet (of the active log alone when it changed)."""
        log, offset = split_position(self._words[0])
        tail = self._tails.get(log)
        return offset - (tail.offset if tail else HEADER_BYTES)

    def _catch_up(self) -> None:
        with self._lock:
            if self.closed:
                raise ClosedError("the client is closed")
            missing: OSError | None = None
            loaded = -1
            for attempt in range(_ATTEMPTS_MAX):
                position, generation = self._words[0], self._words[1]
                try:
                    if generation != self._generation or missing is not None:
                        manifest = self._load_manifest()
                        if missing is not None and manifest.generation == loaded:
                            raise CorruptionError("the manifest names this file, but it is missing", str(missing.filename), 0)
                        loaded = manifest.generation
                        self._adopt(manifest)
                    self._apply_logs(position)
                except FileNotFoundError as error:  # just removed: a newer manifest exists
                    missing = error
                    self._generation = -1
                    continue
                except _StaleManifestError:
                    missing = None  # the manifest it was missing from is gone, too
                    self._generation = -1
                    if attempt:  # a writer is starting: it makes PULSE anew in some milliseconds
                        time.sleep(min(0.001 * 2**attempt, _PAUSE_MAX_S))
                    continue
                self._position, self._generation = position, generation
                self._applied = sum_of(position, generation)
                if self._timer is None:
                    self._start_timer()
                return
            raise UnavailableError(
                f"{self.directory}: manifest and PULSE did not fit {_ATTEMPTS_MAX} times in a row; no writer runs, or it is starting"
            )

    def _load_manifest(self) -> Manifest:
        manifest = load_manifest(self.directory, self._files)
        if manifest is None:
            raise StoreError(f"{self.directory} holds no store")
        return manifest

    def _adopt(self, manifest: Manifest) -> None:
        """Open what is new in ``manifest`` and drop what it no longer names."""
        known = self._version.tables if self._version is not None else {}
        options = self._options
        version = open_version(self.directory, manifest, known, self.cache, mmap_reads=options.allow_mmap_reads, files=self._files)
        for log in manifest.logs:
            if log.number not in self._tails:
                tail = LogTail(self.directory, log.number, self._files)
                self._memtables[log.number] = Memtable(log.number)  # before the tail: a signal's exception may come in between
                self._tails[log.number] = tail
        self._version = version
        self._logs = manifest.logs
        live = {log.number for log in manifest.logs}
        for number in [number for number in self._memtables if number not in live]:
            gone = self._tails.pop(number, None)
            if gone is not None:
                gone.close()
            del self._memtables[number]

    def _apply_logs(self, position: int) -> None:
        active, offset = split_position(position)
        # While a writer starts, the manifest names its new log, whose records count already, before PULSE says how far it reaches
        if active not in self._tails:
            raise _StaleManifestError
        for log in self._logs:
            if log.sealed_bytes is not None:
                end = log.sealed_bytes
            else:
                end = offset if log.number == active else HEADER_BYTES
            tail = self._tails[log.number]
            memtable = self._memtables[log.number]
            if tail.offset < end:
                for record in tail.read_to(end):
                    batch = decode_trusted(record.payload)
                    memtable.apply(batch, len(record.payload))
                    self.sequence = record.first_sequence + len(batch) - 1
        assert self._version is not None
        dicts = tuple(data for log in reversed(self._logs) for data in self._memtables[log.number].dicts if data)
        self._state = (dicts, self._version)
        self.sequence = max(self.sequence, self._version.manifest.last_sequence)

    def snapshot(self) -> Snapshot:
        """Return this moment of the store."""
        with self._lock:
            self._refresh()
            assert self._version is not None
            # an empty memtable has nothing that this moment could see
            frozen = [memtable.freeze() for log in reversed(self._logs) if (memtable := self._memtables[log.number]).entries]
            return Snapshot(frozen, self._version, self.sequence)

    def _start_timer(self) -> None:
        self._timer = timer = threading.Timer(self._options.block_cache_idle_s, _tick, (weakref.ref(self),))
        timer.daemon = True
        timer.name = "keyva-view-idle"
        timer.start()

    def let_go_if_idle(self) -> None:
        """Let go of files and memory when nobody has read since the last call; called by a timer while there is something to let go."""
        with self._lock:
            self._timer = None
            if self.closed:
                return
            if self._applied != -1:
                self._applied = -1  # the next read notices, and catches up with what it has
                self._start_timer()
                return
            tails, self._tails = self._tails, {}
            for tail in tails.values():
                tail.close()
            self._memtables = {}
            self._position = self._generation = -1
            self._version = None
            self._state = (_LetGo(), None)  # type: ignore[assignment]
            self.cache.clear()

    def close(self) -> None:
        """Close files and drop the cache; open snapshots stay usable."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for tail in self._tails.values():
                tail.close()
            self._tails = {}
            self._words = _Closed()  # type: ignore[assignment]
            self._pulse.close()
            self.cache.clear()


class _StaleManifestError(Exception):
    """The log of PULSE's position is not in the manifest that was read: read both again."""


def _tick(reference: weakref.ref[View]) -> None:
    view = reference()
    if view is not None:
        view.let_go_if_idle()


class _LetGoError(Exception):
    """The state has just been let go: look again."""


class _LetGo:
    """Stands in for the memtables of a view that has let go: nobody can take them for empty."""

    def __iter__(self) -> Iterable_[Batch]:
        raise _LetGoError


class _Closed:
    """Stands in for PULSE's words after close(): never equal to what was applied, so every read goes through _catch_up."""

    def __getitem__(self, _: int) -> int:
        return -2
