"""What the node is doing: the writer's figures, the tree, the processes. Never waits long: a writer that is being started gives no figures.

Invariant: nothing here goes over the connection that carries writes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from keyva.client import Client
from keyva.connections import Connections, Target
from keyva.endpoints import Endpoints
from keyva.errors import KeyvaError
from keyva.options import Options
from keyva.protocol import decode_body, encode
from keyva.view import View

from .names import key_in_json

__all__ = ["Status"]

TIMEOUT_S = 2.0


class Status:
    """Asks writer and node."""

    def __init__(self, directory: str, endpoints: Endpoints, options: Options, reads: Client) -> None:
        self.directory = directory
        self._endpoints = endpoints
        self._options = options
        self._reads = reads
        self._connections = Connections(Target(endpoint=endpoints.writer, timeout_s=TIMEOUT_S))

    def close(self) -> None:
        """Let the connections go."""
        self._connections.close()

    async def stats(self) -> dict[str, Any]:
        """Return the writer's figures; raises `keyva.UnavailableError` within `TIMEOUT_S`."""
        found: dict[str, Any] = await asyncio.to_thread(self._ask, self._endpoints.writer, "stats")
        found["write_buffer_size"] = self._options.write_buffer_size
        return found

    async def processes(self) -> list[dict[str, Any]]:
        """Return the node's processes, as `keyva.client.node_processes` does."""
        return await asyncio.to_thread(self._ask, self._endpoints.control, "ps")

    async def health(self) -> dict[str, Any]:
        """Say whether reads and writes are served now: ready when the writer runs and the files can be read."""
        reason = ""
        try:
            states = {process["role"]: process["state"] for process in await self.processes()}
            if states.get("writer") != "running":
                reason = f"the writer is {states.get('writer', 'gone')}"
            elif self._view().closed:
                reason = "the store's files are closed"
        except KeyvaError as error:
            reason = str(error)
        return {"live": True, "ready": not reason, **({"reason": reason} if reason else {})}

    def levels(self) -> list[dict[str, Any]]:
        """Return the tree as this process reads it: levels, their runs, newest first, and how much each holds."""
        view = self._view()
        view._refresh()
        levels = []
        for number, runs in enumerate(view.manifest.levels):
            levels.append(
                {
                    "level": number,
                    "bytes": sum(run.size_bytes for run in runs),
                    "runs": [
                        {
                            "id": run.id,
                            "files": len(run.files),
                            "bytes": run.size_bytes,
                            "entries": sum(file.entries for file in run.files),
                            "tombstones": sum(file.tombstones for file in run.files),
                            "smallest": key_in_json(run.files[0].smallest),
                            "largest": key_in_json(run.files[-1].largest),
                        }
                        for run in runs
                    ],
                }
            )
        return levels

    def cache(self) -> dict[str, Any]:
        """Return the figures of this process's own reading."""
        view = self._view()
        return {"cache_bytes": view.cache.size_bytes, "cache_misses": view.cache.misses, "lag_bytes": view.lag_bytes()}

    def _view(self) -> View:
        view = self._reads._connections().view
        assert view is not None
        return view

    def _ask(self, endpoint: str, op: str) -> Any:
        return decode_body(self._connections.ask(endpoint, op, encode(None)).body, Any)
