"""The reader: every operation over its socket, what it holds for clients, and what it refuses."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nodes import RawClient, RunningNode, eventually

import keyva
from keyva.errors import ProtocolError
from keyva.protocol import encode

END = b"\xff\xff"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with RunningNode(tmp_path / "d", "--readers=2", "--write-buffer-size=200000", "--target-file-size-base=65536") as node:
        yield node


@pytest.fixture
def db(node: RunningNode) -> Iterator[keyva.Client]:
    with keyva.open(node.directory) as db:
        yield db


@pytest.fixture
def reader(node: RunningNode) -> Iterator[RawClient]:
    with RawClient(node.readers[0]) as reader:
        yield reader


def scan_all(reader: RawClient, snapshot: int, start: bytes, stop: bytes, reverse: bool = False) -> tuple[list[tuple[bytes, bytes]], int]:
    """Return a whole range and the number of answers it took."""
    cursor, keys, values = reader.ask("scan", encode([snapshot, start, stop, reverse, True]))
    found, answers = list(zip(keys, values, strict=True)), 1
    while cursor:
        cursor, keys, values = reader.ask("next", encode(cursor))
        found += zip(keys, values, strict=True)
        answers += 1
    return found, answers


def test_hello_says_whose_reader_it_is(node: RunningNode, reader: RawClient, db: keyva.Client) -> None:
    hello = reader.ask("hello")
    assert hello["pid"] == node.pid_of("reader-0")
    assert hello["store_id"] == db.stats()["store_id"]
    assert (hello["protocol"], hello["version"]) == (1, keyva.__version__)


def test_what_was_acknowledged_is_seen_by_every_reader_at_once(node: RunningNode, db: keyva.Client) -> None:
    with RawClient(node.readers[0]) as one, RawClient(node.readers[1]) as two:
        for number in range(200):
            db.put("key", str(number))
            assert one.ask("get", encode([0, b"key"])) == two.ask("get", encode([0, b"key"])) == b"%d" % number


def test_get_many_stops_at_16_mib_and_can_be_asked_again(reader: RawClient, db: keyva.Client) -> None:
    db.put_many({b"big-%d" % number: os.urandom(1_000_000) for number in range(5)})
    db.put_many({f"small-{number}": "x" for number in range(5000)})
    keys = [b"big-%d" % (number % 5) for number in range(1000)]
    values = reader.ask("get_many", encode([0, keys]))
    assert len(values) == 17
    assert values == [db.get(key) for key in keys[:17]]
    mixed = [b"small-%d" % number for number in range(3000)] + keys
    assert len(reader.ask("get_many", encode([0, mixed]))) == 3017
    assert reader.ask("get_many", encode([0, [b"none", b"small-0"]])) == [None, b"x"]
    assert reader.ask("get_many", encode([0, []])) == []


def test_a_snapshot_and_its_cursors_stay_while_the_store_changes(reader: RawClient, db: keyva.Client) -> None:
    rng = random.Random(1)
    entries = {b"%06d" % number: rng.randbytes(200) for number in range(5000)}
    db.put_many(entries)
    number = reader.ask("snapshot")
    cursor, keys, _ = reader.ask("scan", encode([number, b"", END, False, True]))
    assert cursor
    db.put_many(dict.fromkeys(entries, b"new"))
    for key in list(entries)[::3]:
        db.delete(key)
    db.flush()
    db.compact_range()
    wanted = sorted(entries.items())
    assert scan_all(reader, number, b"", END)[0] == wanted
    assert scan_all(reader, number, b"001000", b"002000", reverse=True)[0] == wanted[1000:2000][::-1]
    rest: list[bytes] = []
    while cursor:
        cursor, more, _ = reader.ask("next", encode(cursor))
        rest += more
    assert keys + rest == sorted(entries)
    copy = reader.ask("snapshot", encode(number))
    assert reader.ask("release", encode(number)) is None
    assert reader.ask("get", encode([copy, b"000000"])) == entries[b"000000"]
    assert reader.ask("get", encode([0, b"000000"])) is None
    with pytest.raises(keyva.SnapshotLostError):
        reader.ask("get", encode([number, b"000000"]))


def test_a_scan_without_values_and_of_nothing(reader: RawClient, db: keyva.Client) -> None:
    db.put_many({"a": "1", "b": "2"})
    assert reader.ask("scan", encode([0, b"", END, False, False])) == [0, [b"a", b"b"], None]
    assert reader.ask("scan", encode([0, b"x", b"b", False, True])) == [0, [], []]
    assert reader.ask("scan", encode([0, b"", b"\xff\xff\xff", True, True])) == [0, [b"b", b"a"], [b"2", b"1"]]


def test_large_values_come_in_answers_of_bounded_size(reader: RawClient, db: keyva.Client) -> None:
    entries = {b"%d" % number: os.urandom(900_000) for number in range(6)}
    for key, value in entries.items():
        db.put(key, value)
    found, answers = scan_all(reader, 0, b"", END)
    assert dict(found) == entries
    assert answers >= 3


def test_numbers_it_does_not_know_are_lost_snapshots(reader: RawClient, db: keyva.Client) -> None:
    db.put_many({f"{number}": "x" * 1000 for number in range(500)})
    snapshot = reader.ask("snapshot")
    cursor, *_ = reader.ask("scan", encode([0, b"", END, False, True]))
    for op, body in [
        ("get", [12345, b"a"]),
        ("scan", [12345, b"", END, False, True]),
        ("next", 12345),
        ("next", snapshot),
        ("get", [cursor, b"a"]),
        ("snapshot", 12345),
    ]:
        with pytest.raises(keyva.SnapshotLostError):
            reader.ask(op, encode(body))
    assert reader.ask("release", encode(12345)) is None
    assert reader.ask("close", encode(cursor)) is None
    with pytest.raises(keyva.SnapshotLostError):
        reader.ask("next", encode(cursor))


def test_what_it_cannot_serve_is_refused_with_a_reason(reader: RawClient) -> None:
    refused: list[tuple[str, Any, type[Exception]]] = [
        ("write", {b"a": b"1"}, ProtocolError),
        ("get", [0, b"\xff\xffx"], keyva.InvalidArgumentError),
        ("get", [0, b"x" * 65537], keyva.InvalidArgumentError),
        ("get", [0, None], ProtocolError),
        ("get", [0], ProtocolError),
        ("get", None, ProtocolError),
        ("get", [2**63, b"a"], keyva.SnapshotLostError),
        ("get_many", [0, [b"a", b"\xff\xff"]], keyva.InvalidArgumentError),
        ("get_many", [0, [b""] * 1_000_001], ProtocolError),
        ("scan", [0, b"", END, 1, True], ProtocolError),
        ("scan", [0, None, None, False, True], ProtocolError),
        ("next", "text", ProtocolError),
    ]
    for op, body, error in refused:
        with pytest.raises(error):
            reader.ask(op, encode(body))
    assert reader.ask("get", encode([0, b"a"])) is None


def test_what_it_holds_for_clients_is_bounded(reader: RawClient, db: keyva.Client) -> None:
    db.put("a", "1")
    numbers = [reader.ask("snapshot") for _ in range(4096)]
    assert len(set(numbers)) == 4096
    with pytest.raises(keyva.UnavailableError, match="close some"):
        reader.ask("snapshot")
    assert reader.ask("stats")["held"] == 4096
    assert reader.ask("get", encode([0, b"a"])) == b"1"
    reader.ask("release", encode(numbers[7]))
    reader.ask("snapshot")


def test_a_killed_reader_forgets_and_the_client_is_told(node: RunningNode, db: keyva.Client) -> None:
    db.put_many({f"{number:04d}": "x" * 1000 for number in range(1000)})
    with keyva.connect(node.endpoint) as remote:
        snapshots = [remote.snapshot(), remote.snapshot()]  # one on each reader
        iterators = [remote.iterator(), remote.iterator()]
        firsts = [next(iterator) for iterator in iterators]
        assert firsts == [(b"0000", b"x" * 1000)] * 2
        pid = node.pid_of("reader-0")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: node.pid_of("reader-0") != pid, "a new reader")
        reads: list[Callable[[], object]] = [partial(snapshot.get, "0001") for snapshot in snapshots]
        reads += [partial(list, iterator) for iterator in iterators]
        outcomes: list[object] = []
        for read in reads:
            try:
                outcomes.append(read())
            except keyva.SnapshotLostError:
                outcomes.append("lost")
        rest = [(b"%04d" % number, b"x" * 1000) for number in range(1, 1000)]
        assert sorted(map(str, outcomes)) == sorted(map(str, ["lost", "lost", b"x" * 1000, rest]))
        assert remote.get("0001") == b"x" * 1000
        assert len(list(remote.iterator())) == 1000


def test_a_reader_that_hangs_is_passed_over_and_replaced(tmp_path: Path) -> None:
    flags = ("--readers=2", "--heartbeat-timeout-s=2", "--heartbeat-interval-s=0.2")
    with RunningNode(tmp_path / "d", *flags) as node, keyva.connect(node.endpoint) as remote:
        remote.put("a", "1")
        pid = node.pid_of("reader-1")
        os.kill(pid, signal.SIGSTOP)
        for _ in range(4):
            assert remote.get("a") == b"1"
        eventually(lambda: node.pid_of("reader-1") != pid, "a new reader")
