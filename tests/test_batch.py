from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyva.batch import BatchCodec, Puts, check_key, check_keys, check_value, decode_trusted, encode_batch, make_batch, show_key
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


class TestPuts:
    """What put_many makes of its argument."""

    @pytest.mark.parametrize(
        "entries",
        [
            [("a", "1"), (b"a", "2"), ("a", "3"), (b"b", b"4")],
            [("a", "1"), (b"a", "2"), ("b", b"4"), (bytearray(b"a"), bytearray(b"3"))],
            [(b"b", b"4"), (memoryview(b"a"), b"1"), (bytearray(b"a"), memoryview(b"3"))],
            [[b"b", b"4"], [b"a", b"1"], [b"a", b"3"]],
            {"b": "4", b"a": b"3"},
            {b"a": b"3", b"b": b"4"},
            {"a": "3", "b": "4"},
        ],
    )
    def test_the_last_entry_of_a_key_wins_in_whatever_form_it_comes(self, entries: Any) -> None:
        assert make_batch(entries, 10) == {b"a": b"3", b"b": b"4"}
        pairs = entries.items() if isinstance(entries, dict) else entries
        assert make_batch(iter(pairs), 10) == make_batch(tuple(pairs), 10) == {b"a": b"3", b"b": b"4"}

    @given(st.lists(st.tuples(st.sampled_from(["a", b"a", "b", b"b", bytearray(b"a"), memoryview(b"b")]), st.binary(max_size=1))))
    def test_it_is_as_if_they_were_put_one_after_the_other(self, entries: list[tuple[Any, bytes]]) -> None:
        one_by_one = {}
        for key, value in entries:
            one_by_one[check_key(key)] = value
        assert make_batch(entries, 10) == one_by_one

    @pytest.mark.parametrize("entries", ["ab", ["ab"], [b"ab"], [("a", "b", "c")], [("a",)], [5], [(b"a", b"1"), None]])
    def test_what_is_no_pair_is_named(self, entries: Any) -> None:
        with pytest.raises(TypeError, match="entries must be pairs of key and value, not"):
            make_batch(entries, 10)

    @pytest.mark.parametrize("entries", [[(None, b"")], {1: b""}, [(b"a", b""), ([], b"")]])
    def test_what_is_no_key_is_named(self, entries: Any) -> None:
        with pytest.raises(TypeError, match="key must be bytes or str, not"):
            make_batch(entries, 10)

    def test_limits_are_kept(self) -> None:
        assert make_batch({}, 10) == make_batch([], 10) == {}
        for entries in ({b"k": bytes(11)}, {"k": "ä" * 6}, {b"\xff\xff": b""}, {bytes(KEY_BYTES_MAX + 1): b""}):
            with pytest.raises(InvalidArgumentError):
                make_batch(entries, 10)

    def test_the_hints_allow_what_is_taken(self) -> None:
        text: dict[str, bytes] = {"k": b"v"}
        allowed: list[Puts] = [text, {"k": b"v"}, {b"k": "v"}, {"k": "v"}, [("k", b"v"), (b"k", "v")], ((key, b"v") for key in "k")]
        assert all(make_batch(entries, 10) == {b"k": b"v"} for entries in allowed)

    def test_no_bytes_are_compared_with_text(self) -> None:
        program = (
            "from keyva.batch import check_key, make_batch\n"
            "assert make_batch([('a', '1'), (b'a', '2'), ('a', '3'), (b'b', b'4')], 10) == {b'a': b'3', b'b': b'4'}\n"
            "assert make_batch([(b'a', b'1'), ('a', '2')], 10) == {b'a': b'2'}\n"
            "assert make_batch({'a': '1'}, 10) == {check_key('a'): b'1'}\n"
        )
        subprocess.run([sys.executable, "-bb", "-c", program], check=True)


def test_a_single_key_is_no_sequence_of_keys() -> None:
    assert check_keys(["a", b"b"], "get_many") == check_keys(("a", b"b"), "get_many") == [b"a", b"b"]
    for key in ("abc", b"abc", bytearray(b"abc"), memoryview(b"abc")):
        with pytest.raises(TypeError, match="get_many takes a sequence of keys, not one key"):
            check_keys(key, "get_many")  # type: ignore[arg-type]


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
