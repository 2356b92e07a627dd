"""Answers: JSON, and errors as RFC 9457 problem documents."""

from __future__ import annotations

import http
from typing import Any

import msgspec

from keyva.errors import (
    ClosedError,
    ConditionFailedError,
    CorruptionError,
    InvalidArgumentError,
    KeyvaError,
    NoSpaceError,
    OutcomeUnknownError,
    UnavailableError,
    WriteStallError,
)

from .asgi import Headers, Send, answer

__all__ = ["ProblemError", "answer_problem", "problem_of"]

PROBLEM_TYPE = b"application/problem+json"
RETRY_AFTER = (b"retry-after", b"1")

_json = msgspec.json.Encoder().encode


class ProblemError(Exception):
    """Is raised by a handler to answer with an error: ``detail`` says what was wrong and what to do."""

    def __init__(self, status: int, detail: str, *, headers: Headers = (), **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.members = members


async def answer_problem(send: Send, problem: ProblemError, *, head: bool = False) -> None:
    """Answer with a problem document."""
    title = http.HTTPStatus(problem.status).phrase
    body = _json({"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail, **problem.members})
    headers = [(b"content-type", PROBLEM_TYPE), (b"cache-control", b"no-store"), *problem.headers]
    await answer(send, problem.status, headers, body, head=head)


def problem_of(error: Exception) -> ProblemError:
    """Translate an error of the store; others are bugs and are raised again by the caller."""
    text = str(error)
    match error:
        case ConditionFailedError():
            return ProblemError(412, text)
        case InvalidArgumentError() | UnicodeEncodeError():
            return ProblemError(400, text)
        case NoSpaceError():
            return ProblemError(507, text)
        case OutcomeUnknownError():
            return ProblemError(504, text)
        case WriteStallError() | UnavailableError() | ClosedError():
            return ProblemError(503, text, headers=[RETRY_AFTER])
        case CorruptionError():
            return ProblemError(500, text, file=error.path, offset=error.offset)
        case KeyvaError():
            return ProblemError(500, text)
    raise error
