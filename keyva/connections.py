"""What a client is connected to, and asking it: one context, a channel for every request under way, the local view.

Invariants: all of it belongs to one process (after a fork the child makes its own); every request has a channel to itself; at most
`CHANNELS_MAX` requests are under way, and a thread beyond that waits its turn.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import zmq

from keyva import attach
from keyva.channel import Answer, Channel, Curve
from keyva.errors import ClosedError, ConfigError, ProtocolError
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


class Connections:
    """All that belongs to one process: context, channels, view, the lock that says we are attached."""

    def __init__(self, target: Target) -> None:
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
            if target.directory and not target.endpoint:
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

    def ask(self, endpoint: str, op: str, body: bytes, *, flags: int = 0, changes: bool = False, calls: int = 1) -> Answer:
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
                    calls=calls,
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
        """Close all of it; requests under way in other threads raise `ClosedError`."""
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
