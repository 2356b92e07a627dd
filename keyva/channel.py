"""One connection to one server process: a request at a time, answers matched by number, repeats when the answer stays away.

Invariants: a channel is used by one thread at a time and has one request outstanding, so its request number is also the floor; a repeat
has the number of its original; a channel whose request ended in any other way than by its answer (given up, or an exception out of the
middle, as Ctrl-C raises) is ``broken``: closed, never used again; nothing waits without a limit.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import zmq

from keyva.errors import (
    ClosedError,
    ConfigError,
    InvalidArgumentError,
    KeyvaError,
    OutcomeUnknownError,
    ProtocolError,
    UnavailableError,
)
from keyva.protocol import ERROR, FLAG_REPEATED, OK, PROTOCOL_VERSION, WAIT, Request, decode_body, decode_error, decode_response, encode

__all__ = ["Answer", "Channel", "Curve"]

_EVENT = struct.Struct("=H")
_QUICK_MS = 50
_RESEND_FIRST_S = 0.5
_RESEND_MAX_S = 4.0
_WAIT_EXTENDS_S = 5.0
_WAIT_TOTAL_S = 3600.0
_CURVE_OPTIONS = (zmq.CURVE_SERVERKEY, zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY)
_CURVE_NAMES = ("server's public key", "client's public key", "client's secret key")
_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class Curve(NamedTuple):
    """Keys for an encrypted connection: the server's public key and the client's pair, all Z85 text as bytes."""

    server_key: bytes
    public_key: bytes
    secret_key: bytes


class Answer(NamedTuple):
    """An answer's body, still encoded, and the commit position that came with it."""

    body: bytes
    position: int


