"""The writer over its sockets: groups, repeats across its own death, waiting and being told so, and stopping."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import RawClient, RunningNode, eventually

import keyva
from keyva.batch import encode_batch
from keyva.errors import OutcomeUnknownError, ProtocolError, WriteStallError
from keyva.protocol import FLAG_NO_SYNC, FLAG_REPEATED, FLAG_SYNC, encode

ADD_ONE = encode([b"n", 1])
CLIENT = 0x1234567890ABCDEF


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with RunningNode(tmp_path / "d", "--heartbeat-timeout-s=60") as node:
        yield node


@pytest.fixture
def raw(node: RunningNode) -> Iterator[RawClient]:
    with RawClient(node.endpoint) as raw:
        yield raw


def restart_writer(node: RunningNode, number: int = signal.SIGKILL) -> None:
    pid = node.pid_of("writer")
    os.kill(pid, number)
    eventually(lambda: node.pid_of("writer") != pid, "a new writer")


def test_hello_says_what_a_client_must_know(node: RunningNode, raw: RawClient) -> None:
    hello = raw.ask("hello")
    assert hello["protocol"] == 1
    assert hello["version"] == keyva.__version__
    assert hello["directory"] == node.directory
    assert hello["readers"] == node.readers
    assert hello["listen_readers"] == []
    assert hello["pid"] == node.pid_of("writer")
    assert hello["options"]["heartbeat_timeout_s"] == 60
    assert hello["position"] == raw.position
    assert hello["store_id"] == raw.ask("stats")["store_id"]


def test_requests_sent_without_waiting_are_done_in_order_each_with_its_own_answer(raw: RawClient) -> None:
    numbers = [raw.send("increment", ADD_ONE) for _ in range(500)]
    answers = [raw.answer(number) for number in numbers]
    assert [value for _, value in answers] == list(range(1, 501))
    assert [sequence for sequence, _ in answers] == list(range(1, 501))
    assert raw.ask("stats")["groups"] < 500  # committed together


def test_a_bad_request_among_good_ones_fails_alone(raw: RawClient) -> None:
    good = [raw.send("write", encode_batch({b"a": b"1"}))]
    bad = raw.send("write", b"\xc1")
    good.append(raw.send("write", encode_batch({b"b": b"2"})))
    worse = raw.send("increment", encode([b"a\xff", "x"]))
    no_counter = raw.send("increment", encode([b"text", 1]))
    text = raw.send("write", encode_batch({b"text": b"hello"}))
    after_text = raw.send("increment", encode([b"text", 1]))
    good.append(raw.send("increment", ADD_ONE))
    assert raw.answer(good[0]) == [1, None]
    with pytest.raises(keyva.InvalidArgumentError):
        raw.answer(bad)
    assert raw.answer(good[1]) == [2, None]
    with pytest.raises(ProtocolError):
        raw.answer(worse)
    assert raw.answer(no_counter) == [3, 1]
    raw.answer(text)
    with pytest.raises(keyva.NotACounterError, match="b'text'"):
        raw.answer(after_text)
    assert raw.answer(good[2]) == [5, 1]


def test_the_position_in_answers_never_goes_back(node: RunningNode, raw: RawClient) -> None:
    positions = []
    for number in range(20):
        raw.ask("increment", ADD_ONE)
        positions.append(raw.position)
        if number % 7 == 3:
            raw.ask("flush")
        if number == 10:
            restart_writer(node)
    assert positions == sorted(set(positions))


@pytest.mark.parametrize("how", ["same writer", "writer killed", "flushed and killed", "clean stop"])
def test_a_repeat_is_answered_as_the_first_time_and_nothing_happens_twice(node: RunningNode, raw: RawClient, how: str) -> None:
    as_of = raw.ask("hello")["position"]
    first = {"client": CLIENT, "number": 10, "floor": 10, "as_of": as_of}
    assert raw.ask("increment", ADD_ONE, **first) == [1, 1]
    assert raw.ask("write", encode_batch({b"a": b"1", b"b": b"2"}), **{**first, "number": 11}) == [3, None]
    assert raw.ask("increment", ADD_ONE) == [4, 2]
    if how == "flushed and killed":
        raw.ask("flush")
    if how != "same writer":
        restart_writer(node, signal.SIGTERM if how == "clean stop" else signal.SIGKILL)
    for _ in range(2):
        assert raw.ask("increment", ADD_ONE, **first, flags=FLAG_REPEATED) == [1, 1]
        assert raw.ask("write", encode_batch({b"a": b"1", b"b": b"2"}), **{**first, "number": 11}, flags=FLAG_REPEATED) == [3, None]
    assert raw.ask("increment", ADD_ONE, number=20) == [5, 3]


@pytest.mark.parametrize("how", ["same writer", "writer killed", "flushed and killed"])
def test_a_repeated_pipeline_is_answered_as_the_first_time(node: RunningNode, raw: RawClient, how: str) -> None:
    as_of = raw.ask("hello")["position"]
    raw.ask("write", encode_batch({b"text": b"x"}))
    calls = encode([("increment", [b"n", 1]), ("increment", [b"text", 1]), ("sequence", [b"s", False]), ("write", {b"a": b"x"})])
    first = {"client": CLIENT, "number": 10, "floor": 10, "as_of": as_of}
    results = raw.ask("pipeline", calls, **first)
    assert [status for status, _ in results] == [0, 1, 0, 0]
    raw.ask("write", encode_batch({b"text": b"7", b"n": b"100"}), number=100)
    if how == "flushed and killed":
        raw.ask("flush")
    if how == "same writer":
        # what was refused is not done later, although it could be now
        assert raw.ask("pipeline", calls, **first, flags=FLAG_REPEATED) == results
        return
    restart_writer(node)
    again = raw.ask("pipeline", calls, **first, flags=FLAG_REPEATED)
    assert [again[at] for at in (0, 2, 3)] == [results[at] for at in (0, 2, 3)]
    assert raw.ask("increment", ADD_ONE, number=200)[1] == 101


def test_a_repeat_whose_first_try_never_arrived_is_done_once(node: RunningNode, raw: RawClient) -> None:
    as_of = raw.ask("hello")["position"]
    repeat = {"client": CLIENT, "number": 5, "floor": 5, "as_of": as_of, "flags": FLAG_REPEATED}
    restart_writer(node)
    numbers = [raw.send("increment", ADD_ONE, **repeat) for _ in range(3)]  # in one group, perhaps
    assert [raw.answer(number) for number in numbers] == [[1, 1]] * 3
    assert raw.ask("increment", ADD_ONE, number=6) == [2, 2]


def test_a_repeat_nobody_can_know_about_is_refused_not_guessed(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d") as node, RawClient(node.endpoint) as raw:
        old = raw.ask("hello")["position"]
        raw.ask("increment", ADD_ONE, client=CLIENT, number=8, floor=8, as_of=old)
        with pytest.raises(OutcomeUnknownError, match="given up"):
            raw.ask("increment", ADD_ONE, client=CLIENT, number=7, floor=8, as_of=old, flags=FLAG_REPEATED)
        raw.ask("flush")
    (tmp_path / "d" / "REQUESTS").unlink()  # and the log that could say it has been flushed
    with RunningNode(tmp_path / "d") as node, RawClient(node.endpoint) as raw:
        with pytest.raises(OutcomeUnknownError, match="so long ago"):
            raw.ask("increment", ADD_ONE, client=CLIENT, number=8, floor=8, as_of=old, flags=FLAG_REPEATED)
        assert raw.ask("increment", ADD_ONE)[1] == 2


def test_a_repeat_of_what_was_refused_is_refused_although_it_could_be_done_by_now(tmp_path: Path) -> None:
    flags = ("--heartbeat-timeout-s=60", "--write-buffer-size=65536", "--max-write-buffer-number=2", "--write-stall-timeout-s=2")
    with RunningNode(tmp_path / "d", *flags) as node, RawClient(node.endpoint) as raw:
        as_of = raw.ask("hello")["position"]
        first = {"client": CLIENT, "number": 10_000, "floor": 10_000, "as_of": as_of}
        pid = node.pid_of("flusher")
        os.kill(pid, signal.SIGSTOP)
        try:
            while raw.ask("stats")["stall"] is None:
                raw.ask("write", encode_batch({b"%d" % raw.number: b"x" * 40_000}))
            raw.send("increment", ADD_ONE, **first)
            with pytest.raises(TimeoutError):
                raw.answer(10_000, 1.0)
            raw.send("increment", ADD_ONE, **first, flags=FLAG_REPEATED)  # as a client does that waits
            with pytest.raises(WriteStallError, match="nothing was written"):
                raw.answer(10_000)
        finally:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(WriteStallError, match="nothing was written"):
            raw.answer(10_000)  # the repeat, which could have been done
        eventually(lambda: raw.ask("stats")["stall"] is None, "no stall any more")
        assert raw.ask("increment", ADD_ONE)[1] == 1
        raw.ask("write", encode_batch({b"n": b"text"}))
        second = {**first, "number": 30_000}
        with pytest.raises(keyva.NotACounterError):
            raw.ask("increment", ADD_ONE, **second)
        raw.ask("write", encode_batch({b"n": b"5"}))
        with pytest.raises(keyva.NotACounterError):
            raw.ask("increment", ADD_ONE, **second, flags=FLAG_REPEATED)
        assert raw.ask("increment", ADD_ONE)[1] == 6


def test_durability_is_asked_for_by_request(tmp_path: Path) -> None:
    for durability, cases in [("os", [(0, 0), (FLAG_SYNC, 1)]), ("sync", [(0, 1), (FLAG_NO_SYNC, 0)])]:
        with RunningNode(tmp_path / durability, f"--durability={durability}") as node, RawClient(node.endpoint) as raw:
            for flags, syncs in cases:
                before = raw.ask("stats")["wal_syncs"]
                raw.ask("increment", ADD_ONE, flags=flags)
                assert raw.ask("stats")["wal_syncs"] == before + syncs
            restart_writer(node)
            assert raw.ask("increment", ADD_ONE) == [3, 3]  # either way they outlive the process


@pytest.mark.parametrize(("op", "role"), [("flush", "flusher"), ("compact", "compactor")])
def test_a_client_that_waits_for_a_job_is_told_so(node: RunningNode, raw: RawClient, op: str, role: str) -> None:
    for number in range(2):
        raw.ask("write", encode_batch({b"a": b"%d" % number, b"z": b"1"}))
        raw.ask("flush")
    raw.ask("write", encode_batch({b"a": b"1"}))
    pid = node.pid_of(role)
    os.kill(pid, signal.SIGSTOP)
    try:
        number = raw.send(op, encode([None, None]) if op == "compact" else b"\xc0")
        with pytest.raises(TimeoutError):
            raw.answer(number, 4.0)
        assert raw.waits
        assert set(raw.waits) == {f"{op} is under way"}
        assert raw.ask("increment", ADD_ONE)[1] == 1  # nobody else waits
    finally:
        os.kill(pid, signal.SIGCONT)
    raw.ask(op, encode([None, None]) if op == "compact" else b"\xc0")


def test_what_it_cannot_do_is_refused_with_a_reason(raw: RawClient) -> None:
    refused: list[tuple[str, Any, type[Exception]]] = [
        ("get", [0, b"a"], ProtocolError),
        ("result", {"id": 1}, ProtocolError),
        ("compact", None, ProtocolError),
        ("compact", [b"a"], ProtocolError),
        ("increment", [b"n"], ProtocolError),
        ("increment", [b"n", 2**64 - 1], keyva.InvalidArgumentError),
        ("increment", [b"n", 1.0], ProtocolError),
        ("increment", [b"\xff\xffn", 1], keyva.InvalidArgumentError),
        ("increment", [b"n" * 65537, 1], keyva.InvalidArgumentError),
        ("write", {}, keyva.InvalidArgumentError),
        ("write", [], keyva.InvalidArgumentError),
    ]
    for op, body, error in refused:
        with pytest.raises(error):
            raw.ask(op, encode(body))
    assert raw.ask("stats")["last_sequence"] == 0


def test_writes_held_back_are_answered_when_the_writer_stops(tmp_path: Path) -> None:
    flags = ("--heartbeat-timeout-s=60", "--write-buffer-size=65536", "--max-write-buffer-number=2")
    with RunningNode(tmp_path / "d", *flags) as node, RawClient(node.endpoint) as raw:
        pid = node.pid_of("flusher")
        os.kill(pid, signal.SIGSTOP)
        try:
            written = 0
            while raw.ask("stats")["stall"] is None:
                raw.ask("write", encode_batch({b"%d" % written: b"x" * 40_000}))
                written += 1
            numbers = [raw.send("write", encode_batch({b"held-%d" % number: b"1"})) for number in range(10)]
            eventually(lambda: raw.ask("stats")["held_writes"] == 10, "the writes are held")
            os.kill(node.pid_of("writer"), signal.SIGTERM)
            for number in numbers:
                with pytest.raises(WriteStallError, match="stopping; nothing was written"):
                    raw.answer(number)
        finally:
            os.kill(pid, signal.SIGCONT)
        with keyva.open(node.directory) as db:
            assert list(db.iterator(prefix="held-")) == []
            assert len(list(db.iterator())) == written


def test_what_is_held_back_is_bounded_in_bytes(tmp_path: Path) -> None:
    flags = ("--heartbeat-timeout-s=60", "--write-buffer-size=65536", "--max-write-buffer-number=2", "--write-stall-timeout-s=1")
    with RunningNode(tmp_path / "d", *flags) as node, RawClient(node.endpoint) as raw, RawClient(node.endpoint) as other:
        pid = node.pid_of("flusher")
        os.kill(pid, signal.SIGSTOP)
        try:
            written = 0
            while raw.ask("stats")["stall"] is None:
                raw.ask("write", encode_batch({b"%d" % written: b"x" * 40_000}))
                written += 1
            numbers = [raw.send("write", encode_batch({b"held-%d" % number: bytes(8_000_000)})) for number in range(24)]  # 192 MB
            for number in numbers:
                with pytest.raises(WriteStallError, match="nothing was written"):
                    raw.answer(number)
            assert other.ask("hello")["directory"] == node.directory
            assert other.ask("stats")["held_writes"] == 0
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: other.ask("stats")["stall"] is None, "no stall any more")
        assert other.ask("increment", ADD_ONE)[1] == 1
