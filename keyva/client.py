"""The client library: `Client`, made by `keyva.open` (on the node's host) or `keyva.connect` (anywhere).

Writes go to the writer in one message each; reads are done by this process itself (`keyva.view.View`) or asked of a reader process
(`keyva.remote`). A client may be shared between threads, whose writes are committed together; after a fork the child makes connections
of its own at its first call and leaves the parent's alone.

Invariants: arguments are checked before anything is sent; a write is answered once, however often it is sent; after `close` every call
raises `ClosedError`.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any, cast

import zmq

from keyva.batch import Batch, Puts, Text, check_key, check_value, encode_batch, make_batch
from keyva.channel import Channel, Curve
from keyva.connections import Connections, Target
from keyva.endpoints import real_directory, running_node
from keyva.errors import ClosedError, ConfigError, InvalidArgumentError, StoreError, UnavailableError
from keyva.iterator import Iterator
from keyva.options import Options, absolute_paths
from keyva.pipeline import Pipeline
from keyva.protocol import FLAG_NO_SYNC, FLAG_SYNC, decode_body, encode
from keyva.remote import RemoteReads, RemoteSnapshot
from keyva.reserved import Typed
from keyva.view import Snapshot, View
from keyva.writebatch import WriteBatch
from keyva.writes import Expected, Message, Write, increment_of, messages_of, sequence_of, update_of

__all__ = ["Client", "WriteBatch", "connect", "node_processes", "open_directory"]

ROUND_TRIP_S = 15.0
TIMEOUT_MAX_S = 86400.0 * 365

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_left_to_parent: list[Connections] = []


def open_directory(directory: str | os.PathLike[str], *, timeout_s: float = 30.0, **settings: Any) -> Client:
    """Open the store in ``directory``: attach to the node that owns it, or start one in the background.

    A node started here stops by itself some seconds after its last client has gone. ``settings`` are those of `keyva.Options`; a
    running node must agree with them, or `ConfigError` is raised. ``timeout_s`` limits each call (each message of one that takes several).
    Raises the error of a node that cannot start (`StoreError` and its kin), `UnavailableError` when none is ready in time.

    The directory is meant as it is now: a symlink in its path may be switched later, this client stays with its store.
    """
    path, timeout_s = real_directory(directory), _check_timeout(timeout_s)
    Options.of(**settings)
    return Client(Target(directory=path, settings=absolute_paths(settings), timeout_s=timeout_s))


def connect(
    endpoint: str,
    *,
    timeout_s: float = 30.0,
    curve_server_key: str | bytes | None = None,
    curve_secret_key_file: str | os.PathLike[str] | None = None,
) -> Client:
    """Connect to the node at ``endpoint`` (``ipc://PATH`` or ``tcp://HOST:PORT``); reads are asked of its readers.

    The keys are for a node that demands them: the server's public key (40 characters of Z85, or a certificate file) and this
    client's certificate file with its secret key, as `keyva keygen` makes them. ``timeout_s`` limits each call (each message of one that
    takes several); raises `UnavailableError` after that.
    """
    timeout_s = _check_timeout(timeout_s)
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be str, not {type(endpoint).__name__}")
    if not endpoint.startswith(("ipc://", "tcp://")):
        raise InvalidArgumentError(f"endpoint must begin with ipc:// or tcp://, not {endpoint!r}")
    if (curve_server_key is None) != (curve_secret_key_file is None):
        raise InvalidArgumentError("curve_server_key and curve_secret_key_file belong together")
    curve = None
    if curve_server_key is not None and curve_secret_key_file is not None:
        curve = _load_curve(curve_server_key, os.fspath(curve_secret_key_file))
    return Client(Target(endpoint=endpoint, timeout_s=timeout_s, curve=curve))


def node_processes(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the processes of the node that owns ``directory``: role, pid, state, since (seconds since 1970), restarts.

    Raises `UnavailableError` when no node runs there.
    """
    path = real_directory(directory)
    try:
        node = running_node(path)
    except NotADirectoryError as error:
        raise StoreError(f"{path} is not a directory") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be used as a store: {error}") from error
    if node is None:
        raise UnavailableError(f"no node runs in {path}")
    context: zmq.Context[Any] = zmq.Context()
    channel = Channel(context, node.endpoints.control)
    try:
        body = channel.call("ps", encode(None), timeout_s=ROUND_TRIP_S).body
        return decode_body(body, list[dict[str, Any]])  # type: ignore[no-any-return]
    finally:
        channel.close()
        context.term()


def _check_timeout(timeout_s: float) -> float:
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise TypeError(f"timeout_s must be a number of seconds, not {type(timeout_s).__name__}")
    if not 0 <= timeout_s <= TIMEOUT_MAX_S:  # also refuses nan
        raise InvalidArgumentError(f"timeout_s must be between 0 and {TIMEOUT_MAX_S:.0f} seconds, not {timeout_s!r}")
    return timeout_s


