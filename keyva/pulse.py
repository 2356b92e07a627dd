"""PULSE: one shared page that says what is committed right now, so that readers need no message.

Format: docs/format.md, "PULSE". Two 64-bit words in native order: the commit position (log number << 32 | offset in that log) and
the manifest's generation. Each is stored and loaded whole (an aligned 8-byte copy is one machine store), so there is no lock that a
dying process could leave behind. The file is rewritten in place and never replaced.

Order: the writer publishes the generation first, the position second; a reader loads the position first, the generation
second. So the manifest that a reader finds is never older than the log that the position names.

It means something only while a writer runs; a starting writer sets it anew.
"""

from __future__ import annotations

import mmap
import os

from keyva.errors import StoreError
from keyva.filename import PULSE

__all__ = ["PAGE_BYTES", "Pulse", "position_of", "split_position"]

PAGE_BYTES = 4096


def position_of(log: int, offset: int) -> int:
    """Pack a log's number and an offset in it into one word, which grows with every commit."""
    return log << 32 | offset


def split_position(position: int) -> tuple[int, int]:
    """Return (log number, offset)."""
    return position >> 32, position & 0xFFFFFFFF


class Pulse:
    """The mapped page. ``words[0]`` is the position, ``words[1]`` the generation; hot readers compare them by themselves."""

    def __init__(self, directory: str, *, write: bool = False) -> None:
        path = os.path.join(directory, PULSE)
        fd = os.open(path, (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o600)
        try:
            if write and os.fstat(fd).st_size < PAGE_BYTES:
                os.pwrite(fd, bytes(PAGE_BYTES), 0)  # real blocks: a store into a hole of a full disk would be a SIGBUS
                os.fsync(fd)
            if os.fstat(fd).st_size < PAGE_BYTES:
                raise StoreError(f"{path} is cut short; it is made anew when the node starts")
            self._map = mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
        finally:
            os.close(fd)
        self.words = memoryview(self._map).cast("Q")

    def publish(self, position: int, generation: int) -> None:
        """Say that everything up to ``position`` is committed, under manifest ``generation``."""
        words = self.words
        if words[1] != generation:
            words[1] = generation
        words[0] = position

    def close(self) -> None:
        """Unmap the page; nobody may use ``words`` after that."""
        self.words.release()
        self._map.close()
