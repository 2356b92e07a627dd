"""The one place that builds and parses the names of a store's files.

See docs/format.md, "The directory". All functions take the store's directory and return paths as `str`.
"""

from __future__ import annotations

import os
import re

__all__ = [
    "CLIENTS_LOCK",
    "LOCK",
    "MANIFEST",
    "NODE",
    "PULSE",
    "REQUESTS",
    "START_LOCK",
    "WRITER_LOCK",
    "index_path",
    "parse_number",
    "sst_path",
    "wal_path",
]

LOCK = "LOCK"
WRITER_LOCK = "writer.lock"
START_LOCK = "start.lock"
CLIENTS_LOCK = "clients.lock"
MANIFEST = "MANIFEST"
PULSE = "PULSE"
REQUESTS = "REQUESTS"
NODE = "NODE"

_NUMBERED = re.compile(r"([0-9]{6}|[1-9][0-9]{6,9})\.(wal|sst|index)(\.[0-9a-z.-]*tmp)?")


def wal_path(directory: str, number: int) -> str:
    """Return the path of log ``number``."""
    return os.path.join(directory, "wal", f"{number:06d}.wal")


def sst_path(directory: str, number: int) -> str:
    """Return the path of SST ``number``."""
    return os.path.join(directory, "sst", f"{number:06d}.sst")


def index_path(directory: str, number: int) -> str:
    """Return the path of the index of SST ``number``."""
    return os.path.join(directory, "sst", f"{number:06d}.index")


def parse_number(name: str) -> tuple[int, str, bool] | None:
    """Return (number, kind, whether it is a temporary file) of a file's base name, or None when keyva did not name it."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return None
    return int(match[1]), match[2], match[3] is not None
