"""A disk with faults: `FaultFiles` is a real `Files` that can fail, fill up, and lose power.

It works on a real directory and keeps beside it what a power cut would leave: for every file the content at its last
``fdatasync``, for every directory the names at its last ``fsync_dir``. `FaultFiles.power_cut` puts the directory back to that.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from keyva.files import Files

SECTOR_BYTES = 512


@dataclass(eq=False)
class DurableFile:
    """The synced content of one file, whatever its name is by now."""

    content: bytes = b""


@dataclass
class DurableDirectory:
    """Names now and at the last sync of the directory."""

    now: dict[str, DurableFile] = field(default_factory=dict)
    synced: dict[str, DurableFile] = field(default_factory=dict)


@dataclass
class Fault:
    """Fails calls ``after`` .. ``after + times - 1`` (counted from 0) of one method; a write leaves ``partial`` bytes."""

    after: int
    times: int
    error: int
    partial: int = 0


class FaultFiles(Files):
    """Counts calls in ``calls``; fails and fills up as told; knows what would survive a power cut."""

    def __init__(self, *, space_bytes: int | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.space_bytes = space_bytes
        """Bytes that may still be written; None: no limit."""
        self._faults: dict[str, list[Fault]] = {}
        self._directories: dict[str, DurableDirectory] = {}
        self._open: dict[int, tuple[str, DurableFile]] = {}

    def fail(self, method: str, error: int = errno.EIO, *, after: int = 0, times: int = 1, partial: int = 0) -> None:
        """Let ``times`` calls of ``method`` fail, when ``after`` more have succeeded."""
        assert hasattr(Files, method), method
        start = self.calls[method] + after
        self._faults.setdefault(method, []).append(Fault(start, times, error, partial))

    def heal(self) -> None:
        """Forget all faults and give back all space."""
        self._faults.clear()
        self.space_bytes = None

    def power_cut(self, rng: Random | None = None) -> None:
        """Put every directory back to what was synced; with ``rng`` some un-synced sectors reach the disk, in no order."""
        for fd in list(self._open):
            self.close(fd)
        for directory, names in self._directories.items():
            contents = {name: self._survivor(directory, name, file, names, rng) for name, file in names.synced.items()}
            for name in list(names.now):
                os.unlink(os.path.join(directory, name))
            for name, content in contents.items():
                with open(os.path.join(directory, name), "wb") as out:
                    out.write(content)
                names.synced[name].content = content
            names.now = dict(names.synced)

    def _survivor(self, directory: str, name: str, file: DurableFile, names: DurableDirectory, rng: Random | None) -> bytes:
        if rng is None or names.now.get(name) is not file:
            return file.content
        with open(os.path.join(directory, name), "rb") as source:
            written = source.read()
        size = rng.choice((len(file.content), len(written)))
        old, new = file.content.ljust(size, b"\0"), written.ljust(size, b"\0")
        return b"".join(rng.choice((old, new))[at : at + SECTOR_BYTES] for at in range(0, size, SECTOR_BYTES))[:size]

    def _enter(self, method: str) -> Fault | None:
        count = self.calls[method]
        self.calls[method] += 1
        for fault in self._faults.get(method, ()):
            if fault.after <= count < fault.after + fault.times:
                return fault
        return None

    def _check(self, method: str) -> None:
        fault = self._enter(method)
        if fault is not None:
            raise OSError(fault.error, os.strerror(fault.error))

    def _directory_of(self, path: str) -> tuple[DurableDirectory, str]:
        directory, name = os.path.split(os.path.abspath(path))
        if directory not in self._directories:
            durable = self._directories[directory] = DurableDirectory()
            for entry in os.scandir(directory):
                if entry.is_file():
                    with open(entry.path, "rb") as source:
                        durable.now[entry.name] = DurableFile(source.read())
            durable.synced = dict(durable.now)
        return self._directories[directory], name

    def _take(self, fd: int, end: int) -> int:
        """Take space for growth up to ``end``; return how many bytes of it are missing."""
        growth = max(0, end - os.fstat(fd).st_size)
        if self.space_bytes is None:
            return 0
        missing = max(0, growth - self.space_bytes)
        self.space_bytes -= growth - missing
        return missing

    def _give(self, count: int) -> None:
        if self.space_bytes is not None:
            self.space_bytes += count

    def open_read(self, path: str) -> int:
        self._check("open_read")
        return super().open_read(path)

    def open_write(self, path: str, *, create: bool = False) -> int:
        self._check("open_write")
        directory, name = self._directory_of(path)
        fd = super().open_write(path, create=create)
        if create:
            directory.now[name] = DurableFile()
        self._open[fd] = (path, directory.now[name])
        return fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        super().close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._check("pread")
        return super().pread(fd, length, offset)

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        fault = self._enter("pwritev")
        data = b"".join(buffers)
        if fault is not None:
            super().pwritev(fd, [data[: fault.partial]], offset)
            raise OSError(fault.error, os.strerror(fault.error))
        missing = self._take(fd, offset + len(data))
        if missing:
            super().pwritev(fd, [data[: len(data) - missing]], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwritev(fd, buffers, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._check("truncate")
        self._give(max(0, os.fstat(fd).st_size - size))
        super().truncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._check("allocate")
        growth = max(0, offset + length - os.fstat(fd).st_size)
        if self.space_bytes is not None and growth > self.space_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._take(fd, offset + length)
        super().allocate(fd, offset, length)

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        self._check("start_writeback")
        super().start_writeback(fd, offset, length)

    def fdatasync(self, fd: int) -> None:
        self._check("fdatasync")
        if fd in self._open:
            self._open[fd][1].content = super().pread(fd, os.fstat(fd).st_size, 0)

    def fsync_dir(self, path: str) -> None:
        self._check("fsync_dir")
        if os.path.abspath(path) in self._directories:
            durable = self._directories[os.path.abspath(path)]
            durable.synced = dict(durable.now)

    def rename(self, source: str, target: str) -> None:
        self._check("rename")
        directory, name = self._directory_of(source)
        into, new_name = self._directory_of(target)
        super().rename(source, target)
        into.now[new_name] = directory.now.pop(name)

    def unlink(self, path: str) -> bool:
        self._check("unlink")
        if os.path.exists(path):
            directory, name = self._directory_of(path)
            self._give(os.path.getsize(path))
            directory.now.pop(name, None)
        return super().unlink(path)
