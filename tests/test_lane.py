"""Lanes without a node: their work is done by plain functions."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from keyva import lane as lanes
from keyva.errors import ClosedError, ConditionFailedError, CorruptionError, InvalidArgumentError, OutcomeUnknownError, UnavailableError
from keyva.lane import Call, Chain, Lane, do_reads, send_writes
from keyva.writes import Message

DEADLINE_S = 30.0


class Work:
    """Remembers its groups; waits with the first one until `go` is set."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, calls: list[Call]) -> list[Any]:
        self.groups.append([call.what for call in calls])
        self.begun.set()
        assert self.go.wait(DEADLINE_S)
        return [call.what for call in calls]


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.begun.wait, DEADLINE_S)


def test_calls_beyond_a_group_keep_their_order_and_newcomers_wait_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PENDING_MAX", 3)

    async def main() -> None:
        work = Work()
        lane = Lane("test", work)
        waiting = [asyncio.ensure_future(lane.call(number)) for number in range(10)]
        await begun(work)
        made = 10

        async def newcomers() -> None:
            nonlocal made
            for _ in range(20):  # one in each turn, while groups come back and those that wait are let in
                waiting.append(asyncio.ensure_future(lane.call(made)))
                made += 1
                await asyncio.sleep(0)

        work.go.set()
        await newcomers()
        assert [await call for call in waiting] == list(range(30))
        assert [what for group in work.groups for what in group] == list(range(30))
        assert max(map(len, work.groups)) == 3
        await lane.close()

    asyncio.run(main())


def test_cancelled_calls_leave_nothing_behind_while_the_thread_is_busy() -> None:
    async def main() -> None:
        work = Work()
        lane = Lane("test", work)
        first = asyncio.ensure_future(lane.call("first"))
        await begun(work)
        calls = [asyncio.ensure_future(lane.call(number)) for number in range(100)]
        pipeline = asyncio.ensure_future(lane.call_all(range(100), None, Chain()))
        last = asyncio.ensure_future(lane.call("last"))
        await asyncio.sleep(0)
        assert len(lane._pending) == 201
        for call in (*calls, pipeline):
            call.cancel()
        await asyncio.gather(*calls, pipeline, return_exceptions=True)
        assert len(lane._pending) == 1
        work.go.set()
        assert (await first, await last) == ("first", "last")
        assert work.groups == [["first"], ["last"]]
        await lane.close()

    asyncio.run(main())


def test_close_waits_for_the_calls_that_were_made_and_refuses_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PENDING_MAX", 3)

    async def main() -> None:
        work = Work()
        lane = Lane("test", work)
        calls = [asyncio.ensure_future(lane.call(number)) for number in range(10)]
        await begun(work)
        closing = asyncio.ensure_future(lane.close())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            await lane.call("late")
        work.go.set()
        await closing
        assert await asyncio.gather(*calls) == list(range(10))
        assert not lane._thread.is_alive()

    asyncio.run(main())


def test_a_forgotten_lane_ends_its_thread() -> None:
    async def main() -> list[threading.Thread]:
        lane = Lane("test", lambda calls: [call.what for call in calls])
        other = Lane("test", lambda calls: [call.what for call in calls])
        assert await lane.call(1) == 1
        thread = lane._thread
        await asyncio.sleep(0)  # the turn after an answer
        del lane
        await asyncio.to_thread(thread.join, DEADLINE_S)
        assert not thread.is_alive(), "it ends while the loop runs"
        pending = asyncio.ensure_future(other.call(2))
        await asyncio.sleep(0)
        assert not pending.done()
        return [other._thread]

    for thread in asyncio.run(main()):
        gc.collect()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "it ends when its loop has ended before its calls"


def test_a_job_of_a_destructor_that_fails_is_reported_and_the_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    async def main() -> None:
        lane = Lane("test", lambda calls: [call.what for call in calls])
        lane.do_later(lambda: 1 // 0)  # type: ignore[arg-type]
        assert await lane.call(1) == 1
        await lane.close()

    asyncio.run(main())
    assert [found.exc_type for found in reported] == [ZeroDivisionError]


class Sends:
    """A client that fails as it is told, by the first key of a message."""

    def __init__(self, failures: dict[str, Exception]) -> None:
        self.failures = failures
        self.sent: list[str] = []

    def _batch_bytes_max(self) -> int:
        return 40  # two entries of one character

    def _send(self, message: Message, sync: bool | None) -> list[Any]:
        keys = [key.decode() for _, batch in message.calls for key in batch]
        self.sent += keys
        if keys[0] in self.failures:
            raise self.failures[keys[0]]
        return [None] * len(message.owners)


def calls_of(words: str, chains: dict[str, Chain]) -> list[Call]:
    """``a b1 c1``: puts of these keys, some of a pipeline."""
    loop: Any = asyncio.new_event_loop()
    try:
        return [Call((word[:1].encode(), b"v"), None, loop.create_future(), chains.get(word[1:])) for word in words.split()]
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("words", "sent", "results"),
    [
        ("a b c d e", "abcde", "a,a,None,None,None"),
        ("a1 b c1 d e1 f", "abdf", "a,a,not sent,None,not sent,None"),
        ("a1 b2 c1 d2 e f3", "abef", "a,a,not sent,not sent,None,None"),
        ("x a1 b1 c1 d", "xabcd", "None,None,None,None,None"),
    ],
)
def test_behind_a_message_without_an_answer_a_pipeline_sends_nothing_and_others_do(words: str, sent: str, results: str) -> None:
    client = Sends({"a": OutcomeUnknownError("a")})
    found = send_writes(client, calls_of(words, {"1": Chain(), "2": Chain(), "3": Chain()}))
    assert "".join(client.sent) == sent
    assert ",".join(str(result)[:8] for result in found) == results
    assert all(isinstance(result, UnavailableError) for result in found if str(result).startswith("not sent"))


def test_a_pipeline_stays_stopped_in_the_groups_that_follow() -> None:
    client = Sends({"a": OutcomeUnknownError("a")})
    chains = {"1": Chain()}
    send_writes(client, calls_of("a1 b1", chains))
    assert [str(result)[:8] for result in send_writes(client, calls_of("c1 d", chains))] == ["not sent", "None"]


@pytest.mark.parametrize("error", [ConditionFailedError("a"), InvalidArgumentError("a")])
def test_a_call_that_is_refused_stops_no_pipeline(error: Exception) -> None:
    client = Sends({"a": error})
    assert send_writes(client, calls_of("a1 b1 c1", {"1": Chain()})) == [error, error, None]


def test_a_write_too_large_for_any_message_has_an_answer_and_so_have_its_neighbours() -> None:
    calls = calls_of("a b", {})
    calls.append(calls[0]._replace(what=(b"c", bytes(100))))
    other = calls[0]._replace(option=True)
    results = send_writes(Sends({}), [other, *calls])
    assert [type(result) for result in results] == [type(None), *[InvalidArgumentError] * 3]


def test_a_damaged_block_fails_those_alone_whose_keys_lie_in_it() -> None:
    class Source:
        def get_many(self, keys: list[bytes]) -> list[bytes]:
            if b"bad" in keys:
                raise CorruptionError("damaged")
            return keys

    source = Source()
    calls = [
        call._replace(what=what, option=source) for call, what in zip(calls_of("a b c", {}), ([b"x", b"y"], [b"bad"], [b"z"]), strict=True)
    ]
    first, second, third = do_reads(calls)
    assert (first, third) == ([b"x", b"y"], [b"z"])
    assert isinstance(second, CorruptionError)
