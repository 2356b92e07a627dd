from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from nodes import RunningNode
from webtools import kill_and_wait, wait_for_more

import keyva


def test_a_sequence_begins_at_0_and_can_be_reset(http: httpx.Client) -> None:
    answers = [http.get("/seq/a") for _ in range(3)]
    assert [answer.content for answer in answers] == [b"0", b"1", b"2"]
    assert answers[0].headers["content-type"] == "text/plain; charset=utf-8"
    assert answers[0].headers["cache-control"] == "no-store"
    reset = http.delete("/seq/a")
    assert (reset.status_code, reset.content) == (204, b"")
    assert http.get("/seq/a").content == b"0"
    assert http.delete("/seq/never-used").status_code == 204


def test_names_are_any_bytes_and_no_keys(http: httpx.Client) -> None:
    for name in ("", "a/b", "%2F", "%00%FE", "%D0%BA"):
        assert [http.get(f"/seq/{name}").text for _ in range(2)] == ["0", "1"]
        assert http.get(f"/kv/{name}").status_code == 404
    assert [http.get("/seq/%FF%FF").text for _ in range(2)] == ["0", "1"]
    assert http.get("/api/keys").json()["keys"] == []


def test_head_takes_no_number(http: httpx.Client) -> None:
    answer = http.head("/seq/head")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")
    assert http.post("/seq/head").status_code == 405
    assert http.get("/seq/head").text == "0"


def test_http_and_python_share_sequences(http: httpx.Client, node: RunningNode) -> None:
    with keyva.open(node.directory) as db:
        assert [http.get("/seq/shared").text, str(db.sequence_next("shared")), http.get("/seq/shared").text] == ["0", "1", "2"]


def test_numbers_are_given_out_once_while_writer_and_gateway_are_killed(tmp_path: Path) -> None:
    """Each number at most once; those that are missing are of requests whose answers were lost."""
    with RunningNode(tmp_path / "d", "--http=127.0.0.1:0", "--readers=0") as node:
        taken: list[int] = []
        lost: list[str] = []
        stop = threading.Event()

        def take(_: int) -> None:
            with httpx.Client(base_url=node.url, timeout=60) as client:
                while not stop.is_set():
                    try:
                        answer = client.get("/seq/s")
                    except httpx.TransportError as error:
                        lost.append(repr(error))
                        continue
                    if answer.status_code == 200:
                        taken.append(int(answer.text))
                    else:
                        assert answer.status_code in (503, 504), answer.text
                        lost.append(answer.text)

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(take, number) for number in range(8)]
            try:
                for role in ("writer", "web", "writer", "web"):
                    wait_for_more(taken, 100)
                    kill_and_wait(node, role)
                wait_for_more(taken, 100)
            finally:
                stop.set()
            for future in futures:
                future.result(60)
        assert len(taken) == len(set(taken))
        missing = set(range(max(taken) + 1)) - set(taken)
        assert len(missing) <= len(lost)
