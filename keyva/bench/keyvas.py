"""keyva as a system under test: on the same host, and over sockets."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterable
from typing import Any

import keyva
from keyva.bench.machine import is_alive, wait_until
from keyva.bench.system import CACHE_BYTES, Batch, System
from keyva.client import node_processes
from keyva.endpoints import running_node

__all__ = ["Keyva", "KeyvaIpc", "KeyvaNoSync", "KeyvaTcp"]

_PORTS = 2
"""A node's own port for other hosts, and that of its one reader."""


class Keyva(System):
    name = "keyva"
    setup = "defaults: every write is synced (fdatasync)"
    processes = True

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES, owner: bool = True) -> None:
        super().__init__(directory)
        self._owner = owner
        self.db = self._open(cache_bytes)
        self.get = self.db.get  # type: ignore[method-assign]
        self.get_many = self.db.get_many  # type: ignore[method-assign]

    def _open(self, cache_bytes: int) -> keyva.Client:
        return keyva.open(self.directory, block_cache_size=cache_bytes)

    @classmethod
    def attach(cls, directory: str, cache_bytes: int = CACHE_BYTES) -> System:
        return cls(directory, cache_bytes, owner=False)

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, sync=self.sync)

    def delete(self, key: bytes) -> None:
        self.db.delete(key, sync=self.sync)

    def write(self, batch: Batch) -> None:
        self.db.put_many(batch, sync=self.sync)

    def pipeline(self, batch: Batch) -> None:
        with self.db.pipeline(sync=self.sync) as pipe:
            put = pipe.put
            for key, value in batch:
                put(key, value)

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        return self.db.iterator(reverse=reverse)

    def seek(self, key: bytes, count: int) -> int:
        with self.db.iterator(start=key) as found:
            return sum(1 for _ in zip(range(count), found, strict=False))

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range()

    def quiet(self) -> None:
        self.db.flush()

        def done() -> bool:
            stats = self.db.stats()
            return not stats["immutable_memtables"] and not stats["pending_compaction_bytes"]

        wait_until(done, "keyva is quiet")

    def pids(self) -> dict[str, int]:
        return {str(process["role"]): int(process["pid"]) for process in node_processes(self.directory)}

    def kill(self) -> None:
        super().kill()
        self._owner = False  # nothing is left to be ended

    def close(self) -> None:
        """Close the client, and end the node when this is the system that started it."""
        try:
            pids = self.pids() if self._owner else {}
        except keyva.UnavailableError:  # it has ended by itself
            pids = {}
        self.db.close()
        if pids:
            os.kill(pids["node"], signal.SIGTERM)  # its workers end with it
            wait_until(lambda: not any(map(is_alive, pids.values())), "the node has ended")


class KeyvaNoSync(Keyva):
    name = "keyva-nosync"
    setup = "as keyva, but writes survive crashes of processes only"
    sync = False


class KeyvaIpc(Keyva):
    name = "keyva-ipc"
    setup = "defaults, through keyva.connect over a unix socket: every read is a message"
    remote = True

    def _open(self, cache_bytes: int) -> keyva.Client:
        self._embedded = keyva.open(self.directory, block_cache_size=cache_bytes, **self._listening()) if self._owner else None
        node = running_node(self.directory)
        if node is None:
            raise keyva.UnavailableError(f"no node runs in {self.directory}")
        return keyva.connect(node.endpoints.listen or node.endpoints.writer)

    def _listening(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        if self._embedded is not None:
            self._embedded.close()
        super().close()


class KeyvaTcp(KeyvaIpc):
    name = "keyva-tcp"
    setup = "defaults, through keyva.connect over tcp on loopback: every read is a message"

    def _listening(self) -> dict[str, Any]:
        return {"listen": f"tcp://127.0.0.1:{free_ports(_PORTS)}"}


def free_ports(count: int) -> int:
    """Return the first of ``count`` free tcp ports in a row, below those that the system hands out. Raises OSError."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(10000, 30000)
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
    raise OSError(f"no {count} free ports in a row on 127.0.0.1")
