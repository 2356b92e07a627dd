"""`/kv/{key}`: values as they are, with conditions, ranges and content types. The hot routes: no request object of a framework.

Invariants: a condition and the write it guards are one: the writer checks that the value is still the one whose entity tag was compared.
Of writers that create a key at the same moment exactly one is told 201; of those that delete it exactly one is told 204.
"""

from __future__ import annotations

from keyva import aio
from keyva.client import Client
from keyva.errors import ConditionFailedError
from keyva.reserved import CONTENT_TYPE_CHARS_MAX, Typed

from .asgi import BodyBudget, Request, answer
from .conditional import check_conditions, etag_of, failed
from .names import key_of_base64_path, key_of_path
from .ranges import range_of
from .replies import ProblemError
from .security import STORED_HEADERS
from .sniff import sniff

__all__ = ["Keys"]

ALLOW = b"DELETE, GET, HEAD, POST, PUT"
TRIES_MAX = 100
"""Of a write whose key others change meanwhile, so often that none of its own tries came through."""

LARGE_BYTES = 1024 * 1024
LARGE_BYTES_MAX = 1024 * 1024 * 1024
"""Values of `LARGE_BYTES` or more, together, that are being sent."""

_PATH_BYTES = len(b"/kv/")
_BASE64_PATH_BYTES = len(b"/kv-base64/")
"""The same for keys that no browser can name in a path: it removes "." and ".." from it, percent-encoded or not."""

_RANGES = (b"accept-ranges", b"bytes")
_FRESH = (b"cache-control", b"no-cache")
_KEPT = (b"keyva-content-type", b"kept")
_SNIFFED = (b"keyva-content-type", b"sniffed")
"""Where the content type comes from: who copies a value must know whether one was kept with it."""


class Keys:
    """The handler of one application."""

    def __init__(self, client: aio.Client, reads: Client, budget: BodyBudget, value_bytes_max: int) -> None:
        self._client = client
        self._reads = reads
        self._budget = budget
        self._value_bytes_max = value_bytes_max
        self._large_bytes = 0

    async def __call__(self, request: Request) -> None:
        """Serve one request. Hot."""
        path = request.raw_path
        key = key_of_path(path, _PATH_BYTES) if path.startswith(b"/kv/") else key_of_base64_path(path, _BASE64_PATH_BYTES)
        match request.method:
            case "GET" | "HEAD":
                await self._get(request, key)
            case "PUT" | "POST":
                await self._put(request, key)
            case "DELETE":
                await self._delete(request, key)
            case _:
                raise ProblemError(405, f"a key knows {ALLOW.decode()}", headers=[(b"allow", ALLOW)])

    async def _get(self, request: Request, key: bytes) -> None:
        headers = request.headers
        found = self._reads.get_typed(key)
        head = request.method == "HEAD"
        conditional = b"if-match" in headers or b"if-none-match" in headers
        unchanged = conditional and check_conditions(headers, found)
        if found is None:
            raise ProblemError(404, "there is no such key")
        value, content_type = found
        etag = etag_of(value, content_type)
        if unchanged:
            await answer(request.send, 304, [(b"etag", etag), _FRESH, *STORED_HEADERS])
            return
        kind, origin = (sniff(value), _SNIFFED) if content_type is None else (content_type.encode(), _KEPT)
        fields = [(b"content-type", kind), origin, (b"etag", etag), _RANGES, _FRESH, *STORED_HEADERS]
        field = headers.get(b"range")
        if field is not None and not head and headers.get(b"if-range", etag) == etag:
            part = range_of(field, len(value))
            if part is not None:
                fields.append((b"content-range", b"bytes %d-%d/%d" % (part[0], part[1] - 1, len(value))))
                await self._answer(request, 206, fields, value[part[0] : part[1]])
                return
        if head:
            await answer(request.send, 200, fields, value, head=True)
        else:
            await self._answer(request, 200, fields, value)

    async def _answer(self, request: Request, status: int, fields: list[tuple[bytes, bytes]], value: bytes) -> None:
        """Send a value. A large one stays in memory while its client takes it, so it is sent if those under way leave room."""
        if len(value) < LARGE_BYTES:
            await answer(request.send, status, fields, value)
            return
        if self._large_bytes + len(value) > LARGE_BYTES_MAX:
            raise ProblemError(503, "other downloads take all the memory that they may; try again", headers=[(b"retry-after", b"1")])
        self._large_bytes += len(value)
        try:
            await answer(request.send, status, fields, value)
        finally:
            self._large_bytes -= len(value)

    async def _put(self, request: Request, key: bytes) -> None:
        headers = request.headers
        content_type = _content_type(headers)
        conditional = b"if-match" in headers or b"if-none-match" in headers
        if conditional:
            self._check(headers, self._reads.get_typed(key))  # before the body is taken
        value = await self._budget.read(request, self._value_bytes_max)
        for _ in range(TRIES_MAX):
            current = self._reads.get_typed(key) if conditional else None
            existed = current is not None if conditional else self._reads.get(key) is not None
            if conditional:
                self._check(headers, current)
            try:
                # an unconditional write over an existing value needs nothing of it; it shares its message with others then
                expect = None if existed and not conditional else {key: current}
                await self._client.put(key, value, content_type=content_type, expect=expect)
            except ConditionFailedError:
                continue
            await answer(request.send, 204 if existed else 201, [(b"etag", etag_of(value, content_type))])
            return
        raise _contended()

    async def _delete(self, request: Request, key: bytes) -> None:
        headers = request.headers
        for _ in range(TRIES_MAX):
            current = self._reads.get_typed(key)
            self._check(headers, current)
            if current is None:
                raise ProblemError(404, "there is no such key")
            try:
                await self._client.delete(key, expect={key: current})
            except ConditionFailedError:
                continue
            await answer(request.send, 204, [])
            return
        raise _contended()

    def _check(self, headers: dict[bytes, bytes], current: Typed | None) -> None:
        if check_conditions(headers, current):
            raise failed(None if current is None else etag_of(*current))


def _content_type(headers: dict[bytes, bytes]) -> str | None:
    """Return the content type to keep; raises `ProblemError` for what cannot be kept as it was sent."""
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise ProblemError(
            415, "values are kept as they are sent: send them without Content-Encoding", headers=[(b"accept-encoding", b"identity")]
        )
    if b"content-range" in headers:
        raise ProblemError(400, "a value is replaced as a whole: Content-Range is not served")
    sent = headers.get(b"content-type", b"").strip()
    if not sent:
        return None
    text = sent.decode("latin-1")
    if len(text) > CONTENT_TYPE_CHARS_MAX or not (text.isascii() and text.isprintable()):
        raise ProblemError(400, f"Content-Type must be at most {CONTENT_TYPE_CHARS_MAX} printable ASCII characters")
    return text


def _contended() -> ProblemError:
    return ProblemError(503, f"others changed the key during each of {TRIES_MAX} tries", headers=[(b"retry-after", b"1")])
