"""Fixtures for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Derandomized: a failure comes back with the next run; deadlines mean nothing on a loaded machine.
settings.register_profile("keyva", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("keyva")

# A shell's background job ignores SIGINT, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store_dir(tmp_path: Path) -> str:
    """Return an empty directory with the folders of a store."""
    for name in ("wal", "sst"):
        (tmp_path / "store" / name).mkdir(parents=True)
    return str(tmp_path / "store")
