"""PULSE: one shared page that says what is committed right now, so that readers need no message.

Format: docs/format.md, "PULSE". Three 64-bit words in native order: the commit position (log number << 32 | offset in that log),
the manifest's generation, and the sum of both, modulo 2^64. Each is stored and loaded whole (an aligned 8-byte copy is one machine
store), so there is no lock that a dying process could leave behind. The file is rewritten in place and never replaced.

Order: the writer publishes the sum first, the generation second, the position last; a reader loads the position first, the generation
second. So the manifest that a reader finds is never older than the log that the position names.

The sum is there for hot readers: position and generation never fall, so it is another one with every change, and one word tells that
nothing has changed. A reader compares it with the sum of the position and generation it has applied, not with a sum it has read
before: so it looks at them again and again until it has applied those that the sum announced. What one reader has seen, no other
can miss afterwards, for the sum was there before it.

It means something only while a writer runs; a starting writer sets it anew.
"""

from __future__ import annotations

import mmap
import os

from keyva.errors import StoreError
from keyva.filename import PULSE

__all__ = ["PAGE_BYTES", "Pulse", "position_of", "split_position", "sum_of"]

PAGE_BYTES = 4096
_WORD_MAX = 2**64 - 1


def position_of(log: int, offset: int) -> int:
    """Pack a log's number and an offset in it into one word, which grows with every commit."""
    return log << 32 | offset


def sum_of(position: int, generation: int) -> int:
    """Return the third word for the other two."""
    return (position + generation) & _WORD_MAX


def split_position(position: int) -> tuple[int, int]:
    """Return (log number, offset)."""
    return position >> 32, position & 0xFFFFFFFF


class Pulse:
    """The mapped page. ``words[0]`` is the position, ``words[1]`` the generation, ``words[2]`` their sum; hot readers compare it by
    themselves."""

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
        words[2] = sum_of(position, generation)
        if words[1] != generation:
            words[1] = generation
        words[0] = position

    def close(self) -> None:
        """Unmap the page; nobody may use ``words`` after that."""
        self.words.release()
        self._map.close()
