"""The ASGI application: every request is checked (`security`), then served by the bare handlers of /kv and /seq, or by starlette's router.

Invariants: nothing is served before `Guard.check`; every error is a problem document; every request is counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router

from keyva import aio
from keyva.client import Client
from keyva.errors import KeyvaError

from . import metrics
from .asgi import BodyBudget, DisconnectedError, NoRoomError, Receive, Request, Scope, Send, TooLargeError
from .batch import DeletePrefix, decode, delete_prefix, write_batch
from .keys import Keys
from .listing import count, page
from .meter import Meter
from .names import bytes_of
from .openapi import DESCRIPTION
from .pagefiles import PageFiles
from .replies import ProblemError, answer_problem, problem_of
from .security import NOSNIFF, Guard, page_headers
from .sequences import Sequences
from .status import Status
from .stream import LISTENERS_MAX, Stream

__all__ = ["App", "Settings"]

log = logging.getLogger("keyva.web")

JSON_BYTES_MAX = 64 * 1024
PAGE_KEYS_MAX = 1000
SCANS_MAX = 4
"""Listings and counts at the same time; others wait."""


class Settings(NamedTuple):
    """What an application is made for. ``any_host``: it listens beyond loopback."""

    value_bytes_max: int
    batch_bytes_max: int
    token: bytes | None = None
    any_host: bool = False


class App:
    """One gateway. ``client`` writes, ``reads`` is the client under it. Made in the event loop that runs it."""

    def __init__(self, client: aio.Client, reads: Client, status: Status, settings: Settings) -> None:
        self._client = client
        self._reads = reads
        self._status = status
        self._settings = settings
        self._guard = Guard(settings.token, any_host=settings.any_host)
        self._budget = BodyBudget(4 * max(settings.value_bytes_max, settings.batch_bytes_max))
        self.meter = Meter()
        self.stream = Stream(status, self.meter)
        self._scans = asyncio.Semaphore(SCANS_MAX)
        self._keys = Keys(client, reads, self._budget, settings.value_bytes_max)
        self._sequences = Sequences(client)
        self._files = PageFiles()
        self._router = Router(
            [
                Route("/", self._page),
                Route("/favicon.ico", self._page),
                Route("/static/{name:path}", self._page),
                Route("/api/keys", self._list),
                Route("/api/count", self._count),
                Route("/api/batch", self._batch, methods=["POST"]),
                Route("/api/delete-prefix", self._delete_prefix, methods=["POST"]),
                Route("/api/stats", self._stats),
                Route("/api/stats/stream", self._events),
                Route("/api/health", self._health),
                Route("/api/levels", self._levels),
                Route("/api/processes", self._processes),
                Route("/api/openapi.json", self._openapi),
                Route("/metrics", self._metrics),
            ],
            redirect_slashes=False,
        )
        self.last_request_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Hot."""
        started = self.last_request_at = time.perf_counter()
        request = Request(scope, receive, send)
        path = request.raw_path
        route = "/kv" if path.startswith((b"/kv/", b"/kv-base64/")) else "/seq" if path.startswith(b"/seq/") else "other"
        status = 0

        async def counted(message: Any) -> None:
            nonlocal status
            if status == 0:
                status = message["status"]
            await send(message)

        request.send = counted
        try:
            self._guard.check(request)
            if route == "/kv":
                await self._keys(request)
            elif route == "/seq":
                await self._sequences(request)
            else:
                route = _label(path)
                await self._router({**scope, "keyva": request, "app": self}, receive, counted)
        except DisconnectedError:
            return
        except Exception as error:
            if status:
                raise  # the answer has begun: the connection is cut
            await answer_problem(counted, self._problem_of(error), head=request.method == "HEAD")
        finally:
            method = request.method if request.method in _METHODS else "other"
            self.meter.observe(route, method, status, time.perf_counter() - started)

    def _problem_of(self, error: Exception) -> ProblemError:
        match error:
            case ProblemError():
                return error
            case TooLargeError():
                return ProblemError(413, f"a value has at most {self._settings.value_bytes_max} bytes")
            case NoRoomError():
                return ProblemError(503, "other uploads take all the memory that they may; try again", headers=[(b"retry-after", b"1")])
            case HTTPException():
                headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
                detail = "there is nothing under this path; see /api/openapi.json" if error.status_code == 404 else error.detail
                return ProblemError(error.status_code, detail, headers=headers)
            case KeyvaError() | UnicodeEncodeError():
                return problem_of(error)
        log.error("request failed", exc_info=error)
        return ProblemError(500, "this is a bug of the server; its log says more")

    # The page

    async def _page(self, request: StarletteRequest) -> Response:
        asked: Request = request.scope["keyva"]
        found = self._files.get(asked.raw_path)
        if found is None:
            raise HTTPException(404)
        fields = {name.decode(): value.decode() for name, value in page_headers(asked.headers[b"host"])}
        fields["etag"] = found.etag
        if asked.headers.get(b"if-none-match") == found.etag.encode():
            return Response(status_code=304, headers=fields)
        return Response(found.body, headers={**fields, "content-type": found.content_type})

    # The API

    async def _list(self, request: StarletteRequest) -> Response:
        asked = _parameters(request, "prefix", "prefix_base64", "start", "start_base64", "limit", "reverse")
        prefix, start = _bytes(asked, "prefix") or b"", _bytes(asked, "start")
        limit, reverse = _number(asked, "limit", 100, PAGE_KEYS_MAX), _flag(asked, "reverse")
        async with self._scans:
            found = await asyncio.to_thread(page, self._reads, prefix, start, limit, reverse)
        return _json(found)

    async def _count(self, request: StarletteRequest) -> Response:
        prefix = _bytes(_parameters(request, "prefix", "prefix_base64"), "prefix") or b""
        async with self._scans:
            return _json(await asyncio.to_thread(count, self._reads, prefix))

    async def _batch(self, request: StarletteRequest) -> Response:
        body = await self._body(request, self._settings.batch_bytes_max)
        return _json(await write_batch(self._client, self._reads, body))

    async def _delete_prefix(self, request: StarletteRequest) -> Response:
        asked: DeletePrefix = decode(await self._body(request, 4 * JSON_BYTES_MAX), DeletePrefix)
        prefix = bytes_of(asked.prefix, asked.prefix_base64, "prefix")
        if prefix is None:
            raise ProblemError(400, "give prefix or prefix_base64")
        async with self._scans:
            return _json(await delete_prefix(self._client, self._reads, prefix, asked))

    async def _body(self, request: StarletteRequest, limit: int) -> bytes:
        asked: Request = request.scope["keyva"]
        kind = asked.headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ProblemError(415, "send application/json", headers=[(b"accept", b"application/json")])
        try:
            return await self._budget.read(asked, limit)
        except TooLargeError:
            raise ProblemError(413, f"the body has at most {limit} bytes here") from None

    async def _stats(self, _: StarletteRequest) -> Response:
        return _json({**await self._status.stats(), "http": self._status.cache()})

    async def _health(self, _: StarletteRequest) -> Response:
        health = await self._status.health()
        return _json(health, 200 if health["ready"] else 503)

    async def _levels(self, _: StarletteRequest) -> Response:
        return _json({"levels": self._status.levels()})

    async def _processes(self, _: StarletteRequest) -> Response:
        return _json({"processes": await self._status.processes()})

    async def _openapi(self, _: StarletteRequest) -> Response:
        return _json(DESCRIPTION)

    async def _events(self, request: StarletteRequest) -> Response:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", **_SNIFF}
        if self.meter.streams >= LISTENERS_MAX:
            raise ProblemError(503, f"{LISTENERS_MAX} clients listen already", headers=[(b"retry-after", b"5")])
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return StreamingResponse(self.stream.events(), headers=headers, media_type="text/event-stream")

    async def _metrics(self, _: StarletteRequest) -> Response:
        stats, processes = await asyncio.gather(self._status.stats(), self._status.processes(), return_exceptions=True)
        for result in (stats, processes):
            if isinstance(result, BaseException) and not isinstance(result, KeyvaError):
                raise result
        text = metrics.render(
            stats if isinstance(stats, dict) else None,
            processes if isinstance(processes, list) else [],
            self._status.cache(),
            self.meter,
        )
        return Response(text, headers={"content-type": metrics.CONTENT_TYPE, "cache-control": "no-store", **_SNIFF})


