from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from nodes import RunningNode, eventually
from prometheus_client.parser import text_string_to_metric_families

import keyva


def b64(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def filled(node: RunningNode) -> RunningNode:
    with keyva.open(node.directory) as db:
        db.put_many({f"page/{number:05}": f"value {number}" for number in range(2500)})
        db.put("odd/\udcff".encode("utf-8", "surrogateescape"), b"\x00\x01")
        db.put("typed/a", "<b>", content_type="image/svg+xml")
    return node


def pages(http: httpx.Client, **parameters: Any) -> list[str]:
    keys: list[str] = []
    while True:
        found = http.get("/api/keys", params=parameters).json()
        keys += [entry["key"] for entry in found["keys"]]
        if found["next"] is None:
            return keys
        parameters["start_base64"] = found["next"]


class TestKeys:
    def test_pages_in_both_directions_give_every_key_once(self, http: httpx.Client, filled: RunningNode) -> None:
        everything = [f"page/{number:05}" for number in range(2500)]
        assert pages(http, prefix="page/", limit=999) == everything
        assert pages(http, prefix="page/", limit=1000, reverse=True) == everything[::-1]
        assert pages(http, prefix="page/000", limit=7) == everything[:100]

    def test_the_default_page_has_100_keys(self, http: httpx.Client, filled: RunningNode) -> None:
        assert len(http.get("/api/keys", params={"prefix": "page/"}).json()["keys"]) == 100

    def test_start_is_inclusive_in_both_directions(self, http: httpx.Client, filled: RunningNode) -> None:
        for reverse in ("true", "false"):
            found = http.get("/api/keys", params={"prefix": "page/", "start": "page/00500", "limit": 2, "reverse": reverse}).json()
            assert found["keys"][0]["key"] == "page/00500"

    def test_an_entry_tells_size_and_type(self, http: httpx.Client, filled: RunningNode) -> None:
        (typed,) = http.get("/api/keys", params={"prefix": "typed/"}).json()["keys"]
        assert typed == {"key": "typed/a", "key_base64": b64(b"typed/a"), "size": 3, "content_type": "image/svg+xml"}
        (odd,) = http.get("/api/keys", params={"prefix_base64": b64(b"odd/")}).json()["keys"]
        assert odd == {"key": None, "key_base64": b64(b"odd/\xff"), "size": 2, "content_type": "application/octet-stream"}

    def test_beyond_the_last_key_there_is_nothing(self, http: httpx.Client, filled: RunningNode) -> None:
        assert http.get("/api/keys", params={"prefix": "page/", "start": "zzz"}).json() == {"keys": [], "next": None}
        assert http.get("/api/keys", params={"prefix_base64": b64(b"\xff\xff")}).json() == {"keys": [], "next": None}

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit=-1",
            "reverse=maybe",
            "prefix=a&prefix_base64=YQ",
            "prefix_base64=!",
            "start_base64=a",
            "prefix=a&prefix=b",
            "unknown=1",
            "limit=1&limit=2",
            "limit=%FF",
        ],
    )
    def test_wrong_parameters_are_refused(self, http: httpx.Client, query: str) -> None:
        answer = http.get(f"/api/keys?{query}")
        assert answer.status_code == 400
        assert query.partition("=")[0].removesuffix("_base64") in answer.json()["detail"]

    def test_what_is_no_text_is_not_taken_for_other_text(self, http: httpx.Client) -> None:
        for query in ("keys?prefix=%FF", "keys?start=a%ED%A0%80", "count?prefix=a%FF"):
            answer = http.get(f"/api/{query}")
            assert answer.status_code == 400
            assert query.split("?")[1].split("=")[0] + "_base64" in answer.json()["detail"]
        assert http.get("/api/keys?%FF=1").status_code == 400
        assert http.get("/api/keys?prefix=%EF%BF%BD").status_code == 200

    def test_count(self, http: httpx.Client, filled: RunningNode) -> None:
        assert http.get("/api/count", params={"prefix": "page/"}).json() == {"count": 2500, "complete": True}
        assert http.get("/api/count", params={"prefix": "none"}).json() == {"count": 0, "complete": True}


