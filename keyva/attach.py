"""Finding the node of a directory, or starting one in the background.

Any number of processes may do this at the same moment: LOCK lets one node win, start.lock lets one client at a time start it, and
clients.lock, held shared by everyone attached, tells a node that stops when idle that it is needed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from typing import IO, Any, NamedTuple

from keyva import errors
from keyva.endpoints import NodeInfo, read_node_info
from keyva.errors import StoreError, UnavailableError
from keyva.filename import CLIENTS_LOCK, LOCK, START_LOCK
from keyva.files import FILES, Lock, translate
from keyva.recovery import prepare_directory

__all__ = ["Attachment", "attach", "is_running"]

IDLE_STOP_S = 5.0
_LOOK_AGAIN_S = (0.01, 0.05)


class Attachment(NamedTuple):
    """A running node, and the lock that says we use it; release the lock to let go."""

    node: NodeInfo
    lock: Lock


def is_running(directory: str, node: NodeInfo) -> bool:
    """Say whether ``node`` still owns ``directory``. Costs some system calls."""
    if not Lock.is_held(os.path.join(directory, LOCK)):
        return False
    found = read_node_info(directory)
    return found is None or (found.pid, found.started_at) == (node.pid, node.started_at)


def attach(directory: str, settings: dict[str, Any], timeout_s: float) -> Attachment:
    """Attach to the node of ``directory``; start one with ``settings`` when there is none.

    Raises the error that the node gave when it cannot run (`StoreError` and others), `UnavailableError` after ``timeout_s``.
    """
    try:
        return _attach(directory, settings, timeout_s)
    except OSError as error:
        translated = translate(error, f"using {directory}")
        if translated is error:
            translated = StoreError(f"{directory} cannot be used as a store: {error}")
        raise translated from error


def _attach(directory: str, settings: dict[str, Any], timeout_s: float) -> Attachment:
    prepare_directory(directory, FILES)
    deadline = time.monotonic() + timeout_s
    failure: Exception | None = None
    while time.monotonic() < deadline:
        if Lock.is_held(os.path.join(directory, LOCK)):
            found = _join(directory)
            if found is not None:
                return found
        else:
            starter = Lock(os.path.join(directory, START_LOCK))
            try:
                if starter.acquire() and not Lock.is_held(os.path.join(directory, LOCK)):
                    failure = _start(directory, settings, deadline)
                    if failure is not None and not isinstance(failure, errors.StoreLockedError | UnavailableError):
                        raise failure
                    continue
            finally:
                starter.release()
        time.sleep(random.uniform(*_LOOK_AGAIN_S))  # somebody else is starting or stopping a node
    raise UnavailableError(f"{directory}: no node was ready in {timeout_s:g} s{f' ({failure})' if failure else ''}")


def _join(directory: str) -> Attachment | None:
    """Attach to the running node; None when it is not ready yet, or is going."""
    node = read_node_info(directory)
    if node is None:
        return None
    lock = Lock(os.path.join(directory, CLIENTS_LOCK))
    if lock.acquire(shared=True) and is_running(directory, node) and read_node_info(directory) == node:
        return Attachment(node, lock)
    lock.release()
    return None


def _start(directory: str, settings: dict[str, Any], deadline: float) -> Exception | None:
    """Start a node in the background and wait until it is ready; returns the error it gave, None when it runs."""
    command = [sys.executable, "-m", "keyva.workers.node", "--dir", directory, "--background"]
    for name, value in {"idle_stop_s": IDLE_STOP_S, "http": "", **settings}.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            command.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            command.append(f"{flag}={value}")
    log = os.open(os.path.join(directory, "log", "node.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, cwd="/")
    finally:
        os.close(log)
    assert process.stdout is not None
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        process.kill()

    watchdog = threading.Timer(max(0.1, deadline - time.monotonic()), stop)
    watchdog.daemon = True
    watchdog.start()
    try:
        line = _first_word(process.stdout)
        if line.startswith("ready "):
            threading.Thread(target=process.wait, name="keyva-node-reaper", daemon=True).start()  # leaves no zombie when the node ends
            return None
        code = process.wait()
    finally:
        watchdog.cancel()
        process.stdout.close()
    if line.startswith("error: "):
        name, _, message = line.removeprefix("error: ").partition(": ")
        error = errors.by_name(name, message)
        return error if type(error).__name__ == name else StoreError(f"{name}: {message}")
    if expired.is_set():
        return UnavailableError(f"the node was not ready in time; see {os.path.join(directory, 'log', 'node.log')}")
    return StoreError(
        f"the node of {directory} ended with code {code} before it was ready; see {os.path.join(directory, 'log', 'node.log')}"
    )


def _first_word(output: IO[bytes]) -> str:
    """Return the line by which a node says that it is ready or why it is not; what else is printed as Python starts is not for us."""
    for line in output:
        if line.startswith((b"ready ", b"error: ")):
            return line.decode(errors="replace").strip()
    return ""
