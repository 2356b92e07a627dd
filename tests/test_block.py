from __future__ import annotations

import os
import struct

import msgspec
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from keyva.batch import Batch
from keyva.block import (
    BLOCK_HEADER_BYTES,
    CODECS,
    decode_block,
    decode_blocks,
    decode_columns,
    encode_block,
    encode_columns,
    parse_block,
    unpack_block,
    verify_block,
)
from keyva.errors import CorruptionError

SALT = 0x1234ABCD
OFFSET = 179
ENTRIES: Batch = {b"": b"empty key", b"apple": b"red " * 20, b"banana": None, b"cherry": b"red " * 20}

maps = st.dictionaries(st.binary(max_size=20), st.none() | st.binary(max_size=100), min_size=1)
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def raw_of(entries: Batch) -> bytes:
    return encode_columns(list(entries), list(entries.values()))


def block_of(entries: Batch, codec: int, offset: int = OFFSET) -> bytes:
    return encode_block(raw_of(entries), len(entries), codec, SALT, offset)


def decoded(data: bytes) -> Batch:
    """Decode a block in all three ways, which must agree."""
    one = decode_block(data, SALT, OFFSET, "f")
    assert decode_columns(unpack_block(data, SALT, OFFSET, "f")) == one
    assert decode_blocks(data, SALT, OFFSET, "f") == (one, 1)
    return dict(zip(*one, strict=True))


def with_checksum(block: bytes) -> bytes:
    return struct.pack("<I", crc32c(block[4:], crc32c(struct.pack("<Q", OFFSET), SALT))) + block[4:]


@codecs
@given(entries=maps)
def test_a_block_comes_back_in_its_order(codec: int, entries: Batch) -> None:
    entries = dict(sorted(entries.items()))
    assert list(decoded(block_of(entries, codec)).items()) == list(entries.items())


@codecs
@given(blocks=st.lists(maps, max_size=5))
def test_blocks_read_in_one_piece_come_back_as_one(codec: int, blocks: list[Batch]) -> None:
    data, keys, values = b"", [], []
    for entries in blocks:
        data += block_of(entries, codec, OFFSET + len(data))
        keys += list(entries)
        values += list(entries.values())
    assert decode_blocks(data, SALT, OFFSET, "f") == ((keys, values), len(blocks))


@codecs
def test_what_does_not_compress_is_stored_as_it_is(codec: int) -> None:
    entries: Batch = {b"k": os.urandom(5000)}
    block = block_of(entries, codec)
    assert parse_block(block)[4] == 0
    assert len(block) == BLOCK_HEADER_BYTES + len(raw_of(entries))
    assert decoded(block) == entries


@pytest.mark.parametrize("codec", [1, 2])
def test_what_compresses_is_compressed(codec: int) -> None:
    block = block_of(ENTRIES, codec)
    _, stored, raw, entries, used = parse_block(block)
    assert (raw, entries, used) == (len(raw_of(ENTRIES)), 4, codec)
    assert stored < raw
    assert stored == len(block) - BLOCK_HEADER_BYTES


@codecs
def test_a_huge_value(codec: int) -> None:
    entries: Batch = {b"k": bytes(64 * 1024 * 1024)}
    assert decoded(block_of(entries, codec)) == entries


@codecs
@pytest.mark.parametrize("mask", [1 << bit for bit in range(8)])
def test_any_changed_bit_is_noticed_with_file_and_offset(codec: int, mask: int) -> None:
    good = block_of(ENTRIES, codec)
    for at in range(len(good)):
        with pytest.raises(CorruptionError) as raised:
            decode_block(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :], SALT, OFFSET, "the file")
        assert (raised.value.path, raised.value.offset) == ("the file", OFFSET)
        with pytest.raises(CorruptionError) as raised:
            decode_blocks(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :], SALT, OFFSET, "the file")
        assert (raised.value.path, raised.value.offset) == ("the file", OFFSET)


@codecs
def test_a_block_of_any_other_length_is_noticed(codec: int) -> None:
    good = block_of(ENTRIES, codec)
    for data in [good[:size] for size in range(len(good))] + [good + b"\0"]:
        with pytest.raises(CorruptionError):
            decode_block(data, SALT, OFFSET, "f")


def test_a_block_of_another_place_or_file_is_noticed() -> None:
    block = block_of(ENTRIES, 1)
    for salt, offset in ((SALT, OFFSET + 1), (SALT, 0), (SALT ^ 1, OFFSET)):
        with pytest.raises(CorruptionError, match="checksum does not match"):
            verify_block(block, salt, offset, "f")


class TestNonsenseWithAGoodChecksum:
    """Never believed either: it is an error, not a crash, and not wrong data."""

    def test_an_unknown_codec(self) -> None:
        block = bytearray(block_of(ENTRIES, 0))
        block[16] = 9
        with pytest.raises(CorruptionError, match="codec 9"):
            decode_block(with_checksum(bytes(block)), SALT, OFFSET, "f")

    @pytest.mark.parametrize("codec", [1, 2])
    def test_bytes_that_do_not_decompress(self, codec: int) -> None:
        block = struct.pack("<IIIIB3x", 0, 9, 100, 1, codec) + b"\xff" * 9
        with pytest.raises(CorruptionError, match="cannot be decoded"):
            decode_block(with_checksum(block), SALT, OFFSET, "f")

    @pytest.mark.parametrize(
        "raw",
        [
            b"\xc1",
            b"\x92\x91\xc4\x01k",
            b"\x91\xc0",
            b"\x92\x91\xa1k\x91\xc0",
            b"\x92\x91\xc0\x91\xc0",
            b"\x93\x91\xc4\x00\x91\xc0\x90",
            raw_of(ENTRIES) + b"\0",
        ],
    )
    def test_entries_that_are_none(self, raw: bytes) -> None:
        block = with_checksum(struct.pack("<IIIIB3x", 0, len(raw), len(raw), 1, 0) + raw)
        with pytest.raises(CorruptionError, match="cannot be decoded"):
            decode_block(block, SALT, OFFSET, "f")
        with pytest.raises(CorruptionError, match="cannot be decoded"):
            decode_blocks(block, SALT, OFFSET, "f")
        with pytest.raises(msgspec.MsgspecError):
            decode_columns(unpack_block(block, SALT, OFFSET, "f"))

    @pytest.mark.parametrize(("keys", "values", "entries"), [(4, 4, 5), (4, 3, 4), (3, 4, 4), (0, 0, 0)])
    def test_another_number_of_entries(self, keys: int, values: int, entries: int) -> None:
        raw = encode_columns(list(ENTRIES)[:keys], list(ENTRIES.values())[:values])
        block = with_checksum(struct.pack("<IIIIB3x", 0, len(raw), len(raw), entries, 0) + raw)
        message = f"has {keys} keys and {values} values where its header says {entries}"
        with pytest.raises(CorruptionError, match=message):
            decode_block(block, SALT, OFFSET, "f")
        with pytest.raises(CorruptionError, match=message):
            decode_blocks(block, SALT, OFFSET, "f")

    @given(st.binary(max_size=60), st.sampled_from([0, 1, 2]), st.integers(0, 1000), st.integers(0, 5))
    def test_any_bytes(self, stored: bytes, codec: int, raw_bytes: int, entries: int) -> None:
        block = with_checksum(struct.pack("<IIIIB3x", 0, len(stored), raw_bytes, entries, codec) + stored)
        try:
            keys, values = decode_block(block, SALT, OFFSET, "f")
        except CorruptionError:
            return
        assert len(keys) == len(values) == entries > 0
