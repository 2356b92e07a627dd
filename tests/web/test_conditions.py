from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from nodes import RunningNode
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

import keyva
from keyva.web.conditional import etag_of, matches
from keyva.web.replies import ProblemError

ABSENT = '"00000000000000000000000000000000"'


def test_put_if_none_match_makes_only_new_keys(http: httpx.Client) -> None:
    assert http.put("/kv/new", content=b"1", headers={"if-none-match": "*"}).status_code == 201
    answer = http.put("/kv/new", content=b"2", headers={"if-none-match": "*"})
    assert answer.status_code == 412
    assert answer.headers["etag"] == http.get("/kv/new").headers["etag"]
    assert http.get("/kv/new").content == b"1"


def test_put_if_match_replaces_only_what_was_read(http: httpx.Client) -> None:
    assert http.put("/kv/cas", content=b"1", headers={"if-match": "*"}).status_code == 412
    first = http.put("/kv/cas", content=b"1").headers["etag"]
    second = http.put("/kv/cas", content=b"2", headers={"if-match": first})
    assert second.status_code == 204
    assert http.put("/kv/cas", content=b"3", headers={"if-match": first}).status_code == 412
    assert http.put("/kv/cas", content=b"3", headers={"if-match": f'"x", {second.headers["etag"]}'}).status_code == 204
    assert http.put("/kv/cas", content=b"4", headers={"if-match": "*"}).status_code == 204
    assert http.get("/kv/cas").content == b"4"


def test_weak_tags_never_meet_if_match(http: httpx.Client) -> None:
    etag = http.put("/kv/weak", content=b"1").headers["etag"]
    assert http.put("/kv/weak", content=b"2", headers={"if-match": f"W/{etag}"}).status_code == 412
    assert http.get("/kv/weak", headers={"if-none-match": f"W/{etag}"}).status_code == 304


def test_a_condition_that_does_not_hold_is_told_whatever_the_body_has(http: httpx.Client) -> None:
    http.put("/kv/early", content=b"1")
    for size in (0, 1000, 100_000, 4_000_000):
        answer = http.put("/kv/early", content=b"x" * size, headers={"if-none-match": "*"})
        assert answer.status_code == 412
        assert http.get("/kv/early").content == b"1"


def test_delete_with_conditions(http: httpx.Client) -> None:
    etag = http.put("/kv/del", content=b"1").headers["etag"]
    assert http.delete("/kv/del", headers={"if-match": ABSENT}).status_code == 412
    assert http.delete("/kv/del", headers={"if-none-match": etag}).status_code == 412
    assert http.delete("/kv/del", headers={"if-match": etag}).status_code == 204
    assert http.delete("/kv/del", headers={"if-match": etag}).status_code == 412


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_get_of_what_the_client_has_is_304(http: httpx.Client, method: str) -> None:
    etag = http.put("/kv/304", content=b"1").headers["etag"]
    for field in (etag, f'"x", {etag}', "*"):
        answer = http.request(method, "/kv/304", headers={"if-none-match": field})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert "content-length" not in answer.headers
    assert http.request(method, "/kv/304", headers={"if-none-match": ABSENT}).status_code == 200
    assert http.request(method, "/kv/304", headers={"if-match": ABSENT}).status_code == 412
    assert http.request(method, "/kv/304-absent", headers={"if-none-match": "*"}).status_code == 404
    assert http.request(method, "/kv/304-absent", headers={"if-match": "*"}).status_code == 412


def test_repeated_fields_are_one_list(http: httpx.Client) -> None:
    etag = http.put("/kv/lists", content=b"1").headers["etag"]
    assert http.get("/kv/lists", headers=[("if-none-match", '"a"'), ("if-none-match", etag)]).status_code == 304


@pytest.mark.parametrize("field", ["abc", '"abc', "W/abc", '"a" "b"', "*, *", "'a'"])
def test_malformed_conditions_are_refused(http: httpx.Client, field: str) -> None:
    http.put("/kv/malformed", content=b"1")
    for name in ("if-match", "if-none-match"):
        assert http.get("/kv/malformed", headers={name: field}).status_code == 400
        assert http.put("/kv/malformed", content=b"2", headers={name: field}).status_code == 400
    assert http.get("/kv/malformed").content == b"1"


