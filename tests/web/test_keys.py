from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from nodes import RunningNode
from webtools import raw_request

import keyva


def put(http: httpx.Client, key: str, value: bytes, **headers: str) -> httpx.Response:
    return http.put(f"/kv/{key}", content=value, headers={name.replace("_", "-"): text for name, text in headers.items()})


def test_a_value_is_made_replaced_read_and_deleted(http: httpx.Client) -> None:
    assert http.get("/kv/life").status_code == 404
    made = put(http, "life", b"one")
    assert (made.status_code, made.content) == (201, b"")
    replaced = put(http, "life", b"two")
    assert (replaced.status_code, replaced.content) == (204, b"")
    assert replaced.headers["etag"] != made.headers["etag"]
    got = http.get("/kv/life")
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"two", "3")
    assert got.headers["etag"] == replaced.headers["etag"]
    gone = http.delete("/kv/life")
    assert (gone.status_code, gone.content) == (204, b"")
    assert http.delete("/kv/life").status_code == 404
    assert http.get("/kv/life").status_code == 404


def test_post_is_put(http: httpx.Client) -> None:
    assert http.post("/kv/post", content=b"1").status_code == 201
    assert http.post("/kv/post", content=b"2").status_code == 204
    assert http.get("/kv/post").content == b"2"


def test_head_is_get_without_the_value(http: httpx.Client) -> None:
    put(http, "head", b"x" * 1000, content_type="image/png")
    head, got = http.head("/kv/head"), http.get("/kv/head")
    assert head.content == b""
    left_out = {"date"}
    assert {k: v for k, v in head.headers.items() if k not in left_out} == {k: v for k, v in got.headers.items() if k not in left_out}
    absent = http.head("/kv/head-absent")
    assert (absent.status_code, absent.content) == (404, b"")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/",
        b"a/b/c",
        b"//",
        b"..",
        b"../../etc/passwd",
        b"./a",
        b"a/../b",
        b"%",
        b"%2F",
        b"a?b#c&d=e",
        b"a b+c",
        "ключ/鍵/🔑".encode(),
        b"\x00",
        b"\xff",
        b"\xfe\xff",
        bytes(range(256)),
        b"\r\nx: y",
        b"k" * 65533,
        b"\xc3" * 65533,
    ],
    ids=lambda key: repr(key[:20]),
)
def test_any_key_can_be_used(node: RunningNode, key: bytes) -> None:
    path = "/kv/" + quote(key, safe="")
    assert raw_request(node.url, "PUT", path, body=b"<%b>" % key[:10]).status == 201
    with keyva.open(node.directory) as db:
        assert db.get(key) == b"<%b>" % key[:10]
    assert raw_request(node.url, "GET", path).body == b"<%b>" % key[:10]
    assert raw_request(node.url, "DELETE", path).status == 204


def test_a_slash_may_be_encoded_or_not(http: httpx.Client, node: RunningNode) -> None:
    put(http, "slash/a", b"1")
    assert raw_request(node.url, "GET", "/kv/slash%2Fa").body == b"1"
    assert raw_request(node.url, "GET", "/kv/slash%2fa").body == b"1"
    assert raw_request(node.url, "GET", "/kv/slash/./a").status == 404
    assert raw_request(node.url, "GET", "/kv/slash/b/../a").status == 404


def test_a_key_may_be_given_in_base64(http: httpx.Client, node: RunningNode) -> None:
    assert http.put("/kv-base64/Li4", content=b"two dots").status_code == 201
    with keyva.open(node.directory) as db:
        assert db.get("..") == b"two dots"
        db.put(b"\xff\xfe", "any bytes")
    assert http.get("/kv-base64/Li4=").text == "two dots"
    assert http.get("/kv-base64/__4").text == "any bytes"
    assert http.head("/kv-base64/__4").headers["content-length"] == "9"
    assert http.delete("/kv-base64/Li4").status_code == 204
    assert http.get("/kv-base64/Li4").status_code == 404
    assert raw_request(node.url, "PUT", "/kv-base64/cmc%3D", body=b"padded").status == 201
    assert http.get("/kv-base64/cmc").text == "padded"
    for wrong in ("A", "%%%", "Li4%2E", "__8"):  # the last is FF FF
        assert http.get(f"/kv-base64/{wrong}").status_code == 400, wrong


