"""Choosing compactions: pure functions from a manifest to the next step, and from a step's result to the next manifest.

Lazy leveling (Dayan and Idreos, "Dostoevsky", SIGMOD 2018) by default: levels above the last keep several runs, the last keeps
one. ``leveled`` keeps one run everywhere, ``tiered`` several everywhere; these are the corners of the same scheme.

- Level 0: when it has ``level0_file_num_compaction_trigger`` runs, the oldest of them are merged into level 1.
- Level i: when it has ``max_runs_per_level`` runs or more bytes than its capacity, all its runs are drained into the next level, in
  steps of bounded size from the smallest key up. Each step is put into the manifest: what has moved leaves the inputs by raising
  their ``smallest``. The drain is remembered in the manifest, so that runs that arrive meanwhile are left out of it.
- A file that overlaps nothing moves down without being rewritten.

Invariants: for any key, level i is newer than level i + 1 and within a level a run is newer than those after it; a step takes, for
its key range, all captured runs at once, so that this order holds after every step; at most one step is under way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import NamedTuple

import msgspec

from keyva.manifest import Drain, FileMeta, Manifest, Run
from keyva.options import Options

__all__ = ["Step", "apply_step", "level_capacity", "pending_bytes", "pick_manual", "pick_step", "touched"]

SEQUENCE_MAX = 2**63 - 1

_replace = msgspec.structs.replace


class Step(NamedTuple):
    """A piece of compaction: within [start, stop) the ``upper`` runs (newest first) of ``level`` are merged with ``lower`` files of the
    target run. ``moves`` are files that go down as they are; then nothing is rewritten.
    """

    level: int
    upper: tuple[Run, ...]
    target_level: int
    target_run: int | None
    lower: tuple[FileMeta, ...]
    start: bytes
    stop: bytes | None
    drop_tombstones: bool
    moves: tuple[FileMeta, ...] = ()
    drain: bool = False

    @property
    def inputs(self) -> tuple[tuple[FileMeta, ...], ...]:
        """The runs to merge, oldest first, without files that lie outside of [start, stop)."""
        runs = [self.lower, *(run.files for run in reversed(self.upper))]
        cut = [tuple(file for file in files if self.stop is None or file.smallest < self.stop) for files in runs]
        return tuple(files for files in cut if files)


def level_capacity(level: int, options: Options) -> int:
    """Return how many bytes ``level`` (1 or more) may hold."""
    return int(options.max_bytes_for_level_base * options.max_bytes_for_level_multiplier ** (level - 1))


def last_level(manifest: Manifest) -> int:
    """Return the deepest level that holds anything, at least 1."""
    return max([1, *(number for number, runs in enumerate(manifest.levels) if runs)])


def pending_bytes(manifest: Manifest, options: Options) -> int:
    """Estimate the bytes that compaction still has to move."""
    pending = 0
    for level, runs in enumerate(manifest.levels):
        size = sum(run.size_bytes for run in runs)
        if _is_due(manifest, level, options):
            pending += size
    return pending


def pick_step(manifest: Manifest, options: Options, damaged: Collection[int] = ()) -> Step | None:
    """Return the most urgent step, None when nothing is due. Steps that would read a ``damaged`` file are passed over."""
    due = [level for level in range(len(manifest.levels)) if _is_due(manifest, level, options)]
    candidates = []
    if 0 in due:
        candidates.append(_level0_step(manifest, options))
    drain = _drain_step(manifest, manifest.drain, options) if manifest.drain is not None else None
    if drain is not None and not touched(drain, damaged):
        candidates.append(drain)
    else:
        # A drain that meets a damaged file is given up by the next one: what it has moved has left its runs, so they are runs like others
        candidates += [_level_step(manifest, level, options) for level in due if level]
    for step in candidates:
        if step is not None and not touched(step, damaged):
            return step
    for level in due if damaged else ():
        within = _within_level(manifest, level, options, damaged)
        if within is not None:
            return within
    return None


def pick_manual(
    manifest: Manifest,
    options: Options,
    start: bytes | None,
    stop: bytes | None,
    damaged: Collection[int] = (),
    until: int = SEQUENCE_MAX,
) -> Step | None:
    """Return the next step of a compaction of the keys of [start, stop] that a user asked for, None when it is done.

    Done means: what lies in the range and is not younger than the sequence number ``until`` lies in the last level, in one run. So it
    comes to an end though others go on writing. A step that would read a ``damaged`` file is given, too, for the caller to say so
    (`touched`); but a drain that would is passed over, as in `pick_step`.
    """
    last = last_level(manifest)
    step = _drain_step(manifest, manifest.drain, options) if manifest.drain is not None else None
    if step is None or touched(step, damaged):
        step = None
        for level, runs in enumerate(manifest.levels):
            inside = [run for run in runs if _overlaps_range(run.files, start, stop, until)]
            if not inside or (level == last and len(inside) == 1):
                continue
            if level == 0:
                step = _level0_step(manifest, options, every=True)
            elif level < last:
                step = _level_step(manifest, level, options)
            else:
                step = _merge_level(manifest, level)
            break
    return step


def _is_due(manifest: Manifest, level: int, options: Options) -> bool:
    if level >= len(manifest.levels):
        return False
    runs = manifest.levels[level]
    if level == 0:
        return len(runs) >= options.level0_file_num_compaction_trigger
    if not runs:
        return False
    limit = options.max_runs_per_level if _is_tiered(level, manifest, options) else 2
    return len(runs) >= limit or sum(run.size_bytes for run in runs) > level_capacity(level, options)


def _is_tiered(level: int, manifest: Manifest, options: Options) -> bool:
    """Whether ``level`` may hold more than one run."""
    if options.compaction_style == "leveled":
        return False
    return options.compaction_style == "tiered" or level < last_level(manifest)


def touched(step: Step, damaged: Collection[int]) -> list[int]:
    """Return which of the ``damaged`` files ``step`` would read."""
    return [file.number for files in step.inputs for file in files if file.number in damaged]


def _overlaps_range(files: tuple[FileMeta, ...], start: bytes | None, stop: bytes | None, until: int) -> bool:
    return any(
        (stop is None or file.smallest <= stop) and (start is None or file.largest >= start) and file.smallest_sequence <= until
        for file in files
    )


def _target(manifest: Manifest, level: int, options: Options) -> Run | None:
    """Return the run of ``level`` that is merged into, None when what comes down becomes a new run."""
    runs = manifest.levels[level] if level < len(manifest.levels) else ()
    if not runs or _is_tiered(level, manifest, options):
        return None
    return runs[0] if len(runs) == 1 else None


def _level0_step(manifest: Manifest, options: Options, *, every: bool = False) -> Step | None:
    runs = list(manifest.levels[0])
    if not every:  # the oldest runs, as many as one step may read
        total, count = 0, 0
        for run in reversed(runs):
            total += run.size_bytes
            if count >= options.level0_file_num_compaction_trigger and total > options.max_compaction_bytes:
                break
            count += 1
        runs = runs[len(runs) - count :]
    target = _target(manifest, 1, options)
    if target is not None and _captured(manifest, 1, target):
        target = None  # it is being drained: what arrives now must not be taken for a part of it
    return _plan(manifest, 0, tuple(runs), 1, target, options, bounded=False)


def _captured(manifest: Manifest, level: int, run: Run) -> bool:
    drain = manifest.drain
    return drain is not None and drain.level == level and run.id in drain.runs


def _level_step(manifest: Manifest, level: int, options: Options) -> Step | None:
    target = _target(manifest, level + 1, options)
    step = _plan(manifest, level, manifest.levels[level], level + 1, target, options, bounded=True)
    return step._replace(drain=True) if step is not None else None


def _drain_step(manifest: Manifest, drain: Drain, options: Options) -> Step | None:
    runs = tuple(run for run in manifest.levels[drain.level] if run.id in drain.runs)
    if not runs:
        return None
    targets = manifest.levels[drain.target_level] if drain.target_level < len(manifest.levels) else ()
    target = next((run for run in targets if run.id == drain.target_run), None)
    step = _plan(manifest, drain.level, runs, drain.target_level, target, options, bounded=True)
    return step._replace(drain=True, target_run=drain.target_run) if step is not None else None


def _merge_level(manifest: Manifest, level: int) -> Step:
    """Merge all runs of the last level into its oldest run."""
    *upper, oldest = manifest.levels[level]
    start = min(run.files[0].smallest for run in manifest.levels[level])
    return Step(level, tuple(upper), level, oldest.id, oldest.files, start, None, True)


def _within_level(manifest: Manifest, level: int, options: Options, damaged: Collection[int]) -> Step | None:
    """Merge the newest runs of ``level`` among themselves, while a damaged file keeps them from moving down.

    Takes runs of similar size only, so that what was merged once is not rewritten every time.
    """
    chosen: list[Run] = []
    total = 0
    for run in manifest.levels[level]:
        if any(file.number in damaged for file in run.files) or (len(chosen) >= 2 and run.size_bytes > 2 * total):
            break
        chosen.append(run)
        total += run.size_bytes
    if len(chosen) < max(2, options.level0_file_num_compaction_trigger if level == 0 else options.max_runs_per_level):
        return None
    start = min(run.files[0].smallest for run in chosen)
    return Step(level, tuple(chosen), level, None, (), start, None, False)


def _plan(
    manifest: Manifest, level: int, runs: tuple[Run, ...], target_level: int, target: Run | None, options: Options, *, bounded: bool
) -> Step | None:
    upper_files = sorted((file for run in runs for file in run.files), key=lambda file: file.smallest)
    if not upper_files:
        return None
    lower = target.files if target is not None else ()
    start = upper_files[0].smallest
    drop = _nothing_below(manifest, target_level, target, start)
    movable = _movable(upper_files, lower, drop, options)
    moves = upper_files[: movable.index(False) if False in movable else len(movable)]
    target_id = target.id if target is not None else None
    if moves:
        return Step(level, runs, target_level, target_id, (), start, None, drop, tuple(moves))
    movable_starts = {file.smallest for file, may in zip(upper_files, movable, strict=True) if may}
    stop = _choose_stop(upper_files, lower, movable_starts, options.max_compaction_bytes if bounded else 1 << 62)
    largest = max(file.largest for file in upper_files if stop is None or file.smallest < stop)
    end = min(largest, stop) if stop is not None else largest
    touched = tuple(file for file in lower if file.largest >= start and file.smallest <= end and (stop is None or file.smallest < stop))
    start = min([start, *(file.smallest for file in touched)])  # all of a lower file is rewritten
    drop = _nothing_below(manifest, target_level, target, start)
    return Step(level, runs, target_level, target_id, touched, start, stop, drop)


def _nothing_below(manifest: Manifest, target_level: int, target: Run | None, start: bytes) -> bool:
    """Say whether no run older than the target holds keys from ``start`` on, so that tombstones may go."""
    below = [run for level in manifest.levels[target_level + 1 :] for run in level]
    if target_level < len(manifest.levels):
        # a new run comes in front of the level's others; an existing target is the level's only run or its drain's
        siblings = manifest.levels[target_level]
        position = next((at for at, run in enumerate(siblings) if target is not None and run.id == target.id), -1)
        below += siblings[position + 1 :]
    return all(run.files[-1].largest < start for run in below)


def _movable(upper: list[FileMeta], lower: tuple[FileMeta, ...], drop_tombstones: bool, options: Options) -> list[bool]:
    """Say of each of ``upper``, which ascend by their smallest keys, whether it may go down as it is.

    That is when it is large enough, has no tombstone to drop, and overlaps no other file. Costs O(n log n).
    """
    lower_largest = [file.largest for file in lower]
    found = []
    reached = b""  # the largest key of the files so far
    for at, file in enumerate(upper):
        alone = at == 0 or reached < file.smallest
        alone = alone and (at + 1 == len(upper) or upper[at + 1].smallest > file.largest)
        if alone:
            below = bisect_left(lower_largest, file.smallest)
            alone = below == len(lower) or lower[below].smallest > file.largest
        worth = file.size_bytes * 8 >= options.target_file_size_base and not (drop_tombstones and file.tombstones)
        found.append(alone and worth)
        reached = max(reached, file.largest)
    return found


def _choose_stop(upper: list[FileMeta], lower: tuple[FileMeta, ...], movable_starts: set[bytes], bytes_max: int) -> bytes | None:
    """Return where the step ends: as far as ``bytes_max`` of input reach, never inside a lower file; None for the very end.

    Costs O(n log n): how many bytes lie below a bound comes from sums over the files in the order of their ends.
    """
    start = upper[0].smallest
    files = [*upper, *(file for file in lower if file.largest >= start)]
    smallest, halves_begun = _sums(files, lambda file: file.smallest, lambda file: file.size_bytes // 2)
    largest, sizes_ended = _sums(files, lambda file: file.largest, lambda file: file.size_bytes)
    _, halves_ended = _sums(files, lambda file: file.largest, lambda file: file.size_bytes // 2)
    lower_largest = [file.largest for file in lower]
    chosen: bytes | None = None
    for bound in sorted({key for key in smallest if key > start}):
        inside = bisect_left(lower_largest, bound)
        if inside < len(lower) and lower[inside].smallest < bound:
            continue
        ended = bisect_left(largest, bound)
        # of a file that reaches over the bound half is counted: how much of it lies below is not known without its index
        size = sizes_ended[ended] + halves_begun[bisect_left(smallest, bound)] - halves_ended[ended]
        if chosen is not None and size > bytes_max:
            return chosen
        chosen = bound
        if bound in movable_starts:
            return bound
    return chosen if chosen is not None and sizes_ended[-1] > bytes_max else None


def _sums(files: list[FileMeta], key: Callable[[FileMeta], bytes], size: Callable[[FileMeta], int]) -> tuple[list[bytes], list[int]]:
    """Return the files' keys in order, and for each position the sizes of all files before it together."""
    ordered = sorted(files, key=key)
    return [key(file) for file in ordered], [0, *accumulate(map(size, ordered))]


