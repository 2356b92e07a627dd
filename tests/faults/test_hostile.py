"""Nonsense on every socket: an error answer, or silence and a line in the log; others are served meanwhile."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes import RawClient, RunningNode, eventually

import keyva
from keyva.batch import encode_batch
from keyva.client import node_processes
from keyva.endpoints import running_node
from keyva.errors import ProtocolError
from keyva.options import KEY_BYTES_MAX
from keyva.protocol import Request, decode_body, decode_error, decode_request, decode_response, encode

DEEP = b"\x91" * 100_000 + b"\xc0"
JUNK: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"junk"],
    [b"junk", b"junk"],
    [b"a", b"b", b"c"],
    [b"x"] * 5000,
    [encode(Request(1, "write", 0, 1))],
    [encode([1, "write", -1, 1]), b"\xc0"],
    [encode([1, "write", 0, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**62]), b"\xc0"],
    [encode([1, 7, 0, 1]), b"\xc0"],
    [encode([1, "\u0000" * 300, 0, 1]), b"\xc0"],
    [b"\xdc\xff\xff", b"\xc0"],
    [DEEP, DEEP],
    [encode([1, "write", 0, 1, 0, 0, 0]), DEEP],
    [encode([1, "scan", 0, 1]), DEEP],
    [encode([1, "scan", 0, 1]), encode([0, b"z", b"a", True, True])],
    [encode([1, "get", 0, 1]), encode([0, "text"])],
    [encode([1, "get_many", 0, 1]), encode([0, [b"a", 1]])],
    [encode([1, "next", 0, 1]), encode(12345)],
    [encode([1, "release", 0, 1]), encode(b"x")],
    [encode([1, "compact", 0, 1]), encode([1, 2])],
    [encode([1, "increment", 0, 1]), encode([b"k", 2**64 - 1])],
    [encode([1, "increment", 0, 1]), encode([b"\xff\xff", 1])],
    [encode([1, "increment", 0, 1]), b"\xc1"],
    [encode([1, "update", 0, 1]), encode([{b"k": b"1"}, [[b"k", b"short", None]], {}])],
    [encode([1, "update", 0, 1]), encode([{b"k": b"1"}, [], {b"other": "x/y"}])],
    [encode([1, "update", 0, 1]), encode([{b"k": b"1"}, [], {b"k": "x/y\r\n"}])],
    [encode([1, "update", 0, 1]), encode([[], {}, []])],
    [encode([1, "update", 0, 1]), DEEP],
    [encode([1, "sequence", 0, 1]), encode([b"\xff\xff", False])],
    [encode([1, "sequence", 0, 1]), encode([b"k" * 65536, False])],
    [encode([1, "pipeline", 0, 1]), encode([["pipeline", [["write", {b"k": b"1"}]]]])],
    [encode([1, "pipeline", 0, 1]), encode([["write", {b"\xff\xff": b"1"}], ["increment", "x"], ["stats", None], [1, 2]])],
    [encode([1, "pipeline", 0, 1]), encode([["increment", [b"\xff\xff", 1]], ["sequence", None], ["update", [{}]], ["stats", None]])],
    [encode([1, "pipeline", 0, 2**64 - 1]), encode([["increment", [b"\xff\xff", 1]]] * 3)],
    [encode([1, "pipeline", 7, 2**64 - 1]), encode([["sequence", [b"k", True]]] * 3)],
    [encode([1, "pipeline", 0, 1]), encode([["increment", [b"k", 1]]] * 1025)],
    [encode([1, "get_typed", 0, 1]), encode([0, b"\xff\xff\x01k"])],
    [encode([1, "content_types", 0, 1]), encode([0, [b"k", 1]])],
    [encode([1, "result", 0, 1]), encode(["x"])],
    [encode([1, "idle", 0, 1]), encode("nobody")],
    [encode([1, "ready", 0, 1]), encode(["writer", 0, 1, None])],
    [encode([1, "failed", 0, 1]), encode(["writer", 0, 1])],
    [encode([1, "beat", 0, 1]), encode([[], {}, "x", None])],
    [b"\x00" * 2000, b"\xc0"],
]


def test_no_socket_minds_nonsense(tmp_path: Path) -> None:
    rng = random.Random(7)
    with RunningNode(tmp_path / "d", "--max-value-size=100000", "--max-batch-size=200000") as node, keyva.open(node.directory) as db:
        processes = {role: node.pid_of(role) for role in ("writer", "flusher", "compactor", "reader-0")}
        endpoints = json.loads((tmp_path / "d" / "NODE").read_bytes())["endpoints"]
        with keyva.connect(node.endpoint) as remote:
            for endpoint in (endpoints["writer"], endpoints["jobs"], endpoints["control"], *endpoints["readers"]):
                with RawClient(endpoint) as raw:
                    for message in [*JUNK, *([rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 4))] for _ in range(300))]:
                        raw.socket.send_multipart(message)
                    raw.socket.send_multipart([encode(Request(1, "write", 0, 1)), bytes(1_000_000)])  # over MAXMSGSIZE: cut off
                with keyva.connect(node.endpoint) as fresh:
                    db.put("a", endpoint)
                    assert fresh.get("a") == remote.get("a") == endpoint.encode()
        assert {role: node.pid_of(role) for role in processes} == processes
        assert dict(db.iterator()) == {b"a": endpoints["readers"][-1].encode()}
        assert db.stats()["malformed_messages"] > 0
    assert any("malformed" in line for line in node.log)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xc0", "not a msgpack map"),
        (b"\x80", "empty"),
        (encode({"text": b"1"}), "not bytes"),
        (encode({b"k": 5}), "neither bytes nor nil"),
        (encode({b"ok": b"1", b"\xff\xffk": b"1"}), r"b'\\xff\\xffk' begins with FF FF"),
        (encode({b"k" * (KEY_BYTES_MAX + 1): b"1"}), "longer than"),
        (encode({b"key": b"x" * 5000}), "b'key' has 5000 bytes"),
        (encode({b"key": b"x"}) + b"trailing", "refused|not a msgpack map"),
    ],
)
def test_a_bad_batch_is_refused_whole_and_says_why(tmp_path: Path, body: bytes, says: str) -> None:
    with RunningNode(tmp_path / "d", "--max-value-size=4096") as node, RawClient(node.endpoint) as raw:
        with pytest.raises(keyva.InvalidArgumentError, match=says):
            raw.ask("write", body)
        with pytest.raises(ProtocolError, match="unknown operation 'dance'"):
            raw.ask("dance")
        with pytest.raises(ProtocolError, match="version 9"):
            raw.ask("hello", version=9)
        assert raw.ask("stats")["last_sequence"] == 0


def test_the_library_checks_before_it_sends(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d", "--max-value-size=4096") as node:
        for db in (keyva.open(node.directory), keyva.connect(node.endpoint)):
            with db:
                for call in (
                    lambda db=db: db.put(b"\xff\xffx", b"1"),
                    lambda db=db: db.put(b"k" * 65537, b"1"),
                    lambda db=db: db.put(b"key", b"x" * 4097),
                    lambda db=db: db.put_many({b"fine": b"1", b"key": b"x" * 4097}),
                    lambda db=db: db.get(b"\xff\xffx"),
                    lambda db=db: db.increment(b"n", 2**63),
                ):
                    with pytest.raises(keyva.InvalidArgumentError, match=r"key|increment"):
                        call()  # type: ignore[no-untyped-call]
                for wrong in (
                    lambda db=db: db.put(5, b"1"),
                    lambda db=db: db.put(b"key", 5),
                    lambda db=db: db.get(None),
                    lambda db=db: db.increment(b"n", 1.5),
                    lambda db=db: db.get_many(b"key"),
                ):
                    with pytest.raises(TypeError):
                        wrong()  # type: ignore[no-untyped-call]
                assert list(db) == []


def test_the_largest_key_and_value_go_through(tmp_path: Path) -> None:
    key, value = os.urandom(KEY_BYTES_MAX - 1).rjust(KEY_BYTES_MAX, b"k"), os.urandom(64 * 1024 * 1024)
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db, keyva.connect(node.endpoint) as remote:
        db.put(key, value)
        db.put(b"", b"")
        assert db.get(key) == value
        db.flush()
        assert remote.get(key) == value
        assert dict(remote.iterator()) == {key: value, b"": b""}
        with pytest.raises(keyva.InvalidArgumentError, match="max_value_size"):
            remote.put("k", value + b"x")


@given(st.binary(max_size=200))
def test_decoding_headers_raises_nothing_but_protocol_errors(frame: bytes) -> None:
    for decode in (decode_request, decode_response, decode_body, decode_error):
        try:
            decode(frame)
        except ProtocolError:
            pass


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=20) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.binary(max_size=4) | st.integers(0, 9), inner, max_size=4),
    max_leaves=12,
)
OPS = (
    *("update", "sequence", "pipeline", "get_typed", "content_types"),
    *("hello", "write", "increment", "flush", "stats", "get", "get_many", "scan", "next", "close", "snapshot", "release"),
    *("ps", "idle", "result", "ready", "beat", "failed", "dance", ""),
)
NUMBERS = st.integers(0, 3) | st.integers(0, 2**64 - 1) | st.integers(-(2**63), -1)
HEADERS = st.builds(
    lambda version, op, rest: encode([version, op, *rest]),
    st.just(1) | st.integers(-5, 300),
    st.sampled_from(OPS) | st.text(max_size=10),
    st.lists(NUMBERS, max_size=7),
)
MESSAGES = st.lists(HEADERS | st.binary(max_size=50), max_size=1).flatmap(
    lambda head: st.lists(st.builds(encode, NESTED) | st.binary(max_size=100), min_size=1, max_size=3).map(lambda rest: head + rest)
)


def test_a_live_node_survives_whatever_is_made_up(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db, RawClient(node.endpoint) as asks:
        found = running_node(node.directory)
        assert found is not None
        endpoints = found.endpoints
        before = [process["pid"] for process in node_processes(node.directory)]
        db.put("a\x00known", "1")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        targets = []
        for endpoint in (endpoints.writer, endpoints.readers[0], endpoints.jobs, endpoints.control):
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(endpoint)
            targets.append(socket)

        @settings(max_examples=400, suppress_health_check=list(HealthCheck))
        @given(st.integers(0, 3), MESSAGES)
        def send(target: int, frames: list[bytes]) -> None:
            targets[target].send_multipart(frames)
            while targets[target].poll(0):  # whatever is answered can be decoded
                answer = targets[target].recv_multipart()
                if target != 2:  # jobs are handed out there
                    header, body = answer
                    response = decode_response(header)
                    assert decode_error(body) if response.status == 1 else True
            asks.send("hello")

        try:
            send()
            assert asks.answer(asks.number)["pid"] == node.pid_of("writer")
        finally:
            context.destroy(linger=0)
        assert [process["pid"] for process in node_processes(node.directory)] == before
        assert db.get("a\x00known") == b"1"
        with keyva.connect(node.endpoint) as remote:
            assert dict(remote.iterator()) == dict(db.iterator())
        db.flush()
        db.compact_range()


def test_high_pressure_from_one_client_leaves_others_served(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d") as node, keyva.connect(node.endpoint) as db:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        flood = context.socket(zmq.DEALER)
        flood.setsockopt(zmq.LINGER, 0)
        flood.setsockopt(zmq.SNDHWM, 100)
        flood.connect(node.endpoint)
        sent = 0
        body = encode_batch({b"flood": b"x" * 10_000})
        while sent < 3000:  # never reads an answer
            sent += 1
            flood.send_multipart([msgspec.msgpack.encode([1, "write", 9, sent, sent, 0, 4]), body])
            if sent % 500 == 0:
                assert db.increment("n") == sent // 500
        eventually(lambda: db.get("flood") is not None, "the flood was written")
        flood.close()
        context.term()
