"""A running node for the tests of this folder, and ways to call the command line."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import keyva
from keyva.cli.main import cli

SCRIPTS = Path(sysconfig.get_path("scripts"))

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the directory of a store whose node runs for all tests of a module."""
    directory = tmp_path_factory.mktemp("served") / "store"
    command = [str(SCRIPTS / "keyva-node"), "--no-http", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            assert node.stdout.readline(), "the node ended before it was ready"
            yield directory
        finally:
            node.terminate()
            assert node.wait(timeout=30) == 0


@pytest.fixture
def store(served: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the served directory, empty again after the test; KEYVA_DIR names it."""
    monkeypatch.setenv("KEYVA_DIR", str(served))
    monkeypatch.delenv("KEYVA_ENDPOINT", raising=False)
    yield served
    with keyva.open(str(served)) as client, client.write_batch() as batch:
        for key in client.iterator(include_value=False):
            batch.delete(key)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command line in this process."""
    monkeypatch.delenv("KEYVA_TRACEBACK", raising=False)

    def call(*arguments: object, stdin: bytes = b"", code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments], input=stdin)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return call


@pytest.fixture
def client(store: Path) -> Iterator[keyva.Client]:
    """Yield a client of the served store."""
    with keyva.open(str(store)) as found:
        yield found
