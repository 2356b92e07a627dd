"""Who may ask: Host, Origin, where a browser says the request comes from, and the token; and the headers that bind browsers.

Threats: a web page on another site that makes the user's browser ask this server (CSRF), also under a name of its own that it lets point
here (DNS rebinding); stored content that runs script in the page's origin; other hosts. See docs/http.md, "Security".
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence

from .asgi import Request
from .replies import ProblemError

__all__ = ["STORED_HEADERS", "Guard", "page_headers"]

Header = tuple[bytes, bytes]

NOSNIFF: Header = (b"x-content-type-options", b"nosniff")

STORED_HEADERS: Sequence[Header] = (
    NOSNIFF,
    (b"content-security-policy", b"sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
"""Of every stored value: a browser shows it in an origin of its own, without scripts, plugins, forms or loads."""

_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?\Z")
_CODE = frozenset(
    [b"script", b"style", b"worker", b"sharedworker", b"serviceworker", b"audioworklet", b"paintworklet", b"xslt", b"object", b"embed"]
)
_OPEN_PATHS = (b"/", b"/api/health", b"/api/openapi.json", b"/favicon.ico")


def page_headers(host: bytes) -> list[Header]:
    """Return the headers of the page and its files. Scripts are loaded from /static/ alone, never from a stored value."""
    static = b"'self'" if host.startswith(b"[") else host + b"/static/"  # CSP has no way to write an IPv6 address
    policy = (
        b"default-src 'none'; script-src " + static + b"; style-src " + static + b"; img-src 'self' blob: data:; media-src 'self' blob:; "
        b"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; frame-src 'none'"
    )
    return [
        NOSNIFF,
        (b"content-security-policy", policy),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]


class Guard:
    """Checks requests. ``any_host`` when it listens beyond loopback, where names are not known and the token protects."""

    def __init__(self, token: bytes | None, *, any_host: bool) -> None:
        assert token is not None or not any_host
        self._bearer = None if token is None else b"bearer " + token
        self._any_host = any_host
        self._good_hosts: set[bytes] = set()

    def check(self, request: Request) -> None:
        """Raise `ProblemError` for a request that must not be served. Hot."""
        headers = request.headers
        host = headers.get(b"host", b"")
        if host not in self._good_hosts:
            self._check_host(host)
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in (b"http://" + host.lower(), b"https://" + host.lower()):
            raise ProblemError(403, "requests from pages of another origin are refused")
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            self._check_fetch(request, site)
        if self._bearer is not None and not self._is_open(request):
            self._check_token(headers.get(b"authorization", b""))

    def _check_host(self, host: bytes) -> None:
        found = _HOST.match(host)
        if found is None:
            raise ProblemError(400, "the request needs one Host header: a name or address, and a port")
        if not self._any_host and not _is_loopback(found[1].decode()):
            raise ProblemError(421, f"this server is reached as localhost or 127.0.0.1, not as {host.decode()!r}")
        if len(self._good_hosts) < 100:
            self._good_hosts.add(host)

    def _check_fetch(self, request: Request, site: bytes) -> None:
        headers = request.headers
        navigates = headers.get(b"sec-fetch-mode") == b"navigate" and request.method in ("GET", "HEAD") and request.raw_path == b"/"
        if site not in (b"same-origin", b"none") and not navigates:
            raise ProblemError(403, "requests from pages of another site are refused")
        if not request.raw_path.startswith(b"/static/") and headers.get(b"sec-fetch-dest") in _CODE:
            raise ProblemError(403, "only the page's own files are served as scripts, styles and the like")

    def _is_open(self, request: Request) -> bool:
        return request.method in ("GET", "HEAD") and (request.raw_path in _OPEN_PATHS or request.raw_path.startswith(b"/static/"))

    def _check_token(self, given: bytes) -> None:
        assert self._bearer is not None
        scheme, _, secret = given.partition(b" ")
        if not hmac.compare_digest(scheme.lower() + b" " + secret.strip(), self._bearer):
            challenge = b'Bearer realm="keyva"' + (b', error="invalid_token"' if given else b"")
            raise ProblemError(401, "send the token as `Authorization: Bearer TOKEN`", headers=[(b"www-authenticate", challenge)])


def _is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
