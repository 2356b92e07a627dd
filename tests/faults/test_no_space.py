"""A disk that is really full: a small file system of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import RunningNode, eventually

import keyva


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount 24 MB of memory as a file system; needs root."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_writes_fail_reads_go_on_and_writes_work_again(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with RunningNode(small_disk / "d", "--write-buffer-size=1000000", "--write-stall-timeout-s=2") as node:
        with keyva.open(node.directory) as db, keyva.connect(node.endpoint) as remote:
            known: dict[bytes, bytes] = {}
            error: keyva.KeyvaError | None = None
            for number in range(100_000):
                entries = {b"key-%07d" % (number * 100 + at): os.urandom(100) for at in range(100)}
                try:
                    db.put_many(entries)
                except (keyva.NoSpaceError, keyva.WriteStallError) as found:
                    error = found
                    break
                known |= entries
                if number == 20:
                    free = os.statvfs(small_disk)
                    with ballast.open("wb") as file:
                        file.write(bytes(max(0, free.f_bavail * free.f_bsize - 9_000_000)))
            assert error is not None
            assert "space" in str(error)
            assert known
            for reads in (db, remote):
                assert dict(reads.iterator()) == known
            with pytest.raises((keyva.NoSpaceError, keyva.WriteStallError)):
                for number in range(10_000):
                    db.put(b"more-%d" % number, os.urandom(1000))
                    known[b"more-%d" % number] = db.get(b"more-%d" % number)
            assert dict(db.iterator()) == known
            ballast.unlink()

            def works() -> bool:
                try:
                    db.put("after", "1")
                except keyva.KeyvaError:
                    return False
                return True

            eventually(works, "writes work again")
            known[b"after"] = b"1"
            db.flush()
            assert dict(db.iterator()) == known
        assert node.stop() == 0
    with RunningNode(small_disk / "d") as node, keyva.open(node.directory) as db:
        assert dict(db.iterator()) == known
