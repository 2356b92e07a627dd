"""Reading through readers: how requests are cut and spread. The readers are a function of the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from keyva import remote
from keyva.errors import ProtocolError, UnavailableError
from keyva.protocol import decode_body, encode
from keyva.remote import RemoteReads

Answers = Callable[[str, Any], Any]


def reads_over(answers: Answers, *, bytes_max: int = 1 << 20, readers: int = 1, timeout_s: float = 5.0) -> RemoteReads:
    """Return reads whose readers answer ``answers(op, body)``."""

    def call(endpoint: str, op: str, body: bytes, timeout_s: float | None) -> bytes:
        return encode(answers(op, decode_body(body)))

    return RemoteReads(call, [f"reader-{number}" for number in range(readers)], timeout_s, bytes_max)


class Reader:
    """Answers with each key's own text, at most ``values_max`` of them; keeps what it was asked."""

    def __init__(self, values_max: int = 1 << 30) -> None:
        self.values_max = values_max
        self.asked: list[list[bytes]] = []

    def __call__(self, op: str, body: Any) -> Any:
        if op == "snapshot":
            return 7
        self.asked.append(body[1])
        return [key if op == "get_many" else key.decode() for key in body[1]][: self.values_max]


KEYS = [b"%06d" % number for number in range(1000)]


@pytest.mark.parametrize("call", ["get_many", "content_types"])
def test_many_keys_are_asked_for_in_parts_that_a_reader_takes(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "KEYS_PER_REQUEST", 300)
    reader = Reader()
    values = getattr(reads_over(reader), call)(KEYS)
    assert values == (KEYS if call == "get_many" else [key.decode() for key in KEYS])
    assert [len(part) for part in reader.asked] == [300, 300, 300, 100]


@pytest.mark.parametrize("call", ["get_many", "content_types"])
def test_parts_are_cut_by_bytes_too(call: str) -> None:
    reader = Reader()
    source = reads_over(reader, bytes_max=3000).snapshot()
    keys = [*KEYS, b"k" * 5000, b"last"]
    assert len(getattr(source, call)(keys)) == 1002
    assert all(sum(map(len, part)) <= 3000 or len(part) == 1 for part in reader.asked)
    assert len(reader.asked) < 10


def test_after_a_short_answer_fewer_keys_are_sent() -> None:
    reader = Reader(values_max=10)
    assert reads_over(reader).get_many(KEYS) == KEYS
    assert sum(map(len, reader.asked)) < 4 * len(KEYS)


def test_an_answer_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not answered with that many"):
        reads_over(lambda op, body: []).get_many(KEYS)
    with pytest.raises(ProtocolError, match="not answered with that many"):
        reads_over(lambda op, body: [b""] * 2).get_many(["one"])


@pytest.mark.parametrize("call", ["get_many", "content_types"])
def test_one_key_is_no_sequence_of_keys(call: str) -> None:
    reads = reads_over(Reader())
    for source in (reads, reads.snapshot()):
        for key in ("abc", b"abc"):
            with pytest.raises(TypeError, match=f"{call} takes a sequence of keys, not one key"):
                getattr(source, call)(key)


def test_bounds_of_an_iterator_are_no_longer_than_they_matter() -> None:
    asked: list[Any] = []

    def answers(op: str, body: Any) -> Any:
        if op == "scan":
            asked.extend(body[1:3])
            return [0, [], []]
        return 7

    assert list(reads_over(answers).iterator(b"a" * 3_000_000, b"b" * 3_000_000)) == []
    assert [len(bound) for bound in asked] == [65537, 65537]


def test_all_readers_together_have_the_time_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    shares: list[float] = []

    def silent(endpoint: str, op: str, body: bytes, timeout_s: float | None) -> bytes:
        nonlocal now
        assert timeout_s is not None
        shares.append(timeout_s)
        now += timeout_s
        raise UnavailableError(endpoint)

    monkeypatch.setattr("time.monotonic", lambda: now)
    with pytest.raises(UnavailableError):
        RemoteReads(silent, ["a", "b", "c"], 6.0, 1000).get("key")
    assert shares == [2.0, 2.0, 2.0]
