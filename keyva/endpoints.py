"""Where a node's sockets are, and the NODE file that tells others.

Format of the file: docs/format.md, "NODE". It means something only while the node that wrote it holds LOCK.
A socket's path may have 107 bytes (sun_path); a directory that is longer gets its sockets in a short private one elsewhere.
All of it goes by the directory's real path: a symlink that is switched must not lead to the sockets of another store.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import stat
import tempfile

import msgspec

from keyva.errors import StoreError
from keyva.filename import LOCK, NODE
from keyva.files import FILES, Lock

__all__ = ["Endpoints", "NodeInfo", "is_loopback", "ipc_endpoints", "read_node_info", "real_directory", "running_node", "write_node_info"]

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
    folder = os.path.join(os.path.realpath(directory), "run")
    if not _has_room(folder):
        folder = _short_folder(directory)
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


def real_directory(directory: str | os.PathLike[str]) -> str:
    """Return a store's directory without symlinks; raises TypeError, or `StoreError` for what cannot be one."""
    path = os.fspath(directory)
    if not isinstance(path, str):
        raise TypeError(f"directory must be str or os.PathLike[str], not {type(path).__name__}")
    if not path:
        raise StoreError('"" cannot be a store: no directory is named')  # and not the working directory: more likely a variable is not set
    try:
        path = os.path.realpath(path)
        path.encode()
    except UnicodeEncodeError:
        raise StoreError(f"{os.fsencode(path)!r} cannot be a store: its path is not valid UTF-8, and messages carry it as text") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path!r} cannot be a store: {error}") from error
    return path


def _has_room(folder: str) -> bool:
    return len(os.path.join(folder, "reader-99").encode()) <= SOCKET_PATH_MAX


def _short_folder(directory: str) -> str:
    """Make a private folder for the sockets of ``directory``; always the same one, so that clients find the next node there."""
    temporary = os.path.abspath(tempfile.gettempdir())
    name = f"keyva-{os.geteuid()}-{hashlib.blake2b(directory.encode(), digest_size=8).hexdigest()}"
    if not _has_room(os.path.join(temporary, name)):
        temporary = "/tmp"
    folder = os.path.join(temporary, name)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            return tempfile.mkdtemp(prefix="keyva-", dir=temporary)  # anybody may make a folder of that name there
    return folder


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
