"""What a client is connected to, and asking it: one context, a channel for every request under way, the local view.

Invariants: all of it belongs to one process (after a fork the child makes its own); every request has a channel to itself, which has
greeted the store that the client was opened on; at most `CHANNELS_MAX` requests are under way, and a thread beyond that waits its turn;
a socket is closed by the thread that uses it.

An exception may come out of any line, from a signal handler (Ctrl-C, a time limit), and a ``__del__`` may ask from within any
allocation. So no lock of Python's is held here: what threads share are queues and lists whose operations are one call of C code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import zmq

from keyva import attach
from keyva.channel import Answer, Channel, Curve
from keyva.errors import ClosedError, ConfigError, ProtocolError, SnapshotLostError, StoreError, UnavailableError
from keyva.options import Options
from keyva.protocol import decode_body, encode
from keyva.remote import RemoteReads
from keyva.view import View

__all__ = ["Connections", "Target"]

CHANNELS_MAX = 64
"""Requests of one client under way at the same time."""

OWN_SETTINGS = ("block_cache_size", "block_cache_idle_s", "allow_mmap_reads")
"""Settings of `keyva.open` that concern the client's own reading; all others are the node's."""

POSITION_OLD_S = 2.0
ATTACH_AGAIN_S = 0.2
CONNECTION_OLD_S = 0.1
"""No other store takes the place of ours in less."""


class Target:
    """What a client was made for, enough to connect again.

    With a directory and an endpoint it belongs to the node itself: it reads the files and writes to that endpoint, but is not
    attached, so it keeps no node alive and starts none.
    """

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

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.directory or self.endpoint


class Hello(msgspec.Struct):
    """What a writer says of itself, as far as a client wants to know it."""

    store_id: str
    options: dict[str, Any]
    readers: list[str]
    listen_readers: list[str]


class Greeting(msgspec.Struct):
    """What every server says of itself."""

    store_id: str


class Turns:
    """Bounds how many do something at the same time. An exception from a signal handler, wherever it strikes, loses no turn.

    >>> held = []
    >>> try:
    ...     turns.take(held, timeout_s)
    ... finally:
    ...     if held:
    ...         turns.give_back(None)
    """

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        self.count = count
        self.give_back = self._free.put  # C code: nothing comes in between
        for _ in range(count):
            self.give_back(None)

    def take(self, held: list[None], timeout_s: float) -> bool:
        """Put a turn into ``held``; returns False when there was none in time. Costs 0.5 us with giving it back."""
        get = partial(self._free.get, timeout_s > 0, max(0.0, timeout_s))
        try:
            held.extend(islice(iter(get, Empty), 1))  # got and kept in one call: nothing comes in between
        except Empty:
            return False
        return True

    def all_free(self) -> bool:
        """Say whether nobody has a turn now."""
        return self._free.qsize() == self.count


class Connections:
    """All that belongs to one process: context, channels, view, the lock that says we are attached."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._pid = os.getpid()
        self._context: list[zmq.Context[Any]] = [zmq.Context()]  # empty once it is closed
        self._free: dict[str, list[Channel]] = {}
        self._turns = Turns(CHANNELS_MAX)
        self._attaching = Turns(1)
        self.attachment: attach.Attachment | None = None
        self.view: View | None = None
        self._silence_at = 0.0
        self.closed = False
        self.store_id = ""
        self.position = 0
        self.answered_at = 0.0
        try:
            if target.directory and not target.endpoint:
                self.attachment = attach.attach(target.directory, target.settings, target.timeout_s)
                self.writer = self.attachment.node.endpoints.writer
            else:
                self.writer = target.endpoint
            hello = self._hello()
            options = Options.of(**hello.options)
            self.max_value_size, self.max_batch_size = options.max_value_size, options.max_batch_size
            self.reads: View | RemoteReads
            if target.directory:
                self._check_settings(options)
                own = {name: value for name, value in target.settings.items() if name in OWN_SETTINGS}
                self.view = self.reads = View(target.directory, options.replace(**own))
                self._check_store(self.writer, self.view.manifest.store_id.hex())
            else:
                self.reads = RemoteReads(self._ask_reader, self._readers(hello), target.timeout_s, self.max_batch_size // 2)
        except BaseException:
            self.close()
            raise

    def _hello(self) -> Hello:
        answer = self.ask(self.writer, "hello", encode(None))
        try:
            return decode_body(answer.body, Hello)  # type: ignore[no-any-return]
        except ProtocolError as error:
            raise ProtocolError(f"{self._target.name}: not a keyva node: {error}") from error

    def _check_settings(self, options: Options) -> None:
        for name, value in self._target.settings.items():
            if name not in OWN_SETTINGS and getattr(options, name) != value and name != "idle_stop_s":
                raise ConfigError(
                    f"the node that owns {self._target.directory} runs with {name} = {getattr(options, name)!r}, not {value!r}; "
                    "leave the setting out, or stop the node first"
                )

    def _readers(self, hello: Hello) -> list[str]:
        """The readers' endpoints as this client can reach them."""
        if self.writer.startswith("ipc://"):
            return hello.readers
        host = self.writer.rsplit(":", 1)[0]
        return [f"{host}:{endpoint.rsplit(':', 1)[-1]}" for endpoint in hello.listen_readers]

    def ask(
        self,
        endpoint: str,
        op: str,
        body: bytes,
        *,
        flags: int = 0,
        changes: bool = False,
        calls: int = 1,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send a request over a free channel and return its answer, all within ``timeout_s`` (None: the client's)."""
        if self._pid != os.getpid():
            raise SnapshotLostError("the process that opened this was forked; take a new one in the child")
        deadline = time.monotonic() + (self._target.timeout_s if timeout_s is None else timeout_s)
        turn: list[None] = []
        try:
            if not self._turns.take(turn, deadline - time.monotonic()):
                raise UnavailableError(f"{CHANNELS_MAX} requests are under way, and none was done in time; {op!r} was not sent")
            channel = self._take(endpoint)
            try:
                if time.monotonic() - channel.answered_at > CONNECTION_OLD_S:
                    channel.check_connection()
                if not channel.greeted and op != "ps":  # the control socket knows no greeting, and changes nothing
                    answer = self._greet(channel, deadline)
                    if op == "hello":
                        return answer
                answer = channel.call(
                    op,
                    body,
                    as_of=self._as_of(channel, deadline) if changes else 0,
                    timeout_s=deadline - time.monotonic(),
                    flags=flags,
                    changes=changes,
                    on_silence=partial(self._on_silence, deadline),
                    calls=calls,
                )
                self._note(channel, answer)
                return answer
            finally:
                self._give_back(channel)
        finally:
            if turn:
                self._turns.give_back(None)
            if self.closed:
                self._close_context()

    def _ask_reader(self, endpoint: str, op: str, body: bytes, timeout_s: float | None) -> bytes:
        return self.ask(endpoint, op, body, timeout_s=timeout_s).body

    def _greet(self, channel: Channel, deadline: float) -> Answer:
        """Make sure that whoever answers at the channel's endpoint now serves the store that this client was opened on."""
        on_silence = partial(self._on_silence, deadline)
        answer = channel.call("hello", encode(None), timeout_s=deadline - time.monotonic(), on_silence=on_silence)
        try:
            store_id: str = decode_body(answer.body, Greeting).store_id
        except ProtocolError as error:
            raise ProtocolError(f"{channel.endpoint}: not a keyva node: {error}") from error
        self._check_store(channel.endpoint, store_id)
        self.store_id = store_id
        channel.greeted = True
        self._note(channel, answer)
        return answer

    def _check_store(self, endpoint: str, store_id: str) -> None:
        if self.store_id not in ("", store_id):
            raise StoreError(
                f"{endpoint} serves store {store_id} now, not store {self.store_id} that this client was opened on; nothing was changed. "
                "The directory or the address has been given to another store: open it anew"
            )

    def _note(self, channel: Channel, answer: Answer) -> None:
        if channel.endpoint == self.writer:
            self.position = max(self.position, answer.position)
            self.answered_at = channel.answered_at

    def _as_of(self, channel: Channel, deadline: float) -> int:
        """The commit position before a change is sent, by which the writer knows whether it would remember having made it."""
        view = self.view
        if view is not None:
            return view.committed_position
        if time.monotonic() - self.answered_at > POSITION_OLD_S:
            self._greet(channel, deadline)
        return self.position

    def _take(self, endpoint: str) -> Channel:
        if self.closed:
            raise ClosedError("the client is closed")
        free = self._free.get(endpoint)
        if free:
            try:
                return free.pop()
            except IndexError:
                pass  # another thread was first
        return Channel(self._context[0], endpoint, self._target.curve if endpoint.startswith("tcp://") else None)

    def _give_back(self, channel: Channel) -> None:
        if channel.broken or self.closed:
            channel.close()
            return
        self._free.setdefault(channel.endpoint, []).append(channel)
        if self._is_closed():  # meanwhile
            self._close_free()

    def _on_silence(self, deadline: float) -> str | None:
        """Called while a request waits: a client that started its node starts it again when it has died. Returns where the writer is."""
        if self.closed:
            raise ClosedError("the client was closed while a request was under way")
        if self.attachment is None:
            return None
        if time.monotonic() >= self._silence_at:
            turn: list[None] = []
            try:
                if self._attaching.take(turn, 0):  # else another thread is at it
                    self._attach_again(deadline)
            finally:
                if turn:
                    self._attaching.give_back(None)
        return self.writer

    def _attach_again(self, deadline: float) -> None:
        self._silence_at = time.monotonic() + ATTACH_AGAIN_S
        old = self.attachment
        assert old is not None
        if attach.is_running(self._target.directory, old.node):
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0:  # the request goes on, for the server had said that it takes longer
            left_s = self._target.timeout_s
        new = attach.attach(self._target.directory, self._target.settings, left_s)
        self.attachment = new
        old.lock.release()
        if self._is_closed():  # meanwhile
            new.lock.release()
        if new.node.endpoints.writer != self.writer:  # sockets of a directory with a long path may have moved
            place, self.writer = self.writer, new.node.endpoints.writer
            for channel in _taken_from(self._free.pop(place, [])):
                channel.close()

    def _is_closed(self) -> bool:
        return self.closed

    def close(self) -> None:
        """Close all of it; requests under way in other threads raise `ClosedError`, and the last of them closes the context."""
        self.closed = True
        self._close_free()
        if self.view is not None:
            self.view.close()
        if self.attachment is not None:
            self.attachment.lock.release()
        self._close_context()

    def _close_free(self) -> None:
        for free in list(self._free.values()):
            for channel in _taken_from(free):
                channel.close()

    def _close_context(self) -> None:
        """Close the context when nobody is in a request any more; ZeroMQ forbids to close a socket that another thread uses."""
        if self._turns.all_free():
            self._close_free()
            for context in _taken_from(self._context):
                context.destroy(linger=0)


def _taken_from(items: list[Any]) -> Iterator[Any]:
    """Yield what can be taken out of a list that other threads take from too."""
    while items:
        try:
            yield items.pop()
        except IndexError:
            return
