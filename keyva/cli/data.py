"""Commands on single keys: get, put, delete, exists, incr."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import click

from keyva.cli.bytetext import parse_argument, parse_hex
from keyva.cli.main import EXIT_NOT_FOUND, store_options, target_of
from keyva.cli.output import standard_input, standard_output
from keyva.errors import InvalidArgumentError

__all__ = ["delete", "exists", "get", "incr", "put", "sync_option"]

sync_option = click.option(
    "--sync/--no-sync",
    default=None,
    help="Whether the write must survive a power cut before it is acknowledged.  [default: as the store is set]",
)


@click.command()
@click.argument("key")
@store_options
@click.pass_context
def get(ctx: click.Context, key: str) -> None:
    """Write the value of KEY to standard output.

    The bytes come as they are; only a terminal gets a newline after them, and --hex writes one line of digits.
    Exit code 1 when there is no such key.

    \b
    Examples:
      keyva get greeting
      keyva get photo > copy.jpg
      keyva get --hex 00ff10
    """
    target = target_of(ctx)
    key_bytes = parse_argument(key, as_hex=target.hex)
    out = standard_output()
    with target.client() as client:
        value = client.get(key_bytes)
    if value is None:
        ctx.exit(EXIT_NOT_FOUND)
    if target.hex:
        value = value.hex().encode() + b"\n"
    elif sys.stdout.isatty():
        value += b"\n"
    out.write(value)
    out.flush()


@click.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "file", type=click.Path(exists=True, dir_okay=False), help="Take the value from FILE, byte for byte.")
@sync_option
@store_options
@click.pass_context
def put(ctx: click.Context, key: str, value: str | None, file: str | None, sync: bool | None) -> None:
    """Store a value under KEY.

    The value is VALUE, the content of --file, or standard input when VALUE is "-". With --hex all three are hexadecimal
    digits. A VALUE that begins with "-" goes behind "--". The directory is made when it is not there.

    \b
    Examples:
      keyva put greeting hello
      keyva put photo --file photo.jpg
      tar c src | keyva put backup -
      keyva put temperature -- -5
      keyva put --hex 00ff10 cafe
    """
    target = target_of(ctx)
    key_bytes = parse_argument(key, as_hex=target.hex)
    if (value is None) == (file is None):
        wrong = "give a VALUE, --file FILE, or - for standard input" if value is None else "VALUE and --file exclude each other"
        raise click.UsageError(wrong)
    if file is not None:
        with open(file, "rb") as stream:
            content = stream.read()
    elif value == "-":
        content = standard_input().read()
    else:
        assert value is not None
        content = parse_argument(value, as_hex=target.hex)
    if target.hex and (file is not None or value == "-"):
        content = _hex_content(content)
    with target.client(create=True) as client:
        client.put(key_bytes, content, sync=sync)


def _hex_content(content: bytes) -> bytes:
    try:
        return parse_hex("".join(content.decode("ascii").split()))
    except (UnicodeDecodeError, InvalidArgumentError):
        raise InvalidArgumentError("the value is not an even number of hexadecimal digits, as --hex asks for") from None


@click.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@sync_option
@store_options
@click.pass_context
def delete(ctx: click.Context, keys: tuple[str, ...], sync: bool | None) -> None:
    """Delete keys, all at once.

    One atomic batch: all are gone, or none. A key that is not there is no error.

    \b
    Examples:
      keyva delete greeting
      keyva delete user:1 user:2 user:3
    """
    target = target_of(ctx)
    found = [parse_argument(key, as_hex=target.hex) for key in keys]
    with target.client() as client, client.write_batch(sync=sync) as batch:
        for key in found:
            batch.delete(key)


@click.command()
@click.argument("key")
@store_options
@click.pass_context
def exists(ctx: click.Context, key: str) -> None:
    """Say whether KEY is in the store.

    Writes "true" with exit code 0, or "false" with exit code 1.

    \b
    Example:
      keyva exists user:1 > /dev/null || keyva put user:1 new
    """
    target = target_of(ctx)
    key_bytes = parse_argument(key, as_hex=target.hex)
    with target.client() as client:
        found = client.exists(key_bytes)
    click.echo("true" if found else "false")
    ctx.exit(0 if found else EXIT_NOT_FOUND)


class _Incr(click.Command):
    """Takes a negative number for BY, not for an option; all else that begins with a dash must be an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = _negative_number(args, {name for option in self.params if isinstance(option, click.Option) for name in _with_value(option)})
        if at is not None:
            ctx.meta[_BY] = int(args[at])
            args = args[:at] + args[at + 1 :]
        return super().parse_args(ctx, args)


_BY = "keyva.cli.data.by"


def _with_value(option: click.Option) -> Sequence[str]:
    return () if option.is_flag else option.opts


def _negative_number(args: Sequence[str], with_value: set[str]) -> int | None:
    """Return where the first argument of the form -5 stands that is no option's value and not behind ``--``."""
    for at, text in enumerate(args):
        if text == "--":
            return None
        if re.fullmatch("-[0-9]{1,30}", text) and (at == 0 or args[at - 1] not in with_value):
            return at
    return None


@click.command(cls=_Incr)
@click.argument("key")
@click.argument("by", type=int, required=False)
@store_options
@click.pass_context
def incr(ctx: click.Context, key: str, by: int | None) -> None:
    """Add to a counter and write its new value.

    Adds BY (1 when not given, may be negative) to KEY, atomically. A counter is a signed 64-bit number, stored as
    decimal text; a key that is not there counts as 0. A KEY that begins with "-" goes behind "--".

    \b
    Examples:
      keyva incr visits
      keyva incr stock:apples -5
      keyva incr -- -odd-key 5
    """
    target = target_of(ctx)
    if _BY in ctx.meta:
        if by is not None:
            raise click.UsageError(f"two numbers to add: {by} and {ctx.meta[_BY]}")
        by = ctx.meta[_BY]
    key_bytes = parse_argument(key, as_hex=target.hex)
    with target.client(create=True) as client:
        number = client.increment(key_bytes, 1 if by is None else by)
    click.echo(str(number))
