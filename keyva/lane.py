"""Calls of an event loop on their way to a client: a `Lane` gathers them and hands them, one group at a time, to a thread of its own.

Here is the loop's side, and what the thread does with a group: `send_writes`, `do_reads`. `keyva.aio` is made of two lanes.

Invariants: calls are done in the order in which they were made; a call that was cancelled is not done when its group has not left, and
leaves nothing behind; of a pipeline nothing is sent behind a message without an answer; the thread keeps nothing alive but the
jobs it was given, so a forgotten lane ends it.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from keyva.errors import ClosedError, CorruptionError
from keyva.pipeline import REFUSED, not_sent
from keyva.writes import Message, messages_of

__all__ = ["PENDING_MAX", "Call", "Lane", "Chain", "do_reads", "send_writes"]

PENDING_MAX = 100_000
"""Calls handed to a lane's thread at once. A call is a task that waits, so the program says how many there are."""


class Chain:
    """The writes of one pipeline. ``error`` is that of a message without an answer: of what is behind it, nothing is sent."""

    error: Exception | None = None


class Call(NamedTuple):
    """``what`` to do and with which ``option``, as `Lane`'s work understands them; ``future`` gets the result."""

    what: Any
    option: Any
    future: asyncio.Future[Any]
    chain: Chain | None

    @property
    def stopped_by(self) -> Exception | None:
        """The error of a call before this one in its pipeline, behind which it must not be sent."""
        return None if self.chain is None else self.chain.error


class Lane:
    """Gathers calls and hands them, one group at a time, to a thread that runs ``work(calls)`` and returns their results.

    The thread knows nothing but the queue of its jobs, so that a lane that was forgotten is collected and ends it.
    """

    def __init__(self, name: str, work: Callable[[list[Call]], list[Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._pending: dict[asyncio.Future[Any], Call] = {}
        self._busy = self._scheduled = False
        # its put() takes no lock that a destructor could meet half-way
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._thread = threading.Thread(target=_do_jobs, args=(self._jobs,), name=f"keyva-aio-{name}", daemon=True)
        self._thread.start()

    async def call(self, what: Any, option: Any = None) -> Any:
        """Add a call to the next message and wait for its result; raises the error that is its result."""
        future = self._add(Call(what, option, self._loop.create_future(), None))
        try:
            return await future
        except asyncio.CancelledError:
            self._pending.pop(future, None)
            raise

    async def call_all(self, whats: Sequence[Any], option: Any, chain: Chain) -> list[Any]:
        """Add the calls of a pipeline, one behind the other, and return their results, errors among them."""
        futures = [self._add(Call(what, option, self._loop.create_future(), chain)) for what in whats]
        try:
            return await asyncio.gather(*futures, return_exceptions=True)
        except asyncio.CancelledError:
            for future in futures:
                self._pending.pop(future, None)
            raise

    def _add(self, call: Call) -> asyncio.Future[Any]:
        if self._closed:
            raise ClosedError("the client is closed")
        self._pending[call.future] = call
        if not (self._busy or self._scheduled):
            self._scheduled = True
            self._loop.call_soon(self._send)
        return call.future

    def _send(self) -> None:
        self._scheduled = False
        calls = list(itertools.islice((call for call in self._pending.values() if not call.future.done()), PENDING_MAX))
        if len(calls) < PENDING_MAX:
            self._pending = {}
        else:
            for call in calls:
                del self._pending[call.future]
        self._busy = bool(calls)
        if calls:
            self._idle.clear()
            self._jobs.put(partial(self._do, calls))
        else:
            self._idle.set()

    def _do(self, calls: list[Call]) -> None:
        """In the thread: work, and let the loop know."""
        try:
            results = self._work(calls)
        except BaseException as error:  # to whoever waits; the thread must live on
            results = [error] * len(calls)
        try:
            self._loop.call_soon_threadsafe(self._deliver, calls, results)
        except RuntimeError:  # the loop was closed: nobody waits
            pass

    def _deliver(self, calls: list[Call], results: list[Any]) -> None:
        for call, result in zip(calls, results, strict=True):
            if call.future.done():
                continue
            if isinstance(result, BaseException):
                call.future.set_exception(result)
            else:
                call.future.set_result(result)
        # not at once: those who were waiting may call again in this turn
        self._loop.call_soon(self._send)

    def do_later(self, job: Callable[[], None]) -> None:
        """Have the thread do ``job`` behind what it was given. For destructors: never blocks, and takes no lock."""
        self._jobs.put(job)

    async def close(self) -> None:
        """Refuse new calls, wait for those that were made, and end the thread."""
        self._closed = True
        while self._pending or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def __del__(self) -> None:
        if hasattr(self, "_jobs"):
            self._jobs.put(None)


def _do_jobs(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """In a lane's thread, which keeps nothing alive while it waits."""
    while (job := jobs.get()) is not None:
        try:
            job()
        except Exception:  # of a destructor's: nobody waits for it, and the thread must live on
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        del job


class Writes(Protocol):
    """What `send_writes` needs of a client."""

    def _batch_bytes_max(self) -> int: ...

    def _send(self, message: Message, sync: bool | None) -> list[Any]: ...


def send_writes(client: Writes, calls: list[Call]) -> list[Any]:
    """In the lane's thread: send the writes, those of one durability together; what failed leaves other tasks' alone."""
    results: list[Any] = []
    while (at := len(results)) < len(calls):
        stopped_by = calls[at].stopped_by
        if stopped_by is not None:
            results.append(not_sent(stopped_by))
            continue
        end = at + 1
        while end < len(calls) and calls[end].option is calls[at].option and calls[end].stopped_by is None:
            end += 1
        results += _send_together(client, calls[at:end])
    return results


def _send_together(client: Writes, calls: list[Call]) -> list[Any]:
    """Send writes of one durability and return their results, of the first ones only when a pipeline among them must stop."""
    results: list[Any] = []
    try:
        messages = messages_of([call.what for call in calls], client._batch_bytes_max())
    except Exception as error:
        return _fail(calls, error)
    for message in messages:
        try:
            results += client._send(message, calls[0].option)
        except Exception as error:
            senders = calls[len(results) : len(results) + len(message.owners)]
            results += _fail(senders, error)
            if any(call.stopped_by is not None for call in senders):
                break  # the messages behind may hold writes of the same pipeline
    return results


def _fail(calls: list[Call], error: Exception) -> list[Any]:
    """Return ``error`` as the result of ``calls``, and stop their pipelines unless it is that of a single call."""
    if not isinstance(error, REFUSED):
        for call in calls:
            if call.chain is not None:
                call.chain.error = error
    return [error] * len(calls)


def do_reads(calls: list[Call]) -> list[Any]:
    """In the lane's thread: one message for all gets of one source."""
    results: list[Any] = [None] * len(calls)
    sources = {id(call.option): call.option for call in calls}
    for source in sources.values():
        places = [place for place, call in enumerate(calls) if call.option is source]
        try:
            values = source.get_many([key for place in places for key in calls[place].what])
        except Exception as error:
            for place in places:
                # a damaged block is met by those alone whose keys lie in it
                alone = isinstance(error, CorruptionError) and len(places) > 1
                results[place] = do_reads([calls[place]])[0] if alone else error
            continue
        at = 0
        for place in places:
            count = len(calls[place].what)
            results[place] = values[at : at + count]
            at += count
    return results
