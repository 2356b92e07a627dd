"""Makes the pictures of docs/page.md anew: `python docs/images.py`. Needs what the tests of the page need (chromium, chromium-driver)."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import opened  # noqa: E402
from nodes import RunningNode  # noqa: E402

import keyva  # noqa: E402

TARGET = ROOT / "docs" / "images"


def main() -> None:
    """Make all pictures."""
    with (
        tempfile.TemporaryDirectory() as directory,
        RunningNode(directory, "--http=127.0.0.1:0", "--write-buffer-size=16000000") as node,
        contextmanager(opened)(node.url) as page,
    ):

        def picture(name: str, place: str, what: str, *, width: int = 1280, dark: bool = False) -> None:
            page.resize(width, 800 if width > 500 else 760, dark=dark)
            page.open(place)
            page.wait(lambda: page.has(what), f"{what} is shown")
            page.driver.save_screenshot(str(TARGET / f"{name}.png"))

        with keyva.open(directory) as db:
            picture("empty", "#/", "#empty")
            db.put("greeting", "Hello, world")
            db.put("users/ada", '{\n  "name": "Ada Lovelace",\n  "born": 1815\n}\n', content_type="application/json")
            db.put("users/grace", '{"name": "Grace Hopper", "born": 1906}', content_type="application/json")
            picture("three-keys", "#/key/users%2Fada", "#format")
            picture("three-keys-phone", "#/", "#list li", width=390)
            picture("value-phone", "#/key/users%2Fada", "#format", width=390, dark=True)
            rng = random.Random(1)
            for start in range(0, 1_000_000, 10_000):
                db.put_many((f"sensor/{number % 50:02d}/{number:07d}", rng.randbytes(20).hex()) for number in range(start, start + 10_000))
            db.put("video.bin", rng.randbytes(20_000_000))
            picture("million-keys", "#/key/sensor%2F00%2F0000000", "#text")
            picture("large-value-dark", "#/key/video.bin", "#hex", dark=True)
            page.resize(1280, 800)
            page.open("#/live")
            for start in range(0, 300_000, 1000):
                db.put_many(
                    (f"sensor/{rng.randrange(50):02d}/{number:07d}", rng.randbytes(20).hex()) for number in range(start, start + 1000)
                )
            page.wait(lambda: page.script("return document.querySelectorAll('.run').length") > 1, "the tree has runs")
            page.driver.save_screenshot(str(TARGET / "live.png"))
            picture("live-phone", "#/live", "#live table", width=390, dark=True)
            pid = node.pid_of("writer")
            os.kill(pid, signal.SIGSTOP)
            try:
                page.resize(1280, 800)
                page.go("#/key/greeting")
                page.wait(lambda: page.has("#banner") and page.has("#text"), "the page says that the writer is away")
                page.driver.save_screenshot(str(TARGET / "writer-away.png"))
            finally:
                os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    main()
