from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from nodes import DEADLINE_S, RunningNode, eventually
from webtools import connect, kill_and_wait, parse, read_to_end, wait_for_more

import keyva
from keyva.endpoints import read_node_info
from keyva.errors import ConfigError
from keyva.web.listen import listen_on, read_token, split_http, url_of

COMMAND = [sys.executable, "-m", "keyva.workers.node"]


def failing_node(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "--dir", str(tmp_path / "d"), *flags], capture_output=True, text=True, timeout=60, cwd="/")


class TestListening:
    def test_the_url_is_told(self, node: RunningNode) -> None:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", node.url)
        info = read_node_info(node.directory)
        assert info is not None
        assert info.http == node.url

    def test_a_taken_port_ends_the_node_with_one_line(self, node: RunningNode, tmp_path: Path) -> None:
        done = failing_node(tmp_path, "--http", node.url.removeprefix("http://"))
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1
        assert "in use" in line
        assert "--http" in line
        assert "--no-http" in line

    @pytest.mark.parametrize("http", ["8080", "localhost", ":8080", "localhost:x", "localhost:99999", "::1:8080", "[::1]"])
    def test_a_malformed_address_is_refused(self, tmp_path: Path, http: str) -> None:
        done = failing_node(tmp_path, f"--http={http}")
        assert done.returncode == 2
        assert "'http'" in done.stderr

    @pytest.mark.parametrize("http", ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080", "example.com:80"])
    def test_beyond_loopback_a_token_is_needed(self, tmp_path: Path, http: str) -> None:
        done = failing_node(tmp_path, f"--http={http}")
        assert done.returncode == 2
        assert "http_token_file" in done.stderr

    def test_the_token_file_is_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        with pytest.raises(ConfigError, match="cannot read"):
            read_token(str(path))
        path.write_text("a-long-enough-secret\n")
        path.chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_token(str(path))
        path.chmod(0o600)
        assert read_token(str(path)) == b"a-long-enough-secret"
        for bad in ("short", "with blanks in it, it is", "x" * 5000, "non-ascii-sécret-secret", ""):
            path.write_text(bad)
            with pytest.raises(ConfigError, match="must hold one secret"):
                read_token(str(path))

    def test_with_a_token_it_listens_anywhere(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("a-long-enough-secret\n")
        path.chmod(0o600)
        # 127.0.0.2 is loopback too, so nothing is opened to others; the Host of another name shows that any is served
        with RunningNode(tmp_path / "d", "--http=127.0.0.2:0", "--readers=0", f"--http-token-file={path}") as node:
            assert node.url.startswith("http://127.0.0.2:")
            good = {"authorization": "Bearer a-long-enough-secret"}
            assert httpx.put(node.url + "/kv/a", content=b"1", headers=good).status_code == 201

    def test_addresses(self) -> None:
        assert split_http("localhost:80") == ("localhost", 80)
        assert split_http("[::1]:0") == ("::1", 0)
        if socket.has_ipv6:
            with listen_on("[::1]:0") as listener:
                assert url_of(listener).startswith("http://[::1]:")

    def test_a_node_started_in_the_background_serves_none(self, tmp_path: Path) -> None:
        with keyva.open(tmp_path / "d", idle_stop_s=1):
            info = read_node_info(str(tmp_path / "d"))
            assert info is not None
            assert info.http == ""
        eventually(lambda: read_node_info(str(tmp_path / "d")) is None, "the node has stopped")

    def test_no_http(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d", "--readers=0") as node:
            assert "http=" not in node.ready
            assert {process.name() for process in node.family()}


class TestKilled:
    def test_a_killed_gateway_comes_back_on_its_socket(self, node: RunningNode, http: httpx.Client) -> None:
        http.put("/kv/before", content=b"1")
        old, writer = node.pid_of("web"), node.pid_of("writer")
        os.kill(old, signal.SIGKILL)
        # not one connection is refused: it waits in the socket's queue until the next gateway takes it
        with httpx.Client(base_url=node.url, timeout=DEADLINE_S) as client:
            assert client.get("/kv/before").content == b"1"
        assert node.pid_of("web") != old
        assert node.pid_of("writer") == writer

    def test_connections_made_while_there_is_none_are_kept(self, node: RunningNode, http: httpx.Client) -> None:
        http.put("/kv/queued", content=b"1")
        pid = node.pid_of("web")
        os.kill(pid, signal.SIGSTOP)
        host = node.url.removeprefix("http://").encode()
        waiting = [connect(node.url) for _ in range(50)]
        for connection in waiting:
            connection.sendall(b"GET /kv/queued HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host)
        os.kill(pid, signal.SIGKILL)
        with ThreadPoolExecutor(10) as pool:
            answers = [parse(answer) for answer in pool.map(read_to_end, waiting)]
        for connection in waiting:
            connection.close()
        assert [answer.status for answer in answers] == [200] * 50

    def test_the_store_works_without_it(self, node: RunningNode) -> None:
        pid = node.pid_of("web")
        os.kill(pid, signal.SIGSTOP)
        try:
            with keyva.open(node.directory) as db:
                db.put("without", "gateway")
                assert db.get("without") == b"gateway"
        finally:
            os.kill(pid, signal.SIGCONT)

    def test_reads_go_on_and_writes_wait_while_the_writer_is_gone(self, node: RunningNode, http: httpx.Client) -> None:
        http.put("/kv/writer", content=b"1")
        pid = node.pid_of("writer")
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            write = pool.submit(http.put, "/kv/writer", content=b"2")
            with httpx.Client(base_url=node.url, timeout=DEADLINE_S) as client:
                assert client.get("/kv/writer").content in (b"1", b"2")
                assert client.get("/api/keys", params={"prefix": "writer"}).json()["keys"]
                assert client.get("/api/stats").status_code == 503
                metrics = client.get("/metrics").text
                assert "keyva_up 0.0" in metrics
                assert 'keyva_process_up{role="web"} 1.0' in metrics
                with client.stream("GET", "/api/stats/stream") as answer:
                    event = next(json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
                assert (event["available"], event["memtable"]) == (False, None)
                assert event["processes"]
            os.kill(pid, signal.SIGKILL)
            assert write.result(60).status_code == 204
        assert http.get("/kv/writer").content == b"2"

    def test_health_says_when_the_writer_is_gone(self, node: RunningNode, http: httpx.Client) -> None:
        program = node.pid_of("writer")
        seen: list[tuple[int, bool]] = []
        stop = threading.Event()

        def watch() -> None:
            with httpx.Client(base_url=node.url, timeout=DEADLINE_S) as client:
                while not stop.is_set():
                    answer = client.get("/api/health")
                    seen.append((answer.status_code, answer.json()["ready"]))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            eventually(lambda: (200, True) in seen, "ready")
            os.kill(program, signal.SIGKILL)
            eventually(lambda: (503, False) in seen, "not ready")
            eventually(lambda: seen[-1] == (200, True), "ready again")
        finally:
            stop.set()
            thread.join()
        assert set(seen) == {(200, True), (503, False)}

    def test_acknowledged_writes_outlive_writer_and_gateway(self, node: RunningNode) -> None:
        acknowledged: dict[str, bytes] = {}
        stop = threading.Event()

        def write(number: int) -> None:
            with httpx.Client(base_url=node.url, timeout=60) as client:
                count = 0
                while not stop.is_set():
                    key, count = f"acked/{number}/{count}", count + 1
                    try:
                        answer = client.put(f"/kv/{key}", content=key.encode())
                    except httpx.TransportError:
                        continue
                    if answer.status_code in (201, 204):
                        acknowledged[key] = key.encode()

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(write, number) for number in range(4)]
            try:
                for role in ("web", "writer", "web", "writer"):
                    wait_for_more(acknowledged, 50)
                    kill_and_wait(node, role)
                wait_for_more(acknowledged, 50)
            finally:
                stop.set()
            for future in futures:
                future.result(60)
        with keyva.open(node.directory) as db:
            assert {key: db.get(key) for key in acknowledged} == acknowledged


class TestIdle:
    def test_an_idle_gateway_keeps_no_node_alive(self, tmp_path: Path) -> None:
        node = RunningNode(tmp_path / "d", "--http=127.0.0.1:0", "--readers=0", "--idle-stop-s=0.5")
        with node:
            assert node.process.wait(DEADLINE_S) == 0

    def test_a_connected_client_does(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d", "--http=127.0.0.1:0", "--readers=0", "--idle-stop-s=3") as node:
            with httpx.Client(base_url=node.url, timeout=DEADLINE_S) as client, client.stream("GET", "/api/stats/stream") as answer:
                events = 0
                for line in answer.iter_lines():
                    events += line.startswith("data: ")
                    if events == 8:
                        break
            assert node.process.wait(DEADLINE_S) == 0

    def test_it_stops_at_once_while_clients_are_connected(self, tmp_path: Path) -> None:
        with (
            RunningNode(tmp_path / "d", "--http=127.0.0.1:0", "--readers=0") as node,
            httpx.stream("GET", node.url + "/api/stats/stream", timeout=DEADLINE_S) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            assert node.stop() == 0
            list(lines)  # it ends as it should: a cut connection would raise
        assert not [line for line in node.log if "did not stop" in line or "Traceback" in line]
