"""The index of an SST: first key and offset of each block, and the bloom filter, in a file of its own.

Format: docs/format.md, "Index". Everything in it can be worked out from the SST, so a missing or damaged index is never fatal:
`rebuild` makes an equal one.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

import msgspec
from crc32c import crc32c

from keyva.errors import CorruptionError, FormatVersionError
from keyva.filter import Filter, load_filter

__all__ = ["INDEX_VERSION", "Index", "IndexHeader", "decode_index", "encode_index"]

MAGIC = b"KEYVAIDX"
INDEX_VERSION = 1
_START = struct.Struct("<8sII")  # magic, header bytes, header crc32c
_SECTION = struct.Struct("<II")  # payload bytes, crc32c
FEATURES: frozenset[str] = frozenset()

_encode = msgspec.msgpack.Encoder().encode


class IndexHeader(msgspec.Struct, kw_only=True):
    """The map at the head of an index file."""

    version: int
    number: int
    store_id: bytes
    sst_bytes: int
    sst_crc32c: int
    blocks: int
    entries: int
    bits_per_key: float
    features: list[str] = []


class Index(NamedTuple):
    """``first_keys[i]`` and ``offsets[i]`` belong to block i; ``offsets`` has one more item, where the last block ends."""

    header: IndexHeader
    first_keys: list[bytes]
    offsets: array[int]
    filter: Filter | None


_decode_header = msgspec.msgpack.Decoder(IndexHeader).decode
_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode


def encode_index(header: IndexHeader, first_keys: list[bytes], offsets: array[int], bloom: Filter | None) -> bytes:
    """Return the bytes of an index file."""
    head = _encode(header)
    salt = crc32c(head)
    parts = [_START.pack(MAGIC, len(head), salt), head]
    packed = struct.pack(f"<{len(offsets)}Q", *offsets)
    for payload in (_encode(first_keys), packed, bloom.save_bytes() if bloom is not None else b""):
        parts.append(_SECTION.pack(len(payload), crc32c(payload, salt)))
        parts.append(payload)
        salt = crc32c(payload, salt)
    return b"".join(parts)


def decode_index(data: bytes, path: str) -> Index:
    """Check magic, version, then checksums; raises `CorruptionError` or `FormatVersionError`."""
    if len(data) < _START.size:
        raise CorruptionError("index is cut short", path, len(data))
    magic, size, salt = _START.unpack_from(data)
    if magic != MAGIC:
        raise CorruptionError("this is not a keyva index (wrong magic)", path, 0)
    position = _START.size + size
    head = data[_START.size : position]
    if len(head) != size or crc32c(head) != salt:
        raise CorruptionError("index header checksum does not match", path, _START.size)
    try:
        header = _decode_header(head)
        if header.version > INDEX_VERSION or set(header.features) - FEATURES:
            raise FormatVersionError(f"{path}: index format {header.version} {header.features} is newer than this keyva knows")
        sections = []
        for _ in range(3):
            length, crc = _SECTION.unpack_from(data, position)
            payload = data[position + _SECTION.size : position + _SECTION.size + length]
            if len(payload) != length or crc32c(payload, salt) != crc:
                raise CorruptionError("index section checksum does not match", path, position)
            salt = crc
            sections.append(payload)
            position += _SECTION.size + length
        if position != len(data):
            raise CorruptionError(f"{len(data) - position} bytes too many at the end of the index", path, position)
        first_keys = _decode_keys(sections[0])
        offsets = array("Q", struct.unpack(f"<{len(sections[1]) // 8}Q", sections[1]))
        bloom = load_filter(sections[2]) if sections[2] else None
    except (msgspec.MsgspecError, struct.error, ValueError) as error:
        raise CorruptionError(f"index cannot be decoded: {error}", path, position) from error
    if len(first_keys) != header.blocks or len(offsets) != header.blocks + 1:
        raise CorruptionError("index has another number of blocks than its header says", path, _START.size)
    return Index(header, first_keys, offsets, bloom)
