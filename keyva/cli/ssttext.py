"""An SST as JSON lines and back. The format: docs/format.md, "SST" and "Block".

    {"file": "sst", "version": 1, "number": 5, "store_id": "9f..", ...}     the header
    {"block": 0, "offset": 190, "codec": "lz4", "entries": 2}               where a block begins
    {"key": "a", "value": "1"}                                              its entries
    {"key": "b", "value": null}                                             a tombstone
    {"end": "sst", "blocks": 1, "entries": 2, ...}                          must be there: lines cut short are noticed

A builder reads ``codec`` of a block line and works out the rest. When compressing a block's entries again would not give the
stored bytes (another version of lz4, say), the line also has ``stored_b64``; they are taken as long as they hold the entries listed.
"""

from __future__ import annotations

import base64
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from keyva.block import BLOCK_HEADER_BYTES, CODECS, RAW_BYTES_MAX, Columns, decode_block, encode_block, encode_columns, parse_block
from keyva.cli.bytetext import check_fields, field_bytes, json_line, parse_json, put_field
from keyva.cli.manifesttext import file_fields
from keyva.cli.output import is_special, output_file
from keyva.errors import CorruptionError, InvalidArgumentError, KeyvaError
from keyva.filename import index_path, sst_path
from keyva.files import FILES, Files
from keyva.manifest import NUMBER_MAX, FileMeta
from keyva.options import KEY_BYTES_MAX, LIMITS
from keyva.sst import SST_VERSION, SstHeader, SstWriter, Table

__all__ = ["build_sst", "dump_sst"]

_CODEC_NAMES = {number: name for name, number in CODECS.items()}
Header = TypeVar("Header", bound=msgspec.Struct)
_BLOCK_FIELDS = ("block", "offset", "codec", "entries", "stored_b64", "raw_bytes")
_END_FIELDS = ("end", "blocks", "entries", "tombstones")
_HEADER_PEEK = struct.Struct("<8sII")


class _OneFile(Files):
    """Opens one file whatever its name: `Table` asks for the name that a store would give it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open_read(self, path: str) -> int:
        return super().open_read(self._path)


def dump_sst(path: str, as_hex: bool = False) -> Iterator[bytes]:
    """Yield the lines; holds one block in memory. Raises `CorruptionError` that names ``path``."""
    try:
        table = Table("", _number_of(path), files=_OneFile(path))
        try:
            yield from _table_lines(table, as_hex)
        finally:
            table.close()
    except CorruptionError as error:
        message = str(error).removeprefix(f"{error.path}: offset {error.offset}: ")
        raise CorruptionError(message, path, error.offset) from None


def _number_of(path: str) -> int:
    """Return the number in an SST's header, 0 when there is no header to read: `Table` then says what is wrong."""
    with open(path, "rb") as file:
        data = file.read(4096)
    try:
        size = _HEADER_PEEK.unpack_from(data)[1]
        return msgspec.msgpack.decode(data[_HEADER_PEEK.size : _HEADER_PEEK.size + size], type=SstHeader).number
    except (struct.error, msgspec.MsgspecError):
        return 0


def _table_lines(table: Table, as_hex: bool) -> Iterator[bytes]:
    yield json_line({"file": "sst", **header_fields(table.header)})
    offset, number, raw_total = table.blocks_start, 0, 0
    while offset < table.blocks_end:
        data, block, length = table.read_at(offset)
        _, stored_bytes, raw_bytes, entries, codec = parse_block(data)
        line: dict[str, Any] = {"block": number, "offset": offset, "codec": _CODEC_NAMES[codec], "entries": entries}
        stored = data[BLOCK_HEADER_BYTES : BLOCK_HEADER_BYTES + stored_bytes]
        if _compress(block, codec) != (stored, raw_bytes, codec):
            line["stored_b64"] = base64.b64encode(stored).decode()
            line["raw_bytes"] = raw_bytes
        yield json_line(line)
        for key, value in zip(*block, strict=True):
            entry: dict[str, Any] = {}
            put_field(entry, "key", key, as_hex=as_hex)
            put_field(entry, "value", value, as_hex=as_hex)
            yield json_line(entry)
        offset += length
        number += 1
        raw_total += raw_bytes
    footer = table.footer
    if footer.blocks != number or footer.raw_bytes != raw_total:
        raise CorruptionError(f"SST has {number} blocks where its footer says {footer.blocks}", table.path, table.blocks_end)
    end: dict[str, Any] = {"end": "sst", "blocks": footer.blocks, "entries": footer.entries, "tombstones": footer.tombstones}
    put_field(end, "smallest", footer.smallest, as_hex=as_hex)
    put_field(end, "largest", footer.largest, as_hex=as_hex)
    yield json_line(end)


