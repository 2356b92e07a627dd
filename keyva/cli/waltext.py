"""A write-ahead log as JSON lines and back. The format: docs/format.md, "Write-ahead log".

    {"file": "wal", "number": 7, "store_id": "9f..", "first_sequence": 12}                             the header
    {"record": 64, "first_sequence": 12, "synced": 64, "client": 1, "request": 3, "entries": [{"key": "a", "value": "1"}]}
    {"damage": "record checksum does not match", "offset": 130, "bytes_b64": "S1ZS.."}                 kept as it is
    {"zeros": 8388608}                                                                                 reserved space

A null value deletes. A builder works out checksums, lengths, offsets and sequence numbers, and moves ``synced`` with the
record it points at; ``synced``, ``client`` and ``request`` may be left out of a line written by hand. A payload that is not
encoded as keyva would comes as ``payload_b64`` as well, and is taken as long as it holds the entries listed. One without ``entries`` is
taken as it is, and the next record's own sequence number counts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from keyva.batch import Batch, decode_trusted, encode_batch
from keyva.cli.bytetext import check_fields, field_bytes, json_line, parse_json, put_field
from keyva.errors import InvalidArgumentError
from keyva.files import FILES
from keyva.options import KEY_BYTES_MAX
from keyva.wal import HEADER_BYTES, LOG_BYTES_MAX, RECORD_BYTES, RECORD_MAGIC, LogHeader, Record, decode_record, encode_record

__all__ = ["build_wal", "dump_wal"]

_RECORD_FIELDS = ("record", "first_sequence", "synced", "client", "request", "entries", "payload_b64")


def dump_wal(path: str, as_hex: bool = False) -> Iterator[bytes]:
    """Yield the lines; holds the file in memory. Raises `CorruptionError` when its header is damaged: nothing can be read then."""
    data = FILES.read_file(path)
    header = LogHeader.decode(data, path)
    fields = {"number": header.number, "store_id": header.store_id.hex(), "first_sequence": header.first_sequence}
    yield json_line({"file": "wal", **fields})
    position = HEADER_BYTES
    while position < len(data):
        found = decode_record(data, 0, position, header.salt)
        if isinstance(found, Record):
            yield _record_line(found, as_hex)
            position = found.end
        elif zeros := _zeros_at(data, position):
            yield json_line({"zeros": zeros})
            position += zeros
        else:
            end = _next_record(data, position + 1, header.salt)
            damaged = data[position:end].rstrip(b"\0")
            why = found or "bytes behind the last record"
            yield json_line({"damage": why, "offset": position, "bytes_b64": base64.b64encode(damaged).decode()})
            position += len(damaged)


def _zeros_at(data: bytes, position: int) -> int:
    """Return how many zeros stand at ``position``."""
    return len(data) - position - len(data[position:].lstrip(b"\0"))


def _next_record(data: bytes, position: int, salt: int) -> int:
    """Return the offset of the next valid record, or the end of the data."""
    while (position := data.find(RECORD_MAGIC, position)) >= 0:
        if isinstance(decode_record(data, 0, position, salt), Record):
            return position
        position += 1
    return len(data)


def _record_line(record: Record, as_hex: bool) -> bytes:
    payload = bytes(record.payload)
    line: dict[str, Any] = {
        "record": record.offset,
        "first_sequence": record.first_sequence,
        "synced": record.synced,
        "client": record.client,
        "request": record.request,
    }
    try:
        batch: Batch = decode_trusted(payload)
    except msgspec.MsgspecError:
        batch = {}
    if not batch or max(map(len, batch)) > KEY_BYTES_MAX:  # not what keyva writes: shown as it is
        return json_line({**line, "payload_b64": base64.b64encode(payload).decode()})
    line["entries"] = entries = []
    for key, value in batch.items():
        entry: dict[str, Any] = {}
        put_field(entry, "key", key, as_hex=as_hex)
        put_field(entry, "value", value, as_hex=as_hex)
        entries.append(entry)
    if encode_batch(batch) != payload:
        line["payload_b64"] = base64.b64encode(payload).decode()
    return json_line(line)


def build_wal(lines: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the file's bytes. Raises `InvalidArgumentError`."""
    builder: _Builder | None = None
    for _, line in lines:
        tree = parse_json(line)
        if builder is None:
            builder = _Builder(tree)
        elif "zeros" in tree:
            check_fields(tree, ("zeros",))
            builder.append_zeros(_whole(tree, "zeros"))
        elif "damage" in tree:
            check_fields(tree, ("damage", "offset", "bytes_b64"))
            builder.append(_base64(tree, "bytes_b64"))
            builder.sequence = None
        else:
            builder.append_record(tree)
    if builder is None:
        raise InvalidArgumentError("there are no lines")
    return bytes(builder.data)


