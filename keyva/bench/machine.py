"""What was measured on: processor, memory, file system, versions; and how much memory processes take."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Self

import keyva
from keyva.errors import ConfigError, UnavailableError
from keyva.filename import LOCK
from keyva.files import Lock

__all__ = [
    "MemoryPeaks",
    "directory_bytes",
    "end_processes",
    "is_alive",
    "machine",
    "proportional_memory_bytes",
    "room_for",
    "scratch",
    "wait_until",
]

WAIT_S = 3600.0
SAMPLE_S = 0.5
END_S = 30.0
"""A node that was told to stop kills a worker that hangs after 10 s."""


def machine(directory: str) -> dict[str, str | int | float]:
    """Return what a reader of the figures must know of the machine."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": _file_system(directory),
        "python": platform.python_version(),
        "keyva": keyva.__version__,
        "load": round(os.getloadavg()[0], 2),
        "command": " ".join(["keyva-bench", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _field(path: str, name: str) -> str:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(name):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def _file_system(directory: str) -> str:
    """Return the type of the file system, by the longest mount point above the directory."""
    best, kind = "", ""
    try:
        with open("/proc/mounts") as file:
            for line in file:
                _, point, found, *_ = line.split()
                if (directory + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                    best, kind = point, found
    except OSError:
        pass
    return kind


def proportional_memory_bytes(pids: Iterable[int]) -> int:
    """Return the proportional set size (PSS) of some processes together; a process that has gone counts 0. Linux only."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(1024 * int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


class MemoryPeaks:
    """Samples the PSS of some processes while a block runs; ``bytes`` is the largest seen of each, by name."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.bytes = dict.fromkeys(pids, 0)
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keyva-bench-memory", daemon=True)

    def sample(self) -> dict[str, int]:
        """Return the PSS of each process now."""
        found = {name: proportional_memory_bytes([pid]) for name, pid in self._pids.items()}
        self.bytes = {name: max(self.bytes[name], size) for name, size in found.items()}
        return found

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.sample()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and was not waited for (a zombie) does not.

    While threads of a zombie are still ending, its files and locks are still open: then it does.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rsplit(")", 1)[1].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], what: str, limit_s: float = WAIT_S) -> None:
    """Wait until ``condition()`` is true, looking every millisecond at first; raises `UnavailableError` after ``limit_s``."""
    end = time.monotonic() + limit_s
    pause_s = 0.001
    while not condition():
        if time.monotonic() > end:
            raise UnavailableError(f"not within {limit_s:g} s: {what}")
        time.sleep(pause_s)
        pause_s = min(0.05, 1.5 * pause_s)


def directory_bytes(directory: str) -> int:
    """Return the bytes that the files of a directory take on disk."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


def room_for(directory: str, bytes_needed: int) -> None:
    """Raise `ConfigError` when the file system has not that much room."""
    free = shutil.disk_usage(directory).free
    if free < bytes_needed:
        raise ConfigError(f"{directory} has {free / 1e9:.1f} GB free, and about {bytes_needed / 1e9:.1f} GB are needed; name another --dir")


@contextmanager
def scratch(parent: str | None) -> Iterator[str]:
    """Give a directory below ``parent`` (None: that for temporary files), and remove it afterwards.

    A store that was interrupted while it opened has nobody to close it: what runs in the directory then is ended before it goes.
    """
    path = tempfile.mkdtemp(prefix="keyva-bench-", dir=parent)
    try:
        yield path
    finally:
        end_processes(path)
        shutil.rmtree(path, ignore_errors=True)


def end_processes(directory: str) -> None:
    """End the nodes that own stores below ``directory``, and processes started by this one whose command line names a path there.

    The latter have perhaps not locked anything yet. Those that do not end in time are killed.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        pids = _owners(directory) | _started_for(directory)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        with suppress(UnavailableError):
            wait_until(partial(_have_ended, pids), "all processes have ended", limit_s=END_S)


def _have_ended(pids: Iterable[int]) -> bool:
    return not any(map(is_alive, pids))


def _owners(directory: str) -> set[int]:
    """Return the nodes that hold the LOCK of a store below ``directory``."""
    found = set()
    for folder, _, names in os.walk(directory):
        path = os.path.join(folder, LOCK)
        if LOCK in names and Lock.is_held(path):
            with suppress(OSError, ValueError), open(path) as file:
                found.add(int(file.read()))
    return {pid for pid in found if pid > 0 and is_alive(pid)}


def _started_for(directory: str) -> set[int]:
    """Return this process's children whose command line names a path below ``directory``. Linux only."""
    found = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if not name.isdigit() or not is_alive(int(name)):
            continue
        with suppress(OSError):
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if parent == os.getpid() and any(os.fsencode(directory) + b"/" in word for word in words):
                found.add(int(name))
    return found