def test_the_tag_tells_values_and_types_apart(http: httpx.Client) -> None:
    tags = [http.put("/kv/tags", content=b"1", headers=h).headers["etag"] for h in ({}, {"content-type": "a/b"}, {"content-type": "a/c"})]
    assert len(set(tags)) == 3
    assert etag_of(b"ab", "c") != etag_of(b"a", "bc")
    for kind in (None, "a/b"):
        large = b"x" * 65536
        short = [xxh3_128_hexdigest(large).encode(), xxh3_128_digest(large), xxh3_128_digest(large) + b"65536:"]
        assert len({etag_of(value, kind) for value in (large, *short)}) == 4
    assert etag_of(b"x" * 70000, None) != etag_of(b"x" * 70000, "a/b") != etag_of(b"x" * 70001, "a/b")


def test_lists_of_tags() -> None:
    assert matches(b'"a", W/"b"', b'"b"', weak=True)
    assert not matches(b'"a", W/"b"', b'"b"', weak=False)
    assert matches(b'"a,b" , "c"', b'"a,b"', weak=False)
    for field in (b'"a",, "c"', b', "c"', b'"c",', b' ,\t,"c" , ,'):
        assert matches(field, b'"c"', weak=False), field
    assert not matches(b" , ", b'"c"', weak=False)
    assert not matches(b"*", None, weak=True)
    with pytest.raises(ProblemError):
        matches(b'"a";', b'"a"', weak=True)


def test_a_change_by_another_client_is_noticed(http: httpx.Client, node: RunningNode) -> None:
    etag = http.put("/kv/other", content=b"1").headers["etag"]
    with keyva.open(node.directory) as db:
        db.put("other", "2")
        assert http.put("/kv/other", content=b"3", headers={"if-match": etag}).status_code == 412
        assert db.get("other") == b"2"


def race(node: RunningNode, writers: int, request: tuple[str, str], headers: dict[str, str]) -> list[int]:
    """Let ``writers`` clients make one request each at the same moment, and return their statuses."""
    start = threading.Barrier(writers)

    def one(number: int) -> int:
        with httpx.Client(base_url=node.url, timeout=60) as client:
            client.get("/api/health")  # connected
            start.wait(60)
            return client.request(*request, content=b"writer %d" % number, headers=headers).status_code

    with ThreadPoolExecutor(writers) as pool:
        return sorted(pool.map(one, range(writers)))


def test_of_many_writers_with_one_tag_exactly_one_wins(http: httpx.Client, node: RunningNode) -> None:
    for attempt in range(5):
        etag = http.put(f"/kv/race-{attempt}", content=b"0").headers["etag"]
        assert race(node, 16, ("PUT", f"/kv/race-{attempt}"), {"if-match": etag}) == [204] + [412] * 15


def test_of_many_writers_of_a_new_key_exactly_one_wins(node: RunningNode) -> None:
    for attempt in range(5):
        assert race(node, 16, ("PUT", f"/kv/first-{attempt}"), {"if-none-match": "*"}) == [201] + [412] * 15


def test_of_many_puts_and_deletes_exactly_one_makes_and_one_removes(http: httpx.Client, node: RunningNode) -> None:
    assert race(node, 16, ("PUT", "/kv/made"), {}) == [201] + [204] * 15
    assert race(node, 16, ("DELETE", "/kv/made"), {}) == [204] + [404] * 15
    assert http.get("/kv/made").status_code == 404


def test_counting_by_compare_and_set_loses_nothing(http: httpx.Client, node: RunningNode) -> None:
    http.put("/kv/counter", content=b"0")

    def add(_: int) -> None:
        with httpx.Client(base_url=node.url, timeout=60) as client:
            done = 0
            while done < 20:
                found = client.get("/kv/counter")
                answer = client.put("/kv/counter", content=b"%d" % (int(found.content) + 1), headers={"if-match": found.headers["etag"]})
                assert answer.status_code in (204, 412)
                done += answer.status_code == 204

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert http.get("/kv/counter").content == b"160"
