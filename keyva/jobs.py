"""What the writer asks of flusher and compactor, and what they answer: plain data, sent as msgpack (docs/protocol.md, "Jobs").

Invariant: a job is idempotent and its output means nothing until the writer has put it into the manifest, so a job may be offered
again, done twice, or left half done.
"""

from __future__ import annotations

import msgspec

from keyva.manifest import FileMeta

__all__ = ["CompactionJob", "FlushJob", "Job", "JobResult", "RemoveJob", "decode_job", "decode_result", "encode"]


class FlushJob(msgspec.Struct, frozen=True, kw_only=True, tag="flush"):
    """Turn sealed log ``log`` into SST ``output``."""

    id: int
    store_id: bytes
    log: int
    sealed_bytes: int
    output: int


class CompactionJob(msgspec.Struct, frozen=True, kw_only=True, tag="compact"):
    """Merge ``runs`` (oldest first, each a list of files in key order) within [start, stop) into SSTs numbered ``outputs``.

    ``stop`` None means no upper end. ``drop_tombstones``: nothing older lies below, so deletes need not be kept.
    """

    id: int
    store_id: bytes
    runs: tuple[tuple[FileMeta, ...], ...]
    start: bytes
    stop: bytes | None
    drop_tombstones: bool
    outputs: tuple[int, ...]

    @property
    def input_bytes(self) -> int:
        """Size of all input files."""
        return sum(file.size_bytes for run in self.runs for file in run)


class RemoveJob(msgspec.Struct, frozen=True, kw_only=True, tag="remove"):
    """Remove the files of these numbers (log, SST, index; whichever exist), which no manifest names any more."""

    id: int
    numbers: tuple[int, ...]


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of job ``id``: new SSTs, or an error (its class name, text, and for corruption the file)."""

    id: int
    files: tuple[FileMeta, ...] = ()
    error: str = ""
    message: str = ""
    path: str = ""
    copied_blocks: int = 0


Job = FlushJob | CompactionJob | RemoveJob

encode = msgspec.msgpack.Encoder().encode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_result = msgspec.msgpack.Decoder(JobResult).decode
