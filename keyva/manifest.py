"""The manifest: which files make up the store. The shared truth of all processes, changed by the writer alone.

Format: docs/format.md, "Manifest": JSON, with a checksum of itself as its last line. It is replaced as a whole (write, fsync,
rename, fsync of the directory), so a reader sees the old one or the new one.

Invariants (checked by `Manifest.check` before every write and after every read): within a run files ascend and do not overlap;
level 0 and tiered levels list their runs newest first; numbers are below ``next_number``, which is above every number ever handed
out, also to jobs whose output was lost; the last log is the active one and the only one that is not sealed.
"""

from __future__ import annotations

import json
import os
import re

import msgspec
from crc32c import crc32c

from keyva.errors import CorruptionError, FormatVersionError, StoreError
from keyva.filename import MANIFEST
from keyva.files import FILES, Files
from keyva.sst import BuiltSst

__all__ = [
    "FEATURES",
    "FORMAT",
    "NUMBER_MAX",
    "Drain",
    "FileMeta",
    "LogMeta",
    "Manifest",
    "Run",
    "load_manifest",
    "manifest_text",
    "parse_manifest",
    "store_manifest",
]

FORMAT = 1
FEATURES: frozenset[str] = frozenset()
STORE_ID_BYTES = 16
U64_MAX = 2**64 - 1
NUMBER_MAX = 2**32 - 1
"""The largest number of a log or SST: the header of a log has 32 bits for it."""

_TAIL = re.compile(rb',\n"crc32c": "([0-9a-f]{8})"\n\}\n\Z')


class FileMeta(msgspec.Struct, frozen=True, kw_only=True):
    """An SST as the manifest knows it. ``smallest`` and ``largest`` bound what of it counts: a compaction that has moved the
    file's beginning down raises ``smallest``, and entries below it are no longer part of the store.
    """

    number: int
    size_bytes: int
    entries: int
    tombstones: int
    smallest: bytes
    largest: bytes
    smallest_sequence: int
    largest_sequence: int
    crc32c: int

    @classmethod
    def of(cls, built: BuiltSst) -> FileMeta:
        """Return the entry of a new SST."""
        return cls(**built._asdict())


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A sorted run: files in key order that do not overlap. Ids grow with age of the run's creation."""

    id: int
    files: tuple[FileMeta, ...]

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(file.size_bytes for file in self.files)


