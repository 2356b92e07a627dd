from __future__ import annotations

import re

import pytest

from keyva import errors
from keyva.errors import CorruptionError, KeyvaError, StoreLockedError, by_name

ALL = [getattr(errors, name) for name in errors.__all__ if name != "by_name"]


def test_every_error_is_a_keyva_error() -> None:
    assert all(issubclass(kind, KeyvaError) for kind in ALL)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}([│ ]*)(├── |└── )?(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4 + bool(match[2])
            parents = [*parents[:depth], match[3]]
            drawn[match[3]] = parents[-2] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in ALL}


@pytest.mark.parametrize("kind", ALL)
def test_every_error_says_when_it_is_raised(kind: type[KeyvaError]) -> None:
    assert re.match(r"Is (raised when|the root)", kind.__doc__ or "")


@pytest.mark.parametrize("name", ["InvalidArgumentError", "ConfigError", "NotACounterError", "CounterOverflowError"])
def test_bad_arguments_are_value_errors_too(name: str) -> None:
    assert issubclass(getattr(errors, name), ValueError)


def test_corruption_names_file_and_offset() -> None:
    error = CorruptionError("block checksum does not match", "/d/sst/000005.sst", 179)
    assert str(error) == "/d/sst/000005.sst: offset 179: block checksum does not match"
    assert (error.path, error.offset) == ("/d/sst/000005.sst", 179)


def test_corruption_without_a_file_is_the_sentence_alone() -> None:
    assert str(CorruptionError("no such block")) == "no such block"


@pytest.mark.parametrize("kind", ALL)
def test_every_error_comes_back_from_its_name(kind: type[KeyvaError]) -> None:
    error = by_name(kind.__name__, "what happened")
    assert type(error) is kind
    assert str(error) == "what happened"


def test_rebuilt_errors_have_their_attributes() -> None:
    corruption, locked = by_name("CorruptionError", "a"), by_name("StoreLockedError", "b")
    assert isinstance(corruption, CorruptionError)
    assert (corruption.path, corruption.offset) == ("", 0)
    assert isinstance(locked, StoreLockedError)
    assert locked.pid == 0


@pytest.mark.parametrize("name", ["ZeroDivisionError", "annotations", "by_name", "", "NewerError", "__doc__"])
def test_an_unknown_name_becomes_the_root_and_keeps_the_name(name: str) -> None:
    error = by_name(name, "text")
    assert type(error) is KeyvaError
    assert str(error) == f"{name}: text"
