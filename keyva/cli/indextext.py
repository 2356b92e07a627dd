"""The index of an SST as JSON lines and back. The format: docs/format.md, "Index".

    {"file": "index", "version": 1, "number": 5, "store_id": "9f..", "sst_bytes": 4711, ...}     the header
    {"first_key": "a", "offset": 190}                                                            one line a block
    {"end": "index", "end_offset": 4600, "filter_b64": "..."}                                    a null filter: none

A builder works out the number of blocks and the checksums; the filter is taken as it is, for it cannot be made from first keys.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from keyva.cli.bytetext import check_fields, field_bytes, json_line, parse_crc, parse_json, put_field
from keyva.cli.ssttext import header_fields, parse_header
from keyva.errors import CorruptionError, InvalidArgumentError
from keyva.files import FILES
from keyva.filter import load_filter
from keyva.index import INDEX_VERSION, Index, IndexHeader, decode_index, encode_index
from keyva.options import KEY_BYTES_MAX

__all__ = ["build_index", "dump_index"]


def dump_index(path: str, as_hex: bool = False) -> Iterator[bytes]:
    """Yield the lines; holds the file in memory. Raises `CorruptionError`."""
    data = FILES.read_file(path)
    index = decode_index(data, path)
    if encode_index(index.header, index.first_keys, index.offsets, index.filter) != data:
        raise CorruptionError("index is valid, but not as keyva writes it; it cannot be shown exactly", path, 0)
    fields = header_fields(index.header)
    yield json_line({"file": "index", **fields, "sst_crc32c": f"{index.header.sst_crc32c:08x}"})
    for key, offset in zip(index.first_keys, index.offsets, strict=False):
        line: dict[str, Any] = {}
        put_field(line, "first_key", key, as_hex=as_hex)
        yield json_line({**line, "offset": offset})
    bloom = None if index.filter is None else base64.b64encode(index.filter.save_bytes()).decode()
    yield json_line({"end": "index", "end_offset": index.offsets[-1], "filter_b64": bloom})


def build_index(lines: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the file's bytes. Raises `InvalidArgumentError`."""
    header: IndexHeader | None = None
    first_keys: list[bytes] = []
    offsets: array[int] = array("Q")
    end: dict[str, Any] | None = None
    for _, line in lines:
        tree = parse_json(line)
        if end is not None:
            raise InvalidArgumentError("there are lines behind the end line")
        if header is None:
            header = _parse_index_header(tree)
        elif "end" in tree:
            check_fields(tree, ("end", "end_offset", "filter_b64"))
            end = tree
            offsets.append(_offset(tree, "end_offset", offsets))
        else:
            check_fields(tree, ("offset",), ("first_key",))
            key = field_bytes(tree, "first_key")
            assert key is not None
            if len(key) > KEY_BYTES_MAX:
                raise InvalidArgumentError(f"the first key is longer than {KEY_BYTES_MAX} bytes")
            if first_keys and key <= first_keys[-1]:
                raise InvalidArgumentError("first keys must ascend")
            first_keys.append(key)
            offsets.append(_offset(tree, "offset", offsets))
    if header is None or end is None:
        raise InvalidArgumentError("the end line is missing: the lines are cut short")
    header.blocks = len(first_keys)
    try:
        text = end["filter_b64"]
        bloom = None if text is None else load_filter(base64.b64decode(text, validate=True))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"'filter_b64' holds no filter: {error}") from None
    return encode_index(*Index(header, first_keys, offsets, bloom))


def _parse_index_header(tree: dict[str, Any]) -> IndexHeader:
    tree["sst_crc32c"] = parse_crc(tree, "sst_crc32c")
    tree.setdefault("blocks", 0)
    return parse_header(tree, "index", IndexHeader, INDEX_VERSION)


def _offset(tree: dict[str, Any], name: str, before: array[int]) -> int:
    value = tree.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise InvalidArgumentError(f"{name!r} must be a whole number from 0 to 2**64 - 1")
    if before and value <= before[-1]:
        raise InvalidArgumentError("offsets must ascend")
    return value