def _load_curve(server_key: str | bytes, secret_key_file: str) -> Curve:
    from zmq.auth import load_certificate  # only where keys are used

    if not isinstance(server_key, str | bytes):
        raise TypeError(f"curve_server_key must be str or bytes, not {type(server_key).__name__}")
    try:
        text = server_key.decode() if isinstance(server_key, bytes) else server_key
        key = text.encode() if len(text) == 40 else load_certificate(text)[0]
        public, secret = load_certificate(secret_key_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load CURVE keys: {error}") from error
    if secret is None:
        raise ConfigError(f"{secret_key_file} holds no secret key")
    return Curve(key, public, secret)


class Client:
    """A store, local or remote. See the module for threads and forks, docs/protocol.md for the messages."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._closed = False
        self._connect_lock = threading.RLock()  # a signal handler may close the client while its thread connects
        self._live: Connections | None = None
        self._connections()
        _clients.add(self)

    def _connections(self) -> Connections:
        live = self._live
        if live is not None:
            return live
        with self._connect_lock:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._live is None:
                live = Connections(self._target)
                if self._closed_meanwhile():
                    live.close()
                    raise ClosedError("the client is closed")
                self._live = live
                # Straight to the reads, past this class: 0.04 of 0.45 us. A closed view raises by itself; a fork undoes it
                self.get = cast("Any", live.reads.get)  # type: ignore[method-assign]
            return self._live

    def _closed_meanwhile(self) -> bool:
        return self._closed

    def _reads(self) -> View | RemoteReads:
        return (self._live or self._connections()).reads

    def _value_bytes_max(self) -> int:
        return self._connections().max_value_size

    def _batch_bytes_max(self) -> int:
        return self._connections().max_batch_size

    # Reading

    def get(self, key: Text, default: Any = None) -> Any:
        """Return the value of ``key`` as bytes, or ``default`` when it is absent. Costs 0.5 us from memory."""
        live = self._live
        if live is None:
            live = self._connections()
        return live.reads.get(key, default)

    def get_many(self, keys: Iterable[Text]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None for those that are absent.

        A client of `open` reads them all at one moment. One of `connect` asks for many of them in parts (100,000 keys, 4 MiB of keys or
        16 MiB of values), each at a moment of its own; `snapshot().get_many` stays at one.
        """
        return self._reads().get_many(keys)

    def get_typed(self, key: Text) -> Typed | None:
        """Return the value of ``key`` with the content type it was put with (None: none), or None when it is absent."""
        return self._reads().get_typed(key)

    def content_types(self, keys: Iterable[Text]) -> list[str | None]:
        """Return the content types of ``keys`` in their order, None for those that have none; in parts, as `get_many`."""
        return self._reads().content_types(keys)

    def exists(self, key: Text) -> bool:
        """Say whether ``key`` has a value."""
        return self._reads().get(key) is not None

    def snapshot(self) -> Snapshot | RemoteSnapshot:
        """Return this moment of the store, with the same read calls. Close it when done; it keeps files and memory."""
        return self._reads().snapshot()

    def iterator(
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
    ) -> Iterator:
        """Return an iterator over the keys of a range (or with a ``prefix``) in order, as the store is now.

        Gives (key, value), or one of them, as ``include_*`` say. Arguments are plyvel's.
        """
        return self._reads().iterator(
            start,
            stop,
            include_start=include_start,
            include_stop=include_stop,
            prefix=prefix,
            reverse=reverse,
            include_key=include_key,
            include_value=include_value,
        )

    def __iter__(self) -> Any:
        """Iterate over all entries."""
        return iter(self.iterator())

    # Writing

    def put(
        self,
        key: Text,
        value: Text,
        *,
        sync: bool | None = None,
        content_type: str | None = None,
        expect: Expected | None = None,
    ) -> None:
        """Set the value of ``key``. ``sync`` True waits until it survives a power cut, False until it survives a crash of any process;
        None takes the node's ``durability``.

        ``content_type`` is kept with the value (see `get_typed`) until the key is written again or deleted. ``expect`` maps keys to
        what they must be for the write to be made, else `ConditionFailedError`: None for absent, or what `get_typed` gave.
        """
        name = check_key(key)
        entries: Batch = {name: check_value(name, value, self._value_bytes_max())}
        if content_type is None and expect is None:
            self._write(encode_batch(entries), sync)
        else:
            self._send_one(update_of(entries, {} if content_type is None else {name: content_type}, expect), sync)

    def put_many(self, entries: Puts, *, sync: bool | None = None) -> None:
        """Set several keys as one atomic batch (at most ``max_batch_size`` bytes)."""
        batch = make_batch(entries, self._value_bytes_max())
        if batch:
            self._write(encode_batch(batch), sync)

    def delete(self, key: Text, *, sync: bool | None = None, expect: Expected | None = None) -> None:
        """Remove ``key``; removing an absent key is no error. ``expect``: see `put`."""
        name = check_key(key)
        if expect is None:
            self._write(encode_batch({name: None}), sync)
        else:
            self._send_one(update_of({name: None}, {}, expect), sync)

    def increment(self, key: Text, by: int = 1, *, sync: bool | None = None) -> int:
        """Add ``by`` to the counter at ``key`` (absent: 0) and return its new value; atomic over all clients.

        A counter is decimal text of a signed 64-bit integer. Raises `NotACounterError` or `CounterOverflowError`.
        """
        return int(self._send_one(increment_of(key, by), sync))

    def sequence_next(self, name: bytes | str, *, sync: bool | None = None) -> int:
        """Return the next number of the sequence ``name``: 0, 1, 2 and so on, each exactly once over all clients and crashes.

        Sequences have names of their own: no key is read or written. Raises `OutcomeUnknownError` when the answer is lost
        (the number may be taken then).
        """
        return int(self._send_one(sequence_of(name, False), sync))

    def sequence_reset(self, name: bytes | str, *, sync: bool | None = None) -> None:
        """Let the sequence ``name`` begin at 0 again."""
        self._send_one(sequence_of(name, True), sync)

    def write_batch(self, *, sync: bool | None = None) -> WriteBatch:
        """Return an empty `WriteBatch`."""
        self._connections()
        return WriteBatch(self, sync=sync)

    def pipeline(self, *, sync: bool | None = None) -> Pipeline:
        """Return an empty `Pipeline`: many calls in one message, results in order."""
        self._connections()
        return Pipeline(self, sync=sync)

    def write(self, batch: WriteBatch, *, sync: bool | None = None, expect: Expected | None = None) -> None:
        """Write a batch: all of it or nothing. The batch keeps its entries. ``expect``: see `put`."""
        if not batch._entries:
            self._connections()  # a closed client says so
        else:
            sync = sync if sync is not None else batch._sync
            if batch._types or expect:
                self._send_one(update_of(batch._entries, batch._types, expect), sync)
            else:
                self._write(encode_batch(batch._entries), sync)

    def _write(self, payload: bytes, sync: bool | None) -> None:
        live = self._live
        if live is None:
            live = self._connections()
        if len(payload) > live.max_batch_size:
            raise InvalidArgumentError(f"the batch has {len(payload)} bytes, more than max_batch_size = {live.max_batch_size}")
        live.ask(live.writer, "write", payload, flags=_flags(sync), changes=True)

    def _send_one(self, write: Write, sync: bool | None) -> Any:
        """Send one write and return its result; raises the error it was answered with."""
        (message,) = messages_of([write], self._batch_bytes_max())
        (result,) = self._send(message, sync)
        if isinstance(result, Exception):
            raise result
        return result

    def _send(self, message: Message, sync: bool | None) -> list[Any]:
        """Send a message of writes and return their results, errors of single ones among them."""
        live = self._live or self._connections()
        answer = live.ask(live.writer, message.op, message.body(), flags=_flags(sync), changes=True, calls=len(message.calls))
        return message.results(answer.body)

    # Maintenance

    def flush(self) -> None:
        """Write what is in memory to an SST, and return when that is done. Durability does not need it."""
        live = self._connections()
        live.ask(live.writer, "flush", encode(None))

    def compact_range(self, start: Text | None = None, stop: Text | None = None) -> None:
        """Compact what is there now from ``start`` to ``stop`` (None: all) into one run of the last level, and return when that is done.

        Others may write meanwhile; what they write need not be compacted.
        """
        live = self._connections()
        bounds = [None if key is None else check_key(key) for key in (start, stop)]
        live.ask(live.writer, "compact", encode(bounds))

    def stats(self) -> dict[str, Any]:
        """Return the store's figures (bytes, counts, levels, stalls, damaged files), and this client's under ``client``."""
        live = self._connections()
        result = decode_body(live.ask(live.writer, "stats", encode(None)).body, dict[str, Any])
        own: dict[str, Any] = {"pid": os.getpid(), "local": live.view is not None}
        if live.view is not None:
            cache = live.view.cache
            own |= {"cache_bytes": cache.size_bytes, "cache_misses": cache.misses, "lag_bytes": live.view.lag_bytes()}
        result["client"] = own
        return result  # type: ignore[no-any-return]

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Let connections and files go. What was acknowledged is safe already. May be called twice."""
        with self._connect_lock:
            live, self._live = self._live, None
            self._closed = True
            self.__dict__.pop("get", None)
        if live is not None:
            live.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def _after_fork(self) -> None:
        """In the child: leave the parent's connections alone, and make own ones at the next call."""
        self._connect_lock = threading.RLock()
        if self._live is not None:
            _left_to_parent.append(self._live)  # closing them here would talk over the parent's sockets
            self._live = None
            self.__dict__.pop("get", None)


def _flags(sync: bool | None) -> int:
    return 0 if sync is None else FLAG_SYNC if sync else FLAG_NO_SYNC


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


def _close_all() -> None:
    for client in list(_clients):
        client.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
