"""A store in memory that notes its calls: what workloads are tested with."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from sortedcontainers import SortedDict

from keyva.bench.system import Batch, System


class Memory(System):
    name = "memory"
    setup = "a sorted dict"

    def __init__(self, directory: str = "", cache_bytes: int = 0) -> None:
        super().__init__(directory)
        self.entries: Any = SortedDict()
        self.calls: list[tuple[Any, ...]] = []
        self.lock = threading.Lock()

    def put(self, key: bytes, value: bytes) -> None:
        with self.lock:
            self.calls.append(("put", key))
            self.entries[key] = value

    def delete(self, key: bytes) -> None:
        self.calls.append(("delete", key))
        self.entries.pop(key, None)

    def write(self, batch: Batch) -> None:
        with self.lock:
            self.calls.append(("write", len(batch)))
            self.entries.update(batch)

    def pipeline(self, batch: Batch) -> None:
        self.write(batch)

    def get(self, key: bytes) -> bytes | None:
        self.calls.append(("get", key))
        value: bytes | None = self.entries.get(key)
        return value

    def scan(self, reverse: bool = False) -> Iterable[Any]:
        entries = list(self.entries.items())
        return entries[::-1] if reverse else entries

    def seek(self, key: bytes, count: int) -> int:
        self.calls.append(("seek", key, count))
        return sum(1 for _ in zip(range(count), self.entries.irange(key), strict=False))
