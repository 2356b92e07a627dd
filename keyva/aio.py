"""An asyncio client: `open` and `connect` give a `Client` whose calls have the names and arguments of `keyva.Client`.

Writes made in one turn of the event loop, and those made while an earlier message is under way, travel as one message and are committed
together. On the node's host reads are done at once, in the event loop, from the store's files: 0.5 us from memory, some microseconds from
a block in the page cache; where that must not wait for a disk, use a thread. Elsewhere reads are gathered like writes.

Messages are sent by one thread for writes and one for reads (`keyva.lane`), over a `keyva.Client` that repeats, waits and reconnects as
ever.

Invariants: writes are made in the order of their calls; a call that is cancelled before its message was sent is not sent, one that is
cancelled later is made or not, and its answer is dropped; nothing that may wait for a node is done in the event loop, whether it is
left, cancelled or forgotten.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import keyva
from keyva.batch import Puts, Text, check_key, check_keys, check_value, make_batch
from keyva.errors import InvalidArgumentError, KeyvaError
from keyva.iterator import Iterator
from keyva.lane import Chain, Lane, do_reads, send_writes
from keyva.pipeline import Pipeline, Read, hand_out, is_read, not_sent, raise_first
from keyva.remote import RemoteSnapshot
from keyva.reserved import Typed
from keyva.view import Snapshot
from keyva.writebatch import WriteBatch
from keyva.writes import Entry, Expected, Write, increment_of, sequence_of, update_of, write_of

__all__ = ["Client", "connect", "open"]

SCAN_ENTRIES = 500
"""Entries that an iterator takes before it lets other tasks run."""


async def open(directory: str | os.PathLike[str], *, timeout_s: float = 30.0, **settings: Any) -> Client:  # noqa: A001 - as keyva.open
    """Open the store in ``directory``: see `keyva.open`."""
    return Client(await _made_in_thread(partial(keyva.open, directory, timeout_s=timeout_s, **settings)))


async def connect(
    endpoint: str,
    *,
    timeout_s: float = 30.0,
    curve_server_key: str | bytes | None = None,
    curve_secret_key_file: str | os.PathLike[str] | None = None,
) -> Client:
    """Connect to the node at ``endpoint``: see `keyva.connect`."""
    make = partial(
        keyva.connect,
        endpoint,
        timeout_s=timeout_s,
        curve_server_key=curve_server_key,
        curve_secret_key_file=curve_secret_key_file,
    )
    return Client(await _made_in_thread(make))


class _Closable(Protocol):
    def close(self) -> None: ...


_Made = TypeVar("_Made", bound=_Closable)


async def _made_in_thread(make: Callable[[], _Made]) -> _Made:
    """Return what ``make()`` gives in a thread; it is closed there when nobody waits for it any more."""
    loop = asyncio.get_running_loop()
    making = loop.run_in_executor(None, make)

    def close(made: asyncio.Future[_Made]) -> None:
        if not made.cancelled() and made.exception() is None:
            loop.run_in_executor(None, made.result().close)

    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(close)
        raise


class _Calls:
    """The read calls, over a `keyva.Client` or a snapshot of it."""

    _source: Any
    _lane: Lane | None
    """None where reads are done in the event loop."""

    async def _read(self, name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(self._source, name)
        if self._lane is None:
            return method(*arguments, **options)
        return await asyncio.to_thread(method, *arguments, **options)

    async def get(self, key: Text, default: Any = None) -> Any:
        """See `keyva.Client.get`."""
        if self._lane is None:
            return self._source.get(key, default)
        (value,) = await self._lane.call([check_key(key)], self._source)
        return default if value is None else value

    async def get_many(self, keys: Iterable[Text]) -> list[bytes | None]:
        """See `keyva.Client.get_many`."""
        if self._lane is None:
            return self._source.get_many(keys)  # type: ignore[no-any-return]
        return await self._lane.call(check_keys(keys, "get_many"), self._source)  # type: ignore[no-any-return]

    async def exists(self, key: Text) -> bool:
        """See `keyva.Client.exists`."""
        return await self.get(key) is not None

    async def get_typed(self, key: Text) -> Typed | None:
        """See `keyva.Client.get_typed`."""
        return await self._read("get_typed", key)  # type: ignore[no-any-return]

    async def content_types(self, keys: Iterable[Text]) -> list[str | None]:
        """See `keyva.Client.content_types`."""
        return await self._read("content_types", check_keys(keys, "content_types"))  # type: ignore[no-any-return]

    async def snapshot(self) -> AsyncSnapshot:
        """See `keyva.Client.snapshot`."""
        take = self._source.snapshot
        return AsyncSnapshot(take() if self._lane is None else await _made_in_thread(take), self._lane)

    async def iterator(
        self,
        start: Text | None = None,
        stop: Text | None = None,
        *,
        include_start: bool = True,
        include_stop: bool = False,
        prefix: Text | None = None,
        reverse: bool = False,
        include_key: bool = True,
        include_value: bool = True,
    ) -> AsyncIterator[Any]:
        """See `keyva.Client.iterator`; use it with ``async for``. Other tasks run every `SCAN_ENTRIES` entries."""
        scan = _Scan(
            partial(
                self._source.iterator,
                start,
                stop,
                include_start=include_start,
                include_stop=include_stop,
                prefix=prefix,
                reverse=reverse,
                include_key=include_key,
                include_value=include_value,
            )
        )
        loop = asyncio.get_running_loop()
        try:
            while True:
                part = scan.take() if self._lane is None else await loop.run_in_executor(None, scan.take)
                for entry in part:
                    yield entry
                if len(part) < SCAN_ENTRIES:
                    return
                await asyncio.sleep(0)
        finally:
            if self._lane is None:
                scan.close()
            else:
                await asyncio.shield(loop.run_in_executor(None, scan.close))


class _Scan:
    """An iterator, opened when it is first asked; used by one thread at a time, whatever becomes of the task that waits for it."""

    def __init__(self, iterate: Callable[[], Iterator]) -> None:
        self._iterate = iterate
        self._entries: Iterator | None = None
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> list[Any]:
        """Return the next `SCAN_ENTRIES` entries, fewer at the end."""
        with self._lock:
            if self._closed:
                return []  # to nobody: the task was cancelled before this thread began
            if self._entries is None:
                self._entries = self._iterate()
            return [entry for _, entry in zip(range(SCAN_ENTRIES), self._entries, strict=False)]

    def close(self) -> None:
        """Let the snapshot go, when a thread that takes entries is done."""
        with self._lock:
            self._closed = True
            if self._entries is not None:
                self._entries.close()


class AsyncSnapshot(_Calls):
    """One moment of a store. See `keyva.Snapshot`."""

    def __init__(self, source: Snapshot | RemoteSnapshot, lane: Lane | None) -> None:
        self._source = source
        self._lane = lane

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._source.closed)

    async def close(self) -> None:
        """Let files and memory go. May be called twice."""
        await self._read("close")

    def __del__(self) -> None:
        lane = getattr(self, "_lane", None)
        if lane is not None and not self._source.closed:
            lane.do_later(self._source.close)  # in its thread: the reader is told

    async def __aenter__(self) -> AsyncSnapshot:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class Client(_Calls):
    """A store, for the tasks of one event loop. Made by `open` and `connect`, in the loop that uses it."""

    def __init__(self, client: keyva.Client) -> None:
        local = client._connections().view is not None
        self._client = self._source = client
        self._writes = Lane("writes", partial(send_writes, client))
        self._lane = None if local else Lane("reads", do_reads)

    # Writing

    async def put(
        self,
        key: Text,
        value: Text,
        *,
        sync: bool | None = None,
        content_type: str | None = None,
        expect: Expected | None = None,
    ) -> None:
        """See `keyva.Client.put`."""
        key = check_key(key)
        value = check_value(key, value, self._value_bytes_max())
        if content_type is None and expect is None:
            await self._write((key, value), sync)
        else:
            await self._write(update_of({key: value}, {} if content_type is None else {key: content_type}, expect), sync)

    async def put_many(self, entries: Puts, *, sync: bool | None = None) -> None:
        """See `keyva.Client.put_many`."""
        batch = make_batch(entries, self._value_bytes_max())
        if batch:
            await self._write(write_of(batch), sync)

    async def delete(self, key: Text, *, sync: bool | None = None, expect: Expected | None = None) -> None:
        """See `keyva.Client.delete`."""
        key = check_key(key)
        await (self._writes.call((key, None), sync) if expect is None else self._write(update_of({key: None}, {}, expect), sync))

    async def increment(self, key: Text, by: int = 1, *, sync: bool | None = None) -> int:
        """See `keyva.Client.increment`."""
        return int(await self._write(increment_of(key, by), sync))

    async def sequence_next(self, name: Text, *, sync: bool | None = None) -> int:
        """See `keyva.Client.sequence_next`."""
        return int(await self._write(sequence_of(name, False), sync))

    async def sequence_reset(self, name: Text, *, sync: bool | None = None) -> None:
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
        self._client._connections()  # an empty batch too is refused by a closed client
        if batch._entries:
            await self._write(update_of(dict(batch._entries), dict(batch._types), expect), sync if sync is not None else batch._sync)

    async def _write(self, write: Write | Entry, sync: bool | None) -> Any:
        # here, for in the lane's thread it would be an error of all calls that travel together
        size = write.size if isinstance(write, Write) else write_of(dict([write])).size
        if size > (limit := self._client._batch_bytes_max()):
            raise InvalidArgumentError(f"the batch has about {size} bytes, more than max_batch_size = {limit}")
        return await self._writes.call(write, sync)

    def _value_bytes_max(self) -> int:
        return self._client._value_bytes_max()

    # Maintenance

    async def flush(self) -> None:
        """See `keyva.Client.flush`."""
        await asyncio.to_thread(self._client.flush)

    async def compact_range(self, start: Text | None = None, stop: Text | None = None) -> None:
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

    def __del__(self) -> None:
        if hasattr(self, "_writes") and not self._client.closed:
            self._writes.do_later(self._client.close)  # in its thread: here it would block, or meet its own locks


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
        chain = Chain()
        for reading, part in itertools.groupby(calls, is_read):
            if chain.error is not None:
                break
            if reading:
                await self._read_async(cast("list[Read]", list(part)), results, chain)
            else:
                await self._write_async(cast("list[Write | Entry]", list(part)), results, chain)
        if chain.error is not None:
            error = chain.error
            results += [not_sent(error) for _ in range(len(calls) - len(results))]
        if raise_errors:
            raise_first(results)
        return results

    async def _read_async(self, reads: list[Read], results: list[Any], chain: Chain) -> None:
        try:
            values = await self._async_client.get_many([key for read in reads for key in read.keys])
        except KeyvaError as error:
            chain.error = error
            results += [error] * len(reads)
        else:
            hand_out(reads, values, results)

    async def _write_async(self, writes: list[Write | Entry], results: list[Any], chain: Chain) -> None:
        try:
            results += await self._async_client._writes.call_all(writes, self._sync, chain)  # in one turn, so that they travel together
        except KeyvaError as error:
            chain.error = error
            results += [error] * len(writes)

    def __enter__(self) -> Pipeline:
        raise TypeError("use 'async with', not 'with'")

    async def __aenter__(self) -> AsyncPipeline:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.execute()
        else:
            self._calls.clear()
