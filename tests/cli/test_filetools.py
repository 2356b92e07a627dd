"""sst, wal, index and manifest: dump and build, over the golden files and over files made here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from nodes import eventually

from keyva.batch import encode_batch
from keyva.block import Columns, encode_block
from keyva.cli.main import cli
from keyva.cli.waltext import build_wal
from keyva.files import Lock
from keyva.manifest import parse_manifest
from keyva.sst import SstWriter, Table, new_header
from keyva.wal import LogWriter, Record, recover_log

GOLDEN = Path(__file__).parent.parent / "data" / "v1"
SCRIPTS = Path(sysconfig.get_path("scripts"))
STORE_ID = bytes(range(16))
KINDS = {"sst/*.sst": "sst", "sst/*.index": "index", "wal/*.wal": "wal", "MANIFEST": "manifest"}
GOLDEN_FILES = [(kind, path) for pattern, kind in KINDS.items() for path in sorted(GOLDEN.glob(pattern))]


def run(*arguments: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


def dump(kind: str, path: Path, *options: str) -> bytes:
    result = run(kind, "dump", path, *options)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


def build(kind: str, path: Path, lines: bytes) -> None:
    result = run(kind, "build", path, stdin=lines)
    assert result.exit_code == 0, result.output


def trees(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def untrees(found: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(tree).encode() + b"\n" for tree in found)


def make_sst(directory: Path, codec: str, entries: dict[bytes, bytes | None], number: int = 5) -> Path:
    (directory / "sst").mkdir(parents=True, exist_ok=True)
    writer = SstWriter(str(directory), new_header(number, STORE_ID, (1, len(entries)), codec, 1024, 10.0))
    keys = sorted(entries)
    writer.add(keys, [entries[key] for key in keys])
    writer.finish()
    return Path(writer.path)


def some_entries(count: int = 500) -> dict[bytes, bytes | None]:
    random = Random(7)
    values = (None, b"", b"x" * 300, random.randbytes(100), b"text")
    return {random.randbytes(random.randint(1, 9)): random.choice(values) for _ in range(count)}


def make_log(directory: Path, batches: int = 6) -> Path:
    (directory / "wal").mkdir(parents=True, exist_ok=True)
    log = LogWriter.create(str(directory), 9, STORE_ID, 100)
    sequence = 100
    for request in range(batches):
        batch: dict[bytes, bytes | None] = {b"key %d" % request: b"value", b"\xff%d" % request: None}
        sequence = log.append([(encode_batch(batch), len(batch), 7, request)], sequence)
        if request % 2:
            log.sync()
    log.close()
    return Path(log.path)


def recovered(path: Path) -> list[Record]:
    return recover_log(str(path), sealed_bytes=None, count_entries=lambda payload: 0 if payload is None else 1).records


@pytest.mark.parametrize("options", [(), ("--hex",)])
@pytest.mark.parametrize(("kind", "path"), GOLDEN_FILES, ids=lambda value: getattr(value, "name", value))
def test_golden_files_come_back_byte_for_byte(kind: str, path: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    build(kind, tmp_path / path.name, dump(kind, path, *options))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_golden_files_are_there() -> None:
    assert {kind for kind, _ in GOLDEN_FILES} == {"sst", "wal", "index", "manifest"}


class TestSst:
    @pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
    def test_an_sst_and_its_index_come_back_byte_for_byte(self, codec: str, tmp_path: Path) -> None:
        path = make_sst(tmp_path / "a", codec, some_entries())
        (tmp_path / "b").mkdir()
        target = tmp_path / "b" / path.name
        build("sst", target, dump("sst", path))
        assert target.read_bytes() == path.read_bytes()
        assert target.with_suffix(".index").read_bytes() == path.with_suffix(".index").read_bytes()
        assert sorted(file.name for file in target.parent.iterdir()) == ["000005.index", "000005.sst"]

    def test_a_block_that_this_machine_would_compress_differently_comes_back(self, tmp_path: Path) -> None:
        (tmp_path / "sst").mkdir()
        writer = SstWriter(str(tmp_path), new_header(5, STORE_ID, (1, 2), "lz4", 1024, 0.0))
        block: Columns = ([b"a", b"b"], [b"x" * 500, b"y" * 500])
        # the long form of the keys' lengths
        raw = b"\x92\x92\xc5\x00\x01a\xc5\x00\x01b\x92\xc5\x01\xf4" + b"x" * 500 + b"\xc5\x01\xf4" + b"y" * 500
        writer.add_copied(block, encode_block(raw, 2, 1, 0, 0)[20:], len(raw), 1)
        writer.finish()
        path = tmp_path / "sst" / "000005.sst"
        lines = dump("sst", path)
        assert b"stored_b64" in lines
        build("sst", tmp_path / "copy.sst", lines)
        assert (tmp_path / "copy.sst").read_bytes() == path.read_bytes()
        edited = lines.replace(b"yyy", b"zzz")
        build("sst", tmp_path / "edited.sst", edited)
        assert b"zzz" in dump("sst", tmp_path / "edited.sst")

    def test_edited_lines_give_a_valid_file_with_what_they_say(self, tmp_path: Path) -> None:
        path = make_sst(tmp_path / "a", "lz4", {b"key %03d" % n: b"value" for n in range(200)})
        found = trees(dump("sst", path))
        found = [tree for tree in found if tree.get("key") not in ("key 000", "key 199")]
        for tree in found:
            if tree.get("key") == "key 100":
                tree["value"] = "another, longer value"
        at = next(position for position, tree in enumerate(found) if tree.get("key") == "key 150")
        found.insert(at, {"key": "key 149x", "value": None})
        (tmp_path / "b" / "sst").mkdir(parents=True)
        target = tmp_path / "b" / "sst" / path.name
        result = run("sst", "build", target, stdin=untrees(found))
        table = Table(str(tmp_path / "b"), 5)
        entries = dict(table.iterate())
        assert entries[b"key 100"] == b"another, longer value"
        assert entries[b"key 149x"] is None
        assert len(entries) == 199 == table.footer.entries
        assert (table.footer.smallest, table.footer.largest, table.footer.tombstones) == (b"key 001", b"key 198", 1)
        assert not table.index_rebuilt
        assert b"key 149x" in table.read_block(table.find_block(b"key 149x"))[0]
        line = json.loads(result.stdout)
        assert (line["size_bytes"], line["entries"], line["smallest"]) == (target.stat().st_size, 199, "key 001")
        table.close()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda found: found[:-1], "end line is missing"),
            (lambda found: [*found, found[-1]], "behind the end line"),
            (lambda found: found[:1] + found[2:], "before the first block"),
            (lambda found: [found[0], found[1], found[3], found[2], *found[4:]], "line 4: key b'a' does not come after b'b'"),
            (lambda found: [found[0], found[1], found[2], found[2], *found[3:]], "keys must ascend"),
            (lambda found: [found[0], found[1], found[-1]], "at least one entry"),
            (lambda found: [{"file": "wal"}, *found[1:]], 'line 1: the first line must have "file": "sst"'),
            (lambda found: [{**found[0], "number": "5"}, *found[1:]], "line 1: the header is not valid"),
            (lambda found: [{**found[0], "compression": "brotli"}, *found[1:]], "brotli"),
            (lambda found: [found[0], {"block": 0, "codec": "brotli"}, *found[2:]], "line 2: a block's codec"),
            (lambda found: [found[0], {"block": 0, "codec": []}, *found[2:]], "line 2: a block's codec"),
            *(
                (
                    lambda found, name=name, value=value: [{**found[0], name: value}, *found[1:]],
                    f"line 1: the header is not valid: '{name}'",
                )
                for name, value in [
                    ("version", -1),
                    ("version", 2),
                    ("number", -1),
                    ("number", 0),
                    ("number", 2**32),
                    ("number", 2**64),
                    ("block_size", -1),
                    ("block_size", 2**64),
                    ("created_ms", 2**64),
                    ("created_ms", -1),
                    ("bits_per_key", 2**63),
                    ("bits_per_key", -0.5),
                    ("smallest_sequence", 2**64),
                    ("smallest_sequence", 3),
                    ("store_id", "00"),
                ]
            ),
            (lambda found: [{**found[0], "features": ["later"]}, *found[1:]], "line 1: the header is not valid"),
            (lambda found: [*found[:2], {"key": "a"}, *found[3:]], "line 3: 'value'"),
            (lambda found: [*found[:2], {"key": "a" * 65537, "value": ""}, *found[3:]], "line 3: the key is longer"),
            (lambda found: [], "no lines"),
        ],
    )
    def test_bad_lines_are_refused_and_leave_no_file(self, change: Any, message: str, tmp_path: Path) -> None:
        found = trees(dump("sst", make_sst(tmp_path / "a", "lz4", {b"a": b"1", b"b": b"2"})))
        (tmp_path / "b").mkdir()
        result = run("sst", "build", tmp_path / "b" / "x.sst", stdin=untrees(change(found)))
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert list((tmp_path / "b").iterdir()) == []

    def test_damage_is_named_with_file_and_offset(self, tmp_path: Path) -> None:
        path = make_sst(tmp_path, "lz4", some_entries())
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        moved = tmp_path / "moved"
        moved.write_bytes(data)
        result = run("sst", "dump", moved)
        assert result.exit_code == 4
        assert f"{moved}: offset " in result.stderr
        assert "checksum" in result.stderr

    @given(st.dictionaries(st.binary(max_size=9), st.none() | st.binary(max_size=40), min_size=1, max_size=40))
    def test_any_entries_come_back(self, entries: dict[bytes, bytes | None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = make_sst(Path(folder), "zstd", entries)
            build("sst", Path(folder, "copy"), dump("sst", path))
            assert Path(folder, "copy").read_bytes() == path.read_bytes()


class TestWal:
    def test_a_log_with_reserved_space_comes_back_byte_for_byte(self, tmp_path: Path) -> None:
        path = make_log(tmp_path)
        lines = dump("wal", path)
        assert "zeros" in trees(lines)[-1]
        build("wal", tmp_path / "copy", lines)
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()

    def test_damage_is_shown_and_comes_back_and_what_follows_is_read(self, tmp_path: Path) -> None:
        path = make_log(tmp_path)
        data = bytearray(path.read_bytes())
        third = trees(dump("wal", path))[3]["record"]
        data[third + 60] ^= 1
        end = len(data) - 8 * 1024 * 1024 + 100_000
        data[end : end + 3] = b"KVR"
        path.write_bytes(data)
        lines = dump("wal", path)
        found = trees(lines)
        assert found[3]["damage"] == "record checksum does not match"
        assert found[3]["offset"] == third
        assert [tree.get("request") for tree in found[1:7]] == [0, 1, None, 3, 4, 5]
        build("wal", tmp_path / "copy", lines)
        assert (tmp_path / "copy").read_bytes() == bytes(data)

    @pytest.mark.parametrize("kept", [0, 1, 47, 48, 60])
    def test_a_torn_last_record_comes_back(self, kept: int, tmp_path: Path) -> None:
        path = make_log(tmp_path)
        last = trees(dump("wal", path))[-2]["record"]
        path.write_bytes(path.read_bytes()[: last + kept])
        build("wal", tmp_path / "copy", dump("wal", path))
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()

    def test_edited_lines_give_a_valid_log(self, tmp_path: Path) -> None:
        path = make_log(tmp_path)
        found = trees(dump("wal", path))
        del found[2]  # a whole record
        found[1]["entries"].append({"key": "added", "value": "a value that moves all that follows"})
        found.insert(3, {"record": None, "entries": [{"key": "by hand", "value": "1"}]})
        del found[3]["record"]
        build("wal", tmp_path / "edited", untrees(found))
        recovery = recover_log(str(tmp_path / "edited"), sealed_bytes=None, count_entries=lambda payload: payload[0] & 15)
        assert [record.first_sequence for record in recovery.records] == [100, 103, 105, 106, 108, 110]
        assert recovery.dropped_bytes == 0
        boundaries = {64, *(record.end for record in recovery.records)}
        assert {record.synced for record in recovery.records} <= boundaries

    @pytest.mark.parametrize("payload", [b"\x80", encode_batch({b"k" * 70_000: b"v", b"a": None})])
    def test_a_record_that_keyva_would_not_write_comes_back_and_so_does_what_follows(self, payload: bytes, tmp_path: Path) -> None:
        (tmp_path / "wal").mkdir()
        log = LogWriter.create(str(tmp_path), 9, STORE_ID, 1)
        log.append([(payload, 2, 1, 1), (encode_batch({b"k": b"v"}), 1, 1, 2)], 1)
        log.close()
        lines = dump("wal", Path(log.path))
        assert "entries" not in trees(lines)[1]
        build("wal", tmp_path / "copy", lines)
        assert (tmp_path / "copy").read_bytes() == Path(log.path).read_bytes()

    def test_sequence_numbers_beyond_64_bits_are_refused(self, tmp_path: Path) -> None:
        head = {"file": "wal", "number": 1, "store_id": "0f" * 16, "first_sequence": 2**64 - 1}
        result = run("wal", "build", tmp_path / "x", stdin=untrees([head, {"entries": [{"key": "a", "value": None}]}]))
        assert (result.exit_code, "line 2: the sequence numbers" in result.stderr) == (2, True)

    def test_the_repair_that_the_help_shows_drops_damage_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "wal").mkdir()
        log = LogWriter.create(str(tmp_path), 9, STORE_ID, 1)
        log.append([(encode_batch({b"damage": b'{"damage"'}), 1, 1, 1), (encode_batch({b"b": b"torn"}), 1, 1, 2)], 1)
        log.close()
        Path(log.path).write_bytes(Path(log.path).read_bytes().replace(b"torn", b"tore"))
        command = next(line for line in run("wal", "--help").stdout.splitlines() if "grep" in line)
        pattern = shlex.split(command)[shlex.split(command).index("-v") + 1]
        found = dump("wal", Path(log.path))
        kept = subprocess.run(["grep", "-v", pattern], input=found, capture_output=True, check=True).stdout
        assert [tree.get("entries") for tree in trees(kept)] == [None, [{"key": "damage", "value": '{"damage"'}], None]
        assert b'{"damage":' in found and b'\n{"damage":' not in kept

    def test_a_payload_in_another_encoding_comes_back(self, tmp_path: Path) -> None:
        (tmp_path / "wal").mkdir()
        log = LogWriter.create(str(tmp_path), 9, STORE_ID, 1)
        log.append([(b"\x81\xc5\x00\x01k\xc0", 1, 1, 1), (b"\x92\x80\xc0", 0, 1, 2)], 1)
        log.close()
        lines = dump("wal", Path(log.path))
        assert trees(lines)[1]["entries"] == [{"key": "k", "value": None}]
        build("wal", tmp_path / "copy", lines)
        assert (tmp_path / "copy").read_bytes() == Path(log.path).read_bytes()
        edited = trees(lines)
        edited[1]["entries"][0]["value"] = "now"
        build("wal", tmp_path / "edited", untrees(edited))
        assert b"\x81\xc4\x01k\xc4\x03now" in (tmp_path / "edited").read_bytes()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b'{"entries": 1}', "list of objects"),
            (b'{"entries": [{"key": "a"}]}', "'value'"),
            (b'{"entries": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]}', "twice"),
            (b'{"client": 1}', "needs its 'entries'"),
            (b'{"entries": [{"key": "a", "value": "1"}], "client": -1}', "'client'"),
            (b'{"entries": []}', "at least one entry"),
            (b'{"entries": [{"key": "' + b"k" * 65537 + b'", "value": "1"}]}', "longer than 65536"),
            (b'{"entries": [{"key": "a", "value": "1", "key": "b"}]}', "field 'key' is there twice"),
            (b'{"zeros": 9223372036854775808}', "4 GiB"),
            (b'{"zeros": -1}', "'zeros'"),
            (b'{"zeros": 5000000000}', "4 GiB"),
            (b'{"damage": "x", "bytes_b64": "?"}', "bytes_b64"),
            (b"nonsense", "not JSON"),
        ],
    )
    def test_bad_lines_are_refused(self, line: bytes, message: str, tmp_path: Path) -> None:
        head = dump("wal", make_log(tmp_path)).splitlines(keepends=True)[0]
        result = run("wal", "build", tmp_path / "x", stdin=head + line)
        assert result.exit_code == 2
        assert "line 2: " in result.stderr
        assert message in result.stderr
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("head", [b"{}", b'{"file": "wal"}', b'{"file": "wal", "store_id": "00", "number": 1, "first_sequence": 1}'])
    def test_a_bad_header_is_refused(self, head: bytes, tmp_path: Path) -> None:
        assert run("wal", "build", tmp_path / "x", stdin=head).exit_code == 2

    @given(
        st.lists(st.dictionaries(st.binary(max_size=5), st.none() | st.binary(max_size=20), min_size=1), max_size=5), st.binary(max_size=80)
    )
    def test_any_records_and_any_tail_come_back(self, batches: list[dict[bytes, bytes | None]], tail: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            head = {"file": "wal", "number": 3, "store_id": "0f" * 16, "first_sequence": 9}
            lines = [json.dumps(head).encode()]
            for batch in batches:
                entries = [
                    {"key_hex": key.hex(), **({"value": None} if value is None else {"value_hex": value.hex()})}
                    for key, value in batch.items()
                ]
                lines.append(json.dumps({"entries": entries}).encode())
            data = build_wal(enumerate(lines, 1)) + tail
            Path(folder, "log").write_bytes(data)
            build("wal", Path(folder, "copy"), dump("wal", Path(folder, "log")))
            assert Path(folder, "copy").read_bytes() == data


class TestIndex:
    def test_edited_lines_give_a_valid_index(self, tmp_path: Path) -> None:
        path = make_sst(tmp_path, "lz4", some_entries()).with_suffix(".index")
        found = trees(dump("index", path))
        found[0]["sst_bytes"] = 1
        del found[-2]
        found[-1]["filter_b64"] = None
        build("index", tmp_path / "edited", untrees(found))
        again = trees(dump("index", tmp_path / "edited"))
        assert again[0]["blocks"] == len(found) - 2
        assert again[0]["sst_bytes"] == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda found: found[:-1], "end line"),
            (lambda found: [found[0], found[2], found[1], *found[3:]], "ascend"),
            (lambda found: [*found[:-1], {**found[-1], "filter_b64": "AA=="}], "filter"),
            (lambda found: [*found[:-1], {**found[-1], "end_offset": -1}], "end_offset"),
            (lambda found: [{**found[0], "sst_crc32c": 5}, *found[1:]], "sst_crc32c"),
            (lambda found: [{**found[0], "sst_crc32c": "-0000001"}, *found[1:]], "sst_crc32c"),
            (lambda found: [{**found[0], "sst_bytes": 2**64}, *found[1:]], "line 1: the header is not valid: 'sst_bytes'"),
            (lambda found: [{**found[0], "entries": -1}, *found[1:]], "line 1: the header is not valid: 'entries'"),
            (lambda found: [found[0], {"first_key": "k" * 65537, "offset": 1}, *found[1:]], "line 2: the first key is longer"),
            (lambda found: [{"file": "index", "sst_crc32c": "00000000"}, *found[1:]], "store_id"),
        ],
    )
    def test_bad_lines_are_refused(self, change: Any, message: str, tmp_path: Path) -> None:
        found = trees(dump("index", make_sst(tmp_path, "lz4", some_entries()).with_suffix(".index")))
        result = run("index", "build", tmp_path / "x", stdin=untrees(change(found)))
        assert result.exit_code == 2
        assert message in result.stderr
        assert not (tmp_path / "x").exists()

    def test_damage_is_named(self, tmp_path: Path) -> None:
        path = make_sst(tmp_path, "lz4", some_entries()).with_suffix(".index")
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
        result = run("index", "dump", path)
        assert result.exit_code == 4
        assert str(path) in result.stderr


class TestManifest:
    def test_edited_lines_give_a_valid_manifest(self, tmp_path: Path) -> None:
        found = trees(dump("manifest", GOLDEN / "MANIFEST"))
        found[0]["generation"] = 99
        build("manifest", tmp_path / "MANIFEST", untrees(found))
        manifest = parse_manifest((tmp_path / "MANIFEST").read_bytes(), "")
        assert manifest.generation == 99
        assert manifest.all_files() == parse_manifest((GOLDEN / "MANIFEST").read_bytes(), "").all_files()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda found: [], "no lines"),
            (lambda found: found[1:], '"file": "manifest"'),
            (lambda found: [tree for tree in found if "log" not in tree], "log"),
            (lambda found: [{**found[0], "next_number": 1}, *found[1:]], "next_number"),
            (lambda found: [{**found[0], "levels": -1}, *found[1:]], "'levels'"),
            (lambda found: [*found, {"nonsense": 1}], "'level'"),
            (lambda found: [*found[:-1], {**found[-1], "crc32c": 5}], "'crc32c'"),
            (lambda found: [*found, found[-1]], "listed twice"),
            (lambda found: [*found[:-1], {**found[-1], "colour": 5}], "colour"),
            (lambda found: [{**found[0], "generation": 2**64}, *found[1:]], "generation"),
            (lambda found: [{**found[0], "generation": -1}, *found[1:]], "generation"),
            (lambda found: [{**found[0], "format": 0}, *found[1:]], "format"),
            (lambda found: [{**found[0], "format": 2}, *found[1:]], "format 2"),
            (lambda found: [{**found[0], "features": ["later"]}, *found[1:]], "later"),
            (lambda found: [*found[:-1], {**found[-1], "number": -1}], "SST number"),
            (lambda found: [*found[:-1], {**found[-1], "size_bytes": -1}], "out of range"),
            (lambda found: [{**tree, "log": -1} if "log" in tree else tree for tree in found], "log number"),
        ],
    )
    def test_a_manifest_against_its_own_rules_is_refused(self, change: Any, message: str, tmp_path: Path) -> None:
        found = trees(dump("manifest", GOLDEN / "MANIFEST"))
        result = run("manifest", "build", tmp_path / "x", stdin=untrees(change(found)))
        assert result.exit_code == 2
        assert message in result.stderr
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("kind", "path"), [GOLDEN_FILES[0], *GOLDEN_FILES[-2:]], ids=lambda value: getattr(value, "name", value))
def test_a_file_that_is_there_is_replaced_only_by_force(kind: str, path: Path, tmp_path: Path) -> None:
    lines = dump(kind, path)
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    result = run(kind, "build", target, stdin=lines)
    assert result.exit_code == 2
    assert target.read_bytes() == b"precious"
    assert run(kind, "build", "--force", target, stdin=lines).exit_code == 0
    assert target.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("through", ["store", "link to the store", "link to its folders"])
def test_files_of_a_running_store_are_not_touched(through: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(GOLDEN, store)
    (tmp_path / "link to the store").symlink_to(store)
    (tmp_path / "link to its folders").mkdir()
    for name in ("MANIFEST", "sst", "wal"):
        (tmp_path / "link to its folders" / name).symlink_to(store / name)
    (store / "sst" / "000099.sst").symlink_to(tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    lock = Lock(str(store / "LOCK"))
    assert lock.acquire()
    try:
        for target in ("MANIFEST", "sst/000003.sst", "sst/000099.sst", "wal/000009.wal"):
            lines = dump("manifest", GOLDEN / "MANIFEST")
            result = run("manifest", "build", "--force", tmp_path / through / target, stdin=lines)
            assert result.exit_code == 3
            assert "stop it" in result.stderr
        assert {path: path.read_bytes() for path in before} == before
        assert not (tmp_path / "elsewhere").exists()
    finally:
        lock.release()


@pytest.mark.parametrize(("kind", "path"), [GOLDEN_FILES[0], *GOLDEN_FILES[-2:]], ids=lambda value: getattr(value, "name", value))
class TestWhatIsReplaced:
    def test_a_new_file_is_private_and_an_old_one_keeps_its_mode(self, kind: str, path: Path, tmp_path: Path) -> None:
        target = tmp_path / "target"
        build(kind, target, dump(kind, path))
        assert target.stat().st_mode & 0o777 == 0o600
        target.chmod(0o640)
        assert run(kind, "build", "--force", target, stdin=dump(kind, path)).exit_code == 0
        assert target.stat().st_mode & 0o777 == 0o640

    def test_a_link_stays_and_what_it_points_at_is_written(self, kind: str, path: Path, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
        build(kind, tmp_path / "link", dump(kind, path))
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_bytes() == path.read_bytes()
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "folder", tmp_path / "folder" / "file", tmp_path / "link"]

    def test_a_fifo_is_written_to(self, kind: str, path: Path, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert run(kind, "build", "--force", fifo, stdin=dump(kind, path)).exit_code == 0
            assert os.read(reader, 65536) == path.read_bytes()
        finally:
            os.close(reader)
        assert fifo.is_fifo()


def test_a_build_that_a_signal_ends_leaves_nothing(tmp_path: Path) -> None:
    lines = dump("sst", make_sst(tmp_path / "a", "lz4", some_entries())).splitlines(keepends=True)
    folder = tmp_path / "b"
    folder.mkdir()
    command = [str(SCRIPTS / "keyva"), "sst", "build", str(folder / "x.sst")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"".join(lines[:100]))
        process.stdin.flush()
        eventually(lambda: list(folder.glob(".keyva-build-*/sst/*.sst")), "the build has begun")
        process.terminate()
        assert process.wait(60) == 143
        assert process.stderr.read() == b""
    assert list(folder.iterdir()) == []


def test_lines_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(dump("manifest", GOLDEN / "MANIFEST"))
    assert run("manifest", "build", tmp_path / "MANIFEST", tmp_path / "m.jsonl").exit_code == 0
    assert (tmp_path / "MANIFEST").read_bytes() == (GOLDEN / "MANIFEST").read_bytes()
