"""The command scan, and the range options it shares with dump."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from keyva.cli.bytetext import json_line, parse_argument, put_field, quote
from keyva.cli.main import store_options, target_of
from keyva.cli.output import standard_output

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Bounds", "check_range", "range_options", "scan"]

Command = TypeVar("Command", bound=Callable[..., Any])


class Bounds(TypedDict, total=False):
    """The bounds that were given, as arguments of `Client.iterator`."""

    prefix: bytes
    start: bytes
    stop: bytes


def range_options(command: Command) -> Command:
    """Add ``--prefix``, ``--from`` and ``--to``."""
    for option in (
        click.option("--to", "stop", metavar="KEY", help="Stop before this key."),
        click.option("--from", "start", metavar="KEY", help="Begin at this key, or at the next one there is."),
        click.option("--prefix", metavar="KEY", help="Only keys that begin with these bytes."),
    ):
        command = option(command)
    return command


def check_range(prefix: str | None, start: str | None, stop: str | None, *, as_hex: bool) -> Bounds:
    """Parse the options; raises `click.UsageError` when --prefix meets another bound."""
    if prefix is not None and (start is not None or stop is not None):
        raise click.UsageError("--prefix excludes --from and --to")
    bounds = Bounds()
    if prefix is not None:
        bounds["prefix"] = parse_argument(prefix, as_hex=as_hex)
    if start is not None:
        bounds["start"] = parse_argument(start, as_hex=as_hex)
    if stop is not None:
        bounds["stop"] = parse_argument(stop, as_hex=as_hex)
    return bounds


@click.command()
@range_options
@click.option("--max-keys", "--limit", "max_keys", type=click.IntRange(min=0), metavar="N", help="Stop after N keys.")
@click.option("--reverse", is_flag=True, help="From the last key to the first.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as `keyva load` reads it; without content types.")
@store_options
@click.pass_context
def scan(
    ctx: click.Context,
    prefix: str | None,
    start: str | None,
    stop: str | None,
    max_keys: int | None,
    reverse: bool,
    keys_only: bool,
    as_json: bool,
) -> None:
    """List keys and values in key order.

    One entry a line: key, tab, value. What is no printable text is written as \\xNN (\\n, \\t, \\r and \\\\ for newline, tab,
    return and backslash), so that an entry is always one line. --hex writes digits, --json objects with "key" and
    "value", or "key_b64" and "value_b64" where the bytes are not UTF-8. The scan sees the store as it was when it
    began.

    \b
    Examples:
      keyva scan --prefix user: --max-keys 10
      keyva scan --from 2024-01 --to 2024-02
      keyva scan --reverse --limit 1 --keys-only
      keyva scan --json | jq -r .key
    """
    target = target_of(ctx)
    bounds = check_range(prefix, start, stop, as_hex=target.hex)
    out = standard_output()
    write_line = _line_writer(as_json, target.hex)
    with target.client() as client, client.iterator(**bounds, reverse=reverse, include_value=not keys_only) as entries:
        found: Iterable[Any] = entries if max_keys is None else islice(entries, max_keys)
        if keys_only:
            for key in found:
                out.write(write_line(key, None))
        else:
            for key, value in found:
                out.write(write_line(key, value))
    out.flush()


def _line_writer(as_json: bool, as_hex: bool) -> Callable[[bytes, bytes | None], bytes]:
    def json_text(key: bytes, value: bytes | None) -> bytes:
        line: dict[str, Any] = {}
        put_field(line, "key", key, as_hex=as_hex)
        if value is not None:
            put_field(line, "value", value, as_hex=as_hex)
        return json_line(line)

    def plain_text(key: bytes, value: bytes | None) -> bytes:
        show = bytes.hex if as_hex else quote
        text = show(key) if value is None else f"{show(key)}\t{show(value)}"
        return text.encode() + b"\n"

    return json_text if as_json else plain_text
