"""Small things for tests of damaged stores; has no tests of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x5A]))


def refused_line(directory: Path) -> str:
    """Return the one line with which a node refuses a directory."""
    done = subprocess.run(
        [sys.executable, "-m", "keyva.workers.node", "--no-http", "--dir", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]
