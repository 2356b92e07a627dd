"""`/api/batch` and `/api/delete-prefix`: several changes in one request."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from keyva import aio
from keyva.client import Client
from keyva.reserved import CONDITIONS_MAX, Typed
from keyva.writebatch import WriteBatch

from .conditional import etag_of
from .names import bytes_of, check, key_in_json
from .replies import ProblemError

__all__ = ["DeletePrefix", "decode", "delete_prefix", "write_batch"]

OPERATIONS_MAX = 100_000
DELETE_KEYS = 1000


class _Operation(msgspec.Struct, forbid_unknown_fields=True):
    op: Literal["put", "delete"]
    key: str | UnsetType = UNSET
    key_base64: str | UnsetType = UNSET
    value: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET


class _Expected(msgspec.Struct, forbid_unknown_fields=True):
    etag: str | None
    key: str | UnsetType = UNSET
    key_base64: str | UnsetType = UNSET


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    operations: list[_Operation]
    expect: list[_Expected] = []


class DeletePrefix(msgspec.Struct, forbid_unknown_fields=True):
    """``count`` and ``complete`` are what the user was shown; not complete: there were at least so many."""

    count: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    prefix: str | UnsetType = UNSET
    prefix_base64: str | UnsetType = UNSET
    complete: bool = True


def decode(body: bytes, kind: Any) -> Any:
    """Decode a JSON body; raises `ProblemError` that names the place."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProblemError(400, f"the body is not as it should be: {error}") from None


def _key_of(entry: Any, place: str) -> bytes:
    key = bytes_of(entry.key, entry.key_base64, "key")
    if key is None:
        raise ProblemError(400, f"{place} names no key")
    return check(key)


def _fill(batch: WriteBatch, operations: list[_Operation]) -> None:
    for number, operation in enumerate(operations):
        place = f"operation {number}"
        key = _key_of(operation, place)
        if operation.op == "delete":
            if (operation.value, operation.value_base64, operation.content_type) != (UNSET, UNSET, UNSET):
                raise ProblemError(400, f"{place}: a delete takes no value and no content_type")
            batch.delete(key)
            continue
        value = bytes_of(operation.value, operation.value_base64, "value")
        if value is None:
            raise ProblemError(400, f"{place} has no value")
        kind = "" if isinstance(operation.content_type, UnsetType) else operation.content_type.strip(" \t")
        batch.put(key, value, content_type=kind or None)


async def write_batch(client: aio.Client, reads: Client, body: bytes) -> dict[str, Any]:
    """Write all operations of a JSON body or none of them; raises `ProblemError` 412 when an expected entity tag is another."""
    asked: _Batch = decode(body, _Batch)
    if len(asked.operations) > OPERATIONS_MAX or len(asked.expect) > CONDITIONS_MAX:
        raise ProblemError(413, f"a batch has at most {OPERATIONS_MAX} operations and {CONDITIONS_MAX} expectations")
    batch = client.write_batch()
    _fill(batch, asked.operations)
    expect: dict[bytes, Typed | None] = {}
    keys = [_key_of(expected, f"expectation {number}") for number, expected in enumerate(asked.expect)]
    for key, expected in zip(keys, asked.expect, strict=True):
        current = reads.get_typed(key)
        etag = None if current is None else etag_of(*current).decode()
        if etag != expected.etag:
            raise ProblemError(412, "a key is not as expected; nothing was written", etag=etag, **key_in_json(key))
        expect[key] = current
    await client.write(batch, expect=expect or None)
    return {"operations": len(asked.operations)}


async def delete_prefix(client: aio.Client, reads: Client, prefix: bytes, asked: DeletePrefix) -> dict[str, Any]:
    """Delete the keys with ``prefix`` as of now, if they are as many as the user was shown; in batches of `DELETE_KEYS`, each atomic.

    Keys put meanwhile stay. Raises `ProblemError` 409 when there are more or fewer keys; nothing is deleted then.
    """
    snapshot = reads.snapshot()
    try:
        found = await asyncio.to_thread(lambda: sum(1 for _ in snapshot.iterator(prefix=prefix, include_value=False)))
        if found != asked.count and (asked.complete or found < asked.count):
            raise ProblemError(409, f"{found} keys begin with the prefix now, not {asked.count}; nothing was deleted", count=found)
        keys = iter(snapshot.iterator(prefix=prefix, include_value=False))
        while part := await asyncio.to_thread(lambda: list(islice(keys, DELETE_KEYS))):
            batch = client.write_batch()
            for key in part:
                batch.delete(key)
            await client.write(batch)
        return {"deleted": found}
    finally:
        snapshot.close()
