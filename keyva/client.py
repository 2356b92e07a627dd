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
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import zmq

from keyva import attach
from keyva.batch import Batch, check_key, check_value, encode_batch, make_batch
from keyva.channel import Answer, Channel, Curve
from keyva.endpoints import running_node
from keyva.errors import ClosedError, ConfigError, CounterOverflowError, InvalidArgumentError, ProtocolError, UnavailableError
from keyva.iterator import Iterator
from keyva.options import Options
from keyva.protocol import FLAG_NO_SYNC, FLAG_SYNC, decode_body, encode
from keyva.remote import RemoteReads, RemoteSnapshot
from keyva.view import Snapshot, View

__all__ = ["Client", "WriteBatch", "connect", "node_processes", "open_directory"]

CHANNELS_MAX = 64
"""Requests of one client under way at the same time; a thread beyond that waits its turn."""

OWN_SETTINGS = ("block_cache_size", "block_cache_idle_s", "allow_mmap_reads")
"""Settings of `keyva.open` that concern the client's own reading; all others are the node's."""

POSITION_OLD_S = 2.0
ROUND_TRIP_S = 15.0

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_left_to_parent: list[_Connections] = []


def open_directory(directory: str | os.PathLike[str], *, timeout_s: float = 30.0, **settings: Any) -> Client:
    """Open the store in ``directory``: attach to the node that owns it, or start one in the background.

    A node started here stops by itself some seconds after its last client has gone. ``settings`` are those of `keyva.Options`; a
    running node must agree with them, or `ConfigError` is raised. ``timeout_s`` limits each call. Raises the error of a node that
    cannot start (`StoreError` and its kin), `UnavailableError` when none is ready in time.
    """
    Options.of(**settings)
    return Client(_Target(directory=os.path.abspath(os.fspath(directory)), settings=settings, timeout_s=timeout_s))


def connect(
    endpoint: str,
    *,
    timeout_s: float = 30.0,
    curve_server_key: str | bytes | None = None,
    curve_secret_key_file: str | os.PathLike[str] | None = None,
) -> Client:
    """Connect to the node at ``endpoint`` (``ipc://PATH`` or ``tcp://HOST:PORT``); reads are asked of its readers.

    The keys are for a node that demands them: the server's public key (40 characters of Z85, or a certificate file) and this
    client's certificate file with its secret key, as `keyva keygen` makes them. Raises `UnavailableError` after ``timeout_s``.
    """
    if not endpoint.startswith(("ipc://", "tcp://")):
        raise InvalidArgumentError(f"endpoint must begin with ipc:// or tcp://, not {endpoint!r}")
    if (curve_server_key is None) != (curve_secret_key_file is None):
        raise InvalidArgumentError("curve_server_key and curve_secret_key_file belong together")
    curve = None
    if curve_server_key is not None and curve_secret_key_file is not None:
        curve = _load_curve(curve_server_key, os.fspath(curve_secret_key_file))
    return Client(_Target(endpoint=endpoint, timeout_s=timeout_s, curve=curve))


