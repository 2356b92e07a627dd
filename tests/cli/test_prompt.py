"""The prompt's commands, its script mode, and its completion; a real terminal is in test_terminal.py."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import keyva
from keyva.cli.prompt import VERBS, Shell, complete

Run = Callable[..., Result]


def completions(shell: Shell, text: str) -> list[str]:
    return [found.text for found in complete(shell, text)]


@pytest.fixture
def shell(client: keyva.Client) -> Shell:
    return Shell(client, io.StringIO())


class TestScript:
    def test_lines_are_run_in_order(self, run: Run, store: Path) -> None:
        script = rb"""
            # a comment
            put greeting "hello \xff world"
            get greeting
            incr n 5
            incr n
            exists n
            scan
            delete greeting n
            scan
            flush
            compact a b
            stats
            help
        """
        lines = run(stdin=script).stdout.splitlines()
        assert lines[:6] == [r"hello \xff world", "5", "6", "true", r"greeting" + "\t" + r"hello \xff world", "n\t6"]
        assert any("put KEY VALUE" in line for line in lines)

    def test_a_failing_line_ends_it_with_the_line_number(self, run: Run, store: Path, client: keyva.Client) -> None:
        result = run(stdin=b"put a 1\nput b\nput c 3\n", code=2)
        assert result.stderr == "keyva: line 2: usage: put KEY VALUE\n"
        assert (client.get(b"a"), client.get(b"c")) == (b"1", None)

    @pytest.mark.parametrize("line", ["nonsense", 'get "a', r"get \q", "incr a many", "put a", "get", "exit now"])
    def test_a_line_that_is_no_command_is_exit_code_2(self, line: str, run: Run, store: Path) -> None:
        assert run(stdin=line.encode(), code=2).stderr.startswith("keyva: line 1: ")

    def test_the_last_line_says_whether_a_key_was_found(self, run: Run, store: Path) -> None:
        assert run(stdin=b"get absent\n", code=1).stdout == "(no such key)\n"
        run(stdin=b"get absent\nput a 1\n")

    def test_exit_ends_it(self, run: Run, store: Path) -> None:
        run(stdin=b"exit\nnonsense\n")

    def test_hexadecimal_digits(self, run: Run, store: Path) -> None:
        assert run("--hex", stdin=b"put 00ff cafe\nget 00ff\nscan\n").stdout == "cafe\n00ff\tcafe\n"

    def test_a_scan_says_that_there_is_more(self, run: Run, store: Path, client: keyva.Client) -> None:
        client.put_many({b"k%02d" % n: b"" for n in range(21)})
        assert len(run(stdin=b"scan k\n").stdout.splitlines()) == 21
        assert run(stdin=b"scan k\n").stdout.splitlines()[-1].startswith("... ")
        assert len(run(stdin=b"scan k 21\n").stdout.splitlines()) == 21


class TestCompletion:
    def test_commands(self, shell: Shell) -> None:
        assert completions(shell, "ex") == ["exists ", "exit "]
        assert len(completions(shell, "")) == len(VERBS)

    def test_keys_are_completed_as_they_are_typed(self, shell: Shell, client: keyva.Client) -> None:
        client.put_many({b"user:1": b"", b"user 2": b"", b"us\xff": b"", b"zebra": b"", b"": b""})
        assert completions(shell, "get us") == [r"user\x202", "user:1", r"us\xff"]
        assert completions(shell, r"delete a us\xff") == [r"us\xff"]
        assert completions(shell, "get ")[0] == '""'
        for text in completions(shell, "get us"):
            assert shell.run_line(f"get {text}") == 0

    @pytest.mark.parametrize("text", ["stats ", "get \\x", 'get "us', "nonsense u", "get \\xff\\xff"])
    def test_what_cannot_be_completed_offers_nothing(self, text: str, shell: Shell) -> None:
        assert completions(shell, text) == []

    def test_hexadecimal_keys(self, client: keyva.Client) -> None:
        client.put(b"\x00\xff", b"")
        shell = Shell(client, io.StringIO(), as_hex=True)
        assert completions(shell, "get 00") == ["00ff"]
        assert completions(shell, "get 0") == []
