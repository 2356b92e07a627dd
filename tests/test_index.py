from __future__ import annotations

import struct
from array import array
from typing import Any

import msgspec
import pytest
from crc32c import crc32c

from keyva.errors import CorruptionError, FormatVersionError
from keyva.filter import build_filter, hash_key
from keyva.index import Index, IndexHeader, decode_index, encode_index

KEYS = [b"", b"apple", b"\xfe\xff"]
OFFSETS = array("Q", [179, 300, 2**33, 2**33 + 50])


def header(**changes: object) -> IndexHeader:
    fields = {
        "version": 1,
        "number": 5,
        "store_id": bytes(16),
        "sst_bytes": 2**33 + 100,
        "sst_crc32c": 7,
        "blocks": 3,
        "entries": 3,
        "bits_per_key": 10.0,
    }
    return IndexHeader(**{**fields, **changes})  # type: ignore[arg-type]


def good(*, bloom: bool = True, **changes: object) -> bytes:
    return encode_index(header(**changes), KEYS, OFFSETS, build_filter(map(hash_key, KEYS), 3, 10.0) if bloom else None)


def same(one: Index, other: Index) -> bool:
    filters = [index.filter.save_bytes() if index.filter is not None else b"" for index in (one, other)]
    return one[:3] == other[:3] and filters[0] == filters[1]


@pytest.mark.parametrize("bloom", [True, False])
def test_an_index_comes_back(bloom: bool) -> None:
    index = decode_index(good(bloom=bloom), "f")
    assert (index.header, index.first_keys, index.offsets) == (header(), KEYS, OFFSETS)
    assert (index.filter is not None) == bloom
    assert index.filter is None or all(key in index.filter for key in KEYS)


@pytest.mark.parametrize("bloom", [True, False])
@pytest.mark.parametrize("mask", [1 << bit for bit in range(8)])
def test_any_changed_bit_is_noticed_with_file_and_offset(mask: int, bloom: bool) -> None:
    data = good(bloom=bloom)
    for at in range(len(data)):
        with pytest.raises(CorruptionError) as raised:
            decode_index(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :], "the file")
        assert raised.value.path == "the file"
        assert raised.value.offset <= max(at, 16)


@pytest.mark.parametrize("bloom", [True, False])
def test_any_other_length_is_noticed(bloom: bool) -> None:
    data = good(bloom=bloom)
    for cut in [data[:size] for size in range(len(data))] + [data + b"\0", data + data]:
        with pytest.raises(CorruptionError):
            decode_index(cut, "f")


def test_a_section_of_another_index_is_noticed() -> None:
    one, other = good(bloom=False), good(bloom=False, number=6)
    assert len(one) == len(other)
    start = 16 + struct.unpack_from("<I", one, 8)[0]
    with pytest.raises(CorruptionError, match="section"):
        decode_index(one[:start] + other[start:], "f")


def test_sections_in_another_order_are_noticed() -> None:
    data = good(bloom=False)
    start = 16 + struct.unpack_from("<I", data, 8)[0]
    first = 8 + struct.unpack_from("<I", data, start)[0]
    swapped = data[:start] + data[start + first : -8] + data[start : start + first] + data[-8:]
    with pytest.raises(CorruptionError):
        decode_index(swapped, "f")


@pytest.mark.parametrize("changes", [{"version": 2}, {"features": ["ribbon_filter"]}])
def test_newer_versions_and_features_are_refused_as_newer(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatVersionError, match="newer"):
        decode_index(good(**changes), "f")


def test_fields_of_a_later_version_are_skipped() -> None:
    data = good(bloom=False)
    size = struct.unpack_from("<I", data, 8)[0]
    fields = msgspec.msgpack.decode(data[16 : 16 + size])
    head = msgspec.msgpack.encode({**fields, "later": [1, 2]})
    salt = crc32c(head)
    parts = [b"KEYVAIDX", struct.pack("<II", len(head), salt), head]
    for payload in (msgspec.msgpack.encode(KEYS), OFFSETS.tobytes(), b""):
        salt = crc32c(payload, salt)
        parts += [struct.pack("<II", len(payload), salt), payload]
    assert same(decode_index(b"".join(parts), "f"), decode_index(data, "f"))


@pytest.mark.parametrize("changes", [{"blocks": 2}, {"blocks": 4}])
def test_an_index_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError, match="another number of blocks"):
        decode_index(good(**changes), "f")


def test_another_file_is_no_index() -> None:
    with pytest.raises(CorruptionError, match="wrong magic"):
        decode_index(b"KEYVASST" + good()[8:], "f")
