"""Real nodes for tests: started, waited for with a deadline, ended by their pid, and nothing of them left behind."""

from __future__ import annotations

import signal
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
from keyva.protocol import ERROR, OK, PROTOCOL_VERSION, Request, decode_body, decode_error, decode_response, encode

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

    def __init__(self, directory: Path | str, *flags: str, wait: bool = True) -> None:
        self.directory = str(directory)
        command = [sys.executable, "-m", "keyva.workers.node", "--dir", self.directory, *flags]
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
        self.waits: list[str] = []

    def ask(self, op: str, body: bytes = b"\xc0", *, version: int = PROTOCOL_VERSION, timeout_s: float = DEADLINE_S) -> Any:
        self.number += 1
        self.socket.send_multipart([encode(Request(version, op, 0, self.number)), body])
        end = time.monotonic() + timeout_s
        while self.socket.poll(max(0, int(1000 * (end - time.monotonic())))):
            header, answer = self.socket.recv_multipart()
            response = decode_response(header)
            if response.request != self.number:
                continue
            if response.status == ERROR:
                raise decode_error(answer)
            if response.status == OK:
                return decode_body(answer)
            self.waits.append(decode_body(answer))
        raise TimeoutError(op)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()
