"""The node: why it does not start, how it stops, and what becomes of its workers."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import psutil
import pytest
from crc32c import crc32c
from keyva.workers.node import Node
from nodes import RawClient, RunningNode, eventually, free_port, is_alive

import keyva
from keyva.client import node_processes
from keyva.endpoints import running_node
from keyva.errors import StoreLockedError
from keyva.files import OPEN_FILES_WANTED, Lock
from keyva.options import OPTION_DOCS, Options
from keyva.protocol import encode

COMMAND = [sys.executable, "-m", "keyva.workers.node", "--no-http"]


def refused(*arguments: str, code: int = 1, **options: object) -> str:
    """Run a node that cannot start and return the one line it says."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, cwd="/", check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("keyva-node: "), done.stderr
    return str(lines[-1])


class TestRefusals:
    def test_a_directory_another_node_owns_is_named_with_that_nodes_pid(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d") as node:
            assert str(node.process.pid) in refused("--dir", str(tmp_path / "d"))

    def test_of_nodes_that_start_at_the_same_moment_one_wins_and_the_others_name_it(self, tmp_path: Path) -> None:
        nodes = [RunningNode(tmp_path / "d", wait=False) for _ in range(4)]
        try:
            eventually(lambda: sum(node.process.poll() is None for node in nodes) == 1, "one is left")
            (winner,) = [node for node in nodes if node.process.poll() is None]
            assert winner.process.stdout is not None
            assert winner.process.stdout.readline().startswith("ready ")
            for loser in nodes:
                if loser is not winner:
                    assert loser.stop() == 1
                    assert f"owned by another node, process {winner.process.pid}" in loser.log[-1]
            with keyva.open(tmp_path / "d") as db:
                assert db.increment("n") == 1
        finally:
            for node in nodes:
                if node.process.poll() is None:
                    node.stop()

    def test_the_owner_is_named_once_it_has_written_its_pid(self, tmp_path: Path) -> None:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        (tmp_path / "LOCK").write_text(f"{gone.pid}\n")  # of a node that was killed
        owner = Lock(str(tmp_path / "LOCK"))
        assert owner.acquire()
        timer = threading.Timer(0.2, owner.write_owner)
        timer.start()
        try:
            with pytest.raises(StoreLockedError, match=f"process {os.getpid()}$") as found:
                Node(str(tmp_path), Options())._acquire()
            assert found.value.pid == os.getpid()
        finally:
            timer.join()
            owner.release()

    def test_a_port_in_use_is_named_after_some_tries(self, tmp_path: Path) -> None:
        port = free_port(2)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            line = refused("--dir", str(tmp_path / "d"), f"--listen=tcp://127.0.0.1:{port}")
        assert "the writer cannot start (5 tries)" in line
        assert "Address already in use" in line
        assert f"127.0.0.1:{port}" in line

    def test_a_file_where_the_directory_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "d").write_text("")
        assert "is a file" in refused("--dir", str(tmp_path / "d"))

    def test_no_permission(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir(mode=0o500)
        options: dict[str, object] = {}
        if os.getuid() == 0:
            for folder in [tmp_path, *tmp_path.parents][:3]:
                folder.chmod(folder.stat().st_mode | 0o755)
            (tmp_path / "d").chmod(0o700)
            # the interpreter and its packages may be readable to root alone, so they are loaded before the privileges go
            program = "import os, sys, keyva.workers.node as n, keyva.recovery; os.setgid(65534); os.setuid(65534); sys.exit(n.main())"
            done = subprocess.run(
                [sys.executable, "-c", program, "--dir", str(tmp_path / "d")],
                capture_output=True,
                text=True,
                timeout=60,
                cwd="/",
                check=False,
            )
            assert done.returncode == 1
            assert "no permission" in done.stderr
        else:
            assert "no permission" in refused("--dir", str(tmp_path / "d"), **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (["--block-size", "12"], "block_size"),
            (["--block-size", "many"], "block_size"),
            (["--durability", "never"], "durability"),
            (["--listen", "tcp://*:7000"], "listen"),
            (["--listen", "nonsense"], "listen"),
            (["--curve-server-key-file", "/nowhere"], "curve_client_keys_dir"),
        ],
    )
    def test_a_bad_setting_is_named(self, tmp_path: Path, flags: list[str], named: str) -> None:
        assert f"'{named}'" in refused("--dir", str(tmp_path / "d"), *flags, code=2)
        assert not (tmp_path / "d").exists()

    @pytest.mark.parametrize(
        ("text", "named"), [("blok_size = 4096", "block_size"), ("readers = '2'", "readers"), ("readers 2", "not valid TOML")]
    )
    def test_a_bad_setting_in_the_file_is_named(self, tmp_path: Path, text: str, named: str) -> None:
        (tmp_path / "keyva.toml").write_text(text)
        assert named in refused("--dir", str(tmp_path / "d"), "--config", str(tmp_path / "keyva.toml"), code=2)

    def test_an_unknown_flag_is_refused(self, tmp_path: Path) -> None:
        assert "--no-such" in refused("--dir", str(tmp_path / "d"), "--no-such", code=2)

    @pytest.mark.parametrize("flags", [["--dir", ""], ["--dir="], ["--dir", "d", "--config", ""]])
    def test_an_empty_name_is_not_the_current_directory(self, flags: list[str]) -> None:
        assert "it is empty" in refused(*flags, code=2)

    def test_a_directory_that_cannot_be_made_is_named_in_a_sentence(self) -> None:
        assert refused("--dir", "/proc/keyva").startswith("keyva-node: cannot use /proc/keyva: ")

    def test_a_store_of_a_newer_format(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d"):
            pass
        manifest = tmp_path / "d" / "MANIFEST"
        body = manifest.read_bytes().rpartition(b',\n"crc32c"')[0].replace(b'"format": 1', b'"format": 2')
        manifest.write_bytes(body + b',\n"crc32c": "%08x"\n}\n' % crc32c(body))
        assert "newer" in refused("--dir", str(tmp_path / "d"))

    def test_a_missing_manifest_beside_files(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d"), keyva.open(tmp_path / "d") as db:
            db.put("a", "1")
        (tmp_path / "d" / "MANIFEST").unlink()
        before = sorted((tmp_path / "d" / "wal").iterdir())
        assert "MANIFEST is missing" in refused("--dir", str(tmp_path / "d"))
        assert sorted((tmp_path / "d" / "wal").iterdir()) == before
        with pytest.raises(keyva.StoreError, match="MANIFEST is missing"):
            keyva.open(tmp_path / "d")


class TestSettings:
    def test_flags_win_over_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "keyva.toml").write_text("readers = 3\nblock_size = 8192\n")
        with RunningNode(tmp_path / "d", "--config", str(tmp_path / "keyva.toml"), "--readers", "2") as node:
            assert len(node.readers) == 2
            with keyva.open(tmp_path / "d", block_size=8192):
                pass

    def test_help_explains_every_flag(self) -> None:
        text = " ".join(subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, cwd="/", check=True).stdout.split())
        for field in msgspec.structs.fields(Options):
            assert f"--{field.name.replace('_', '-')}" in text
            assert " ".join(OPTION_DOCS[field.name].split())[:30].split("-")[0] in text


