"""All systems under test by name, and which of them can run here."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import subprocess

import keyva
from keyva.bench.embedded import Diskcache, Lmdb, Plyvel, PlyvelSync, Rocksdict, RocksdictSync, Sqlite
from keyva.bench.keyvas import Keyva, KeyvaIpc, KeyvaNoSync, KeyvaTcp
from keyva.bench.redises import Redis, RedisEverysec, RedisTcp
from keyva.bench.system import System

__all__ = ["SYSTEMS", "available", "version_of", "why_missing"]

SYSTEMS: dict[str, type[System]] = {
    kind.name: kind
    for kind in (
        Keyva, KeyvaNoSync, KeyvaIpc, KeyvaTcp, Plyvel, PlyvelSync, Rocksdict, RocksdictSync, Lmdb, Sqlite, Diskcache, Redis, RedisTcp,
        RedisEverysec,
    )
}  # fmt: skip


def why_missing(kind: type[System]) -> str:
    """Return why a system cannot run here, "" when it can."""
    if kind.module:
        try:
            importlib.import_module(kind.module)
        except ImportError:
            return f"{kind.module} is not installed"
    if kind.program and shutil.which(kind.program) is None:
        return f"{kind.program} is not installed"
    return ""


def available() -> dict[str, type[System]]:
    """Return the systems that can run here."""
    return {name: kind for name, kind in SYSTEMS.items() if not why_missing(kind)}


def version_of(kind: type[System]) -> str:
    """Return the version of what is measured."""
    if kind.program:
        return subprocess.run([kind.program, "--version"], capture_output=True, text=True, check=True).stdout.split("v=")[-1].split()[0]
    if kind.module:
        return importlib.metadata.version(kind.module)
    if kind is Sqlite:
        import sqlite3

        return sqlite3.sqlite_version
    return keyva.__version__
