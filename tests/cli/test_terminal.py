"""The installed `keyva` as a process: pipes, signals, a terminal, and what it imports."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nodes import eventually, free_port

import keyva

KEYVA = Path(sysconfig.get_path("scripts")) / "keyva"
DEADLINE_S = 60.0
_RAW_MODE = b"\x1b[?2004h"
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # cursor movements and colours


class Terminal:
    """A process on a terminal of its own, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self.seen = b""
        self._prompts = 0

    def type_line(self, text: bytes) -> None:
        """Wait for the next prompt, then type: what comes before the terminal is in raw mode would get lost."""
        self._prompts += 1
        self.wait(lambda: self.seen.count(_RAW_MODE) >= self._prompts, f"prompt {self._prompts}")
        self.type(text)

    def type(self, text: bytes) -> None:
        os.write(self._fd, text)

    def wait_for(self, text: bytes) -> None:
        """Read until ``text`` was written, movements of the cursor aside."""
        self.wait(lambda: text in _CONTROL.sub(b"", self.seen), repr(text))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0] or not self._read():
                raise AssertionError(f"no {what} in {self.seen!r}")

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux says EIO when the other side has gone
            return False
        if b"\x1b[6n" in data:
            os.write(self._fd, b"\x1b[1;1R")  # a terminal answers where its cursor is
        self.seen += data
        return bool(data)

    def rest(self) -> bytes:
        """Read until the process has gone."""
        while self._read():
            pass
        self.process.wait(DEADLINE_S)
        return self.seen


@contextmanager
def terminal(*arguments: object, stdin: int | None = None, **environment: str) -> Iterator[Terminal]:
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40", **environment}
    process = subprocess.Popen(
        [str(KEYVA), *map(str, arguments)],
        stdin=side if stdin is None else stdin,
        stdout=side,
        stderr=side,
        env=env,
        start_new_session=True,
    )
    os.close(side)
    try:
        yield Terminal(process, main)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
        os.close(main)


def keyva_process(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(KEYVA), *map(str, arguments)], input=stdin, capture_output=True, timeout=DEADLINE_S, check=False)


