"""Many calls in as few messages as their order allows: what `Client.pipeline` gives.

A run of writes is one message, a run of gets another one (none at all where this process reads the files by itself). The calls are not
atomic together: `WriteBatch` is for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

from keyva.batch import Puts, Text, check_key, check_keys, check_value, make_batch
from keyva.errors import ConditionFailedError, InvalidArgumentError, KeyvaError, UnavailableError
from keyva.writebatch import WriteBatch
from keyva.writes import Entry, Expected, Message, Write, increment_of, messages_of, sequence_of, update_of, write_of

__all__ = ["REFUSED", "Pipeline", "Read", "hand_out", "is_read", "not_sent", "raise_first"]

CALLS_MAX = 1_000_000
"""Calls one pipeline may collect."""

REFUSED = (InvalidArgumentError, ConditionFailedError)
"""Errors of one call, which leave those behind it alone. Others say that a message got no answer, or was refused as a whole."""

_TOO_MANY = f"a pipeline holds at most {CALLS_MAX} calls; execute it"


class _Client(Protocol):
    def _value_bytes_max(self) -> int: ...

    def _batch_bytes_max(self) -> int: ...

    def _send(self, message: Message, sync: bool | None) -> list[Any]: ...

    def get_many(self, keys: Iterable[Text]) -> list[bytes | None]: ...


class Read:
    """Some keys to get, and what their values become as a result."""

    __slots__ = ("keys", "result")

    def __init__(self, keys: list[bytes], result: Callable[[list[bytes | None]], Any]) -> None:
        self.keys = keys
        self.result = result


def is_read(call: Write | Entry | Read) -> bool:
    """Say whether a call reads."""
    return type(call) is Read


def not_sent(error: Exception) -> UnavailableError:
    """Return the result of a call behind a message that failed with ``error``."""
    return UnavailableError(f"not sent, for a call before it failed: {error}")


def hand_out(reads: Sequence[Read], values: list[bytes | None], results: list[Any]) -> None:
    """Append to ``results`` what each of ``reads`` makes of its part of ``values``."""
    at = 0
    for read in reads:
        results.append(read.result(values[at : at + len(read.keys)]))
        at += len(read.keys)


def raise_first(results: Sequence[Any]) -> None:
    """Raise the first error among ``results``."""
    for result in results:
        if isinstance(result, Exception):
            raise result


class Pipeline:
    """Collects calls; `execute`, or the end of a ``with`` block, sends them and gives their results in order.

    Each call has the arguments and checks of the client's, and returns the pipeline. Results are also kept in ``results``.

    >>> with db.pipeline() as pipe:          # doctest: +SKIP
    ...     pipe.put("a", "1").increment("visits").get("a")
    >>> pipe.results                         # doctest: +SKIP
    [None, 1, b'1']
    """

    def __init__(self, client: _Client, *, sync: bool | None = None) -> None:
        self._client = client
        self._sync = sync
        self._calls: list[Write | Entry | Read] = []
        self._value_bytes_max = client._value_bytes_max()
        self.results: list[Any] = []

    def _add(self, call: Write | Read) -> Pipeline:
        if len(self._calls) >= CALLS_MAX:
            raise InvalidArgumentError(_TOO_MANY)
        if type(call) is Write and call.size > (limit := self._client._batch_bytes_max()):
            raise InvalidArgumentError(f"the batch has about {call.size} bytes, more than max_batch_size = {limit}")
        self._calls.append(call)
        return self

    def put(self, key: Text, value: Text, *, content_type: str | None = None, expect: Expected | None = None) -> Pipeline:
        """Add `Client.put`; its result is None."""
        key = check_key(key)
        value = check_value(key, value, self._value_bytes_max)
        if content_type is None and expect is None:  # hot, 0.4 us
            if len(self._calls) >= CALLS_MAX:
                raise InvalidArgumentError(_TOO_MANY)
            self._calls.append((key, value))
            return self
        return self._add(update_of({key: value}, {} if content_type is None else {key: content_type}, expect))

    def put_many(self, entries: Puts) -> Pipeline:
        """Add `Client.put_many`, an atomic batch (an empty one adds nothing); its result is None."""
        batch = make_batch(entries, self._value_bytes_max)
        return self._add(write_of(batch)) if batch else self

    def delete(self, key: Text, *, expect: Expected | None = None) -> Pipeline:
        """Add `Client.delete`; its result is None."""
        key = check_key(key)
        if expect is None and len(self._calls) < CALLS_MAX:
            self._calls.append((key, None))
            return self
        return self._add(update_of({key: None}, {}, expect))

    def write(self, batch: WriteBatch, *, expect: Expected | None = None) -> Pipeline:
        """Add `Client.write`, of what the batch holds now (an empty one adds nothing); its result is None."""
        if batch._entries:
            self._add(update_of(dict(batch._entries), dict(batch._types), expect))
        return self

    def increment(self, key: Text, by: int = 1) -> Pipeline:
        """Add `Client.increment`; its result is the new value."""
        return self._add(increment_of(key, by))

    def sequence_next(self, name: Text) -> Pipeline:
        """Add `Client.sequence_next`; its result is the number."""
        return self._add(sequence_of(name, False))

    def get(self, key: Text, default: Any = None) -> Pipeline:
        """Add `Client.get`; its result is the value or ``default``, as of after the writes before it in the pipeline."""
        return self._add(Read([check_key(key)], lambda values: default if values[0] is None else values[0]))

    def get_many(self, keys: Iterable[Text]) -> Pipeline:
        """Add `Client.get_many`; its result is the list."""
        return self._add(Read(check_keys(keys, "get_many"), list))

    def exists(self, key: Text) -> Pipeline:
        """Add `Client.exists`; its result is whether there is a value."""
        return self._add(Read([check_key(key)], lambda values: values[0] is not None))

    def execute(self, *, raise_errors: bool = True) -> list[Any]:
        """Send the calls, clear them, and return their results in order.

        A call that was refused (a counter that is none, a condition that failed) leaves the others alone. Its error is raised when all were
        done, or with ``raise_errors`` False is its result. When a message gets no answer, or is refused as a whole (a write stall, a
        full disk), the calls behind it are not sent, and their result says so.
        """
        calls, self._calls = self._calls, []
        results: list[Any] = []
        self.results = results
        try:
            for reading, run in itertools.groupby(calls, is_read):
                if reading:
                    self._read(cast("list[Read]", list(run)), results)
                else:
                    self._write(cast("list[Write | Entry]", list(run)), results)
        except KeyvaError as error:
            results += [not_sent(error) for _ in range(len(calls) - len(results))]
        if raise_errors:
            raise_first(results)
        return results

    def _read(self, reads: list[Read], results: list[Any]) -> None:
        try:
            values = self._client.get_many([key for read in reads for key in read.keys])
        except KeyvaError as error:
            results += [error] * len(reads)
            raise
        hand_out(reads, values, results)

    def _write(self, writes: list[Write | Entry], results: list[Any]) -> None:
        failing = len(writes)
        try:
            for message in messages_of(writes, self._client._batch_bytes_max()):
                failing = len(message.owners)
                try:
                    results += self._client._send(message, self._sync)
                except REFUSED as error:  # of a message of one call, whose error is raised
                    results += [error] * failing
        except KeyvaError as error:
            results += [error] * failing
            raise

    def __len__(self) -> int:
        """Calls collected."""
        return len(self._calls)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.execute()
        else:
            self._calls.clear()
