"""Iterators are held against plyvel's own words (its documentation, "Iterators") and against a plain model of them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nodes import RunningNode
from storetools import ModelIterator

import keyva
from keyva.errors import ClosedError, InvalidArgumentError, UnavailableError
from keyva.iterator import Entries, Iterator, prefix_end, range_bounds
from keyva.options import KEY_BYTES_MAX, RESERVED_PREFIX

DATA = {b"%02d" % key: b"v%d" % key for key in range(0, 40, 2)}


class Fetcher:
    """Serves entries of a dict in pieces of ``size``."""

    def __init__(self, data: dict[bytes, bytes], size: int = 3) -> None:
        self.data = data
        self.size = size
        self.calls = 0

    def __call__(self, start: bytes, stop: bytes, reverse: bool) -> Entries:
        self.calls += 1
        keys = sorted((key for key in self.data if start <= key < stop), reverse=reverse)
        for at in range(0, len(keys), self.size):
            piece = keys[at : at + self.size]
            yield piece, [self.data[key] for key in piece]


def iterate(data: dict[bytes, bytes] = DATA, size: int = 3, low: bytes = b"", high: bytes = RESERVED_PREFIX, **settings: Any) -> Iterator:
    return Iterator(Fetcher(data, size), low, high, **settings)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RunningNode(tmp_path_factory.mktemp("iterator") / "d") as running:
        yield running


@pytest.fixture(scope="module", params=["local", "remote"])
def db(request: pytest.FixtureRequest, node: RunningNode) -> Any:
    """A store that holds `DATA` in one block, so that an iterator loads it as one chunk."""
    with keyva.open(node.directory) if request.param == "local" else keyva.connect(node.endpoint) as client:
        client.put_many(DATA)
        client.flush()
        client.compact_range()
        yield client


MOVES = st.sampled_from(["next", "next", "prev", "start", "stop"]) | st.sampled_from([b"%02d" % key for key in range(41)])
"""What is done to an iterator; a key is sought."""

LOOPS = st.lists(st.just("") | MOVES, max_size=12)
"""What is done between the entries of a ``for`` loop, which is left behind the last one."""


def move(found: Iterator, model: ModelIterator, step: str | bytes) -> None:
    """Move both, and compare what they give."""
    if isinstance(step, bytes):
        found.seek(step)
        model.seek(step)
    elif step == "next":
        assert next(found, None) == model.step(True)
    elif step == "prev":
        try:
            entry = found.prev()
        except StopIteration:
            entry = None
        assert entry == model.step(False)
    elif step == "start":
        found.seek_to_start()
        model.at = 0
    elif step == "stop":
        found.seek_to_stop()
        model.at = len(model.entries)


@given(st.data())
def test_on_a_store_loops_with_moves_inside_match_the_model(db: keyva.Client, data: st.DataObject) -> None:
    reverse = data.draw(st.booleans(), "reverse")
    low, high = data.draw(st.sampled_from([(b"", b"99"), (b"10", b"30"), (b"20", b"20")]), "range")
    with db.iterator(low, high, reverse=reverse) as found:
        model = ModelIterator(sorted((k, v) for k, v in DATA.items() if low <= k < high), reverse)
        for part in data.draw(st.lists(MOVES | LOOPS, max_size=8), "walk"):
            if not isinstance(part, list):
                move(found, model, part)
                continue
            steps = iter(part)
            for entry in found:
                assert entry == model.step(True)
                step = next(steps, None)
                if step is None:
                    break
                move(found, model, step)
            else:
                assert model.step(True) is None


@pytest.mark.parametrize("include", [(True, True), (True, False), (False, True), (False, False)])
def test_a_loop_goes_on_where_a_move_inside_it_leads_at_once(db: keyva.Client, include: tuple[bool, bool]) -> None:
    def shown(*keys: int) -> list[Any]:
        return [(b"%02d" % key if include[0] else b"v%d" % key if include[1] else None, b"v%d" % key)[: 1 + all(include)] for key in keys]

    with db.iterator(include_key=include[0], include_value=include[1]) as found:
        seen = []
        for entry in found:
            seen.append(entry if all(include) else (entry,))
            if len(seen) == 3:
                assert len(found._keys) == len(DATA), "one chunk holds all: a move inside the loop does not come with the next one"
                found.seek(b"30")
            elif len(seen) == 5:
                found.prev()
        assert seen == shown(0, 2, 4, 30, 32, 32, 34, 36, 38)


def test_a_loop_raises_when_the_iterator_is_closed_inside_it(db: keyva.Client) -> None:
    found = db.iterator(include_value=False)
    seen = []
    with pytest.raises(ClosedError):
        for key in found:
            seen.append(key)
            if key == b"06":
                found.close()
    assert seen == [b"00", b"02", b"04", b"06"]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_random_walks_match_the_model(reverse: bool, size: int) -> None:
    random = Random(size)
    for _ in range(40):
        low, high = sorted((b"%02d" % random.randrange(41), b"%02d" % random.randrange(41)))
        found = iterate(size=size, low=low, high=high, reverse=reverse)
        model = ModelIterator(sorted((k, v) for k, v in DATA.items() if low <= k < high), reverse)
        walk: list[str] = []
        for _ in range(60):
            step = random.choice(["next"] * 6 + ["prev"] * 5 + ["seek", "start", "stop", "for"])
            walk.append(step)
            if step == "next":
                assert next(found, None) == model.step(True), walk
            elif step == "prev":
                try:
                    got: Any = found.prev()
                except StopIteration:
                    got = None
                assert got == model.step(False), walk
            elif step == "seek":
                target = b"%02d" % random.randrange(41)
                found.seek(target)
                model.seek(target)
            elif step == "start":
                found.seek_to_start()
                model.at = 0
            elif step == "stop":
                found.seek_to_stop()
                model.at = len(model.entries)
            else:  # leave a loop early, then go on by hand
                for count, entry in enumerate(found):
                    assert entry == model.step(True), walk
                    if count == 4:
                        break
                else:
                    assert model.step(True) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_a_loop_gives_everything_in_order(reverse: bool) -> None:
    assert list(iterate(reverse=reverse)) == sorted(DATA.items(), reverse=reverse)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"include_value": False}, sorted(DATA)),
        ({"include_key": False}, [DATA[key] for key in sorted(DATA)]),
        ({"include_key": False, "include_value": False}, [None] * len(DATA)),
    ],
)
def test_keys_or_values_alone(settings: dict[str, bool], wanted: list[Any]) -> None:
    assert list(iterate(**settings)) == wanted  # type: ignore[arg-type]


def test_prev_after_next_gives_the_same_entry() -> None:
    found = iterate()
    assert next(found) == (b"00", b"v0")
    assert found.prev() == (b"00", b"v0")
    with pytest.raises(StopIteration):
        found.prev()
    assert next(found) == (b"00", b"v0")


def test_prev_from_the_end_walks_back_to_the_beginning() -> None:
    found = iterate()
    list(found)
    back = [found.prev() for _ in DATA]
    assert back == sorted(DATA.items(), reverse=True)
    with pytest.raises(StopIteration):
        found.prev()


def test_an_end_that_was_reached_stays_reached() -> None:
    found = iterate()
    assert len(list(found)) == len(DATA)
    assert list(found) == []
    with pytest.raises(StopIteration):
        next(found)


def test_seek_moves_below_the_target_and_stays_in_the_range() -> None:
    found = iterate(low=b"10", high=b"20")
    found.seek(b"13")
    assert next(found) == (b"14", b"v14")
    found.seek(b"00")
    assert next(found) == (b"10", b"v10")
    found.seek("99")
    with pytest.raises(StopIteration):
        next(found)
    assert found.prev() == (b"18", b"v18")


def test_seek_in_a_reversed_iterator_gives_the_entry_below() -> None:
    found = iterate(reverse=True)
    found.seek(b"14")
    assert next(found) == (b"12", b"v12")
    found.seek(b"13")
    assert next(found) == (b"12", b"v12")
    assert found.prev() == (b"12", b"v12")


def test_the_state_may_be_changed_inside_a_loop() -> None:
    found = iterate()
    seen = []
    for key, _ in found:
        seen.append(key)
        if key == b"04":
            found.seek(b"30")
    assert seen == [b"00", b"02", b"04", b"30", b"32", b"34", b"36", b"38"]


def test_a_range_that_is_upside_down_is_empty() -> None:
    assert list(iterate(low=b"20", high=b"10")) == []
    assert list(iterate(low=b"20", high=b"10", reverse=True)) == []


def test_an_iterator_fetches_in_one_stream() -> None:
    fetcher = Fetcher(DATA)
    found = Iterator(fetcher, b"", RESERVED_PREFIX)
    list(found)
    assert fetcher.calls == 1


def test_close_lets_the_snapshot_go_once() -> None:
    closed: list[int] = []
    with iterate(on_close=lambda: closed.append(1)) as found:
        next(found)
    found.close()
    assert closed == [1]
    calls: list[Any] = [found.__next__, found.prev, found.seek_to_start, found.seek_to_stop, lambda: found.seek(b"1"), lambda: iter(found)]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_a_forgotten_iterator_lets_its_snapshot_go() -> None:
    closed: list[int] = []
    found = iterate(on_close=lambda: closed.append(1))
    next(found)
    del found
    assert closed == [1]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_fetch_that_failed_is_not_taken_for_the_end(size: int) -> None:
    failures = [UnavailableError("nobody answered")] * 2

    def fetch(start: bytes, stop: bytes, reverse: bool) -> Entries:
        for count, chunk in enumerate(Fetcher(DATA, size)(start, stop, reverse)):
            if failures and (count == 2 or size == 100):
                raise failures.pop()
            yield chunk

    found = Iterator(fetch, b"", RESERVED_PREFIX)
    seen: list[Any] = []
    for _ in range(2):
        with pytest.raises(UnavailableError):
            seen.extend(found)
    seen.extend(found)
    assert seen == sorted(DATA.items())


def test_seek_refuses_what_is_no_key() -> None:
    found = iterate()
    with pytest.raises(TypeError):
        found.seek(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        found.seek(b"\xff\xff1")


@pytest.mark.parametrize(
    ("start", "stop", "include_start", "include_stop", "wanted"),
    [
        (None, None, True, False, (b"", b"\xff\xff")),
        (b"a", b"c", True, False, (b"a", b"c")),
        (b"a", b"c", False, False, (b"a\0", b"c")),
        (b"a", b"c", True, True, (b"a", b"c\0")),
        ("ä", "ö", False, True, ("ä".encode() + b"\0", "ö".encode() + b"\0")),
        (None, b"\xff\xff\xff", True, True, (b"", b"\xff\xff")),
    ],
)
def test_range_bounds(start: Any, stop: Any, include_start: bool, include_stop: bool, wanted: tuple[bytes, bytes]) -> None:
    assert range_bounds(start, stop, include_start, include_stop, None) == wanted


@pytest.mark.parametrize("name", ["start", "stop", "prefix"])
def test_a_bound_that_is_no_text_is_refused_as_such_a_key_is(name: str) -> None:
    bounds: dict[str, Any] = {"start": None, "stop": None, "prefix": None, name: "a\ud800"}
    with pytest.raises(InvalidArgumentError, match=f"{name} 'a.*not valid UTF-8"):
        range_bounds(include_start=True, include_stop=False, **bounds)


@given(st.sampled_from([b"", b"\0", b"\1", b"a"]), st.sampled_from([b"", b"\0", b"a"]), st.booleans(), st.booleans())
def test_a_bound_longer_than_any_key_is_cut_and_bounds_the_same_keys(
    more: bytes, last: bytes, include_start: bool, include_stop: bool
) -> None:
    longest = b"k" * (KEY_BYTES_MAX - 1) + b"m"
    bound = longest + b"l" + more
    low, _ = range_bounds(bound, None, include_start, include_stop, None)
    _, high = range_bounds(None, bound, include_start, include_stop, None)
    for key in (longest, longest[:-1] + last, longest[:-1] + b"n", longest[:-2] + b"l", longest[:-1]):
        assert (low <= key) == (bound <= key)
        assert (key < high) == (key < bound)
    assert max(len(low), len(high)) <= KEY_BYTES_MAX + 2
    low, high = range_bounds(None, None, True, False, bound)
    assert not low <= longest < high


def test_a_prefix_excludes_start_and_stop() -> None:
    with pytest.raises(TypeError):
        range_bounds(b"a", None, True, False, b"p")
    with pytest.raises(TypeError):
        range_bounds(None, b"a", True, False, b"p")
    with pytest.raises(TypeError):
        range_bounds(7, None, True, False, None)  # type: ignore[arg-type]


@given(st.binary(max_size=4), st.binary(max_size=5))
def test_a_prefix_range_holds_exactly_the_keys_with_that_prefix(prefix: bytes, key: bytes) -> None:
    if key < RESERVED_PREFIX:
        assert (prefix <= key < prefix_end(prefix)) == key.startswith(prefix)