class TestPipes:
    def test_bytes_go_through_the_installed_command_unchanged(self, store: Path) -> None:
        data = bytes(range(256)) * 100
        assert keyva_process("put", "k", "-", stdin=data).returncode == 0
        found = keyva_process("get", "k")
        assert (found.returncode, found.stdout, found.stderr) == (0, data, b"")

    def test_arguments_that_are_not_utf8(self, store: Path, client: keyva.Client) -> None:
        command = [os.fsencode(KEYVA), b"put", b"k\xff", b"v\xfe\xc3"]
        subprocess.run(command, check=True, timeout=DEADLINE_S)
        assert client.get(b"k\xff") == b"v\xfe\xc3"

    def test_an_error_is_one_line_and_a_code(self, store: Path) -> None:
        found = keyva_process("put", b"\xff\xff".decode("utf-8", "surrogateescape"), "v")
        assert found.returncode == 2
        assert found.stdout == b""
        assert re.fullmatch(rb"keyva: [^\n]*\n", found.stderr)

    @pytest.mark.parametrize("command", ["scan", "dump"])
    def test_a_reader_that_leaves_ends_it_quietly(self, command: str, store: Path, client: keyva.Client) -> None:
        client.put_many({b"%04d" % n: b"v" * 1000 for n in range(2000)})
        with subprocess.Popen([str(KEYVA), command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(DEADLINE_S) == 141

    def test_ctrl_c_ends_a_load_and_says_what_is_in_the_store(self, store: Path, client: keyva.Client) -> None:
        with subprocess.Popen([str(KEYVA), "load"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write(b"".join(b'{"key": "%04d", "value": "v"}\n' % n for n in range(1000)))
            process.stdin.flush()
            deadline = time.monotonic() + DEADLINE_S
            while client.get(b"0999") is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGINT)
            message = process.stderr.read()
            assert process.wait(DEADLINE_S) == 130
        assert message.count(b"\n") == 1
        assert b"the 1000 entries up to line 1000 are in the store" in message

    def test_sigterm_ends_a_load_and_says_what_is_in_the_store(self, store: Path, client: keyva.Client) -> None:
        with subprocess.Popen([str(KEYVA), "load"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(b"".join(b'{"key": "%04d", "value": "v"}\n' % n for n in range(1000)))
            process.stdin.flush()
            eventually(lambda: client.get(b"0999"), "the batch is written")
            process.terminate()
            message = process.stderr.read()
            assert process.wait(DEADLINE_S) == 143
        assert message.count(b"\n") == 1 and b" 1000 " in message

    def test_a_command_without_a_node_starts_one_that_stops_by_itself(self, tmp_path: Path) -> None:
        directory = tmp_path / "new"
        assert keyva_process("--dir", directory, "put", "a", "1").returncode == 0
        assert keyva_process("--dir", directory, "get", "a").stdout == b"1"
        deadline = time.monotonic() + DEADLINE_S
        while (directory / "NODE").exists():
            assert time.monotonic() < deadline, "the background node does not stop"
            time.sleep(0.05)


class TestFirstMoments:
    """A signal while modules are imported: there is nothing to tidy up, and nothing to say."""

    @pytest.mark.parametrize(
        ("command", "number", "code"),
        [
            ("keyva", signal.SIGINT, 130),
            ("keyva-bench", signal.SIGINT, 130),
            ("keyva-node", signal.SIGINT, 130),
            ("keyva-node", signal.SIGTERM, 0),
        ],
    )
    def test_a_signal_ends_it_without_a_word(self, command: str, number: int, code: int, tmp_path: Path) -> None:
        (tmp_path / "msgspec.py").write_text("import threading\nprint('importing', flush=True)\nthreading.Event().wait(60)\n")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        arguments = [str(KEYVA.with_name(command)), "--dir", str(tmp_path / "store")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == b"importing\n"
            process.send_signal(number)
            assert (process.wait(DEADLINE_S), process.stderr.read()) == (code, b"")


class TestClosedStreams:
    """What a shell's >&- and <&- leave: no stream at all."""

    @pytest.mark.parametrize("arguments", ["put a 1", "incr n", "delete a", "exists a", "flush"])
    def test_what_needs_no_output_is_done_without_it(self, arguments: str, store: Path, client: keyva.Client) -> None:
        client.put(b"a", b"1")
        found = shell(f"{KEYVA} {arguments} >&-")
        assert (found.returncode, found.stderr) == (0, b"")

    @pytest.mark.parametrize("arguments", ["get a", "scan", "dump", "stats", "ps"])
    def test_what_is_output_is_refused_in_one_line(self, arguments: str, store: Path, client: keyva.Client) -> None:
        client.put(b"a", b"1")
        found = shell(f"{KEYVA} {arguments} >&-")
        assert (found.returncode, found.stderr) == (5, b"keyva: standard output is closed\n")

    @pytest.mark.parametrize("arguments", ["put a -", "load", "", "wal build x"])
    def test_what_is_input_is_refused_in_one_line(self, arguments: str, store: Path, tmp_path: Path) -> None:
        found = shell(f"cd {tmp_path} && {KEYVA} {arguments} <&-")
        assert (found.returncode, found.stderr) == (5, b"keyva: standard input is closed\n")

    def test_a_prompt_without_output_is_refused(self, store: Path) -> None:
        found = shell(f"echo put a 1 | {KEYVA} >&-")
        assert (found.returncode, found.stderr) == (5, b"keyva: standard output is closed\n")

    def test_no_file_of_the_store_gets_the_number_of_a_stream(self, tmp_path: Path) -> None:
        code = "import keyva.cli.output as o, os; o.fill_standard_streams(); print(os.open('.', os.O_RDONLY) > 2)"
        assert shell(f'{sys.executable} -c "{code}" <&-').stdout == b"True\n"

    @pytest.mark.parametrize("arguments", ["--help", "scan --help", "--version"])
    def test_help_for_a_reader_that_has_gone_is_no_absent_key(self, arguments: str) -> None:
        read, write = os.pipe()
        os.close(read)
        with subprocess.Popen([str(KEYVA), *arguments.split()], stdout=write, stderr=subprocess.PIPE) as process:
            os.close(write)
            assert process.stderr is not None
            assert (process.stderr.read(), process.wait(DEADLINE_S)) == (b"", 141)


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False)


class TestTerminal:
    def test_a_value_gets_a_newline(self, store: Path, client: keyva.Client) -> None:
        client.put(b"a", b"value")
        with terminal("get", "a") as found:
            assert found.rest() == b"value\r\n"
            assert found.process.returncode == 0

    def test_stats_and_ps_are_tables(self, store: Path) -> None:
        with terminal("ps") as found:
            assert b"restarts" in found.rest()
        with terminal("stats") as found:
            assert b"figure" in found.rest()

    def test_load_shows_progress_and_a_total(self, store: Path, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(b"".join(b'{"key": "%05d", "value": "v"}\n' % n for n in range(5000)))
        with terminal("load", tmp_path / "in") as found:
            text = found.rest()
            assert b"\x1b[" in text
            assert b"5000 entries loaded" in text
            assert found.process.returncode == 0

    def test_the_prompt_runs_commands_completes_and_remembers(self, store: Path, tmp_path: Path) -> None:
        with terminal(XDG_STATE_HOME=str(tmp_path)) as found:
            found.type_line(b"put user:1 Ada\r")
            found.type_line(b"get us\t")
            found.wait_for(b"get user:1")
            found.type(b"\r")
            found.wait_for(b"Ada\r\n")
            found.type_line(b"nonsense\r")
            found.wait_for(b"there is no command")
            found.type_line(b"get user:1\x03")  # Ctrl-C drops the line only
            found.type_line(b"exists user:1\r")
            found.wait_for(b"true")
            found.type_line(b"\x04")  # Ctrl-D
            found.rest()
            assert found.process.returncode == 0
        history = tmp_path / "keyva" / "history"
        assert b"put user:1 Ada" in history.read_bytes()
        assert history.stat().st_mode & 0o077 == 0

    def test_the_prompt_survives_what_the_locale_cannot_show(self, store: Path, client: keyva.Client, tmp_path: Path) -> None:
        client.put("café".encode(), "naïve".encode())
        with terminal(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", XDG_STATE_HOME=str(tmp_path)) as found:
            found.type_line(b"scan\r")
            found.wait_for(rb"caf\xc3\xa9" + b"\t" + rb"na\xc3\xafve")
            found.type_line(rb"get caf\xc3\xa9" + b"\r")
            found.wait_for(rb"na\xc3\xafve")
            found.type_line("exists café".encode() + b"\r")
            found.wait_for(b"true")
            found.type_line(b"\x04")
            found.rest()
            assert found.process.returncode == 0

    def test_sigterm_ends_the_prompt(self, store: Path, tmp_path: Path) -> None:
        with terminal(XDG_STATE_HOME=str(tmp_path)) as found:
            found.type_line(b"exists a\r")
            found.wait_for(b"false")
            found.wait(lambda: found.seen.count(_RAW_MODE) >= 2, "the next prompt")
            found.process.terminate()
            found.rest()
            assert found.process.returncode == 143


class TestCurve:
    def test_keys_of_keygen_let_in_who_has_them_and_nobody_else(self, tmp_path: Path) -> None:
        for name, folder in (("node", "node"), ("alice", "alice"), ("mallory", "mallory")):
            assert keyva_process("keygen", name, "--out", tmp_path / folder).returncode == 0
        clients = tmp_path / "clients"
        clients.mkdir()
        (clients / "alice.key").write_bytes((tmp_path / "alice" / "alice.key").read_bytes())
        endpoint = f"tcp://127.0.0.1:{free_port(2)}"
        command = [
            *(str(KEYVA.with_name("keyva-node")), "--no-http"),
            *("--dir", str(tmp_path / "store"), "--listen", endpoint),
            *("--curve-server-key-file", str(tmp_path / "node" / "node.key_secret"), "--curve-client-keys-dir", str(clients)),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as node:
            try:
                assert node.stdout is not None
                assert node.stdout.readline().startswith(b"ready ")
                server = ("--endpoint", endpoint, "--curve-server-key", tmp_path / "node" / "node.key")
                alice = (*server, "--curve-key", tmp_path / "alice" / "alice.key_secret")
                assert keyva_process(*alice, "put", "a", "1").returncode == 0
                assert keyva_process(*alice, "get", "a").stdout == b"1"
                mallory = (*server, "--curve-key", tmp_path / "mallory" / "mallory.key_secret")
                assert keyva_process("--timeout", "1", *mallory, "get", "a").returncode == 3
                assert keyva_process("--timeout", "1", "--endpoint", endpoint, "get", "a").returncode == 3
                assert keyva_process(*server, "get", "a").returncode == 2
            finally:
                node.terminate()
                assert node.wait(DEADLINE_S) == 0


class TestImports:
    @pytest.mark.parametrize("module", ["rich", "prompt_toolkit", "zmq.auth"])
    def test_get_pays_for_no_heavy_module(self, module: str, store: Path, client: keyva.Client) -> None:
        client.put(b"a", b"1")
        code = f"import sys\nfrom keyva.cli.main import cli\ntry:\n cli.main(['get', 'a'])\nfinally:\n print({module!r} in sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_S, check=True, text=True)
        assert found.stdout == "1False\n"
