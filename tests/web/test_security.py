from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from nodes import RunningNode
from webtools import raw_request

TOKEN = "0123456789abcdef-secret"


def test_only_names_of_this_host_are_served(node: RunningNode) -> None:
    port = urlsplit(node.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.1", "app.localhost"):
        assert raw_request(node.url, "GET", "/api/health", {"host": host}).status == 200, host
    for host in (f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "localhost.evil.example", f"192.168.1.5:{port}", "0.0.0.0"):
        for path in ("/", "/kv/a", "/api/health", "/seq/a"):
            assert raw_request(node.url, "GET", path, {"host": host}).status == 421, host
    for host in ("", "a b", "localhost:99999999", "local\x00host", "user@localhost", "localhost/path"):
        assert raw_request(node.url, "GET", "/kv/a", {"host": host}).status == 400, host


def test_a_request_has_one_host(node: RunningNode) -> None:
    assert raw_request(node.url, raw=b"GET /kv/a HTTP/1.1\r\nConnection: close\r\n\r\n").status == 400
    two = b"GET /kv/a HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert raw_request(node.url, raw=two).status == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_pages_of_other_origins_are_refused(node: RunningNode, http: httpx.Client, method: str) -> None:
    http.put("/kv/origin", content=b"1")
    port = urlsplit(node.url).port
    for origin in ("http://evil.example", "null", f"http://localhost:{port}", f"http://127.0.0.1:{port}0", "http://127.0.0.1", "file://"):
        assert http.request(method, "/kv/origin", headers={"origin": origin}).status_code == 403, origin
    assert http.get("/kv/origin").content == b"1"
    assert http.request(method, "/kv/origin", headers={"origin": node.url}).status_code in (200, 204)


def test_browsers_that_say_another_site_asks_are_refused(http: httpx.Client) -> None:
    for site in ("cross-site", "same-site"):
        for path in ("/kv/a", "/seq/fetch", "/api/keys", "/api/stats", "/metrics"):
            assert http.get(path, headers={"sec-fetch-site": site}).status_code == 403
            assert http.get(path, headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate"}).status_code == 403
        assert http.get("/", headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate"}).status_code != 403  # a link to the page
    assert http.get("/seq/fetch", headers={"sec-fetch-site": "same-origin"}).text == "0"
    assert http.get("/seq/fetch", headers={"sec-fetch-site": "none"}).text == "1"


def test_stored_content_is_never_served_as_code(http: httpx.Client) -> None:
    http.put("/kv/code.js", content=b"alert(1)", headers={"content-type": "text/javascript"})
    for kind in ("script", "style", "worker", "sharedworker", "serviceworker", "object", "embed"):
        assert http.get("/kv/code.js", headers={"sec-fetch-site": "same-origin", "sec-fetch-dest": kind}).status_code == 403
    for kind in ("image", "audio", "video", "empty", "document"):
        assert http.get("/kv/code.js", headers={"sec-fetch-site": "same-origin", "sec-fetch-dest": kind}).status_code == 200


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", ""])
def test_stored_documents_are_shown_in_a_sandbox(http: httpx.Client, kind: str) -> None:
    http.put("/kv/doc", content=b"<html><script>alert(1)</script>", headers={"content-type": kind})
    for answer in (http.get("/kv/doc"), http.head("/kv/doc"), http.get("/kv/doc", headers={"range": "bytes=0-5"})):
        policy = answer.headers["content-security-policy"].split("; ")
        assert "sandbox" in policy
        assert "default-src 'none'" in policy
        assert not [part for part in policy if part.startswith("script-src") or "allow-" in part]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "set-cookie" not in answer.headers


def test_no_answer_sets_cookies_or_lets_other_origins_read(http: httpx.Client) -> None:
    http.put("/kv/cors", content=b"1")
    for path in ("/", "/kv/cors", "/kv/none", "/api/keys", "/api/stats", "/metrics", "/api/openapi.json"):
        answer = http.get(path)
        assert not [name for name in answer.headers if name.startswith("access-control-") or name in ("set-cookie", "server")]


def test_error_texts_are_no_documents(http: httpx.Client) -> None:
    answer = http.get("/api/keys", params={"<script>alert(1)</script>": "1"})
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "wire",
    [
        b"GET /kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"GET /kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PUT /kv/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /kv/a HTTP/1.1\r\nHost: localhost\r\nBad Name: 1\r\n\r\n",
        b"GET /kv/a HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /kv/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /kv/a\x00b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET kv/a HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /kv/a HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 1000,
        b"hello\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(node: RunningNode, http: httpx.Client, wire: bytes) -> None:
    assert raw_request(node.url, raw=wire).status in (400, 405, 505)
    assert http.get("/api/health").status_code == 200


def test_a_whole_url_is_checked_by_its_host(node: RunningNode, http: httpx.Client) -> None:
    http.put("/kv/whole", content=b"1")
    for url, status in (
        (node.url, 200),
        ("HTTP://LOCALHOST", 200),
        ("http://evil.example", 421),
        ("http://user@localhost", 400),
        ("http://", 400),
        ("ftp://localhost", 400),
    ):
        assert raw_request(node.url, "GET", f"{url}/kv/whole").status == status, url
    assert raw_request(node.url, "GET", "http://localhost").status == 200
    assert raw_request(node.url, "GET", "http://localhost/kv/whole", {"host": "a b"}).status == 200  # it counts for nothing
    assert raw_request(node.url, raw=b"GET http://localhost/kv/whole HTTP/1.1\r\nConnection: close\r\n\r\n").status == 400
    own = {"host": "localhost", "origin": "http://localhost"}
    assert raw_request(node.url, "GET", "http://127.0.0.1/kv/whole", own).status == 403


@pytest.mark.parametrize("target", ["/kv/target#part", "/kv/target?a#part", "*", "localhost:80", "?a", "kv/target"])
def test_other_targets_than_paths_and_urls_are_refused(node: RunningNode, http: httpx.Client, target: str) -> None:
    assert raw_request(node.url, "PUT", target, body=b"1").status == 400
    assert raw_request(node.url, "OPTIONS", target).status == (404 if target == "*" else 400)
    assert http.get("/kv/target").status_code == 404


@pytest.mark.parametrize("codings", [["gzip, chunked"], ["gzip", "chunked"], ["identity", "chunked"], ["gzip"], ["xchunked"]])
def test_other_transfer_codings_than_chunked_are_refused(node: RunningNode, http: httpx.Client, codings: list[str]) -> None:
    fields = "".join(f"Transfer-Encoding: {coding}\r\n" for coding in codings).encode()
    answer = raw_request(node.url, raw=b"PUT /kv/coded HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n3\r\nabc\r\n0\r\n\r\n")
    assert answer.status == 501
    assert http.get("/kv/coded").status_code == 404


def test_headers_have_limits(node: RunningNode) -> None:
    assert raw_request(node.url, headers={f"x-{number}": "1" for number in range(120)}).status == 431
    assert raw_request(node.url, headers={"x-large": "a" * 40_000}).status == 431
    endless = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + b"a" * 3_000_000
    assert raw_request(node.url, raw=endless).status == 431


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("guarded")
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    with RunningNode(folder / "d", "--http=127.0.0.1:0", "--readers=0", f"--http-token-file={token}") as running:
        yield running


class TestToken:
    def test_requests_without_it_are_refused(self, guarded: RunningNode) -> None:
        for path in ("/kv/a", "/seq/a", "/api/keys", "/api/stats", "/api/stats/stream", "/metrics"):
            for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}):
                answer = httpx.get(guarded.url + path, headers=given)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert httpx.put(guarded.url + "/kv/a", content=b"1", headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401

    def test_requests_with_it_are_served(self, guarded: RunningNode) -> None:
        good = {"authorization": f"Bearer {TOKEN}"}
        assert httpx.put(guarded.url + "/kv/a", content=b"1", headers=good).status_code == 201
        assert httpx.get(guarded.url + "/kv/a", headers={"authorization": f"bearer {TOKEN}"}).content == b"1"

    def test_health_and_the_page_need_none(self, guarded: RunningNode) -> None:
        for path in ("/api/health", "/api/openapi.json", "/", "/static/none"):
            assert httpx.get(guarded.url + path).status_code != 401
        assert httpx.post(guarded.url + "/api/health").status_code == 401


class TestPath:
    def test_the_disk_cannot_be_reached(self, node: RunningNode) -> None:
        for path in ("/static/../../app.py", "/static/%2e%2e%2fapp.py", "/static//etc/passwd", "/static/..%5capp.py", "/../../etc/passwd"):
            assert raw_request(node.url, "GET", path).status == 404

    def test_the_store_is_private(self, node: RunningNode) -> None:
        assert os.stat(Path(node.directory)).st_mode & 0o077 == 0
