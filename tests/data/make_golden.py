"""Makes the golden files of format version 1: ``python tests/data/make_golden.py``.

They are made once per format version and then kept: a later keyva must read them for ever. ``expected.json`` says what they hold.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

from keyva.batch import Batch, decode_trusted, encode_batch
from keyva.manifest import FileMeta, LogMeta, Manifest, Run, store_manifest
from keyva.pulse import Pulse, position_of
from keyva.sst import BuiltSst, SstHeader, SstWriter
from keyva.wal import HEADER_BYTES, LogWriter

STORE_ID = bytes(range(16))
TARGET = Path(__file__).parent / "v1"
ZERO_TAIL_BYTES = 64

SSTS: dict[int, tuple[str, float, tuple[int, int], Batch]] = {
    3: ("lz4", 10.0, (1, 40), {b"bulk:%04d" % i: b"the same words again and again %d" % (i % 7) for i in range(40)}),
    4: ("zstd", 0.0, (41, 70), {b"wide:%04d" % i: b"%d " % (i % 3) * 30 if i % 10 else None for i in range(30)}),
    5: ("none", 10.0, (71, 74), {b"": b"empty key", b"apple": b"red", b"banana": None, b"\xfe\xff": b"\x00\xff"}),
}
"""Number: codec, bits per key, sequence numbers, entries."""

SEALED: list[Batch] = [{b"pear": b"green", b"quince": b"yellow"}]
ACTIVE: list[Batch] = [{b"apple": b"green"}, {b"pear": None, b"plum": b"blue"}]


def make_sst(directory: Path, number: int) -> BuiltSst:
    codec, bits, sequences, entries = SSTS[number]
    header = SstHeader(
        version=1,
        number=number,
        store_id=STORE_ID,
        smallest_sequence=sequences[0],
        largest_sequence=sequences[1],
        compression=codec,
        block_size=24 if codec == "none" else 1024,
        bits_per_key=bits,
        created_ms=1_700_000_000_000,
    )
    writer = SstWriter(os.fspath(directory), header)
    writer.add(list(entries), list(entries.values()))
    return writer.finish()


def make_log(directory: Path, number: int, first: int, batches: list[Batch]) -> LogWriter:
    log = LogWriter.create(os.fspath(directory), number, STORE_ID, first)
    for request, batch in enumerate(batches, 1):
        first = log.append([(encode_batch(batch), len(batch), 0xC11E47, request)], first)
        log.sync()
    return log


def make_all(target: Path) -> None:
    """Make the whole directory anew."""
    shutil.rmtree(target, ignore_errors=True)
    for name in ("wal", "sst"):
        (target / name).mkdir(parents=True)
    files = {number: FileMeta.of(make_sst(target, number)) for number in SSTS}
    sealed = make_log(target, 6, 75, SEALED)
    sealed_bytes = sealed.seal()
    sealed.close()
    active = make_log(target, 7, 77, ACTIVE)
    active.close()
    os.truncate(active.path, active.offset + ZERO_TAIL_BYTES)  # what is left of the reserved space
    manifest = Manifest(
        store_id=STORE_ID,
        generation=9,
        last_sequence=76,
        next_number=8,
        logs=(
            LogMeta(number=6, first_sequence=75, sealed_bytes=sealed_bytes, synced_bytes=sealed_bytes),
            LogMeta(number=7, first_sequence=77, synced_bytes=HEADER_BYTES),
        ),
        levels=((Run(id=5, files=(files[5],)),), (Run(id=4, files=(files[3], files[4])),)),
        obsolete=(2,),
    )
    store_manifest(os.fspath(target), manifest)
    pulse = Pulse(os.fspath(target), write=True)
    pulse.publish(position_of(7, active.offset), manifest.generation)
    pulse.close()
    write_expected(target, active.offset)


def write_expected(target: Path, committed: int) -> None:
    """Write what the files hold, as JSON with bytes in hexadecimal."""

    def plain(batch: Batch) -> dict[str, str | None]:
        return {key.hex(): None if value is None else value.hex() for key, value in batch.items()}

    content = {
        "ssts": {str(number): plain(spec[3]) for number, spec in SSTS.items()},
        "logs": {"6": [plain(batch) for batch in SEALED], "7": [plain(batch) for batch in ACTIVE]},
        "committed": [7, committed],
        "generation": 9,
    }
    (target / "expected.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    make_all(TARGET)
    data = (TARGET / "wal" / "000007.wal").read_bytes()
    (length,) = struct.unpack_from("<I", data, HEADER_BYTES + 8)
    assert decode_trusted(data[HEADER_BYTES + 48 :][:length]) == ACTIVE[0]
