"""The writer: takes clients' writes, commits them in groups (`keyva.store`), and hands jobs to flusher and compactor
(`keyva.maintenance`).

Each turn of the loop drains what has arrived and commits it as one group. While flushing or compaction is too far behind, writes are
held (a bounded number of bytes, then the socket is left alone), their clients are told once a second why, and after
``write_stall_timeout_s`` they are refused.

Invariant: what was refused is not done later. A client that waits sends its request again, so a repeat may still be on its way when the
first try is refused; it is refused too.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
import zmq

from keyva import __version__
from keyva.errors import InvalidArgumentError, KeyvaError, ProtocolError, WriteStallError
from keyva.jobs import decode_result
from keyva.jobs import encode as encode_job
from keyva.maintenance import Kind, Maintenance, Stall
from keyva.protocol import (
    ERROR,
    FLAG_NO_SYNC,
    FLAG_REPEATED,
    FLAG_SYNC,
    OK,
    PROTOCOL_VERSION,
    WAIT,
    Request,
    decode_body,
    encode,
    error_body,
)
from keyva.reserved import Update
from keyva.store import Store, WriteRequest

from .base import Message, Server, Worker

__all__ = ["Writer"]

log = logging.getLogger("keyva.writer")

GROUP_BYTES_MAX = 16 * 1024 * 1024
GROUP_REQUESTS_MAX = 1024
HELD_BYTES_MAX = 64 * 1024 * 1024
WAITING_MAX = 1024
REFUSED_MAX = 10_000
PIPELINE_CALLS_MAX = 1024
"""Below `keyva.requests.REQUESTS_MAX`, so that every answer of a pipeline is remembered while it may be asked for again."""

_CALLS = Annotated[list[tuple[str, msgspec.Raw]], msgspec.Meta(min_length=1, max_length=PIPELINE_CALLS_MAX)]
NOTICE_S = 1.0
KINDS: tuple[Kind, ...] = ("flush", "compact")


class _Waiting:
    """A request that is answered later: a flush or a compaction."""

    def __init__(self, message: Message, done: Callable[[], bool]) -> None:
        self.message = message
        self.done = done
        self.noticed_at = time.monotonic()


class Writer:
    """The loop of the writer process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        spec = worker.spec
        self._options = spec.options
        self._store = Store(spec.directory, spec.options, progress=lambda: worker.beat("recovering"))
        self._maintenance = Maintenance(self._store)
        endpoints = [spec.endpoints.writer] + ([spec.endpoints.listen] if spec.endpoints.listen else [])
        self._data = Server(worker, endpoints, frame_bytes_max=spec.options.max_batch_size, curve=bool(spec.options.curve_server_key_file))
        self._jobs = Server(worker, [spec.endpoints.jobs], frame_bytes_max=64 * 1024 * 1024)
        worker.poller.register(self._jobs.socket, zmq.POLLIN)
        self._listening = False
        self._idle: dict[Kind, Message] = {}
        self._held: deque[Message] = deque()
        self._held_bytes = 0
        self._refused: OrderedDict[tuple[int, int], Exception] = OrderedDict()
        self._noticed_at = 0.0
        self._waiting: list[_Waiting] = []
        self._slow_until = 0.0
        self._stalled: Stall | None = None
        self._stalled_at = 0.0
        self._stall_seconds: dict[str, float] = {}
        self._started_at = time.time()

    def run(self) -> None:
        """Serve until the node says stop; then make everything durable."""
        worker = self._worker
        worker.tell("ready")
        while not worker.stopping:
            worker.beat()
            self._listen(self._held_bytes < HELD_BYTES_MAX and time.monotonic() >= self._slow_until)
            events = worker.poll(self._timeout_s())
            if self._jobs.socket in events:
                self._take_job_messages()
            if self._data.socket in events:
                self._take_requests()
            if self._held:
                self._write_held()
            if self._idle:
                self._hand_out_jobs()
            if self._waiting:
                self._answer_waiting()
        for message in self._held:
            message.server.answer_error(message.peer, message.request.request, WriteStallError("the node is stopping; nothing was written"))
        self._store.close()
        self._data.close()
        self._jobs.close()

    def _timeout_s(self) -> float:
        timeout = 1.0
        now = time.monotonic()
        if now < self._slow_until:
            timeout = self._slow_until - now
        if self._held:
            timeout = min(timeout, 0.1)
        for kind in self._idle:
            wait = self._maintenance.wait_s(kind)
            if wait is not None:
                timeout = min(timeout, wait)
        return timeout

    def _listen(self, wanted: bool) -> None:
        if wanted != self._listening:
            self._listening = wanted
            if wanted:
                self._worker.poller.register(self._data.socket, zmq.POLLIN)
            else:
                self._worker.poller.unregister(self._data.socket)

    # Requests

    def _take_requests(self) -> None:
        """Drain the socket up to a group's limits and commit the writes among what came."""
        group: list[Message] = []
        size = 0
        receive = self._data.receive
        while len(group) < GROUP_REQUESTS_MAX and size < GROUP_BYTES_MAX:
            message = receive()
            if message is None:
                break
            if message.request.op in _WRITES:
                group.append(message)
                size += len(message.body)
            else:
                self._serve(message)
        if group:
            self._held.extend(group)
            self._held_bytes += size

    def _write_held(self) -> None:
        stall = self._note_stall(self._maintenance.stall())
        now = time.monotonic()
        if stall is not None and stall.stop:
            self._refuse_or_notice(stall, now)
            return
        group: list[Message] = []
        size = 0
        while self._held and len(group) < GROUP_REQUESTS_MAX and size < GROUP_BYTES_MAX:
            message = self._held.popleft()
            group.append(message)
            size += len(message.body)
        self._held_bytes -= size
        self._commit(group)
        self._maintenance.after_write()
        if stall is not None:
            self._slow_until = now + size / self._options.delayed_write_rate

    def _note_stall(self, stall: Stall | None) -> Stall | None:
        before = self._stalled
        if (stall and stall.reason) != (before and before.reason):
            now = time.monotonic()
            if before is not None:
                self._stall_seconds[before.reason] = self._stall_seconds.get(before.reason, 0.0) + now - self._stalled_at
            self._stalled_at = now
            if stall is not None:
                log.warning("writes %s: %s", "wait" if stall.stop else "are slowed down", stall.text)
            elif before is not None:
                log.info("writes go at full speed again")
        self._stalled = stall
        return stall

    def _refuse_or_notice(self, stall: Stall, now: float) -> None:
        horizon = now - self._options.write_stall_timeout_s
        while self._held and self._held[0].at < horizon:
            message = self._held.popleft()
            self._held_bytes -= len(message.body)
            self._refuse(message, WriteStallError(f"waited {self._options.write_stall_timeout_s:g} s, nothing was written: {stall.text}"))
        if now - self._noticed_at >= NOTICE_S:
            self._noticed_at = now
            body = encode(stall.text)
            for message in self._held:
                self._data.answer(message.peer, message.request.request, body, self._store.position, WAIT)

    def _commit(self, group: list[Message]) -> None:
        """Commit a group and answer each of its requests. Hot."""
        requests: list[WriteRequest] = []
        accepted: list[tuple[Message, int]] = []
        pipelines: list[_Pipeline] = []
        for message in group:
            header = message.request
            try:
                if header.flags & FLAG_REPEATED and (refused := self._refused.get((header.client, header.request))) is not None:
                    raise refused
                if header.op == "pipeline":
                    pipeline = _Pipeline(message, self._refused)
                    pipelines.append(pipeline)
                    requests += pipeline.requests
                    accepted += [(message, at) for at in pipeline.places]
                else:
                    requests.append(_write_request(header.op, message.body, header, header.request))
                    accepted.append((message, -1))
            except (KeyvaError, TypeError) as error:
                self._refuse(message, error)
        results = self._store.write(requests)
        position = self._store.position
        answer = self._data.answer
        by_message = {id(pipeline.message): pipeline for pipeline in pipelines} if pipelines else {}
        for (message, at), result in zip(accepted, results, strict=True):
            if at >= 0:
                by_message[id(message)].results[at] = result
            elif isinstance(result, KeyvaError):
                self._refuse(message, result)
            else:
                answer(message.peer, message.request.request, encode(result), position)
        for pipeline in pipelines:
            for at, refusal in pipeline.errors():
                self._remember_refusal(pipeline.message, at, refusal)
            answer(pipeline.message.peer, pipeline.message.request.request, pipeline.answer(), position)

    def _refuse(self, message: Message, error: Exception) -> None:
        """Answer a write with an error, and remember it for repeats."""
        self._remember_refusal(message, 0, error)
        message.server.answer_error(message.peer, message.request.request, error, self._store.position)

    def _remember_refusal(self, message: Message, at: int, error: Exception) -> None:
        client, request = message.request.client, message.request.request + at
        if client:
            self._refused[client, request] = error.with_traceback(None)
            if len(self._refused) > REFUSED_MAX:
                self._refused.popitem(last=False)

    def _serve(self, message: Message) -> None:
        request = message.request
        try:
            match request.op:
                case "hello":
                    self._answer(message, self._hello())
                case "stats":
                    self._answer(message, self._stats())
                case "flush":
                    ticket = self._maintenance.request_flush()
                    self._wait(message, lambda: self._maintenance.flush_done(ticket))
                case "compact":
                    start, stop = decode_body(message.body, tuple[bytes | None, bytes | None])
                    number = self._maintenance.request_compaction(start, stop)
                    self._wait(message, lambda: self._maintenance.compaction_done(number))
                case _:
                    raise ProtocolError(
                        f"unknown operation {request.op[:40]!r}; the writer knows hello, {', '.join(_WRITES)}, flush, compact, stats"
                    )
        except (KeyvaError, TypeError) as error:
            message.server.answer_error(message.peer, request.request, error, self._store.position)

    def _answer(self, message: Message, result: object) -> None:
        message.server.answer(message.peer, message.request.request, encode(result), self._store.position)

    def _wait(self, message: Message, done: Callable[[], bool]) -> None:
        if len(self._waiting) >= WAITING_MAX:
            raise KeyvaError(f"{WAITING_MAX} flushes and compactions are waited for already")
        self._waiting.append(_Waiting(message, done))

    def _answer_waiting(self) -> None:
        now = time.monotonic()
        left = []
        for waiting in self._waiting:
            message = waiting.message
            try:
                if waiting.done():
                    self._answer(message, None)
                    continue
            except KeyvaError as error:
                message.server.answer_error(message.peer, message.request.request, error, self._store.position)
                continue
            if now - waiting.noticed_at >= NOTICE_S:
                waiting.noticed_at = now
                text = encode(f"{message.request.op} is under way")
                message.server.answer(message.peer, message.request.request, text, self._store.position, WAIT)
            left.append(waiting)
        self._waiting = left

    def _hello(self) -> dict[str, Any]:
        endpoints = self._worker.spec.endpoints
        return {
            "protocol": PROTOCOL_VERSION,
            "version": __version__,
            "store_id": self._store.manifest.store_id.hex(),
            "directory": self._store.directory,
            "options": msgspec.structs.asdict(self._options),
            "readers": list(endpoints.readers),
            "listen_readers": list(endpoints.listen_readers),
            "position": self._store.position,
            "pid": os.getpid(),
        }

    def _stats(self) -> dict[str, Any]:
        seconds = dict(self._stall_seconds)
        if self._stalled is not None:
            reason = self._stalled.reason
            seconds[reason] = seconds.get(reason, 0.0) + time.monotonic() - self._stalled_at
        return {
            **self._maintenance.stats(),
            "version": __version__,
            "writer_pid": os.getpid(),
            "writer_started_at": self._started_at,
            "held_writes": len(self._held),
            "stall_seconds": seconds,
            "malformed_messages": self._data.malformed,
            "dropped_answers": self._data.dropped_answers,
        }

    # Jobs

    def _take_job_messages(self) -> None:
        while (message := self._jobs.receive()) is not None:
            try:
                if message.request.op == "result":
                    self._maintenance.finish(decode_result(message.body))
                elif message.request.op == "idle":
                    kind = decode_body(message.body, Kind)
                    self._idle[kind] = message
                else:
                    raise ProtocolError(f"unknown operation {message.request.op[:40]!r} on the job socket")
            except (KeyvaError, msgspec.MsgspecError) as error:
                log.warning("job message refused: %s", error)

    def _hand_out_jobs(self) -> None:
        for kind in KINDS:
            message = self._idle.get(kind)
            if message is None:
                continue
            job = self._maintenance.offer(kind)
            if job is not None:
                del self._idle[kind]
                self._jobs.answer(message.peer, message.request.request, encode_job(job))