_SNIFF = {NOSNIFF[0].decode(): NOSNIFF[1].decode()}
_METHODS = frozenset(["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"])
_KNOWN = frozenset(str(path).encode() for path in DESCRIPTION["paths"])


def _label(path: bytes) -> str:
    """The metrics' label of a route: few, whatever clients ask for."""
    if path.startswith(b"/static/") or path in (b"/", b"/favicon.ico"):
        return "/static"
    return path.decode() if path in _KNOWN else "other"


def _json(value: Any, status: int = 200) -> Response:
    headers = {"cache-control": "no-store", **_SNIFF}
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")


def _parameters(request: StarletteRequest, *names: str) -> dict[str, str]:
    """Return the query's parameters; raises `ProblemError` for others than ``names``. Starlette's own turn what is no UTF-8 into U+FFFD;
    here it becomes surrogates, which nothing takes.
    """
    found: dict[str, str] = {}
    query = request.scope["query_string"].decode("latin-1")
    for name, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        if name not in names:
            raise ProblemError(400, f"there is no parameter {name[:40]!r}; this knows {', '.join(names)}")
        if name in found:
            raise ProblemError(400, f"parameter {name} is given more than once")
        found[name] = value
    return found


def _bytes(asked: dict[str, str], name: str) -> bytes | None:
    return bytes_of(asked.get(name), asked.get(f"{name}_base64"), name)


def _number(asked: dict[str, str], name: str, default: int, largest: int) -> int:
    text = asked.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= largest):
        raise ProblemError(400, f"{name} must be a whole number from 1 to {largest}, not {text[:40]!r}")
    return int(text)


def _flag(asked: dict[str, str], name: str) -> bool:
    text = asked.get(name, "false")
    if text not in ("true", "false", "1", "0"):
        raise ProblemError(400, f"{name} must be true or false, not {text[:40]!r}")
    return text in ("true", "1")
