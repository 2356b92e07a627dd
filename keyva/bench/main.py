"""The command `keyva-bench`: what to measure, progress while it goes on, and the report."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from keyva.bench.amplification import GROWTH_COLUMNS, cells, growth
from keyva.bench.data import DISTRIBUTIONS, KEY_BYTES
from keyva.bench.machine import machine, room_for, scratch
from keyva.bench.plot import plot_file
from keyva.bench.report import COLUMNS, Measurement, compare_rows, markdown, plain
from keyva.bench.runner import run_workload
from keyva.bench.system import CACHE_BYTES, System, close_all
from keyva.bench.systems import SYSTEMS, available, version_of, why_missing
from keyva.bench.table import COLUMNS as ROW_COLUMNS
from keyva.bench.table import ROWS, hardest, measure_rows, named
from keyva.bench.workloads import WORKLOADS, Plan
from keyva.errors import KeyvaError

__all__ = ["main"]

DEFAULT_WORKLOADS = ("fillbatch", "compact", "readrandom", "readmissing", "readhot", "readseq", "readreverse", "seekrandom")
DEFAULT_SYSTEMS = ("keyva", "plyvel", "rocksdict", "lmdb", "sqlite", "redis")
NUM_MAX = 100_000_000
ROUNDS_MAX = 99
EXIT_BROKEN_PIPE = 141
QUICK_NUM, QUICK_ROUNDS = 50_000, 1
FULL_NUM, FULL_ROUNDS = 10_000_000, 3
MEASURE_SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)


class _Group(click.Group):
    """Turns errors into one line and exit code 1, and lets signals end what was started: stores, servers, temporary directories."""

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **extra)
        except BrokenPipeError:  # of --help
            _leave_pipe()

    def invoke(self, ctx: click.Context) -> Any:
        numbers = [number for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, _interrupt) for number in numbers}
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            _leave_pipe()
        except (KeyvaError, OSError, RuntimeError) as error:
            if os.environ.get("KEYVA_TRACEBACK"):
                raise
            click.echo(f"keyva-bench: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("keyva-bench: interrupted", err=True)
            ctx.exit(130)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _leave_pipe() -> NoReturn:
    """End as SIGPIPE would end it: whoever read standard output has gone, and Python would complain at its last flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(EXIT_BROKEN_PIPE)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="keyva")
def main() -> None:
    """Measure keyva beside the stores a Python program could use instead.

    Workloads have the names of LevelDB's db_bench (16-byte keys, 100-byte values) and of YCSB. Systems take turns, and the ratio is taken
    round by round, for machines are noisy. A system that is not installed is left out, and the report says so:
    pip install 'keyva[bench]', and redis-server for redis.

    \b
    Examples:
      keyva-bench list
      keyva-bench run fillbatch compact readrandom --num 1000000 --rounds 5
      keyva-bench run ycsb-b --system keyva --system lmdb --processes 4
      keyva-bench run fillsync --system keyva --system redis --processes 16 --json result.json
      keyva-bench table --quick         # the project's goals, row by row, in some minutes
      keyva-bench table --full          # and at their full size, in some hours
      keyva-bench measure --num 1000000 # amplification, memory, start, recovery, and how they grow
      keyva-bench plot result.json

    Workloads and systems are described by `keyva-bench list`, everything else in docs/benchmarks.md.
    """


@main.command("list")
def list_() -> None:
    """Show workloads and systems, and which of them can run here."""
    click.echo("workloads:")
    for workload in WORKLOADS.values():
        click.echo(f"  {workload.name:18}{workload.what}")
    click.echo("systems:")
    for kind in SYSTEMS.values():
        missing = why_missing(kind)
        click.echo(f"  {kind.name:18}{kind.setup}{f'  [{missing}]' if missing else f'  [{version_of(kind)}]'}")


