from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import Page, opened
from nodes import RunningNode

import keyva


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


@pytest.fixture(scope="module")
def browser(node: RunningNode) -> Iterator[Page]:
    yield from opened(node.url)


@pytest.fixture
def db(node: RunningNode) -> Iterator[keyva.Client]:
    """A client of the node, whose store is empty."""
    with keyva.open(node.directory) as client:
        with client.write_batch() as batch:
            for key in client.iterator(include_value=False):
                batch.delete(key)
        yield client


@pytest.fixture
def page(browser: Page, db: keyva.Client) -> Iterator[Page]:
    """The page, loaded anew on an empty store; afterwards nothing may have been complained about or loaded from elsewhere."""
    browser.resize(1280, 800)
    browser.open()
    browser.complaints()
    yield browser
    assert [text for text in browser.complaints() if "the server responded with a status of" not in text] == []
    assert browser.origins() <= {browser.url}
