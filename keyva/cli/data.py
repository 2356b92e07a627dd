"""Commands on single keys: get, put, delete, exists, incr."""

from __future__ import annotations

import sys

import click

from keyva.cli.bytetext import parse_argument, parse_hex
from keyva.cli.main import EXIT_NOT_FOUND, store_options, target_of
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
    with target.client() as client:
        value = client.get(key_bytes)
    if value is None:
        ctx.exit(EXIT_NOT_FOUND)
    out = sys.stdout.buffer
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
        content = sys.stdin.buffer.read()
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


@click.command(context_settings={"ignore_unknown_options": True})  # so that -5 is a number
@click.argument("key")
@click.argument("by", type=int, default=1)
@store_options
@click.pass_context
def incr(ctx: click.Context, key: str, by: int) -> None:
    """Add to a counter and write its new value.

    Adds BY (1 when not given, may be negative) to KEY, atomically. A counter is a signed 64-bit number, stored as
    decimal text; a key that is not there counts as 0.

    \b
    Examples:
      keyva incr visits
      keyva incr stock:apples -5
    """
    target = target_of(ctx)
    key_bytes = parse_argument(key, as_hex=target.hex)
    with target.client(create=True) as client:
        number = client.increment(key_bytes, by)
    click.echo(str(number))
