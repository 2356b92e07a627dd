"""A disk that is really full: a small file system of its own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import refused_line
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


def fill_disk(ballast: Path) -> None:
    """Leave no free byte."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1_000_000, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


@pytest.mark.parametrize("role", ["writer", "flusher", "reader-0"])
def test_a_worker_killed_while_the_disk_is_full_is_back_when_there_is_room(small_disk: Path, role: str) -> None:
    ballast = small_disk / "ballast"
    with RunningNode(small_disk / "d", "--write-buffer-size=1000000", "--write-stall-timeout-s=1") as node:
        with keyva.open(node.directory) as db:
            known = {b"%d" % number: os.urandom(1000) for number in range(500)}
            db.put_many(known)
            fill_disk(ballast)
            os.kill(node.pid_of(role), signal.SIGKILL)
            assert dict(db.iterator()) == known
            # the node tries again and again, for a full disk is no reason to give up
            eventually(lambda: node.restarts_of(role) >= (3 if role == "writer" else 1), f"the {role} is started again")
            assert node.process.poll() is None
            ballast.unlink()
            db.put("after", "1")  # waits until it is back
            known[b"after"] = b"1"
            db.flush()
            with keyva.connect(node.endpoint) as remote:
                assert dict(db.iterator()) == dict(remote.iterator()) == known
        assert node.stop() == 0
    with RunningNode(small_disk / "d") as node, keyva.open(node.directory) as db:
        assert dict(db.iterator()) == known


def test_a_node_that_finds_no_room_at_its_start_says_so_and_loses_nothing(small_disk: Path) -> None:
    with RunningNode(small_disk / "d") as node, keyva.open(node.directory) as db:
        db.put("a", "1")
        assert node.stop() == 0
    fill_disk(small_disk / "ballast")
    line = refused_line(small_disk / "d")
    assert "no space left" in line
    (small_disk / "ballast").unlink()
    with RunningNode(small_disk / "d") as node, keyva.open(node.directory) as db:
        assert db.get("a") == b"1"


def test_a_full_disk_breaks_no_counter_and_no_batch(small_disk: Path) -> None:
    with RunningNode(small_disk / "d", "--write-buffer-size=200000", "--write-stall-timeout-s=0.5") as node:
        with keyva.open(node.directory) as db:
            done = refused = full_until = 0
            for round_number in range(300):
                if round_number in (50, 150, 250):
                    fill_disk(small_disk / "ballast")
                    full_until = refused + 4
                elif (small_disk / "ballast").exists() and refused >= full_until:
                    (small_disk / "ballast").unlink()
                try:
                    with db.write_batch() as batch:
                        for number in range(20):
                            batch.put(f"batch-{number}", b"%06d" % round_number + os.urandom(500))
                except (keyva.NoSpaceError, keyva.WriteStallError):
                    refused += 1
                try:
                    db.increment("n")
                    done += 1
                except (keyva.NoSpaceError, keyva.WriteStallError):
                    refused += 1
                assert db.get("n") == b"%d" % done
                assert len({value[:6] for _, value in db.iterator(prefix="batch-")}) <= 1
            assert refused >= 4
            assert done > 100
        assert node.stop() == 0
    with RunningNode(small_disk / "d") as node, keyva.open(node.directory) as db:
        assert db.get("n") == b"%d" % done
