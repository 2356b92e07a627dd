from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storetools import make_run, small

from keyva.batch import Batch
from keyva.cache import BlockCache
from keyva.manifest import LogMeta, Manifest, Run
from keyva.memtable import Memtable
from keyva.merge import MemtableSource, Pieces, RunSource, Source, end_of_range, live_entries, merge
from keyva.version import Version, open_version


class ListSource(Source):
    """Entries in pieces of given lengths."""

    def __init__(self, entries: Batch, sizes: list[int], reverse: bool) -> None:
        self._rest = sorted(entries.items(), reverse=reverse)
        self._sizes = sizes

    def next_piece(self) -> Pieces:
        size = self._sizes.pop(0) if self._sizes else 2
        piece, self._rest = self._rest[:size], self._rest[size:]
        return [key for key, _ in piece], [value for _, value in piece]


def flat(pieces: list[Pieces]) -> list[tuple[bytes, bytes | None]]:
    return [entry for keys, values in pieces for entry in zip(keys, values, strict=True)]


keys = st.binary(max_size=2)
batches = st.dictionaries(keys, st.none() | st.binary(max_size=3), max_size=20)


@given(st.lists(st.tuples(batches, st.lists(st.integers(1, 7), max_size=6)), max_size=6), st.booleans())
def test_a_merge_gives_the_newest_value_of_every_key_in_order(sources: list[tuple[Batch, list[int]]], reverse: bool) -> None:
    wanted: Batch = {}
    for batch, _ in sources:
        wanted.update(batch)
    pieces = list(merge([ListSource(batch, list(sizes), reverse) for batch, sizes in sources], reverse))
    assert flat(pieces) == sorted(wanted.items(), reverse=reverse)
    assert all(keys for keys, _ in pieces)


def test_a_merge_asks_for_more_only_when_more_is_wanted() -> None:
    asked = []

    class Counting(ListSource):
        def next_piece(self) -> Pieces:
            asked.append(self)
            return super().next_piece()

    older = Counting({bytes([n]): b"old" for n in range(0, 40, 2)}, [4] * 5, False)
    newer = Counting({bytes([n]): b"new" for n in range(1, 41, 2)}, [4] * 5, False)
    pieces = merge([older, newer])
    keys, values = next(pieces)
    assert (keys, values) == ([bytes([n]) for n in range(7)], [b"old", b"new"] * 3 + [b"old"])
    assert asked == [older, newer], "one piece each is enough for the first entries"
    next(pieces)
    assert asked == [older, newer, older]


@given(batches)
def test_live_entries_leaves_tombstones_out(batch: Batch) -> None:
    live = list(live_entries([ListSource(batch, [], False)]))
    assert [entry for keys, values in live for entry in zip(keys, values, strict=True)] == sorted(
        (key, value) for key, value in batch.items() if value is not None
    )
    assert all(keys for keys, _ in live), "no empty piece, which would look like the end"


@given(st.sets(keys, min_size=1), keys, st.integers(0, 30), st.booleans())
def test_the_end_of_a_range_lies_behind_its_bound(found: set[bytes], bound: bytes, position: int, reverse: bool) -> None:
    ordered = sorted(found, reverse=reverse)
    position = min(position, len(ordered) - 1)
    end = end_of_range(ordered, bound, position, reverse)
    inside = [key for key in ordered[position:] if (key >= bound if reverse else key <= bound)]
    assert ordered[position:end] == inside


def version_of(directory: str, *runs: Run) -> Version:
    manifest = Manifest(
        store_id=bytes(range(16)),
        generation=2,
        last_sequence=1,
        next_number=1000,
        logs=(LogMeta(number=999, first_sequence=2),),
        levels=(runs,),
    )
    return open_version(directory, manifest, {}, BlockCache(1 << 20, 3600))


def drain(source: Source) -> list[tuple[bytes, bytes | None]]:
    pieces = []
    while (piece := source.next_piece())[0]:
        pieces.append(piece)
    assert source.next_piece() == ([], [])
    return flat(pieces)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_run_gives_exactly_its_range(store_dir: str, reverse: bool) -> None:
    batch: Batch = {b"%04d" % (2 * at): b"%d" % at for at in range(600)}
    ordered = sorted(batch.items())
    files = [dict(ordered[first : first + 200]) for first in (0, 200, 400)]
    run = make_run(store_dir, 1, *files, options=small(block_size=128))
    # the middle file's beginning has moved down: entries below "0500" of it do not count
    trimmed = msgspec.structs.replace(run.files[1], smallest=b"0500")
    version = version_of(store_dir, Run(id=1, files=(run.files[0], trimmed, run.files[2])))
    ordered = [entry for entry in ordered if not b"0400" <= entry[0] < b"0500"]
    random = Random(1)
    bounds = [b"", b"0000", b"0398", b"0399", b"0400", b"0499", b"0500", b"0501", b"0798", b"0800", b"1198", b"1199", b"\xff\xff"]
    bounds += [b"%04d" % random.randrange(1200) for _ in range(15)]
    for start in bounds:
        for stop in bounds:
            if start < stop:
                for readahead in (1, 7):
                    found = drain(RunSource(version, version.runs[0], start, stop, reverse, readahead))
                    assert found == sorted([e for e in ordered if start <= e[0] < stop], reverse=reverse), (start, stop)
    assert drain(RunSource(version, version.runs[0], None, None, reverse)) == sorted(ordered, reverse=reverse)
    version.cache.clear()


def test_a_scan_does_not_push_other_blocks_out_of_the_cache(store_dir: str) -> None:
    batch: Batch = {b"%04d" % at: b"x" * 20 for at in range(2000)}
    version = version_of(store_dir, make_run(store_dir, 1, batch))
    assert len(drain(RunSource(version, version.runs[0], None, None, False))) == 2000
    assert len(version.cache.young) <= 1
    version.cache.clear()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_frozen_memtable_gives_exactly_its_range(reverse: bool) -> None:
    memtable = Memtable(1)
    batch: Batch = {b"%04d" % at: None if at % 3 else b"x" for at in range(0, 2000, 2)}
    memtable.apply(batch, 0)
    frozen = memtable.freeze()
    memtable.apply({b"%04d" % at: b"later" for at in range(2000)}, 0)
    for start, stop in ((None, None), (b"0100", b"0101"), (b"0101", b"0102"), (b"0333", b"1777"), (b"1998", b"9")):
        wanted = [(k, v) for k, v in batch.items() if (start is None or k >= start) and (stop is None or k < stop)]
        assert drain(MemtableSource(frozen, start, stop, reverse)) == sorted(wanted, reverse=reverse)
