"""A reader: serves reads to clients that are not on this host, from a `View` of its own.

Snapshots and cursors live here, each with an id that no other reader or restart gives out again; those idle for long are dropped.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import zmq

from keyva import __version__
from keyva.errors import KeyvaError, ProtocolError, SnapshotLostError, UnavailableError
from keyva.protocol import PROTOCOL_VERSION, decode_body, encode
from keyva.view import Snapshot, View

from .base import Message, Server, Worker

__all__ = ["Reader"]

ANSWER_BYTES = 1024 * 1024
MANY_BYTES = 16 * 1024 * 1024
HELD_MAX = 4096
IDLE_S = 600.0
KEYS_MAX = 1_000_000


class _Cursor(NamedTuple):
    snapshot: Snapshot
    entries: Iterator[tuple[list[bytes], list[bytes]]]
    include_value: bool
    rest: list[tuple[bytes, bytes]]  # read from `entries` but not sent yet


class Reader:
    """The loop of a reader process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        spec = worker.spec
        self._view = View(spec.directory, spec.options)
        endpoints = [spec.endpoints.readers[spec.number]]
        if spec.endpoints.listen_readers:
            endpoints.append(spec.endpoints.listen_readers[spec.number])
        self._server = Server(
            worker, endpoints, frame_bytes_max=spec.options.max_batch_size, curve=bool(spec.options.curve_server_key_file)
        )
        worker.poller.register(self._server.socket, zmq.POLLIN)
        self._held: OrderedDict[int, tuple[float, Snapshot | _Cursor]] = OrderedDict()
        self._reads = 0
        self._ops: dict[str, Callable[[bytes], Any]] = {
            "hello": self._hello,
            "get": self._get,
            "get_many": self._get_many,
            "get_typed": self._get_typed,
            "content_types": self._content_types,
            "snapshot": self._snapshot,
            "release": self._release,
            "scan": self._scan,
            "next": self._next,
            "close": self._release,
            "stats": self._stats,
        }

    def run(self) -> None:
        """Serve until the node says stop."""
        worker = self._worker
        worker.tell("ready")
        while not worker.stopping:
            worker.beat()
            if self._server.socket in worker.poll(1.0):
                for _ in range(1000):
                    message = self._server.receive()
                    if message is None:
                        break
                    self._serve(message)
            self._drop_idle()
        self._server.close()
        self._view.close()

    def _serve(self, message: Message) -> None:
        request = message.request
        operation = self._ops.get(request.op)
        try:
            if operation is None:
                raise ProtocolError(f"unknown operation {request.op[:40]!r}; a reader knows {', '.join(self._ops)}")
            body = encode(operation(message.body))
        except (KeyvaError, TypeError, OSError) as error:
            self._server.answer_error(message.peer, request.request, error, self._view.position)
            return
        self._reads += 1
        self._server.answer(message.peer, request.request, body, self._view.position)

    def _hello(self, _: bytes) -> dict[str, Any]:
        return {"protocol": PROTOCOL_VERSION, "version": __version__, "pid": os.getpid(), "store_id": self._view.manifest.store_id.hex()}

    def _source(self, snapshot: int) -> View | Snapshot:
        if snapshot == 0:
            return self._view
        held = self._find(snapshot)
        if not isinstance(held, Snapshot):
            raise SnapshotLostError(f"{snapshot} is not a snapshot")
        return held

    def _find(self, number: int) -> Snapshot | _Cursor:
        entry = self._held.get(number)
        if entry is None:
            raise SnapshotLostError("this reader holds no such snapshot or iterator (it was restarted, or it was idle for too long)")
        self._held[number] = (time.monotonic(), entry[1])
        self._held.move_to_end(number)
        return entry[1]

    def _hold(self, what: Snapshot | _Cursor) -> int:
        if len(self._held) >= HELD_MAX:
            raise UnavailableError(f"this reader holds {HELD_MAX} snapshots and iterators already; close some")
        number = int.from_bytes(os.urandom(8), "little") | 1
        self._held[number] = (time.monotonic(), what)
        return number

    def _drop_idle(self) -> None:
        horizon = time.monotonic() - IDLE_S
        while self._held and next(iter(self._held.values()))[0] < horizon:
            _, (_, what) = self._held.popitem(last=False)
            _close(what)

    def _get(self, body: bytes) -> bytes | None:
        snapshot, key = decode_body(body, tuple[int, bytes])
        value: bytes | None = self._source(snapshot).get(key)
        return value

    def _get_many(self, body: bytes) -> list[bytes | None]:
        snapshot, keys = decode_body(body, tuple[int, list[bytes]])
        if len(keys) > KEYS_MAX:
            raise ProtocolError(f"{len(keys)} keys in one request, more than {KEYS_MAX}")
        source = self._source(snapshot)
        values: list[bytes | None] = []
        # Looked up in parts, small ones first, for how large the values are shows only when they have been read
        size, largest, count = 0, 1, 1
        while len(values) < len(keys) and size < MANY_BYTES:
            for value in source.get_many(keys[len(values) : len(values) + count]):
                values.append(value)
                if value is not None:
                    size += len(value)
                    largest = max(largest, len(value))
                    if size >= MANY_BYTES:
                        break
            count = max(1, min(2 * count, 1000, (MANY_BYTES - size) // largest))
        return values

    def _get_typed(self, body: bytes) -> tuple[bytes, str | None] | None:
        snapshot, key = decode_body(body, tuple[int, bytes])
        return self._source(snapshot).get_typed(key)

    def _content_types(self, body: bytes) -> list[str | None]:
        snapshot, keys = decode_body(body, tuple[int, list[bytes]])
        if len(keys) > KEYS_MAX:
            raise ProtocolError(f"{len(keys)} keys in one request, more than {KEYS_MAX}")
        return self._source(snapshot).content_types(keys)

    def _snapshot(self, body: bytes) -> int:
        return self._hold(self._source(decode_body(body, int | None) or 0).snapshot())

    def _release(self, body: bytes) -> None:
        entry = self._held.pop(decode_body(body, int), None)
        if entry is not None:
            _close(entry[1])

    def _scan(self, body: bytes) -> list[Any]:
        number, start, stop, reverse, include_value = decode_body(body, tuple[int, bytes, bytes, bool, bool])
        snapshot = self._source(number).snapshot()
        return self._fill(_Cursor(snapshot, snapshot.entries(start, min(stop, b"\xff\xff"), reverse), include_value, []), 0)

    def _next(self, body: bytes) -> list[Any]:
        number = decode_body(body, int)
        cursor = self._find(number)
        if not isinstance(cursor, _Cursor):
            raise SnapshotLostError(f"{number} is not an iterator")
        return self._fill(cursor, number)

    def _fill(self, cursor: _Cursor, number: int) -> list[Any]:
        """Take about a megabyte from the cursor, the first answer less, for most scans are short."""
        keys: list[bytes] = []
        values: list[bytes] = []
        size, limit = 0, ANSWER_BYTES if number else ANSWER_BYTES // 16
        while size < limit:
            if not cursor.rest:
                piece = next(cursor.entries, None)
                if piece is None:
                    break
                cursor.rest.extend(zip(*piece, strict=True))
            taken = 0
            for key, value in cursor.rest:
                keys.append(key)
                size += len(key)
                if cursor.include_value:
                    values.append(value)
                    size += len(value)
                taken += 1
                if size >= limit:
                    break
            del cursor.rest[:taken]
        ended = size < limit
        if ended:
            self._held.pop(number, None)
            _close(cursor)
            number = 0
        elif not number:
            number = self._hold(cursor)
        return [number, keys, values if cursor.include_value else None]

    def _stats(self, _: bytes) -> dict[str, Any]:
        cache = self._view.cache
        return {
            "reads": self._reads,
            "held": len(self._held),
            "cache_bytes": cache.size_bytes,
            "cache_misses": cache.misses,
            "lag_bytes": self._view.lag_bytes(),
            "malformed": self._server.malformed,
        }


def _close(what: Snapshot | _Cursor) -> None:
    (what.snapshot if isinstance(what, _Cursor) else what).close()
