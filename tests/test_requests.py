from __future__ import annotations

import pytest

from keyva import requests
from keyva.errors import OutcomeUnknownError
from keyva.pulse import position_of
from keyva.requests import RequestTable

POSITION = position_of(3, 500)
LIVE = position_of(4, 0)
"""Where the logs begin that are still there."""


def test_a_repeat_gets_the_answer_of_the_first_try() -> None:
    table = RequestTable(0)
    table.add(7, 1, 1, POSITION, (10, None))
    table.add(7, 2, 1, POSITION, (11, 42))
    table.add(8, 1, 1, POSITION, (12, None))
    assert table.find(7, 1, 0) == (10, None)
    assert table.find(7, 2, 0) == (11, 42)
    assert table.find(8, 1, 0) == (12, None)


def test_a_request_that_is_not_known_was_never_made() -> None:
    table = RequestTable(POSITION)
    table.add(7, 1, 1, POSITION, (10, None))
    assert table.find(7, 2, POSITION) is None
    assert table.find(9, 1, POSITION) is None


def test_an_unknown_request_older_than_the_table_has_an_unknown_outcome() -> None:
    table = RequestTable(POSITION)
    with pytest.raises(OutcomeUnknownError):
        table.find(7, 1, POSITION - 1)
    table.add(7, 1, 1, POSITION, (10, None))
    assert table.find(7, 1, POSITION - 1) == (10, None), "what is known is known, however old"


def test_answers_below_the_clients_floor_are_forgotten() -> None:
    table = RequestTable(0)
    for number in range(1, 11):
        table.add(7, number, max(1, number - 2), POSITION, (number, None))
    assert list(table._clients[7].answers) == [8, 9, 10]
    assert table.find(7, 8, 0) == (8, None)
    with pytest.raises(OutcomeUnknownError):
        table.find(7, 7, POSITION)


def test_client_zero_asks_for_nothing_to_be_remembered() -> None:
    table = RequestTable(0)
    table.add(0, 1, 1, POSITION, (10, None))
    assert table.find(0, 1, 0) is None


def test_a_clients_answers_are_bounded_whatever_floor_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "REQUESTS_MAX", 5)
    table = RequestTable(0)
    for number in range(1, 11):
        table.add(7, number, 0, POSITION, (number, None))
    assert len(table._clients[7].answers) == 5
    assert table.find(7, 6, 0) == (6, None)
    with pytest.raises(OutcomeUnknownError):
        table.find(7, 5, POSITION)


def test_the_client_heard_of_longest_ago_is_forgotten_and_its_repeats_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "CLIENTS_MAX", 3)
    table = RequestTable(0)
    for client in (1, 2, 3):
        table.add(client, 1, 1, client * 100, (client, None))
    table.add(1, 2, 1, 400, (4, None))
    table.add(4, 1, 1, 500, (5, None))
    assert set(table._clients) == {1, 3, 4}
    with pytest.raises(OutcomeUnknownError):
        table.find(2, 1, 150)  # sent before its write at 200
    assert table.find(2, 2, 200) is None
    assert table.find(1, 1, 0) == (1, None)


# The file


def saved() -> RequestTable:
    table = RequestTable(100)
    table.add(7, 1, 1, POSITION, (10, None))
    table.add(2**64 - 1, 5, 3, POSITION + 100, (11, -(2**63)))
    return table


def test_a_table_comes_back_from_its_file() -> None:
    table = RequestTable.decode(saved().encode(LIVE + 50), LIVE)
    assert table is not None
    assert table.covered_from == 100
    assert table.find(7, 1, 0) == (10, None)
    assert table.find(2**64 - 1, 5, 0) == (11, -(2**63))
    assert table.find(7, 2, 100) is None
    for client, request, as_of in ((7, 2, 99), (2**64 - 1, 2, POSITION)):
        with pytest.raises(OutcomeUnknownError):
            table.find(client, request, as_of)
    table.add(7, 2, 1, LIVE + 10, (12, None))  # again, from the log
    table.add(7, 1, 1, LIVE + 10, (10, None))
    assert table.find(7, 1, 0) == (10, None)


def test_a_file_that_leaves_a_gap_before_the_logs_is_not_used() -> None:
    data = saved().encode(LIVE - 1)
    assert RequestTable.decode(data, LIVE) is None
    assert RequestTable.decode(data, LIVE - 1) is not None


def test_a_damaged_file_is_not_used() -> None:
    data = saved().encode(LIVE)
    for at in range(len(data)):
        assert RequestTable.decode(data[:at], LIVE) is None
        assert RequestTable.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], LIVE) is None


def test_a_file_of_a_newer_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "VERSION", 2)
    data = saved().encode(LIVE)
    monkeypatch.undo()
    assert RequestTable.decode(data, LIVE) is None
