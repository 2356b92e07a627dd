"""Imports inside keyva point down only, so that the formats can be read, tested and reused by themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import keyva

PACKAGE = Path(keyva.__file__).parent
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "workers")
"""keyva itself; an installed package has the folder `workers` inside it."""

FORMATS = ["errors", "options", "filename", "files", "batch", "wal", "filter", "block", "index", "sst", "manifest", "pulse"]
"""Each may import those before it; none imports anything else of keyva."""

NETWORK = {"zmq", "socket", "multiprocess", "multiprocessing", "subprocess", "asyncio", "threading", "click", "rich", "prompt_toolkit"}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".") or "__init__"


def imports_of(path: Path) -> set[str]:
    """Return the full names of all imported modules, those imported inside functions too; ``from a import b`` counts as a and a.b."""
    found: set[str] = set()
    package = ["keyva", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found.update([name, *(f"{name}.{alias.name}" for alias in node.names)])
    return found


def inner(path: Path) -> set[str]:
    """Return the modules of keyva that a module of keyva imports, by their names in the package."""
    modules = {module_name(source) for source in SOURCES}
    return {name.removeprefix("keyva.") for name in imports_of(path) if name.startswith("keyva.")} & modules


@pytest.mark.parametrize("name", FORMATS)
def test_formats_import_only_formats_below_them(name: str) -> None:
    assert inner(PACKAGE / f"{name}.py") <= set(FORMATS[: FORMATS.index(name)])


@pytest.mark.parametrize("name", FORMATS)
def test_formats_know_nothing_of_sockets_processes_and_terminals(name: str) -> None:
    assert not {module.split(".")[0] for module in imports_of(PACKAGE / f"{name}.py")} & NETWORK


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_keyva_never_imports_its_workers(path: Path) -> None:
    assert not [name for name in imports_of(path) if name == "keyva.workers" or name.startswith(("keyva.workers.", "workers"))]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_the_library_does_not_import_the_command_line(path: Path) -> None:
    if path.parent == PACKAGE:
        assert not [name for name in inner(path) if name.split(".")[0] == "cli"]


def test_no_two_modules_of_the_library_import_each_other() -> None:
    # not the command line: its main module imports the others when a command is called, and they import it
    below = {module_name(path): inner(path) for path in SOURCES if path.parent == PACKAGE}

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(below[start])
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += below.get(name, ())
        return seen

    assert [name for name in below if name in reach(name)] == []
