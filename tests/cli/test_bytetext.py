from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyva.cli import bytetext
from keyva.errors import InvalidArgumentError


class TestQuote:
    @given(st.binary(max_size=40))
    def test_any_bytes_come_back(self, data: bytes) -> None:
        assert bytetext.unquote(bytetext.quote(data)) == data

    @given(st.binary(max_size=40))
    def test_quoted_bytes_are_one_printable_line(self, data: bytes) -> None:
        assert bytetext.quote(data).isprintable()

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"user:1", "user:1"),
            ("café".encode(), "café"),
            (b"a\tb\n", r"a\tb\n"),
            (b"a\\b", r"a\\b"),
            (b"\x00\xff", r"\x00\xff"),
            ("\u202e".encode(), r"\xe2\x80\xae"),  # would turn the line around on a screen
            (b"", ""),
        ],
    )
    def test_examples(self, data: bytes, text: str) -> None:
        assert bytetext.quote(data) == text


class TestSplitWords:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("", []),
            ("  get  a\t", [b"get", b"a"]),
            (r'put "user 1" caf\xc3\xa9', [b"put", b"user 1", "café".encode()]),
            (r"put '' ''", [b"put", b"", b""]),
            (r'get "it\x27s" x"y z"w', [b"get", b"it's", b"xy zw"]),
            (r"get a\ b\"", [b"get", b'a b"']),
            ("get \"'\"'\"'", [b"get", b"'\""]),
        ],
    )
    def test_examples(self, line: str, words: list[bytes]) -> None:
        assert bytetext.split_words(line) == words

    @pytest.mark.parametrize("line", ['get "a', "get a\\", r"get \q", r"get \x1", r"get '\xzz'"])
    def test_a_malformed_line_is_refused(self, line: str) -> None:
        with pytest.raises(InvalidArgumentError):
            bytetext.split_words(line)


class TestFields:
    @given(st.binary(max_size=40), st.booleans())
    def test_any_bytes_come_back_through_json(self, data: bytes, as_hex: bool) -> None:
        tree: dict[str, Any] = {}
        bytetext.put_field(tree, "key", data, as_hex=as_hex)
        assert bytetext.field_bytes(bytetext.parse_json(bytetext.json_line(tree)), "key") == data

    def test_text_stays_readable(self) -> None:
        tree: dict[str, Any] = {}
        bytetext.put_field(tree, "key", "né".encode())
        bytetext.put_field(tree, "value", b"\xff")
        assert tree == {"key": "né", "value_b64": "/w=="}

    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            ({}, "missing"),
            ({"key": "a", "key_b64": "YQ=="}, "exactly one"),
            ({"key": 1}, "must be text"),
            ({"key": None}, "must be text"),
            ({"key_b64": "a"}, "key_b64"),
            ({"key_b64": "YQ==!"}, "key_b64"),
            ({"key_hex": "abc"}, "hexadecimal"),
        ],
    )
    def test_a_bad_field_is_refused_with_its_name(self, tree: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            bytetext.field_bytes(tree, "key")


@pytest.mark.parametrize("line", [b"", b"[1]", b"{", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"{} x", b"[" * 100_000])
def test_a_line_that_is_no_json_object_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        bytetext.parse_json(line)


def test_blank_lines_are_skipped_but_counted() -> None:
    assert list(bytetext.numbered_lines(io.BytesIO(b"a\n\n \nb"))) == [(1, b"a\n"), (4, b"b")]


def test_a_line_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytetext, "LINE_BYTES_MAX", 4)
    with pytest.raises(InvalidArgumentError, match="line 2"):
        list(bytetext.numbered_lines(io.BytesIO(b"abc\nabcd\n")))


@pytest.mark.parametrize(("text", "data"), [("00ff", b"\x00\xff"), ("0xCAFE", b"\xca\xfe"), ("", b"")])
def test_hexadecimal_arguments(text: str, data: bytes) -> None:
    assert bytetext.parse_argument(text, as_hex=True) == data


@pytest.mark.parametrize("text", ["0", "zz", "0x0", "é0"])
def test_what_is_not_hexadecimal_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        bytetext.parse_argument(text, as_hex=True)


def test_arguments_that_are_not_utf8_are_taken_as_they_are() -> None:
    assert bytetext.parse_argument("a\udcff", as_hex=False) == b"a\xff"
