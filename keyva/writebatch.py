"""A batch that a program fills entry by entry: plyvel's ``write_batch``, with content types."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from keyva.batch import Batch, Text, check_key, check_value
from keyva.reserved import check_content_type, check_type_key

__all__ = ["WriteBatch"]


class _Writes(Protocol):
    def _value_bytes_max(self) -> int: ...

    def write(self, batch: WriteBatch, *, sync: bool | None = None) -> None: ...


class WriteBatch:
    """Collects puts and deletes, written as one: all of them or none. A later entry of a key replaces an earlier one.

    As a context manager it is written at the end of the block, and dropped when the block raises.

    >>> with db.write_batch() as batch:          # doctest: +SKIP
    ...     batch.put(b"a", b"1")
    ...     batch.delete(b"b")
    """

    def __init__(self, client: _Writes, *, sync: bool | None = None) -> None:
        self._client = client
        self._sync = sync
        self._entries: Batch = {}
        self._types: dict[bytes, str] = {}

    def put(self, key: Text, value: Text, *, content_type: str | None = None) -> None:
        """Add a put, with the content type it is to have (see `Client.put`); arguments are checked now."""
        key = check_key(key)
        value = check_value(key, value, self._client._value_bytes_max())
        if content_type is not None:
            check_type_key(key)
            self._types[key] = check_content_type(key, content_type)
        else:
            self._types.pop(key, None)
        self._entries[key] = value

    def delete(self, key: Text) -> None:
        """Add a delete."""
        key = check_key(key)
        self._entries[key] = None
        self._types.pop(key, None)

    def append(self, other: WriteBatch) -> None:
        """Add all entries of another batch, with their content types."""
        types = dict(other._types)  # the other may be this one
        for key in other._entries:
            self._types.pop(key, None)
        self._entries.update(other._entries)
        self._types.update(types)

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self._types.clear()

    def write(self) -> None:
        """Write what was collected, then clear; an empty batch does nothing."""
        self._client.write(self, sync=self._sync)
        self.clear()

    def __len__(self) -> int:
        """Entries collected."""
        return len(self._entries)

    def __enter__(self) -> WriteBatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.write()
        else:
            self.clear()
