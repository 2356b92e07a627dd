"""Recognising a repeated request, so that a client that got no answer may ask again and nothing happens twice.

Each request carries its client's id (64 random bits), a number that grows, the lowest number still unanswered (``floor``), and the
commit position the client knew of when it first sent it (``as_of``). Answers are kept until the client's floor passes them, and the
log keeps (client, request) with every record, so the table outlives the writer: it is filled again from the logs at a start, and from
the file REQUESTS (docs/format.md, "REQUESTS"), which is written before a log is given up.

Invariant: whatever was applied at or after ``covered_from`` is in the table. So a repeat that is not in the table was never applied when
its ``as_of`` is at least that; when it is older nobody knows, and the client is told so.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec
from crc32c import crc32c

from keyva.errors import OutcomeUnknownError

__all__ = ["Answer", "RequestTable"]

MAGIC = b"KEYVAREQ"
VERSION = 1

CLIENTS_MAX = 10_000
"""Clients remembered; beyond that the one heard of longest ago is forgotten."""

REQUESTS_MAX = 4096
"""Answers kept per client, whatever floor it sends."""

Answer = tuple[int, int | None]
"""Sequence number of the last entry written, and the counter's new value for an increment."""


class _Client:
    __slots__ = ("answers", "floor", "position")

    def __init__(self) -> None:
        self.answers: OrderedDict[int, Answer] = OrderedDict()
        self.floor = 0
        self.position = 0


class RequestTable:
    """The answers that may still be asked for again."""

    def __init__(self, covered_from: int) -> None:
        self.covered_from = covered_from
        self._clients: OrderedDict[int, _Client] = OrderedDict()

    def find(self, client: int, request: int, as_of: int) -> Answer | None:
        """Return the answer a repeated request got, None when it was never applied; raises `OutcomeUnknownError`."""
        known = self._clients.get(client)
        if known is not None:
            if request < known.floor:
                raise OutcomeUnknownError("the answer to this request was given up by its client already")
            answer = known.answers.get(request)
            if answer is not None:
                return answer
        if as_of < self.covered_from:
            raise OutcomeUnknownError("the write was sent so long ago that the store no longer knows whether it was made")
        return None

    def add(self, client: int, request: int, floor: int, position: int, answer: Answer) -> None:
        """Remember an answer. Client 0 asks for nothing to be remembered. Costs about 0.5 us."""
        if client == 0:
            return
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client()
            if len(self._clients) > CLIENTS_MAX:
                _, forgotten = self._clients.popitem(last=False)
                self.covered_from = max(self.covered_from, forgotten.position)
        else:
            self._clients.move_to_end(client)
        answers = known.answers
        if floor > known.floor:
            known.floor = floor
            while answers and next(iter(answers)) < floor:
                answers.popitem(last=False)
        answers[request] = answer
        known.position = position
        if len(answers) > REQUESTS_MAX:
            oldest, _ = answers.popitem(last=False)
            known.floor = max(known.floor, oldest + 1)

    def encode(self, covered_to: int) -> bytes:
        """Return the table as a file that covers what was applied from ``covered_from`` up to ``covered_to``."""
        clients = [
            (client, known.floor, known.position, [(request, *answer) for request, answer in known.answers.items()])
            for client, known in self._clients.items()
        ]
        body = msgspec.msgpack.encode(_Saved(VERSION, self.covered_from, covered_to, clients))
        return MAGIC + crc32c(body).to_bytes(4, "little") + body

    @classmethod
    def decode(cls, data: bytes, oldest_live: int) -> RequestTable | None:
        """Return the table of a file, to be added to from the logs, the oldest of which begins at position ``oldest_live``.

        None when the file is damaged, of another version, or leaves a gap before the logs: then less is known, which is safe.
        """
        body = data[12:]
        if data[:8] != MAGIC or crc32c(body).to_bytes(4, "little") != data[8:12]:
            return None
        try:
            saved = msgspec.msgpack.decode(body, type=_Saved)
        except msgspec.MsgspecError:
            return None
        if saved.version != VERSION or saved.covered_to < oldest_live:
            return None
        table = cls(saved.covered_from)
        for client, floor, position, answers in saved.clients:
            known = table._clients[client] = _Client()
            known.floor, known.position = floor, position
            known.answers.update((request, (sequence, value)) for request, sequence, value in answers)
        return table


class _Saved(msgspec.Struct, array_like=True):
    version: int
    covered_from: int
    covered_to: int
    clients: list[tuple[int, int, int, list[tuple[int, int, int | None]]]]
