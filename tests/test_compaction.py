"""Steps are tried on files that exist in memory only: what every step must keep is the newest entry of every key."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from storetools import STORE_ID, small

from keyva.compaction import (
    Step,
    _choose_stop,
    _movable,
    apply_step,
    last_level,
    level_capacity,
    pending_bytes,
    pick_manual,
    pick_step,
    touched,
)
from keyva.manifest import Drain, FileMeta, LogMeta, Manifest, Run
from keyva.options import Options

STYLES = ("lazy_leveled", "leveled", "tiered")
ENTRY_BYTES = 40
Entries = dict[bytes, tuple[int, bytes | None]]
"""Key to (sequence number, value)."""


class Simulation:
    """A store of which only the manifest is real."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.contents: dict[int, Entries] = {}
        self.model: Entries = {}
        self.sequence = 0
        self.number = 1
        self.manifest = Manifest(
            store_id=STORE_ID, generation=2, last_sequence=0, next_number=2, logs=(LogMeta(number=1, first_sequence=1),)
        )
        self.damaged: set[int] = set()
        self.written = 0

    def take_number(self) -> int:
        self.number += 1
        self.manifest = msgspec.structs.replace(self.manifest, next_number=self.number + 1)
        return self.number

    def make_file(self, entries: Entries) -> FileMeta:
        number = self.take_number()
        self.contents[number] = entries
        sequences = [sequence for sequence, _ in entries.values()]
        return FileMeta(
            number=number,
            size_bytes=ENTRY_BYTES * len(entries),
            entries=len(entries),
            tombstones=sum(value is None for _, value in entries.values()),
            smallest=min(entries),
            largest=max(entries),
            smallest_sequence=min(sequences),
            largest_sequence=max(sequences),
            crc32c=0,
        )

    def flush(self, batch: dict[bytes, bytes | None]) -> None:
        entries: Entries = {}
        for key, value in batch.items():
            self.sequence += 1
            entries[key] = (self.sequence, value)
        self.model.update(entries)
        run = Run(id=self.take_number(), files=(self.make_file(entries),))
        self.manifest = msgspec.structs.replace(self.manifest, levels=((run, *self.manifest.levels[0]), *self.manifest.levels[1:]))

    def do(self, step: Step) -> None:
        outputs: list[FileMeta] = []
        if not step.moves:
            merged: Entries = {}
            for files in step.inputs:
                for file in files:
                    assert file.number not in self.damaged
                    for key, entry in self.contents[file.number].items():
                        if file.smallest <= key <= file.largest and step.start <= key and (step.stop is None or key < step.stop):
                            assert key not in merged or merged[key][0] < entry[0], "an older entry would win"
                            merged[key] = entry
            if step.drop_tombstones:
                merged = {key: entry for key, entry in merged.items() if entry[1] is not None}
            keys = sorted(merged)
            per_file = self.options.target_file_size_base // ENTRY_BYTES
            outputs += [self.make_file({key: merged[key] for key in keys[at : at + per_file]}) for at in range(0, len(keys), per_file)]
            self.written += ENTRY_BYTES * len(keys)
        self.manifest = apply_step(self.manifest, step, tuple(outputs), self.take_number())
        self.manifest = msgspec.structs.replace(self.manifest, next_number=self.number + 1)
        self.check()

    def step(self) -> bool:
        step = pick_step(self.manifest, self.options, self.damaged)
        if step is not None:
            self.do(step)
        return step is not None

    def settle(self) -> None:
        for _ in range(10_000):
            if not self.step():
                return
        raise AssertionError("compaction does not come to an end")

    def compact_all(self) -> None:
        for _ in range(10_000):
            step = pick_manual(self.manifest, self.options, None, None, self.damaged)
            if step is None or touched(step, self.damaged):
                return
            self.do(step)
        raise AssertionError("the manual compaction does not come to an end")

    def get(self, key: bytes) -> tuple[int, bytes | None] | None:
        for run in self.manifest.runs():
            for file in run.files:
                if file.smallest <= key <= file.largest and key in self.contents[file.number]:
                    return self.contents[file.number][key]
        return None

    def check(self) -> None:
        self.manifest.check()
        for key, (sequence, value) in self.model.items():
            found = self.get(key)
            if value is None:
                assert found is None or found[1] is None, f"{key!r} has come back"
            else:
                assert found == (sequence, value), key

    @property
    def tombstones(self) -> int:
        return sum(file.tombstones for file in self.manifest.all_files().values())


