from __future__ import annotations

import threading
from random import Random

import pytest
from sortedcontainers import SortedList

from keyva import memtable as memtable_module
from keyva.batch import Batch
from keyva.memtable import ENTRY_OVERHEAD_BYTES, FrozenMemtable, Memtable


def merged(dicts: tuple[Batch, ...]) -> Batch:
    found: Batch = {}
    for data in reversed(dicts):
        found.update(data)
    return found


def everything(frozen: FrozenMemtable, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False) -> list[bytes]:
    """Walk a frozen memtable in pieces of 3, as a merge does."""
    found: list[bytes] = []
    while True:
        keys, values, last = frozen.piece(start, stop, 3, reverse)
        if last is None:
            return found
        assert [merged(frozen.dicts)[key] for key in keys] == values
        found += keys
        if reverse:
            stop = last
        else:
            start = last + b"\0"


def test_the_newest_value_of_a_key_wins_and_the_size_is_counted() -> None:
    memtable = Memtable(1)
    memtable.apply({b"a": b"1", b"b": b"2"}, 10)
    memtable.apply({b"a": None}, 5)
    assert memtable.dicts == ({b"a": None, b"b": b"2"},)
    assert memtable.entries == 2
    assert memtable.size_bytes == 15 + 2 * ENTRY_OVERHEAD_BYTES


def test_a_frozen_memtable_never_changes() -> None:
    memtable = Memtable(1)
    memtable.apply({b"a": b"1"}, 0)
    frozen = memtable.freeze()
    assert memtable.apply({b"a": b"2", b"b": b"2"}, 0), "a layer was added"
    assert not memtable.apply({b"c": b"3"}, 0), "nobody has frozen the new layer"
    assert merged(frozen.dicts) == {b"a": b"1"}
    assert everything(frozen) == [b"a"]
    assert merged(memtable.dicts) == {b"a": b"2", b"b": b"2", b"c": b"3"}


def test_a_freeze_of_an_empty_memtable_stays_empty() -> None:
    memtable = Memtable(1)
    frozen = memtable.freeze()
    memtable.apply({b"a": b"1"}, 0)
    assert everything(frozen) == []
    assert frozen.dicts == ()


def test_layers_stay_few_however_many_snapshots_come_and_go() -> None:
    memtable = Memtable(1)
    deepest = 0
    for at in range(3000):
        memtable.freeze().release()
        memtable.apply({b"%05d" % at: b""}, 0)
        deepest = max(deepest, len(memtable.dicts))
    assert deepest <= 14, "log2(3000) and the top"
    assert len(merged(memtable.dicts)) == 3000


def test_merging_layers_keeps_the_newest_values() -> None:
    random = Random(3)
    memtable = Memtable(1)
    model: Batch = {}
    held: list[tuple[FrozenMemtable, Batch]] = []
    for at in range(800):
        if random.random() < 0.7:
            held.append((memtable.freeze(), dict(model)))
        while held and random.random() < 0.5:
            frozen, state = held.pop(random.randrange(len(held)))
            assert merged(frozen.dicts) == state
            frozen.release()
        batch: Batch = {b"%d" % random.randrange(60): b"%d" % at for _ in range(random.choice([1, 2, 20]))}
        memtable.apply(batch, 0)
        model.update(batch)
        assert merged(memtable.dicts) == model


def test_layers_stay_few_while_every_snapshot_is_held() -> None:
    memtable = Memtable(1)
    held = []
    for at in range(600):
        held.append((memtable.freeze(), at))
        memtable.apply({b"%05d" % (at % 200): b"%d" % at}, 0)
    assert len(memtable.dicts) <= 12
    for frozen, at in held[::37]:
        assert merged(frozen.dicts) == {b"%05d" % (key % 200): b"%d" % key for key in range(at)}


