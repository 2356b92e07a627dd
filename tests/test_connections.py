"""Asking on a real node: interruptions, forks, closing and limits."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from nodes import RunningNode, eventually, is_alive

import keyva
from keyva import attach, channel, connections
from keyva.attach import Attachment
from keyva.connections import Connections, Target, Turns
from keyva.endpoints import running_node
from keyva.filename import CLIENTS_LOCK
from keyva.files import Lock
from keyva.protocol import decode_body, encode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("connections") / "d", "--readers=2") as running:
        yield running


@pytest.fixture(params=["local", "remote"])
def db(request: pytest.FixtureRequest, node: RunningNode) -> Iterator[keyva.Client]:
    with keyva.open(node.directory) if request.param == "local" else keyva.connect(node.endpoint) as client:
        yield client


def live(client: keyva.Client) -> Connections:
    return client._connections()


class Interruption(BaseException):
    """Comes out of a line as KeyboardInterrupt does."""


def interrupted(at: int, call: Callable[[], Any]) -> bool:
    """Make the call with an exception at its ``at``-th place where a signal handler can run; returns False when it has not so many.

    These are, in CPython, where a function begins and where a call of C code has returned.
    """
    left = at

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename in (connections.__file__, channel.__file__):
            left -= 1
            if not left:
                raise Interruption

    sys.setprofile(profile)
    try:
        call()
    except Interruption:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_anywhere_loses_no_turn_and_mixes_no_answers(db: keyva.Client) -> None:
    db.put("known", "value")
    made = 0
    for at in count(1):
        if not interrupted(at, lambda: db.increment("n")):
            break
        made += 1
        assert live(db)._turns.all_free(), at
        assert db.increment("mine") == at
        assert db.get_many(["known", "absent"]) == [b"value", None]
    assert at > 20
    assert 1 <= int(db.get("n")) <= made + 1
    db.delete("mine")
    db.delete("n")


def test_turns_are_taken_with_a_time_limit() -> None:
    turns = Turns(1)
    held: list[None] = []
    assert turns.take(held, 0)
    assert not turns.take(held, 0)
    assert not turns.take(held, 0.01)
    assert held == [None]
    assert not turns.all_free()
    turns.give_back(None)
    assert turns.all_free()


def test_who_gets_no_turn_in_time_is_told_so(node: RunningNode) -> None:
    with keyva.connect(node.endpoint, timeout_s=0.05) as db:
        held: list[None] = []
        while live(db)._turns.take(held, 0):
            pass
        with pytest.raises(keyva.UnavailableError, match=r"64 requests are under way.*'write' was not sent"):
            db.put("a", "1")
        for _ in held:
            live(db)._turns.give_back(None)
        db.put("a", "1")


def test_calls_in_other_threads_are_told_that_the_client_was_closed(node: RunningNode) -> None:
    for kind in ("local", "remote"):
        for _ in range(3):
            db = keyva.open(node.directory) if kind == "local" else keyva.connect(node.endpoint)
            mine = live(db)
            warm = threading.Barrier(7)

            def work(number: int, db: keyva.Client = db, warm: threading.Barrier = warm) -> BaseException:
                db.put(f"t{number}", "1")
                warm.wait(30)
                try:
                    while True:
                        db.put(f"t{number}", "2", sync=False)
                        db.increment("n", sync=False)
                        db.get_many([f"t{number}", "absent"])
                        list(db.iterator(prefix="t"))
                except BaseException as error:
                    return error

            with ThreadPoolExecutor(6) as pool:
                working = [pool.submit(work, number) for number in range(6)]
                warm.wait(30)
                db.close()
                assert [type(done.result(30)) for done in working] == [keyva.ClosedError] * 6
            assert mine._context == []  # whoever came last has closed it


def test_a_node_is_started_again_in_the_time_that_the_call_has_left(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def attach_again(directory: str, settings: dict[str, Any], timeout_s: float) -> Attachment:
        given.append(timeout_s)
        lock = Lock(os.path.join(directory, CLIENTS_LOCK))
        assert lock.acquire(shared=True)
        return Attachment(here, lock)

    with keyva.open(node.directory, timeout_s=20.0) as db:
        attachment = live(db).attachment
        assert attachment is not None
        here = attachment.node
        monkeypatch.setattr(attach, "attach", attach_again)
        monkeypatch.setattr(attach, "is_running", lambda *_: False)
        live(db)._attach_again(time.monotonic() + 5.0)
        live(db)._attach_again(time.monotonic() - 5.0)  # of a request whose server had asked for more time
        assert 4.0 < given[0] <= 5.0
        assert given[1] == 20.0


def test_a_signal_handler_may_close_a_client_that_is_connecting(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    with keyva.open(node.directory) as db:
        live(db).close()
        db._live = None  # as in a forked child

        def connect(target: Target) -> Connections:
            db.close()
            return real(target)

        real = Connections
        monkeypatch.setattr(keyva.client, "Connections", connect)
        with pytest.raises(keyva.ClosedError):
            db.get_many(["a"])
        assert db._live is None


def in_a_fork(work: Callable[[], None]) -> int:
    """Return the exit code of a forked child that does ``work``: 0, or 1 when it raised; a signal's number when it hung."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_remote_snapshot_is_lost_in_a_forked_child_and_stays_with_its_parent(node: RunningNode) -> None:
    with keyva.connect(node.endpoint) as db:
        db.put("before the fork", "1")
        snapshot = db.snapshot()
        iterator = db.iterator()
        held = [db.snapshot(), db.iterator()]
        stale_get = db.get

        def child() -> None:
            with pytest.raises(keyva.SnapshotLostError, match="forked"):
                snapshot.get("before the fork")
            with pytest.raises(keyva.SnapshotLostError, match="forked"):
                next(iterator)
            with pytest.raises(keyva.SnapshotLostError, match="forked"):
                stale_get("before the fork")
            held.clear()
            snapshot.close()
            iterator.close()
            assert db.get("before the fork") == b"1"

        assert in_a_fork(child) == 0
        assert snapshot.get("before the fork") == b"1"
        assert (b"before the fork", b"1") in list(iterator)


