"""Real nodes for tests: started, waited for with a deadline, ended by their pid, and nothing of them left behind."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
import zmq

from keyva.client import node_processes
from keyva.protocol import ERROR, PROTOCOL_VERSION, WAIT, Request, Response, decode_body, decode_error, decode_response, encode

DEADLINE_S = 30.0


def eventually(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the condition's first true value; fails after the deadline."""
    event = threading.Event()
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        event.wait(0.01)
    return value


class RunningNode:
    """A `keyva-node` process of a test."""

    def __init__(self, directory: Path | str, *flags: str, wait: bool = True, program: str = "") -> None:
        self.directory = str(directory)
        module = ["-c", program] if program else ["-m", "keyva.workers.node"]
        http = [] if any(flag.startswith("--http") for flag in flags) else ["--no-http"]
        command = [sys.executable, *module, "--dir", self.directory, *http, *flags]
        self.log: list[str] = []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self._left: list[psutil.Process] = []
        self.ready = ""
        if wait:
            assert self.process.stdout is not None
            self.ready = self.process.stdout.readline()
            assert self.ready.startswith("ready "), self.log

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    @property
    def endpoint(self) -> str:
        return next(word for word in self.ready.split() if word.startswith("endpoint=")).removeprefix("endpoint=")

    @property
    def url(self) -> str:
        """Where it serves HTTP, without a slash at the end; for a node started with ``--http=127.0.0.1:0``."""
        return next(word for word in self.ready.split() if word.startswith("http=")).removeprefix("http=").rstrip("/")

    @property
    def readers(self) -> list[str]:
        return next(word for word in self.ready.split() if word.startswith("readers=")).removeprefix("readers=").split(",")

    def pid_of(self, role: str) -> int:
        """Return the pid of a running worker, waiting for it when it is being restarted."""

        def find() -> int:
            for process in node_processes(self.directory):
                if process["role"] == role and process["state"] == "running":
                    return int(process["pid"])
            return 0

        return int(eventually(find, f"{role} runs"))

    def restarts_of(self, role: str) -> int:
        return next(int(process["restarts"]) for process in node_processes(self.directory) if process["role"] == role)

    def family(self) -> list[psutil.Process]:
        """Return the node's process and all below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def kill(self) -> list[psutil.Process]:
        """Kill the node with -9 and return the processes it had."""
        family = self.family()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE_S)
        return family[1:]

    def stop(self) -> int:
        """Stop the node cleanly and return its exit code; nothing of it may be left."""
        if self.process.poll() is None:
            self._left = self.family()[1:]
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        eventually(lambda: not any(is_alive(process) for process in self._left), "the workers are gone")
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._left:
            if is_alive(process):
                process.send_signal(signal.SIGCONT)
        self.stop()


def free_port(count: int) -> int:
    """Return the first of ``count`` free tcp ports in a row, below those that the kernel gives to outgoing connections."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(10000, 32000)
        probes = [socket.socket() for _ in range(count)]
        try:
            for number, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return first
    raise AssertionError("no free ports")


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class RawClient:
    """Speaks to one socket of a node without the client library."""

    def __init__(self, endpoint: str) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.number = 0
        self.position = 0
        self.waits: list[str] = []
        self._answers: dict[int, tuple[Response, bytes]] = {}

    def send(
        self,
        op: str,
        body: bytes = b"\xc0",
        *,
        version: int = PROTOCOL_VERSION,
        client: int = 0,
        number: int = 0,
        floor: int = 0,
        as_of: int = 0,
        flags: int = 0,
    ) -> int:
        """Send a request (with the next number when none is given) and return its number."""
        self.number = number or self.number + 1
        self.socket.send_multipart([encode(Request(version, op, client, self.number, floor, as_of, flags)), body])
        return self.number

    def answer(self, number: int, timeout_s: float = DEADLINE_S) -> Any:
        """Wait for the answer to a request; raises the error that was answered. Notices that it waits go to `waits`."""
        end = time.monotonic() + timeout_s
        while number not in self._answers:
            if not self.socket.poll(max(0, int(1000 * (end - time.monotonic())))):
                raise TimeoutError(f"request {number}")
            header, body = self.socket.recv_multipart()
            response = decode_response(header)
            if response.status == WAIT:
                self.waits.append(decode_body(body))
            else:
                self._answers[response.request] = (response, body)
        response, body = self._answers.pop(number)
        self.position = response.position
        if response.status == ERROR:
            raise decode_error(body)
        return decode_body(body)

    def ask(self, op: str, body: bytes = b"\xc0", *, timeout_s: float = DEADLINE_S, **header: int) -> Any:
        """Send a request and wait for its answer."""
        return self.answer(self.send(op, body, **header), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()
