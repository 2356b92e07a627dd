"""What every worker process does: signals, signs of life to the node, bounded receiving, and ending with its node.

Invariants: a worker that loses its node exits at once, whatever its loop is doing (a thread waits for the node's end); signs of life
come from the loop itself, so a loop that hangs is noticed; nothing is received without a limit on size and count.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

import msgspec
import zmq

from keyva.endpoints import Endpoints
from keyva.errors import NoSpaceError, ProtocolError
from keyva.files import translate
from keyva.options import Options
from keyva.protocol import ERROR, OK, PROTOCOL_VERSION, Request, Response, decode_request, encode, error_body

__all__ = ["Message", "Server", "Spec", "Worker", "set_up_logging"]

log = logging.getLogger("keyva.worker")

FRAME_SLACK_BYTES = 64 * 1024
EXIT_PERMANENT = 3
"""Exit code of a worker that failed in a way which a restart cannot mend."""

_PR_SET_PDEATHSIG = 1


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the node tells a worker at its start."""

    role: str
    directory: str
    options: Options
    endpoints: Endpoints
    number: int = 0


class Message(NamedTuple):
    """One request as it came in. ``at`` is when, on the monotonic clock."""

    server: Server
    peer: bytes
    request: Request
    body: bytes
    at: float


class Worker:
    """One worker process: its context, its control connection, its stop flag."""

    def __init__(self, spec: Spec, listener: socket.socket | None = None) -> None:
        self.spec = spec
        self.listener = listener
        self.stopping = False
        self._wake_read, wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._wake_write = wake_write
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the node decides what stops when
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the node has started this process with it blocked
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self.context = zmq.Context(io_threads=1)
        self.control = self.context.socket(zmq.DEALER)
        self.control.setsockopt(zmq.IDENTITY, f"{spec.role}-{spec.number}-{os.getpid()}".encode())
        self.control.setsockopt(zmq.LINGER, 200)
        self.control.setsockopt(zmq.SNDHWM, 100)
        self.control.connect(spec.endpoints.control)
        self.poller = zmq.Poller()
        self.poller.register(self._wake_read.fileno(), zmq.POLLIN)
        self._beat_at = 0.0
        self._requests = 0

    def _on_signal(self, *_: object) -> None:
        self.stopping = True

    def tell(self, op: str, body: object = None) -> None:
        """Send the node a message; dropped when the node does not listen."""
        self._requests += 1
        header = Request(PROTOCOL_VERSION, op, 0, self._requests)
        try:
            self.control.send_multipart([encode(header), encode([self.spec.role, self.spec.number, os.getpid(), body])], zmq.NOBLOCK)
        except zmq.Again:
            log.warning("the node takes no messages")

    def beat(self, state: str = "running") -> None:
        """Show life, at most once per interval; called by the loop and by long work's progress."""
        now = time.monotonic()
        if now - self._beat_at >= self.spec.options.heartbeat_interval_s:
            self._beat_at = now
            self.tell("beat", state)

    def poll(self, timeout_s: float) -> dict[Any, int]:
        """Wait for sockets, a signal, or the time; never longer than the heartbeat interval."""
        timeout_s = max(0.0, min(timeout_s, self.spec.options.heartbeat_interval_s))
        events = dict(self.poller.poll(math.ceil(timeout_s * 1000)))
        if self._wake_read.fileno() in events:
            try:
                self._wake_read.recv(1024)
            except BlockingIOError:
                pass
        return events

    def close(self) -> None:
        """Close the control connection and the context."""
        self.control.close()
        self.context.destroy(linger=200)


