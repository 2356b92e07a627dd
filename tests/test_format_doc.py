"""A reader of keyva's files, written from docs/format.md alone.

It shares no code with the project's readers: `struct`, msgpack, lz4, zstandard and xxhash are all it uses (CRC-32C is written out).
keyva itself only makes files for it to read. When this file must change, so must docs/format.md.
"""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from random import Random
from typing import Any

import lz4.block
import msgspec
import pytest
import xxhash
import zstandard

DOC = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
GOLDEN = Path(__file__).parent / "data" / "v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())

Entries = dict[bytes, bytes | None]

# The page's rules


def make_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = make_table()


def crc(*parts: bytes) -> int:
    state = 0xFFFFFFFF
    for part in parts:
        for byte in part:
            state = state >> 8 ^ TABLE[(state ^ byte) & 0xFF]
    return state ^ 0xFFFFFFFF


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def unpack_map(data: bytes | memoryview) -> Any:
    return msgspec.msgpack.decode(data)


def read_log(data: bytes, store_id: bytes, number: int) -> tuple[int, list[tuple[int, Entries]], int]:
    """Return (first sequence number, [(first sequence number of the batch, batch)], where the records end)."""
    magic, version, size, flags, stored_number, stored_id, first = struct.unpack_from("<8sHHIQ16sQ", data)
    assert (magic, version, size, flags) == (b"KEYVAWAL", 1, 64, 0)
    assert (stored_number, stored_id) == (number, store_id)
    assert data[48:60] == bytes(12)
    assert struct.unpack_from("<I", data, 60)[0] == crc(data[:60])
    batches: list[tuple[int, Entries]] = []
    at, sequence = 64, first
    while data[at:].strip(b"\0"):
        magic, checksum, length, flags, record_sequence, synced, _client, _request = struct.unpack_from("<4sIIIQQQQ", data, at)
        end = at + 48 + length
        assert (magic, flags, record_sequence) == (b"KVR\x01", 0, sequence)
        assert checksum == crc(data[:60], u64(at), data[at + 8 : end])
        assert 64 <= synced <= at
        batch = unpack_map(data[at + 48 : end])
        assert isinstance(batch, dict)
        batches.append((sequence, batch))
        sequence += len(batch)
        at = end
    return first, batches, at


def read_sst(data: bytes, store_id: bytes, number: int) -> tuple[dict[str, Any], dict[str, Any], list[tuple[int, Entries]], int]:
    """Return (header, footer, [(offset, entries of the block)], where the blocks end)."""
    magic, size, checksum = struct.unpack_from("<8sII", data)
    head = data[16 : 16 + size]
    assert magic == b"KEYVASST"
    assert checksum == crc(head)
    header = unpack_map(head)
    assert (header["version"], header["features"]) == (1, [])
    assert (header["number"], header["store_id"]) == (number, store_id)
    footer_at, footer_size, checksum, magic = struct.unpack("<QII8s", data[-24:])
    footer_data = data[footer_at : footer_at + footer_size]
    assert magic == b"KEYVAEND"
    assert footer_at + footer_size + 24 == len(data)
    assert checksum == crc(head, footer_data, data[-24:-12])
    blocks = []
    at = 16 + size
    while at < footer_at:
        checksum, stored, raw_bytes, entries, codec, zeros = struct.unpack_from("<IIIIB3s", data, at)
        end = at + 20 + stored
        assert zeros == bytes(3)
        assert checksum == crc(head, u64(at), data[at + 4 : end])
        payload = data[at + 20 : end]
        if codec == 1:
            payload = lz4.block.decompress(payload, uncompressed_size=raw_bytes)
        elif codec == 2:
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw_bytes)
        assert codec in (0, 1, 2)
        assert len(payload) == raw_bytes
        keys, values = unpack_map(payload)
        block = dict(zip(keys, values, strict=True))
        assert len(block) == len(keys) == entries
        blocks.append((at, block))
        at = end
    assert at == footer_at
    return header, unpack_map(footer_data), blocks, at


