"""A block: some entries of an SST in key order, keys apart from values, compressed, behind a 20-byte header with a checksum.

Format: docs/format.md, "Block". The entries are two msgpack arrays, for lists cost a third of what a dict costs to build: a scan takes them
as they are, a point read bisects the keys.

Invariant: the checksum covers the block's place (its file and offset), its header and its stored bytes; it is verified before
anything is decompressed or decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import lz4.block
import msgspec
import zstandard
from crc32c import crc32c

from keyva.errors import CorruptionError

__all__ = [
    "BLOCK_HEADER_BYTES",
    "CODECS",
    "BlockHeader",
    "Columns",
    "decode_block",
    "decode_blocks",
    "decode_columns",
    "encode_block",
    "encode_columns",
    "parse_block",
    "unpack_block",
    "verify_block",
]

_HEADER = struct.Struct("<IIIIB3x")  # crc32c, stored bytes, raw bytes, entries, codec
_FIELDS = struct.Struct("<IIIB3x")
_PLACE = struct.Struct("<Q")
BLOCK_HEADER_BYTES = _HEADER.size  # 20
CODECS = {"none": 0, "lz4": 1, "zstd": 2}
RAW_BYTES_MAX = 2**31 - 1

_encode = msgspec.msgpack.Encoder().encode
_lz4_compress = lz4.block.compress
_lz4_decompress = lz4.block.decompress
_zstd_compress = zstandard.ZstdCompressor(level=1, write_content_size=False).compress

BlockHeader = tuple[int, int, int, int, int]
"""crc32c, stored bytes, raw bytes, entries, codec."""

Columns = tuple[list[bytes], list[bytes | None]]
"""The keys of a block, ascending, and their values; None is a tombstone."""

decode_columns = msgspec.msgpack.Decoder(tuple[list[bytes], list[bytes | None]]).decode
"""Decode the entries of a block that `unpack_block` gave; raises msgspec.MsgspecError. Hot: 1.4 us for 34 entries."""


def encode_block(raw: bytes, entries: int, codec: int, salt: int, offset: int) -> bytes:
    """Return header and stored bytes of a block whose encoded entries are ``raw``, for ``offset`` in the file seeded by ``salt``.

    Stores them as they are when compression does not make it smaller.
    """
    stored = raw
    if codec == 1:
        stored = _lz4_compress(raw, store_size=False)
    elif codec == 2:
        stored = _zstd_compress(raw)
    if len(stored) >= len(raw):
        stored, codec = raw, 0
    fields = _FIELDS.pack(len(stored), len(raw), entries, codec)
    crc = crc32c(stored, crc32c(fields, crc32c(_PLACE.pack(offset), salt)))
    return struct.pack("<I", crc) + fields + stored


def encode_columns(keys: Sequence[bytes], values: Sequence[bytes | None]) -> bytes:
    """Encode entries in key order, at least one, as a block holds them. Hot: 1 us for 34 entries."""
    return _encode((keys, values))


def parse_block(data: bytes | memoryview, position: int = 0) -> BlockHeader:
    """Return the header at ``position``, not verified; raises struct.error when it is cut short."""
    return _HEADER.unpack_from(data, position)


def verify_block(data: bytes, salt: int, offset: int, path: str) -> BlockHeader:
    """Check the checksum of one whole block read from ``offset``; raises `CorruptionError`."""
    if len(data) < BLOCK_HEADER_BYTES:
        raise CorruptionError("block is cut short", path, offset)
    header = _HEADER.unpack_from(data)
    if len(data) != BLOCK_HEADER_BYTES + header[1]:
        raise CorruptionError(f"block has {len(data)} bytes where its header says {BLOCK_HEADER_BYTES + header[1]}", path, offset)
    place = crc32c(_PLACE.pack(offset), salt)
    if crc32c(memoryview(data)[4:], place) != header[0]:
        raise CorruptionError("block checksum does not match", path, offset)
    return header


def unpack_block(data: bytes, salt: int, offset: int, path: str) -> bytes:
    """Verify and decompress one whole block read from ``offset``; the result is what `decode_columns` takes. Hot: 1.1 us for 4 KiB."""
    raw: bytes
    try:
        crc, stored_bytes, raw_bytes, _, codec = _HEADER.unpack_from(data)
        stored = data[BLOCK_HEADER_BYTES:]
        # for blocks of some KiB a copy costs less than a memoryview
        if len(stored) == stored_bytes and crc32c(data[4:], crc32c(_PLACE.pack(offset), salt)) == crc:
            if codec == 1:
                raw = _lz4_decompress(stored, raw_bytes)
                return raw
            if codec == 0:
                return stored
            if codec == 2:
                # one decompressor per call: zstandard's objects are not thread-safe
                return zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_bytes)
    except (struct.error, lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        verify_block(data, salt, offset, path)
        raise CorruptionError(f"block cannot be decoded: {error}", path, offset) from error
    codec = verify_block(data, salt, offset, path)[4]
    raise CorruptionError(f"block has codec {codec}, which this keyva does not know", path, offset)


def decode_block(data: bytes, salt: int, offset: int, path: str) -> Columns:
    """Verify, decompress and decode one whole block read from ``offset``. Hot: about 2.5 us for 34 entries."""
    raw = unpack_block(data, salt, offset, path)
    try:
        keys, values = decode_columns(raw)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"block cannot be decoded: {error}", path, offset) from error
    entries = parse_block(data)[3]
    if not 0 < len(keys) == len(values) == entries:
        raise CorruptionError(f"block has {len(keys)} keys and {len(values)} values where its header says {entries}", path, offset)
    return keys, values


def decode_blocks(data: bytes, salt: int, offset: int, path: str) -> tuple[Columns, int]:
    """Verify and decode blocks that lie one behind the other, read from ``offset`` in one piece; the same checks as `decode_block`.

    Returns their entries as one, and how many blocks there were. Hot: its loop has no calls but those into C, 2.5 us for 34 entries.
    """
    all_keys: list[bytes] = []
    all_values: list[bytes | None] = []
    end, position, blocks = len(data), 0, 0
    try:
        while position < end:
            crc, stored_bytes, raw_bytes, entries, codec = _HEADER.unpack_from(data, position)
            start, stop = position + BLOCK_HEADER_BYTES, position + BLOCK_HEADER_BYTES + stored_bytes
            if stop > end:
                raise CorruptionError("block is cut short", path, offset + position)
            if crc32c(data[position + 4 : stop], crc32c(_PLACE.pack(offset + position), salt)) != crc:
                raise CorruptionError("block checksum does not match", path, offset + position)
            if codec == 1:
                keys, values = decode_columns(_lz4_decompress(data[start:stop], raw_bytes))
            elif codec == 0:
                keys, values = decode_columns(data[start:stop])
            else:
                keys, values = decode_block(data[position:stop], salt, offset + position, path)
            if not 0 < len(keys) == len(values) == entries:
                message = f"block has {len(keys)} keys and {len(values)} values where its header says {entries}"
                raise CorruptionError(message, path, offset + position)
            all_keys += keys
            all_values += values
            blocks += 1
            position = stop
    except (struct.error, lz4.block.LZ4BlockError, msgspec.MsgspecError) as error:
        raise CorruptionError(f"block cannot be decoded: {error}", path, offset + position) from error
    return (all_keys, all_values), blocks
