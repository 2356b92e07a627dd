"""`/seq/{name}`: numbers that are given out once each."""

from __future__ import annotations

from keyva import aio

from .asgi import Request, answer
from .names import name_of_path
from .replies import ProblemError
from .security import STORED_HEADERS

__all__ = ["Sequences"]

_PATH_BYTES = len(b"/seq/")


class Sequences:
    """The handler of one application."""

    def __init__(self, client: aio.Client) -> None:
        self._client = client

    async def __call__(self, request: Request) -> None:
        """Serve one request. GET changes something, so HEAD is not served, and browsers ask from the page alone."""
        name = name_of_path(request.raw_path, _PATH_BYTES)
        if request.method == "GET":
            number = await self._client.sequence_next(name)
            fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *STORED_HEADERS]
            await answer(request.send, 200, fields, b"%d" % number)
        elif request.method == "DELETE":
            await self._client.sequence_reset(name)
            await answer(request.send, 204, [])
        else:
            raise ProblemError(405, "a sequence knows DELETE, GET", headers=[(b"allow", b"DELETE, GET")])