def _writable(ctx: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Refuse a report that could not be written before anything is measured."""
    if path is not None and os.path.exists(path):
        if not os.access(path, os.W_OK):
            raise click.BadParameter(f"{path} cannot be written.")
    elif path is not None:
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise click.BadParameter(f"there is no directory {folder}.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise click.BadParameter(f"{folder} cannot be written to.")
    return path


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all measuring commands have."""
    options = [
        click.option("--num", type=click.IntRange(100, NUM_MAX), default=100_000, show_default=True, help="Entries."),
        click.option("--value-size", type=click.IntRange(1, 10_000_000), default=100, show_default=True, help="Bytes of a value."),
        click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), default=3, show_default=True, help="Repetitions."),
        click.option(
            "--cache-size",
            type=click.IntRange(1 << 16, 1 << 40),
            default=CACHE_BYTES,
            show_default=True,
            help="Block cache of each system, bytes.",
        ),
        click.option("--seed", type=int, default=1, show_default=True, help="Where the random numbers begin."),
        click.option(
            "--dir", "parent", type=click.Path(exists=True, file_okay=False), help="Where stores are made (and removed); default: TMPDIR."
        ),
        click.option(
            "--json",
            "json_path",
            type=click.Path(dir_okay=False),
            callback=_writable,
            help="Also write everything as JSON, to this file.",
        ),
        click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("workloads", nargs=-1, type=click.Choice(list(WORKLOADS)), metavar="[WORKLOAD]...")
