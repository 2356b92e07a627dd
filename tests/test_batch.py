from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyva.batch import BatchCodec, check_key, check_value, decode_trusted, encode_batch, show_key
from keyva.errors import InvalidArgumentError
from keyva.options import KEY_BYTES_MAX

keys = st.binary(max_size=40).filter(lambda key: key[:2] != b"\xff\xff")
batches = st.dictionaries(keys, st.none() | st.binary(max_size=60), min_size=1)
pack = msgspec.msgpack.encode


class TestKeys:
    @pytest.mark.parametrize("key", [b"", b"a", b"\xff", b"\xff\xfe\xff", b"\xfe\xff\xff", b"\0", bytes(KEY_BYTES_MAX)])
    def test_any_bytes_are_allowed_the_empty_key_too(self, key: bytes) -> None:
        assert check_key(key) == key

    def test_text_is_utf8(self) -> None:
        assert check_key("größe") == "größe".encode()

    @pytest.mark.parametrize("key", [bytearray(b"k"), memoryview(b"k"), type("Sub", (bytes,), {})(b"k")])
    def test_what_is_like_bytes_becomes_bytes(self, key: Any) -> None:
        assert type(check_key(key)) is bytes
        assert check_key(key) == b"k"

    @pytest.mark.parametrize("key", [None, 1, 1.5, ["k"], (b"k",), object()])
    def test_other_types_raise_type_error_with_the_key(self, key: Any) -> None:
        with pytest.raises(TypeError, match="key must be bytes or str, not"):
            check_key(key)

    @pytest.mark.parametrize("key", [b"\xff\xff", b"\xff\xff\0", b"\xff\xffabc"])
    def test_reserved_keys_are_refused(self, key: bytes) -> None:
        with pytest.raises(InvalidArgumentError, match="begins with FF FF"):
            check_key(key)

    def test_a_long_key_is_refused_with_its_beginning_only(self) -> None:
        with pytest.raises(InvalidArgumentError, match="longer than 65536 bytes") as raised:
            check_key(b"begin" + bytes(KEY_BYTES_MAX))
        assert "begin" in str(raised.value)
        assert len(str(raised.value)) < 300

    def test_text_that_is_no_utf8_is_refused(self) -> None:
        with pytest.raises(InvalidArgumentError, match="not valid UTF-8"):
            check_key("a\ud800")


class TestValues:
    def test_up_to_the_limit(self) -> None:
        assert check_value(b"k", bytes(10), 10) == bytes(10)
        with pytest.raises(InvalidArgumentError, match=r"b'k' has 11 bytes, more than max_value_size = 10"):
            check_value(b"k", bytes(11), 10)

    def test_the_limit_counts_bytes_not_characters(self) -> None:
        with pytest.raises(InvalidArgumentError):
            check_value(b"k", "ääää", 7)

    @pytest.mark.parametrize("value", [None, 1, 1.5, ["v"], {}])
    def test_other_types_raise_type_error_with_the_key(self, value: Any) -> None:
        with pytest.raises(TypeError, match="value of key b'k' must be bytes or str"):
            check_value(b"k", value, 10)

    def test_text_that_is_no_utf8_is_refused(self) -> None:
        with pytest.raises(InvalidArgumentError, match="value of key b'k' is not valid UTF-8"):
            check_value(b"k", "\ud800", 10)


@given(st.binary(max_size=200) | st.text(max_size=2000) | st.integers())
def test_a_key_in_a_message_is_short(key: object) -> None:
    assert len(show_key(key)) < 200


@given(batches)
def test_a_batch_comes_back(batch: dict[bytes, bytes | None]) -> None:
    data = encode_batch(batch)
    assert BatchCodec(60).decode(data) == batch
    assert BatchCodec(60).decode(memoryview(data)) == batch
    assert list(decode_trusted(data).items()) == list(batch.items())


class TestBatchesFromOutside:
    codec = BatchCodec(1000)

    @pytest.mark.parametrize(
        ("payload", "why"),
        [
            (b"", "not a msgpack map"),
            (b"\x80", "batch is empty"),
            (pack([{b"k": b"v"}]), "not a msgpack map"),
            (pack(b"k"), "not a msgpack map"),
            (pack(None), "not a msgpack map"),
            (pack({b"k": b"v"}) + b"\0", "trailing characters"),
            (pack({"k": b"v"}), "holds a key that is not bytes: 'k'"),
            (pack({1: b"v"}), "holds a key that is not bytes: 1"),
            (pack({b"k": "v"}), "value of key b'k' is neither bytes nor nil"),
            (pack({b"k": 7}), "value of key b'k' is neither bytes nor nil"),
            (pack({b"k": [b"v", 1]}), "value of key b'k' is neither bytes nor nil"),
            (pack({b"k": bytes(1001)}), "value of key b'k' has 1001 bytes"),
            (pack({b"a": b"", b"\xff\xffk": b"v"}), r"key b'\\xff\\xffk' begins with FF FF"),
            (pack({bytes(KEY_BYTES_MAX + 1): None}), "longer than 65536"),
            (b"\xdf\xff\xff\xff\xff", "truncated"),
            (b"\x81\xc6\xff\xff\xff\xff", "length <= 65536"),
            (b"\x91" * 5000, "not a msgpack map"),
            (b"\x81\xc4\x01k\xd4\x01\x01", "neither bytes nor nil"),
        ],
    )
    def test_what_is_wrong_is_named(self, payload: bytes, why: str) -> None:
        with pytest.raises(InvalidArgumentError, match=why):
            self.codec.decode(payload)

    def test_the_last_of_a_repeated_key_is_meant(self) -> None:
        assert self.codec.decode(b"\x82\xc4\x01k\xc4\x01a\xc4\x01k\xc4\x01b") == {b"k": b"b"}

    @given(st.binary(max_size=200))
    def test_any_bytes_give_a_checked_batch_or_this_error(self, payload: bytes) -> None:
        try:
            batch = self.codec.decode(payload)
        except InvalidArgumentError:
            return
        assert all(check_key(key) == key for key in batch)

    @given(batches, st.data())
    def test_a_changed_byte_gives_a_checked_batch_or_this_error(self, batch: dict[bytes, bytes | None], data: st.DataObject) -> None:
        payload = bytearray(encode_batch(batch))
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        try:
            decoded = self.codec.decode(bytes(payload))
        except InvalidArgumentError:
            return
        assert all(check_key(key) == key for key in decoded)

    @given(batches, st.data())
    def test_a_batch_cut_short_anywhere_is_refused(self, batch: dict[bytes, bytes | None], data: st.DataObject) -> None:
        payload = encode_batch(batch)
        with pytest.raises(InvalidArgumentError):
            self.codec.decode(payload[: data.draw(st.integers(0, len(payload) - 1))])

    def test_a_huge_value_is_allowed_when_the_limit_is(self) -> None:
        value = bytes(20 * 1024 * 1024)
        assert BatchCodec(len(value)).decode(encode_batch({b"k": value})) == {b"k": value}

    def test_a_map_that_claims_billions_of_entries_costs_nothing(self) -> None:
        with pytest.raises(InvalidArgumentError):
            self.codec.decode(b"\xdf" + struct.pack(">I", 2**32 - 1) + b"\xc4\x01k\xc0")
