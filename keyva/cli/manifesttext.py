"""The manifest as JSON lines and back. The format: docs/format.md, "Manifest".

    {"file": "manifest", "format": 1, "store_id": "9f..", "generation": 8, "levels": 2, ...}     all that is one value
    {"log": 7, "first_sequence": 12, "sealed_bytes": null, "synced_bytes": 64}                   one line a log
    {"level": 0, "run": 3, "number": 5, "size_bytes": 4711, "smallest": "a", ...}                one line an SST

A builder works out the checksum and checks the rules of `keyva.manifest`; the order of the lines is the order of logs, levels and runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from keyva.cli.bytetext import check_fields, field_bytes, json_line, parse_crc, parse_json, put_field
from keyva.errors import CorruptionError, InvalidArgumentError
from keyva.files import FILES
from keyva.manifest import FEATURES, FORMAT, FileMeta, LogMeta, Manifest, manifest_text, parse_manifest

__all__ = ["build_manifest", "dump_manifest", "file_fields"]

_KEYS = ("smallest", "largest")


def file_fields(meta: FileMeta, *, as_hex: bool = False) -> dict[str, Any]:
    """Return what the manifest says of an SST, as JSON fields."""
    fields: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(meta).items():
        if name in _KEYS:
            put_field(fields, name, value, as_hex=as_hex)
        else:
            fields[name] = f"{value:08x}" if name == "crc32c" else value
    return fields


def dump_manifest(path: str, as_hex: bool = False) -> Iterator[bytes]:
    """Yield the lines. Raises `CorruptionError`."""
    data = FILES.read_file(path)
    manifest = parse_manifest(data, path)
    if manifest_text(manifest) != data:
        raise CorruptionError("manifest is valid, but not as keyva writes it; it cannot be shown exactly", path, 0)
    tree = msgspec.to_builtins(manifest, builtin_types=(bytes,))
    logs = tree.pop("logs")
    tree["store_id"] = manifest.store_id.hex()
    tree["levels"] = len(manifest.levels)
    yield json_line({"file": "manifest", **tree})
    for log in logs:
        yield json_line({"log": log.pop("number"), **log})
    for level, runs in enumerate(manifest.levels):
        for run in runs:
            for meta in run.files:
                yield json_line({"level": level, "run": run.id, **file_fields(meta, as_hex=as_hex)})


def build_manifest(lines: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the file's bytes. Raises `InvalidArgumentError`."""
    head: dict[str, Any] | None = None
    logs: list[dict[str, Any]] = []
    levels: list[list[dict[str, Any]]] = []
    for _, line in lines:
        tree = parse_json(line)
        if head is None:
            head = _parse_head(tree)
            levels = [[] for _ in range(tree.pop("levels"))]
        elif "log" in tree:
            check_fields(tree, ("log", *LogMeta.__struct_fields__))
            logs.append({"number": tree.pop("log"), **tree})
        else:
            _add_file(levels, tree)
    if head is None:
        raise InvalidArgumentError("there are no lines")
    try:
        manifest = msgspec.convert({**head, "logs": logs, "levels": levels}, Manifest, builtin_types=(bytes,))
        manifest.check()
        if manifest.format > FORMAT or set(manifest.features) - FEATURES:
            raise ValueError(f"format {manifest.format} {list(manifest.features)} is newer than this keyva")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the manifest is not valid: {error}") from None
    return manifest_text(manifest)


def _parse_head(tree: dict[str, Any]) -> dict[str, Any]:
    if tree.pop("file", None) != "manifest":
        raise InvalidArgumentError('the first line must have "file": "manifest"')
    try:
        tree["store_id"] = bytes.fromhex(tree["store_id"])
    except (KeyError, TypeError, ValueError):
        raise InvalidArgumentError("the first line needs a store_id of hexadecimal digits") from None
    check_fields(tree, Manifest.__struct_fields__)
    count = tree.get("levels")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 64:
        raise InvalidArgumentError("'levels' must be the number of levels")
    return tree


def _add_file(levels: list[list[dict[str, Any]]], tree: dict[str, Any]) -> None:
    level, run = tree.pop("level", None), tree.pop("run", None)
    if not isinstance(level, int) or not 0 <= level < len(levels) or not isinstance(run, int):
        raise InvalidArgumentError("a line is a log, or an SST with its 'level' (below 'levels' of the first line) and 'run'")
    check_fields(tree, FileMeta.__struct_fields__, _KEYS)
    meta = {name: tree[name] for name in FileMeta.__struct_fields__ if name in tree and name not in _KEYS}
    for name in _KEYS:
        meta[name] = field_bytes(tree, name)
    meta["crc32c"] = parse_crc(meta, "crc32c")
    runs = levels[level]
    if not runs or runs[-1]["id"] != run:
        runs.append({"id": run, "files": []})
    runs[-1]["files"].append(meta)