def header_fields(header: msgspec.Struct) -> dict[str, Any]:
    """Return a header as JSON fields, its store id as hexadecimal digits."""
    fields: dict[str, Any] = msgspec.to_builtins(header, builtin_types=(bytes,))
    fields["store_id"] = fields["store_id"].hex()
    return fields


def _compress(block: Columns, codec: int) -> tuple[bytes, int, int]:
    """Return (stored bytes, raw bytes, codec in fact used) of a block."""
    raw = encode_columns(*block)
    data = encode_block(raw, len(block[0]), codec, 0, 0)
    return data[BLOCK_HEADER_BYTES:], len(raw), parse_block(data)[4]


def build_sst(lines: Iterable[tuple[int, bytes]], path: str) -> bytes:
    """Write the SST ``path`` (and ``.index`` beside ``.sst``) and return the manifest's line about it.

    Holds one block in memory, and hashes and first keys of all. Raises `InvalidArgumentError` and leaves no file.
    """
    folder = tempfile.gettempdir() if is_special(path) else os.path.dirname(os.path.realpath(path))
    work = tempfile.mkdtemp(prefix=".keyva-build-", dir=folder)
    builder: _Builder | None = None
    try:
        FILES.make_dir(os.path.join(work, "sst"))
        for _, line in lines:
            tree = parse_json(line)
            if builder is None:
                builder = _Builder(work, parse_header(tree, "sst", SstHeader, SST_VERSION))
            else:
                builder.take(tree)
        if builder is None:
            raise InvalidArgumentError("there are no lines")
        meta = builder.finish()
        _copy(sst_path(work, meta.number), path)
        if path.endswith(".sst"):
            _copy(index_path(work, meta.number), path.removesuffix(".sst") + ".index")
    finally:
        if builder is not None:
            builder.close()
        shutil.rmtree(work, ignore_errors=True)
    return json_line(file_fields(meta))


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as stream, output_file(target) as out:
        shutil.copyfileobj(stream, out, 1024 * 1024)


def parse_header(tree: dict[str, Any], kind: str, header_type: type[Header], version_max: int) -> Header:
    """Build a format's header of the first line, and check it; raises `InvalidArgumentError`."""
    if tree.pop("file", None) != kind:
        raise InvalidArgumentError(f'the first line must have "file": "{kind}"')
    check_fields(tree, header_type.__struct_fields__)
    try:
        tree["store_id"] = bytes.fromhex(tree["store_id"])
        header = msgspec.convert(tree, header_type, builtin_types=(bytes,))
    except KeyError as error:
        raise InvalidArgumentError(f"the header lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the header is not valid: {error}") from None
    _check_header(header, version_max)
    return header


def _check_header(header: msgspec.Struct, version_max: int) -> None:
    """Raise `InvalidArgumentError` for a field that no header of this version can have."""
    limits: dict[str, tuple[float, float]] = {
        "version": (1, version_max),
        "number": (1, NUMBER_MAX),
        "block_size": (1, RAW_BYTES_MAX),
        "bits_per_key": LIMITS["bloom_filter_bits"],
        "sst_crc32c": (0, 2**32 - 1),
    }
    for name in header.__struct_fields__:
        value = getattr(header, name)
        if isinstance(value, int | float):
            low, high = limits.get(name, (0, 2**64 - 1))
            if not low <= value <= high:
                raise InvalidArgumentError(f"the header is not valid: {name!r} must be from {low} to {high}, not {value}")
    if len(header.store_id) != 16:  # type: ignore[attr-defined]
        raise InvalidArgumentError("the header is not valid: 'store_id' must have 32 hexadecimal digits")
    if header.features:  # type: ignore[attr-defined]
        raise InvalidArgumentError("the header is not valid: this keyva knows no 'features'")


