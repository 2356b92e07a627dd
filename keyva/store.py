"""The writer's core: applies batches in order, and is the only one that changes the manifest. No sockets, no processes.

A group of requests is checked, appended to the log with one write, synced once if any of them asks for it, added to the memtable,
published, and only then answered. A full memtable gets a new log; its old log is sealed and offered to the flusher
(`keyva.maintenance`).

Invariants: nothing is published or answered before it is as durable as was asked; what could not be written leaves no trace in log,
memtable or request table; a failed sync is final (`FatalError`), for the kernel may have dropped the pages and a second sync would
claim success; an SST or log named by the manifest is never written to.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from keyva.batch import Batch, BatchCodec, check_key, encode_batch, show_key
from keyva.cache import BlockCache
from keyva.errors import (
    ConditionFailedError,
    CounterOverflowError,
    InvalidArgumentError,
    KeyvaError,
    NoSpaceError,
    NotACounterError,
    StoreLockedError,
)
from keyva.filename import REQUESTS, WRITER_LOCK
from keyva.files import FILES, Files, Lock, translate
from keyva.manifest import LogMeta, Manifest, load_manifest, store_manifest
from keyva.memtable import Memtable
from keyva.options import Options
from keyva.pulse import Pulse, position_of
from keyva.recovery import prepare_directory, recover
from keyva.requests import Answer
from keyva.reserved import TYPE_PREFIX, Update, check_content_type, check_type_key, sequence_key, type_key, value_digest
from keyva.sst import DamagedTable
from keyva.version import Version, open_version
from keyva.view import Reads, Snapshot, lookup
from keyva.wal import LogWriter

__all__ = ["FatalError", "Store", "WriteRequest"]

log = logging.getLogger("keyva.store")

_NUMBERS_RESERVED = 256
_INT64 = range(-(2**63), 2**63)


class FatalError(Exception):
    """The disk failed in a way after which this process cannot know what is durable: it must stop, and the next start recovers."""


class WriteRequest(msgspec.Struct, kw_only=True):
    """One write of one client. ``payload`` is a batch, or there is one of: ``increment`` ``(key, by)``, ``update``, and ``sequence``
    ``(name, whether to reset it)``. ``sync`` None takes the store's default.
    The other fields let a repeat be recognised, see `keyva.requests`.
    """

    payload: bytes = b""
    increment: tuple[bytes, int] | None = None
    update: Update | None = None
    sequence: tuple[bytes, bool] | None = None
    sync: bool | None = None
    client: int = 0
    request: int = 0
    floor: int = 0
    as_of: int = 0
    repeated: bool = False


class Store(Reads):
    """The store of one directory, opened for writing. One per directory; for one thread."""

    def __init__(self, directory: str, options: Options, *, files: Files = FILES, progress: Callable[[], None] = lambda: None) -> None:
        """Open or make the store; raises `StoreError`, `StoreLockedError`, `CorruptionError` or `FormatVersionError`."""
        self.directory = directory
        self.options = options
        self.files = files
        prepare_directory(directory, files)
        self._lock = Lock(os.path.join(directory, WRITER_LOCK))
        try:
            if not self._lock.acquire():
                owner = self._lock.owner()
                raise StoreLockedError(f"{directory} is being written to by process {owner}", owner)
            self._lock.write_owner()
            recovered = recover(directory, files, progress)
            self.manifest: Manifest = recovered.manifest
            self._memtables = recovered.memtables
            self._log: LogWriter = recovered.log
            self._next_sequence = recovered.next_sequence
            self.requests = recovered.requests
            self.dropped_bytes = recovered.dropped_bytes
            self._next_number = recovered.log.number + 1
            self.cache = BlockCache(options.block_cache_size // 4, options.block_cache_idle_s)
            self._version: Version = open_version(directory, self.manifest, {}, self.cache, files=files)
            self._pulse = Pulse(directory, write=True)
        except BaseException:
            self._lock.release()
            raise
        self._failed = False
        self._has_types = self._holds_types()
        """Whether there may be content types, so that plain writes have to look for those of their keys."""
        self._codec = BatchCodec(options.max_value_size)
        self._default_sync = options.durability == "sync"
        self.counters = dict.fromkeys(
            ("writes", "batches", "groups", "wal_bytes", "wal_syncs", "flushes", "compactions", "moves", "copied_blocks", "write_errors"), 0
        )
        self.counters |= {"flushed_bytes": 0, "compacted_bytes_read": 0, "compacted_bytes_written": 0}
        self._refresh_state()
        self._publish()

    # Reading: the writer's own lookups

    def _refresh(self) -> None:
        pass  # `_state` is replaced with every change

    def _refresh_state(self) -> None:
        dicts = tuple(data for memtable in reversed(self._memtables) for data in memtable.dicts)
        self._state = (dicts, self._version)

    def snapshot(self) -> Snapshot:
        """Return this moment of the store."""
        return Snapshot([memtable.freeze() for memtable in reversed(self._memtables)], self._version, self.last_sequence)

    @property
    def last_sequence(self) -> int:
        """The sequence number of the newest entry."""
        return self._next_sequence - 1

    @property
    def position(self) -> int:
        """The commit position, as in PULSE."""
        return position_of(self._log.number, self._log.offset)

    # Writing

    def write(self, requests: Sequence[WriteRequest]) -> list[Answer | KeyvaError]:
        """Apply ``requests`` in order as one group commit and return an answer or an error for each. Hot.

        Errors of single requests leave the others alone; `NoSpaceError` fails all of them. Raises `FatalError`.
        """
        results: list[Any] = [None] * len(requests)
        batches: list[tuple[bytes, int, int, int]] = []
        decoded: list[tuple[int, Batch, int | None]] = []
        changes: Batch | None = None if all(request.payload for request in requests) else {}  # what later ones of the group must see
        sync = False
        in_group: dict[tuple[int, int], int] = {}
        for at, request in enumerate(requests):
            try:
                if request.repeated:
                    twin = in_group.get((request.client, request.request))
                    if twin is not None:
                        results[at] = twin  # resolved below
                        continue
                    answer = self.requests.find(request.client, request.request, request.as_of)
                    if answer is not None:
                        results[at] = answer
                        continue
                payload, batch, value = self._resolve(request, changes)
            except KeyvaError as error:
                results[at] = error
                if request.client:  # refused is refused, whatever the requests in between change
                    in_group[request.client, request.request] = at
                continue
            if changes is not None:
                changes.update(batch)
            if request.client:
                in_group[request.client, request.request] = at
            batches.append((payload, len(batch), request.client, request.request))
            decoded.append((at, batch, value))
            sync = sync or (self._default_sync if request.sync is None else request.sync)
        if batches:
            self._commit_group(requests, batches, decoded, results, sync)
        return [results[result] if type(result) is int else result for result in results]

    def _resolve(self, request: WriteRequest, changes: Batch | None) -> tuple[bytes, Batch, int | None]:
        """Return (payload for the log, its batch, the answered number)."""
        if request.increment is not None:
            key = check_key(request.increment[0])
            value = add_to_counter(key, self._newest(key, changes), request.increment[1])
            batch: Batch = {key: b"%d" % value}
            return encode_batch(batch), batch, value
        if request.update is not None:
            return self._resolve_update(request.update, changes)
        if request.sequence is not None:
            key = sequence_key(request.sequence[0])
            if request.sequence[1]:
                batch, value = {key: None}, 0
            else:
                value = int(self._newest(key, changes) or b"0")
                batch = {key: b"%d" % add_to_counter(request.sequence[0], b"%d" % value, 1)}
            return encode_batch(batch), batch, value
        payload = request.payload
        self._check_size(len(payload))
        batch = self._codec.decode(payload)
        if self._has_types and (gone := self._types_of(batch, changes)):
            batch |= gone
            payload = encode_batch(batch)
        return payload, batch, None

    def _resolve_update(self, update: Update, changes: Batch | None) -> tuple[bytes, Batch, int | None]:
        """Check the conditions and return the batch, with the content types beside their keys and those that go."""
        for condition in update.conditions:
            key = check_key(condition.key)
            value = self._newest(key, changes)
            if value is None or condition.digest is None:
                if value is not None or condition.digest is not None:
                    raise ConditionFailedError(f"key {show_key(key)} is {'absent' if value is None else 'there'}; nothing was written")
                continue
            kind = self._newest(type_key(key), changes)
            if value_digest(value) != condition.digest or kind != (condition.content_type and condition.content_type.encode()):
                raise ConditionFailedError(f"key {show_key(key)} has another value or content type than expected; nothing was written")
        batch = self._codec.decode(update.batch)
        for key in update.types:
            if batch.get(key) is None:
                raise InvalidArgumentError(f"a content type was given for key {show_key(key)}, which the batch does not put")
        types: Batch = {check_type_key(key): check_content_type(key, kind).encode() for key, kind in update.types.items()}
        if types:
            self._has_types = True
        if self._has_types:
            batch |= self._types_of(batch, changes) | types
        payload = encode_batch(batch)
        self._check_size(len(payload))
        return payload, batch, None

    def _check_size(self, size: int) -> None:
        if size > self.options.max_batch_size:
            raise InvalidArgumentError(f"the batch has {size} bytes, more than max_batch_size = {self.options.max_batch_size}")

    def _newest(self, key: bytes, changes: Batch | None) -> bytes | None:
        """Return what ``key`` is after the requests of the group so far."""
        return changes[key] if changes is not None and key in changes else lookup(self._state, key)

    def _types_of(self, batch: Batch, changes: Batch | None) -> Batch:
        """Return deletes of the content types that keys of ``batch`` have; they go with what they describe."""
        keys = map(type_key, batch)
        return {key: None for key in keys if self._newest(key, changes) is not None}

    def _holds_types(self) -> bool:
        if any(file.largest >= TYPE_PREFIX for file in self.manifest.all_files().values()):
            return True
        return any(max(data) >= TYPE_PREFIX for memtable in self._memtables for data in memtable.dicts if data)

    def _commit_group(
        self,
        requests: Sequence[WriteRequest],
        batches: list[tuple[bytes, int, int, int]],
        decoded: list[tuple[int, Batch, int | None]],
        results: list[Any],
        sync: bool,
    ) -> None:
        """Append and sync the group's batches, add them to the memtable, publish, and fill in their results."""
        before = self._log.offset
        sequence = self._next_sequence - 1
        try:
            self._next_sequence = self._log.append(batches, self._next_sequence)
        except OSError as error:
            found = translate(error, "writing to the log")
            self.counters["write_errors"] += 1
            if not isinstance(found, NoSpaceError):
                raise FatalError(f"{self._log.path}: write failed: {error}") from error
            for at, _, _ in decoded:
                results[at] = found
            return
        # The memtable changes while the kernel writes; nobody reads it before the sync, after whose failure this process stops
        if sync:
            self._log.start_sync()
        memtable = self._memtables[-1]
        layered = False
        for (_, batch, _), (payload, _, _, _) in zip(decoded, batches, strict=True):
            layered = memtable.apply(batch, len(payload)) or layered
        if sync:
            self._sync()
        if layered:
            self._refresh_state()
        position = self.position
        for at, batch, value in decoded:
            sequence += len(batch)
            request = requests[at]
            results[at] = answer = (sequence, value)
            self.requests.add(request.client, request.request, request.floor, position, answer)
        self._publish()
        self.counters["wal_bytes"] += self._log.offset - before
        self.counters["groups"] += 1
        self.counters["batches"] += len(decoded)
        self.counters["writes"] += sum([len(batch) for _, batch, _ in decoded])

    def _sync(self) -> None:
        try:
            self._log.sync()
        except OSError as error:
            self._failed = True
            raise FatalError(f"{self._log.path}: fdatasync failed: {error}; what is durable is not known, stopping to recover") from error
        self.counters["wal_syncs"] += 1

    def _publish(self) -> None:
        self._pulse.publish(self.position, self.manifest.generation)

    # Memtables and manifest

    @property
    def memtable_full(self) -> bool:
        """Whether the active memtable should be rotated out."""
        return self._memtables[-1].size_bytes >= self.options.write_buffer_size

    @property
    def memtable_empty(self) -> bool:
        """Whether the active memtable holds nothing."""
        return self._memtables[-1].entries == 0

    @property
    def immutable_memtables(self) -> int:
        """How many full memtables wait to be flushed."""
        return len(self._memtables) - 1

    def rotate(self) -> None:
        """Seal the active log and begin a new one. Raises `NoSpaceError` (nothing has changed then) or `FatalError`."""
        number = self.take_numbers(1)[0]
        old = self._log
        try:
            new = LogWriter.create(self.directory, number, self.manifest.store_id, self._next_sequence, files=self.files)
        except OSError as error:
            raise self._disk_error(error, "making a new log") from error
        try:
            sealed = old.seal()
        except OSError as error:
            raise FatalError(f"{old.path}: sealing failed: {error}") from error
        was = LogMeta(number=old.number, first_sequence=old.first_sequence, sealed_bytes=sealed, synced_bytes=sealed)
        now = LogMeta(number=number, first_sequence=self._next_sequence, synced_bytes=new.synced)
        try:
            self.commit(msgspec.structs.replace(self.manifest, logs=(*self.manifest.logs[:-1], was, now)), publish=False)
        except NoSpaceError:
            new.close()
            self.files.unlink(new.path)
            raise
        self._log = new
        self._memtables.append(Memtable(number))
        self._refresh_state()
        self._publish()
        old.close()

    def damaged_tables(self) -> dict[int, str]:
        """Return the SSTs that could not be opened, with the reason."""
        return {number: str(table.error) for number, table in self._version.tables.items() if isinstance(table, DamagedTable)}

    def drop_oldest_memtable(self, number: int) -> None:
        """Forget the memtable of log ``number``, which an SST of the manifest holds now."""
        assert self._memtables[0].number == number and len(self._memtables) > 1
        del self._memtables[0]
        self._refresh_state()

    def oldest_memtable(self) -> Memtable:
        """Return the memtable to be flushed next."""
        return self._memtables[0]

    def take_numbers(self, count: int) -> tuple[int, ...]:
        """Hand out file numbers that were never used and never will be again, not even by a writer that recovers from a crash."""
        first = self._next_number
        if first + count > self.manifest.next_number:
            self.commit(msgspec.structs.replace(self.manifest, next_number=first + count + _NUMBERS_RESERVED))
        self._next_number = first + count
        return tuple(range(first, first + count))

    def save_requests(self) -> None:
        """Write the request table to its file; done before a log is given up, whose records it could be filled from. Raises `NoSpaceError`
        or `FatalError`."""
        try:
            self.files.write_atomic(os.path.join(self.directory, REQUESTS), self.requests.encode(self.position))
        except OSError as error:
            raise self._disk_error(error, "writing the request table") from error

    def commit(self, manifest: Manifest, *, publish: bool = True) -> None:
        """Make ``manifest`` (with the next generation number) the truth. Raises `FatalError`; or `NoSpaceError`, or `CorruptionError` when
        an SST that is new in it cannot be read: then the old one still is.
        """
        logs = manifest.logs
        if logs[-1].number == self._log.number:
            logs = (*logs[:-1], msgspec.structs.replace(logs[-1], synced_bytes=self._log.synced))
        manifest = msgspec.structs.replace(manifest, generation=self.manifest.generation + 1, logs=logs)
        version = open_version(self.directory, manifest, self._version.tables, self.cache, files=self.files)
        for number, table in version.tables.items():
            if isinstance(table, DamagedTable) and number not in self._version.tables:
                raise table.error  # what it was made of is still there, and would be given up
        try:
            store_manifest(self.directory, manifest, self.files)
        except OSError as error:
            raise self._disk_error(error, "writing the manifest") from error
        self.manifest = manifest
        self._version = version
        self._refresh_state()
        if publish:
            self._publish()

    def _disk_error(self, error: OSError, doing: str) -> NoSpaceError | FatalError:
        """A full disk is told to clients, if the manifest on disk is still the one in memory; anything else is final."""
        found = translate(error, doing)
        if isinstance(found, NoSpaceError):
            on_disk = load_manifest(self.directory, self.files)
            if on_disk is not None and on_disk.generation == self.manifest.generation:
                return found
        return FatalError(f"{self.directory}: {doing} failed: {error}")

    def close(self) -> None:
        """Make everything durable and let the directory go. Reading goes on to work in snapshots only."""
        if self._lock.held:
            if not self._failed:  # after a failed sync another one would only claim success
                try:
                    self._log.seal()
                    self.commit(self.manifest)  # with the log's synced size: damage of its last record shows at the next start
                except (OSError, NoSpaceError, FatalError) as error:
                    log.error("%s: sealing at the end failed: %s", self._log.path, error)
            self._log.close()
            self.cache.clear()
            self._pulse.close()
            self._lock.release()


def add_to_counter(key: bytes, old: bytes | None, by: int) -> int:
    """Return the counter's new value; a counter is decimal text of a 64-bit signed integer, absent counts as 0."""
    if by not in _INT64:
        raise CounterOverflowError(f"increment of key {show_key(key)} by {by}: outside of 64 bits")
    value = 0
    if old is not None:
        digits = old.removeprefix(b"-")
        if not (digits.isdigit() and len(digits) <= 19 and b"%d" % int(old) == old and int(old) in _INT64):
            raise NotACounterError(f"the value of key {show_key(key)} is no counter: {show_key(old)}")
        value = int(old)
    if value + by not in _INT64:
        raise CounterOverflowError(f"increment of key {show_key(key)}: {value} + {by} is outside of 64 bits")
    return value + by
