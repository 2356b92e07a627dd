"""The commands load and dump: a store as JSON lines, one entry each.

    {"key": "user:1", "value": "Ada"}            both are UTF-8 text
    {"key_b64": "AP8Q", "value_b64": "yv4="}     any bytes, base64 (RFC 4648, section 4); each field for itself
    {"key_hex": "00ff10", "value_hex": "cafe"}   taken by load, written by dump --hex
    {"key": "a", "value": "", "content_type": "text/plain"}   only where the entry has a content type

Sequences are not part of a dump: they have no keys, and no client can list them. A copy of the directory has them.

Invariants: dump writes a consistent view; load writes in the order of the input, each batch atomically, and when it stops early it
says which lines are in the store.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol

import click

from keyva.cli.bytetext import check_fields, field_bytes, json_line, numbered_lines, parse_json, put_field
from keyva.cli.data import sync_option
from keyva.cli.main import Interrupted, exit_code_of_stop, store_options, target_of
from keyva.cli.output import output_file, standard_input, standard_output
from keyva.cli.scan import Bounds, check_range, range_options
from keyva.errors import InvalidArgumentError, KeyvaError, OutcomeUnknownError

if TYPE_CHECKING:
    from keyva import Client

__all__ = ["dump", "load"]

BATCH_ENTRIES_MAX = 1000
BATCH_BYTES_MAX = 1024 * 1024
_PROGRESS_EVERY = 500  # lines between two updates of the bar

Entry = tuple[bytes, bytes]


class _Progress(Protocol):
    def __call__(self, amount: int, entries: int) -> None: ...


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[_Progress]:
    """Show a bar on standard error when that is a terminal: ``total`` bytes, or a count of entries when it is None."""
    if not sys.stderr.isatty():
        yield lambda amount, entries: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    sized = (BarColumn(), DownloadColumn(), TimeRemainingColumn()) if total is not None else (SpinnerColumn(),)
    columns = (TextColumn("{task.description}"), *sized, TextColumn("{task.fields[entries]} entries"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, entries=0)
        yield lambda amount, entries: progress.update(task, completed=amount, entries=entries)


@click.command()
@click.argument("file", type=click.Path(allow_dash=True), default="-")
@range_options
@store_options
@click.pass_context
def dump(ctx: click.Context, file: str, prefix: str | None, start: str | None, stop: str | None) -> None:
    """Write all entries, or a range, as JSON lines.

    To FILE or standard output. An entry is {"key": "...", "value": "..."}; a field that is not UTF-8 text is "key_b64"
    or "value_b64" in base64 (with --hex all are "key_hex" and "value_hex"). An entry that was put with a content type
    has a "content_type" as well. The dump is the store as it was at one moment.

    FILE appears, or is replaced, when it is complete; a new one is readable by you alone. A fifo or device is written
    to as it is.

    Sequences (GET /seq/NAME, sequence_next) are not part of a dump. Where they matter, stop the node and copy the
    directory: the copy has all that is in the store.

    \b
    Examples:
      keyva dump backup.jsonl
      keyva dump --prefix user: | gzip > users.jsonl.gz
      keyva --dir old dump | keyva --dir new load
    """
    target = target_of(ctx)
    bounds = check_range(prefix, start, stop, as_hex=target.hex)
    if file == "-":
        out = standard_output()
        with target.client() as client:
            _dump_entries(client, out, bounds, target.hex)
        out.flush()
    else:
        with target.client() as client, output_file(file) as out:
            _dump_entries(client, out, bounds, target.hex)


def _dump_entries(client: Client, out: IO[bytes], bounds: Bounds, as_hex: bool) -> None:
    count = written = 0
    with progress_bar("dump", None) as show, client.snapshot() as snapshot, snapshot.iterator(**bounds) as entries:
        for part in _parts(entries):
            kinds = snapshot.content_types([key for key, _ in part])
            for (key, value), kind in zip(part, kinds, strict=True):
                line: dict[str, Any] = {}
                put_field(line, "key", key, as_hex=as_hex)
                put_field(line, "value", value, as_hex=as_hex)
                if kind is not None:
                    line["content_type"] = kind
                written += out.write(json_line(line))
            count += len(part)
            show(written, count)


def _parts(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in lists: asking for content types one by one would cost a message each over an endpoint."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += len(entry[0]) + len(entry[1])
        if len(part) >= BATCH_ENTRIES_MAX or size >= BATCH_BYTES_MAX:
            yield part
            part, size = [], 0
    if part:
        yield part


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-")
@sync_option
@store_options
@click.pass_context
def load(ctx: click.Context, file: str, sync: bool | None) -> None:
    """Put the entries of JSON lines into the store.

    From FILE or standard input. Reads what `keyva dump` writes: {"key": "...", "value": "..."}, with
    "key_b64"/"value_b64" (base64) or "key_hex"/"value_hex" for any bytes, and a "content_type" where an entry is to
    have one. Writes in batches, in the order of the lines; a later line wins over an earlier one. At a bad line it
    stops: the lines before it are in the store, and the message says so. The directory is made when it is not there.
    Sequences are not part of a dump (see `keyva dump --help`).

    \b
    Examples:
      keyva load backup.jsonl
      zcat users.jsonl.gz | keyva load
      echo '{"key": "a", "value_b64": "AAEC"}' | keyva load -
    """
    target = target_of(ctx)
    stream = standard_input() if file == "-" else open(file, "rb")  # noqa: SIM115 - standard input stays open
    try:
        with target.client(create=True) as client:
            count = _load_lines(client, stream, "standard input" if file == "-" else file, sync)
    finally:
        if file != "-":
            stream.close()
    if sys.stderr.isatty():
        click.echo(f"{count} entries loaded", err=True)


def _load_lines(client: Client, stream: IO[bytes], name: str, sync: bool | None) -> int:
    """Load all lines and return their number; errors name the line, and the last line that is in the store."""
    batch = _Pending(client, sync, name)
    bytes_read = 0
    with progress_bar("load", _size_of(stream)) as show:
        try:
            for number, line in numbered_lines(stream):
                batch.make_room(len(line))
                try:
                    batch.add(number, *_parse_entry(line))
                except InvalidArgumentError as error:
                    batch.write()
                    raise InvalidArgumentError(f"{name}: line {number}: {error}; {batch.done()}") from None
                bytes_read += len(line)
                batch.make_room(0)
                if number % _PROGRESS_EVERY == 0:
                    show(bytes_read, batch.entries)
            batch.write()
        except KeyboardInterrupt as stop:
            raise Interrupted(f"{name}: interrupted; {batch.done_when_stopped()}", exit_code_of_stop(stop)) from None
    return batch.entries


def _parse_entry(line: bytes) -> tuple[bytes, bytes, str | None]:
    entry = parse_json(line)
    check_fields(entry, ("content_type",), ("key", "value"))
    key, value = field_bytes(entry, "key"), field_bytes(entry, "value")
    assert key is not None
    assert value is not None
    kind = entry.get("content_type")
    if "content_type" in entry and not isinstance(kind, str):
        raise InvalidArgumentError("'content_type' must be text")
    return key, value, kind


class _Pending:
    """The entries read but not yet written, and what is known of those before them."""

    def __init__(self, client: Client, sync: bool | None, name: str) -> None:
        self._client = client
        self._sync = sync
        self._name = name
        self._batch = client.write_batch(sync=sync)
        self._bytes = 0
        self._first_line = self._last_line = 0
        self._written_line = 0
        self.entries = 0
        self._waiting = 0
        self._sent = False  # and not answered

    def add(self, number: int, key: bytes, value: bytes, content_type: str | None) -> None:
        """Take the entry of line ``number``; raises `InvalidArgumentError` for one that the store would refuse."""
        self._batch.put(key, value, content_type=content_type)
        self._first_line = self._first_line or number
        self._last_line = number
        self._bytes += len(key) + len(value)
        self._waiting += 1

    def make_room(self, size_bytes: int) -> None:
        """Write what waits when it is as much as one batch should hold together with ``size_bytes`` more."""
        if self._waiting >= BATCH_ENTRIES_MAX or self._bytes + size_bytes >= BATCH_BYTES_MAX:
            self.write()

    def write(self) -> None:
        """Write what waits, atomically; an error says which lines are in the store."""
        if not self._waiting:
            return
        try:
            self._sent = True
            self._batch.write()
            self._sent = False
        except OutcomeUnknownError as error:
            unknown = f"lines {self._first_line} to {self._last_line} are or are not (all of them or none)"
            raise OutcomeUnknownError(f"{self._name}: {error}; {self.done()}, {unknown}") from error
        except KeyvaError as error:
            lines = f"lines {self._first_line} to {self._last_line}"
            error.args = (f"{self._name}: {lines} were not written: {error}; {self.done()}",)
            raise
        self.entries += self._waiting
        self._written_line = self._last_line
        self._batch = self._client.write_batch(sync=self._sync)
        self._bytes = self._waiting = self._first_line = 0

    def done(self) -> str:
        """Say what is known to be in the store."""
        if not self.entries:
            return "nothing was written"
        return f"the {self.entries} entries up to line {self._written_line} are in the store"

    def done_when_stopped(self) -> str:
        """Say the same where a signal may have come between a batch and its answer."""
        if not self._sent:
            return self.done()
        return f"{self.done()}, lines {self._first_line} to {self._last_line} may be (all of them or none)"


def _size_of(stream: IO[bytes]) -> int | None:
    """Return the size of a regular file, None for a pipe or terminal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
