from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from nodes import RunningNode

from keyva.web.openapi import DESCRIPTION

DOC = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)


def test_the_examples_do_what_the_page_says(tmp_path: Path) -> None:
    """All commands run in one shell; ``...`` in what they should print stands for anything."""
    assert shutil.which("curl")
    steps = [
        (command, expected)
        for block in BLOCKS
        for command, _, expected in (part.partition("\n") for part in re.split(r"(?:\A|(?<=\n))\$ ", block)[1:])
    ]
    assert len(steps) > 20
    marker = "--- end of step ---"
    with RunningNode(tmp_path / "d", "--http=127.0.0.1:0", "--readers=0") as node:
        script = "\n".join(f"{command}\necho; echo '{marker}'" for command, _ in steps)
        environment = {"KEYVA": node.url, "PATH": "/usr/local/bin:/usr/bin:/bin", "no_proxy": "127.0.0.1"}
        done = subprocess.run(["bash"], input=script, env=environment, capture_output=True, text=True, timeout=60)
    outputs = done.stdout.replace("\r", "").split(marker + "\n")
    assert len(outputs) == len(steps) + 1, done.stderr
    for (command, expected), output in zip(steps, outputs, strict=False):
        pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, output.strip()), f"{command}\n{output}\nshould be\n{expected}"


@pytest.mark.parametrize("path", DESCRIPTION["paths"])
def test_every_route_is_on_the_page(path: str) -> None:
    assert path in DOC
