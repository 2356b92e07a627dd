"""Where a node's sockets are, and what NODE says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from keyva.endpoints import NodeInfo, ipc_endpoints, is_loopback, read_node_info, running_node, write_node_info
from keyva.filename import LOCK
from keyva.files import Lock


def info(directory: Path) -> NodeInfo:
    return NodeInfo(pid=7, version="1", directory=str(directory), started_at=1.5, endpoints=ipc_endpoints(str(directory), 2, ""))


def test_sockets_are_in_the_directory() -> None:
    endpoints = ipc_endpoints("/data", 2, "tcp://127.0.0.1:7700")
    assert endpoints.writer == "ipc:///data/run/writer"
    assert endpoints.readers == ("ipc:///data/run/reader-0", "ipc:///data/run/reader-1")
    assert endpoints.listen_readers == ("tcp://127.0.0.1:7701", "tcp://127.0.0.1:7702")


def test_a_long_path_gets_a_private_directory_elsewhere() -> None:
    endpoints = ipc_endpoints("/" + "x" * 200, 1, "")
    folder = os.path.dirname(endpoints.writer.removeprefix("ipc://"))
    try:
        assert len(endpoints.readers[0].encode()) < 107
        assert os.stat(folder).st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(folder)


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
