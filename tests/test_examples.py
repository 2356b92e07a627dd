"""The examples do what they say, and README shows their true output."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nodes import RunningNode

import keyva

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def between(marker: str) -> str:
    """Return the text of the code block between two markers of README."""
    match = re.search(rf"<!-- {marker} -->\n```\w*\n(.*?)```\n<!-- {marker} -->", README, re.DOTALL)
    assert match, marker
    return match[1]


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "examples").glob("*.py"))])
def test_an_example_prints_what_its_file_says(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "examples" / f"{name}.out").read_text()
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True).stdout == done.stdout, "again"
    with keyva.open(tmp_path / "data") as db:
        assert db.get("stocks/AAPL/2010-03-01") == b"223.02"
        assert len(list(db.iterator(include_value=False))) == 560 + 1461 + 8759


def test_readme_shows_the_true_output() -> None:
    assert between("example-output") == (ROOT / "examples" / "timeseries.out").read_text()


def test_the_ten_lines_of_python_do_what_their_comments_say(tmp_path: Path) -> None:
    code = between("python-example")
    assert len(code.splitlines()) <= 12
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True)
    assert done.stdout == "b'Ada' 1\nb'user/1' b'Ada'\nb'user/2' b'Grace'\n"


def test_the_lines_about_http_do_what_their_comments_say(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "d", "--http=127.0.0.1:0", "--readers=0") as node:
        script = between("http-example").replace("http://127.0.0.1:8080", node.url)
        done = subprocess.run(["bash", "-e"], input=script, capture_output=True, text=True, timeout=60)
    value, rest = done.stdout[:5], done.stdout[5:]
    assert (value, rest[0]) == ("hello", "0")
    assert json.loads(rest[1:])["keys"][0]["key"] == "greeting"


def test_the_lines_about_pipelines_do_what_their_comments_say(tmp_path: Path) -> None:
    for example in ("python-example", "pipeline-example"):
        command = [sys.executable, "-c", between(example)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True)
    assert done.stdout == "[None, 2, b'1']\n"
    with keyva.open(tmp_path / "data") as db:
        assert len(list(db.iterator(prefix="user/"))) == 1000  # user/1 and user/2 among them
        assert db.get("user/999") == b"x"
