"""An asyncio client: `open` and `connect` give a `Client` whose calls have the names and arguments of `keyva.Client`.

Writes made in one turn of the event loop, and those made while an earlier message is under way, travel as one message and are committed
together. On the node's host reads are done at once, in the event loop, from the store's files: 0.5 us from memory, some microseconds from
a block in the page cache; where that must not wait for a disk, use a thread. Elsewhere reads are gathered like writes.

Messages are sent by one thread for writes and one for reads (`_Lane`), over a `keyva.Client` that repeats, waits and reconnects as ever.

Invariants: writes are made in the order of their calls; a call that is cancelled before its message was sent is not sent, one that is
cancelled later is made or not, and its answer is dropped; at most `PENDING_MAX` calls are pending, and one beyond that waits.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import keyva
from keyva.batch import check_key, check_value, make_batch
from keyva.errors import ClosedError, InvalidArgumentError, KeyvaError
from keyva.iterator import Iterator
from keyva.pipeline import Pipeline, Read, hand_out, raise_first
from keyva.remote import RemoteSnapshot
from keyva.reserved import Typed
from keyva.view import Snapshot
from keyva.writebatch import WriteBatch
from keyva.writes import Entry, Expected, Write, increment_of, messages_of, sequence_of, update_of, write_of

__all__ = ["Client", "connect", "open"]

PENDING_MAX = 100_000
"""Calls that may wait for their message."""

SCAN_ENTRIES = 500
"""Entries that an iterator takes before it lets other tasks run."""


async def open(directory: str | os.PathLike[str], **settings: Any) -> Client:  # noqa: A001 - the name of keyva.open
    """Open the store in ``directory``: see `keyva.open`."""
    return Client(await asyncio.to_thread(keyva.open, directory, **settings))


async def connect(endpoint: str, **settings: Any) -> Client:
    """Connect to the node at ``endpoint``: see `keyva.connect`."""
    return Client(await asyncio.to_thread(keyva.connect, endpoint, **settings))


class _Call(NamedTuple):
    what: Any
    option: Any
    future: asyncio.Future[Any]


class _Lane:
    """Gathers calls and hands them, one group at a time, to a thread that runs ``work(calls)`` and returns their results."""

    def __init__(self, name: str, work: Callable[[list[_Call]], list[Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._pending: list[_Call] = []
        self._busy = self._scheduled = False
        self._room: deque[asyncio.Future[None]] = deque()
        self._groups: queue.SimpleQueue[list[_Call] | None] = queue.SimpleQueue()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"keyva-aio-{name}", daemon=True)
        self._thread.start()

    async def call(self, what: Any, option: Any = None) -> Any:
        """Add a call to the next message and wait for its result; raises the error that is its result."""
        while len(self._pending) >= PENDING_MAX:
            room = self._loop.create_future()
            self._room.append(room)
            await room
        if self._closed:
            raise ClosedError("the client is closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append(_Call(what, option, future))
        if not (self._busy or self._scheduled):
            self._scheduled = True
            self._loop.call_soon(self._send)
        return await future

    def _send(self) -> None:
        self._scheduled = False
        calls = [call for call in self._pending if not call.future.done()]
        self._pending = []
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
        self._busy = bool(calls)
        if calls:
            self._idle.clear()
            self._groups.put(calls)
        else:
            self._idle.set()

    def _run(self) -> None:
        while (calls := self._groups.get()) is not None:
            try:
                results = self._work(calls)
            except BaseException as error:  # to whoever waits; this thread must live on
                results = [error] * len(calls)
            try:
                self._loop.call_soon_threadsafe(self._deliver, calls, results)
            except RuntimeError:  # the loop was closed: nobody waits
                return

    def _deliver(self, calls: list[_Call], results: list[Any]) -> None:
        for call, result in zip(calls, results, strict=True):
            if call.future.done():
                continue
            if isinstance(result, BaseException):
                call.future.set_exception(result)
            else:
                call.future.set_result(result)
        # not at once: those who were waiting may call again in this turn
        self._loop.call_soon(self._send)

    async def close(self) -> None:
        """Refuse new calls, wait for those under way, and end the thread."""
        self._closed = True
        while self._pending or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)
        self._groups.put(None)
        await asyncio.to_thread(self._thread.join)


class _Calls:
    """The read calls, over a `keyva.Client` or a snapshot of it."""

    _source: Any
    _lane: _Lane | None
    """None where reads are done in the event loop."""

    async def _read(self, name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(self._source, name)
        if self._lane is None:
            return method(*arguments, **options)
        return await asyncio.to_thread(method, *arguments, **options)

    async def get(self, key: bytes | str, default: Any = None) -> Any:
        """See `keyva.Client.get`."""
        if self._lane is None:
            return self._source.get(key, default)
        (value,) = await self._lane.call([check_key(key)], self._source)
        return default if value is None else value

    async def get_many(self, keys: Sequence[bytes | str]) -> list[bytes | None]:
        """See `keyva.Client.get_many`."""
        if isinstance(keys, bytes | str):
            raise TypeError("get_many takes a sequence of keys, not one key")
        if self._lane is None:
            return self._source.get_many(keys)  # type: ignore[no-any-return]
        return await self._lane.call([check_key(key) for key in keys], self._source)  # type: ignore[no-any-return]

    async def exists(self, key: bytes | str) -> bool:
        """See `keyva.Client.exists`."""
        return await self.get(key) is not None

    async def get_typed(self, key: bytes | str) -> Typed | None:
        """See `keyva.Client.get_typed`."""
        return await self._read("get_typed", key)  # type: ignore[no-any-return]

    async def content_types(self, keys: Sequence[bytes | str]) -> list[str | None]:
        """See `keyva.Client.content_types`."""
        return await self._read("content_types", keys)  # type: ignore[no-any-return]

    async def snapshot(self) -> AsyncSnapshot:
        """See `keyva.Client.snapshot`."""
        return AsyncSnapshot(await self._read("snapshot"), self._lane)

    async def iterator(self, start: bytes | str | None = None, stop: bytes | str | None = None, **options: Any) -> AsyncIterator[Any]:
        """See `keyva.Client.iterator`; use it with ``async for``. Other tasks run every `SCAN_ENTRIES` entries."""
        entries: Iterator = await self._read("iterator", start, stop, **options)
        try:
            while True:
                part = _take(entries, SCAN_ENTRIES) if self._lane is None else await asyncio.to_thread(_take, entries, SCAN_ENTRIES)
                for entry in part:
                    yield entry
                if len(part) < SCAN_ENTRIES:
                    return
                await asyncio.sleep(0)
        finally:
            entries.close()


def _take(entries: Iterator, count: int) -> list[Any]:
    return [entry for _, entry in zip(range(count), entries, strict=False)]


class AsyncSnapshot(_Calls):
    """One moment of a store. See `keyva.Snapshot`."""

    def __init__(self, source: Snapshot | RemoteSnapshot, lane: _Lane | None) -> None:
        self._source = source
        self._lane = lane

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._source.closed)

    async def close(self) -> None:
        """Let files and memory go. May be called twice."""
        await self._read("close")

    async def __aenter__(self) -> AsyncSnapshot:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class Client(_Calls):
    """A store, for the tasks of one event loop. Made by `open` and `connect`, in the loop that uses it."""

    def __init__(self, client: keyva.Client) -> None:
        self._client = self._source = client
        self._writes = _Lane("writes", self._do_writes)
        self._lane = None if client._connections().view is not None else _Lane("reads", self._do_reads)

    # Writing

    async def put(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        sync: bool | None = None,
        content_type: str | None = None,
        expect: Expected | None = None,
    ) -> None:
        """See `keyva.Client.put`."""
        key = check_key(key)
        value = check_value(key, value, self._value_bytes_max())
        if content_type is None and expect is None:
            await self._writes.call((key, value), sync)
        else:
            await self._write(update_of({key: value}, {} if content_type is None else {key: content_type}, expect), sync)

    async def put_many(
        self, entries: Mapping[bytes, bytes] | Mapping[str, str] | Iterable[tuple[bytes | str, bytes | str]], *, sync: bool | None = None
    ) -> None:
        """See `keyva.Client.put_many`."""
        batch = make_batch(entries, self._value_bytes_max())
        if batch:
            await self._write(write_of(batch), sync)

    async def delete(self, key: bytes | str, *, sync: bool | None = None, expect: Expected | None = None) -> None:
        """See `keyva.Client.delete`."""
        key = check_key(key)
        await (self._writes.call((key, None), sync) if expect is None else self._write(update_of({key: None}, {}, expect), sync))

    async def increment(self, key: bytes | str, by: int = 1, *, sync: bool | None = None) -> int:
        """See `keyva.Client.increment`."""
        return int(await self._write(increment_of(key, by), sync))

    async def sequence_next(self, name: bytes | str, *, sync: bool | None = None) -> int:
        """See `keyva.Client.sequence_next`."""
        return int(await self._write(sequence_of(name, False), sync))

    async def sequence_reset(self, name: bytes | str, *, sync: bool | None = None) -> None:
        """See `keyva.Client.sequence_reset`."""
        await self._write(sequence_of(name, True), sync)

    def write_batch(self, *, sync: bool | None = None) -> AsyncWriteBatch:
        """Return an empty batch; use it with ``async with``, or `write` it."""
        return AsyncWriteBatch(self, sync=sync)

    def pipeline(self, *, sync: bool | None = None) -> AsyncPipeline:
        """Return an empty pipeline; use it with ``async with``, or await its ``execute``."""
        return AsyncPipeline(self, sync=sync)

    async def write(self, batch: WriteBatch, *, sync: bool | None = None, expect: Expected | None = None) -> None:
        """See `keyva.Client.write`."""
        if batch._entries:
            await self._write(update_of(dict(batch._entries), dict(batch._types), expect), sync if sync is not None else batch._sync)

    async def _write(self, write: Write | Entry, sync: bool | None) -> Any:
        if isinstance(write, Write) and write.size > (limit := self._client._batch_bytes_max()):
            raise InvalidArgumentError(f"the batch has about {write.size} bytes, more than max_batch_size = {limit}")
        return await self._writes.call(write, sync)

    def _value_bytes_max(self) -> int:
        return self._client._value_bytes_max()

    def _do_writes(self, calls: list[_Call]) -> list[Any]:
        """In the lane's thread: one message for each run of writes of one durability; what failed leaves the others alone."""
        results: list[Any] = []
        at = 0
        while at < len(calls):
            end = at + 1
            while end < len(calls) and calls[end].option is calls[at].option:
                end += 1
            writes = [call.what for call in calls[at:end]]
            for message in messages_of(writes, self._client._batch_bytes_max()):
                try:
                    results += self._client._send(message, calls[at].option)
                except Exception as error:
                    results += [error] * len(message.owners)
            at = end
        return results

    def _do_reads(self, calls: list[_Call]) -> list[Any]:
        """In the lane's thread: one message for all gets of one source."""
        results: list[Any] = [None] * len(calls)
        sources = {id(call.option): call.option for call in calls}
        for source in sources.values():
            places = [place for place, call in enumerate(calls) if call.option is source]
            try:
                values = source.get_many([key for place in places for key in calls[place].what])
            except Exception as error:
                for place in places:
                    results[place] = error
                continue
            at = 0
            for place in places:
                count = len(calls[place].what)
                results[place] = values[at : at + count]
                at += count
        return results

    # Maintenance

    async def flush(self) -> None:
        """See `keyva.Client.flush`."""
        await asyncio.to_thread(self._client.flush)

    async def compact_range(self, start: bytes | str | None = None, stop: bytes | str | None = None) -> None:
        """See `keyva.Client.compact_range`."""
        await asyncio.to_thread(self._client.compact_range, start, stop)

    async def stats(self) -> dict[str, Any]:
        """See `keyva.Client.stats`."""
        return await asyncio.to_thread(self._client.stats)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._client.closed

    async def close(self) -> None:
        """Wait for the calls under way, then let connections and files go. May be called twice."""
        if not self._client.closed:
            await self._writes.close()
            if self._lane is not None:
                await self._lane.close()
            await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class AsyncWriteBatch(WriteBatch):
    """A `keyva.WriteBatch` for ``async with``: written at the end of the block, dropped when the block raises."""

    def __init__(self, client: Client, *, sync: bool | None = None) -> None:
        super().__init__(client, sync=sync)  # type: ignore[arg-type]
        self._async_client = client

    def write(self) -> None:
        """Raise TypeError: an asynchronous batch is written by ``async with``, or by ``await client.write(batch)``."""
        raise TypeError("write this batch with 'async with', or with 'await client.write(batch)'")

    def __enter__(self) -> WriteBatch:
        raise TypeError("use 'async with', not 'with'")

    async def __aenter__(self) -> AsyncWriteBatch:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self._async_client.write(self)
        finally:
            self.clear()