class LogMeta(msgspec.Struct, frozen=True, kw_only=True):
    """A live log; ``sealed_bytes`` is its final size, None while it is the active one. Everything before ``synced_bytes`` was synced
    when the manifest was written: damage there is no torn write.
    """

    number: int
    first_sequence: int
    sealed_bytes: int | None = None
    synced_bytes: int = 0


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """A compaction in progress: ``runs`` of ``level`` go down to run ``target_run`` of ``target_level``, from the smallest key up."""

    level: int
    runs: tuple[int, ...]
    target_level: int
    target_run: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of the store. Immutable; `msgspec.structs.replace` makes the next."""

    format: int = FORMAT
    features: tuple[str, ...] = ()
    store_id: bytes
    generation: int
    last_sequence: int
    next_number: int
    logs: tuple[LogMeta, ...]
    levels: tuple[tuple[Run, ...], ...] = ((),)
    drain: Drain | None = None
    obsolete: tuple[int, ...] = ()

    def all_files(self) -> dict[int, FileMeta]:
        """Return every live SST by number."""
        return {file.number: file for level in self.levels for run in level for file in run.files}

    def runs(self) -> list[Run]:
        """Return all runs, newest first."""
        return [run for level in self.levels for run in level]

    def check(self) -> None:
        """Raise ValueError when an invariant of this module does not hold."""
        self._check_numbers()
        if not self.logs:
            if self.generation > 1:  # only the very first manifest precedes its log
                raise ValueError("there must be an active log")
        elif any(log.sealed_bytes is None for log in self.logs[:-1]) or self.logs[-1].sealed_bytes is not None:
            raise ValueError("exactly the last log must be unsealed")
        numbers = [log.number for log in self.logs]
        if numbers != sorted(set(numbers)):
            raise ValueError("log numbers must ascend")
        files = [file for run in self.runs() for file in run.files]
        seen = {file.number for file in files}
        if len(seen) != len(files):
            raise ValueError("an SST is listed twice")
        if seen & set(self.obsolete):
            raise ValueError("an SST is both live and obsolete")
        if max([0, *numbers, *seen, *self.obsolete]) >= self.next_number:
            raise ValueError("next_number is not above all numbers")
        run_ids = [run.id for run in self.runs()]
        if len(set(run_ids)) != len(run_ids):
            raise ValueError("a run is listed twice")
        for run in self.runs():
            if not run.files:
                raise ValueError(f"run {run.id} is empty")
            for before, after in zip(run.files, run.files[1:], strict=False):
                if before.largest >= after.smallest:
                    raise ValueError(f"SSTs {before.number} and {after.number} of run {run.id} overlap")
            if any(file.smallest > file.largest for file in run.files):
                raise ValueError(f"an SST of run {run.id} has its smallest key above its largest")

    def _check_numbers(self) -> None:
        """Raise ValueError for a number that no manifest can have. Costs 1 us, and 0.3 us per SST."""
        if self.format < 1:  # a newer one is no broken one: `parse_manifest`
            raise ValueError(f"format must be 1 or more, not {self.format}")
        if len(self.store_id) != STORE_ID_BYTES:
            raise ValueError(f"store_id must have {STORE_ID_BYTES} bytes")
        _check_range("generation", self.generation)
        _check_range("last_sequence", self.last_sequence)
        _check_range("next_number", self.next_number, NUMBER_MAX + 1)
        for number in self.obsolete:
            _check_range("obsolete number", number, NUMBER_MAX)
        for log in self.logs:
            _check_range("log number", log.number, NUMBER_MAX)
            for what, value in (
                ("first_sequence", log.first_sequence),
                ("sealed_bytes", log.sealed_bytes or 0),
                ("synced_bytes", log.synced_bytes),
            ):
                _check_range(f"{what} of log {log.number}", value)
        for run in self.runs():
            _check_range("run id", run.id)
            for file in run.files:
                _check_range("SST number", file.number, NUMBER_MAX)
                sizes = (file.size_bytes, file.entries, file.tombstones, file.smallest_sequence, file.largest_sequence)
                if min(sizes) < 0 or max(sizes) > U64_MAX or not 0 <= file.crc32c <= 2**32 - 1:
                    raise ValueError(f"a number of SST {file.number} is out of range")


def _check_range(what: str, value: int, most: int = U64_MAX) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{what} must be from 0 to {most}, not {value}")


def manifest_text(manifest: Manifest) -> bytes:
    """Return the bytes of the manifest file. Keys are written as text of one character per byte (ISO 8859-1)."""
    tree = msgspec.to_builtins(manifest, builtin_types=(bytes,))
    tree["store_id"] = manifest.store_id.hex()
    for level in tree["levels"]:
        for run in level:
            for file in run["files"]:
                file["smallest"] = file["smallest"].decode("latin-1")
                file["largest"] = file["largest"].decode("latin-1")
                file["crc32c"] = f"{file['crc32c']:08x}"
    lines = []
    for name, value in tree.items():
        if name == "levels":
            levels = []
            for level in value:
                runs = []
                for run in level:
                    files = ",\n     ".join(json.dumps(file) for file in run["files"])
                    runs.append(f'   {{"id": {run["id"]}, "files": [\n     {files}]}}')
                levels.append("  [\n" + ",\n".join(runs) + "]" if runs else "  []")
            lines.append('"levels": [\n' + ",\n".join(levels) + "]")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    body = ("{\n" + ",\n".join(lines)).encode()
    return body + b',\n"crc32c": "%08x"\n}\n' % crc32c(body)


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Check checksum, then version, then content; raises `CorruptionError` or `FormatVersionError`."""
    tail = _TAIL.search(data)
    if tail is None:
        raise CorruptionError("manifest does not end in its checksum; it is cut short or damaged", path, len(data))
    body = data[: tail.start()]
    if crc32c(body) != int(tail[1], 16):
        raise CorruptionError("manifest checksum does not match", path, 0)
    try:
        tree = json.loads(data)
        if tree["format"] > FORMAT or set(tree["features"]) - FEATURES:
            features = f" {tree['features']}" if tree["features"] else ""
            raise FormatVersionError(
                f"{path}: store format {tree['format']}{features} is newer than this one knows ({FORMAT}); use a newer keyva"
            )
        tree.pop("crc32c")
        tree["store_id"] = bytes.fromhex(tree["store_id"])
        for level in tree["levels"]:
            for run in level:
                for file in run["files"]:
                    file["smallest"] = file["smallest"].encode("latin-1")
                    file["largest"] = file["largest"].encode("latin-1")
                    file["crc32c"] = int(file["crc32c"], 16)
        manifest = msgspec.convert(tree, Manifest, builtin_types=(bytes,))
        manifest.check()
    except (KeyError, TypeError, ValueError) as error:  # msgspec.ValidationError and JSONDecodeError are ValueErrors
        raise CorruptionError(f"manifest cannot be decoded: {error}", path, getattr(error, "pos", 0)) from error
    return manifest


def load_manifest(directory: str, files: Files = FILES) -> Manifest | None:
    """Read the manifest; None in a directory that holds no store yet.

    Raises `StoreError` when there is none although there are logs or SSTs: replacing it would lose them.
    """
    path = os.path.join(directory, MANIFEST)
    try:
        data = files.read_file(path)
    except FileNotFoundError:
        for name in ("wal", "sst"):
            left = [entry for entry in files.listdir(os.path.join(directory, name)) if not entry.endswith(".tmp")]
            if left:
                raise StoreError(
                    f"{path} is missing, but {name}/ holds {len(left)} files ({left[0]}, ...): refusing to make a new store over them. "
                    "Restore the manifest from a backup, or move the files away"
                ) from None
        return None
    return parse_manifest(data, path)


def store_manifest(directory: str, manifest: Manifest, files: Files = FILES) -> None:
    """Check and replace the manifest; when this returns it survives a power cut. Raises OSError and leaves the old one."""
    manifest.check()
    files.write_atomic(os.path.join(directory, MANIFEST), manifest_text(manifest))
