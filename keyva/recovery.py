"""Bringing a store up: from whatever a clean stop, a crash or a power cut left behind to a state that can be served.

Order: the manifest; then every file it names is there; then the logs, oldest first; then the active log's good records are written
into a new, synced log, and a new manifest names that. What the old tail shows may be pages the disk never got (a failed fsync, a
kill between write and sync), so nothing is served from it. Last, files that no manifest names are removed.

Invariants: a directory without manifest but with files is refused; nothing is removed on the start that writes the first manifest;
until the new manifest is in place the old files are untouched, so a start can die anywhere and be done again.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from keyva.batch import decode_trusted
from keyva.errors import CorruptionError, StoreError
from keyva.filename import MANIFEST, REQUESTS, parse_number, sst_path, wal_path
from keyva.files import Files
from keyva.manifest import LogMeta, Manifest, load_manifest, store_manifest
from keyva.memtable import Memtable
from keyva.pulse import position_of
from keyva.requests import RequestTable
from keyva.reserved import SEQUENCE_PREFIX
from keyva.wal import HEADER_BYTES, LogHeader, LogWriter, RecoveredLog, encode_record, recover_log

__all__ = ["Recovered", "prepare_directory", "recover"]

log = logging.getLogger("keyva.recovery")

_NUMBERS_RESERVED = 256


class Recovered(NamedTuple):
    """A store that is ready to be written to."""

    manifest: Manifest
    memtables: list[Memtable]  # one per log of the manifest, oldest first; the last is the active one's
    log: LogWriter
    next_sequence: int
    requests: RequestTable
    dropped_bytes: int


def prepare_directory(directory: str, files: Files) -> None:
    """Make the directory and its folders where they are missing; raises `StoreError` in one sentence when that cannot be."""
    try:
        if os.path.exists(directory) and not os.path.isdir(directory):
            raise StoreError(f"{directory} is a file, not a directory")
        files.make_dir(directory)
        for name in ("wal", "sst", "run", "log"):
            files.make_dir(os.path.join(directory, name))
        if not os.path.exists(os.path.join(directory, MANIFEST)):  # the start that made the directory may have died before it did this
            with contextlib.suppress(PermissionError):
                files.fsync_dir(os.path.dirname(os.path.abspath(directory)))
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise StoreError(f"no permission to use {directory}")
    except PermissionError as error:
        raise StoreError(f"no permission to use {directory}: {error.strerror} ({error.filename})") from error
    except FileExistsError as error:
        raise StoreError(f"{directory} is not a directory: {error.filename} is a file") from error
    except NotADirectoryError as error:
        raise StoreError(f"{directory} is not a directory: {error.strerror}") from error


def recover(directory: str, files: Files, progress: Callable[[], None]) -> Recovered:
    """Recover the store in ``directory`` (whose writer lock the caller holds).

    ``progress`` is called once per record, and for each part of a large log that is read or synced. Costs one pass over the live logs,
    and one write of the active one.
    """
    manifest = load_manifest(directory, files)
    first_start = manifest is None
    if manifest is None:
        manifest = Manifest(store_id=os.urandom(16), generation=1, last_sequence=0, next_number=1, logs=())
        store_manifest(directory, manifest, files)
    _check_files(directory, manifest, files)
    covered_from = position_of(manifest.logs[0].number, 0) if manifest.logs else 0
    requests = _load_requests(directory, covered_from, files)
    memtables: list[Memtable] = []
    active: RecoveredLog | None = None
    next_sequence = manifest.last_sequence + 1
    for meta in manifest.logs:
        found, memtable = _replay(directory, meta, manifest, requests, files, progress)
        if found.header.first_sequence != next_sequence and meta is not manifest.logs[0]:
            raise CorruptionError(
                f"log begins with sequence number {found.header.first_sequence}, expected {next_sequence}",
                wal_path(directory, meta.number),
                28,
            )
        next_sequence = max(next_sequence, found.next_sequence)
        memtables.append(memtable)
        if meta.sealed_bytes is None:
            active = found
    number = manifest.next_number
    writer = _new_log(directory, number, manifest.store_id, active, next_sequence, files, progress)
    active_memtable = Memtable(number)
    if active is not None:
        replayed = memtables.pop()
        for data in reversed(replayed.dicts):
            active_memtable.apply(data, 0)
        active_memtable.payload_bytes = replayed.payload_bytes
    memtables.append(active_memtable)
    sealed = tuple(meta for meta in manifest.logs if meta.sealed_bytes is not None)
    old = tuple(meta.number for meta in manifest.logs if meta.sealed_bytes is None)
    recovered = msgspec.structs.replace(
        manifest,
        generation=manifest.generation + 1,
        next_number=number + 1 + _NUMBERS_RESERVED,
        logs=(*sealed, LogMeta(number=number, first_sequence=writer.first_sequence, synced_bytes=writer.synced)),
        obsolete=(*manifest.obsolete, *old),
    )
    try:
        files.write_atomic(os.path.join(directory, REQUESTS), requests.encode(position_of(number, 0)))
        store_manifest(directory, recovered, files)
    except BaseException:
        writer.close()
        raise
    if not first_start:
        _sweep(directory, recovered, files)
    return Recovered(recovered, memtables, writer, next_sequence, requests, active.dropped_bytes if active else 0)


def _load_requests(directory: str, oldest_live: int, files: Files) -> RequestTable:
    try:
        table = RequestTable.decode(files.read_file(os.path.join(directory, REQUESTS)), oldest_live)
    except FileNotFoundError:
        table = None
    return table or RequestTable(oldest_live)


def _check_files(directory: str, manifest: Manifest, files: Files) -> None:
    present = {
        number: kind
        for name in ("wal", "sst")
        for number, kind, temporary in filter(None, map(parse_number, files.listdir(os.path.join(directory, name))))
        if not temporary and kind != "index"
    }
    for number in manifest.all_files():
        if present.get(number) != "sst":
            raise CorruptionError(
                f"the manifest names this SST, but it is missing ({MANIFEST} generation {manifest.generation})",
                sst_path(directory, number),
                0,
            )
    for meta in manifest.logs:
        if present.get(meta.number) != "wal":
            raise CorruptionError(
                f"the manifest names this log, but it is missing ({MANIFEST} generation {manifest.generation})",
                wal_path(directory, meta.number),
                0,
            )


def _replay(
    directory: str, meta: LogMeta, manifest: Manifest, requests: RequestTable, files: Files, progress: Callable[[], None]
) -> tuple[RecoveredLog, Memtable]:
    path = wal_path(directory, meta.number)
    memtable = Memtable(meta.number)
    counted: list[tuple[int, int | None]] = []

    def count(payload: bytes | memoryview) -> int:
        batch = decode_trusted(payload)
        memtable.apply(batch, len(payload))
        value = None
        if len(batch) == 1:
            ((key, text),) = batch.items()
            if text is not None and 0 < len(text) <= 20 and text.removeprefix(b"-").isdigit():
                value = int(text) - key.startswith(SEQUENCE_PREFIX)  # what an increment or sequence answered, should this have been one
        counted.append((len(batch), value))
        progress()
        return len(batch)

    found = recover_log(
        path, sealed_bytes=meta.sealed_bytes, synced_bytes=meta.synced_bytes, count_entries=count, files=files, progress=progress
    )
    if found.header.number != meta.number or found.header.store_id != manifest.store_id:
        raise CorruptionError(f"this is log {found.header.number} of another store or place", path, 16)
    if found.header.first_sequence != meta.first_sequence:
        raise CorruptionError(
            f"log begins with sequence number {found.header.first_sequence}, the manifest says {meta.first_sequence}", path, 40
        )
    for record, (entries, value) in zip(found.records, counted, strict=True):
        answer = (record.first_sequence + entries - 1, value)
        requests.add(record.client, record.request, 0, position_of(meta.number, record.end), answer)
    if found.dropped_bytes:
        log.warning("%s: dropped a torn tail at offset %d, %d bytes: %s", path, found.end, found.dropped_bytes, found.dropped_reason)
    return found, memtable


def _new_log(
    directory: str,
    number: int,
    store_id: bytes,
    active: RecoveredLog | None,
    next_sequence: int,
    files: Files,
    progress: Callable[[], None],
) -> LogWriter:
    """Write the good records of the old active log into log ``number``; their checksums are made for the new place."""
    first_sequence = active.header.first_sequence if active is not None else next_sequence
    head = LogHeader.encode(number, store_id, first_sequence)
    salt = LogHeader.decode(head, wal_path(directory, number)).salt
    content: list[bytes] = []
    offset = HEADER_BYTES
    for record in active.records if active is not None else ():
        payload = bytes(record.payload)
        content.append(encode_record(salt, offset, record.first_sequence, HEADER_BYTES, record.client, record.request, payload))
        content.append(payload)
        offset += len(content[-2]) + len(payload)
    return LogWriter.create(directory, number, store_id, first_sequence, content=content, files=files, progress=progress)


def _sweep(directory: str, manifest: Manifest, files: Files) -> None:
    """Remove files that the manifest does not name: output of jobs that were never finished, logs that were flushed."""
    live = set(manifest.all_files()) | {meta.number for meta in manifest.logs}
    for name in ("wal", "sst"):
        folder = os.path.join(directory, name)
        for entry in files.listdir(folder):
            parsed = parse_number(entry)
            if parsed is not None and (parsed[2] or parsed[0] not in live):
                log.info("removing %s, which the manifest does not name", os.path.join(folder, entry))
                files.unlink(os.path.join(folder, entry))
    for entry in files.listdir(directory):
        if entry.startswith((MANIFEST + ".", REQUESTS + ".")) and entry.endswith(".tmp"):
            files.unlink(os.path.join(directory, entry))
