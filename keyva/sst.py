"""Sorted string tables: immutable files of sorted entries, one entry per key, in checksummed blocks.

Format: docs/format.md, "SST". Header, blocks one behind the other, footer; the sparse index is a file of its own (`keyva.index`).

Invariants: keys ascend strictly through the whole file; nothing in the file is believed before its checksum was verified; a file
is never changed once the manifest names it; numbers are never used twice, so a file of a number is always the same file.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
from array import array
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import msgspec
from crc32c import crc32c

from keyva.block import (
    BLOCK_HEADER_BYTES,
    CODECS,
    Columns,
    decode_block,
    decode_blocks,
    encode_block,
    encode_columns,
    parse_block,
    unpack_block,
)
from keyva.errors import CorruptionError, FormatVersionError, KeyvaError
from keyva.filename import index_path, sst_path
from keyva.files import FILES, SYNC_BYTES, Files
from keyva.filter import build_filter, hash_key
from keyva.index import INDEX_VERSION, Index, IndexHeader, decode_index, encode_index

__all__ = ["SST_VERSION", "BuiltSst", "DamagedTable", "SstFooter", "SstHeader", "SstWriter", "Table"]

MAGIC = b"KEYVASST"
END_MAGIC = b"KEYVAEND"
SST_VERSION = 1
FEATURES: frozenset[str] = frozenset()
_START = struct.Struct("<8sII")  # magic, header bytes, header crc32c
_END = struct.Struct("<QII8s")  # where the footer begins, footer bytes, crc32c, magic
_WRITE_BYTES = 1024 * 1024
_encode = msgspec.msgpack.Encoder().encode


class SstHeader(msgspec.Struct, kw_only=True):
    """The map at the head of an SST."""

    version: int
    number: int
    store_id: bytes
    smallest_sequence: int
    largest_sequence: int
    compression: str
    block_size: int
    bits_per_key: float
    created_ms: int
    features: list[str] = []


class SstFooter(msgspec.Struct, kw_only=True):
    """The map at the end of an SST."""

    blocks: int
    entries: int
    tombstones: int
    raw_bytes: int
    smallest: bytes
    largest: bytes


class BuiltSst(NamedTuple):
    """What a finished SST is, for the manifest; sizes in bytes."""

    number: int
    size_bytes: int
    entries: int
    tombstones: int
    smallest: bytes
    largest: bytes
    smallest_sequence: int
    largest_sequence: int
    crc32c: int


_decode_header = msgspec.msgpack.Decoder(SstHeader).decode
_decode_footer = msgspec.msgpack.Decoder(SstFooter).decode


class SstWriter:
    """Builds one SST and its index from entries in key order. Nothing else in the process may use the file meanwhile."""

    def __init__(
        self,
        directory: str,
        header: SstHeader,
        *,
        files: Files = FILES,
    ) -> None:
        self._directory = directory
        self._files = files
        self.header = header
        self.path = sst_path(directory, header.number)
        self._codec = CODECS[header.compression]
        head = _encode(header)
        self._salt = crc32c(head)
        start = _START.pack(MAGIC, len(head), self._salt) + head
        self._pending = [start]
        self._pending_bytes = self.offset = len(start)
        self._written = self._synced = 0
        self._crc = 0
        self._first_keys: list[bytes] = []
        self._offsets = array("Q")
        self._hashes: list[int] = []
        self._tombstones = 0
        self._raw_bytes = 0
        self._smallest = b""
        self._largest = b""
        self._fd = files.open_write(self.path, create=True)

    @property
    def entries(self) -> int:
        """Entries added so far."""
        return len(self._hashes)

    def add(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Append entries: ``keys`` ascending, each above all added before. Hot: about 0.4 us per entry.

        Feed it some thousand entries at a time: they are cut into blocks of about ``block_size`` bytes of equal entry count,
        unless a value of them is larger than a block, when each entry is weighed.
        """
        if not keys:
            return
        count = len(keys)
        block_size = self.header.block_size
        try:
            sizes = list(map(len, values))  # type: ignore[arg-type]
        except TypeError:  # tombstones
            self._tombstones += values.count(None)
            sizes = [len(value) for value in values if value is not None]
        if max(sizes, default=0) > block_size:
            self._add_weighed(keys, values)
            return
        total = sum(map(len, keys)) + sum(sizes) + 5 * count
        blocks = max(1, round(total / block_size))
        per_block = -(-count // blocks)
        for start in range(0, count, per_block):
            self._add_block(keys[start : start + per_block], values[start : start + per_block])

    def _add_weighed(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        start = weight = 0
        for at, (key, value) in enumerate(zip(keys, values, strict=True)):
            entry = len(key) + (len(value) if value is not None else 0) + 5
            if weight and weight + entry > self.header.block_size:
                self._add_block(keys[start:at], values[start:at])
                start, weight = at, 0
            weight += entry
        self._add_block(keys[start:], values[start:])

    def _add_block(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        raw = encode_columns(keys, values)
        if len(raw) > 2 * self.header.block_size and len(keys) > 1:
            middle = len(keys) // 2
            self._add_block(keys[:middle], values[:middle])
            self._add_block(keys[middle:], values[middle:])
            return
        self._append_block(keys, encode_block(raw, len(keys), self._codec, self._salt, self.offset), len(raw))

    def add_copied(self, block: Columns, stored: bytes, raw_bytes: int, codec: int) -> None:
        """Append a block of another file as it is: ``block`` decoded from ``stored`` (its verified bytes without header)."""
        keys, values = block
        fields = struct.pack("<IIIB3x", len(stored), raw_bytes, len(keys), codec)
        crc = crc32c(stored, crc32c(fields, crc32c(struct.pack("<Q", self.offset), self._salt)))
        self._tombstones += values.count(None)
        self._append_block(keys, struct.pack("<I", crc) + fields + stored, raw_bytes)

    def _append_block(self, keys: Sequence[bytes], data: bytes, raw_bytes: int) -> None:
        if self._first_keys:
            assert keys[0] > self._largest, "keys must ascend"
        else:
            self._smallest = keys[0]
        self._first_keys.append(keys[0])
        self._offsets.append(self.offset)
        self._hashes.extend(map(hash_key, keys))
        self._raw_bytes += raw_bytes
        self._largest = keys[-1]
        self._put(data)

    def _put(self, data: bytes) -> None:
        self._pending.append(data)
        self.offset += len(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _WRITE_BYTES:
            self._write_pending()

    def _write_pending(self) -> None:
        data = b"".join(self._pending)
        self._files.pwritev(self._fd, [data], self._written)
        self._files.start_writeback(self._fd, self._written, len(data))
        self._crc = crc32c(data, self._crc)
        self._written += len(data)
        self._pending, self._pending_bytes = [], 0
        if self._written - self._synced >= SYNC_BYTES:
            # in parts, between which a worker shows life: one sync of a large file on a slow disk would look like a hanging process
            self._files.fdatasync(self._fd)
            self._synced = self._written

    def finish(self) -> BuiltSst:
        """Write footer and index, sync both and their directory, and return what the manifest needs."""
        assert self._first_keys, "an SST has at least one entry"
        footer = _encode(
            SstFooter(
                blocks=len(self._first_keys),
                entries=len(self._hashes),
                tombstones=self._tombstones,
                raw_bytes=self._raw_bytes,
                smallest=self._smallest,
                largest=self._largest,
            )
        )
        footer_at = self.offset
        self._offsets.append(footer_at)
        tail = struct.pack("<QI", footer_at, len(footer))
        self._put(footer + tail + struct.pack("<I8s", crc32c(tail, crc32c(footer, self._salt)), END_MAGIC))
        self._write_pending()
        self._files.fdatasync(self._fd)
        self._files.close(self._fd)
        self._fd = -1
        data = _index_bytes(self.header, self.offset, self._crc, self._first_keys, self._offsets, self._hashes)
        self._files.write_atomic(index_path(self._directory, self.header.number), data)
        return BuiltSst(
            self.header.number,
            self.offset,
            len(self._hashes),
            self._tombstones,
            self._smallest,
            self._largest,
            self.header.smallest_sequence,
            self.header.largest_sequence,
            self._crc,
        )

    def abandon(self) -> None:
        """Close and remove the unfinished file."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
        self._files.unlink(self.path)
        self._files.unlink(index_path(self._directory, self.header.number))


def new_header(
    number: int, store_id: bytes, sequences: tuple[int, int], compression: str, block_size: int, bits_per_key: float
) -> SstHeader:
    """Return the header of an SST made now."""
    return SstHeader(
        version=SST_VERSION,
        number=number,
        store_id=store_id,
        smallest_sequence=sequences[0],
        largest_sequence=sequences[1],
        compression=compression,
        block_size=block_size,
        bits_per_key=bits_per_key,
        created_ms=time.time_ns() // 1_000_000,
    )


def _index_bytes(header: SstHeader, sst_bytes: int, sst_crc: int, first_keys: list[bytes], offsets: array[int], hashes: list[int]) -> bytes:
    bloom = build_filter(hashes, len(hashes), header.bits_per_key) if header.bits_per_key > 0 else None
    index_header = IndexHeader(
        version=INDEX_VERSION,
        number=header.number,
        store_id=header.store_id,
        sst_bytes=sst_bytes,
        sst_crc32c=sst_crc,
        blocks=len(first_keys),
        entries=len(hashes),
        bits_per_key=header.bits_per_key,
    )
    return encode_index(index_header, first_keys, offsets, bloom)


class _Everything:
    """A filter that rules nothing out."""

    def __contains__(self, _: object) -> bool:
        return True


EVERYTHING = _Everything()


class Table:
    """An open SST. Holds one descriptor; the index is read at the first use. Safe to share between threads."""

    def __init__(self, directory: str, number: int, *, mmap_reads: bool = False, files: Files = FILES) -> None:
        self.directory = directory
        self.number = number
        self.path = sst_path(directory, number)
        self.cache_base = number << 32
        self._files = files
        self._map: mmap.mmap | None = None
        self._index: Index | None = None
        self.bloom: Container[bytes] = EVERYTHING
        """The filter, once the index is read and has one; until then every key may be there."""
        self.index_rebuilt = False
        self._fd = files.open_read(self.path)
        try:
            self.size_bytes = files.size(self._fd)
            self.header, self.salt, self._blocks_at = _read_header(self._read(0, 4096), self.path)
            if self.header.number != number:
                raise CorruptionError(f"SST says it is number {self.header.number}", self.path, _START.size)
            self.footer, self._blocks_end = self._read_footer()
            if mmap_reads:
                self._map = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        except BaseException:
            files.close(self._fd)
            self._fd = -1
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reads after that fail. Called by the last owner only (versions share tables)."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            self._files.close(fd)

    def _read(self, offset: int, length: int) -> bytes:
        if self._map is not None:
            return self._map[offset : offset + length]
        try:
            return self._files.pread(self._fd, length, offset)
        except OSError as error:
            raise self._unreadable(error, offset) from error

    def _unreadable(self, error: OSError, offset: int) -> Exception:
        """What to raise: a place that the disk cannot read is damage of this file; a closed file or want of memory is not."""
        if self._fd < 0 or error.errno in (errno.EBADF, errno.ENOMEM):
            return error
        return CorruptionError(f"the disk cannot read this: {error.strerror}", self.path, offset)

    def _read_footer(self) -> tuple[SstFooter, int]:
        tail_at = self.size_bytes - _END.size
        if tail_at < self._blocks_at:
            raise CorruptionError("SST is cut short", self.path, self.size_bytes)
        tail = self._read(tail_at, _END.size)
        footer_at, footer_bytes, crc, magic = _END.unpack(tail)
        if magic != END_MAGIC or footer_at + footer_bytes != tail_at:
            raise CorruptionError("SST has no valid footer; it is cut short or damaged", self.path, tail_at)
        footer = self._read(footer_at, footer_bytes)
        if crc32c(tail[:12], crc32c(footer, self.salt)) != crc:
            raise CorruptionError("SST footer checksum does not match", self.path, footer_at)
        return _decode_footer(footer), footer_at

    @property
    def index(self) -> Index:
        """The index; read at the first use, rebuilt from the blocks when it is missing or damaged."""
        index = self._index
        if index is None:
            index = self._index = self._load_index()
            if index.filter is not None:
                self.bloom = index.filter
        return index

    def _load_index(self) -> Index:
        path = index_path(self.directory, self.number)
        try:
            index = decode_index(self._files.read_file(path), path)
            header = index.header
            if (header.number, header.store_id, header.sst_bytes) == (self.number, self.header.store_id, self.size_bytes):
                return index
        except (OSError, CorruptionError):
            pass
        data = self.rebuild_index()
        self.index_rebuilt = True
        if os.path.exists(self.path):  # not when the file was removed meanwhile and lives on through our descriptor only
            try:
                self._files.write_atomic(path, data)
            except (OSError, KeyvaError):
                pass  # a full disk or a read-only store: the rebuilt index serves from memory
        return decode_index(data, path)

    def rebuild_index(self) -> bytes:
        """Return the bytes of the index, worked out from the SST alone. Costs one pass over the file."""
        first_keys: list[bytes] = []
        offsets = array("Q")
        hashes: list[int] = []
        offset = self._blocks_at
        while offset < self._blocks_end:
            _, (keys, _), length = self.read_at(offset)
            first_keys.append(keys[0])
            offsets.append(offset)
            hashes.extend(map(hash_key, keys))
            offset += length
        offsets.append(offset)
        crc = at = 0
        while at < self.size_bytes:
            data = self._read(at, _WRITE_BYTES)
            crc = crc32c(data, crc)
            at += len(data)
        return _index_bytes(self.header, self.size_bytes, crc, first_keys, offsets, hashes)

    def read_at(self, offset: int) -> tuple[bytes, Columns, int]:
        """Read the block at a file offset: (its bytes with header, its entries, its length); for walks without an index."""
        try:
            length = BLOCK_HEADER_BYTES + parse_block(self._read(offset, BLOCK_HEADER_BYTES))[1]
        except struct.error:
            raise CorruptionError("block header is cut short", self.path, offset) from None
        if offset + length > self._blocks_end:
            raise CorruptionError("block passes the end of the blocks", self.path, offset)
        data = self._read(offset, length)
        return data, decode_block(data, self.salt, offset, self.path), length

    @property
    def blocks_start(self) -> int:
        """File offset of the first block."""
        return self._blocks_at

    @property
    def blocks_end(self) -> int:
        """File offset behind the last block."""
        return self._blocks_end

    def find_block(self, key: bytes) -> int:
        """Return the number of the block that would hold ``key``; -1 when it is below the first."""
        return bisect_right(self.index.first_keys, key) - 1

    def reach(self, first: int, count: int, bytes_max: int) -> int:
        """Return where a read of up to ``count`` blocks from ``first`` on ends, so that it takes at most ``bytes_max`` or one block."""
        offsets = self.index.offsets
        last = min(len(offsets) - 1, first + count)
        if offsets[last] - offsets[first] > bytes_max:
            last = max(first + 1, bisect_right(offsets, offsets[first] + bytes_max, first, last) - 1)
        return last

    def reach_back(self, last: int, count: int, bytes_max: int) -> int:
        """Return where a read of up to ``count`` blocks that ends before ``last`` begins; the same limits."""
        offsets = self.index.offsets
        first = max(0, last - count)
        while first < last - 1 and offsets[last] - offsets[first] > bytes_max:
            first += 1
        return first

    def read_block(self, number: int) -> Columns:
        """Read and decode block ``number``; 3.5 us."""
        offsets = self.index.offsets
        offset = offsets[number]
        return decode_block(self._read(offset, offsets[number + 1] - offset), self.salt, offset, self.path)

    def unpack_block(self, number: int) -> bytes:
        """Read block ``number``, verified and decompressed but not decoded. Hot: 2 us for 4 KiB."""
        index = self._index
        offsets = index.offsets if index is not None else self.index.offsets
        offset = offsets[number]
        end = offsets[number + 1]
        try:
            data = self._files.pread(self._fd, end - offset, offset) if self._map is None else self._map[offset:end]
        except OSError as error:
            raise self._unreadable(error, offset) from error
        return unpack_block(data, self.salt, offset, self.path)

    def read_blocks(self, first: int, last: int) -> Columns:
        """Read and decode blocks ``first`` to ``last`` - 1 with one read. Hot: 0.08 us per entry."""
        offsets = self.index.offsets
        base = offsets[first]
        entries, blocks = decode_blocks(self._read(base, offsets[last] - base), self.salt, base, self.path)
        if blocks != last - first:
            raise CorruptionError(f"{blocks} blocks where the index says {last - first}", self.path, base)
        return entries

    def read_stored(self, first: int, last: int) -> Iterator[tuple[int, bytes, int]]:
        """Yield (block number, bytes with header, file offset) of blocks ``first`` to ``last`` - 1, read in one piece."""
        offsets = self.index.offsets
        base = offsets[first]
        data = self._read(base, offsets[last] - base)
        for number in range(first, last):
            yield number, data[offsets[number] - base : offsets[number + 1] - base], offsets[number]

    def iterate(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield all entries in key order, tombstones as None; for tools."""
        offset = self._blocks_at
        while offset < self._blocks_end:
            _, (keys, values), length = self.read_at(offset)
            yield from zip(keys, values, strict=True)
            offset += length


class DamagedTable(Table):
    """Stands for an SST that cannot be opened because its header or footer is damaged: reads of its key range raise `error`, and
    those of all other keys go on."""

    def __init__(self, directory: str, number: int, error: CorruptionError) -> None:
        self.directory = directory
        self.number = number
        self.path = sst_path(directory, number)
        self.cache_base = number << 32
        self.error = error
        self._index = None
        self.bloom = EVERYTHING
        self._fd = -1

    @property
    def index(self) -> Index:
        """Raises the error the file was met with."""
        raise CorruptionError("SST cannot be read", self.path, self.error.offset) from self.error


def _read_header(data: bytes, path: str) -> tuple[SstHeader, int, int]:
    if len(data) < _START.size:
        raise CorruptionError("SST is cut short", path, len(data))
    magic, size, crc = _START.unpack_from(data)
    if magic != MAGIC:
        raise CorruptionError("this is not a keyva SST (wrong magic)", path, 0)
    head = data[_START.size : _START.size + size]
    if len(head) != size or crc32c(head) != crc:
        raise CorruptionError("SST header checksum does not match", path, _START.size)
    try:
        header = _decode_header(head)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"SST header cannot be decoded: {error}", path, _START.size) from error
    if header.version > SST_VERSION or set(header.features) - FEATURES:
        raise FormatVersionError(f"{path}: SST format {header.version} {header.features} is newer than this keyva knows ({SST_VERSION})")
    return header, crc, _START.size + size
