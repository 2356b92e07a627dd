from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from crc32c import crc32c
from faultfiles import FaultFiles
from hypothesis import given
from hypothesis import strategies as st

from keyva.errors import CorruptionError, FormatVersionError, StoreError
from keyva.manifest import Drain, FileMeta, LogMeta, Manifest, Run, load_manifest, manifest_text, parse_manifest, store_manifest

replace = msgspec.structs.replace


def sst(number: int, smallest: bytes = b"a", largest: bytes = b"b") -> FileMeta:
    return FileMeta(
        number=number,
        size_bytes=1000,
        entries=10,
        tombstones=1,
        smallest=smallest,
        largest=largest,
        smallest_sequence=1,
        largest_sequence=10,
        crc32c=0x12345678,
    )


GOOD = Manifest(
    store_id=bytes(range(16)),
    generation=4,
    last_sequence=100,
    next_number=20,
    logs=(LogMeta(number=11, first_sequence=90, sealed_bytes=500), LogMeta(number=12, first_sequence=101)),
    levels=(
        (Run(id=9, files=(sst(9),)), Run(id=8, files=(sst(8),))),
        (Run(id=5, files=(sst(5, b"", b"m"), sst(6, b"n", b"\xff\xfe"))),),
        (),
    ),
    drain=Drain(level=0, runs=(8,), target_level=1, target_run=5),
    obsolete=(1, 2),
)


def signed(body: bytes) -> bytes:
    return body + b',\n"crc32c": "%08x"\n}\n' % crc32c(body)


def edited(manifest: Manifest, **changes: Any) -> bytes:
    """Return the manifest's text with some fields changed, under a right checksum."""
    tree = json.loads(manifest_text(manifest))
    del tree["crc32c"]
    tree.update(changes)
    return signed(b"{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in tree.items()).encode())


class TestText:
    def test_a_manifest_comes_back(self) -> None:
        assert parse_manifest(manifest_text(GOOD), "f") == GOOD

    @given(st.binary(max_size=30), st.binary(max_size=30))
    def test_any_keys_come_back(self, one: bytes, other: bytes) -> None:
        smallest, largest = sorted((one, other))
        manifest = replace(GOOD, levels=((Run(id=9, files=(sst(9, smallest, largest),)),),))
        assert parse_manifest(manifest_text(manifest), "f") == manifest

    def test_people_can_read_it(self) -> None:
        text = manifest_text(GOOD)
        assert text.isascii()
        assert json.loads(text)["levels"][1][0]["files"][0]["largest"] == "m"
        assert max(map(len, text.splitlines())) < 300

    @pytest.mark.parametrize("mask", [1 << bit for bit in range(8)])
    def test_any_changed_bit_is_noticed_with_the_file(self, mask: int) -> None:
        data = manifest_text(GOOD)
        for at in range(len(data)):
            with pytest.raises(CorruptionError) as raised:
                parse_manifest(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :], "the file")
            assert raised.value.path == "the file"

    def test_any_other_length_is_noticed(self) -> None:
        data = manifest_text(GOOD)
        for other in [data[:size] for size in range(len(data))] + [data + b"\n", data + data, b"\n" + data]:
            with pytest.raises(CorruptionError):
                parse_manifest(other, "f")

    def test_a_checksum_inside_a_key_is_not_taken_for_the_last_line(self) -> None:
        key = b',\n"crc32c": "00000000"\n}\n'
        manifest = replace(GOOD, levels=((Run(id=9, files=(sst(9, key, key),)),),))
        assert parse_manifest(manifest_text(manifest), "f") == manifest


class TestVersions:
    @pytest.mark.parametrize("changes", [{"format": 2}, {"features": ["range_deletes"]}, {"format": 2, "levels": "in another form"}])
    def test_newer_formats_and_features_are_refused_as_newer(self, changes: dict[str, Any]) -> None:
        with pytest.raises(FormatVersionError, match="newer keyva") as raised:
            parse_manifest(edited(GOOD, **changes), "f")
        assert "  " not in str(raised.value)

    def test_fields_of_a_later_version_are_skipped(self) -> None:
        assert parse_manifest(edited(GOOD, later={"a": 1}), "f") == GOOD