class _Pipeline:
    """Several writes that came in one message: request number ``request + n`` for the n-th. An error of one leaves the others alone."""

    def __init__(self, message: Message, refused: Mapping[tuple[int, int], Exception]) -> None:
        """Decode the message; raises `ProtocolError` when it is no pipeline, and then none of it counts."""
        self.message = message
        header = message.request
        calls = decode_body(message.body, _CALLS)
        if header.request + len(calls) > 2**64:
            raise ProtocolError("a pipeline's last request number is outside of 64 bits")
        self.results: list[object] = [None] * len(calls)
        self.requests: list[WriteRequest] = []
        self.places: list[int] = []
        for at, (op, body) in enumerate(calls):
            number = header.request + at
            try:
                if header.flags & FLAG_REPEATED and (known := refused.get((header.client, number))) is not None:
                    raise known
                if op not in _WRITES or op == "pipeline":
                    raise ProtocolError(f"operation {op[:40]!r} cannot be part of a pipeline")
                self.requests.append(_write_request(op, bytes(body), header, number))
                self.places.append(at)
            except (KeyvaError, TypeError) as error:
                self.results[at] = error

    def errors(self) -> list[tuple[int, Exception]]:
        """Return the calls that failed, by place."""
        return [(at, result) for at, result in enumerate(self.results) if isinstance(result, Exception)]

    def answer(self) -> bytes:
        """Encode the results: ``[status, result or error]`` per call."""
        return encode(
            [(ERROR, msgspec.Raw(error_body(result))) if isinstance(result, Exception) else (OK, result) for result in self.results]
        )


def _write_request(op: str, body: bytes, header: Request, number: int) -> WriteRequest:
    flags = header.flags
    request = WriteRequest(
        sync=True if flags & FLAG_SYNC else False if flags & FLAG_NO_SYNC else None,
        client=header.client,
        request=number,
        floor=header.floor,
        as_of=header.as_of,
        repeated=bool(flags & FLAG_REPEATED),
    )
    match op:
        case "write":
            if not body:
                raise InvalidArgumentError("the batch is not a msgpack map: the body is empty")
            request.payload = body
        case "increment":
            request.increment = decode_body(body, tuple[bytes, int])
            if request.increment[1] not in _INT64:
                raise InvalidArgumentError(f"increment by {request.increment[1]}: outside of 64 bits")
        case "update":
            request.update = decode_body(body, Update)
        case "sequence":
            request.sequence = decode_body(body, tuple[bytes, bool])
    return request


_INT64 = range(-(2**63), 2**63)
_WRITES = ("write", "increment", "update", "sequence", "pipeline")
