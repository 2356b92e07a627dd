"""The groups sst, wal, index and manifest, each with dump (file to JSON lines) and build (JSON lines to file).

Invariants: ``build`` of an unchanged ``dump`` gives the same bytes again; a builder trusts nothing it can work out (checksums,
lengths, offsets, counts, smallest and largest keys), so lines may be edited by hand; a file appears under its name when it is
complete, and never in a directory that a node serves.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import click

from keyva.cli.bytetext import numbered_lines
from keyva.cli.output import output_file, standard_input, standard_output
from keyva.errors import CorruptionError, InvalidArgumentError, StoreLockedError
from keyva.filename import LOCK
from keyva.files import Lock

__all__ = ["index", "manifest", "sst", "wal"]

Dump = Callable[[str, bool], Iterator[bytes]]
"""(path, hexadecimal) to JSON lines."""

Build = Callable[[Iterable[tuple[int, bytes]], str], bytes | None]
"""(numbered lines, path of the file to be) to the file's bytes, or None when it has written the file by itself."""


def _dump_command(dump: Dump, help_text: str) -> click.Command:
    @click.command("dump", help=help_text)
    @click.argument("file", type=click.Path(exists=True, dir_okay=False))
    @click.option("--hex", "as_hex", is_flag=True, help="Write all keys and values as hexadecimal digits.")
    def command(file: str, as_hex: bool) -> None:
        out = standard_output()
        for line in dump(file, as_hex):
            out.write(line)
        out.flush()

    return command


def _build_command(build: Build, help_text: str) -> click.Command:
    @click.command("build", help=help_text)
    @click.argument("file", type=click.Path(dir_okay=False))
    @click.argument("lines", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-")
    @click.option("--force", is_flag=True, help="Replace FILE when it is there, keeping its mode; a fifo or device is written to.")
    def command(file: str, lines: str, force: bool) -> None:
        if os.path.exists(file) and not force:
            raise click.UsageError(f"{file} is there already; --force replaces it")
        _check_not_served(file)
        if lines == "-":
            _build_from(build, standard_input(), file)
        else:
            with open(lines, "rb") as stream:
                _build_from(build, stream, file)

    return command


def _build_from(build: Build, stream: IO[bytes], file: str) -> None:
    position = [0]

    def watched() -> Iterator[tuple[int, bytes]]:
        for number, line in numbered_lines(stream):
            position[0] = number
            yield number, line

    try:
        data = build(watched(), file)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"line {position[0]}: {error}; {file} was not written") from None
    except CorruptionError as error:
        raise CorruptionError(f"line {position[0]}: {error}; {file} was not written") from None
    if data is not None:
        with output_file(file) as out:
            out.write(data)


def _check_not_served(file: str) -> None:
    """Raise `StoreLockedError` when the file belongs to a store that a node serves now: it would not notice, or break."""
    folders = {os.path.dirname(os.path.realpath(file)), os.path.realpath(os.path.dirname(file))}  # of a link, and where it leads
    for folder in folders:
        for directory in (folder, os.path.dirname(folder)):
            if Lock.is_held(os.path.join(directory, LOCK)):
                raise StoreLockedError(f"a node serves {directory}; stop it before its files are changed")


def _dump_sst(path: str, as_hex: bool) -> Iterator[bytes]:
    from keyva.cli.ssttext import dump_sst

    return dump_sst(path, as_hex)


def _build_sst(lines: Iterable[tuple[int, bytes]], path: str) -> bytes | None:
    from keyva.cli.ssttext import build_sst

    out = standard_output()
    out.write(build_sst(lines, path))
    return None


def _dump_wal(path: str, as_hex: bool) -> Iterator[bytes]:
    from keyva.cli.waltext import dump_wal

    return dump_wal(path, as_hex)


def _build_wal(lines: Iterable[tuple[int, bytes]], path: str) -> bytes | None:
    from keyva.cli.waltext import build_wal

    return build_wal(lines)


