"""Pipelines on a real node, local and remote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from nodes import RunningNode

import keyva
from keyva.pipeline import CALLS_MAX


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("pipeline") / "d", "--max-batch-size=1000000", "--max-value-size=500000") as running:
        yield running


@pytest.fixture(params=["local", "remote"])
def db(request: pytest.FixtureRequest, node: RunningNode) -> Iterator[keyva.Client]:
    client = keyva.open(node.directory) if request.param == "local" else keyva.connect(node.endpoint)
    with client:
        yield client
        with client.write_batch() as batch:
            for key in client.iterator(include_value=False):
                batch.delete(key)
        client.sequence_reset("s")


def groups(db: keyva.Client) -> int:
    return int(db.stats()["groups"])


def test_results_come_in_order_and_see_what_came_before(db: keyva.Client) -> None:
    with db.pipeline() as pipe:
        pipe.put("a", "1").get("a").increment("n", 5).increment("n").exists("n").delete("a").get("a").get("a", b"none")
        pipe.put("a", "2", content_type="x/y").get_many(["n", "zz", "a"]).sequence_next("s").sequence_next("s")
        assert len(pipe) == 12
        assert db.get("a") is None, "nothing is sent before the end"
    assert pipe.results == [None, b"1", 5, 6, True, None, None, b"none", None, [b"6", None, b"2"], 0, 1]
    assert db.get_typed("a") == (b"2", "x/y")
    assert len(pipe) == 0
    assert pipe.execute() == []


def test_many_writes_are_one_group_and_a_thousand_increments_too(db: keyva.Client) -> None:
    before = groups(db)
    with db.pipeline(sync=True) as pipe:
        for number in range(3000):
            pipe.put(f"{number:05d}", str(number))
    assert groups(db) == before + 1
    assert dict(db.iterator()) == {b"%05d" % number: b"%d" % number for number in range(3000)}
    with db.pipeline() as pipe:
        for _ in range(1500):
            pipe.increment("n")
    assert groups(db) == before + 3
    assert pipe.results == list(range(1, 1501))


def test_what_is_refused_leaves_the_others_alone(db: keyva.Client) -> None:
    db.put("text", "no counter")
    pipe = db.pipeline()
    with db.write_batch() as batch:
        batch.put("in batch", "1")
        pipe.put("a", "1").increment("text").put("a", "2", expect={"a": None}).write(batch).increment("n")
        batch.clear()
    results = pipe.execute(raise_errors=False)
    assert [type(result) for result in results] == [type(None), keyva.NotACounterError, keyva.ConditionFailedError, type(None), int]
    assert db.get_many(["a", "in batch", "n", "text"]) == [b"1", b"1", b"1", b"no counter"]
    pipe.increment("text").put("b", "1")
    with pytest.raises(keyva.NotACounterError):
        pipe.execute()
    assert db.get("b") == b"1"


def test_what_is_refused_in_a_message_of_its_own_leaves_those_behind_it_alone(db: keyva.Client) -> None:
    db.put("text", "no counter")
    pipe = db.pipeline().increment("text").get("text").put("a", "1", expect={"text": None}).get("a").put("a", "2").get("a")
    results = pipe.execute(raise_errors=False)
    assert [type(result) for result in results[::2]] == [keyva.NotACounterError, keyva.ConditionFailedError, type(None)]
    assert results[1::2] == [b"no counter", None, b"2"]


def test_arguments_are_checked_when_they_are_given(db: keyva.Client) -> None:
    pipe = db.pipeline()
    wrong: list[tuple[type[Exception], Any]] = [
        (TypeError, lambda: pipe.put(1, "x")),  # type: ignore[arg-type]
        (TypeError, lambda: pipe.put("x", 1)),  # type: ignore[arg-type]
        (TypeError, lambda: pipe.increment("x", 1.0)),  # type: ignore[arg-type]
        (TypeError, lambda: pipe.put("x", "1", expect={"x": b"1"})),  # type: ignore[arg-type]
        (keyva.InvalidArgumentError, lambda: pipe.get(b"\xff\xff")),
        (keyva.InvalidArgumentError, lambda: pipe.put("x", "1" * 500_001)),
        (keyva.InvalidArgumentError, lambda: pipe.put("x", "1", content_type="")),
        (keyva.CounterOverflowError, lambda: pipe.increment("x", 2**63)),
        (TypeError, lambda: pipe.get_many("abc")),
        (TypeError, lambda: pipe.get_many(b"abc")),  # type: ignore[arg-type]
    ]
    for kind, call in wrong:
        with pytest.raises(kind):
            call()
    assert len(pipe) == 0
    assert CALLS_MAX == 1_000_000


def test_of_a_key_in_two_forms_the_last_entry_is_put(db: keyva.Client) -> None:
    with db.pipeline() as pipe:
        pipe.put_many([("a", "1"), (b"a", "2"), ("a", "3")]).get("a")
    assert pipe.results == [None, b"3"]


def test_a_block_that_raises_sends_nothing(db: keyva.Client) -> None:
    with pytest.raises(ZeroDivisionError), db.pipeline() as pipe:
        pipe.put("a", "1")
        raise ZeroDivisionError
    assert not db.exists("a")
    assert pipe.results == []


def test_large_ones_become_several_messages(db: keyva.Client) -> None:
    values = {b"%d" % number: bytes([number]) * 400_000 for number in range(7)}
    with db.pipeline() as pipe:
        for key, value in values.items():
            pipe.put(key, value)
        pipe.get_many(list(values))
    assert pipe.results == [*[None] * 7, list(values.values())]
    with db.write_batch() as batch:
        for key in list(values)[:3]:
            batch.put(key, values[key])
        with pytest.raises(keyva.InvalidArgumentError, match="max_batch_size"):
            db.pipeline().write(batch)
        batch.clear()


def test_behind_a_message_without_an_answer_nothing_is_sent(node: RunningNode) -> None:
    db = keyva.open(node.directory)
    pipe = db.pipeline()
    pipe.put("a", "1").get("a").put("b", "2")
    db.close()
    results = pipe.execute(raise_errors=False)
    assert isinstance(results[0], keyva.ClosedError)
    assert [type(result) for result in results[1:]] == [keyva.UnavailableError] * 2
    assert "not sent" in str(results[2])
    with pytest.raises(keyva.ClosedError):
        pipe.get("c").execute()
