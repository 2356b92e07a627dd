"""The web worker: serves HTTP on a socket that the node has bound, as one more client of the store.

It reads the files by itself and writes through the writer, like any client on this host, but is not attached: it starts no node. While
HTTP clients are about it holds clients.lock, as they would if they were embedded; a node that stops when idle stops when they have gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time

import uvloop

from keyva import aio
from keyva.client import Client
from keyva.connections import Target
from keyva.endpoints import is_loopback
from keyva.filename import CLIENTS_LOCK
from keyva.files import Lock
from keyva.web.app import App, Settings
from keyva.web.listen import read_token
from keyva.web.server import make_server
from keyva.web.status import Status

from .base import Worker

__all__ = ["Web"]

log = logging.getLogger("keyva.web")

WRITE_TIMEOUT_S = 15.0
TICK_S = 0.25


class Web:
    """The loop of a web worker."""

    def __init__(self, worker: Worker) -> None:
        assert worker.listener is not None
        self._worker = worker
        self._listener = worker.listener
        logging.getLogger("uvicorn").setLevel(logging.WARNING)

    def run(self) -> None:
        """Serve until the node says stop."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        worker, spec = self._worker, self._worker.spec
        options = spec.options
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, worker._on_signal)
        settings = Settings(
            value_bytes_max=options.max_value_size,
            batch_bytes_max=options.max_batch_size,
            token=read_token(options.http_token_file) if options.http_token_file else None,
            any_host=not is_loopback(f"tcp://{options.http}"),
        )
        reads = await asyncio.to_thread(self._open)
        client = aio.Client(reads)
        status = await asyncio.to_thread(Status, spec.directory, spec.endpoints, options, reads)
        app = App(client, reads, status, settings)
        server = make_server(app)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        lock = Lock(os.path.join(spec.directory, CLIENTS_LOCK))
        swept_at = 0.0
        try:
            while not serving.done():
                if server.started:
                    worker.tell("ready") if not swept_at else worker.beat()
                    now = time.monotonic()
                    if now - swept_at >= 1.0:
                        swept_at = now
                        server.sweep()
                        self._hold(lock, busy=bool(server.server_state.connections))
                if worker.stopping and not server.should_exit:
                    server.should_exit = True
                    await app.stream.close()
                await asyncio.wait([serving], timeout=TICK_S)
            await serving
        finally:
            lock.release()
            await client.close()
            await asyncio.to_thread(status.close)

    def _open(self) -> Client:
        """Open the store; while its writer is being started this waits, and tells the node that it lives."""
        spec = self._worker.spec
        target = Target(directory=spec.directory, endpoint=spec.endpoints.writer, timeout_s=WRITE_TIMEOUT_S)
        return Client(target)

    def _hold(self, lock: Lock, *, busy: bool) -> None:
        """Be attached while there are HTTP clients. A node that is going holds the lock itself; then there is nothing to keep."""
        if busy and not lock.held:
            lock.acquire(shared=True)
        elif not busy and lock.held:
            lock.unlock()
