"""Commands about a whole store: stats, flush, compact, ps, keygen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click

from keyva.cli.bytetext import json_line, parse_argument
from keyva.cli.main import store_options, target_of
from keyva.cli.output import standard_output
from keyva.errors import StoreError, UnavailableError

__all__ = ["compact", "flatten", "flush", "keygen", "ps", "stats", "table_text"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, nested as `Client.stats` returns it.")
@store_options
@click.pass_context
def stats(ctx: click.Context, as_json: bool) -> None:
    """Show the store's figures.

    Counters, sizes, and damage that was found. A table on a terminal; in a pipe one figure a line: name, tab, value.

    \b
    Examples:
      keyva stats
      keyva stats | grep compaction
      keyva stats --json | jq .levels
    """
    out = standard_output()
    with target_of(ctx).client() as client:
        found = client.stats()
    if as_json:
        out.write(json_line(found))
    else:
        click.echo(table_text(("figure", "value"), flatten(found)), nl=False)


def flatten(tree: object, path: str = "") -> list[tuple[str, str]]:
    """Return the leaves of nested dicts and lists as (dotted path, text), in their order; empty ones are "-"."""
    if isinstance(tree, dict):
        children: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list | tuple):
        children = enumerate(tree)
    else:
        return [(path, f"{tree:.6g}" if isinstance(tree, float) else str(tree))]
    found = [leaf for name, child in children for leaf in flatten(child, f"{path}.{name}" if path else str(name))]
    return found or [(path, "-")]


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table drawn for a terminal, or tab-separated lines without a head for a pipe."""
    if sys.stdout is None or not sys.stdout.isatty():
        return "".join("\t".join(row) + "\n" for row in rows)
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@click.command()
@store_options
@click.pass_context
def flush(ctx: click.Context) -> None:
    """Write the memtable to an SST.

    Returns when that is done. What was acknowledged is safe without it; it makes the next start shorter and the logs smaller.

    \b
    Example:
      keyva flush
    """
    with target_of(ctx).client() as client, _waiting("flushing"):
        client.flush()


@click.command()
@click.option("--from", "start", metavar="KEY", help="Begin at this key.")
@click.option("--to", "stop", metavar="KEY", help="Stop before this key.")
@store_options
@click.pass_context
def compact(ctx: click.Context, start: str | None, stop: str | None) -> None:
    """Merge the SSTs of a key range, or all.

    Returns when that is done. Frees the space of overwritten and deleted entries now; the store does the same by itself in time.

    \b
    Examples:
      keyva compact
      keyva compact --from 2023 --to 2024
    """
    target = target_of(ctx)
    bounds = [None if text is None else parse_argument(text, as_hex=target.hex) for text in (start, stop)]
    with target.client() as client, _waiting("compacting"):
        client.compact_range(*bounds)


def _waiting(title: str) -> Any:
    """Return a context manager that shows a spinner on standard error when that is a terminal."""
    from contextlib import nullcontext

    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(title)


@click.command()
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a process; `since` in seconds since 1970.")
@store_options
@click.pass_context
def ps(ctx: click.Context, folder: str | None, as_json: bool) -> None:
    """List the node's processes.

    Of the node that serves DIR (or --dir): role, pid, state, since when, restarts. A table on a terminal; in a pipe one
    process a line, tabs between. Exit code 3 when no node runs there.

    \b
    Examples:
      keyva ps ./data
      keyva ps ./data --json | jq 'select(.restarts > 0)'
    """
    out = standard_output()
    if folder == "":
        raise click.UsageError("DIR is empty; the current directory is .")
    directory = folder
    if directory is None:
        directory, _ = target_of(ctx).locate()
        if directory is None:
            raise click.UsageError("ps needs a directory: the processes are on the node's own host")
    from keyva.client import node_processes

    try:
        processes = node_processes(directory)
    except PermissionError as error:
        raise StoreError(f"no permission to use {directory}: {error.strerror}") from error
    except NotADirectoryError as error:
        raise StoreError(f"{directory} is not a directory") from error
    if not processes:
        raise UnavailableError(f"no node serves {directory}")
    if as_json:
        out.write(b"".join(map(json_line, processes)))
        return
    columns = ("role", "pid", "state", "since", "restarts", "address")
    rows = [[_cell(name, process[name]) for name in columns] for process in processes]
    click.echo(table_text(columns, rows), nl=False)


def _cell(name: str, value: Any) -> str:
    return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds") if name == "since" else str(value)


@click.command()
@click.argument("name")
@click.option("--out", "folder", type=click.Path(file_okay=False), default=".", help="Where to write.  [default: here]")
def keygen(name: str, folder: str) -> None:
    """Make a CURVE key pair for connections over TCP.

    Writes NAME.key (public, to hand out) and NAME.key_secret (readable by you alone). A node that listens beyond
    loopback needs a pair of its own, and a folder with the public keys of the clients it lets in. Files that are there
    already are not replaced.

    \b
    Example:
      keyva keygen node --out keys/node
      keyva keygen alice --out keys/alice
      keyva-node --dir ./data --listen tcp://0.0.0.0:7450 --curve-server-key-file keys/node/node.key_secret \\
          --curve-client-keys-dir keys/clients
      keyva --endpoint tcp://HOST:7450 --curve-server-key node.key \\
          --curve-key keys/alice/alice.key_secret get greeting
    """
    import zmq.auth

    if not name or os.path.basename(name) != name:
        raise click.UsageError(f"NAME must be a file name without folders, not {name!r}")
    public, secret = (os.path.join(folder, f"{name}.{ending}") for ending in ("key", "key_secret"))
    for path in (public, secret):
        if os.path.lexists(path):
            raise click.UsageError(f"{path} is there already; it is not replaced")
    os.makedirs(folder, exist_ok=True)
    umask = os.umask(0o077)  # zmq.auth opens the files itself: the secret one must never be readable by others, not even briefly
    try:
        zmq.auth.create_certificates(folder, name)
    finally:
        os.umask(umask)
    os.chmod(public, 0o644)
    click.echo(f"{public}\n{secret}")
