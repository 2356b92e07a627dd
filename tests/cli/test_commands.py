"""Every command in this process, against a real store."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq.auth
from click.testing import Result

import keyva
from keyva.files import Lock

Run = Callable[..., Result]
ANY_BYTES = bytes(range(256))


def one_line(result: Result, *parts: str) -> None:
    assert result.stderr.startswith("keyva: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


class TestGetAndPut:
    def test_a_value_comes_back_without_a_newline(self, run: Run, store: Path) -> None:
        run("put", "greeting", "hello")
        assert run("get", "greeting").stdout_bytes == b"hello"

    def test_any_bytes_from_standard_input(self, run: Run, store: Path) -> None:
        run("put", "bytes", "-", stdin=ANY_BYTES)
        assert run("get", "bytes").stdout_bytes == ANY_BYTES

    def test_any_bytes_from_a_file(self, run: Run, store: Path, tmp_path: Path) -> None:
        (tmp_path / "value").write_bytes(ANY_BYTES)
        run("put", "bytes", "--file", tmp_path / "value")
        assert run("get", "bytes").stdout_bytes == ANY_BYTES

    def test_an_empty_key_and_an_empty_value(self, run: Run, store: Path) -> None:
        run("put", "", "")
        assert run("get", "").stdout_bytes == b""

    def test_hexadecimal_digits(self, run: Run, store: Path, client: keyva.Client, tmp_path: Path) -> None:
        run("put", "--hex", "00ff", "cafe")
        assert client.get(b"\x00\xff") == b"\xca\xfe"
        assert run("--hex", "get", "00ff").stdout == "cafe\n"
        run("put", "--hex", "01", "-", stdin=b"ca fe\n")
        assert client.get(b"\x01") == b"\xca\xfe"
        one_line(run("put", "--hex", "02", "-", stdin=b"xyz", code=2), "hexadecimal")
        one_line(run("put", "--hex", "0", "00", code=2), "hexadecimal")

    def test_a_key_that_is_not_utf8(self, run: Run, store: Path, client: keyva.Client) -> None:
        run("put", "k\udcff", "v\udcfe")
        assert client.get(b"k\xff") == b"v\xfe"

    def test_a_value_that_begins_with_a_dash(self, run: Run, store: Path) -> None:
        run("put", "t", "--", "-5")
        assert run("get", "t").stdout_bytes == b"-5"

    def test_an_absent_key_is_exit_code_1_and_silence(self, run: Run, store: Path) -> None:
        result = run("get", "absent", code=1)
        assert (result.stdout_bytes, result.stderr_bytes) == (b"", b"")

    @pytest.mark.parametrize("options", [("--sync",), ("--no-sync",), ()])
    def test_durability_can_be_chosen(self, options: tuple[str, ...], run: Run, store: Path) -> None:
        run("put", *options, "a", "1")
        run("delete", *options, "a")
        run("get", "a", code=1)

    @pytest.mark.parametrize("arguments", [("k",), ("k", "v", "--file", __file__), ("k", "--file", "/no/such/file"), ()])
    def test_wrong_usage_is_exit_code_2(self, arguments: tuple[str, ...], run: Run, store: Path) -> None:
        one_line(run("put", *arguments, code=2), "--help")

    @pytest.mark.parametrize("key", ["\udcff\udcffx", "k" * 65537])
    def test_a_key_that_is_not_allowed_is_exit_code_2(self, key: str, run: Run, store: Path) -> None:
        one_line(run("put", key, "v", code=2), "key")


class TestDeleteAndExists:
    def test_keys_are_deleted_together(self, run: Run, store: Path, client: keyva.Client) -> None:
        client.put_many({b"a": b"1", b"b": b"2", b"c": b"3"})
        run("delete", "a", "c", "absent")
        assert list(client.iterator(include_value=False)) == [b"b"]

    def test_exists_speaks_and_returns(self, run: Run, store: Path) -> None:
        run("put", "a", "")
        assert run("exists", "a").stdout == "true\n"
        assert run("exists", "b", code=1).stdout == "false\n"


class TestIncr:
    def test_counts_up_and_down(self, run: Run, store: Path) -> None:
        assert [run("incr", "n", *by).stdout for by in ((), ("5",), ("-10",))] == ["1\n", "6\n", "-4\n"]
        assert run("get", "n").stdout_bytes == b"-4"

    def test_what_is_no_counter_is_exit_code_2(self, run: Run, store: Path) -> None:
        run("put", "n", "many")
        one_line(run("incr", "n", code=2))
        assert run("get", "n").stdout_bytes == b"many"

    def test_overflow_is_exit_code_2(self, run: Run, store: Path) -> None:
        run("put", "n", str(2**63 - 1))
        one_line(run("incr", "n", code=2))

    def test_a_step_that_is_no_number_is_exit_code_2(self, run: Run, store: Path) -> None:
        one_line(run("incr", "n", "--fast", code=2), "--fast")

    @pytest.mark.parametrize("arguments", [("--foo",), ("-5",), ("-5x",), ("n", "-5x"), ("n", "-5", "-6"), ("n", "5", "-6"), ("-x", "5")])
    def test_a_mistyped_option_is_neither_key_nor_number(self, arguments: tuple[str, ...], run: Run, client: keyva.Client) -> None:
        one_line(run("incr", *arguments, code=2), "keyva")
        assert list(client.iterator()) == []

    def test_a_key_that_begins_with_a_dash_goes_behind_two(self, run: Run, store: Path) -> None:
        assert run("incr", "--", "--foo", "-5").stdout == "-5\n"
        assert run("incr", "--timeout", "30", "--", "-5").stdout == "1\n"

    def test_a_negative_number_is_no_value_of_an_option(self, run: Run, store: Path) -> None:
        one_line(run("incr", "n", "--timeout", "-5", code=2), "--timeout")
        assert run("incr", "n", "-5", "--timeout", "5").stdout == "-5\n"


class TestScan:
    @pytest.fixture(autouse=True)
    def entries(self, client: keyva.Client) -> None:
        client.put_many({b"a": b"1", b"b:1": b"tab\there", b"b:2": b"\xff", b"b:3": "é".encode(), b"c\x00": b""})

    @pytest.mark.parametrize(
        ("options", "lines"),
        [
            ((), ["a\t1", r"b:1" + "\t" + r"tab\there", "b:2\t" + r"\xff", "b:3\té", "c\\x00\t"]),
            (("--prefix", "b:"), [r"b:1" + "\t" + r"tab\there", "b:2\t" + r"\xff", "b:3\té"]),
            (("--keys-only", "--from", "b:2"), ["b:2", "b:3", r"c\x00"]),
            (("--keys-only", "--to", "b:2"), ["a", "b:1"]),
            (("--keys-only", "--from", "b", "--to", "c", "--reverse"), ["b:3", "b:2", "b:1"]),
            (("--keys-only", "--reverse", "--limit", "2"), [r"c\x00", "b:3"]),
            (("--keys-only", "--max-keys", "0"), []),
            (("--hex", "--prefix", "623a32"), ["623a32\tff"]),
            (("--json", "--prefix", "b:2"), ['{"key":"b:2","value_b64":"/w=="}']),
            (("--json", "--keys-only", "--limit", "1"), ['{"key":"a"}']),
            (("--json", "--hex", "--limit", "1"), ['{"key_hex":"61","value_hex":"31"}']),
        ],
    )
    def test_lines(self, options: tuple[str, ...], lines: list[str], run: Run) -> None:
        assert run("scan", *options).stdout_bytes.decode().splitlines() == lines

    @pytest.mark.parametrize("options", [("--prefix", "a", "--from", "b"), ("--limit", "-1"), ("--limit", "x"), ("--colour",)])
    def test_wrong_usage_is_exit_code_2(self, options: tuple[str, ...], run: Run) -> None:
        one_line(run("scan", *options, code=2), "keyva scan --help")


class TestLoadAndDump:
    def test_a_dump_is_loaded_again(self, run: Run, client: keyva.Client, tmp_path: Path) -> None:
        entries = {bytes([n]) + b"key": ANY_BYTES[n:] for n in range(255)} | {b"": b"", b"text": "é".encode()}
        client.put_many(entries)
        lines = run("dump").stdout_bytes
        run("dump", tmp_path / "file")
        run("dump", "--hex", tmp_path / "hex")
        assert (tmp_path / "file").read_bytes() == lines
        assert len(lines.splitlines()) == len(entries)
        for source in ("file", "hex"):
            run("delete", "--hex", *(key.hex() for key in entries))
            assert run("dump").stdout_bytes == b""
            run("load", tmp_path / source)
            assert dict(client.iterator()) == entries
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "hex"]

    def test_a_range_is_dumped(self, run: Run, client: keyva.Client) -> None:
        client.put_many({b"a": b"1", b"b": b"2", b"c": b"3"})
        assert run("dump", "--from", "b", "--to", "c").stdout == '{"key":"b","value":"2"}\n'
        assert run("dump", "--prefix", "a").stdout == '{"key":"a","value":"1"}\n'

    def test_many_entries_from_a_pipe(self, run: Run, client: keyva.Client) -> None:
        lines = b"".join(b'{"key": "%05d", "value": "v"}\n' % n for n in range(3500))
        result = run("load", stdin=lines)
        assert (result.stdout_bytes, result.stderr_bytes) == (b"", b"")
        assert sum(1 for _ in client.iterator()) == 3500

    def test_a_later_line_wins(self, run: Run, client: keyva.Client) -> None:
        run("load", "-", stdin=b'{"key": "a", "value": "1"}\n\n{"value": "2", "key": "a"}')
        assert client.get(b"a") == b"2"

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"nonsense", "not JSON"),
            (b"[]", "not a JSON object"),
            (b'{"key": "a"}', "value"),
            (b'{"key": "a", "value": null}', "value"),
            (b'{"key": "a", "value": "1", "ttl": 5}', "ttl"),
            (b'{"key": "a", "key_b64": "YQ==", "value": "1"}', "exactly one"),
            (b'{"key": "a", "value": "1", "key": "b"}', "field 'key' is there twice"),
            (b'{"key": "a", "value": "1", "k\\u0065y": "b"}', "field 'key' is there twice"),
            (b'{"key": "a", "value": "1", "value": "1\\""}', "field 'value' is there twice"),
            (b'{"key": "a", "value": "1", "content_type": null}', "'content_type' must be text"),
            (b'{"key": "a", "value": "1", "content_type": ""}', "content type"),
            (b'{"key": "a", "value": "1", "content_type": "caf\xc3\xa9"}', "ASCII"),
            (b'{"key_hex": "ffff00", "value": "1"}', "FF FF"),
            (b'{"key": "' + b"k" * 65537 + b'", "value": "1"}', "65536"),
        ],
    )
    def test_a_bad_line_is_named_and_the_lines_before_it_are_in_the_store(
        self, line: bytes, message: str, run: Run, client: keyva.Client
    ) -> None:
        good = b"".join(b'{"key": "%05d", "value": "v"}\n' % n for n in range(1234))
        result = run("load", stdin=good + line + b"\n" + good, code=2)
        one_line(result, "line 1235:", message, "the 1234 entries up to line 1234 are in the store")
        assert sum(1 for _ in client.iterator()) == 1234

    def test_a_bad_first_line_writes_nothing(self, run: Run, client: keyva.Client) -> None:
        one_line(run("load", stdin=b"x", code=2), "line 1:", "nothing was written")

    def test_content_types_are_dumped_and_loaded(self, run: Run, client: keyva.Client, tmp_path: Path) -> None:
        client.put(b"page", b"<p>", content_type="text/html")
        client.put(b"photo", b"\xff", content_type="image/png")
        client.put_many({b"plain %04d" % n: b"" for n in range(1500)})
        run("dump", tmp_path / "file")
        lines = (tmp_path / "file").read_bytes().splitlines()
        assert lines[:3] == [
            b'{"key":"page","value":"<p>","content_type":"text/html"}',
            b'{"key":"photo","value_b64":"/w==","content_type":"image/png"}',
            b'{"key":"plain 0000","value":""}',
        ]
        assert run("--endpoint", endpoint_of(Path(os.environ["KEYVA_DIR"])), "dump").stdout_bytes == (tmp_path / "file").read_bytes()
        with client.write_batch() as batch:
            for key in client.iterator(include_value=False):
                batch.delete(key)
        run("load", tmp_path / "file")
        assert client.get_typed(b"page") == (b"<p>", "text/html")
        assert client.get_typed(b"photo") == (b"\xff", "image/png")
        assert client.get_typed(b"plain 1499") == (b"", None)
        run("load", "-", stdin=b'{"key": "page", "value": "<p>"}')  # as an older dump has it
        assert client.get_typed(b"page") == (b"<p>", None)

    def test_a_key_too_long_to_have_a_content_type_is_dumped(self, run: Run, client: keyva.Client) -> None:
        client.put(b"k" * 65536, b"v")
        assert len(run("dump").stdout_bytes) == 65536 + len('{"key":"","value":"v"}\n')

    def test_the_help_says_that_sequences_are_no_part_of_a_dump(self, run: Run) -> None:
        for command in ("dump", "load"):
            assert "Sequences" in run(command, "--help").stdout

    def test_a_new_dump_is_private_and_one_that_is_replaced_keeps_its_mode(self, run: Run, client: keyva.Client, tmp_path: Path) -> None:
        client.put(b"a", b"1")
        run("dump", tmp_path / "file")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        (tmp_path / "file").write_bytes(b"old")
        (tmp_path / "file").chmod(0o640)
        run("dump", tmp_path / "file")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
        assert (tmp_path / "file").read_bytes() == b'{"key":"a","value":"1"}\n'

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_link_stays_and_what_it_points_at_is_written(self, exists: bool, run: Run, client: keyva.Client, tmp_path: Path) -> None:
        client.put(b"a", b"1")
        (tmp_path / "folder").mkdir()
        if exists:
            (tmp_path / "folder" / "file").write_bytes(b"old")
        (tmp_path / "link").symlink_to(Path("folder", "file"))
        run("dump", tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_bytes() == b'{"key":"a","value":"1"}\n'
        assert len(list(tmp_path.rglob("*"))) == 3

    def test_a_fifo_is_written_to_and_not_replaced(self, run: Run, client: keyva.Client, tmp_path: Path) -> None:
        client.put(b"a", b"1")
        os.mkfifo(tmp_path / "fifo")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        try:
            run("dump", tmp_path / "fifo")
            assert os.read(reader, 1000) == b'{"key":"a","value":"1"}\n'
        finally:
            os.close(reader)
        assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]

    def test_a_folder_that_is_not_there_is_named(self, run: Run, store: Path, tmp_path: Path) -> None:
        one_line(run("dump", tmp_path / "nowhere" / "file", code=5), str(tmp_path / "nowhere" / "file"))

    def test_a_failing_dump_leaves_the_old_file(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old")
        run("--dir", tmp_path / "nowhere", "dump", tmp_path / "file", code=3)
        assert (tmp_path / "file").read_bytes() == b"old"

    def test_a_failing_dump_leaves_no_file(self, run: Run, tmp_path: Path) -> None:
        run("--dir", tmp_path / "nowhere", "dump", tmp_path / "file", code=3)
        assert list(tmp_path.iterdir()) == []


class TestAdmin:
    def test_stats_as_json_and_as_lines(self, run: Run, store: Path) -> None:
        found = json.loads(run("stats", "--json").stdout)
        assert isinstance(found, dict)
        lines = run("stats").stdout.splitlines()
        assert lines
        assert all(line.count("\t") == 1 for line in lines)

    def test_flush_and_compact_make_files_that_the_tools_read(self, run: Run, store: Path, client: keyva.Client, tmp_path: Path) -> None:
        client.put_many({b"%04d" % n: ANY_BYTES for n in range(500)})
        run("flush")
        assert list((store / "sst").glob("*.sst"))
        client.put(b"0000", b"new")
        for arguments in (("compact", "--from", "0", "--to", "1"), ("compact",)):
            assert run(*arguments).output == ""
        kinds = {"sst/*.sst": "sst", "sst/*.index": "index", "wal/*.wal": "wal", "MANIFEST": "manifest"}
        seen = 0
        for pattern, kind in kinds.items():
            for path in store.glob(pattern):
                # a running store removes files at any moment, and its log grows: the copy stands still
                copy = tmp_path / path.name
                copy.write_bytes(path.read_bytes())
                run(kind, "build", tmp_path / "built", "-", stdin=run(kind, "dump", copy).stdout_bytes)
                assert (tmp_path / "built").read_bytes() == copy.read_bytes()
                (tmp_path / "built").unlink()
                seen += 1
        assert seen >= 4

    def test_ps_lists_the_processes(self, run: Run, store: Path) -> None:
        rows = [line.split("\t") for line in run("ps", store).stdout.splitlines()]
        assert {"node", "writer", "flusher", "compactor"} <= {row[0] for row in rows}
        for _, pid, _, _, restarts, _ in rows:
            os.kill(int(pid), 0)
            assert restarts == "0"
        found = [json.loads(line) for line in run("ps", "--json").stdout.splitlines()]
        assert [process["role"] for process in found] == [row[0] for row in rows]

    def test_ps_without_a_node_is_exit_code_3(self, run: Run, tmp_path: Path) -> None:
        one_line(run("ps", tmp_path, code=3))

    def test_ps_of_a_file_is_exit_code_3(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        one_line(run("ps", tmp_path / "file", code=3), "is not a directory")

    def test_ps_without_permission_is_exit_code_3_as_get_is(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(directory: str) -> None:
            raise PermissionError(13, "Permission denied", directory)

        monkeypatch.setattr("keyva.client.node_processes", refuse)
        monkeypatch.setattr(os, "access", lambda *arguments, **options: False)
        one_line(run("ps", tmp_path, code=3), "no permission to use")


class TestKeygen:
    def test_makes_a_pair_that_zmq_reads(self, run: Run, tmp_path: Path) -> None:
        run("keygen", "alice", "--out", tmp_path / "keys")
        public, none = zmq.auth.load_certificate(tmp_path / "keys" / "alice.key")
        again, secret = zmq.auth.load_certificate(tmp_path / "keys" / "alice.key_secret")
        assert public == again
        assert none is None
        assert secret is not None
        assert stat.S_IMODE((tmp_path / "keys" / "alice.key_secret").stat().st_mode) == 0o600

    def test_never_replaces_a_key(self, run: Run, tmp_path: Path) -> None:
        run("keygen", "alice", "--out", tmp_path)
        before = (tmp_path / "alice.key_secret").read_bytes()
        one_line(run("keygen", "alice", "--out", tmp_path, code=2), "alice.key")
        assert (tmp_path / "alice.key_secret").read_bytes() == before

    def test_never_writes_through_a_link(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "alice.key").symlink_to(tmp_path / "elsewhere")
        one_line(run("keygen", "alice", "--out", tmp_path, code=2), "alice.key")
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize("name", ["", "a/b", "../a"])
    def test_a_name_with_folders_is_refused(self, name: str, run: Run, tmp_path: Path) -> None:
        one_line(run("keygen", name, "--out", tmp_path, code=2))


class TestWhichStore:
    def test_none_is_exit_code_2(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KEYVA_DIR", raising=False)
        monkeypatch.delenv("KEYVA_ENDPOINT", raising=False)
        one_line(run("get", "a", code=2), "--dir", "KEYVA_DIR")

    def test_two_are_exit_code_2(self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        one_line(run("get", "a", "--dir", tmp_path, "--endpoint", "ipc://x", code=2))
        monkeypatch.setenv("KEYVA_DIR", "a")
        monkeypatch.setenv("KEYVA_ENDPOINT", "ipc://x")
        one_line(run("get", "a", code=2))

    @pytest.mark.parametrize(
        "arguments", [("--dir", "", "put", "a", "1"), ("put", "--dir", "", "a", "1"), ("ps", ""), ("--dir", "", "ps"), ("--dir", "")]
    )
    def test_an_empty_directory_name_is_not_the_current_directory(
        self, arguments: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KEYVA_DIR", "")
        one_line(run(*arguments, code=2), "empty")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("seconds", ["inf", "nan", "-inf", "0", "-1", "1e300", "x"])
    def test_a_timeout_that_is_no_time_is_exit_code_2(self, seconds: str, run: Run, store: Path) -> None:
        one_line(run("--timeout", seconds, "get", "a", code=2), "--timeout")

    @pytest.mark.parametrize("endpoint", ["tcp://", "tcp://host", "ipc://", "ipc:///" + "a" * 200, ""])
    def test_an_endpoint_that_cannot_be_is_exit_code_2(self, endpoint: str, run: Run) -> None:
        one_line(run("--endpoint", endpoint, "--timeout", "0.5", "get", "a", code=2), repr(endpoint))

    def test_an_option_wins_over_the_environment(self, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEYVA_DIR", "/no/such/directory")
        run("--dir", store, "put", "a", "1")
        assert run("get", "--dir", store, "a").stdout == "1"

    @pytest.mark.parametrize("arguments", [("get", "a"), ("scan",), ("dump",), ("stats",), ("flush",), ("delete", "a")])
    def test_a_directory_that_is_not_there_is_exit_code_3_and_not_made(self, arguments: tuple[str, ...], run: Run, tmp_path: Path) -> None:
        one_line(run("--dir", tmp_path / "typo", *arguments, code=3), "typo")
        assert not (tmp_path / "typo").exists()

    def test_a_file_where_the_directory_should_be_is_exit_code_3(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        one_line(run("--dir", tmp_path / "file", "get", "a", code=3), "file")

    def test_nobody_at_the_endpoint_is_exit_code_3(self, run: Run, tmp_path: Path) -> None:
        one_line(run("--endpoint", f"ipc://{tmp_path}/none", "--timeout", "0.5", "get", "a", code=3))

    def test_a_bad_endpoint_is_exit_code_2(self, run: Run) -> None:
        one_line(run("--endpoint", "nonsense", "get", "a", code=2), "nonsense")

    def test_a_directory_that_somebody_else_locked_is_exit_code_3(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "LOCK").touch()
        lock = Lock(str(tmp_path / "LOCK"))
        assert lock.acquire()
        try:
            one_line(run("--dir", tmp_path, "--timeout", "1", "get", "a", code=3))
        finally:
            lock.release()

    def test_a_damaged_manifest_is_exit_code_4(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "wal").mkdir()
        (tmp_path / "MANIFEST").write_bytes(b"{}")
        one_line(run("--dir", tmp_path, "get", "a", code=4), "MANIFEST")

    def test_the_same_commands_work_over_an_endpoint(self, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        endpoint = endpoint_of(store)
        monkeypatch.delenv("KEYVA_DIR")
        monkeypatch.setenv("KEYVA_ENDPOINT", endpoint)
        run("put", "a", "1")
        assert run("get", "a").stdout == "1"
        assert run("incr", "a").stdout == "2\n"
        assert run("scan", "--json").stdout == '{"key":"a","value":"2"}\n'
        run("get", "b", code=1)
        run("flush")
        assert run("dump").stdout == '{"key":"a","value":"2"}\n'
        assert json.loads(run("stats", "--json").stdout)
        one_line(run("ps", code=2), "directory")


def endpoint_of(store: Path) -> str:
    node: dict[str, Any] = json.loads((store / "NODE").read_text())
    return str(node["endpoints"]["writer"])


class TestHelp:
    @pytest.mark.parametrize("arguments", [(), ("get",), ("put",), ("scan",), ("load",), ("keygen",), ("sst",), ("sst", "build")])
    def test_help_teaches(self, arguments: tuple[str, ...], run: Run) -> None:
        text = run(*arguments, "--help").stdout
        assert "Usage: keyva" in text
        assert "Example" in text or arguments == ("sst", "build")

    def test_every_command_has_help(self, run: Run) -> None:
        from keyva.cli.main import COMMANDS

        for name in COMMANDS:
            assert name in run(name, "--help").stdout

    def test_the_version_is_the_package_s(self, run: Run) -> None:
        assert run("--version").stdout == f"keyva {keyva.__version__}\n"

    @pytest.mark.parametrize("arguments", [("nonsense",), ("get",), ("sst",), ("--colour",), ("sst", "dump", "/no/such")])
    def test_wrong_usage_is_one_line(self, arguments: tuple[str, ...], run: Run) -> None:
        one_line(run(*arguments, code=2), "--help")
