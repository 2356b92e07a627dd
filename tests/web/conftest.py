from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from nodes import RunningNode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that serves HTTP, one for the tests of a module; they use keys of their own."""
    directory: Path = tmp_path_factory.mktemp("web")
    with RunningNode(directory, "--http=127.0.0.1:0", "--readers=0", "--max-value-size=4000000") as running:
        yield running


@pytest.fixture(scope="module")
def http(node: RunningNode) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=node.url, timeout=30) as client:
        yield client