class _Builder:
    """The log so far. ``sequence`` is the next sequence number; None behind damage, where the next record's own is taken."""

    def __init__(self, tree: dict[str, Any]) -> None:
        if tree.get("file") != "wal":
            raise InvalidArgumentError('the first line must have "file": "wal"')
        check_fields(tree, ("file", "number", "store_id", "first_sequence"))
        try:
            store_id = bytes.fromhex(tree["store_id"])
        except (KeyError, TypeError, ValueError):
            raise InvalidArgumentError("the header needs a store_id of 32 hexadecimal digits") from None
        if len(store_id) != 16:
            raise InvalidArgumentError("the header needs a store_id of 32 hexadecimal digits")
        self.sequence: int | None = _whole(tree, "first_sequence")
        number = _whole(tree, "number")
        if number >= 2**32:
            raise InvalidArgumentError("'number' must be below 2**32")
        head = LogHeader.encode(number, store_id, self.sequence)
        self._salt = LogHeader.decode(head, "").salt
        self.data = bytearray(head)
        self._moved = {HEADER_BYTES: HEADER_BYTES}
        self._synced = HEADER_BYTES

    def append(self, data: bytes) -> None:
        """Append bytes as they are."""
        self._check_room(len(data))
        self.data += data

    def append_zeros(self, count: int) -> None:
        """Append reserved space."""
        self._check_room(count)  # before the zeros are made
        self.data += bytes(count)

    def _check_room(self, count: int) -> None:
        if len(self.data) + count > LOG_BYTES_MAX:
            raise InvalidArgumentError("the log would pass 4 GiB")

    def append_record(self, tree: dict[str, Any]) -> None:
        """Append the record of a line."""
        check_fields(tree, _RECORD_FIELDS)
        offset = len(self.data)
        if "record" in tree:
            self._moved[_whole(tree, "record")] = offset
        payload, entries = _payload(tree)
        if self.sequence is None:
            self.sequence = _whole(tree, "first_sequence")
        synced = _whole(tree, "synced", self._synced)
        self._synced = self._moved.get(synced, synced)
        client, request = _whole(tree, "client", 0), _whole(tree, "request", 0)
        self._check_room(RECORD_BYTES + len(payload))
        if self.sequence + (entries or 0) >= 2**64:
            raise InvalidArgumentError("the sequence numbers would pass 2**64 - 1")
        self.append(encode_record(self._salt, offset, self.sequence, self._synced, client, request, payload))
        self.append(payload)
        self.sequence = None if entries is None else self.sequence + entries


def _payload(tree: dict[str, Any]) -> tuple[bytes, int | None]:
    """Return a record's payload and how many sequence numbers it takes, None when only the next record knows."""
    given = _base64(tree, "payload_b64") if "payload_b64" in tree else None
    if "entries" not in tree:
        if given is None:
            raise InvalidArgumentError("a record needs its 'entries'")
        return given, None
    if not isinstance(tree["entries"], list) or not all(isinstance(entry, dict) for entry in tree["entries"]):
        raise InvalidArgumentError("'entries' must be a list of objects")
    if not tree["entries"]:
        raise InvalidArgumentError("a record needs at least one entry")
    batch: Batch = {}
    for entry in tree["entries"]:
        check_fields(entry, (), ("key", "value"))
        key = field_bytes(entry, "key")
        assert key is not None
        if len(key) > KEY_BYTES_MAX:
            raise InvalidArgumentError(f"key {key[:40]!r}... is longer than {KEY_BYTES_MAX} bytes")
        if key in batch:
            raise InvalidArgumentError(f"key {key[:40]!r} is twice in one record")
        batch[key] = field_bytes(entry, "value", nullable=True)
    if given is not None:
        try:
            if list(decode_trusted(given).items()) == list(batch.items()):
                return given, len(batch)
        except msgspec.MsgspecError:
            pass  # the entries say more than bytes that cannot be read
    return encode_batch(batch), len(batch)


def _whole(tree: dict[str, Any], name: str, default: int | None = None) -> int:
    value = tree.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise InvalidArgumentError(f"{name!r} must be a whole number from 0 to 2**64 - 1")
    return value


def _base64(tree: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(tree[name], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise InvalidArgumentError(f"{name!r} must be base64 text") from None