class TestBatch:
    def test_all_operations_are_made(self, http: httpx.Client, node: RunningNode) -> None:
        operations = [
            {"op": "put", "key": "batch/a", "value": "text"},
            {"op": "put", "key_base64": b64(b"batch/\xff"), "value_base64": b64(b"\x00\xff"), "content_type": "image/png"},
            {"op": "delete", "key": "batch/none"},
        ]
        assert http.post("/api/batch", json={"operations": operations}).json() == {"operations": 3}
        with keyva.open(node.directory) as db:
            assert db.get_typed("batch/a") == keyva.Typed(b"text", None)
            assert db.get_typed(b"batch/\xff") == keyva.Typed(b"\x00\xff", "image/png")

    def test_expectations_are_of_the_same_moment(self, http: httpx.Client) -> None:
        etag = http.put("/kv/expect/a", content=b"1").headers["etag"]
        change = {"operations": [{"op": "put", "key": "expect/b", "value": "2"}]}
        wrong = http.post("/api/batch", json={**change, "expect": [{"key": "expect/a", "etag": None}]})
        assert (wrong.status_code, wrong.json()["key"], wrong.json()["etag"]) == (412, "expect/a", etag)
        assert http.get("/kv/expect/b").status_code == 404
        both = [{"key": "expect/a", "etag": etag}, {"key": "expect/b", "etag": None}]
        assert http.post("/api/batch", json={**change, "expect": both}).status_code == 200
        assert http.post("/api/batch", json={**change, "expect": both}).status_code == 412

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b'{"operations": [{"op": "move", "key": "a"}]}',
            b'{"operations": [{"op": "put", "key": "a"}]}',
            b'{"operations": [{"op": "put", "value": "a"}]}',
            b'{"operations": [{"op": "put", "key": "a", "key_base64": "YQ", "value": "a"}]}',
            b'{"operations": [{"op": "delete", "key": "a", "value": "b"}]}',
            b'{"operations": [{"op": "put", "key_base64": "_____w", "value": "a"}]}',
            b'{"operations": [{"op": "put", "key": "\\ud800", "value": "a"}]}',
            b'{"operations": [{"op": "put", "key": "a", "value": "a", "content_type": "\\u00e9"}]}',
            b'{"operations": [{"op": "put", "key": "batch-bad", "value": "a"}, {"op": "put"}]}',
            b'{"operations": [], "unknown": 1}',
        ],
    )
    def test_a_wrong_batch_is_refused_as_a_whole(self, http: httpx.Client, body: bytes) -> None:
        answer = http.post("/api/batch", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert http.get("/kv/batch-bad").status_code == 404

    @pytest.mark.parametrize("sent", ["", " ", "\t "])
    def test_an_empty_type_is_none(self, http: httpx.Client, node: RunningNode, sent: str) -> None:
        operation = {"op": "put", "key": "batch/untyped", "value": "1", "content_type": sent}
        assert http.post("/api/batch", json={"operations": [operation, {**operation, "key": "batch/typed", "content_type": " a/b "}]})
        with keyva.open(node.directory) as db:
            assert db.get_typed("batch/untyped") == keyva.Typed(b"1", None)
            assert db.get_typed("batch/typed") == keyva.Typed(b"1", "a/b")

    def test_too_many_expectations_are_refused(self, http: httpx.Client) -> None:
        body = {"operations": [], "expect": [{"key": f"many/{number}", "etag": None} for number in range(10_001)]}
        answer = http.post("/api/batch", json=body)
        assert answer.status_code == 413
        assert "10000 expectations" in answer.json()["detail"]
        assert http.post("/api/batch", json={**body, "expect": body["expect"][1:]}).status_code == 200

    def test_other_types_than_json_are_refused(self, http: httpx.Client) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            assert http.post("/api/batch", content=b'{"operations": []}', headers={"content-type": kind}).status_code == 415


class TestDeletePrefix:
    def test_deletes_what_was_counted_and_nothing_else(self, http: httpx.Client, node: RunningNode) -> None:
        with keyva.open(node.directory) as db:
            db.put_many({f"gone/{number}": "x" for number in range(2345)})
            db.put("gone0", "stays")
            answer = http.post("/api/delete-prefix", json={"prefix": "gone/", "count": 2344})
            assert (answer.status_code, answer.json()["count"]) == (409, 2345)
            assert http.get("/api/count", params={"prefix": "gone/"}).json()["count"] == 2345
            assert http.post("/api/delete-prefix", json={"prefix": "gone/", "count": 2345}).json() == {"deleted": 2345}
            assert list(db.iterator(prefix="gone")) == [(b"gone0", b"stays")]

    def test_at_least_so_many(self, http: httpx.Client, node: RunningNode) -> None:
        with keyva.open(node.directory) as db:
            db.put_many({f"least/{number}": "x" for number in range(10)})
        few = {"prefix_base64": b64(b"least/"), "count": 11, "complete": False}
        assert http.post("/api/delete-prefix", json=few).status_code == 409
        assert http.post("/api/delete-prefix", json={**few, "count": 5}).json() == {"deleted": 10}

    def test_a_prefix_and_a_count_are_needed(self, http: httpx.Client) -> None:
        assert http.post("/api/delete-prefix", json={"count": 0}).status_code == 400
        assert http.post("/api/delete-prefix", json={"prefix": "a"}).status_code == 400


def test_stats_levels_and_processes(http: httpx.Client, filled: RunningNode) -> None:
    with keyva.open(filled.directory) as db:
        db.flush()
    stats = http.get("/api/stats").json()
    assert stats["directory"] == filled.directory
    assert stats["levels"][0]["runs"] >= 1
    levels = http.get("/api/levels").json()["levels"]
    assert sum(run["entries"] for run in levels[0]["runs"]) == stats["levels"][0]["entries"]
    assert levels[0]["runs"][0]["smallest"]["key"] is not None
    processes = {process["role"]: process for process in http.get("/api/processes").json()["processes"]}
    assert set(processes) == {"node", "writer", "flusher", "compactor", "web"}
    assert processes["web"]["address"] == filled.url


def test_health_is_ready(http: httpx.Client) -> None:
    answer = http.get("/api/health")
    assert (answer.status_code, answer.json()) == (200, {"live": True, "ready": True})


def test_metrics_are_what_prometheus_reads(http: httpx.Client, filled: RunningNode) -> None:
    http.put("/kv/metrics", content=b"1")
    http.get("/kv/metrics")
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    values = {(sample.name, *sorted(sample.labels.items())): sample.value for family in families.values() for sample in family.samples}
    assert values["keyva_up",] == 1
    assert values["keyva_writes_total",] >= 2500
    assert values["keyva_process_up", ("role", "writer")] == 1
    gets = ("method", "GET"), ("route", "/kv")
    assert values["keyva_http_requests_total", *gets, ("status", "200")] >= 1
    assert values["keyva_http_request_duration_seconds_count", *gets] >= 1
    for family in families.values():
        assert family.name.startswith("keyva_"), family.name
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_kb", "_mb"))


def test_the_stream_tells_rates_levels_and_processes(http: httpx.Client, node: RunningNode) -> None:
    with http.stream("GET", "/api/stats/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = []
        lines = answer.iter_lines()
        for line in lines:
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                http.put("/kv/stream", content=b"%d" % len(seen))
            if len(seen) == 3:
                break
    for event in seen:
        assert event["available"]
        assert event["memtable"]["capacity_bytes"] == 64 * 1024 * 1024
        assert {process["role"] for process in event["processes"]} == {"node", "writer", "flusher", "compactor", "web"}
    assert seen[0]["rates"]["writes"] is None
    assert seen[2]["rates"]["writes"] > 0
    assert seen[2]["rates"]["http_writes"] > 0
    assert seen[2]["latency"]["write_p50_s"] is not None

    def listeners() -> float:
        (line,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith("keyva_http_streams ")]
        return float(line.split()[1])

    eventually(lambda: listeners() == 0, "the stream has ended")


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    for path in ("/nothing", "/kv", "/api", "/api/", "/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/api/keys/"):
        answer = http.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    answer = http.post("/api/keys")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
