"""The prompt: one store, one line a command. Also runs a script of the same commands from standard input.

`Shell` knows the commands and no terminal; `run_prompt` gives it lines. On a terminal an error is shown and the prompt goes on;
in a script it ends the run with the exit code of that error.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from keyva.cli.admin import flatten, table_text
from keyva.cli.bytetext import ESCAPED, parse_hex, quote, split_words, unquote
from keyva.cli.main import EXIT_NOT_FOUND, EXIT_OK, Target, Terminated, exit_code_of
from keyva.cli.output import standard_input, standard_output
from keyva.errors import InvalidArgumentError, KeyvaError

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History

    from keyva import Client

__all__ = ["Shell", "run_prompt"]

SCAN_KEYS = 20
_COMPLETIONS_MAX = 50

INTRODUCTION = 'Type "help" for the commands, Tab to complete, Ctrl-D to leave.'
QUOTING = r"""
Words are separated by blanks; "..." and '...' hold blanks together, and \xNN is a byte in hexadecimal, in quotes or not (also \n, \t,
\r, \0, \\, \" and \'). Keys and values are shown the same way, so that what is shown can be typed.
  put "user 1" "caf\xc3\xa9"
With --hex, keys and values are hexadecimal digits instead."""


class _Verb(NamedTuple):
    """A command: how it is written, what it does, how many words it takes, and what does it."""

    usage: str
    about: str
    words_min: int
    words_max: int
    run: Callable[[Shell, list[bytes]], int]


class Shell:
    """Runs lines against a client and writes to ``out``."""

    def __init__(self, client: Client, out: IO[str], *, as_hex: bool = False) -> None:
        self.client = client
        self._out = out
        self.is_hex = as_hex

    def run_line(self, line: str) -> int:
        """Run one line and return its exit code; raises `KeyvaError`. An empty line and a ``#`` comment do nothing."""
        if line.lstrip()[:1] in ("", "#"):
            return EXIT_OK
        words = split_words(line)
        name = words[0].decode("utf-8", "replace")
        verb = VERBS.get(name)
        if verb is None:
            raise InvalidArgumentError(f"there is no command {name!r}; try help")
        arguments = words[1:]
        if not verb.words_min <= len(arguments) <= verb.words_max:
            raise InvalidArgumentError(f"usage: {verb.usage}")
        return verb.run(self, arguments)

    def parse(self, word: bytes) -> bytes:
        """Return the bytes that a word stands for."""
        return parse_hex(word.decode("utf-8", "replace")) if self.is_hex else word

    def show(self, data: bytes) -> str:
        """Return bytes as the prompt shows them."""
        return data.hex() if self.is_hex else quote(data)

    def say(self, text: str) -> None:
        """Write a line."""
        self._out.write(text + "\n")

    def get(self, words: list[bytes]) -> int:
        value = self.client.get(self.parse(words[0]))
        self.say("(no such key)" if value is None else self.show(value))
        return EXIT_NOT_FOUND if value is None else EXIT_OK

    def put(self, words: list[bytes]) -> int:
        self.client.put(self.parse(words[0]), self.parse(words[1]))
        return EXIT_OK

    def delete(self, words: list[bytes]) -> int:
        with self.client.write_batch() as batch:
            for word in words:
                batch.delete(self.parse(word))
        return EXIT_OK

    def exists(self, words: list[bytes]) -> int:
        found = self.client.exists(self.parse(words[0]))
        self.say("true" if found else "false")
        return EXIT_OK if found else EXIT_NOT_FOUND

    def incr(self, words: list[bytes]) -> int:
        by = _number(words[1]) if len(words) > 1 else 1
        self.say(str(self.client.increment(self.parse(words[0]), by)))
        return EXIT_OK

    def scan(self, words: list[bytes]) -> int:
        prefix = self.parse(words[0]) if words else b""
        count = _number(words[1]) if len(words) > 1 else SCAN_KEYS
        with self.client.iterator(prefix=prefix) as entries:
            for key, value in islice(entries, max(0, count)):
                self.say(f"{self.show(key)}\t{self.show(value)}")
            if len(words) < 2 and next(entries, None) is not None:
                self.say(f"... (more; scan PREFIX N shows N keys instead of {SCAN_KEYS})")
        return EXIT_OK

    def stats(self, words: list[bytes]) -> int:
        self._out.write(table_text(("figure", "value"), flatten(self.client.stats())))
        return EXIT_OK

    def flush(self, words: list[bytes]) -> int:
        self.client.flush()
        return EXIT_OK

    def compact(self, words: list[bytes]) -> int:
        bounds = [self.parse(word) for word in words]
        self.client.compact_range(*bounds)
        return EXIT_OK

    def help(self, words: list[bytes]) -> int:
        width = max(len(verb.usage) for verb in VERBS.values())
        for verb in VERBS.values():
            self.say(f"  {verb.usage:{width}}  {verb.about}")
        self.say(QUOTING)
        return EXIT_OK

    def exit(self, words: list[bytes]) -> int:
        raise EOFError


VERBS = {
    "get": _Verb("get KEY", "show a value", 1, 1, Shell.get),
    "put": _Verb("put KEY VALUE", "store a value", 2, 2, Shell.put),
    "delete": _Verb("delete KEY...", "delete keys, all at once", 1, 1000, Shell.delete),
    "exists": _Verb("exists KEY", "say whether a key is there", 1, 1, Shell.exists),
    "incr": _Verb("incr KEY [BY]", "add to a counter and show it", 1, 2, Shell.incr),
    "scan": _Verb("scan [PREFIX [N]]", f"show the first N ({SCAN_KEYS}) entries below a prefix", 0, 2, Shell.scan),
    "stats": _Verb("stats", "show the store's figures", 0, 0, Shell.stats),
    "flush": _Verb("flush", "write the memtable to an SST", 0, 0, Shell.flush),
    "compact": _Verb("compact [FROM [TO]]", "merge the SSTs of a range, or all", 0, 2, Shell.compact),
    "help": _Verb("help", "show this", 0, 0, Shell.help),
    "exit": _Verb("exit", "leave", 0, 0, Shell.exit),
}
_KEY_VERBS = {"get", "put", "delete", "exists", "incr", "scan", "compact"}


def _number(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise InvalidArgumentError(f"{quote(word)!r} is no whole number") from None


def run_prompt(target: Target) -> int:
    """Open the store and run lines until the end of input; return the exit code."""
    stdin = standard_input()
    standard_output()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)  # in a locale that is not UTF-8
    with target.client(create=True) as client:
        shell = Shell(client, sys.stdout, as_hex=target.hex)
        if stdin.isatty():
            return _run_terminal(shell, " ".join(filter(None, target.locate())))
        return _run_script(shell, stdin)


def _run_script(shell: Shell, stream: Iterable[bytes]) -> int:
    """Run lines until one fails: an absent key is an answer, not a failure, but the last line's code is returned."""
    code = EXIT_OK
    for number, line in enumerate(stream, 1):
        try:
            code = shell.run_line(line.decode("utf-8", "surrogateescape").rstrip("\r\n"))
        except EOFError:
            return EXIT_OK
        except KeyvaError as error:
            sys.stdout.flush()
            return exit_code_of(error, where=f"line {number}: ")
    return code


def _run_terminal(shell: Shell, title: str) -> int:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import Completer

    class KeyCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            return complete(shell, document.text_before_cursor)

    session: PromptSession[str] = PromptSession(
        "keyva> ",
        history=_history(),
        completer=KeyCompleter(),
        complete_while_typing=False,  # completing a key reads the store: only when Tab asks for it
        auto_suggest=AutoSuggestFromHistory(),
    )
    shell.say(f"keyva: {title}\n{INTRODUCTION}")
    while True:
        try:
            shell.run_line(session.prompt())
        except EOFError:
            return EXIT_OK
        except Terminated:
            raise
        except KeyboardInterrupt:
            continue
        except (KeyvaError, OSError) as error:
            exit_code_of(error)


def complete(shell: Shell, text: str) -> Iterator[Any]:
    """Yield completions of the last word of ``text``: a command, or a key of the store."""
    from prompt_toolkit.completion import Completion

    head, _, word = text.rpartition(" ")
    verb = head.split(maxsplit=1)[0] if head.strip() else ""
    if not verb:
        yield from (Completion(f"{name} ", -len(word), display=name) for name in VERBS if name.startswith(word))
        return
    if verb not in _KEY_VERBS or '"' in text or "'" in text:
        return
    try:
        prefix = shell.parse(word.encode()) if shell.is_hex else unquote(word)
        with shell.client.iterator(prefix=prefix, include_value=False) as keys:
            found = list(islice(keys, _COMPLETIONS_MAX))
    except KeyvaError:
        return  # half an escape, or a store that does not answer: nothing to offer
    for key in found:
        shown = shell.show(key)
        yield Completion(shown if shell.is_hex else _typed(shown), -len(word), display=shown)


def _typed(shown: str) -> str:
    """Return a shown key as one word that can be typed without quotation marks."""
    return shown.replace(" ", "\\x20").replace('"', '\\"').replace("'", "\\'") or '""'


def _history() -> History:
    """Return the history in the user's state directory; in memory only when that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = os.path.join(state, "keyva", "history")
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # lines hold keys and values
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