def test_a_memtable_frozen_twice_is_pinned_until_both_let_go() -> None:
    memtable = Memtable(1)
    memtable.apply({b"a": b"1"}, 0)
    first = memtable.freeze()
    second = first.again()
    first.release()
    first.release()
    memtable.apply({b"a": b"2"}, 0)
    assert merged(second.dicts) == {b"a": b"1"}
    second.release()
    memtable.apply({b"a": b"3"}, 0)
    assert not any(layer.pins for layer in memtable._layers)
    assert memtable.dicts[0] == {b"a": b"3"}, "the top layer was written to again"


def test_letting_go_takes_no_lock_for_the_garbage_collector_may_do_it() -> None:
    memtable = Memtable(1)
    memtable.apply({b"a": b"1"}, 0)
    frozen = memtable.freeze()
    with memtable._lock:
        frozen.release()
    assert everything(memtable.freeze()) == [b"a"]


def test_a_batch_that_comes_while_the_keys_are_sorted_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    memtable = Memtable(1)
    memtable.apply({b"a": b"1"}, 0)
    frozen = memtable.freeze()
    memtable.apply({b"a": b"2"}, 0)  # a layer on top, which nobody has pinned
    applying = threading.Thread(target=memtable.apply, args=({b"b": b"2"}, 0))

    class SlowList(SortedList):  # type: ignore[misc]
        def __init__(self, keys: set[bytes]) -> None:
            super().__init__(keys)
            applying.start()
            applying.join(0.05)  # it cannot end before the keys are sorted, or its key would be lost

    monkeypatch.setattr(memtable_module, "SortedList", SlowList)
    assert everything(frozen) == [b"a"]
    applying.join()
    assert everything(memtable.freeze()) == [b"a", b"b"]


def test_a_signal_in_the_middle_of_sorting_leaves_no_half_order(monkeypatch: pytest.MonkeyPatch) -> None:
    memtable = Memtable(1)
    memtable.apply({b"%04d" % key: b"" for key in range(0, 4000, 2)}, 0)
    assert len(everything(memtable.freeze())) == 2000
    memtable.apply({b"0001": b"", b"0003": b""}, 0)

    def interrupted(self: SortedList, keys: list[bytes]) -> None:
        self._maxes.clear()  # half done
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SortedList, "update", interrupted)
        memtable.keys_between(None, None, 1, False)
    memtable.apply({b"0005": b""}, 0)
    assert memtable.keys_between(None, None, 9, False)[:6] == [b"0000", b"0001", b"0002", b"0003", b"0004", b"0005"]


def test_order_is_kept_up_with_writes_between_ordered_reads() -> None:
    random = Random(4)
    memtable = Memtable(1)
    model: Batch = {}
    for _ in range(60):
        batch: Batch = {b"%04d" % random.randrange(3000): b"x" for _ in range(random.choice([1, 10, 300]))}
        memtable.apply(batch, 0)
        model.update(batch)
        if random.random() < 0.4:
            frozen = memtable.freeze()
            start, stop = sorted((b"%04d" % random.randrange(3000), b"%04d" % random.randrange(3000)))
            wanted = sorted(key for key in model if start <= key < stop)
            assert everything(frozen, start, stop) == wanted
            assert everything(frozen, start, stop, reverse=True) == wanted[::-1]
            frozen.release()


def test_order_that_nobody_asks_for_is_dropped() -> None:
    memtable = Memtable(1)
    memtable.apply({b"": b""}, 0)
    assert memtable.keys_between(None, None, 10, False) == [b""]
    for at in range(3000):
        memtable.apply({b"%05d" % at: b""}, 0)
    assert memtable._ordered is None
    assert memtable._pending == set()
    assert memtable.keys_between(b"02998", None, 10, False) == [b"02998", b"02999"]


def test_keys_newer_than_the_freeze_are_passed_over() -> None:
    memtable = Memtable(1)
    memtable.apply({b"a": b"1", b"z": b"1"}, 0)
    frozen = memtable.freeze()
    memtable.apply({b"m%d" % at: b"" for at in range(10)}, 0)
    assert everything(frozen) == [b"a", b"z"]
    keys, _, last = frozen.piece(b"b", None, 5, False)
    assert (keys, last) == ([], b"m4"), "an empty piece that is not the end says how far it looked"