class _Builder:
    """Takes block, entry and end lines, and feeds `SstWriter` with whole blocks."""

    def __init__(self, directory: str, header: SstHeader) -> None:
        if header.compression not in CODECS:
            raise InvalidArgumentError(f"compression {header.compression!r} is none of {', '.join(CODECS)}")
        if header.smallest_sequence > header.largest_sequence:
            raise InvalidArgumentError("the header is not valid: 'smallest_sequence' is above 'largest_sequence'")
        self._writer: SstWriter | None = SstWriter(directory, header)
        self._block: Columns | None = None
        self._largest: bytes | None = None
        self._block_line: dict[str, Any] = {}
        self._ended = False

    def take(self, tree: dict[str, Any]) -> None:
        """Take one line behind the header."""
        if self._ended:
            raise InvalidArgumentError("there are lines behind the end line")
        if "block" in tree or "end" in tree:
            self._write_block()
            self._block, self._block_line = ([], []), tree
            self._ended = "end" in tree
            check_fields(tree, _END_FIELDS if self._ended else _BLOCK_FIELDS, ("smallest", "largest") if self._ended else ())
            codec = tree.get("codec")
            if not self._ended and not (isinstance(codec, str) and codec in CODECS):
                raise InvalidArgumentError(f"a block's codec must be one of {', '.join(CODECS)}")
            return
        if self._block is None:
            raise InvalidArgumentError("an entry stands before the first block line")
        check_fields(tree, (), ("key", "value"))
        key, value = field_bytes(tree, "key"), field_bytes(tree, "value", nullable=True)
        assert key is not None
        if len(key) > KEY_BYTES_MAX:
            raise InvalidArgumentError(f"the key is longer than {KEY_BYTES_MAX} bytes")
        if self._largest is not None and key <= self._largest:
            raise InvalidArgumentError(f"key {key[:40]!r} does not come after {self._largest[:40]!r}: keys must ascend")
        self._block[0].append(key)
        self._block[1].append(value)
        self._largest = key

    def _write_block(self) -> None:
        if self._block is None or not self._block[0]:
            return  # all its entries were taken out
        assert self._writer is not None
        self._writer.add_copied(self._block, *self._stored(self._block, CODECS[self._block_line["codec"]]))

    def _stored(self, block: Columns, codec: int) -> tuple[bytes, int, int]:
        if "stored_b64" in self._block_line:
            try:
                stored = base64.b64decode(self._block_line["stored_b64"], validate=True)
                raw_bytes = int(self._block_line["raw_bytes"])
                if raw_bytes > 16 * (len(block[0]) + 1) + len(encode_columns(*block)):  # no encoding of these entries takes that much
                    return _compress(block, codec)
                fields = struct.pack("<IIIB3x", len(stored), raw_bytes, len(block[0]), codec)
                if decode_unchecked(stored, fields) == block:
                    return stored, raw_bytes, codec
            except (ValueError, TypeError, KeyError, OverflowError, struct.error, KeyvaError):
                pass  # the entries were edited, so the stored bytes no longer count
        return _compress(block, codec)

    def finish(self) -> FileMeta:
        """Complete the file; raises `InvalidArgumentError` when lines are missing."""
        if not self._ended:
            raise InvalidArgumentError("the end line is missing: the lines are cut short")
        if self._largest is None:
            raise InvalidArgumentError("an SST needs at least one entry")
        assert self._writer is not None
        meta = FileMeta.of(self._writer.finish())
        self._writer = None
        return meta

    def close(self) -> None:
        """Drop an unfinished file."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


def decode_unchecked(stored: bytes, fields: bytes) -> Columns:
    """Decode a block's stored bytes that come without their checksum."""
    from crc32c import crc32c

    crc = crc32c(stored, crc32c(fields, crc32c(bytes(8), 0)))
    return decode_block(struct.pack("<I", crc) + fields + stored, 0, 0, "")