def random_batch(random: Random, keys: int) -> dict[bytes, bytes | None]:
    first, span = random.randrange(keys), random.choice([5, 50, keys])
    batch: dict[bytes, bytes | None] = {}
    for _ in range(random.choice([1, 10, 60])):
        key = b"%04d" % ((first + random.randrange(span)) % keys)
        batch[key] = None if random.random() < 0.3 else b"%d" % random.randrange(100)
    return batch


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(4))
def test_every_step_keeps_the_newest_entry_of_every_key(style: str, seed: int) -> None:
    random = Random(seed)
    simulation = Simulation(
        small(
            compaction_style=style,
            target_file_size_base=random.choice([400, 800]),
            max_bytes_for_level_base=1600,
            max_compaction_bytes=random.choice([400, 1200, 10**9]),
        )
    )
    for _ in range(100):
        simulation.flush(random_batch(random, 300))
        for _ in range(random.choice([0, 1, 3, 20])):  # flushes arrive between the steps of a drain
            simulation.step()
    simulation.settle()
    assert len(simulation.manifest.levels) > 2
    simulation.compact_all()
    assert simulation.tombstones == 0
    levels = [len(runs) for runs in simulation.manifest.levels]
    assert sum(levels) == 1 and levels[-1] == 1
    assert {key for file in simulation.manifest.all_files() for key in simulation.contents[file]} == {
        key for key, (_, value) in simulation.model.items() if value is not None
    }


@pytest.mark.parametrize("style", STYLES)
def test_a_settled_store_keeps_to_its_shape(style: str) -> None:
    random = Random(5)
    options = small(compaction_style=style, target_file_size_base=400, max_bytes_for_level_base=1600)
    simulation = Simulation(options)
    for _ in range(120):
        simulation.flush(random_batch(random, 500))
        simulation.settle()
        manifest = simulation.manifest
        assert manifest.drain is None
        assert len(manifest.levels[0]) < options.level0_file_num_compaction_trigger
        last = last_level(manifest)
        for level, runs in list(enumerate(manifest.levels))[1:]:
            several = style == "tiered" or (style == "lazy_leveled" and level < last)
            assert len(runs) <= (options.max_runs_per_level - 1 if several else 1)
            assert sum(run.size_bytes for run in runs) <= level_capacity(level, options)
        assert pending_bytes(manifest, options) == 0


@pytest.mark.parametrize("style", STYLES)
def test_sequential_keys_move_down_without_being_rewritten(style: str) -> None:
    simulation = Simulation(small(compaction_style=style, target_file_size_base=400, max_bytes_for_level_base=1600))
    for at in range(100):
        simulation.flush({b"%06d" % (at * 20 + key): b"v" for key in range(20)})
        simulation.settle()
    assert simulation.written == 0
    assert len(simulation.manifest.levels) > 2


def test_a_file_with_tombstones_does_not_move_where_they_can_go() -> None:
    simulation = Simulation(small())
    for at in range(3):
        simulation.flush({b"%06d" % (at * 100 + key): None for key in range(60)})
    simulation.settle()
    assert simulation.manifest.all_files() == {}, "there was nothing to delete"
    assert simulation.manifest.levels == ((),)