class TestNonsenseWithAGoodChecksum:
    @pytest.mark.parametrize(
        "changes",
        [
            {"store_id": "xyz"},
            {"store_id": 5},
            {"generation": "4"},
            {"logs": {}},
            {"logs": [{"number": 12}]},
            {"levels": [[{"id": 1, "files": [{}]}]]},
            {"levels": None},
            {"obsolete": ["a"]},
            {"drain": 5},
            {"format": "1"},
            {"features": 5},
        ],
    )
    def test_a_field_of_a_wrong_type(self, changes: dict[str, Any]) -> None:
        with pytest.raises(CorruptionError, match="cannot be decoded") as raised:
            parse_manifest(edited(GOOD, **changes), "the file")
        assert raised.value.path == "the file"

    @pytest.mark.parametrize("name", ["format", "features", "store_id", "generation", "levels", "logs", "next_number", "last_sequence"])
    def test_a_field_that_is_missing(self, name: str) -> None:
        tree = json.loads(manifest_text(GOOD))
        del tree["crc32c"], tree[name]
        body = b"{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in tree.items()).encode()
        with pytest.raises(CorruptionError, match="cannot be decoded"):
            parse_manifest(signed(body), "f")

    @pytest.mark.parametrize("body", [b"", b"[1", b'{"format": 1', b"\xff\xfe"])
    def test_what_is_no_object(self, body: bytes) -> None:
        with pytest.raises(CorruptionError):
            parse_manifest(signed(body), "f")