def read_index(data: bytes) -> tuple[dict[str, Any], list[bytes], list[int], bytes]:
    """Return (header, first keys, offsets, filter)."""
    magic, size, checksum = struct.unpack_from("<8sII", data)
    head = data[16 : 16 + size]
    assert magic == b"KEYVAIDX"
    assert checksum == crc(head)
    payloads: list[bytes] = []
    at = 16 + size
    for _ in range(3):
        length, checksum = struct.unpack_from("<II", data, at)
        payloads.append(data[at + 8 : at + 8 + length])
        assert checksum == crc(head, *payloads)
        at += 8 + length
    assert at == len(data)
    offsets = [struct.unpack_from("<Q", payloads[1], place)[0] for place in range(0, len(payloads[1]), 8)]
    return unpack_map(head), unpack_map(payloads[0]), offsets, payloads[2]


def filter_bits(key: bytes, hashes: int, bits: int) -> list[int]:
    state = xxhash.xxh3_64_intdigest(key, seed=0)
    found = []
    for _ in range(hashes):
        state = (state * 47026247687942121848144207491837418733 + 1) % 2**128
        found.append((state >> 32) % 2**64 % bits)
    return found


def make_filter(keys: list[bytes], like: bytes) -> bytes:
    """Return the filter of ``keys`` with as many hash functions and bits as ``like`` has."""
    hashes, size = struct.unpack_from("<Q", like)[0], len(like) - 8
    bits = bytearray(size)
    for key in keys:
        for bit in filter_bits(key, hashes, 8 * size):
            bits[bit // 8] |= 1 << bit % 8
    return u64(hashes) + bits


def read_manifest(data: bytes) -> dict[str, Any]:
    assert data.isascii()
    tail = b',\n"crc32c": "00000000"\n}\n'
    body = data[: -len(tail)]
    assert data[len(body) :] == b',\n"crc32c": "%08x"\n}\n' % crc(body)
    manifest: dict[str, Any] = json.loads(data)
    assert manifest["format"] == 1
    assert manifest["features"] == []
    return manifest


def read_store(directory: Path) -> tuple[dict[str, Any], Entries]:
    """Read and check a whole store that nobody writes; return the manifest and all entries, tombstones too."""
    manifest = read_manifest((directory / "MANIFEST").read_bytes())
    store_id = bytes.fromhex(manifest["store_id"])
    layers: list[Entries] = []
    for log in reversed(manifest["logs"]):
        data = (directory / "wal" / f"{log['number']:06d}.wal").read_bytes()
        assert log["sealed_bytes"] in (None, len(data))
        first, batches, end = read_log(data, store_id, log["number"])
        assert first == log["first_sequence"]
        assert log["sealed_bytes"] in (None, end)
        layers += [batch for _, batch in reversed(batches)]
    for level in manifest["levels"]:
        for run in level:
            layers.append({})
            for file in run["files"]:
                layers[-1].update(read_live_sst(directory, store_id, file))
    entries: Entries = {}
    for layer in reversed(layers):
        entries.update(layer)
    return manifest, entries


def read_live_sst(directory: Path, store_id: bytes, file: dict[str, Any]) -> Entries:
    """Read an SST with its index, hold it against the manifest, and return what of it counts."""
    name = f"{file['number']:06d}"
    data = (directory / "sst" / f"{name}.sst").read_bytes()
    assert (len(data), f"{crc(data):08x}") == (file["size_bytes"], file["crc32c"])
    header, footer, blocks, end = read_sst(data, store_id, file["number"])
    index, first_keys, offsets, bloom = read_index((directory / "sst" / f"{name}.index").read_bytes())
    entries = {key: value for _, block in blocks for key, value in block.items()}
    assert list(entries) == sorted(entries)
    assert footer["blocks"] == index["blocks"] == len(blocks)
    assert footer["entries"] == index["entries"] == file["entries"] == len(entries)
    assert footer["tombstones"] == file["tombstones"] == list(entries.values()).count(None)
    assert (footer["smallest"], footer["largest"]) == (min(entries), max(entries))
    assert all(header[name] == file[name] for name in ("smallest_sequence", "largest_sequence"))
    assert (index["number"], index["store_id"]) == (file["number"], store_id)
    assert (index["sst_bytes"], index["sst_crc32c"]) == (len(data), crc(data))
    assert index["bits_per_key"] == header["bits_per_key"]
    assert first_keys == [next(iter(block)) for _, block in blocks]
    assert offsets == [offset for offset, _ in blocks] + [end]
    assert (bloom != b"") == (header["bits_per_key"] > 0)
    if bloom:
        assert bloom == make_filter(list(entries), bloom)
    smallest, largest = file["smallest"].encode("latin-1"), file["largest"].encode("latin-1")
    return {key: value for key, value in entries.items() if smallest <= key <= largest}


# What the files hold


def plain(entries: Entries) -> dict[str, str | None]:
    return {key.hex(): None if value is None else value.hex() for key, value in entries.items()}


def test_the_checksum_is_crc32c() -> None:
    assert crc(b"123456789") == crc(b"1234", b"56789") == 0xE3069283


class TestGoldenFiles:
    store_id = bytes(range(16))

    @pytest.mark.parametrize("number", [3, 4, 5])
    def test_ssts_hold_what_they_did(self, number: int) -> None:
        blocks = read_sst((GOLDEN / "sst" / f"{number:06d}.sst").read_bytes(), self.store_id, number)[2]
        assert plain({key: value for _, block in blocks for key, value in block.items()}) == EXPECTED["ssts"][str(number)]

    @pytest.mark.parametrize("number", [6, 7])
    def test_logs_hold_what_they_did(self, number: int) -> None:
        batches = read_log((GOLDEN / "wal" / f"{number:06d}.wal").read_bytes(), self.store_id, number)[1]
        assert [plain(batch) for _, batch in batches] == EXPECTED["logs"][str(number)]

    def test_the_store_is_the_sum_of_its_files(self) -> None:
        manifest, entries = read_store(GOLDEN)
        merged: dict[str, str | None] = {}
        for number in ("3", "4", "5"):
            merged.update(EXPECTED["ssts"][number])
        for batch in (*EXPECTED["logs"]["6"], *EXPECTED["logs"]["7"]):
            merged.update(batch)
        assert plain(entries) == merged
        assert manifest["generation"] == EXPECTED["generation"]
        assert manifest["last_sequence"] + 1 == manifest["logs"][-1]["first_sequence"]

    def test_pulse_names_the_end_of_the_active_log(self) -> None:
        position, generation, total = struct.unpack_from("<QQQ", (GOLDEN / "PULSE").read_bytes())
        assert total == (position + generation) % 2**64
        assert [position >> 32, position & 0xFFFFFFFF] == EXPECTED["committed"]
        assert generation == EXPECTED["generation"]
        assert (GOLDEN / "PULSE").stat().st_size == 4096
        assert read_log((GOLDEN / "wal" / "000007.wal").read_bytes(), self.store_id, 7)[2] == position & 0xFFFFFFFF

    @pytest.mark.parametrize("number", [3, 4, 5])
    def test_keyva_still_reads_the_ssts(self, number: int) -> None:
        from keyva.sst import Table

        table = Table(str(GOLDEN), number)
        assert plain(dict(table.iterate())) == EXPECTED["ssts"][str(number)]
        assert table.index.header.number == number
        assert not table.index_rebuilt
        table.close()

    @pytest.mark.parametrize(("number", "sealed"), [(6, True), (7, False)])
    def test_keyva_still_reads_the_logs(self, number: int, sealed: bool) -> None:
        from keyva.wal import recover_log

        path = GOLDEN / "wal" / f"{number:06d}.wal"
        size = path.stat().st_size if sealed else None
        found = recover_log(str(path), sealed_bytes=size, count_entries=lambda payload: len(unpack_map(payload)))
        assert [plain(unpack_map(record.payload)) for record in found.records] == EXPECTED["logs"][str(number)]
        assert found.dropped_bytes == 0

    def test_keyva_still_reads_the_manifest(self) -> None:
        from keyva.manifest import load_manifest, manifest_text

        manifest = load_manifest(str(GOLDEN))
        assert manifest is not None
        assert manifest.generation == EXPECTED["generation"]
        assert manifest_text(manifest) == (GOLDEN / "MANIFEST").read_bytes()


class TestFilesMadeNow:
    """Larger files than the golden ones, made by the keyva under test."""

    @pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
    @pytest.mark.parametrize("bits", [0.0, 2.0, 10.0, 20.0])
    def test_an_sst_with_its_index(self, store_dir: str, codec: str, bits: float) -> None:
        from keyva.manifest import FileMeta, LogMeta, Manifest, Run, store_manifest
        from keyva.sst import SstWriter, new_header
        from keyva.wal import LogWriter

        rng = Random(7)
        values = [None, b"", b"text " * 30, rng.randbytes(100), bytes(9000)]
        entries: Entries = {key: rng.choice(values) for key in sorted({rng.randbytes(rng.randrange(30)) for _ in range(400)})}
        store_id = rng.randbytes(16)
        writer = SstWriter(store_dir, new_header(3, store_id, (1, len(entries)), codec, 1024, bits))
        writer.add(list(entries), list(entries.values()))
        meta = FileMeta.of(writer.finish())
        log = LogWriter.create(store_dir, 4, store_id, len(entries) + 1)
        batch: Entries = {rng.randbytes(8): rng.choice(values) for _ in range(5)}
        log.append([(msgspec.msgpack.encode(batch), 5, 1, 1), (msgspec.msgpack.encode({b"last": None}), 1, 1, 2)], len(entries) + 1)
        log.sync()
        log.close()
        middle = sorted(entries)[100]
        store_manifest(
            store_dir,
            Manifest(
                store_id=store_id,
                generation=2,
                last_sequence=len(entries),
                next_number=9,
                logs=(LogMeta(number=4, first_sequence=len(entries) + 1),),
                levels=((), (Run(id=1, files=(msgspec.structs.replace(meta, smallest=middle),)),)),
            ),
        )
        counted = {key: value for key, value in entries.items() if key >= middle}
        assert read_store(Path(store_dir))[1] == {**counted, **batch, b"last": None}


class TestTheFilter:
    """A filter built by the page's rules equals one built by the library, bit for bit."""

    @pytest.mark.parametrize("bits", [2.0, 5.0, 10.0, 16.0, 32.0])
    @pytest.mark.parametrize("count", [1, 7, 3000])
    def test_bit_for_bit(self, bits: float, count: int) -> None:
        from keyva.filter import build_filter, hash_key

        keys = [os.urandom(12) for _ in range(count)]
        data = build_filter(map(hash_key, keys), count, bits).save_bytes()
        assert data == make_filter(keys, data)

    def test_the_example_of_the_page(self) -> None:
        assert xxhash.xxh3_64_intdigest(b"apple") == 0x517A430DCF1F8A00
        assert "The hash of `apple` is `0x517a430dcf1f8a00`, and its bits are 0, 25, 18, 30, 0 and\n4." in DOC
        assert filter_bits(b"apple", 6, 40) == [0, 25, 18, 30, 0, 4]
        keys = [bytes.fromhex(key) for key in EXPECTED["ssts"]["5"]]
        together = sorted({bit for key in keys for bit in filter_bits(key, 6, 40)})
        assert f"are {', '.join(map(str, together))}: `{make_filter(keys, u64(6) + bytes(5))[8:].hex(' ')}`" in DOC


class TestThePage:
    dumps = re.findall(r"<!-- golden: (\S+) -->\n((?:    [0-9a-f]{4}  .*\n)+)", DOC)

    def test_there_is_a_dump_of_every_binary_file(self) -> None:
        assert [name for name, _ in self.dumps] == ["wal/000006.wal", "sst/000005.sst", "sst/000005.index", "PULSE"]

    @pytest.mark.parametrize(("name", "dump"), dumps, ids=[name for name, _ in dumps])
    def test_its_bytes_are_those_of_the_file(self, name: str, dump: str) -> None:
        shown = b""
        for line in dump.splitlines():
            match = re.match(r"    ([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)(?: |$)", line)
            assert match is not None, line
            assert int(match[1], 16) == len(shown)
            shown += bytes.fromhex(match[2])
        data = (GOLDEN / name).read_bytes()
        assert data[: len(shown)] == shown
        assert data[len(shown) :].strip(b"\0") == b""

    def test_its_manifest_is_that_of_the_golden_store(self) -> None:
        match = re.search(r"<!-- golden: MANIFEST -->\n```json\n(.*?)```", DOC, re.DOTALL)
        assert match is not None
        assert match[1].encode() == (GOLDEN / "MANIFEST").read_bytes()

    def test_its_batches_are_batches(self) -> None:
        lines = re.search(r"Example: `\{\"pear\".*?\n\n((?:    .*\n)+)", DOC)
        assert lines is not None
        first, second = (unpack_map(bytes.fromhex(line)) for line in lines[1].splitlines())
        assert first == {b"pear": b"green", b"quince": b"yellow"}
        assert second == {b"pear": None}

    def test_its_checksum_by_hand_is_right(self) -> None:
        data = (GOLDEN / "wal" / "000006.wal").read_bytes()
        assert f"is `{crc(data[:60], u64(64), data[0x48:0x8E]):#010x}`" in DOC

    @pytest.mark.parametrize(
        "section",
        ["The directory", "Locks", "Batch", "Write-ahead log", "SST", "Block", "Index", "Filter", "Manifest", "PULSE", "REQUESTS", "NODE"],
    )
    def test_every_section_that_the_modules_name_is_there(self, section: str) -> None:
        assert re.search(rf"^#+ {section}$", DOC, re.MULTILINE)

    def test_the_modules_name_only_sections_that_are_there(self) -> None:
        for path in sorted((Path(__file__).parent.parent / "keyva").glob("*.py")):
            for section in re.findall(r"docs/format\.md, \"([^\"]+)\"", path.read_text()):
                assert re.search(rf"^#+ {section}$", DOC, re.MULTILINE), f"{path.name}: {section}"

    def test_the_fields_of_every_header_are_those_of_the_files(self) -> None:
        header, footer, _, _ = read_sst((GOLDEN / "sst" / "000005.sst").read_bytes(), bytes(range(16)), 5)
        index = read_index((GOLDEN / "sst" / "000005.index").read_bytes())[0]
        manifest = read_manifest((GOLDEN / "MANIFEST").read_bytes())
        for name in (*header, *footer, *index, *manifest, *manifest["logs"][0], *manifest["levels"][0][0]["files"][0]):
            assert f"`{name}`" in DOC, name

    def test_the_fields_of_node_are_those_that_are_written(self, tmp_path: Path) -> None:
        from keyva.endpoints import NodeInfo, ipc_endpoints, write_node_info

        endpoints = ipc_endpoints("/d", 2, "tcp://127.0.0.1:7000")
        write_node_info(str(tmp_path), NodeInfo(pid=1, version="1", directory="/d", started_at=1.0, endpoints=endpoints))
        node = json.loads((tmp_path / "NODE").read_bytes())
        section = DOC[DOC.index("\n## NODE") : DOC.index("\n## Versions")]
        for name in (*node, *node["endpoints"]):
            assert f"`{name}`" in section, name


def test_the_request_table_is_as_written(tmp_path: Path) -> None:
    from keyva.options import Options
    from keyva.store import Store, WriteRequest

    store = Store(str(tmp_path), Options())
    began = store.position
    store.write(
        [WriteRequest(increment=(b"n", 5), client=77, request=3, floor=2), WriteRequest(payload=b"\x81\xc4\x01a\xc0", client=9, request=1)]
    )
    store.save_requests()
    data = (tmp_path / "REQUESTS").read_bytes()
    assert data[:8] == b"KEYVAREQ"
    assert struct.unpack_from("<I", data, 8)[0] == crc(data[12:])
    version, covered_from, covered_to, clients = msgspec.msgpack.decode(data[12:])
    assert (version, covered_from <= began, covered_to) == (1, True, store.position)
    assert clients == [[77, 2, store.position, [[3, 1, 5]]], [9, 0, store.position, [[1, 2, None]]]]
    store.close()


def test_a_golden_file_is_made_the_same_today(tmp_path: Path) -> None:
    """Not the compressed ones: another release of a compressor may give other bytes for the same block."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN.parent / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make_all(tmp_path / "v1")
    for name in ("wal/000006.wal", "wal/000007.wal", "sst/000005.sst", "sst/000005.index", "PULSE", "expected.json"):
        assert (tmp_path / "v1" / name).read_bytes() == (GOLDEN / name).read_bytes(), name
