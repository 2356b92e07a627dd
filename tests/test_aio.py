"""The asyncio client on a real node, local and remote."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from nodes import DEADLINE_S, RunningNode, eventually

import keyva
from keyva import aio, lane

Check = Callable[[aio.Client, RunningNode], Awaitable[None]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RunningNode(tmp_path_factory.mktemp("aio") / "d", "--max-value-size=1000000", "--heartbeat-timeout-s=60") as running:
        yield running


@pytest.fixture(params=["local", "remote"])
def run(request: pytest.FixtureRequest, node: RunningNode) -> Callable[[Check], None]:
    """Run a check in a loop of its own, with an open client and an empty store."""

    async def around(check: Check) -> None:
        opened = aio.open(node.directory) if request.param == "local" else aio.connect(node.endpoint)
        async with await opened as db:
            async with db.write_batch() as batch:
                async for key in db.iterator(include_value=False):
                    batch.delete(key)
            await db.sequence_reset("s")
            await check(db, node)
        assert db.closed
        with pytest.raises(keyva.ClosedError):
            await db.get("a")
        with pytest.raises(keyva.ClosedError):
            await db.put("a", "1")

    def run(check: Check) -> None:
        asyncio.run(around(check))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("keyva-aio")]

    return run


async def groups(db: aio.Client) -> int:
    return int((await db.stats())["groups"])


def test_the_calls_are_those_of_the_client(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        await db.put("a", "1", sync=True)
        await db.put_many({"b": "2", "c": "3"})
        await db.put_many({})
        await db.put_many({"b": b"2"})
        await db.put("t", "4", content_type="x/y", expect={"t": None})
        assert await db.get("a") == b"1"
        assert await db.get("zz", b"none") == b"none"
        assert await db.get_many(["c", "zz", "a"]) == [b"3", None, b"1"]
        assert await db.exists("b") and not await db.exists("zz")
        assert await db.get_typed("t") == keyva.Typed(b"4", "x/y")
        assert await db.content_types(["a", "t"]) == [None, "x/y"]
        assert [await db.increment("n"), await db.increment("n", -3)] == [1, -2]
        assert [await db.sequence_next("s"), await db.sequence_next("s")] == [0, 1]
        await db.delete("b")
        async with await db.snapshot() as snapshot:
            await db.delete("a", expect={"a": keyva.Typed(b"1", None)})
            assert await snapshot.get("a") == b"1"
            assert await snapshot.get_many(["a", "b"]) == [b"1", None]
            assert [key async for key in snapshot.iterator(include_value=False)] == [b"a", b"c", b"n", b"t"]
        assert snapshot.closed
        assert [entry async for entry in db.iterator(reverse=True)] == [(b"t", b"4"), (b"n", b"-2"), (b"c", b"3")]
        assert [key async for key in db.iterator("d", "t", include_stop=True, include_value=False)] == [b"n", b"t"]
        batch = db.write_batch()
        batch.put("x", "1")
        await db.write(batch)
        await db.flush()
        await db.compact_range()
        assert await db.get("x") == b"1"

    run(check)


def test_its_names_are_those_of_the_client() -> None:
    names = {name for name in dir(keyva.Client) if not name.startswith("_")}
    assert {name for name in dir(aio.Client) if not name.startswith("_")} == names


def test_a_long_iterator_gives_everything_and_lets_others_run(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        entries = {b"%06d" % number: b"%d" % number for number in range(5000)}
        await db.put_many(entries)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        assert {key: value async for key, value in db.iterator()} == entries
        counting.cancel()
        assert turns >= 5
        async for key, _value in db.iterator():
            assert key == b"000000"
            break

    run(check)


def test_writes_of_one_turn_are_one_group_in_the_order_of_their_calls(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        before = await groups(db)
        calls = [db.put("k", str(number)) for number in range(500)]
        results: list[Any] = await asyncio.gather(*calls, *(db.increment("n") for _ in range(500)), db.put("k", "last"))
        assert results == [*[None] * 500, *range(1, 501), None]
        assert await groups(db) == before + 1
        assert await db.get("k") == b"last"
        reads: list[Any] = [db.get("n") for _ in range(100)]
        assert await asyncio.gather(*reads, db.get_many(["k", "n"])) == [*[b"500"] * 100, [b"last", b"500"]]

    run(check)


def test_an_error_is_raised_where_it_belongs(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        await db.put("text", "x")
        results = await asyncio.gather(
            db.put("a", "1"),
            db.increment("text"),
            db.put("a", "2", expect={"a": None}),
            db.put("b", "1", sync=False),
            db.increment("n", sync=True),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), keyva.NotACounterError, keyva.ConditionFailedError, type(None), int]
        for wrong, kind in (
            (db.put("a", 1), TypeError),  # type: ignore[arg-type]
            (db.get(b"\xff\xff"), keyva.InvalidArgumentError),
            (db.get_many("ab"), TypeError),
            (db.put("a", b"x" * 1_000_001), keyva.InvalidArgumentError),
            (db.increment("n", 2**63), keyva.CounterOverflowError),
        ):
            with pytest.raises(kind):
                await wrong
        assert await db.get_many(["a", "b", "n"]) == [b"1", b"1", b"1"]

    run(check)


def test_a_cancelled_call_that_was_not_sent_is_not_made_and_its_neighbours_are(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        first, second, third = (asyncio.ensure_future(db.put(key, "1")) for key in "abc")
        await asyncio.sleep(0)  # the calls are pending; their message goes in the next turn at the earliest
        second.cancel()
        await asyncio.gather(first, third)
        assert await db.get_many(["a", "b", "c"]) == [b"1", None, b"1"]
        assert second.cancelled()

    run(check)


def test_a_call_cancelled_on_its_way_leaves_nothing_behind(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, node: RunningNode) -> None:
        pid = node.pid_of("writer")
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(db.increment("n"), 0.2)
            waiting = asyncio.ensure_future(db.increment("m"))
            await asyncio.sleep(0)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await waiting == 1
        assert await db.get("n") == b"1", "it was under way, and made once"
        assert await db.increment("n") == 2
        assert not db._writes._pending

    run(check)


def test_a_killed_writer_is_waited_for(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, node: RunningNode) -> None:
        results = []
        for round_number in range(3):
            calls = [asyncio.ensure_future(db.increment("n")) for _ in range(50)]
            await asyncio.sleep(0)
            if round_number == 1:
                os.kill(await asyncio.to_thread(node.pid_of, "writer"), signal.SIGKILL)
            results += await asyncio.gather(*calls)
        assert results == list(range(1, 151))

    run(check)


def test_writes_beyond_what_may_be_pending_are_made_in_the_order_of_their_calls(
    run: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "PENDING_MAX", 10)

    async def check(db: aio.Client, _: RunningNode) -> None:
        for _round in range(3):
            calls = [asyncio.ensure_future(db.put("k", str(number))) for number in range(11)]
            await asyncio.sleep(0)
            await asyncio.gather(*calls, db.put("k", "late"))
            assert await db.get("k") == b"late"
        numbers = [asyncio.ensure_future(db.increment("n")) for _ in range(105)]
        assert await asyncio.gather(*numbers) == list(range(1, 106))

    run(check)


def test_an_entry_too_large_for_a_batch_is_refused_before_it_travels_with_others(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        db._client._connections().max_batch_size = 1000  # less than a value may have: no node allows such settings
        results = await asyncio.gather(
            db.put("other", "1", sync=True), db.put("mine", "1"), db.increment("n"), db.put("big", bytes(1000)), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), type(None), int, keyva.InvalidArgumentError]
        assert await db.get_many(["other", "mine", "n", "big"]) == [b"1", b"1", b"1", None]

    run(check)


class SlowEntries:
    """An iterator of three entries that waits for `go` and notes who does what; only one thread at a time may use it."""

    def __init__(self, waits_in: str) -> None:
        self.waits_in = waits_in
        self.done: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.begun, self.go = threading.Event(), threading.Event()
        self._used = threading.Lock()

    def _use(self, what: str) -> None:
        assert self._used.acquire(blocking=False), "two threads at once"
        try:
            self.threads.add(threading.current_thread())
            if what == self.waits_in:
                self.begun.set()
                self.go.wait(2.0 if threading.current_thread() is threading.main_thread() else DEADLINE_S)
            self.done.append(what)
        finally:
            self._used.release()

    def __iter__(self) -> Iterator[int]:
        self._use("take")
        return iter(range(3))

    def close(self) -> None:
        self._use("close")


@pytest.mark.parametrize("left_by", ["aclose", "cancel"])
def test_leaving_a_remote_iterator_leaves_the_event_loop_free(node: RunningNode, monkeypatch: pytest.MonkeyPatch, left_by: str) -> None:
    entries = SlowEntries("close" if left_by == "aclose" else "take")

    async def scan(db: aio.Client) -> None:
        found = db.iterator()
        try:
            async for _ in found:
                break
        finally:
            await found.aclose()  # type: ignore[attr-defined]

    async def main() -> None:
        async with await aio.connect(node.endpoint) as db:
            monkeypatch.setattr(db._client, "iterator", lambda *_, **__: entries)
            scanning = asyncio.ensure_future(scan(db))
            assert await asyncio.to_thread(entries.begun.wait, DEADLINE_S)
            if left_by == "cancel":
                scanning.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not scanning.done(), "it waits for the thread that uses the iterator; the loop does not"
            entries.go.set()
            await asyncio.wait([scanning])
            assert scanning.cancelled() == (left_by == "cancel")

    asyncio.run(main())
    assert entries.done == ["take", "close"]
    assert threading.main_thread() not in entries.threads


def test_a_snapshot_that_nobody_waits_for_any_more_is_closed_in_a_thread(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = SlowEntries("")

    async def main() -> None:
        async with await aio.connect(node.endpoint) as db:
            begun, go = threading.Event(), threading.Event()

            def take() -> SlowEntries:
                begun.set()
                assert go.wait(DEADLINE_S)
                return entries

            monkeypatch.setattr(db._client, "snapshot", take)
            taking = asyncio.ensure_future(db.snapshot())
            assert await asyncio.to_thread(begun.wait, DEADLINE_S)
            taking.cancel()
            await asyncio.wait([taking])
            assert taking.cancelled()
            go.set()
            await asyncio.to_thread(eventually, lambda: entries.done, "the snapshot is closed")

    asyncio.run(main())
    assert entries.done == ["close"]
    assert threading.main_thread() not in entries.threads


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_forgotten_client_is_closed_by_its_thread(node: RunningNode, kind: str) -> None:
    threads: list[threading.Thread] = []

    async def made() -> tuple[aio.Client, keyva.Client]:
        db = await (aio.open(node.directory) if kind == "local" else aio.connect(node.endpoint))
        await db.put("a", "1")
        assert await db.get("a") == b"1"
        threads.extend(each._thread for each in (db._writes, db._lane) if each is not None)
        return db, db._client

    def gone(client: keyva.Client) -> bool:
        return client.closed and not any(thread.is_alive() for thread in threads)

    async def forget() -> keyva.Client:
        db, client = await made()
        await asyncio.sleep(0)  # the turn after an answer
        with client._connect_lock:  # a destructor may run where this is held
            del db
        await asyncio.to_thread(eventually, lambda: gone(client), "the client is closed while the loop runs")
        db, client = await made()
        for number in range(100):
            asyncio.ensure_future(db.put(f"forgotten-{number}", "1"))  # noqa: RUF006 - forgotten is what they are to be
        await asyncio.sleep(0)
        return client

    client = asyncio.run(forget())
    gc.collect()
    eventually(lambda: gone(client), "it is closed when its loop has ended with calls under way")


def test_a_forgotten_remote_snapshot_is_closed_in_a_thread(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with await aio.connect(node.endpoint) as db:
            snapshot = await db.snapshot()
            source: Any = snapshot._source
            threads: list[threading.Thread] = []
            close = source.close

            def noted() -> None:
                threads.append(threading.current_thread())
                close()

            monkeypatch.setattr(source, "close", noted)
            del snapshot
            await asyncio.to_thread(eventually, lambda: source.closed, "it is closed")
            assert threads == [db._lane._thread]  # type: ignore[union-attr]

    asyncio.run(main())


def test_close_waits_for_the_calls_under_way(node: RunningNode) -> None:
    async def main() -> None:
        db = await aio.open(node.directory)
        calls = [asyncio.ensure_future(db.put(f"closing-{number}", "1")) for number in range(100)]
        await asyncio.sleep(0)
        await db.close()
        await asyncio.gather(*calls)
        await db.close()

    asyncio.run(main())
    with keyva.open(node.directory) as db:
        assert len(list(db.iterator(prefix="closing-"))) == 100


def test_pipelines(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        before = await groups(db)
        async with db.pipeline() as pipe:
            pipe.put("a", "1").put("b", "text").increment("n").get_many(["a", "n"]).exists("zz")
        assert pipe.results == [None, None, 1, [b"1", b"1"], False]
        assert await groups(db) == before + 1
        pipe.increment("b").increment("n")
        results = await pipe.execute(raise_errors=False)
        assert [type(result) for result in results] == [keyva.NotACounterError, int]
        with pytest.raises(keyva.NotACounterError):
            await pipe.increment("b").execute()  # type: ignore[misc]
        with pytest.raises(ZeroDivisionError):
            async with db.pipeline() as pipe:
                pipe.put("never", "1")
                raise ZeroDivisionError
        assert not await db.exists("never")
        with pytest.raises(TypeError, match="async with"), db.pipeline():
            pass
        with pytest.raises(TypeError, match="async with"), db.write_batch():
            pass
        with pytest.raises(TypeError, match="async with"):
            db.write_batch().write()

    run(check)


def test_behind_a_message_without_an_answer_a_pipeline_sends_nothing(run: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        failures: list[Exception] = [keyva.OutcomeUnknownError("no answer")]
        send = db._client._send
        monkeypatch.setattr(db._client, "_send", lambda message, sync: _raise(failures.pop()) if failures else send(message, sync))
        results = await db.pipeline().put("a", "1").get("a").put("b", "2").execute(raise_errors=False)  # type: ignore[misc]
        assert [type(result) for result in results] == [keyva.OutcomeUnknownError, keyva.UnavailableError, keyva.UnavailableError]
        assert "not sent" in str(results[2])
        assert not await db.exists("b")
        pipe = db.pipeline().increment("n").get("n").put("text", "x").get("text").increment("text").get("text")
        results = await pipe.execute(raise_errors=False)  # type: ignore[misc]
        assert results[:4] == [1, b"1", None, b"x"]
        assert isinstance(results[4], keyva.NotACounterError)
        assert results[5] == b"x", "a call that is refused leaves those behind it alone"

    run(check)


def _raise(error: Exception) -> Any:
    raise error


def test_a_closed_client_refuses_what_would_do_nothing_too(node: RunningNode) -> None:
    async def main() -> None:
        async with await aio.open(node.directory) as db:
            batch, pipe = db.write_batch(), db.pipeline().put("a", "1").get("a")
        for call in (db.write(batch), db.put_many({}), db.get_many([]), db.content_types([])):
            with pytest.raises(keyva.ClosedError):
                await call
        results = await pipe.execute(raise_errors=False)  # type: ignore[misc]
        assert [type(result) for result in results] == [keyva.ClosedError, keyva.UnavailableError]

    asyncio.run(main())


def test_a_single_key_is_no_sequence_of_keys(run: Callable[[Check], None]) -> None:
    async def check(db: aio.Client, _: RunningNode) -> None:
        async with await db.snapshot() as snapshot:
            for reads in (db, snapshot):
                for call in (reads.get_many("abc"), reads.content_types("abc")):
                    with pytest.raises(TypeError, match="takes a sequence of keys, not one key"):
                        await call

    run(check)
