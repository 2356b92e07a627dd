"""Writes on their way to the writer: what a client's calls become, and how many of them share one message.

A put or delete is a batch of one. Neighbouring batches of one durability are merged into one, in which the last entry of a key wins, as it
would if they were written one after the other; what needs an answer of its own (increments, conditional writes, sequences) keeps its place
between them. One message holds them all, and is committed in one group.

Invariants: what was atomic stays atomic; the order of calls is the order in the store; no message passes ``bytes_max``, and none
gathers more than `MESSAGE_BYTES` or `CALLS_MAX`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from keyva.batch import Batch, Text, check_key, check_value
from keyva.errors import CounterOverflowError, InvalidArgumentError
from keyva.protocol import OK, decode_body, decode_error, encode
from keyva.reserved import Condition, Typed, check_content_type, check_sequence, check_type_key, value_digest

__all__ = ["CALLS_MAX", "Entry", "Expected", "Message", "Write", "increment_of", "messages_of", "sequence_of", "update_of", "write_of"]

CALLS_MAX = 1000
"""Calls with answers of their own in one message; the writer takes 1024."""

Expected = Mapping[bytes, Typed | None] | Mapping[str, Typed | None]
"""What keys must be for a write to be made: None for absent, else value and content type, as `get_typed` gave them."""

MESSAGE_BYTES = 4 * 1024 * 1024
"""Calls are not gathered beyond that; a single larger one still goes."""

_ENTRY_BYTES = 16
"""Above what msgpack needs for the lengths."""


Entry = tuple[bytes, bytes | None]
"""A checked put or delete (None): the plainest write."""


class Write(NamedTuple):
    """One call. ``batch`` when it may be merged with its neighbours, else operation and body. ``numbered``: its result is a number."""

    batch: Batch | None
    op: str = "write"
    body: Any = None
    size: int = 0
    numbered: bool = False


class Message(NamedTuple):
    """One request: ``calls`` are (operation, body), ``owners`` says which call answers which write, in the order of the writes."""

    calls: list[tuple[str, Any]]
    owners: list[int]
    numbered: list[bool]

    @property
    def op(self) -> str:
        """The operation that carries all calls."""
        return self.calls[0][0] if len(self.calls) == 1 else "pipeline"

    def body(self) -> bytes:
        """Encode the request's body."""
        return encode(self.calls[0][1] if len(self.calls) == 1 else self.calls)

    def results(self, answer: bytes) -> list[Any]:
        """Return the result of every write: None, a number, or the error it was answered with."""
        if len(self.calls) == 1:
            parts = [[OK, decode_body(answer)]]
        else:
            parts = decode_body(answer, list[tuple[int, msgspec.Raw]])
        values = [decode_body(bytes(part), tuple[int, int | None]) if type(part) is msgspec.Raw else part for _, part in _oks(parts)]
        return [
            found if isinstance(found, Exception) else found[1] if numbered else None
            for found, numbered in zip((values[owner] for owner in self.owners), self.numbered, strict=True)
        ]


def _oks(parts: Iterable[Any]) -> Iterable[tuple[int, Any]]:
    for status, part in parts:
        yield status, part if status == OK else decode_error(bytes(part))


def write_of(entries: Batch) -> Write:
    """Return the write of a checked batch. Hot: 0.03 us per entry."""
    size = _ENTRY_BYTES * len(entries) + sum(map(len, entries))
    try:
        size += sum(map(len, entries.values()))  # type: ignore[arg-type]
    except TypeError:  # there are deletes
        size += sum(len(value) for value in entries.values() if value is not None)
    return Write(entries, size=size)


def update_of(entries: Batch, types: Mapping[bytes, str], expect: Expected | None) -> Write:
    """Return the write of a checked batch with content types and conditions; raises TypeError or `InvalidArgumentError`."""
    for key, kind in types.items():
        check_type_key(key)
        check_content_type(key, kind)
    conditions = [_condition(key, expected) for key, expected in (expect or {}).items()]
    if not types and not conditions:
        return write_of(entries)
    size = write_of(entries).size + sum(2 * len(key) + len(kind) + _ENTRY_BYTES for key, kind in types.items())
    return Write(None, "update", [entries, conditions, types], size + sum(len(condition.key) + 300 for condition in conditions))


def _condition(key: Text, expected: Any) -> Condition:
    key = check_key(key)
    if expected is None:
        return Condition(key, None)
    if not isinstance(expected, Typed):
        raise TypeError(f"what key {key[:40]!r} must be has to be None or a Typed(value, content_type), not {type(expected).__name__}")
    value = check_value(key, expected.value, 2**32)
    return Condition(key, value_digest(value), expected.content_type)


def increment_of(key: Text, by: int) -> Write:
    """Return the write of an increment; raises TypeError or `InvalidArgumentError`."""
    key = check_key(key)
    if isinstance(by, bool) or not isinstance(by, int):
        raise TypeError(f"increment takes a whole number, not {type(by).__name__}")
    if not -(2**63) <= by < 2**63:
        raise CounterOverflowError(f"increment by {by} is outside of 64 bits")
    return Write(None, "increment", [key, by], len(key) + 32, True)


def sequence_of(name: Text, reset: bool) -> Write:
    """Return the write that takes a sequence's next number or resets it; raises TypeError or `InvalidArgumentError`."""
    name = check_sequence(name)
    return Write(None, "sequence", [name, reset], len(name) + 32, True)


def messages_of(writes: Sequence[Write | Entry], bytes_max: int) -> list[Message]:
    """Put writes into as few messages as the limits allow. Hot: 0.2 us per entry."""
    messages: list[Message] = []
    message = Message([], [], [])
    merged: Batch | None = None
    size = 0
    own, numbered = message.owners.append, message.numbered.append
    size_max = min(bytes_max, MESSAGE_BYTES)
    for write in writes:
        if type(write) is tuple:
            key, value = write  # type: ignore[misc]  # a plain tuple is an Entry
            size += _ENTRY_BYTES + len(key) + (len(value) if value else 0)
            if merged is not None and size <= size_max:
                merged[key] = value
                own(len(message.calls) - 1)
                numbered(False)
                continue
            size -= _ENTRY_BYTES + len(key) + (len(value) if value else 0)
            write = write_of({key: value})
        assert isinstance(write, Write)
        if write.size > bytes_max:
            raise InvalidArgumentError(f"the batch has about {write.size} bytes, more than max_batch_size = {bytes_max}")
        if message.calls and (size + write.size > size_max or len(message.calls) >= CALLS_MAX):
            messages.append(message)
            message, merged, size = Message([], [], []), None, 0
            own, numbered = message.owners.append, message.numbered.append
        size += write.size
        if write.batch is None:
            merged = None
            message.calls.append((write.op, write.body))
        elif merged is None:
            merged = dict(write.batch)
            message.calls.append(("write", merged))
        else:
            merged.update(write.batch)
        own(len(message.calls) - 1)
        numbered(write.numbered)
    if message.calls:
        messages.append(message)
    return messages