class Channel:
    """A DEALER connected to ``endpoint``. ``greeted`` says whether its user knows who answers there now; lost with the connection.

    Raises `InvalidArgumentError` or `ConfigError` for an endpoint or keys that cannot be.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: str, curve: Curve | None = None) -> None:
        self.endpoint = endpoint
        self.client = int.from_bytes(os.urandom(8), "little") | 1
        self.broken = False
        self.greeted = False
        self.position = 0
        self.answered_at = 0.0
        self._number = 0
        self._pid = os.getpid()
        try:
            self._socket = context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise UnavailableError(f"no socket for {endpoint}: {zmq.strerror(error.errno or 0)}") from error
        try:
            self._set_up(curve)
        except BaseException:
            self.close()
            raise

    def _set_up(self, curve: Curve | None) -> None:
        endpoint = self.endpoint
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 16)
        self._socket.setsockopt(zmq.RCVHWM, 64)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if endpoint.startswith("tcp://"):
            self._socket.setsockopt(zmq.IPV6, 1 if "[" in endpoint else 0)
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
        if curve is not None:
            for option, key, what in zip(_CURVE_OPTIONS, curve, _CURVE_NAMES, strict=True):
                try:
                    self._socket.setsockopt(option, key)
                except (zmq.ZMQError, ValueError) as error:
                    shown = "" if option == zmq.CURVE_SECRETKEY else f" {key!r}"
                    raise ConfigError(f"the {what}{shown} is not a CURVE key (40 characters of Z85)") from error
        # pyzmq's get_monitor_socket names it after the socket's descriptor, which may still be taken by a channel that was just dropped
        place = f"inproc://keyva-{self.client:x}"
        self._socket.monitor(place, _EVENTS)
        self._monitor = self._socket.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(place)
        self._connect(endpoint)

    def _connect(self, endpoint: str) -> None:
        try:
            self._socket.connect(endpoint)
        except (zmq.ZMQError, UnicodeError) as error:
            reason = zmq.strerror(error.errno or 0) if isinstance(error, zmq.ZMQError) else "not valid UTF-8"
            raise InvalidArgumentError(f"cannot connect to {endpoint!r}: {reason}") from error

    def _move(self, endpoint: str) -> None:
        """Connect to the same server at another place; what was in flight is gone."""
        self._socket.disconnect(self.endpoint)
        self._connect(endpoint)
        self.endpoint = endpoint
        self._lost = False

    def call(
        self,
        op: str,
        body: bytes,
        *,
        timeout_s: float,
        flags: int = 0,
        as_of: int = 0,
        changes: bool = False,
        on_silence: Callable[[], str | None] = lambda: None,
        calls: int = 1,
    ) -> Answer:
        """Send a request and return its answer; raises the error that was answered.

        Without an answer it is sent again: at once when the connection was lost and is back, else after 0.5, 1, 2, 4 s. After
        ``timeout_s`` (a server that says it is waiting extends that) raises `UnavailableError`, or `OutcomeUnknownError` when the
        request ``changes`` something. ``on_silence`` is called while
        there is no answer, at most every 50 ms; it may bring the server back, return the endpoint where it is now, or raise when nobody
        will ever answer. ``calls`` is how many request numbers it takes (a pipeline takes one per call).
        """
        self.broken = True  # until the answer is here
        number = self._number + 1
        self._number += calls
        header = Request(PROTOCOL_VERSION, op, self.client, number, number, as_of, flags)
        deadline = started = time.monotonic()
        deadline += timeout_s
        self._send(header, body)
        poll = self._socket.poll
        resend_s, resend_at, reason = _RESEND_FIRST_S, started + _RESEND_FIRST_S, ""
        wait_ms = _QUICK_MS
        while True:
            if poll(wait_ms):
                response, frame = self._receive()
                if response is None or response.request != number:
                    continue  # of a request that an earlier try sent twice
                self.position = max(self.position, response.position)
                self.answered_at = time.monotonic()
                if response.status == OK:
                    self.broken = False
                    return Answer(frame, response.position)
                if response.status == ERROR:
                    error = decode_error(frame)
                    self.broken = bool(header.flags & FLAG_REPEATED)  # a repeat that has not left yet must not be done after all
                    raise error
                if response.status == WAIT:
                    reason = str(decode_body(frame))[:500]
                    now = time.monotonic()
                    deadline = min(max(deadline, now + _WAIT_EXTENDS_S), started + _WAIT_TOTAL_S)
                    resend_at = now + _RESEND_MAX_S
                continue
            now = time.monotonic()
            if now >= deadline:
                raise self._gave_up(op, now - started, reason, changes)
            try:
                place = on_silence()
            except Exception as error:
                if changes and isinstance(error, KeyvaError) and not isinstance(error, ClosedError):
                    raise OutcomeUnknownError(f"{error}; the change may or may not have been made") from error
                raise
            now = time.monotonic()
            back = self._connection_is_back()
            if place is not None and place != self.endpoint:
                self._move(place)
                back = True
            if back or now >= resend_at:
                header.flags |= FLAG_REPEATED
                self._send(header, body)
                if not back:
                    resend_s = min(2 * resend_s, _RESEND_MAX_S)
                resend_at = now + resend_s

    def _send(self, header: Request, body: bytes) -> None:
        try:
            self._socket.send_multipart([encode(header), body], zmq.NOBLOCK, copy=len(body) < 65536)
        except zmq.Again:
            pass  # not connected, and the queue is full of earlier tries

    def _receive(self) -> tuple[Any, bytes]:
        frames = self._socket.recv_multipart()
        if len(frames) != 2:
            raise ProtocolError(f"{self.endpoint} answered with {len(frames)} frames, not 2")
        return decode_response(frames[0]), frames[1]

    def check_connection(self) -> None:
        """Notice whether the connection was lost since it was last used: then it is to be greeted again. Costs 2 us."""
        self._connection_is_back()

    def _connection_is_back(self) -> bool:
        """Say whether the connection was lost and made anew since the last look: what was in flight is gone then."""
        back = False
        while self._monitor.poll(0):
            # a 16-bit event and a 32-bit value, then the endpoint (zmq_socket_monitor(3)); zmq.utils.monitor would load asyncio
            (event,) = _EVENT.unpack_from(self._monitor.recv_multipart()[0])
            if event == zmq.EVENT_DISCONNECTED:
                self._lost = True
                self.greeted = False
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._lost:
                back, self._lost = True, False
        return back

    _lost = False

    def _gave_up(self, op: str, waited_s: float, reason: str, changes: bool) -> Exception:
        text = f"{self.endpoint} did not answer {op!r} in {waited_s:.1f} s{f' (it last said: {reason})' if reason else ''}"
        if changes:
            return OutcomeUnknownError(f"{text}; the change may or may not have been made")
        return UnavailableError(text)

    def close(self) -> None:
        """Close the connection; what was not sent is dropped. May be called twice."""
        self.broken = True
        if os.getpid() != self._pid or self._socket.closed:
            return  # a fork's child must not talk over what is its parent's
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._socket.close(0)

    _monitor: Any = None
    _socket: Any = None

    def __del__(self) -> None:
        if self._socket is not None:  # dropped by an exception out of the middle
            self.close()