def apply_step(manifest: Manifest, step: Step, outputs: tuple[FileMeta, ...], run_id: int) -> Manifest:
    """Return ``manifest`` with ``step`` done: inputs gone or cut, ``outputs`` (or the moved files) in the target run.

    ``run_id`` names the target run when the step makes a new one. Generation and numbers are left to the caller.
    """
    arriving = step.moves or outputs
    done_upper = {file.number for file in step.moves}
    upper_ids = {run.id for run in step.upper}
    levels = [list(runs) for runs in manifest.levels]
    while len(levels) <= step.target_level:
        levels.append([])
    gone: list[int] = []
    for at, run in enumerate(levels[step.level]):
        if run.id in upper_ids:
            files = []
            for file in run.files:
                if step.moves:
                    if file.number not in done_upper:
                        files.append(file)
                elif step.stop is None or file.largest < step.stop:
                    gone.append(file.number)
                else:
                    files.append(_replace(file, smallest=max(file.smallest, step.stop)))
            levels[step.level][at] = _replace(run, files=tuple(files))
    replaced = {file.number for file in step.lower}
    gone += replaced
    target_run = step.target_run if step.target_run is not None else run_id
    _put_into_run(levels, step, target_run, replaced, arriving)
    drain = manifest.drain
    if step.drain:
        left = tuple(run.id for run in levels[step.level] if run.id in upper_ids and run.files)
        drain = Drain(level=step.level, runs=left, target_level=step.target_level, target_run=target_run) if left else None
    kept = tuple(tuple(run for run in runs if run.files) for runs in levels)
    while len(kept) > 1 and not kept[-1]:
        kept = kept[:-1]
    return _replace(manifest, levels=kept, drain=drain, obsolete=(*manifest.obsolete, *sorted(gone)))


def _put_into_run(levels: list[list[Run]], step: Step, target_run: int, replaced: set[int], arriving: tuple[FileMeta, ...]) -> None:
    runs = levels[step.target_level]
    for at, run in enumerate(runs):
        if run.id == target_run:
            files = [file for file in run.files if file.number not in replaced] + list(arriving)
            runs[at] = _replace(run, files=tuple(sorted(files, key=lambda file: file.smallest)))
            return
    if arriving:
        new = Run(id=target_run, files=tuple(sorted(arriving, key=lambda file: file.smallest)))
        # newest of its level; level 0 may have got newer runs while its newest were merged among themselves
        at = 0
        if step.target_level == step.level:
            first = next(at for at, run in enumerate(runs) if run.id == step.upper[0].id)
            at = first
        runs.insert(at, new)
