"""Where a node's sockets are, and what NODE says."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyva.endpoints import NodeInfo, ipc_endpoints, is_loopback, read_node_info, real_directory, running_node, write_node_info
from keyva.errors import StoreError
from keyva.filename import LOCK
from keyva.files import Lock


def info(directory: Path) -> NodeInfo:
    return NodeInfo(pid=7, version="1", directory=str(directory), started_at=1.5, endpoints=ipc_endpoints(str(directory), 2, ""))


def test_sockets_are_in_the_directory() -> None:
    endpoints = ipc_endpoints("/data", 2, "tcp://127.0.0.1:7700")
    assert endpoints.writer == "ipc:///data/run/writer"
    assert endpoints.readers == ("ipc:///data/run/reader-0", "ipc:///data/run/reader-1")
    assert endpoints.listen_readers == ("tcp://127.0.0.1:7701", "tcp://127.0.0.1:7702")


LONG = "/" + "x" * 200


def folder_of(directory: str) -> str:
    return os.path.dirname(ipc_endpoints(directory, 1, "").writer.removeprefix("ipc://"))


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system's temporary directory with a short path."""
    made = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", made)
    yield Path(made)
    shutil.rmtree(made)


def test_a_long_path_gets_a_private_directory_elsewhere(temporary: Path) -> None:
    endpoints = ipc_endpoints(LONG, 1, "")
    folder = folder_of(LONG)
    assert os.path.dirname(folder) == str(temporary)
    assert len(endpoints.readers[0].encode()) < 107
    assert os.stat(folder).st_mode & 0o777 == 0o700


def test_it_is_always_the_same_one(temporary: Path) -> None:
    assert folder_of(LONG) == folder_of(LONG) != folder_of(LONG + "y")
    assert len(os.listdir(temporary)) == 2


@pytest.mark.parametrize("kind", ["a folder open to others", "a link", "a file"])
def test_one_that_is_not_private_is_not_used(temporary: Path, kind: str) -> None:
    taken = folder_of(LONG)
    os.rmdir(taken)
    if kind == "a link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        os.symlink("elsewhere", taken)
    elif kind == "a file":
        Path(taken).touch(0o600)
    else:
        os.mkdir(taken)
        os.chmod(taken, 0o770)
    folder = folder_of(LONG)
    assert folder != taken
    assert os.stat(folder).st_mode & 0o777 == 0o700


def test_where_the_temporary_directory_has_a_long_path_too_it_is_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 100)))
    folder = folder_of(f"{tmp_path}/{'x' * 200}")
    assert os.path.dirname(folder) == "/tmp"
    os.rmdir(folder)


def test_a_directory_goes_by_its_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("target")
    monkeypatch.chdir(tmp_path)
    assert real_directory("link/d") == real_directory(tmp_path / "link" / "d") == f"{os.path.realpath(tmp_path)}/target/d"


def test_what_cannot_be_a_directory_of_a_store_is_refused_with_the_reason() -> None:
    with pytest.raises(TypeError, match=r"directory must be str or os.PathLike\[str\], not bytes"):
        real_directory(b"/data")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="not valid UTF-8"):
        real_directory("/data/\udcff")
    with pytest.raises(StoreError, match="null"):
        real_directory("/data/\0")
    with pytest.raises(StoreError, match="no directory is named"):
        real_directory("")  # more likely a variable is not set than that the working directory is meant


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://*:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://127.example.org:1", False),
    ],
)
def test_loopback_is_recognised(endpoint: str, local: bool) -> None:
    assert is_loopback(endpoint) is local


def test_node_means_something_only_while_the_lock_is_held(tmp_path: Path) -> None:
    assert read_node_info(str(tmp_path)) is None
    write_node_info(str(tmp_path), info(tmp_path))
    assert read_node_info(str(tmp_path)) == info(tmp_path)
    assert running_node(str(tmp_path)) is None
    lock = Lock(str(tmp_path / LOCK))
    assert lock.acquire()
    assert running_node(str(tmp_path)) == info(tmp_path)
    lock.release()
    (tmp_path / "NODE").write_bytes(b'{"pid": 7')
    assert read_node_info(str(tmp_path)) is None