def test_tombstones_stay_while_something_older_may_lie_below() -> None:
    options = small(compaction_style="tiered", target_file_size_base=800, max_bytes_for_level_base=10**6)
    simulation = Simulation(options)
    for _ in range(3):
        simulation.flush({b"%04d" % key: b"old" for key in range(0, 60, 2)})
    simulation.settle()
    for _ in range(3):
        simulation.flush({b"%04d" % key: None for key in range(60)})
    simulation.settle()
    assert [len(runs) for runs in simulation.manifest.levels] == [0, 2]
    assert simulation.tombstones == 60, "in front of an older run"
    simulation.compact_all()
    assert simulation.manifest.all_files() == {}


def test_tombstones_of_a_lower_file_stay_for_what_lies_below_its_beginning() -> None:
    """The file that is merged into begins before the step's own keys, and so reaches over an older run that those do not touch."""
    simulation = Simulation(small(compaction_style="leveled", max_bytes_for_level_base=400, target_file_size_base=10**6))

    def entries(first: int, last: int, value: bytes | None) -> Entries:
        found: Entries = {}
        for key in range(first, last):
            simulation.sequence += 1
            found[b"%02d" % key] = (simulation.sequence, value)
        simulation.model.update(found)
        return found

    oldest = entries(0, 5, b"old")
    middle = entries(0, 3, None) | entries(20, 30, b"middle")
    newest = entries(10, 40, b"new")
    runs = [Run(id=simulation.take_number(), files=(simulation.make_file(each),)) for each in (newest, middle, oldest)]
    simulation.manifest = msgspec.structs.replace(simulation.manifest, levels=((), *((run,) for run in runs)))
    step = pick_step(simulation.manifest, simulation.options)
    assert step is not None
    assert (step.level, step.start, step.drop_tombstones) == (1, b"00", False)
    simulation.do(step)
    assert simulation.tombstones == 3


def test_a_step_reads_about_max_compaction_bytes() -> None:
    options = small(target_file_size_base=400, max_compaction_bytes=1200, max_bytes_for_level_base=1600, compaction_style="leveled")
    random = Random(2)
    simulation = Simulation(options)
    drained = 0
    for _ in range(80):
        simulation.flush({b"%04d" % random.randrange(2000): b"x" for _ in range(20)})
        while (step := pick_step(simulation.manifest, options)) is not None:
            if step.drain and not step.moves:
                drained += 1
                size = sum(file.size_bytes for files in step.inputs for file in files)
                # one upper file may lie over several lower ones, which cannot be cut
                assert size <= 3 * options.max_compaction_bytes
            simulation.do(step)
    assert drained > 20


def test_a_drain_is_in_the_manifest_until_it_is_done() -> None:
    options = small(target_file_size_base=400, max_compaction_bytes=400, max_bytes_for_level_base=1600, compaction_style="leveled")
    random = Random(3)
    simulation = Simulation(options)
    drains: list[Drain] = []
    for _ in range(60):
        simulation.flush({b"%04d" % random.randrange(1000): b"x" for _ in range(30)})
        while simulation.step():
            if simulation.manifest.drain is not None:
                drains.append(simulation.manifest.drain)
        assert simulation.manifest.drain is None
    assert len(drains) > 20
    assert all(drain.target_level == drain.level + 1 for drain in drains)


def test_runs_that_arrive_during_a_drain_are_left_out_of_it() -> None:
    options = small(target_file_size_base=400, max_compaction_bytes=400, max_bytes_for_level_base=1600)
    random = Random(6)
    simulation = Simulation(options)
    met = 0
    for _ in range(90):
        simulation.flush({b"%04d" % random.randrange(1000): b"x" for _ in range(30)})
        step = pick_step(simulation.manifest, options)
        drain = simulation.manifest.drain
        if step is not None:
            if step.drain and drain is not None:
                assert {run.id for run in step.upper} == set(drain.runs)
                others = [run for run in simulation.manifest.levels[drain.level] if run.id not in drain.runs]
                met += bool(others)
            simulation.do(step)
    assert met > 0
    simulation.settle()