def test_a_client_does_not_write_to_another_store_that_took_the_place_of_its_own(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    first = RunningNode(directory)
    local, remote = keyva.open(directory), keyva.connect(first.endpoint)
    with local, remote:
        for db in (local, remote):
            db.put("whose", "first")
        first.stop()
        shutil.rmtree(directory)
        with RunningNode(directory) as second:
            for db in (local, remote):
                with pytest.raises(keyva.StoreError, match="serves store"):
                    db.put("whose", "the old client's")
            with keyva.connect(second.endpoint) as db:
                assert db.get("whose") is None


def test_the_control_socket_is_asked_without_a_greeting(node: RunningNode) -> None:
    info = running_node(node.directory)
    assert info is not None
    with keyva.connect(node.endpoint, timeout_s=5) as db:
        for _ in range(2):
            answer = live(db).ask(info.endpoints.control, "ps", encode(None))
            assert decode_body(answer.body)[0]["role"] == "node"


def test_a_switched_symlink_leads_nobody_to_another_store(tmp_path: Path) -> None:
    current = tmp_path / "current"
    for release in ("r1", "r2"):
        (tmp_path / release).mkdir()
    current.symlink_to("r1")
    with RunningNode(current / "data") as node, keyva.open(current / "data") as one:
        assert node.endpoint == f"ipc://{os.path.realpath(tmp_path)}/r1/data/run/writer"
        one.put("who", "one")
        current.unlink()
        current.symlink_to("r2")
        with RunningNode(current / "data"), keyva.open(current / "data") as two, keyva.open(tmp_path / "r1" / "data") as other:
            two.put("who", "two")
            with ThreadPoolExecutor(8) as pool:  # on new connections
                list(pool.map(lambda number: one.put(f"of one {number}", "1"), range(64)))
            other.put("of one, too", "1")
            assert (one.get("who"), two.get("who")) == (b"one", b"two")
            assert len(list(one)) == 66
            assert list(two) == [(b"who", b"two")]


def test_clients_find_the_next_node_of_a_directory_with_a_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("l" * 100) / ("d" * 100)
    with keyva.open(directory, timeout_s=10) as one, keyva.open(directory, timeout_s=10) as two:
        assert (one.increment("n"), two.increment("n")) == (1, 2)
        for number in (3, 5):
            family = keyva.client.node_processes(directory)
            os.kill(family[0]["pid"], signal.SIGKILL)
            eventually(partial(none_is_left, family), "the workers follow the node")
            assert (one.increment("n"), two.increment("n")) == (number, number + 1)


def none_is_left(family: list[dict[str, Any]]) -> bool:
    return not any(psutil.pid_exists(process["pid"]) and is_alive(psutil.Process(process["pid"])) for process in family)
