"""Where commands write: standard output, and files named on the command line.

Invariants: a file appears under its name, or changes, only when it is complete; its mode stays as it was, and a new one is readable by
its owner alone (mode 0600), for it holds what a store holds; what is no regular file (a fifo, a device) is written to, never replaced; a
symbolic link stays, and what it points at is written.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from keyva.files import FILES

__all__ = ["fill_standard_streams", "is_special", "output_file", "standard_input", "standard_output"]


def fill_standard_streams() -> None:
    """Put /dev/null where a standard stream was closed before the start: else a store's file would get its number, and what is meant
    for the stream would be written into it. ``sys.stdout`` and its kin stay None.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one


def standard_output() -> IO[bytes]:
    """Return standard output for bytes; raises OSError when it was closed before the start (``>&-``)."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    return sys.stdout.buffer


def standard_input() -> IO[bytes]:
    """Return standard input for bytes; raises OSError when it was closed before the start (``<&-``)."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
    return sys.stdin.buffer


def is_special(path: str) -> bool:
    """Say whether ``path`` is there and no regular file, symbolic links followed."""
    status = _status(path)
    return status is not None and not stat.S_ISREG(status.st_mode)


@contextmanager
def output_file(path: str) -> Iterator[IO[bytes]]:
    """Give a stream whose bytes are the file ``path`` once the block has ended well; see the module for what is kept.

    A regular file is written beside its old self, synced, and renamed. Raises OSError and leaves the old file.
    """
    status = _status(path)
    if status is not None and _is_standard_output(status):
        out = standard_output()
        yield out
        out.flush()
    elif status is not None and not stat.S_ISREG(status.st_mode):
        with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as out:
            yield out
    else:
        target = os.path.realpath(path)
        with _replacing(target, status) as out:
            yield out


@contextmanager
def _replacing(target: str, status: os.stat_result | None) -> Iterator[IO[bytes]]:
    folder = os.path.dirname(target)
    try:
        fd, temporary = tempfile.mkstemp(prefix=".keyva-", suffix=".tmp", dir=folder)  # mode 0600
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None  # the user has never heard of the temporary file
    try:
        with open(fd, "wb") as out:
            yield out
            out.flush()
            if status is not None:
                with suppress(PermissionError):  # only root gives files away
                    os.fchown(fd, status.st_uid, status.st_gid)
                os.fchmod(fd, stat.S_IMODE(status.st_mode))
            FILES.fdatasync(fd)
        os.replace(temporary, target)
    except BaseException:
        FILES.unlink(temporary)
        raise
    FILES.fsync_dir(folder)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_standard_output(status: os.stat_result) -> bool:
    """Say whether that is the file which standard output goes to: it is appended to, for a shell's ``>>`` means that."""
    if sys.stdout is None:
        return False
    try:
        return os.path.samestat(status, os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # a stream of a test has no descriptor
        return False