@pytest.mark.parametrize("path", ["/kv/%", "/kv/%zz", "/kv/a%1"])
def test_a_broken_escape_is_refused(node: RunningNode, path: str) -> None:
    answer = raw_request(node.url, "GET", path)
    assert answer.status == 400
    assert b"%25" in answer.body


def test_the_stores_own_keys_are_refused(node: RunningNode) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert raw_request(node.url, method, "/kv/%FF%FF%01a").status == 400


def test_a_key_that_is_too_long_is_refused(node: RunningNode) -> None:
    assert raw_request(node.url, "PUT", "/kv/" + "k" * 65537, body=b"1").status == 414
    assert raw_request(node.url, "PUT", "/kv/" + "k" * 70000, body=b"1").status == 414
    assert raw_request(node.url, "GET", "/kv/" + "k" * 400_000).status == 414


def test_other_methods_are_refused_with_those_that_are_known(http: httpx.Client) -> None:
    for method in ("PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        answer = http.request(method, "/kv/a")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "DELETE, GET, HEAD, POST, PUT"
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("size", [0, 1, 65536, 300_000, 4_000_000])
def test_values_of_any_size(http: httpx.Client, size: int) -> None:
    value = os.urandom(size)
    assert put(http, f"size-{size}", value).status_code == 201
    got = http.get(f"/kv/size-{size}")
    assert got.content == value
    assert got.headers["content-length"] == str(size)


def test_a_chunked_body_is_taken(http: httpx.Client) -> None:
    parts = [os.urandom(100_000) for _ in range(20)]
    assert http.put("/kv/chunked", content=iter(parts)).status_code == 201
    assert http.get("/kv/chunked").content == b"".join(parts)


def test_a_value_that_is_too_large_is_refused_and_the_old_one_stays(http: httpx.Client) -> None:
    put(http, "large", b"old")
    for body in (b"x" * 4_000_001, iter([b"x" * 1_000_000] * 5)):
        answer = http.put("/kv/large", content=body)
        assert answer.status_code == 413
        assert "4000000" in answer.json()["detail"]
    assert http.get("/kv/large").content == b"old"


def test_encoded_and_partial_bodies_are_refused(http: httpx.Client) -> None:
    assert put(http, "encoded", b"x", content_encoding="gzip").status_code == 415
    assert put(http, "encoded", b"x", content_range="bytes 0-0/2").status_code == 400
    assert http.get("/kv/encoded").status_code == 404


class TestContentType:
    def test_what_was_sent_is_kept(self, http: httpx.Client, node: RunningNode) -> None:
        put(http, "typed", b"{}", content_type='application/vnd.x+json; a="b"')
        assert http.get("/kv/typed").headers["content-type"] == 'application/vnd.x+json; a="b"'
        with keyva.open(node.directory) as db:
            assert db.get_typed("typed") == keyva.Typed(b"{}", 'application/vnd.x+json; a="b"')
        put(http, "typed", b"{}")
        assert http.get("/kv/typed").headers["content-type"] == "text/plain; charset=utf-8"

    def test_an_answer_says_where_it_comes_from(self, http: httpx.Client) -> None:
        for kind, said in (("image/gif", "kept"), ("", "sniffed")):
            put(http, "origin", b"GIF89a...", content_type=kind)
            for answer in (http.get("/kv/origin"), http.head("/kv/origin"), http.get("/kv/origin", headers={"range": "bytes=0-1"})):
                assert (answer.headers["content-type"], answer.headers["keyva-content-type"]) == ("image/gif", said)

    @pytest.mark.parametrize("sent", [None, ""])
    def test_an_empty_or_missing_one_is_sniffed(self, http: httpx.Client, node: RunningNode, sent: str | None) -> None:
        http.put("/kv/sniffed", content=b"", headers={"content-type": "a/b"})
        headers = {} if sent is None else {"content-type": sent}
        http.put("/kv/sniffed", content=b"GIF89a...", headers=headers)
        got = http.get("/kv/sniffed")
        assert (got.headers["content-type"], got.headers["keyva-content-type"]) == ("image/gif", "sniffed")
        with keyva.open(node.directory) as db:
            assert db.get_typed("sniffed") == keyva.Typed(b"GIF89a...", None)
        assert got.headers["x-content-type-options"] == "nosniff"

    def test_one_that_cannot_be_kept_is_refused(self, http: httpx.Client, node: RunningNode) -> None:
        assert put(http, "type-long", b"", content_type="a/" + "b" * 300).status_code == 400
        assert raw_request(node.url, "PUT", "/kv/type-high", {"content-type": "a/b\xe9"}).status == 400

    def test_a_put_by_another_client_drops_it(self, http: httpx.Client, node: RunningNode) -> None:
        put(http, "type-dropped", b"a", content_type="image/png")
        with keyva.open(node.directory) as db:
            db.put("type-dropped", "b")
        assert http.get("/kv/type-dropped").headers["content-type"] == "text/plain; charset=utf-8"


class TestRange:
    @pytest.mark.parametrize(
        ("field", "status", "body", "content_range"),
        [
            ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
            ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
            ("bytes=7-", 206, b"789", "bytes 7-9/10"),
            ("bytes=7-1000", 206, b"789", "bytes 7-9/10"),
            ("bytes=-3", 206, b"789", "bytes 7-9/10"),
            ("bytes=-1000", 206, b"0123456789", "bytes 0-9/10"),
            ("Bytes = 1-2", 206, b"12", "bytes 1-2/10"),
            ("bytes=10-", 416, None, "bytes */10"),
            ("bytes=99999999999999999-", 416, None, "bytes */10"),
            ("bytes=-0", 416, None, "bytes */10"),
            ("bytes=0-1,4-5", 200, b"0123456789", None),
            ("bytes=5-2", 200, b"0123456789", None),
            ("bytes=-", 200, b"0123456789", None),
            ("bytes=a-b", 200, b"0123456789", None),
            ("lines=1-2", 200, b"0123456789", None),
            ("", 200, b"0123456789", None),
        ],
    )
    def test_a_range(self, http: httpx.Client, field: str, status: int, body: bytes | None, content_range: str | None) -> None:
        put(http, "range", b"0123456789")
        got = http.get("/kv/range", headers={"range": field})
        assert got.status_code == status
        assert got.headers.get("content-range") == content_range
        assert body is None or got.content == body
        assert body is None or got.headers["content-length"] == str(len(body))

    def test_if_range(self, http: httpx.Client) -> None:
        etag = put(http, "if-range", b"0123456789").headers["etag"]
        assert http.get("/kv/if-range", headers={"range": "bytes=0-1", "if-range": etag}).status_code == 206
        assert http.get("/kv/if-range", headers={"range": "bytes=0-1", "if-range": '"other"'}).content == b"0123456789"
        assert http.get("/kv/if-range", headers={"range": "bytes=0-1", "if-range": f"W/{etag}"}).status_code == 200

    def test_head_and_an_empty_value_have_no_ranges(self, http: httpx.Client) -> None:
        put(http, "range-empty", b"")
        assert http.get("/kv/range-empty", headers={"range": "bytes=0-"}).status_code == 416
        put(http, "range-head", b"0123456789")
        assert http.head("/kv/range-head", headers={"range": "bytes=0-1"}).headers["content-length"] == "10"


def test_errors_are_problem_documents(http: httpx.Client) -> None:
    answer = http.get("/kv/no-such-key")
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem == {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "there is no such key"}


def test_pipelined_requests_are_answered_in_order(http: httpx.Client, node: RunningNode) -> None:
    for number in range(20):
        put(http, f"pipe-{number}", b"<%d>" % number)
    host = node.url.removeprefix("http://").encode()
    wire = b"".join(b"GET /kv/pipe-%d HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (n, host, b"Connection: close\r\n" * (n == 19)) for n in range(20))
    answer = raw_request(node.url, raw=wire).everything
    assert re.findall(rb"<(\d+)>", answer) == [b"%d" % n for n in range(20)]
