"""Where a node's sockets are, and the NODE file that tells others.

Format of the file: docs/format.md, "NODE". It means something only while the node that wrote it holds LOCK.
A socket's path may have 107 bytes (sun_path); a directory that is longer gets its sockets in a short private one elsewhere.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile

import msgspec

from keyva.filename import LOCK, NODE
from keyva.files import FILES, Lock

__all__ = ["Endpoints", "NodeInfo", "is_loopback", "ipc_endpoints", "read_node_info", "running_node", "write_node_info"]

SOCKET_PATH_MAX = 100


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """ZeroMQ endpoints. ``listen`` and ``listen_readers`` are those for other hosts, empty when there are none."""

    writer: str
    jobs: str
    control: str
    readers: tuple[str, ...]
    listen: str = ""
    listen_readers: tuple[str, ...] = ()


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What NODE says. ``http`` is the URL of the HTTP API, empty when there is none."""

    pid: int
    version: str
    directory: str
    started_at: float
    endpoints: Endpoints
    http: str = ""


def ipc_endpoints(directory: str, readers: int, listen: str) -> Endpoints:
    """Choose the endpoints of a node. ``listen`` is tcp://HOST:PORT; readers listen on the ports that follow."""
    folder = os.path.join(os.path.abspath(directory), "run")
    if len(os.path.join(folder, "reader-99").encode()) > SOCKET_PATH_MAX:
        folder = tempfile.mkdtemp(prefix="keyva-")
    listen_readers: tuple[str, ...] = ()
    if listen:
        host, port = listen.rsplit(":", 1)
        listen_readers = tuple(f"{host}:{int(port) + 1 + number}" for number in range(readers))
    return Endpoints(
        writer=f"ipc://{folder}/writer",
        jobs=f"ipc://{folder}/jobs",
        control=f"ipc://{folder}/control",
        readers=tuple(f"ipc://{folder}/reader-{number}" for number in range(readers)),
        listen=listen,
        listen_readers=listen_readers,
    )


def is_loopback(endpoint: str) -> bool:
    """Say whether a tcp endpoint is reachable from this host only."""
    host = endpoint.removeprefix("tcp://").rsplit(":", 1)[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def write_node_info(directory: str, info: NodeInfo) -> None:
    """Write NODE."""
    FILES.write_atomic(os.path.join(directory, NODE), msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n", sync=False)


def read_node_info(directory: str) -> NodeInfo | None:
    """Read NODE; None when it is not there or not complete."""
    try:
        return msgspec.json.decode(FILES.read_file(os.path.join(directory, NODE)), type=NodeInfo)
    except (OSError, msgspec.MsgspecError):
        return None


def running_node(directory: str) -> NodeInfo | None:
    """Return the node that runs the store now and is ready, None when there is none."""
    if not Lock.is_held(os.path.join(directory, LOCK)):
        return None
    return read_node_info(directory)
