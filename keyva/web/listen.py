"""Where HTTP listens, and the secret it asks for.

The node binds the socket and keeps it, so that the queue of waiting connections outlives a killed web worker.
"""

from __future__ import annotations

import os
import socket
import stat

from keyva.errors import ConfigError

__all__ = ["listen_on", "read_token", "split_http", "url_of"]

BACKLOG = 1024
TOKEN_BYTES_MIN = 16
TOKEN_BYTES_MAX = 4096


def split_http(http: str) -> tuple[str, int]:
    """Split HOST:PORT (an IPv6 host in brackets); raises `ConfigError`."""
    host, colon, port = http.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare) != (bare is not host) or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"setting 'http' must be HOST:PORT, not {http!r}")
    return bare, int(port)


def listen_on(http: str) -> socket.socket:
    """Bind and listen; raises OSError (of the first address that ``host`` stands for) or `ConfigError`."""
    host, port = split_http(http)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"setting 'http' = {http!r}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_token(path: str) -> bytes:
    """Read the secret; raises `ConfigError` when the file is missing, open to others, or holds no secret of a sensible length."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(TOKEN_BYTES_MAX + 2).strip()
    except OSError as error:
        raise ConfigError(f"setting 'http_token_file': cannot read {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"setting 'http_token_file': {path} is open to other users; run: chmod 600 {path}")
    if not TOKEN_BYTES_MIN <= len(token) <= TOKEN_BYTES_MAX or not token.isascii() or not all(0x21 <= byte <= 0x7E for byte in token):
        raise ConfigError(
            f"setting 'http_token_file': {path} must hold one secret of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII characters "
            "without blanks, for example from: openssl rand -hex 32"
        )
    return token
