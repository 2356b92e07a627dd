"""What every system under test can be asked: the interface of the adapters.

A system is opened in a directory of its own and keeps nothing elsewhere. ``sync`` says whether a write returns when it survives a power
cut; the same store with and without is two systems. Peers get the settings their documentation recommends, which ``setup`` says.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from keyva.bench.machine import is_alive, wait_until

__all__ = ["CACHE_BYTES", "WRITE_BUFFER_BYTES", "Batch", "System", "close_all"]

Batch = Sequence[tuple[bytes, bytes]]

CACHE_BYTES = 64 * 1024 * 1024
"""Block cache of every system that has one; keyva's default."""

WRITE_BUFFER_BYTES = 64 * 1024 * 1024
"""Memtable of every system that has one; the default of keyva and of RocksDB."""


class System:
    """One store of one directory. Methods that a system lacks raise NotImplementedError, and the workload is left out for it."""

    name: ClassVar[str] = ""
    setup: ClassVar[str] = ""
    module: ClassVar[str] = ""
    """Distribution that must be installed, "" for none."""

    program: ClassVar[str] = ""
    """Program that must be installed, "" for none."""

    sync: ClassVar[bool] = True
    processes: ClassVar[bool] = False
    """Whether several processes may use the store at once."""

    threads: ClassVar[bool] = True

    remote: ClassVar[bool] = False
    """Whether a read is a message to another process."""

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        self.directory = directory

    @classmethod
    def attach(cls, directory: str, cache_bytes: int = CACHE_BYTES) -> System:
        """Return what a further process uses: the store as it is, opened again."""
        return cls(directory, cache_bytes)

    def put(self, key: bytes, value: bytes) -> None:
        """Write one entry."""
        raise NotImplementedError

    def delete(self, key: bytes) -> None:
        """Remove one entry."""
        raise NotImplementedError

    def write(self, batch: Batch) -> None:
        """Write a batch, atomically where the system can."""
        raise NotImplementedError

    def pipeline(self, batch: Batch) -> None:
        """Write entries one by one, in one message."""
        raise NotImplementedError

    def get(self, key: bytes) -> bytes | None:
        """Read one entry."""
        raise NotImplementedError

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Read several entries."""
        return [self.get(key) for key in keys]

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        """Iterate over all entries."""
        raise NotImplementedError

    def seek(self, key: bytes, count: int) -> int:
        """Read up to ``count`` entries from ``key`` on; return how many there were."""
        raise NotImplementedError

    def settle(self) -> None:
        """Flush and compact all, as far as the system has calls for it."""

    def quiet(self) -> None:
        """Write what is in memory to files and wait until the background work that the system starts by itself is done."""
        self.settle()

    def pids(self) -> dict[str, int]:
        """Return the processes that belong to the store by what they do, this one not among them."""
        return {}

    def kill(self) -> None:
        """Kill (SIGKILL) the processes of the store and wait for their end; what is left to do then is `close`."""
        pids = self.pids().values()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_until(lambda: not any(map(is_alive, pids)), "the killed processes are gone")

    def close(self) -> None:
        """Close it; the directory stays."""


def close_all(stores: Mapping[str, System]) -> None:
    """Close all stores, also when one cannot be closed; then raises its error."""
    with ExitStack() as stack:
        for store in stores.values():
            stack.callback(store.close)
