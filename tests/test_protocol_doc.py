"""A client written from docs/protocol.md alone: ZeroMQ and msgpack, nothing of keyva."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from nodes import RunningNode

PAGE = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text()


class PageClient:
    """Speaks the protocol by the page's tables."""

    def __init__(self, endpoint: str) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.client = int.from_bytes(os.urandom(8), "big") | 1
        self.number = 0
        self.position = 0

    def send(self, op: str, body: Any, number: int, as_of: int, flags: int) -> tuple[int, Any]:
        header = [1, op, self.client, number, number, as_of, flags]
        self.socket.send_multipart([msgspec.msgpack.encode(header), msgspec.msgpack.encode(body)])
        while True:
            assert self.socket.poll(20_000), op
            answer, result = map(msgspec.msgpack.decode, self.socket.recv_multipart())
            version, request, status, position = answer
            assert (version, request) == (1, number)
            assert position >= self.position
            self.position = position
            if status != 2:
                return status, result
            assert isinstance(result, str)

    def ask(self, op: str, body: Any = None, flags: int = 0) -> Any:
        self.number += 1
        status, result = self.send(op, body, self.number, self.position, flags)
        assert status == 0, result
        return result

    def refused(self, op: str, body: Any) -> list[Any]:
        self.number += 1
        status, result = self.send(op, body, self.number, self.position, 0)
        assert status == 1
        assert len(result) == 4
        return list(result)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def test_a_client_written_from_the_page_works(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d") as node:
        writer = PageClient(node.endpoint)
        hello = writer.ask("hello")
        assert {"protocol", "version", "store_id", "directory", "pid", "position", "options", "readers", "listen_readers"} == set(hello)
        assert writer.ask("write", {b"a": b"1", b"b": b"2", b"c": b"3"}) == [3, None]
        assert writer.ask("write", {b"b": None}, flags=2) == [4, None]
        as_of = writer.position
        assert writer.ask("increment", [b"n", 7], flags=4) == [5, 7]
        assert writer.send("increment", [b"n", 7], writer.number, as_of, 1) == (0, [5, 7]), "a repeat gets the same answer"
        name, message, path, offset = writer.refused("increment", [b"a" * 3, 2**63])
        assert (name, path, offset) == ("InvalidArgumentError", "", 0), message
        assert writer.refused("nothing", None)[0] == "ProtocolError"
        digest = hashlib.blake2b(b"3", digest_size=16).digest()
        conditions = [[b"c", digest, None], [b"b", None, None]]
        assert writer.ask("update", [{b"c": b"3"}, conditions, {b"c": "text/plain"}]) == [7, None]
        assert writer.refused("update", [{b"c": b"4"}, conditions, {}])[0] == "ConditionFailedError"
        assert [writer.ask("sequence", [b"s", False])[1] for _ in range(2)] == [0, 1]
        writer.ask("sequence", [b"s", True])
        calls = [["increment", [b"n", 1]], ["sequence", [b"s", False]], ["increment", [b"c", 1]], ["write", {b"d": b"x", b"e": b"y"}]]
        as_of = writer.position
        results = writer.ask("pipeline", calls)
        assert [status for status, _ in results] == [0, 0, 0, 0]
        assert [result[1] for _, result in results] == [8, 0, 4, None]
        assert writer.send("pipeline", calls, writer.number, as_of, 1) == (0, results), "a repeat gets the same answers"
        writer.number += len(calls) - 1
        (first, refused) = writer.ask("pipeline", [["increment", [b"n", 1]], ["increment", [b"d", 1]]])
        assert (first[0], first[1][1], refused[0], refused[1][0]) == (0, 9, 1, "NotACounterError")
        writer.number += 1
        assert writer.refused("pipeline", [])[0] == "ProtocolError"
        writer.ask("write", {b"c": b"3", b"d": None, b"e": None})
        writer.ask("update", [{b"typed": b"1"}, [], {b"typed": "text/plain"}])
        assert writer.ask("flush") is None
        assert writer.ask("compact", [None, None]) is None
        assert writer.ask("stats")["last_sequence"] >= 5
        reader = PageClient(hello["readers"][0])
        assert {"protocol", "version", "store_id", "pid"} == set(reader.ask("hello"))
        assert reader.ask("get", [0, b"a"]) == b"1"
        assert reader.ask("get", [0, b"b"]) is None
        assert reader.ask("get_many", [0, [b"a", b"b", b"c"]]) == [b"1", None, b"3"]
        assert reader.ask("get_typed", [0, b"typed"]) == [b"1", "text/plain"]
        assert reader.ask("get_typed", [0, b"b"]) is None
        assert reader.ask("content_types", [0, [b"a", b"typed"]]) == [None, "text/plain"]
        snapshot = reader.ask("snapshot")
        writer.ask("write", {b"a": b"new"})
        assert reader.ask("get", [snapshot, b"a"]) == b"1"
        assert reader.ask("get", [0, b"a"]) == b"new"
        assert reader.ask("scan", [snapshot, b"", b"d", False, True]) == [0, [b"a", b"c"], [b"1", b"3"]]
        assert reader.ask("scan", [snapshot, b"", b"d", True, False]) == [0, [b"c", b"a"], None]
        assert reader.ask("release", snapshot) is None
        assert reader.refused("get", [snapshot, b"a"])[0] == "SnapshotLostError"
        writer.ask("write", {b"%05d" % number: b"x" * 100 for number in range(5000)})
        cursor, keys, values = reader.ask("scan", [0, b"0", b"1", False, True])
        while cursor:
            cursor, more_keys, more_values = reader.ask("next", cursor)
            keys, values = keys + more_keys, values + more_values
        assert keys == [b"%05d" % number for number in range(5000)]
        assert set(values) == {b"x" * 100}
        control = PageClient(node.endpoint.replace("/writer", "/control"))
        processes = control.ask("ps")
        assert set(processes[0]) == {"role", "pid", "state", "since", "restarts", "address"}
        for client in (writer, reader, control):
            client.close()


@pytest.mark.parametrize("hexed", re.findall(r"(?:header|body) {2,4}((?:[0-9a-f]{2} ?)+)\n +(\[.*\])\n", PAGE), ids=str)
def test_the_examples_are_what_they_say(hexed: tuple[str, str]) -> None:
    data, text = hexed
    assert msgspec.msgpack.decode(bytes.fromhex(data)) == eval(text)  # an expression of this page's own


def test_the_page_names_every_operation() -> None:
    workers = Path(__file__).parent.parent / "workers"
    names = re.findall(r'case "(\w+)":', (workers / "writer.py").read_text())
    names += re.findall(r'^            "(\w+)": self\._\w+,$', (workers / "reader.py").read_text().split("def run")[0], re.MULTILINE)
    assert len(names) > 10
    for name in [*names, "write", "increment"]:
        assert f"`{name}`" in PAGE
