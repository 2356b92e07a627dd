"""The group `keyva`: global options, where a command finds its store, and what every error becomes for a shell.

A command's module is imported when the command is called, so that `keyva get` pays for no table, prompt or network tool.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from keyva.cli.output import fill_standard_streams
from keyva.errors import (
    ConfigError,
    CorruptionError,
    FormatVersionError,
    InvalidArgumentError,
    KeyvaError,
    StoreError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyva import Client

__all__ = ["Interrupted", "Target", "Terminated", "cli", "exit_code_of_stop", "main", "store_options", "target_of"]

EXIT_OK = 0
EXIT_NOT_FOUND = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_CORRUPTION = 4
EXIT_OTHER = 5
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended: 128 + 13

TIMEOUT_MAX_S = 365 * 86400.0

COMMANDS = {
    "get": "data:get",
    "put": "data:put",
    "delete": "data:delete",
    "exists": "data:exists",
    "incr": "data:incr",
    "scan": "scan:scan",
    "load": "transfer:load",
    "dump": "transfer:dump",
    "stats": "admin:stats",
    "flush": "admin:flush",
    "compact": "admin:compact",
    "ps": "admin:ps",
    "keygen": "admin:keygen",
    "sst": "filetools:sst",
    "wal": "filetools:wal",
    "index": "filetools:index",
    "manifest": "filetools:manifest",
}

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Target:
    """Where the store is and how bytes are written, from the options of the group and of the command."""

    directory: str | None = None
    endpoint: str | None = None
    hex: bool = False
    timeout_s: float = 30.0
    curve_key: str | None = None
    curve_server_key: str | None = None

    def locate(self) -> tuple[str | None, str | None]:
        """Return (directory, None) or (None, endpoint); options win over the environment. Raises `click.UsageError`."""
        if self.directory == "":  # not the current directory: a script whose variable is not set must not make a store there
            raise click.UsageError("--dir is empty; the current directory is --dir .")
        if self.directory is not None and self.endpoint is not None:
            raise click.UsageError("--dir and --endpoint exclude each other")
        if self.directory is None and self.endpoint is None:
            directory, endpoint = os.environ.get("KEYVA_DIR") or None, os.environ.get("KEYVA_ENDPOINT") or None
            if directory is not None and endpoint is not None:
                raise click.UsageError("KEYVA_DIR and KEYVA_ENDPOINT are both set; choose with --dir or --endpoint")
            if directory is None and endpoint is None:
                raise click.UsageError("which store? Give --dir DIR or --endpoint EP, or set KEYVA_DIR or KEYVA_ENDPOINT")
            return directory, endpoint
        return self.directory, self.endpoint

    @contextmanager
    def client(self, *, create: bool = False) -> Iterator[Client]:
        """Open the store for one command. Without ``create`` a directory that holds no store is refused, not made."""
        directory, endpoint = self.locate()
        import keyva

        if endpoint is not None:
            with self._connect(endpoint) as client:
                yield client
            return
        assert directory is not None
        if not create and not _holds_store(directory):
            raise StoreError(f"there is no store in {directory}")
        with keyva.open(directory, timeout_s=self.timeout_s) as client:
            yield client

    def _connect(self, endpoint: str) -> Client:
        import zmq

        import keyva

        try:
            return keyva.connect(endpoint, timeout_s=self.timeout_s, **self._curve())
        except zmq.ZMQError as error:
            raise InvalidArgumentError(f"{endpoint!r} is no endpoint one can connect to: {error.strerror}") from None

    def _curve(self) -> dict[str, str]:
        found = {"curve_secret_key_file": self.curve_key, "curve_server_key": self.curve_server_key}
        return {name: value for name, value in found.items() if value is not None}


def _holds_store(directory: str) -> bool:
    """Say whether `keyva.open` would meet something there; what it is like is for `keyva.open` to judge."""
    try:
        return bool(os.listdir(directory))
    except NotADirectoryError:
        return True
    except PermissionError:
        return True
    except FileNotFoundError:
        return False


class Terminated(KeyboardInterrupt):
    """Is raised where SIGTERM or SIGHUP arrives: like Ctrl-C, so that files half made are removed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class Interrupted(Exception):  # noqa: N818 - no error: the user wanted it
    """Is raised when Ctrl-C or a signal ended a command that has something to say about it."""

    def __init__(self, message: str, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of_stop(error: KeyboardInterrupt) -> int:
    """Return the exit code of a command that Ctrl-C or a signal ended: 128 + the signal's number, as a shell has it."""
    return error.exit_code if isinstance(error, Terminated) else EXIT_INTERRUPTED


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise `Terminated`, and Ctrl-C `KeyboardInterrupt`, while a command runs; ignored ones stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        for other in (signal.SIGTERM, signal.SIGHUP):  # often one follows the other: what is being removed must not be left
            signal.signal(other, signal.SIG_IGN)
        raise Terminated(number)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not Python's
                signal.signal(number, handler)


class _PipeClosedError(Exception):
    """Is raised when whoever reads standard output has gone."""


class _StoppedError(Exception):
    """Is raised when Ctrl-C or a signal ended a command that has nothing to say about it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class _LazyGroup(click.Group):
    """Loads a command's module at its first use, and translates errors once, at the edge to the shell."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(f"keyva.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        with _past_click():  # --help is written here
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _past_click():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        extra["standalone_mode"] = False
        with _signals_raise():
            try:
                code = super().main(args=args, prog_name=prog_name or "keyva", **extra)
                if sys.stdout is not None:
                    sys.stdout.flush()
            except BaseException as error:
                _end_quietly()
                code = exit_code_of(error)
                _drop_output()
        sys.exit(code if isinstance(code, int) else EXIT_OK)


@contextmanager
def _past_click() -> Iterator[None]:
    """Keep from click what it has an answer of its own for: a broken pipe would end with 1, which here means "key not found"."""
    try:
        yield
    except BrokenPipeError as error:
        raise _PipeClosedError from error
    except KeyboardInterrupt as error:
        raise _StoppedError(exit_code_of_stop(error)) from error


def _end_quietly() -> None:
    """Let a further Ctrl-C end the process at once, and other signals wait for its end, which is near."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))


def _drop_output() -> None:
    """Drop what cannot be written: Python would complain when it flushes standard output at exit, and end with 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def exit_code_of(error: BaseException, where: str = "") -> int:
    """Write one line about ``error`` on standard error and return its exit code; re-raises what is no error (SystemExit).

    ``where`` stands before the message.
    """
    code, message = _judge(error)
    if os.environ.get("KEYVA_TRACEBACK") and isinstance(error, Exception) and code in (EXIT_CORRUPTION, EXIT_UNAVAILABLE, EXIT_OTHER):
        raise error
    if message:
        try:
            click.echo(f"keyva: {where}" + " ".join(message.split("\n")), err=True)
        except OSError:
            pass  # nobody listens there either
    return code


def _judge(error: BaseException) -> tuple[int, str]:
    match error:
        case BrokenPipeError() | _PipeClosedError():
            return EXIT_BROKEN_PIPE, ""
        case Interrupted():
            return error.exit_code, str(error)
        case _StoppedError():
            return error.exit_code, ""
        case KeyboardInterrupt() | click.Abort():
            return EXIT_INTERRUPTED, ""
        case click.UsageError():
            hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else " (see `keyva --help`)"
            return EXIT_USAGE, error.format_message() + hint
        case click.ClickException():
            return EXIT_USAGE, error.format_message()
        case InvalidArgumentError() | ConfigError():
            return EXIT_USAGE, str(error)
        case CorruptionError():
            return EXIT_CORRUPTION, str(error)
        case StoreError() | UnavailableError() | FormatVersionError():
            return EXIT_UNAVAILABLE, str(error)
        case KeyvaError():
            return EXIT_OTHER, str(error)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return EXIT_OTHER, f"{where}{error.strerror or error}"
        case Exception():
            return EXIT_OTHER, f"unexpected {type(error).__name__}: {error} (KEYVA_TRACEBACK=1 shows where)"
    raise error


def _store(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    assert parameter.name is not None
    if ctx.get_parameter_source(parameter.name) is not click.core.ParameterSource.DEFAULT:
        setattr(ctx.ensure_object(Target), parameter.name, value)


def _check_timeout(ctx: click.Context, parameter: click.Parameter, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and 0 < value <= TIMEOUT_MAX_S):
        raise click.BadParameter(f"{value:g} is not a number of seconds above 0, at most {TIMEOUT_MAX_S:.0f} (a year).")
    _store(ctx, parameter, value)


def store_options(command: Command) -> Command:
    """Add the options that say which store, and ``--hex``; they may stand before or behind the command's name."""
    for option in (
        click.option("--hex", is_flag=True, help="Keys and values are hexadecimal digits.", expose_value=False, callback=_store),
        click.option(
            "--curve-server-key",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="The node's public certificate, when --endpoint needs CURVE.",
            expose_value=False,
            callback=_store,
        ),
        click.option(
            "--curve-key",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="Your secret certificate (see `keyva keygen`).",
            expose_value=False,
            callback=_store,
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=float,
            metavar="SECONDS",
            help="How long to wait for an answer.  [default: 30]",
            expose_value=False,
            callback=_check_timeout,
        ),
        click.option(
            "--endpoint",
            metavar="EP",
            help="The node to talk to: ipc://PATH or tcp://HOST:PORT.  [env: KEYVA_ENDPOINT]",
            expose_value=False,
            callback=_store,
        ),
        click.option(
            "--dir", "directory", metavar="DIR", help="The store's directory.  [env: KEYVA_DIR]", expose_value=False, callback=_store
        ),
    ):
        command = option(command)
    return command


def target_of(ctx: click.Context) -> Target:
    """Return the target the options named."""
    return ctx.ensure_object(Target)


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from keyva import __version__

        click.echo(f"keyva {__version__}")
        ctx.exit()


@click.group(
    name="keyva",
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@store_options
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and stop.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Read, write and inspect a keyva store.

    With no command: a prompt, or a script of the prompt's commands when standard input is no terminal. A store that no node
    serves is served in the background while the command runs.

    \b
    Examples:
      keyva --dir ./data put greeting hello
      keyva --dir ./data get greeting
      export KEYVA_DIR=./data
      keyva scan --prefix user: --json
      keyva put photo --file photo.jpg
      keyva get photo > copy.jpg
      keyva get --hex 00ff10
      keyva dump | gzip > backup.jsonl.gz
      keyva ps

    Keys and values are bytes. Arguments are taken as the shell passes them, or as hexadecimal digits with --hex.

    \b
    Exit codes:
        0  done
        1  key not found (get, exists)
        2  wrong usage or input
        3  store not there, locked or not answering
        4  damaged file
        5  any other error
      130  interrupted (Ctrl-C); other signals too are 128 + their number: 143 SIGTERM
      141  whoever read standard output has gone

    Errors are one line on standard error that begins with "keyva:".
    """
    ctx.ensure_object(Target)
    if ctx.invoked_subcommand is None:
        from keyva.cli.prompt import run_prompt

        ctx.exit(run_prompt(target_of(ctx)))


def main() -> NoReturn:
    """Run the command line and exit; the entry of `bin/keyva`."""
    fill_standard_streams()
    cli.main()