def test_a_damaged_file_is_left_out_and_level_0_is_merged_among_itself() -> None:
    random = Random(7)
    options = small(target_file_size_base=10_000)
    simulation = Simulation(options)
    for _ in range(3):
        simulation.flush({b"%04d" % random.randrange(300): b"x" for _ in range(60)})
    simulation.settle()
    (bad,) = simulation.manifest.all_files()
    simulation.damaged = {bad}
    for _ in range(60):
        simulation.flush({b"%04d" % random.randrange(300): b"x" for _ in range(60)})
        simulation.settle()
        assert bad in simulation.manifest.all_files()
    assert len(simulation.manifest.levels[0]) <= 8, "reads do not get slower with every flush"
    blocked = pick_manual(simulation.manifest, options, None, None, simulation.damaged)
    assert blocked is not None and touched(blocked, simulation.damaged) == [bad]


def test_a_damaged_file_in_a_drain_stops_neither_other_levels_nor_the_level_itself() -> None:
    random = Random(8)
    options = small(target_file_size_base=2000, max_compaction_bytes=4000)
    simulation = Simulation(options)

    def flush() -> None:
        simulation.flush({b"%04d" % random.randrange(3000): b"x" for _ in range(60)})

    while simulation.manifest.drain is None or simulation.manifest.drain.level != 1:
        if not simulation.step():
            flush()
    runs = [run for run in simulation.manifest.levels[1] if run.id in simulation.manifest.drain.runs]
    bad = runs[-1].files[-1].number
    simulation.damaged = {bad}
    for _ in range(80):
        flush()
        simulation.settle()
    assert bad in simulation.manifest.all_files()
    assert max(len(runs) for runs in simulation.manifest.levels) <= 12, "reads do not get slower with every flush"
    assert simulation.manifest.levels[0] == () or len(simulation.manifest.levels[0]) < options.level0_file_num_compaction_trigger


def test_a_damaged_file_in_the_middle_of_level_0_keeps_its_place_in_time() -> None:
    options = small(level0_file_num_compaction_trigger=3)
    simulation = Simulation(options)
    for at in range(3):
        simulation.flush({b"%02d" % key: b"%d" % at for key in range(at, 60)})
    simulation.damaged = {simulation.manifest.levels[0][1].files[0].number}
    for at in range(3, 30):
        simulation.flush({b"%02d" % key: b"%d" % at for key in range(at, 60)})
        simulation.settle()
    assert len(simulation.manifest.levels[0]) <= 9


def test_a_manual_compaction_of_a_range_leaves_nothing_of_it_above_the_last_level() -> None:
    random = Random(8)
    options = small(compaction_style="tiered", target_file_size_base=400, max_bytes_for_level_base=1600)
    simulation = Simulation(options)
    for _ in range(40):
        simulation.flush(random_batch(random, 300))
        simulation.settle()
    for _ in range(1000):
        step = pick_manual(simulation.manifest, options, b"0100", b"0120")
        if step is None:
            break
        simulation.do(step)
    last = last_level(simulation.manifest)
    for level, runs in enumerate(simulation.manifest.levels):
        inside = [run for run in runs if any(file.smallest <= b"0120" and file.largest >= b"0100" for file in run.files)]
        assert not inside or (level == last and len(inside) == 1)


@pytest.mark.parametrize("style", STYLES)
def test_a_manual_compaction_comes_to_an_end_though_others_write(style: str) -> None:
    random = Random(9)
    options = small(compaction_style=style, target_file_size_base=400, max_bytes_for_level_base=1600)
    simulation = Simulation(options)
    for _ in range(30):
        simulation.flush(random_batch(random, 300))
        simulation.settle()
    simulation.flush(random_batch(random, 300))
    until = simulation.sequence
    steps = 0
    while (step := pick_manual(simulation.manifest, options, None, None, (), until)) is not None:
        steps += 1
        assert steps < 200
        simulation.do(step)
        simulation.flush(random_batch(random, 300))
        simulation.check()
    assert steps > 0
    last = last_level(simulation.manifest)
    for level, runs in enumerate(simulation.manifest.levels):
        old = [run for run in runs if any(file.smallest_sequence <= until for file in run.files)]
        assert not old or (level == last and len(old) == 1)


