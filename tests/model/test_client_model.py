"""Random operations on a real node against a dict, through a local and two remote clients, with kills and restarts."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from nodes import RunningNode, free_port

import keyva

KEYS = st.one_of(
    st.binary(max_size=3).filter(lambda key: key[:2] != b"\xff\xff"),
    st.integers(0, 300).map(lambda number: b"key-%04d" % number),
)
VALUES = st.one_of(st.binary(max_size=20), st.integers(0, 3000).map(lambda size: b"v" * size))
FLAGS = ("--write-buffer-size=65536", "--target-file-size-base=65536", "--max-bytes-for-level-base=65536", "--block-size=512")
CLIENTS = st.integers(0, 2)


class Machine(RuleBasedStateMachine):
    """The store is a dict; every client sees every acknowledged write at once."""

    snapshots = Bundle("snapshots")

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="keyva-model-")
        self.port = free_port(2)
        self.model: dict[bytes, bytes] = {}
        self.types: dict[bytes, str] = {}
        self.sequences: dict[str, int] = {}
        self.open_snapshots: list[tuple[Any, dict[bytes, bytes]]] = []
        self.start_node()

    def start_node(self) -> None:
        self.node = RunningNode(self.directory, *FLAGS, f"--listen=tcp://127.0.0.1:{self.port}")
        self.clients = [
            keyva.open(self.directory),
            keyva.connect(self.node.endpoint),
            keyva.connect(f"tcp://127.0.0.1:{self.port}"),
        ]

    def close_clients(self) -> None:
        for snapshot, _ in self.open_snapshots:
            snapshot.close()
        self.open_snapshots = []
        for client in self.clients:
            client.close()

    @rule(who=CLIENTS, key=KEYS, value=VALUES)
    def put(self, who: int, key: bytes, value: bytes) -> None:
        self.clients[who].put(key, value)
        self.model[key] = value
        self.types.pop(key, None)

    @rule(who=CLIENTS, key=KEYS, value=VALUES, kind=st.sampled_from(["text/plain", "image/png"]), stale=st.booleans())
    def put_if_unchanged(self, who: int, key: bytes, value: bytes, kind: str, stale: bool) -> None:
        found = self.clients[who].get_typed(key)
        assert found == (keyva.Typed(self.model[key], self.types.get(key)) if key in self.model else None)
        if stale:
            self.clients[1 - who // 2].put(key, b"somebody else was faster", content_type="text/x-new")
            self.model[key], self.types[key] = b"somebody else was faster", "text/x-new"
            if found != keyva.Typed(b"somebody else was faster", "text/x-new"):
                with pytest.raises(keyva.ConditionFailedError):
                    self.clients[who].put(key, value, content_type=kind, expect={key: found})
                return
        self.clients[who].put(key, value, content_type=kind, expect={key: found})
        self.model[key], self.types[key] = value, kind

    @rule(who=CLIENTS, name=st.sampled_from(["a", "b"]), reset=st.booleans())
    def sequence(self, who: int, name: str, reset: bool) -> None:
        assert self.clients[who].sequence_next(name) == self.sequences.get(name, 0)
        self.sequences[name] = self.sequences.get(name, 0) + 1
        if reset:
            self.clients[who].sequence_reset(name)
            self.sequences[name] = 0

    @rule(who=CLIENTS, calls=st.lists(st.tuples(st.sampled_from(["put", "delete", "get", "increment"]), KEYS, VALUES), max_size=30))
    def pipeline(self, who: int, calls: list[tuple[str, bytes, bytes]]) -> None:
        expected: list[Any] = []
        with self.clients[who].pipeline() as pipe:
            for op, key, value in calls:
                if op == "put":
                    pipe.put(key, value)
                    self.model[key] = value
                    expected.append(None)
                elif op == "delete":
                    pipe.delete(key)
                    self.model.pop(key, None)
                    expected.append(None)
                elif op == "get":
                    pipe.get(key)
                    expected.append(self.model.get(key))
                else:
                    pipe.increment("counter", len(value))
                    self.model[b"counter"] = b"%d" % (int(self.model.get(b"counter", b"0")) + len(value))
                    expected.append(int(self.model[b"counter"]))
                if op in ("put", "delete"):
                    self.types.pop(key, None)
        assert pipe.results == expected

    @rule(who=CLIENTS, key=KEYS)
    def delete(self, who: int, key: bytes) -> None:
        self.types.pop(key, None)
        self.clients[who].delete(key)
        self.model.pop(key, None)

    @rule(who=CLIENTS, by=st.integers(-1000, 1000))
    def increment(self, who: int, by: int) -> None:
        value = int(self.model.get(b"counter", b"0")) + by
        assert self.clients[who].increment("counter", by) == value
        self.model[b"counter"] = b"%d" % value

    @rule(who=CLIENTS, entries=st.dictionaries(KEYS, st.one_of(st.none(), VALUES), max_size=30), fails=st.booleans())
    def batch(self, who: int, entries: dict[bytes, bytes | None], fails: bool) -> None:
        try:
            with self.clients[who].write_batch() as batch:
                for key, value in entries.items():
                    if value is None:
                        batch.delete(key)
                    else:
                        batch.put(key, value)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        for key, value in entries.items():
            self.types.pop(key, None)
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value

    @rule(who=CLIENTS, seed=st.integers(0, 2**32))
    def fill(self, who: int, seed: int) -> None:
        rng = random.Random(seed)
        entries = {b"key-%04d" % rng.randrange(300): rng.randbytes(rng.randrange(200)) for _ in range(100)}
        self.clients[who].put_many(entries)
        self.model |= entries
        for key in entries:
            self.types.pop(key, None)

    @rule(who=CLIENTS, keys=st.lists(KEYS, max_size=20))
    def read(self, who: int, keys: list[bytes]) -> None:
        client = self.clients[who]
        assert client.get_many(keys) == [self.model.get(key) for key in keys]
        assert client.content_types(keys) == [self.types.get(key) for key in keys]
        for key in keys[:3]:
            assert client.get(key, b"absent") == self.model.get(key, b"absent")
            assert client.exists(key) == (key in self.model)

    @rule(who=CLIENTS, start=st.none() | KEYS, stop=st.none() | KEYS, flags=st.tuples(*[st.booleans()] * 3))
    def scan(self, who: int, start: bytes | None, stop: bytes | None, flags: tuple[bool, bool, bool]) -> None:
        include_start, include_stop, reverse = flags
        wanted = [
            (key, value)
            for key, value in sorted(self.model.items(), reverse=reverse)
            if (start is None or key > start or (include_start and key == start))
            and (stop is None or key < stop or (include_stop and key == stop))
        ]
        found = self.clients[who].iterator(start, stop, include_start=include_start, include_stop=include_stop, reverse=reverse)
        assert list(found) == wanted

    @rule(who=CLIENTS, seed=st.integers(0, 2**32), reverse=st.booleans())
    def walk(self, who: int, seed: int, reverse: bool) -> None:
        """next, prev and seek against a sorted list and a gap in it."""
        rng = random.Random(seed)
        keys = sorted(self.model)
        with self.clients[who].iterator(include_value=False, reverse=reverse) as iterator:
            gap = len(keys) if reverse else 0
            for _ in range(20):
                action = rng.randrange(4)
                if action == 0:
                    target = rng.choice([*keys, b"key-0150x", b"", b"zzz"])
                    iterator.seek(target)
                    gap = sum(key < target for key in keys)
                    continue
                forward = (action in (1, 2)) != reverse
                expected = keys[gap] if forward and gap < len(keys) else keys[gap - 1] if not forward and gap > 0 else None
                step = iterator.prev if action == 3 else iterator.__next__
                if expected is None:
                    with pytest.raises(StopIteration):
                        step()
                else:
                    assert step() == expected
                    gap += 1 if forward else -1

    @rule(target=snapshots, who=CLIENTS)
    def take_snapshot(self, who: int) -> Any:
        if len(self.open_snapshots) >= 3:
            return multiple()
        entry = (self.clients[who].snapshot(), dict(self.model))
        self.open_snapshots.append(entry)
        return entry

    @rule(entry=snapshots)
    def read_snapshot(self, entry: tuple[Any, dict[bytes, bytes]]) -> None:
        if not any(entry is other for other in self.open_snapshots):
            return  # closed by a restart
        snapshot, model = entry
        try:
            assert dict(snapshot.iterator()) == model
            assert snapshot.get(b"key-0001") == model.get(b"key-0001")
        except keyva.SnapshotLostError:
            assert self.readers_killed
            self.open_snapshots = [other for other in self.open_snapshots if other is not entry]

    readers_killed = 0

    @rule()
    def flush(self) -> None:
        self.clients[0].flush()

    @rule(who=CLIENTS)
    def compact(self, who: int) -> None:
        self.clients[who].compact_range()

    @rule(role=st.sampled_from(["writer", "flusher", "compactor", "reader-0"]))
    def kill_worker(self, role: str) -> None:
        try:
            os.kill(self.node.pid_of(role), signal.SIGKILL)
        except ProcessLookupError:
            return  # killed a moment ago, and the node has not noticed yet
        self.readers_killed += role == "reader-0"

    @rule(hard=st.booleans())
    def restart(self, hard: bool) -> None:
        self.close_clients()
        if hard:
            self.node.kill()
        assert hard or self.node.stop() == 0
        self.node.__exit__()
        self.start_node()

    @invariant()
    def last_write_is_seen(self) -> None:
        if hasattr(self, "node"):
            assert self.clients[0].get(b"counter") == self.model.get(b"counter")

    def teardown(self) -> None:
        if hasattr(self, "node"):
            self.close_clients()
            self.node.__exit__()
            shutil.rmtree(self.directory)


Machine.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
TestMachine = pytest.mark.timeout(300)(Machine.TestCase)
