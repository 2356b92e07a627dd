"""The only place that touches the disk, and the seam where tests put faults.

`Files` is a thin layer over the operating system; everything that must survive a crash goes through it. A subclass in the
tests drops un-synced bytes, fills the disk, or fails at the n-th call.

Invariants: files are made with mode 0600 and directories with 0700; descriptors are close-on-exec (Python's default);
a file appears under its final name only after its content is synced (`write_atomic`).
macOS: `fdatasync` is F_FULLFSYNC there (a plain fsync does not reach the platter), and locks are flock().
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import struct
import sys
from _thread import RLock
from collections.abc import Callable, Sequence
from typing import cast
from weakref import WeakSet

from keyva.errors import KeyvaError, NoSpaceError, StoreError

__all__ = ["FILES", "OPEN_FILES_WANTED", "Files", "Lock", "raise_open_files_limit", "translate"]

_LINUX = sys.platform.startswith("linux")
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IOV_MAX = 1024
_OPEN_FILES_MACOS = 10_240

OPEN_FILES_WANTED = 65_536
"""Files a process should be allowed to have open: enough for the SSTs of a store of 4 TB."""


_SYNC_FILE_RANGE_WRITE = 2


def _load_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if not _LINUX:
        return None
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return cast("Callable[[int, int, int, int], int]", function)


_sync_file_range = _load_sync_file_range()


def translate(error: OSError, doing: str) -> KeyvaError | OSError:
    """Turn "disk full" into `NoSpaceError` that says what was being done; give other errors back as they are."""
    if error.errno in _FULL:
        return NoSpaceError(f"no space left on the device while {doing} ({os.strerror(error.errno or 0)})")
    return error


def raise_open_files_limit(wanted: int = OPEN_FILES_WANTED) -> None:
    """Raise this process's limit of open files to ``wanted`` at least, as far as its hard limit allows.

    The usual soft limit of 1024 is meant for programs that use select(), which a process with more descriptors must not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for goal in (wanted, _OPEN_FILES_MACOS):  # what macOS gives at most, though it says there is no hard limit
        if hard != resource.RLIM_INFINITY:
            goal = min(goal, hard)
        if soft == resource.RLIM_INFINITY or soft >= goal:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
        except (OSError, ValueError):
            continue
        return


SYNC_BYTES = 16 * 1024 * 1024
"""What is synced, or read, in one call where a file is large: a slow disk (some MB/s) takes seconds for it, not minutes."""


