"""The client library on a real node, local and remote: one suite over both."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from nodes import RunningNode, eventually, is_alive

import keyva
from keyva.client import node_processes


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("client") / "d", "--write-buffer-size=200000", "--block-size=512", "--readers=2") as running:
        yield running


@pytest.fixture(params=["local", "remote"])
def db(request: pytest.FixtureRequest, node: RunningNode) -> Iterator[keyva.Client]:
    client = keyva.open(node.directory) if request.param == "local" else keyva.connect(node.endpoint)
    with client:
        yield client
        with client.write_batch() as batch:
            for key in client.iterator(include_value=False):
                batch.delete(key)


class TestCalls:
    def test_put_get_delete(self, db: keyva.Client) -> None:
        assert db.get("a") is None
        assert db.get("a", b"none") == b"none"
        db.put("a", "ä")
        db.put(b"\x00", bytearray(b"\x01"), sync=True)
        db.put(memoryview(b"m"), b"", sync=False)
        assert (db.get(b"a"), db.get(b"\x00"), db.get("m")) == ("ä".encode(), b"\x01", b"")
        assert db.exists("m")
        db.delete("a")
        db.delete("never there")
        assert not db.exists("a")

    def test_get_many_keeps_order_and_repeats(self, db: keyva.Client) -> None:
        db.put_many({"a": "1", "b": "2"})
        assert db.get_many(["b", "zz", b"a", "b"]) == [b"2", None, b"1", b"2"]
        assert db.get_many([]) == []

    def test_put_many_takes_pairs_too(self, db: keyva.Client) -> None:
        db.put_many((f"k{number}", str(number)) for number in range(10))
        db.put_many({})
        assert len(list(db)) == 10
        db.put_many([("k0", "1"), (b"k0", "2"), ("k0", "3"), (bytearray(b"k1"), "4")])
        assert db.get_many(["k0", "k1"]) == [b"3", b"4"]

    def test_hints_allow_what_is_taken(self, db: keyva.Client) -> None:
        """Checked by mypy; the calls show that it is taken."""
        db.put_many({"a": b"1"})
        db.put_many({b"b": "2"})
        db.put_many({b"c": bytearray(b"3")})
        mixed: dict[bytes | str, bytes | str] = {"d": b"4", b"e": "5"}
        db.put_many(mixed)
        texts: dict[str, str] = {"f": "6"}
        db.put_many(texts)
        db.put_many([("g", b"7"), (b"h", memoryview(b"8"))])
        assert db.get_many(key for key in ("a", "b")) == [b"1", b"2"]
        assert db.content_types({"a": 1}) == [None]
        assert db.get(bytearray(b"c")) == b"3"
        assert db.exists(memoryview(b"h"))
        assert len(list(db.iterator(bytearray(b"a"), memoryview(b"z")))) == 8
        db.delete(bytearray(b"a"))
        assert db.increment(bytearray(b"n")) == 1

    def test_one_key_is_no_sequence_of_keys(self, db: keyva.Client) -> None:
        for call in (db.get_many, db.content_types):
            with pytest.raises(TypeError, match="takes a sequence of keys, not one key"):
                call("abc")
            with pytest.raises(TypeError, match="takes a sequence of keys, not one key"):
                call(bytearray(b"abc"))  # type: ignore[arg-type]

    def test_a_batch_is_written_at_the_end_of_its_block(self, db: keyva.Client) -> None:
        db.put("old", "1")
        with db.write_batch() as batch:
            batch.put("a", "1")
            batch.put("a", "2")
            batch.delete("old")
            assert len(batch) == 2
            assert db.get("a") is None
        assert list(db) == [(b"a", b"2")]
        assert len(batch) == 0

    def test_nothing_is_sent_when_the_block_raises(self, db: keyva.Client) -> None:
        with pytest.raises(ZeroDivisionError), db.write_batch() as batch:
            batch.put("a", "1")
            raise ZeroDivisionError
        assert list(db) == []

    def test_a_batch_appended_to_itself_stays_as_it_is(self, db: keyva.Client) -> None:
        with db.write_batch() as batch:
            batch.put("a", "1", content_type="x/y")
            batch.put("b", "2")
            batch.append(batch)
            other = db.write_batch()
            other.put("b", "3", content_type="x/z")
            batch.append(other)
        assert [db.get_typed("a"), db.get_typed("b")] == [(b"1", "x/y"), (b"3", "x/z")]

    def test_a_batch_can_be_written_by_hand_and_appended(self, db: keyva.Client) -> None:
        one, two = db.write_batch(), db.write_batch(sync=True)
        one.put("a", "1")
        two.put("b", "2")
        one.append(two)
        db.write(one)
        two.clear()
        two.write()
        assert list(db) == [(b"a", b"1"), (b"b", b"2")]

    def test_counters(self, db: keyva.Client) -> None:
        assert [db.increment("n"), db.increment("n", 41), db.increment("n", -50)] == [1, 42, -8]
        assert db.get("n") == b"-8"
        db.put("n", str(2**63 - 1))
        with pytest.raises(keyva.CounterOverflowError, match="64 bits"):
            db.increment("n")
        db.put("n", "many")
        with pytest.raises(keyva.NotACounterError, match="b'n' is no counter"):
            db.increment("n")
        assert db.get("n") == b"many"

    def test_ranges(self, db: keyva.Client) -> None:
        db.put_many({bytes([letter]): b"v" for letter in b"abcdefg"})

        def keys(**options: Any) -> bytes:
            return b"".join(db.iterator(include_value=False, **options))

        assert keys() == b"abcdefg"
        assert keys(reverse=True) == b"gfedcba"
        assert keys(start="b", stop="e") == b"bcd"
        assert keys(start="b", stop="e", include_start=False, include_stop=True) == b"cde"
        assert keys(start="e", stop="b") == b""
        assert keys(prefix="c") == b"c"
        assert list(db.iterator("f", include_key=False)) == [b"v", b"v"]
        assert list(db.iterator("f", include_key=False, include_value=False)) == [None, None]
        with pytest.raises(TypeError, match="prefix"):
            db.iterator(prefix="a", start="b")

    def test_an_iterator_sees_one_moment(self, db: keyva.Client) -> None:
        db.put_many({f"{number:05d}": "x" * 50 for number in range(4000)})
        with db.iterator() as iterator:
            first = next(iterator)
            db.put_many({f"{number:05d}": "new" for number in range(4000)})
            db.delete("03999")
            rest = list(iterator)
        assert [first, *rest] == [(b"%05d" % number, b"x" * 50) for number in range(4000)]
        with pytest.raises(keyva.ClosedError):
            next(iterator)

    def test_a_snapshot_has_the_same_reads(self, db: keyva.Client) -> None:
        db.put_many({"a": "1", "b": "2"})
        with db.snapshot() as snapshot:
            db.put("a", "new")
            db.flush()
            db.compact_range()
            assert snapshot.get("a") == b"1"
            assert snapshot.get_many(["a", "c"]) == [b"1", None]
            assert snapshot.exists("b")
            assert list(snapshot.iterator(reverse=True)) == [(b"b", b"2"), (b"a", b"1")]
            with snapshot.snapshot() as again:
                snapshot.close()
                assert again.get("a") == b"1"
        with pytest.raises(keyva.ClosedError):
            snapshot.get("a")
        assert db.get("a") == b"new"

    def test_flush_compact_and_stats(self, db: keyva.Client) -> None:
        for number in range(20):
            db.put("same", str(number))
        db.flush()
        db.compact_range()
        stats = db.stats()
        assert sum(level["entries"] for level in stats["levels"]) >= 1
        assert stats["memtable_entries"] == 0
        assert stats["client"]["pid"] == os.getpid()
        db.compact_range("a", "b")

    def test_everything_raises_after_close(self, node: RunningNode, db: keyva.Client) -> None:
        with keyva.open(node.directory) as client:
            batch = client.write_batch()
            batch.put("a", "1")
            assert not client.closed
        assert client.closed
        client.close()  # type: ignore[unreachable]
        batch.clear()
        for call in (
            lambda: client.write(batch),
            lambda: client.get("a"),
            lambda: client.get_many(["a"]),
            lambda: client.put("a", "1"),
            lambda: client.delete("a"),
            lambda: client.increment("a"),
            lambda: client.iterator(),
            lambda: client.snapshot(),
            lambda: client.write_batch(),
            lambda: batch.write(),
            lambda: client.stats(),
            lambda: client.flush(),
        ):
            with pytest.raises(keyva.ClosedError):
                call()

    def test_threads_share_a_client(self, db: keyva.Client) -> None:
        def work(number: int) -> None:
            for at in range(50):
                db.put(f"{number}-{at}", str(at))
                assert db.get(f"{number}-{at}") == b"%d" % at
                db.increment("n")

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        assert db.get("n") == b"800"
        assert len(list(db.iterator(include_value=False))) == 801

    def test_a_forked_child_gets_connections_of_its_own(self, db: keyva.Client) -> None:
        db.put("parent", "1")
        pid = os.fork()
        if pid == 0:
            try:
                assert db.get("parent") == b"1"
                db.put("child", "1")
                assert db.increment("n") == 1
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert db.get("child") == b"1"
        assert db.increment("n") == 2

    def test_a_pool_of_forked_processes_can_use_it(self, db: keyva.Client) -> None:
        global shared
        shared = db
        with multiprocessing.get_context("fork").Pool(4) as pool:
            assert sorted(pool.map(count_up, range(40))) == list(range(1, 41))


shared: keyva.Client


def count_up(_: int) -> int:
    return shared.increment("pool")


class TestOpen:
    def test_many_processes_open_one_directory_at_the_same_moment(self, tmp_path: Path) -> None:
        directory = str(tmp_path / "d")
        program = "import sys, keyva; db = keyva.open(sys.argv[1]); print(db.increment('n')); sys.stdin.read(); db.close()"
        processes = [
            subprocess.Popen([sys.executable, "-c", program, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(6)
        ]
        numbers = sorted(int(process.stdout.readline()) for process in processes if process.stdout)
        assert numbers == [1, 2, 3, 4, 5, 6]
        family = [psutil.Process(process["pid"]) for process in node_processes(directory)]
        for process in processes:
            process.communicate("")
            assert process.returncode == 0
        eventually(lambda: not any(is_alive(process) for process in family), "the node stops by itself")
        assert not (tmp_path / "d" / "NODE").exists()

    def test_a_dead_node_is_started_again_by_the_next_write(self, tmp_path: Path) -> None:
        with keyva.open(tmp_path / "d") as db:
            db.put("a", "1")
            before = node_processes(tmp_path / "d")
            family = [psutil.Process(process["pid"]) for process in before]
            os.kill(before[0]["pid"], signal.SIGKILL)
            eventually(lambda: not any(is_alive(process) for process in family), "the workers follow the supervisor")
            db.put("b", "2")  # a writer that had not yet noticed would have taken it
            assert (db.get("a"), db.get("b")) == (b"1", b"2")
            after = node_processes(tmp_path / "d")
            assert after[0]["pid"] != before[0]["pid"]
        eventually(lambda: not psutil.pid_exists(after[0]["pid"]), "the node stops and leaves no zombie")

    def test_a_stale_node_file_is_no_node(self, tmp_path: Path) -> None:
        node = RunningNode(tmp_path / "d")
        node.kill()
        node.__exit__()
        assert (tmp_path / "d" / "NODE").exists()
        with pytest.raises(keyva.UnavailableError, match="no node runs"):
            node_processes(tmp_path / "d")
        with keyva.open(tmp_path / "d") as db:
            db.put("a", "1")
            family = [psutil.Process(process["pid"]) for process in node_processes(tmp_path / "d")]
        eventually(lambda: not any(is_alive(process) for process in family), "the node stops by itself")

    def test_settings_are_checked_and_must_agree_with_the_node(self, node: RunningNode) -> None:
        with pytest.raises(keyva.ConfigError, match=r"blok_size.*did you mean 'block_size'"):
            keyva.open(node.directory, blok_size=4096)
        with pytest.raises(keyva.ConfigError, match="block_size = 512, not 4096"):
            keyva.open(node.directory, block_size=4096)
        with keyva.open(node.directory, block_size=512, block_cache_size=0, allow_mmap_reads=True) as db:
            assert db.get("a") is None

    def test_the_error_of_a_node_that_cannot_start_is_raised(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "MANIFEST").write_bytes(b"damaged")
        with pytest.raises(keyva.CorruptionError, match="MANIFEST"):
            keyva.open(tmp_path / "d")
        (tmp_path / "file").write_text("")
        with pytest.raises(keyva.StoreError, match="is a file"):
            keyva.open(tmp_path / "file")

    @pytest.mark.parametrize("path", ["/proc/1/store", "/" + "x" * 300, "/dev/null/store", "/tmp/\udcff", "/tmp/\0"])
    def test_a_directory_that_cannot_be_made_is_a_store_error(self, path: str) -> None:
        with pytest.raises(keyva.StoreError):
            keyva.open(path)

    @pytest.mark.parametrize(
        ("value", "error"),
        [(None, TypeError), ("5", TypeError), (True, TypeError)]
        + [(value, keyva.InvalidArgumentError) for value in (float("inf"), float("nan"), -1.0, 1e300)],
    )
    def test_a_time_limit_that_is_none_is_named(self, node: RunningNode, value: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="timeout_s must be"):
            keyva.open(node.directory, timeout_s=value)
        with pytest.raises(error, match="timeout_s must be"):
            keyva.connect(node.endpoint, timeout_s=value)

    def test_arguments_of_the_wrong_type_are_named(self, node: RunningNode) -> None:
        with pytest.raises(TypeError, match="directory must be str"):
            keyva.open(node.directory.encode())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="directory must be str"):
            node_processes(node.directory.encode())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="endpoint must be str, not bytes"):
            keyva.connect(node.endpoint.encode())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="curve_server_key must be str or bytes, not int"):
            keyva.connect("tcp://127.0.0.1:1", curve_server_key=5, curve_secret_key_file="k")  # type: ignore[arg-type]
        with pytest.raises(keyva.InvalidArgumentError, match="cannot connect to 'tcp://h'"):
            keyva.connect("tcp://h")

    def test_paths_in_settings_are_those_of_the_caller(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "token").write_text("x" * 40)
        (tmp_path / "token").chmod(0o600)
        monkeypatch.chdir(tmp_path)
        with keyva.open("d", http="127.0.0.1:0", http_token_file="token", idle_stop_s=0.1) as db:
            db.put("a", "1")
            with keyva.open("d", http_token_file="token") as again:
                assert again.get("a") == b"1"

    def test_what_is_printed_as_python_starts_is_no_answer_of_the_node(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sitecustomize.py").write_text("import os\nos.write(1, b'a line\\nhalf a line')\nprint('and more')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with keyva.open(tmp_path / "d", idle_stop_s=0.1) as db:
            db.put("a", "1")
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "MANIFEST").write_bytes(b"damaged")
        with pytest.raises(keyva.CorruptionError, match="MANIFEST"):
            keyva.open(tmp_path / "e")

    def test_a_node_that_is_not_ready_in_time_is_unavailable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sitecustomize.py").write_text("import os, select\nos.write(1, b'a line\\n')\nselect.select([], [], [])")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(keyva.UnavailableError, match=r"no node was ready in 0.3 s.*not ready in time"):
            keyva.open(tmp_path / "d", timeout_s=0.3)

    def test_no_thread_or_descriptor_is_left_after_close(self, node: RunningNode) -> None:
        def one() -> None:
            with keyva.open(node.directory) as db:
                db.put("a", "1")
                list(db.iterator())

        one()
        descriptors, threads = len(os.listdir("/dev/fd")), threading.active_count()
        for _ in range(5):
            one()
        eventually(lambda: len(os.listdir("/dev/fd")) <= descriptors, "descriptors are closed")
        eventually(lambda: threading.active_count() <= threads, "threads have ended")


def test_what_is_exported() -> None:
    assert all(hasattr(keyva, name) for name in keyva.__all__)
    assert {"open", "connect", "Client", "WriteBatch", "Snapshot", "Iterator", "Options", "KeyvaError"} <= set(keyva.__all__)
    public = {name for name in vars(keyva.Client) if not name.startswith("_")}
    assert public == {
        "get", "get_many", "get_typed", "content_types", "put", "put_many", "delete", "exists", "increment", "sequence_next",
        "sequence_reset", "write_batch", "write", "pipeline", "iterator", "snapshot", "flush", "compact_range", "stats", "closed", "close",
    }  # fmt: skip
