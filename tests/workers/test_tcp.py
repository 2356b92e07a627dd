"""Clients on other hosts: TCP, and CURVE keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq.auth
from nodes import RunningNode, free_port

import keyva


def test_tcp_serves_reads_and_writes(tmp_path: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port(3)}"
    with RunningNode(tmp_path / "d", f"--listen={endpoint}", "--readers=2") as node, keyva.connect(endpoint) as remote:
        assert f"listen={endpoint}" in node.ready
        with remote.write_batch() as batch:
            for number in range(5000):
                batch.put(f"key-{number:05d}", b"v" * 100)
        assert remote.increment("n", 5) == 5
        assert len(list(remote.iterator(prefix="key-"))) == 5000
        assert remote.get_many(["key-00001", "none"]) == [b"v" * 100, None]
        with remote.snapshot() as snapshot:
            remote.delete("key-00001")
            assert snapshot.get("key-00001") == b"v" * 100
            assert remote.get("key-00001") is None


def test_only_clients_with_a_known_key_are_let_in(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    server_public, server_secret = zmq.auth.create_certificates(tmp_path, "server")
    client_public, client_secret = zmq.auth.create_certificates(tmp_path, "client")
    _, stranger_secret = zmq.auth.create_certificates(tmp_path, "stranger")
    Path(client_public).rename(allowed / "client.key")
    endpoint = f"tcp://127.0.0.1:{free_port(2)}"
    key = zmq.auth.load_certificate(server_public)[0]
    with RunningNode(
        tmp_path / "d", f"--listen={endpoint}", f"--curve-server-key-file={server_secret}", f"--curve-client-keys-dir={allowed}"
    ):
        with keyva.connect(endpoint, curve_server_key=key, curve_secret_key_file=client_secret) as db:
            db.put("a", "1")
            assert db.get("a") == b"1"
        with pytest.raises(keyva.UnavailableError):
            keyva.connect(endpoint, curve_server_key=key, curve_secret_key_file=stranger_secret, timeout_s=1.0)
        with pytest.raises(keyva.UnavailableError):
            keyva.connect(endpoint, timeout_s=1.0)


def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(keyva.UnavailableError, match="did not answer"):
        keyva.connect(f"ipc://{tmp_path}/nobody", timeout_s=0.3)
    with pytest.raises(keyva.InvalidArgumentError, match="ipc:// or tcp://"):
        keyva.connect("localhost:7700")