class TestInvariants:
    """A manifest that breaks one is neither written nor believed."""

    @pytest.mark.parametrize(
        ("manifest", "why"),
        [
            (replace(GOOD, logs=()), "active log"),
            (replace(GOOD, logs=(LogMeta(number=12, first_sequence=1, sealed_bytes=100),)), "unsealed"),
            (replace(GOOD, logs=(LogMeta(number=11, first_sequence=1), LogMeta(number=12, first_sequence=1))), "unsealed"),
            (replace(GOOD, logs=tuple(reversed(GOOD.logs))), "unsealed|ascend"),
            (replace(GOOD, logs=(replace(GOOD.logs[0], number=12), GOOD.logs[1])), "ascend"),
            (replace(GOOD, next_number=12), "next_number"),
            (replace(GOOD, obsolete=(20,)), "next_number"),
            (replace(GOOD, obsolete=(9,)), "both live and obsolete"),
            (replace(GOOD, levels=((Run(id=9, files=()),),)), "empty"),
            (replace(GOOD, levels=((Run(id=9, files=(sst(9),)), Run(id=8, files=(sst(9),))),)), "listed twice"),
            (replace(GOOD, levels=((Run(id=9, files=(sst(9),)), Run(id=9, files=(sst(8),))),)), "listed twice"),
            (replace(GOOD, levels=((Run(id=9, files=(sst(9, b"a", b"c"), sst(8, b"c", b"d"))),),)), "overlap"),
            (replace(GOOD, levels=((Run(id=9, files=(sst(9, b"m", b"n"), sst(8, b"a", b"b"))),),)), "overlap"),
            (replace(GOOD, levels=((Run(id=9, files=(sst(9, b"b", b"a"),)),),)), "smallest key above its largest"),
            (replace(GOOD, generation=-1), "generation"),
            (replace(GOOD, generation=2**64), "generation"),
            (replace(GOOD, last_sequence=-1), "last_sequence"),
            (replace(GOOD, next_number=2**32 + 1), "next_number"),
            (replace(GOOD, obsolete=(-1,)), "obsolete number"),
            (replace(GOOD, store_id=bytes(15)), "store_id"),
            (replace(GOOD, logs=(LogMeta(number=-1, first_sequence=1),)), "log number"),
            (replace(GOOD, logs=(LogMeta(number=12, first_sequence=-1),)), "first_sequence of log 12"),
            (replace(GOOD, logs=(LogMeta(number=12, first_sequence=1, synced_bytes=2**64),)), "synced_bytes of log 12"),
            (replace(GOOD, levels=((Run(id=-1, files=(sst(9),)),),)), "run id"),
            (replace(GOOD, levels=((Run(id=9, files=(sst(-9),)),),)), "SST number"),
            (replace(GOOD, levels=((Run(id=9, files=(replace(sst(9), size_bytes=-1),)),),)), "SST 9 is out of range"),
            (replace(GOOD, levels=((Run(id=9, files=(replace(sst(9), entries=2**64),)),),)), "SST 9 is out of range"),
            (replace(GOOD, levels=((Run(id=9, files=(replace(sst(9), crc32c=2**32),)),),)), "SST 9 is out of range"),
        ],
    )
    def test_broken(self, store_dir: str, manifest: Manifest, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            store_manifest(store_dir, manifest)
        assert not os.path.exists(os.path.join(store_dir, "MANIFEST"))
        with pytest.raises(CorruptionError, match=why):
            parse_manifest(manifest_text(manifest), "f")

    def test_only_the_first_manifest_has_no_log(self) -> None:
        replace(GOOD, generation=1, logs=()).check()

    def test_all_files_and_runs_newest_first(self) -> None:
        assert sorted(GOOD.all_files()) == [5, 6, 8, 9]
        assert [run.id for run in GOOD.runs()] == [9, 8, 5]
        assert GOOD.levels[1][0].size_bytes == 2000


class TestOnDisk:
    def test_it_comes_back(self, store_dir: str) -> None:
        store_manifest(store_dir, GOOD)
        assert load_manifest(store_dir) == GOOD
        assert os.listdir(store_dir).count("MANIFEST") == 1

    def test_an_empty_directory_holds_no_store_yet(self, store_dir: str) -> None:
        assert load_manifest(store_dir) is None

    def test_what_an_unfinished_write_left_is_no_store(self, store_dir: str) -> None:
        for name in ("MANIFEST.1.tmp", "sst/000005.index.77.tmp"):
            Path(store_dir, name).write_bytes(b"half")
        assert load_manifest(store_dir) is None

    @pytest.mark.parametrize("name", ["wal/000007.wal", "sst/000005.sst", "sst/000005.index", "sst/something"])
    def test_a_missing_manifest_beside_files_is_refused(self, store_dir: str, name: str) -> None:
        Path(store_dir, name).write_bytes(b"x")
        with pytest.raises(StoreError, match=re.escape(f"{name.split('/')[1]}, ...")):
            load_manifest(store_dir)
        assert Path(store_dir, name).read_bytes() == b"x"

    def test_damage_names_the_file(self, store_dir: str) -> None:
        store_manifest(store_dir, GOOD)
        path = Path(store_dir, "MANIFEST")
        path.write_bytes(path.read_bytes().replace(b'"generation": 4', b'"generation": 5'))
        with pytest.raises(CorruptionError, match="checksum") as raised:
            load_manifest(store_dir)
        assert raised.value.path == str(path)

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
    @pytest.mark.parametrize("step", ["open_write", "pwritev", "fdatasync", "rename"])
    def test_a_failed_replacement_leaves_the_old_manifest(self, store_dir: str, step: str, code: int) -> None:
        files = FaultFiles()
        store_manifest(store_dir, GOOD, files)
        files.fail(step, code, partial=100)
        with pytest.raises(OSError) as raised:
            store_manifest(store_dir, replace(GOOD, generation=5), files)
        assert raised.value.errno == code
        assert load_manifest(store_dir) == GOOD
        assert not [name for name in os.listdir(store_dir) if name.endswith(".tmp")]
        files.power_cut()
        assert load_manifest(store_dir) == GOOD

    def test_when_only_the_directory_cannot_be_synced_the_new_one_is_seen_but_may_be_lost(self, store_dir: str) -> None:
        files = FaultFiles()
        store_manifest(store_dir, GOOD, files)
        files.fail("fsync_dir")
        with pytest.raises(OSError):
            store_manifest(store_dir, replace(GOOD, generation=5), files)
        found = load_manifest(store_dir)
        assert found is not None
        assert found.generation == 5
        files.power_cut()
        assert load_manifest(store_dir) == GOOD

    def test_a_replacement_survives_a_power_cut(self, store_dir: str) -> None:
        files = FaultFiles()
        store_manifest(store_dir, GOOD, files)
        store_manifest(store_dir, replace(GOOD, generation=5), files)
        files.power_cut()
        assert load_manifest(store_dir) == replace(GOOD, generation=5)