@click.option(
    "--system",
    "systems",
    multiple=True,
    type=click.Choice(list(SYSTEMS)),
    metavar="NAME",
    help=f"May be repeated; the first is compared to the others.  [default: {', '.join(DEFAULT_SYSTEMS)}]",
)
@click.option("--batch-size", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Entries of a batch.")
@click.option(
    "--distribution", type=click.Choice(list(DISTRIBUTIONS)), default="uniform", show_default=True, help="Of readrandom and overwrite."
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads that share a workload.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that share a workload.")
@click.option("--reads", type=click.IntRange(0, NUM_MAX), default=0, help="Calls of workloads that do not fill.  [default: --num]")
@common_options
def run(
    workloads: Sequence[str],
    systems: Sequence[str],
    batch_size: int,
    distribution: str,
    threads: int,
    processes: int,
    reads: int,
    num: int,
    value_size: int,
    rounds: int,
    cache_size: int,
    seed: int,
    parent: str | None,
    json_path: str | None,
    as_markdown: bool,
) -> None:
    """Run workloads in their order, on one store per system, and compare.

    Each round begins with empty stores. If the first workload reads, the stores are filled (and compacted) before it, unmeasured.
    Without a WORKLOAD these are run: fillbatch, compact, readrandom, readmissing, readhot, readseq,
    readreverse and seekrandom.

    \b
    Columns: entries/s and us/entry over all workers; latency of one call (a batch is one call); and the
    ratio of the first system to this one, the median of the rounds: above 1 where the first is faster.
    """
    if threads > 1 and processes > 1:
        raise click.UsageError("--threads and --processes cannot be combined")
    names = list(workloads or DEFAULT_WORKLOADS)
    chosen, missing = choose(systems or DEFAULT_SYSTEMS)
    alone = {name for name, kind in chosen.items() if processes > 1 and not kind.processes}
    chosen = {name: kind for name, kind in chosen.items() if name not in alone}
    missing |= dict.fromkeys(sorted(alone), "cannot be used by several processes")
    left_out: dict[str, str] = dict(missing)
    for name in names:
        left_out |= {f"{name} on {system}": "does not sync" for system, kind in chosen.items() if WORKLOADS[name].durable and not kind.sync}
    if all(f"{name} on {system}" in left_out for name in names for system in chosen):
        raise nothing_measured(left_out)
    plan = Plan(num, value_size, batch_size, distribution, seed, reads=reads)
    found: dict[tuple[str, str], Measurement] = {}
    with scratch(parent) as directory:
        room_for(directory, len(chosen) * num * (KEY_BYTES + value_size) * 4)
        about = machine(directory)
        turns = random.Random(seed)
        for round_number in range(rounds):
            with opened(chosen, directory, cache_size) as stores:
                if not WORKLOADS[names[0]].fills:
                    for store in stores.values():
                        run_workload(store, WORKLOADS["fillbatch"], plan)
                        store.settle()
                for place, name in enumerate(names):
                    for store in turns.sample(list(stores.values()), len(stores)):
                        label = f"round {round_number + 1}/{rounds}  {name}  {store.name}"
                        workload = WORKLOADS[name]
                        key = (f"{place}:{name}", store.name)
                        if f"{name} on {store.name}" in left_out:
                            continue
                        try:
                            with progress_of(label, None if processes > 1 else workload.total(plan)) as progress:
                                result = run_workload(
                                    store, workload, plan, threads=threads, processes=processes, cache_bytes=cache_size, progress=progress
                                )
                        except NotImplementedError as error:
                            left_out[f"{name} on {store.name}"] = str(error) or "the system has no such call"
                            continue
                        found.setdefault(key, Measurement(name, store.name, type(store).setup)).results.append(result)
    if not found:
        raise nothing_measured(left_out)
    measurements = [found[key] for key in sorted(found, key=lambda key: (int(key[0].split(":")[0]), list(chosen).index(key[1])))]
    rows = compare_rows(measurements)
    click.echo(markdown(COLUMNS, rows) if as_markdown else plain(COLUMNS, rows), nl=False)
    conclude(about, chosen, left_out)
    if json_path:
        settings = {**plan._asdict(), "threads": threads, "processes": processes, "cache_size": cache_size, "rounds": rounds}
        write_json(
            json_path,
            {
                **header(about, chosen, left_out),
                "settings": settings,
                "measurements": [measurement.as_json() for measurement in measurements],
            },
        )


def nothing_measured(left_out: Mapping[str, str]) -> click.UsageError:
    """Return the error that says why there is nothing to report."""
    return click.UsageError("nothing can be measured: " + "; ".join(f"{what} {why}" for what, why in left_out.items()))


def header(about: Mapping[str, Any], systems: Mapping[str, type[System]], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return what every JSON report begins with."""
    versions = {name: {"version": version_of(kind), "setup": kind.setup} for name, kind in systems.items()}
    return {"machine": dict(about), "systems": versions, "left_out": dict(left_out)}


def conclude(about: Mapping[str, Any], systems: Mapping[str, type[System]], left_out: Mapping[str, str]) -> None:
    """Print below a table what its reader must know."""
    click.echo()
    for name, kind in systems.items():
        click.echo(f"{name} {version_of(kind)}: {kind.setup}")
    for name, why in left_out.items():
        click.echo(f"left out: {name}: {why}")
    fields = ("processor", "cores", "memory", "kernel", "file_system", "python", "load")
    click.echo("; ".join(f"{name.replace('_', ' ')} {about[name]}" for name in fields))


def choose(names: Iterable[str]) -> tuple[dict[str, type[System]], dict[str, str]]:
    """Return the systems that can run, and why others cannot."""
    here = available()
    chosen = {name: here[name] for name in dict.fromkeys(names) if name in here}
    missing = {name: why_missing(SYSTEMS[name]) for name in dict.fromkeys(names) if name not in here}
    if not chosen:
        raise click.ClickException(f"none of the systems can run here: {missing}")
    return chosen, missing


@contextmanager
def opened(chosen: Mapping[str, type[System]], parent: str, cache_bytes: int) -> Iterator[dict[str, System]]:
    """Open a new store of every system, and close and remove all of them afterwards."""
    stores: dict[str, System] = {}
    with scratch(parent) as directory:
        try:
            for name, kind in chosen.items():
                path = os.path.join(directory, name)
                os.mkdir(path)
                stores[name] = kind(path, cache_bytes)
            yield stores
        finally:
            close_all(stores)


@contextmanager
def progress_of(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far a workload is (``total`` None: only that it goes on); in a pipe a line when it begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(label, err=True)
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def write_json(path: str, content: object) -> None:
    """Write a report as JSON."""
    text = json.dumps(content, indent=1) + "\n"
    with open(path, "w") as file:
        file.write(text)


@main.command("table")
@click.option("--only", multiple=True, metavar="TEXT", help="Only rows whose name contains this; may be repeated.")
@click.option("--quick", is_flag=True, help=f"Short for --num {QUICK_NUM} --rounds {QUICK_ROUNDS}.")
@click.option("--full", is_flag=True, help=f"Short for --num {FULL_NUM} --rounds {FULL_ROUNDS}, the size the goals are meant for.")
@click.option("--all-peers", is_flag=True, help="A line for each peer, not only for the one that is hardest to reach.")
@common_options
@click.pass_context
def table_command(
    ctx: click.Context,
    only: Sequence[str],
    quick: bool,
    full: bool,
    all_peers: bool,
    num: int,
    value_size: int,
    rounds: int,
    cache_size: int,
    seed: int,
    parent: str | None,
    json_path: str | None,
    as_markdown: bool,
) -> None:
    """Measure the project's goals, row by row.

    A row's ratio is keyva's speed over the peer's (for seconds and bytes the peer's over keyva's), so more is better. Of several peers
    the one that is hardest to reach is shown; the JSON has all of them.

    The goals are meant for --full; with fewer entries stores fit in caches, and what a process takes by itself weighs more in the row
    about memory.
    """
    if quick and full:
        raise click.UsageError("--quick and --full cannot be combined")
    if quick or full:
        given = [name for name in ("num", "rounds") if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
        if given:
            raise click.UsageError(f"--{given[0]} cannot be combined with --quick or --full")
        num, rounds = (QUICK_NUM, QUICK_ROUNDS) if quick else (FULL_NUM, FULL_ROUNDS)
    rows = named(only)
    if not rows:
        raise click.UsageError(
            f"no row's name contains {' or '.join(map(repr, only))}; the rows are: {'; '.join(row.name for row in ROWS)}"
        )
    plan = Plan(num, value_size, seed=seed)
    here = available()
    systems = {name: here[name] for row in rows for name in row.systems if name in here}
    with scratch(parent) as directory:
        room_for(directory, len(systems) * num * (KEY_BYTES + value_size) * 3)
        about = machine(directory)
        results, left_out = measure_rows(rows, plan, rounds, directory, cache_size, lambda text: click.echo(text, err=True))
    shown = [result.cells() for result in (results if all_peers else hardest(results))]
    click.echo(markdown(ROW_COLUMNS, shown) if as_markdown else plain(ROW_COLUMNS, shown), nl=False)
    conclude(about, systems, left_out)
    if json_path:
        settings = {"num": num, "value_bytes": value_size, "rounds": rounds, "seed": seed, "cache_size": cache_size}
        write_json(
            json_path,
            {**header(about, systems, left_out), "settings": settings, "rows": [result.as_json() for result in results]},
        )


@main.command("measure")
@click.option(
    "--system",
    "systems",
    multiple=True,
    type=click.Choice(list(SYSTEMS)),
    metavar="NAME",
    help="May be repeated.  [default: keyva, rocksdict, redis]",
)
@click.option(
    "--size", "sizes", multiple=True, type=click.IntRange(100, NUM_MAX), help="Entries; repeatable. Default: 10^5 to 10^7, up to --num."
)
@common_options
def measure_command(
    systems: Sequence[str],
    sizes: Sequence[int],
    num: int,
    value_size: int,
    rounds: int,
    cache_size: int,
    seed: int,
    parent: str | None,
    json_path: str | None,
    as_markdown: bool,
) -> None:
    """Measure what a store costs beside time, and how its costs grow with the data.

    Each size: filled in random order, overwritten as a whole, settled, read, filled with a full log, killed and started again.
    Written and kept bytes are what the kernel counted (write_bytes of all processes; blocks of the directory) per byte of keys and
    values given. Memory is PSS of the store's own processes; a store in the caller's process has none of its own. Medians of --rounds.
    """
    chosen, missing = choose(systems or ("keyva", "rocksdict", "redis"))
    plan = Plan(num, value_size, seed=seed)
    wanted = sorted(set(sizes)) or [size for size in MEASURE_SIZES if size <= num] or [num]
    with scratch(parent) as directory:
        room_for(directory, max(wanted) * (KEY_BYTES + value_size) * 4)
        about = machine(directory)
        points = growth(chosen, plan, wanted, rounds, directory, cache_size, lambda text: click.echo(text, err=True))
    rows = [cells(point) for point in points]
    click.echo(markdown(GROWTH_COLUMNS, rows) if as_markdown else plain(GROWTH_COLUMNS, rows), nl=False)
    for point in points:
        if point["memory_by_process_bytes"]:
            peaks = point["memory_peak_by_process_bytes"]
            each = [f"{name} {value / 1e6:.0f} ({peaks[name] / 1e6:.0f})" for name, value in point["memory_by_process_bytes"].items()]
            click.echo(f"memory of {point['system']}, {point['entries']:,} entries, MB when quiet (at its peak): {', '.join(each)}")
    conclude(about, chosen, missing)
    if json_path:
        settings = {"sizes": wanted, "value_bytes": value_size, "rounds": rounds, "seed": seed, "cache_size": cache_size}
        write_json(json_path, {**header(about, chosen, missing), "settings": settings, "points": points})


@main.command("plot")
@click.argument("report", type=click.Path(exists=True, dir_okay=False))
@click.option("--to", "target", type=click.Path(file_okay=False), default=".", show_default=True, help="Directory for the pictures.")
def plot_command(report: str, target: str) -> None:
    """Draw the JSON of `run`, `table` or `measure` as PNG files. Needs matplotlib: pip install 'keyva[plot]'."""
    for path in plot_file(report, target):
        click.echo(path)