def _dump_index(path: str, as_hex: bool) -> Iterator[bytes]:
    from keyva.cli.indextext import dump_index

    return dump_index(path, as_hex)


def _build_index(lines: Iterable[tuple[int, bytes]], path: str) -> bytes | None:
    from keyva.cli.indextext import build_index

    return build_index(lines)


def _dump_manifest(path: str, as_hex: bool) -> Iterator[bytes]:
    from keyva.cli.manifesttext import dump_manifest

    return dump_manifest(path, as_hex)


def _build_manifest(lines: Iterable[tuple[int, bytes]], path: str) -> bytes | None:
    from keyva.cli.manifesttext import build_manifest

    return build_manifest(lines)


_DUMP_END = """

The lines go to standard output; `build` makes the very same file of them again. Every checksum is verified on the way.
Nothing is changed, and the store may be running.
"""
_BUILD_END = """

LINES is a file of JSON lines, or standard input. Unchanged lines give the very same file; edited ones a valid file with what you
wrote. A new FILE is readable by you alone. The node must not be running.
"""


def _group(name: str, dump: Dump, build: Build, about: str, dump_help: str, build_help: str) -> click.Group:
    group = click.Group(name, help=inspect.cleandoc(about), no_args_is_help=False)
    group.add_command(_dump_command(dump, inspect.cleandoc(dump_help) + _DUMP_END))
    group.add_command(_build_command(build, inspect.cleandoc(build_help) + _BUILD_END))
    return group


sst = _group(
    "sst",
    _dump_sst,
    _build_sst,
    """An SST (sst/NNNNNN.sst) as text and back.

    \b
    Example:
      keyva sst dump data/sst/000005.sst > 5.jsonl
      $EDITOR 5.jsonl
      keyva sst build --force data/sst/000005.sst 5.jsonl
    """,
    """Write an SST as JSON lines.

    Its header, then each block with its entries (a null value is a tombstone), then its totals.""",
    """Make an SST of JSON lines.

    Its index is put beside it when the name ends in ".sst". Checksums, offsets, counts and the smallest and largest key
    are worked out anew; "block" lines say where blocks begin. Keys must ascend. Writes what the manifest must say of
    the file, as a line for `keyva manifest build`, to standard output.""",
)
wal = _group(
    "wal",
    _dump_wal,
    _build_wal,
    """A write-ahead log (wal/NNNNNN.wal) as text and back.

    \b
    Example:
      keyva wal dump data/wal/000007.wal | head
      keyva wal dump data/wal/000007.wal | grep -v '^{"damage"' | keyva wal build mended.wal
    """,
    """Write a log as JSON lines.

    Its header, then one line a record with its entries (a null value deletes). Damaged bytes and the reserved zeros at
    the end have lines of their own.""",
    """Make a log of JSON lines.

    Checksums, lengths, offsets and sequence numbers are worked out anew.""",
)
index = _group(
    "index",
    _dump_index,
    _build_index,
    """The index of an SST (sst/NNNNNN.index) as text and back.

    \b
    Example:
      keyva index dump data/sst/000005.index | head
    """,
    """Write an index as JSON lines.

    Its header, one line a block with first key and offset, then the bloom filter.""",
    """Make an index of JSON lines.

    A store needs none: it rebuilds a missing one from the SST.""",
)
manifest = _group(
    "manifest",
    _dump_manifest,
    _build_manifest,
    """The manifest (MANIFEST) as text and back.

    \b
    Example:
      keyva manifest dump data/MANIFEST > m.jsonl
      $EDITOR m.jsonl
      keyva manifest build --force data/MANIFEST m.jsonl
    """,
    """Write the manifest as JSON lines.

    The store's numbers, one line a log, one line an SST.""",
    """Make a manifest of JSON lines.

    Its checksum is worked out anew, and its own rules are checked.""",
)
