"""Flusher or compactor too far behind: writes wait, are told why, are refused after a time, and work again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from nodes import RawClient, RunningNode, eventually

import keyva
from keyva.batch import encode_batch

FLAGS = ("--heartbeat-timeout-s=120", "--write-buffer-size=65536", "--max-write-buffer-number=2", "--write-stall-timeout-s=3")


@pytest.mark.parametrize(
    ("role", "reason", "flags"),
    [
        ("flusher", "memtable_limit", ()),
        (
            "compactor",
            "level0_stop",
            ("--level0-file-num-compaction-trigger=2", "--level0-slowdown-writes-trigger=3", "--level0-stop-writes-trigger=4"),
        ),
    ],
)
def test_writes_wait_and_are_told_why(tmp_path: Path, role: str, reason: str, flags: tuple[str, ...]) -> None:
    with RunningNode(tmp_path / "d", *FLAGS, *flags) as node, keyva.open(node.directory) as db:
        pid = node.pid_of(role)
        os.kill(pid, signal.SIGSTOP)
        try:
            written = 0
            with pytest.raises(keyva.WriteStallError, match=r"waited 3 s, nothing was written: .*(memtables|level 0)"):
                for written in range(10_000):
                    db.put_many({b"%d-%d" % (written, number): b"x" * 100 for number in range(50)})
            assert db.stats()["stall"]["reason"] == reason
            assert db.stats()["stall_seconds"][reason] >= 2
            assert db.get(b"%d-0" % written) is None
            assert db.get(b"%d-0" % (written - 1)) == b"x" * 100
            with RawClient(node.endpoint) as raw:
                with pytest.raises(keyva.WriteStallError):
                    raw.ask("write", encode_batch({b"raw": b"1"}))
                assert len(raw.waits) >= 2
                assert "flush" in raw.waits[0] or "level 0" in raw.waits[0]
        finally:
            os.kill(pid, signal.SIGCONT)
        db.put("after", "1")
        eventually(lambda: db.stats()["stall"] is None, "no stall any more")
        assert db.get("raw") is None
        assert db.get("after") == b"1"


def test_writes_are_slowed_down_before_they_stop(tmp_path: Path) -> None:
    flags = ("--level0-file-num-compaction-trigger=2", "--level0-slowdown-writes-trigger=3", "--level0-stop-writes-trigger=900")
    with RunningNode(tmp_path / "d", *FLAGS, *flags) as node, keyva.open(node.directory) as db:
        pid = node.pid_of("compactor")
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(5):
                db.put(f"key-{number}", "value")
                db.flush()
            db.put("a", "1")
            stats = db.stats()
            assert stats["stall"]["reason"] == "level0_slowdown"
            assert not stats["stall"]["stop"]
        finally:
            os.kill(pid, signal.SIGCONT)