class AsyncPipeline(Pipeline):
    """A `keyva.Pipeline` for ``async with``: sent at the end of the block, dropped when the block raises."""

    def __init__(self, client: Client, *, sync: bool | None = None) -> None:
        super().__init__(client._client, sync=sync)
        self._async_client = client

    async def execute(self, *, raise_errors: bool = True) -> list[Any]:  # type: ignore[override]
        """Send the calls, clear them, and return their results in order: see `keyva.Pipeline.execute`."""
        calls, self._calls = self._calls, []
        results: list[Any] = []
        self.results = results
        for reading, run in itertools.groupby(calls, lambda call: isinstance(call, Read)):
            if reading:
                await self._read_async(cast("list[Read]", list(run)), results)
            else:
                # all in one turn, so that they travel together
                writes = [self._async_client._write(cast("Write | Entry", call), self._sync) for call in run]
                results += await asyncio.gather(*writes, return_exceptions=True)
        if raise_errors:
            raise_first(results)
        return results

    async def _read_async(self, reads: list[Read], results: list[Any]) -> None:
        try:
            values = await self._async_client.get_many([key for read in reads for key in read.keys])
        except KeyvaError as error:
            results += [error] * len(reads)
        else:
            hand_out(reads, values, results)

    def __enter__(self) -> Pipeline:
        raise TypeError("use 'async with', not 'with'")

    async def __aenter__(self) -> AsyncPipeline:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.execute()
        else:
            self._calls.clear()
