"""The page's files: read once from the package, served from memory by their exact names, so that no path reaches the disk."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

from xxhash import xxh3_128_hexdigest

__all__ = ["PageFile", "PageFiles"]

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "json": "application/json",
    "webmanifest": "application/manifest+json",
    "txt": "text/plain; charset=utf-8",
}


class PageFile(NamedTuple):
    """One file."""

    body: bytes
    content_type: str
    etag: str


class PageFiles:
    """All of them, by path."""

    def __init__(self) -> None:
        self._files: dict[bytes, PageFile] = {}
        for entry in files("keyva.web").joinpath("static").iterdir():
            kind = TYPES.get(entry.name.rpartition(".")[2])
            if kind is not None and entry.is_file():
                body = entry.read_bytes()
                self._files[b"/static/" + entry.name.encode()] = PageFile(body, kind, f'"{xxh3_128_hexdigest(body)}"')
        for path, name in ((b"/", b"index.html"), (b"/favicon.ico", b"icon.svg")):
            if (found := self._files.get(b"/static/" + name)) is not None:
                self._files[path] = found

    def get(self, raw_path: bytes) -> PageFile | None:
        """Return the file at a path as it came over the wire."""
        return self._files.get(raw_path)