def test_the_capacity_of_levels_grows_by_the_multiplier() -> None:
    options = small(max_bytes_for_level_base=1000, max_bytes_for_level_multiplier=8)
    assert [level_capacity(level, options) for level in (1, 2, 3)] == [1000, 8000, 64000]


def test_nothing_is_due_in_an_empty_store() -> None:
    simulation = Simulation(small())
    assert pick_step(simulation.manifest, simulation.options) is None
    assert pick_manual(simulation.manifest, simulation.options, None, None) is None
    assert last_level(simulation.manifest) == 1


def some_run(rng: Random, files: int) -> tuple[FileMeta, ...]:
    """Return files whose key ranges ascend and do not touch."""
    ends = sorted(rng.sample(range(10 * files + 50), 2 * files))
    return tuple(
        FileMeta(
            number=1,
            size_bytes=rng.choice((10, 150, 1000)),
            entries=1,
            tombstones=rng.choice((0, 0, 1)),
            smallest=b"%06d" % low,
            largest=b"%06d" % rng.choice((low, high)),
            smallest_sequence=1,
            largest_sequence=1,
            crc32c=0,
        )
        for low, high in zip(ends[::2], ends[1::2], strict=True)
    )


class TestLargeLevels:
    """A level of a store of 100 GB has thousands of files: the choice must not look at all pairs of them, and choose as if it did."""

    @pytest.mark.parametrize("seed", range(300))
    def test_the_choice_is_that_of_looking_at_all_pairs(self, seed: int) -> None:
        rng = Random(seed)
        upper = sorted((file for _ in range(rng.randrange(1, 4)) for file in some_run(rng, rng.randrange(1, 8))), key=lambda f: f.smallest)
        lower = some_run(rng, rng.randrange(8))
        options = small(target_file_size_base=64 * 1024)
        options = msgspec.structs.replace(options, target_file_size_base=1000)
        drop, bytes_max = rng.random() < 0.5, rng.choice((0, 100, 1000, 3000, 10**9))
        movable = _movable(upper, lower, drop, options)
        for at, file in enumerate(upper):
            others = [*upper[:at], *upper[at + 1 :], *lower]
            alone = not any(other.smallest <= file.largest and other.largest >= file.smallest for other in others)
            assert movable[at] == (alone and file.size_bytes >= 125 and not (drop and file.tombstones))
        starts = {file.smallest for file, may in zip(upper, movable, strict=True) if may}
        assert _choose_stop(upper, lower, starts, bytes_max) == self.stop_by_all_pairs(upper, lower, starts, bytes_max)

    def stop_by_all_pairs(
        self, upper: list[FileMeta], lower: tuple[FileMeta, ...], movable_starts: set[bytes], bytes_max: int
    ) -> bytes | None:
        start = upper[0].smallest
        files = [file for file in (*upper, *lower) if file.largest >= start]
        chosen: bytes | None = None
        for bound in sorted({file.smallest for file in files if file.smallest > start}):
            if any(file.smallest < bound <= file.largest for file in lower):
                continue
            size = sum(file.size_bytes for file in files if file.largest < bound)
            size += sum(file.size_bytes // 2 for file in files if file.smallest < bound <= file.largest)
            if chosen is not None and size > bytes_max:
                return chosen
            chosen = bound
            if bound in movable_starts:
                return bound
        return chosen if sum(file.size_bytes for file in files) > bytes_max else None
