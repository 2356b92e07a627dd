"""Flusher and compactor: ask the writer for a job, do it (`keyva.rewrite`), send the result.

They own nothing. A job whose result is lost is offered again; after each second of idling they ask anew, so a restarted writer
learns of them.

Invariant: a process does a job once. An offer can cross the next asking, and then the same job comes twice; by then its output may be
in the manifest, so doing it again would replace or remove live files. It is answered with the result it had.
"""

from __future__ import annotations

import logging
import os
import time

import msgspec
import zmq

from keyva.errors import ProtocolError
from keyva.jobs import JobResult, decode_job
from keyva.jobs import encode as encode_job
from keyva.protocol import OK, PROTOCOL_VERSION, Request, decode_response, encode
from keyva.rewrite import run_job

from .base import Worker

__all__ = ["JobWorker"]

log = logging.getLogger("keyva.jobs")
_ASK_AGAIN_S = 1.0
NICENESS = 10
"""Clients' reads and writes go first; when flusher or compactor fall behind, writes wait and leave them the processor."""


class _StoppedError(Exception):
    """The worker is to stop in the middle of a job, which the writer will offer again."""


class JobWorker:
    """The loop of flusher and compactor."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        spec = worker.spec
        self._kind = "flush" if spec.role == "flusher" else "compact"
        self._socket = worker.context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 10)
        self._socket.setsockopt(zmq.RCVHWM, 10)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.connect(spec.endpoints.jobs)
        worker.poller.register(self._socket, zmq.POLLIN)
        self._asked_at = float("-inf")
        self._requests = 0
        self._last: JobResult | None = None

    def run(self) -> None:
        """Work until the node says stop."""
        worker = self._worker
        os.nice(NICENESS)
        worker.tell("ready")
        while not worker.stopping:
            worker.beat("idle")
            now = time.monotonic()
            if now - self._asked_at >= _ASK_AGAIN_S:
                self._send("idle", self._kind)
                self._asked_at = now
            if self._socket in worker.poll(self._asked_at + _ASK_AGAIN_S - now):
                self._take()
        self._socket.close()

    def _send(self, op: str, body: object) -> None:
        self._requests += 1
        try:
            self._socket.send_multipart([encode(Request(PROTOCOL_VERSION, op, 0, self._requests)), encode_job(body)], zmq.NOBLOCK)
        except zmq.Again:
            pass  # the writer is away; asked again in a second

    def _take(self) -> None:
        frames = self._socket.recv_multipart()
        try:
            if len(frames) != 2 or decode_response(frames[0]).status != OK:
                raise ProtocolError("not a job")
            job = decode_job(frames[1])
        except (ProtocolError, msgspec.MsgspecError) as error:
            log.warning("dropped a message that is no job: %s", error)
            return
        spec = self._worker.spec
        if self._last is None or self._last.id != job.id:
            try:
                self._last = run_job(spec.directory, job, spec.options, self._progress)
            except _StoppedError:
                return
        self._send("result", self._last)
        self._asked_at = float("-inf")

    def _progress(self, _: int) -> None:
        if self._worker.stopping:
            raise _StoppedError
        self._worker.beat("working")