class Files:
    """Opens, reads, writes, syncs, renames and locks. Costs one system call per method unless it says more."""

    def open_read(self, path: str) -> int:
        """Open ``path`` for reading and return its descriptor.

        When the process has as many files open as it may, its limit is raised (`raise_open_files_limit`); raises `StoreError` when that
        cannot be: a store holds a descriptor for each SST, of which one of 100 GB has some 1,600.
        """
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        raise_open_files_limit()
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise StoreError(
                f"{path}: not opened, for this process has {limit} files open, which is its limit; "
                "raise it (ulimit -n, LimitNOFILE= of systemd)"
            ) from error

    def open_write(self, path: str, *, create: bool = False) -> int:
        """Open ``path`` for reading and writing; ``create`` makes it new and fails when it is there."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """Return the size of an open file in bytes."""
        return os.fstat(fd).st_size

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes at ``offset``; fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length:  # the kernel reads at most 2 GiB at once, and less near a signal
            data = os.pread(fd, length - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        """Write all ``buffers`` at ``offset`` and return the bytes written; raises OSError when not all could be."""
        total = sum(map(len, buffers))
        if len(buffers) <= _IOV_MAX:
            written = os.pwritev(fd, buffers, offset)
            if written == total:
                return total
            data = b"".join(buffers)
        else:
            written, data = 0, b"".join(buffers)
        view = memoryview(data)
        while written < total:
            count = os.pwrite(fd, view[written:], offset + written)
            if count == 0:
                raise OSError(errno.EIO, "write returned 0 bytes")
            written += count
        return total

    def truncate(self, fd: int, size: int) -> None:
        """Cut an open file to ``size`` bytes."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve zeroed space, where the platform can; raises OSError (ENOSPC) when there is none."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, length)

    def fdatasync(self, fd: int) -> None:
        """Make a file's content (and its size) survive a power cut."""
        if _LINUX:
            os.fdatasync(fd)
        elif hasattr(fcntl, "F_FULLFSYNC"):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        """Have the kernel begin to write a range to the disk, without waiting. Promises nothing: only a sync after it does."""
        if _sync_file_range is not None:
            _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def fsync_dir(self, path: str) -> None:
        """Make the names in a directory survive a power cut."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_dir(self, path: str) -> None:
        """Make a directory and its missing parents (mode 0700), and sync the directories that name them.

        Several processes may do so at the same moment.
        """
        if not os.path.isdir(path):
            parent = os.path.dirname(os.path.abspath(path))
            self.make_dir(parent)
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise
            self.fsync_dir(parent)

    def rename(self, source: str, target: str) -> None:
        """Rename atomically, replacing ``target``."""
        os.replace(source, target)

    def unlink(self, path: str) -> bool:
        """Remove a file; returns False when it was not there."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; empty when there is no such directory."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def read_file(self, path: str) -> bytes:
        """Return a whole file."""
        fd = self.open_read(path)
        try:
            return self.pread(fd, self.size(fd), 0)
        finally:
            self.close(fd)

    def read_in_parts(self, path: str, progress: Callable[[], None]) -> bytearray:
        """Return a whole file, read in parts of `SYNC_BYTES` with ``progress`` called after each."""
        fd = self.open_read(path)
        try:
            size = self.size(fd)
            data = bytearray(size)
            at = 0
            while at < size:
                part = self.pread(fd, min(SYNC_BYTES, size - at), at)
                if not part:
                    break
                data[at : at + len(part)] = part
                at += len(part)
                progress()
            del data[at:]
            return data
        finally:
            self.close(fd)

    def write_atomic(self, path: str, data: bytes, *, sync: bool = True) -> None:
        """Put ``data`` under ``path`` so that a crash leaves the old file or the new one, never a part.

        Writes a temporary file beside it, syncs, renames, syncs the directory (``sync=False`` leaves the syncs out, for
        files that mean nothing after a crash). A failure leaves the old file and no temporary one; but when the last step fails, the
        sync of the directory, the new file is in place and a power cut may bring the old one back.
        """
        temporary = f"{path}.{os.getpid()}.tmp"
        self.unlink(temporary)
        fd = self.open_write(temporary, create=True)
        try:
            try:
                self.pwritev(fd, [data], 0)
                if sync:
                    self.fdatasync(fd)
            finally:
                self.close(fd)
            self.rename(temporary, path)
        except BaseException:
            self.unlink(temporary)
            raise
        if sync:
            self.fsync_dir(os.path.dirname(path) or ".")


FILES = Files()
"""The real disk."""


class Lock:
    """An advisory lock on a file, held until `release` or the end of the process.

    Open-file-description locks on Linux: they belong to this descriptor, so another `open` of the file in the same process
    neither shares nor drops them. flock() elsewhere, with the same meaning.

    A forked child inherits the descriptor, and with it the lock, which would then outlive its holder; so it is closed in the child.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.held = False
        self._fd = -1
        _locks.add(self)
        with _forking:  # a child must find every descriptor that it inherits
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self, *, shared: bool = False, wait: bool = False) -> bool:
        """Take the lock; returns False when someone else holds it (and ``wait`` is off)."""
        try:
            if _LINUX:
                kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
                command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
                fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
            else:
                fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
                return False
            raise
        self.held = True
        return True

    def unlock(self) -> None:
        """Let the lock go but keep the file open, so that it can be taken again."""
        if self.held:
            self.held = False
            if _LINUX:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
            else:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write_owner(self) -> None:
        """Write this process's pid into the file, for messages to others. A full disk is no reason to fail: the lock is what counts."""
        try:
            os.ftruncate(self._fd, os.pwrite(self._fd, b"%d\n" % os.getpid(), 0))
        except OSError as error:
            if error.errno not in _FULL:
                raise

    def owner(self) -> int:
        """Return the pid in the file, 0 when there is none."""
        text = os.pread(self._fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0

    def release(self) -> None:
        """Let the lock go and close the file. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self.held = False
            os.close(fd)  # not unlocked first: in a forked child that would drop the parent's lock

    def __del__(self) -> None:
        self.release()

    @staticmethod
    def is_held(path: str, *, also_shared: bool = False) -> bool:
        """Say whether some process holds the lock exclusively (``also_shared``: in any way) now, without taking it.

        Costs three system calls.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if _LINUX:
                probe = _FLOCK.pack(fcntl.F_WRLCK if also_shared else fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
                answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, probe)
                return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
            try:
                fcntl.flock(fd, (fcntl.LOCK_EX if also_shared else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except OSError:
                return True
            return False
        finally:
            os.close(fd)


_locks: WeakSet[Lock] = WeakSet()
_forking = RLock()
"""Held while a lock's file is opened, and during a fork. (Of `threading` nothing else is needed here.)"""


def _after_fork_in_child() -> None:
    _forking.release()
    for lock in list(_locks):
        lock.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork_in_child)
