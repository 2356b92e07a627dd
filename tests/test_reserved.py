"""What lies under keys of the store's own: content types and sequences, in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from storetools import SMALL, crash, do_jobs, flush, write

from keyva.batch import Batch, encode_batch
from keyva.errors import ConditionFailedError, CounterOverflowError, InvalidArgumentError
from keyva.maintenance import Maintenance
from keyva.requests import Answer
from keyva.reserved import CONTENT_TYPE_CHARS_MAX, Condition, Typed, Update, check_content_type, sequence_key, type_key, value_digest
from keyva.store import Store, WriteRequest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "store"), SMALL)
    yield store
    store.close()


def update_request(batch: Batch, types: dict[bytes, str] | None = None, *conditions: Condition, **settings: Any) -> WriteRequest:
    return WriteRequest(update=Update(msgspec.Raw(encode_batch(batch)), list(conditions), types or {}), **settings)


def update(store: Store, batch: Batch, types: dict[bytes, str] | None = None, *conditions: Condition) -> Answer:
    return ask(store, update_request(batch, types, *conditions))


def ask(store: Store, request: WriteRequest) -> Answer:
    (answer,) = store.write([request])
    if isinstance(answer, Exception):
        raise answer
    return answer


def take(store: Store, name: bytes, **settings: Any) -> int | None:
    return ask(store, WriteRequest(sequence=(name, False), **settings))[1]


def is_now(value: bytes, kind: str | None = None) -> Condition:
    return Condition(b"k", value_digest(value), kind)


class TestContentTypes:
    def test_a_type_comes_and_goes_with_its_key(self, store: Store) -> None:
        update(store, {b"a": b"1", b"b": b"2"}, {b"a": "text/plain"})
        assert store.get_typed("a") == Typed(b"1", "text/plain")
        assert store.get_typed(b"b") == Typed(b"2", None)
        assert store.get_typed(b"c") is None
        assert store.content_types([b"c", b"a", b"b"]) == [None, "text/plain", None]
        write(store, {b"a": b"3"})
        assert store.get_typed(b"a") == Typed(b"3", None)
        update(store, {b"a": b"4"}, {b"a": "a/b"})
        update(store, {b"a": b"5"})
        assert store.get_typed(b"a") == Typed(b"5", None)
        update(store, {b"a": b"6"}, {b"a": "a/b"})
        write(store, {b"a": None})
        write(store, {b"a": b"7"})
        assert store.get_typed(b"a") == Typed(b"7", None)

    def test_types_are_not_among_the_keys(self, store: Store) -> None:
        update(store, {b"a": b"1", b"\xff\xfe": b"2"}, {b"a": "text/plain", b"\xff\xfe": "x/y"})
        take(store, b"s")
        assert dict(store.iterator()) == {b"a": b"1", b"\xff\xfe": b"2"}
        assert list(store.iterator(start=b"\xff", reverse=True)) == [(b"\xff\xfe", b"2")]
        assert dict(store.iterator(prefix=b"\xff")) == {b"\xff\xfe": b"2"}
        for key in (type_key(b"a"), sequence_key(b"s")):
            with pytest.raises(InvalidArgumentError, match="FF FF"):
                store.get(key)

    def test_in_one_group_the_last_write_decides(self, store: Store) -> None:
        store.write(
            [
                update_request({b"a": b"1", b"b": b"1"}, {b"a": "x/y", b"b": "x/y"}),
                WriteRequest(payload=encode_batch({b"a": b"2"})),
                WriteRequest(increment=(b"b", 1)),
            ]
        )
        assert store.get_typed(b"a") == Typed(b"2", None)
        assert store.get_typed(b"b") == Typed(b"2", "x/y")

    @pytest.mark.parametrize("how", ["crash", "flush", "compact"])
    def test_they_outlive_a_crash_a_flush_and_a_compaction(self, store: Store, how: str) -> None:
        update(store, {b"a": b"1", b"b": b"1"}, {b"a": "x/y", b"b": "x/z"})
        if how != "crash":
            flush(store, maintenance := Maintenance(store))
            if how == "compact":
                maintenance.request_compaction(None, None)
                do_jobs(store, maintenance)
        crash(store)
        store = Store(store.directory, SMALL)
        assert store.get_typed(b"a") == Typed(b"1", "x/y")
        write(store, {b"a": b"2"})  # the writer that was started again knows that there are types
        assert store.get_typed(b"a") == Typed(b"2", None)
        assert store.get_typed(b"b") == Typed(b"1", "x/z")
        store.close()

    @pytest.mark.parametrize(
        ("batch", "types", "says"),
        [
            ({b"a": b"1"}, {b"b": "x/y"}, "b'b', which the batch does not put"),
            ({b"a": None}, {b"a": "x/y"}, "does not put"),
            ({b"a": b"1"}, {b"a": ""}, "1 to 255 characters"),
            ({b"a": b"1"}, {b"a": "x" * 256}, "1 to 255 characters"),
            ({b"a": b"1"}, {b"a": "x/y\r\nSet-Cookie: a"}, "printable"),
            ({b"a": b"1"}, {b"a": "x/ü"}, "printable"),
            ({b"k" * 65536: b"1"}, {b"k" * 65536: "x/y"}, "too long"),
            ({b"\xff\xff": b"1"}, {}, "FF FF"),
            ({}, {}, "empty"),
        ],
    )
    def test_what_is_not_allowed_is_refused_and_nothing_is_written(
        self, store: Store, batch: Batch, types: dict[bytes, str], says: str
    ) -> None:
        before = store.position
        with pytest.raises(InvalidArgumentError, match=says):
            update(store, batch, types)
        assert store.position == before

    def test_a_type_is_text_of_limited_length(self) -> None:
        assert check_content_type(b"k", "x" * CONTENT_TYPE_CHARS_MAX)
        with pytest.raises(TypeError, match="b'k' must be str, not bytes"):
            check_content_type(b"k", b"x/y")  # type: ignore[arg-type]


class TestConditions:
    def test_a_write_is_made_when_all_conditions_hold(self, store: Store) -> None:
        update(store, {b"k": b"1"}, {}, Condition(b"k", None), Condition(b"other", None))
        update(store, {b"k": b"2"}, {b"k": "x/y"}, is_now(b"1"))
        update(store, {b"k": b"3"}, {}, is_now(b"2", "x/y"), Condition(b"other", None))
        assert store.get_typed(b"k") == Typed(b"3", None)

    @pytest.mark.parametrize(
        "condition",
        [Condition(b"k", None), is_now(b"2", "x/y"), is_now(b"1"), is_now(b"1", "x/z"), Condition(b"none", value_digest(b""))],
    )
    def test_else_nothing_is_written(self, store: Store, condition: Condition) -> None:
        update(store, {b"k": b"1"}, {b"k": "x/y"})
        before = store.position
        with pytest.raises(ConditionFailedError, match="nothing was written"):
            update(store, {b"k": b"new", b"j": b"new"}, {}, is_now(b"1", "x/y"), condition)
        assert store.position == before

    def test_of_several_in_one_group_one_wins(self, store: Store) -> None:
        requests = [update_request({b"k": b"%d" % number}, {}, Condition(b"k", None)) for number in range(5)]
        answers = store.write(requests)
        assert [isinstance(answer, ConditionFailedError) for answer in answers] == [False, True, True, True, True]
        assert store.get(b"k") == b"0"


class TestSequences:
    def test_numbers_come_in_order_from_0(self, store: Store) -> None:
        assert [take(store, b"s") for _ in range(3)] == [0, 1, 2]
        assert take(store, b"") == 0
        answers = store.write([WriteRequest(sequence=(b"s", False)) for _ in range(3)])
        assert [answer[1] for answer in answers if isinstance(answer, tuple)] == [3, 4, 5]

    def test_a_reset_begins_anew(self, store: Store) -> None:
        take(store, b"s")
        ask(store, WriteRequest(sequence=(b"s", True)))
        ask(store, WriteRequest(sequence=(b"never used", True)))
        assert take(store, b"s") == 0

    def test_a_repeat_gets_the_same_number_also_after_a_crash(self, store: Store) -> None:
        take(store, b"s")
        as_of = store.position
        again = {"client": 5, "request": 1, "floor": 1, "as_of": as_of}
        assert take(store, b"s", **again) == 1
        crash(store)
        store = Store(store.directory, SMALL)
        assert take(store, b"s", **again, repeated=True) == 1
        assert take(store, b"s") == 2
        store.close()

    def test_names_are_checked_and_the_end_is_an_error(self, store: Store) -> None:
        assert [take(store, b"\xff\xff") for _ in range(2)] == [0, 1], "no key, so nothing is reserved"
        with pytest.raises(InvalidArgumentError, match="65533"):
            take(store, b"s" * 65534)
        assert take(store, b"s" * 65533) == 0
        store._resolve = lambda *_: (encode_batch(last), last, None)  # type: ignore[method-assign]
        last: Batch = {sequence_key(b"s"): b"%d" % (2**63 - 1)}
        ask(store, WriteRequest(payload=b"x"))
        del store._resolve
        with pytest.raises(CounterOverflowError):
            take(store, b"s")
