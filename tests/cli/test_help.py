"""What --help of every command of `keyva` and `keyva-bench` looks like."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from keyva.bench.main import DEFAULT_SYSTEMS, DEFAULT_WORKLOADS
from keyva.bench.main import main as bench
from keyva.cli.main import cli


def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = [*commands(cli, ("keyva",)), *commands(bench, ("keyva-bench",))]
every_command = pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])


def shown(path: tuple[str, ...]) -> str:
    result = CliRunner().invoke(cli if path[0] == "keyva" else bench, [*path[1:], "--help"], prog_name=path[0])
    assert result.exit_code == 0, result.output
    return result.output


def test_all_commands_are_looked_at() -> None:
    assert len(ALL) == 1 + 13 + 4 * 3 + 1 + 5


@every_command
def test_no_control_characters_and_none_that_were_to_be_some(path: tuple[str, ...], command: click.Command) -> None:
    text = shown(path)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert r"\b" not in text.split()
    assert max(map(len, text.splitlines())) <= 110


@every_command
def test_only_paragraphs_that_are_kept_as_they_are_have_indented_lines(path: tuple[str, ...], command: click.Command) -> None:
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = paragraph.splitlines()
        assert lines, "an empty paragraph"
        if lines[0] != "\b":
            assert not [line for line in lines if line != line.strip()]


@every_command
def test_every_line_of_an_example_has_its_own(path: tuple[str, ...], command: click.Command) -> None:
    text = shown(path)
    for line in inspect.cleandoc(command.help or "").splitlines():
        if line.startswith("  "):
            assert f"\n  {line}\n" in text


@every_command
def test_what_may_be_left_out_stands_in_brackets(path: tuple[str, ...], command: click.Command) -> None:
    context = click.Context(command)
    for argument in command.params:
        if isinstance(argument, click.Argument):
            assert argument.make_metavar(context).startswith("[") == (not argument.required)


@every_command
def test_every_option_says_what_it_is_for(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_all_exit_codes_are_listed() -> None:
    codes = [line.split()[0] for line in shown(("keyva",)).partition("Exit codes:")[2].partition("Errors")[0].splitlines() if line.strip()]
    assert codes == ["0", "1", "2", "3", "4", "5", "130", "141"]


def test_the_help_of_a_run_says_what_it_runs_when_it_is_not_told() -> None:
    words = set(shown(("keyva-bench", "run")).replace(",", " ").replace(".", " ").replace("]", " ").split())
    assert {*DEFAULT_WORKLOADS, *DEFAULT_SYSTEMS} <= words