class Server:
    """A ROUTER that receives within limits and answers without ever blocking."""

    def __init__(self, worker: Worker, endpoints: list[str], *, frame_bytes_max: int, curve: bool = False) -> None:
        self.socket = worker.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # High-water marks count messages, not bytes: a low one bounds what a peer can make us hold
        self.socket.setsockopt(zmq.RCVHWM, 128)
        self.socket.setsockopt(zmq.SNDHWM, 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max + FRAME_SLACK_BYTES)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
        self._worker = worker
        self._logged_at = 0.0
        self.malformed = 0
        self.dropped_answers = 0
        for endpoint in endpoints:
            bind(self.socket, endpoint, worker, curve=curve and endpoint.startswith("tcp://"))

    def receive(self) -> Message | None:
        """Take one request; None when there is none now. Malformed ones are dropped, counted and logged (once a second at most)."""
        while True:
            try:
                peer = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            frames: list[bytes] = []
            too_many = False
            while self.socket.getsockopt(zmq.RCVMORE):
                frame = self.socket.recv()
                too_many = too_many or len(frames) == 2
                if not too_many:
                    frames.append(frame)
            try:
                if too_many or len(frames) != 2:
                    raise ProtocolError(f"message of {'more than 2' if too_many else len(frames)} frames, not 2")
                request = decode_request(frames[0])
            except ProtocolError as error:
                self._note_malformed(peer, error)
                continue
            if request.version != PROTOCOL_VERSION:
                self.answer_error(
                    peer, request.request, ProtocolError(f"protocol version {request.version} is not spoken here, only {PROTOCOL_VERSION}")
                )
                continue
            return Message(self, peer, request, frames[1], time.monotonic())

    def _note_malformed(self, peer: bytes, error: ProtocolError) -> None:
        self.malformed += 1
        now = time.monotonic()
        if now - self._logged_at >= 1.0:
            self._logged_at = now
            log.warning("dropped a malformed message from peer %s (%d so far): %s", peer.hex(), self.malformed, error)

    def answer(self, peer: bytes, request: int, body: bytes, position: int = 0, status: int = OK) -> None:
        """Send an answer; dropped when the peer has gone or does not read (it can ask again)."""
        try:
            self.socket.send_multipart([peer, encode(Response(PROTOCOL_VERSION, request, status, position)), body], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.dropped_answers += 1

    def answer_error(self, peer: bytes, request: int, error: BaseException, position: int = 0) -> None:
        """Answer with an error."""
        self.answer(peer, request, error_body(error), position, ERROR)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def bind(sock: zmq.Socket[bytes], endpoint: str, worker: Worker, *, curve: bool) -> None:
    """Bind ``sock``; a tcp endpoint with CURVE lets in only clients whose public key is in the directory of allowed ones."""
    options = worker.spec.options
    if endpoint.startswith("ipc://"):
        old = os.umask(0o177)
        try:
            sock.bind(endpoint)
        finally:
            os.umask(old)
        return
    if curve:
        from zmq.auth import load_certificate  # only where CURVE is used
        from zmq.auth.thread import ThreadAuthenticator

        public, secret = load_certificate(options.curve_server_key_file)
        if secret is None:
            raise ProtocolError(f"{options.curve_server_key_file} holds no secret key")
        authenticator = ThreadAuthenticator(worker.context, log=logging.getLogger("keyva.auth"))
        authenticator.start()
        # Without a ZAP domain libzmq would let in whoever knows the public key
        authenticator.configure_curve(domain="keyva", location=options.curve_client_keys_dir)
        sock.setsockopt(zmq.ZAP_DOMAIN, b"keyva")
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, secret)
    sock.setsockopt(zmq.IPV6, 1 if "[" in endpoint else 0)
    sock.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
    sock.bind(endpoint)


def set_up_logging(role: str, level: str) -> None:
    """Log to standard error, with time, process and role."""
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s %(process)d {role}: %(levelname)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )


def end_with_parent() -> None:
    """Make this process die when its node does, even when its loop is busy or its node is killed with -9."""
    from multiprocess import parent_process
    from multiprocess.connection import wait

    parent = parent_process()
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        except (OSError, AttributeError):
            pass  # the thread below does it too, only a little later
    if parent is None:
        return

    def watch() -> NoReturn:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="keyva-parent", daemon=True).start()
    if os.getppid() == 1:
        os._exit(1)


def run_worker(spec_bytes: bytes, listener: socket.socket | None = None) -> None:
    """Is the entry of every worker process: the node starts it by spawn with an encoded `Spec`, and the web worker with its socket."""
    spec = msgspec.msgpack.decode(spec_bytes, type=Spec)
    end_with_parent()
    set_up_logging(spec.role if spec.role != "reader" else f"reader-{spec.number}", spec.options.log_level)
    if spec.role == "writer":
        from .writer import Writer as Role
    elif spec.role == "reader":
        from .reader import Reader as Role  # type: ignore[assignment]
    elif spec.role == "web":
        from .web import Web as Role  # type: ignore[assignment]
    else:
        from .jobs import JobWorker as Role  # type: ignore[assignment]
    worker = Worker(spec, listener)
    try:
        Role(worker).run()
    except Exception as failure:
        error = translate(failure, f"starting or running the {spec.role}") if isinstance(failure, OSError) else failure
        # Only the writer's word ends the node: the store works without the others, and what the writer holds can still be saved
        permanent = spec.role == "writer" and type(error).__name__ in ("StoreError", "CorruptionError", "FormatVersionError")
        if isinstance(error, NoSpaceError):
            log.error("%s: %s", spec.role, error)
        elif not permanent:
            log.exception("%s failed", spec.role)
        worker.tell("failed", [type(error).__name__, str(error), permanent])
        worker.close()
        os._exit(EXIT_PERMANENT if permanent else 1)
    worker.close()