class TestLife:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_it_cleanly(self, tmp_path: Path, number: int) -> None:
        with RunningNode(tmp_path / "d") as node:
            with keyva.open(tmp_path / "d") as db:
                db.put("a", "1")
            family = node.family()
            node.process.send_signal(number)
            assert node.process.wait(30) == 0
            eventually(lambda: not any(is_alive(process) for process in family[1:]), "all of it is gone")
        assert not (tmp_path / "d" / "NODE").exists()
        assert list((tmp_path / "d" / "run").iterdir()) == []
        with RunningNode(tmp_path / "d"), keyva.open(tmp_path / "d") as db:
            assert db.get("a") == b"1"
            assert db.stats()["recovered_dropped_bytes"] == 0

    def test_killing_the_node_takes_its_workers_within_two_seconds(self, tmp_path: Path) -> None:
        node = RunningNode(tmp_path / "d")
        db = keyva.connect(node.endpoint)
        db.put("a", "1")
        workers = node.kill()
        eventually(lambda: not any(is_alive(process) for process in workers), "the workers are gone", 2.0)
        db.close()
        node.__exit__()
        with RunningNode(tmp_path / "d"), keyva.open(tmp_path / "d") as again:
            assert again.get("a") == b"1"

    @pytest.mark.parametrize("role", ["writer", "flusher", "compactor", "reader-0"])
    def test_a_killed_worker_is_started_again(self, tmp_path: Path, role: str) -> None:
        with RunningNode(tmp_path / "d") as node, keyva.connect(node.endpoint) as db:
            db.put("a", "1")
            pid = node.pid_of(role)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: node.pid_of(role) != pid, "a new worker")
            assert node.restarts_of(role) == 1
            assert db.increment("n") == 1
            assert db.get("a") == b"1"
            db.flush()
            db.compact_range()

    def test_a_worker_that_hangs_is_replaced(self, tmp_path: Path) -> None:
        with (
            RunningNode(tmp_path / "d", "--heartbeat-timeout-s=1.5", "--heartbeat-interval-s=0.2") as node,
            keyva.open(node.directory) as db,
        ):
            pid = node.pid_of("writer")
            os.kill(pid, signal.SIGSTOP)
            db.put("a", "1")
            assert db.get("a") == b"1"
            assert node.pid_of("writer") != pid
            assert not psutil.pid_exists(pid)

    def test_it_gives_up_on_a_writer_that_cannot_start(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d") as node:
            pid = node.pid_of("writer")
            (tmp_path / "d" / "MANIFEST").write_bytes(b"damaged")
            os.kill(pid, signal.SIGKILL)
            assert node.process.wait(30) == 1
        assert any("MANIFEST" in line and "offset" in line for line in node.log if line.startswith("keyva-node: "))

    def test_it_stops_though_a_worker_hangs(self, tmp_path: Path) -> None:
        program = "import sys, keyva.workers.node as n; n.STOP_TIMEOUT_S = 1.0; sys.exit(n.main())"
        with RunningNode(tmp_path / "d", "--heartbeat-timeout-s=60", program=program) as node, keyva.connect(node.endpoint) as db:
            db.put("a", "1")
            hanging = psutil.Process(node.pid_of("flusher"))
            hanging.send_signal(signal.SIGSTOP)
            assert node.stop() == 0
            assert not is_alive(hanging)
        assert any("flusher" in line and "did not stop" in line for line in node.log)
        with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
            assert db.get("a") == b"1"

    @pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="psutil reads limits of other processes on Linux only")
    def test_its_processes_may_have_as_many_files_open_as_a_large_store_needs(self, tmp_path: Path) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(OPEN_FILES_WANTED, hard)
        program = "import resource as r, sys, keyva.workers.node as n; "
        program += f"r.setrlimit(r.RLIMIT_NOFILE, (256, {hard})); sys.exit(n.main())"
        with RunningNode(tmp_path / "d", program=program) as node:
            assert {process.rlimit(psutil.RLIMIT_NOFILE)[0] for process in node.family()} == {wanted}

    def test_a_signal_while_it_starts_stops_it_cleanly(self, tmp_path: Path) -> None:
        node = RunningNode(tmp_path / "d", wait=False)
        eventually(lambda: (tmp_path / "d" / "writer.lock").exists(), "the writer starts")
        assert node.stop() == 0
        with RunningNode(tmp_path / "d") as node, keyva.open(node.directory) as db:
            assert db.increment("n") == 1

    def test_one_that_is_to_stop_when_idle_stays_for_its_clients_and_then_stops(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d", "--idle-stop-s=0.5") as node:
            with keyva.open(node.directory) as db:
                db.put("a", "1")
                with pytest.raises(subprocess.TimeoutExpired):
                    node.process.wait(2.0)
                assert db.get("a") == b"1"
            assert node.process.wait(30) == 0
        assert running_node(node.directory) is None
        assert not (tmp_path / "d" / "NODE").exists()

    def test_forged_words_of_its_workers_do_no_harm(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d") as node, keyva.connect(node.endpoint) as db:
            found = running_node(node.directory)
            assert found is not None
            pid = node.pid_of("writer")
            with RawClient(found.endpoints.control) as raw:
                bodies: list[object] = [5, None, [], ["StoreError"], ["a", "b", "c", "d"], [1, 2, 3], {}, "abc"]
                for body in bodies:
                    raw.send("failed", encode(["writer", 0, pid, body]))
                    raw.send("beat", encode(["writer", 0, pid, body]))
                    raw.send("dance", encode(["writer", 0, pid, body]))
                assert [process["pid"] for process in raw.ask("ps")] == [process["pid"] for process in node_processes(node.directory)]
            assert node.pid_of("writer") == pid
            assert db.increment("n") == 1

    def test_a_path_too_long_for_sockets_works(self, tmp_path: Path) -> None:
        directory = tmp_path / ("x" * 100) / ("y" * 100)
        with RunningNode(directory) as node, keyva.open(directory) as db, keyva.connect(node.endpoint) as remote:
            db.put("a", "1")
            assert remote.get("a") == b"1"
            folder = Path(node.endpoint.removeprefix("ipc://")).parent
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()

    def test_files_and_directories_are_for_the_owner_alone(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d"), keyva.open(tmp_path / "d") as db:
            db.put("a", "1")
            db.flush()
            for path in [tmp_path / "d", *(tmp_path / "d").rglob("*")]:
                if not path.is_socket():
                    assert path.stat().st_mode & 0o077 == 0, path

    def test_ps_lists_every_process(self, tmp_path: Path) -> None:
        with RunningNode(tmp_path / "d", "--readers=2") as node:
            processes = node_processes(node.directory)
            assert [process["role"] for process in processes] == ["node", "writer", "flusher", "compactor", "reader-0", "reader-1"]
            assert all(process["state"] == "running" and psutil.pid_exists(process["pid"]) for process in processes)
