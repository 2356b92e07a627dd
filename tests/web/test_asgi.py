from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from keyva.web.asgi import PIECE_BYTES, BodyBudget, DisconnectedError, NoRoomError, Request, TooLargeError, answer

MIB = 1024 * 1024


def request(parts: Iterable[bytes], *, complete: bool = True, headers: Iterable[tuple[bytes, bytes]] = ()) -> Request:
    """A request whose body comes in ``parts``, after which the client goes or is done."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False} if complete else {"type": "http.disconnect"})
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return next(left)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    return Request({"method": "PUT", "raw_path": b"/kv/a", "headers": list(headers)}, receive, send)


def test_a_body_is_put_together() -> None:
    body = asyncio.run(BodyBudget(100 * MIB).read(request([b"a", b"", b"bc"]), 10))
    assert body == b"abc"


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"11")]])
def test_a_body_that_is_too_large_is_refused_and_read(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(TooLargeError):
        asyncio.run(BodyBudget(100 * MIB).read(request([b"x" * 6, b"x" * 5], headers=headers), 10))


def test_a_client_that_goes_is_noticed() -> None:
    for parts in ([], [b"a"]):
        with pytest.raises(DisconnectedError):
            asyncio.run(BodyBudget(100 * MIB).read(request(parts, complete=False), 10))


def test_bodies_share_their_room_and_give_it_back() -> None:
    async def main() -> None:
        budget = BodyBudget(16 * MIB)
        large = [b"x" * MIB] * 10
        results = await asyncio.gather(*(budget.read(request(large), 20 * MIB) for _ in range(3)), return_exceptions=True)
        assert [result for result in results if isinstance(result, NoRoomError)]
        for _ in range(3):  # one after the other there is room
            assert len(await budget.read(request(large), 20 * MIB)) == 10 * MIB

    asyncio.run(main())


def test_a_large_answer_is_sent_in_pieces() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    body = bytes(range(256)) * 4096
    asyncio.run(answer(send, 200, [], body))
    assert sent[0]["headers"] == [(b"content-length", b"%d" % len(body))]
    assert b"".join(message["body"] for message in sent[1:]) == body
    assert max(len(message["body"]) for message in sent[1:]) == PIECE_BYTES
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [False]


def test_repeated_headers_are_joined() -> None:
    assert request([], headers=[(b"if-match", b'"a"'), (b"if-match", b'"b"')]).headers == {b"if-match": b'"a", "b"'}