def node_processes(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the processes of the node that owns ``directory``: role, pid, state, since (seconds since 1970), restarts.

    Raises `UnavailableError` when no node runs there.
    """
    node = running_node(os.fspath(directory))
    if node is None:
        raise UnavailableError(f"no node runs in {os.fspath(directory)}")
    context: zmq.Context[Any] = zmq.Context()
    channel = Channel(context, node.endpoints.control)
    try:
        body = channel.call("ps", encode(None), timeout_s=ROUND_TRIP_S).body
        return decode_body(body, list[dict[str, Any]])  # type: ignore[no-any-return]
    finally:
        channel.close()
        context.term()


def _load_curve(server_key: str | bytes, secret_key_file: str) -> Curve:
    from zmq.auth import load_certificate  # only where keys are used

    try:
        text = server_key.decode() if isinstance(server_key, bytes) else server_key
        key = text.encode() if len(text) == 40 else load_certificate(text)[0]
        public, secret = load_certificate(secret_key_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load CURVE keys: {error}") from error
    if secret is None:
        raise ConfigError(f"{secret_key_file} holds no secret key")
    return Curve(key, public, secret)


class _Target:
    """What a client was made for, enough to connect again."""

    def __init__(
        self,
        *,
        directory: str = "",
        endpoint: str = "",
        settings: dict[str, Any] | None = None,
        timeout_s: float,
        curve: Curve | None = None,
    ) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self.settings = settings or {}
        self.timeout_s = timeout_s
        self.curve = curve


class _Connections:
    """All that belongs to one process: context, channels, view, the lock that says we are attached."""

    def __init__(self, target: _Target) -> None:
        self._target = target
        self.context: zmq.Context[Any] = zmq.Context()
        self._free: dict[str, list[Channel]] = {}
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(CHANNELS_MAX)
        self._attach_lock = threading.Lock()
        self.attachment: attach.Attachment | None = None
        self.view: View | None = None
        self._silence_at = 0.0
        self.closed = False
        self.position = 0
        self.answered_at = 0.0
        try:
            if target.directory:
                self.attachment = attach.attach(target.directory, target.settings, target.timeout_s)
                self.writer = self.attachment.node.endpoints.writer
            else:
                self.writer = target.endpoint
            self.hello = decode_body(self.ask(self.writer, "hello", encode(None)).body, dict[str, Any])
            options = Options.of(**self.hello["options"])
            self.max_value_size, self.max_batch_size = options.max_value_size, options.max_batch_size
            self.reads: View | RemoteReads
            if target.directory:
                self._check_settings(options)
                own = {name: value for name, value in target.settings.items() if name in OWN_SETTINGS}
                self.view = self.reads = View(target.directory, options.replace(**own))
            else:
                self.reads = RemoteReads(lambda endpoint, op, body: self.ask(endpoint, op, body).body, self._readers())
        except BaseException as error:
            self.close()
            if isinstance(error, KeyError | TypeError):
                raise ProtocolError(f"{self._target.endpoint or self._target.directory}: not a keyva node: {error!r}") from error
            raise

    def _check_settings(self, options: Options) -> None:
        for name, value in self._target.settings.items():
            if name not in OWN_SETTINGS and getattr(options, name) != value and name != "idle_stop_s":
                raise ConfigError(
                    f"the node that owns {self._target.directory} runs with {name} = {getattr(options, name)!r}, not {value!r}; "
                    "leave the setting out, or stop the node first"
                )

    def _readers(self) -> list[str]:
        """The readers' endpoints as this client can reach them."""
        if self.writer.startswith("ipc://"):
            return [str(endpoint) for endpoint in self.hello["readers"]]
        host = self.writer.rsplit(":", 1)[0]
        return [f"{host}:{str(endpoint).rsplit(':', 1)[1]}" for endpoint in self.hello["listen_readers"]]

    def ask(self, endpoint: str, op: str, body: bytes, *, flags: int = 0, changes: bool = False) -> Answer:
        """Send a request over a free channel and return its answer."""
        with self._turns:
            channel = self._take(endpoint)
            try:
                as_of = self._as_of(channel) if changes else 0
                answer = channel.call(
                    op,
                    body,
                    timeout_s=self._target.timeout_s,
                    flags=flags,
                    as_of=as_of,
                    changes=changes,
                    on_silence=self._on_silence,
                )
            finally:
                self._give_back(channel)
            if endpoint == self.writer:
                self.position = max(self.position, answer.position)
                self.answered_at = channel.answered_at
            return answer

    def _as_of(self, channel: Channel) -> int:
        """The commit position before a change is sent, by which the writer knows whether it would remember having made it."""
        view = self.view
        if view is not None:
            return view.committed_position
        if time.monotonic() - self.answered_at > POSITION_OLD_S:
            answer = channel.call("hello", encode(None), timeout_s=self._target.timeout_s)
            self.position = max(self.position, answer.position)
        return self.position

    def _take(self, endpoint: str) -> Channel:
        with self._lock:
            if self.closed:
                raise ClosedError("the client is closed")
            free = self._free.setdefault(endpoint, [])
            if free:
                return free.pop()
        return Channel(self.context, endpoint, self._target.curve if endpoint.startswith("tcp://") else None)

    def _give_back(self, channel: Channel) -> None:
        with self._lock:
            if not channel.broken and not self.closed:
                self._free[channel.endpoint].append(channel)
                return
        channel.close()

    def _on_silence(self) -> None:
        """Called while a request waits: a client that started its node starts it again when it has died."""
        if self.closed:
            raise ClosedError("the client was closed while a request was under way")
        now = time.monotonic()
        if self.attachment is None or now < self._silence_at:
            return
        with self._attach_lock:
            self._silence_at = now + 0.2
            old = self.attachment
            if attach.is_running(self._target.directory, old.node):
                return
            self.attachment = attach.attach(self._target.directory, self._target.settings, self._target.timeout_s)
            old.lock.release()
            if self.attachment.node.endpoints.writer != self.writer:
                # sockets of a directory with a long path have moved; requests under way go on to be asked at the old place in vain
                self.writer = self.attachment.node.endpoints.writer

    def close(self) -> None:
        with self._lock:
            self.closed = True
            channels = [channel for free in self._free.values() for channel in free]
            self._free = {}
        for channel in channels:
            channel.close()
        if self.view is not None:
            self.view.close()
        if self.attachment is not None:
            self.attachment.lock.release()
        self.context.destroy(linger=0)


class WriteBatch:
    """Collects puts and deletes, written as one: all of them or none. A later entry of a key replaces an earlier one.

    As a context manager it is written at the end of the block, and dropped when the block raises.

    >>> with db.write_batch() as batch:          # doctest: +SKIP
    ...     batch.put(b"a", b"1")
    ...     batch.delete(b"b")
    """

    def __init__(self, client: Client, *, sync: bool | None = None) -> None:
        self._client = client
        self._sync = sync
        self._entries: Batch = {}

    def put(self, key: bytes | str, value: bytes | str) -> None:
        """Add a put; arguments are checked now."""
        key = check_key(key)
        self._entries[key] = check_value(key, value, self._client._value_bytes_max())

    def delete(self, key: bytes | str) -> None:
        """Add a delete."""
        self._entries[check_key(key)] = None

    def append(self, other: WriteBatch) -> None:
        """Add all entries of another batch."""
        self._entries.update(other._entries)

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()

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


class Client:
    """A store, local or remote. See the module for threads and forks, docs/protocol.md for the messages."""

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._closed = False
        self._connect_lock = threading.Lock()
        self._live: _Connections | None = None
        self._connections()
        _clients.add(self)

    def _connections(self) -> _Connections:
        live = self._live
        if live is not None:
            return live
        with self._connect_lock:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._live is None:
                self._live = live = _Connections(self._target)
                # Straight to the reads, past this class: 0.04 of 0.45 us. A closed view raises by itself; a fork undoes it
                self.get = live.reads.get  # type: ignore[method-assign]
            return self._live

    def _reads(self) -> View | RemoteReads:
        return (self._live or self._connections()).reads

    def _value_bytes_max(self) -> int:
        return self._connections().max_value_size

    # Reading

    def get(self, key: bytes | str, default: Any = None) -> Any:
        """Return the value of ``key`` as bytes, or ``default`` when it is absent. Costs 0.5 us from memory."""
        live = self._live
        if live is None:
            live = self._connections()
        return live.reads.get(key, default)

    def get_many(self, keys: Sequence[bytes | str]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None for those that are absent."""
        if isinstance(keys, bytes | str):
            raise TypeError("get_many takes a sequence of keys, not one key")
        return self._reads().get_many(list(keys))

    def exists(self, key: bytes | str) -> bool:
        """Say whether ``key`` has a value."""
        return self._reads().get(key) is not None

    def snapshot(self) -> Snapshot | RemoteSnapshot:
        """Return this moment of the store, with the same read calls. Close it when done; it keeps files and memory."""
        return self._reads().snapshot()

    def iterator(
        self,
        start: bytes | str | None = None,
        stop: bytes | str | None = None,
        *,
        include_start: bool = True,
        include_stop: bool = False,
        prefix: bytes | str | None = None,
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

    def put(self, key: bytes | str, value: bytes | str, *, sync: bool | None = None) -> None:
        """Set the value of ``key``. ``sync`` True waits until it survives a power cut, False until it survives a crash of any process;
        None takes the node's ``durability``."""
        key = check_key(key)
        self._write(encode_batch({key: check_value(key, value, self._value_bytes_max())}), sync)

    def put_many(
        self, entries: Mapping[bytes, bytes] | Mapping[str, str] | Iterable[tuple[bytes | str, bytes | str]], *, sync: bool | None = None
    ) -> None:
        """Set several keys as one atomic batch (at most ``max_batch_size`` bytes)."""
        batch = make_batch(entries, self._value_bytes_max())
        if batch:
            self._write(encode_batch(batch), sync)

    def delete(self, key: bytes | str, *, sync: bool | None = None) -> None:
        """Remove ``key``; removing an absent key is no error."""
        self._write(encode_batch({check_key(key): None}), sync)

    def increment(self, key: bytes | str, by: int = 1, *, sync: bool | None = None) -> int:
        """Add ``by`` to the counter at ``key`` (absent: 0) and return its new value; atomic over all clients.

        A counter is decimal text of a signed 64-bit integer. Raises `NotACounterError` or `CounterOverflowError`.
        """
        key = check_key(key)
        if isinstance(by, bool) or not isinstance(by, int):
            raise TypeError(f"increment takes a whole number, not {type(by).__name__}")
        if not -(2**63) <= by < 2**63:
            raise CounterOverflowError(f"increment by {by} is outside of 64 bits")
        live = self._connections()
        answer = live.ask(live.writer, "increment", encode([key, by]), flags=_flags(sync), changes=True)
        return int(decode_body(answer.body, tuple[int, int])[1])

    def write_batch(self, *, sync: bool | None = None) -> WriteBatch:
        """Return an empty `WriteBatch`."""
        self._connections()
        return WriteBatch(self, sync=sync)

    def write(self, batch: WriteBatch, *, sync: bool | None = None) -> None:
        """Write a batch: all of it or nothing. The batch keeps its entries."""
        if batch._entries:
            self._write(encode_batch(batch._entries), sync if sync is not None else batch._sync)

    def _write(self, payload: bytes, sync: bool | None) -> None:
        live = self._live
        if live is None:
            live = self._connections()
        if len(payload) > live.max_batch_size:
            raise InvalidArgumentError(f"the batch has {len(payload)} bytes, more than max_batch_size = {live.max_batch_size}")
        live.ask(live.writer, "write", payload, flags=_flags(sync), changes=True)

    # Maintenance

    def flush(self) -> None:
        """Write what is in memory to an SST, and return when that is done. Durability does not need it."""
        live = self._connections()
        live.ask(live.writer, "flush", encode(None))

    def compact_range(self, start: bytes | str | None = None, stop: bytes | str | None = None) -> None:
        """Compact the keys from ``start`` to ``stop`` (None: all) into one run, and return when that is done."""
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
        self._connect_lock = threading.Lock()
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
