"""The node: owns a directory, starts its workers, watches them, and starts them again.

It is never on the data path. It holds LOCK while it runs, writes NODE when it is ready, and removes it at a clean stop. Workers are
spawned, never forked; each ends by itself when the node does.

A worker that dies, or shows no life for ``heartbeat_timeout_s``, is started again after a pause that grows with each failure in a row
and is forgotten once it has run for some time. The node gives up when a worker cannot start (too many failures before it was ever
ready, or an error no restart can mend).

Stopping by itself: a node with ``idle_stop_s`` stops once no client has held clients.lock (shared) for that long; it takes the lock
exclusively first, so that no client can attach to a node that is going.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn, TextIO

import msgspec
import zmq
from multiprocess import get_context

from keyva import __version__
from keyva.endpoints import Endpoints, NodeInfo, ipc_endpoints, is_loopback, real_directory, write_node_info
from keyva.errors import ConfigError, KeyvaError, NoSpaceError, ProtocolError, StoreError, StoreLockedError
from keyva.filename import CLIENTS_LOCK, LOCK, NODE
from keyva.files import FILES, Lock, raise_open_files_limit, translate
from keyva.manifest import load_manifest
from keyva.options import OPTION_DOCS, Options, absolute_paths, load_toml
from keyva.protocol import PROTOCOL_VERSION, Response, decode_body, decode_request, encode
from keyva.recovery import prepare_directory
from keyva.web.listen import listen_on, read_token, split_http, url_of

from .base import Spec, run_worker, set_up_logging

__all__ = ["Node", "main"]

log = logging.getLogger("keyva.node")

PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 5.0
HEALTHY_AFTER_S = 10.0
START_FAILURES_MAX = 5
STOP_TIMEOUT_S = 10.0
CLIENTS_CHECK_S = 0.5
OWNER_WAIT_S = 1.0
LOG_BYTES_MAX = 16 * 1024 * 1024


class NodeError(KeyvaError):
    """Is raised when the node cannot go on; the message is the one line its user sees."""


class Child:
    """One worker as the node sees it."""

    def __init__(self, role: str, number: int) -> None:
        self.role = role
        self.number = number
        self.process: Any = None
        self.state = "new"
        self.since = time.time()
        self.started_at = 0.0
        self.beat_at = 0.0
        self.restarts = -1
        self.failures = 0  # in a row
        self.start_failures = 0
        self.restart_at = 0.0
        self.error = ""
        self.permanent = False

    @property
    def name(self) -> str:
        """Role, with a number for readers."""
        return f"{self.role}-{self.number}" if self.role == "reader" else self.role

    @property
    def pid(self) -> int:
        """The process's id, 0 while there is none."""
        return self.process.pid if self.process is not None else 0

    def become(self, state: str) -> None:
        """Change the state, noting when."""
        if state != self.state:
            self.state = state
            self.since = time.time()


class Node:
    """One node; `run` returns when it has stopped."""

    def __init__(self, directory: str, options: Options) -> None:
        self.directory = real_directory(directory)
        self.options = options
        self.started_at = time.time()
        self._lock: Lock | None = None
        self._clients_lock: Lock | None = None
        self._stopping = False
        self._announced = False
        self._announce_at = 0.0
        self._idle_since: float | None = None
        self._clients_checked_at = 0.0
        self._spawn = get_context("spawn")
        self.children = [Child("writer", 0), Child("flusher", 0), Child("compactor", 0)]
        self.children += [Child("reader", number) for number in range(options.readers)]
        self.children += [Child("web", 0)] if options.http else []
        self._http: socket.socket | None = None
        self.http_url = ""
        self.endpoints: Endpoints
        self.on_ready = partial(_print_ready, sys.stdout)

    # Start

    def run(self) -> None:
        """Own the directory, run the workers until a signal, stop them. Raises `KeyvaError` with a one-line reason."""
        self._acquire()
        try:
            load_manifest(self.directory)  # a newer format or damage is said here, before anything is started
            self._listen_http()
            self._open_sockets()
            try:
                self._loop()
            finally:
                self._stop_children()
                self._close_sockets()
        finally:
            assert self._lock is not None
            self._lock.release()

    def _acquire(self) -> None:
        prepare_directory(self.directory, FILES)
        self._lock = Lock(os.path.join(self.directory, LOCK))
        if not self._lock.acquire():
            pid = _owner(self._lock)
            self._lock.release()
            raise StoreLockedError(f"{self.directory} is owned by another node, process {pid}", pid)
        self._lock.write_owner()
        FILES.unlink(os.path.join(self.directory, NODE))
        self._clients_lock = Lock(os.path.join(self.directory, CLIENTS_LOCK))

    def _listen_http(self) -> None:
        """Bind the web worker's socket here, so that it outlives the worker: connections wait in its queue until the next one runs."""
        if not self.options.http:
            return
        try:
            self._http = listen_on(self.options.http)
        except OSError as error:
            reason = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror
            raise NodeError(
                f"cannot serve HTTP on {self.options.http}: {reason}; choose another address with --http HOST:PORT (port 0: a free one), "
                "or none with --no-http"
            ) from error
        self.http_url = url_of(self._http)

    def _open_sockets(self) -> None:
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self.endpoints = ipc_endpoints(self.directory, self.options.readers, self.options.listen)
        self._context = zmq.Context(io_threads=1)
        self._control = self._context.socket(zmq.ROUTER)
        self._control.setsockopt(zmq.LINGER, 0)
        self._control.setsockopt(zmq.MAXMSGSIZE, 1024 * 1024)
        self._control.setsockopt(zmq.RCVHWM, 1000)
        self._control.bind(self.endpoints.control)
        self._poller = zmq.Poller()
        self._poller.register(self._control, zmq.POLLIN)
        self._poller.register(self._wake_read.fileno(), zmq.POLLIN)

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    def _start(self, child: Child) -> None:
        spec = Spec(role=child.role, number=child.number, directory=self.directory, options=self.options, endpoints=self.endpoints)
        name = f"keyva-{child.name}"
        listener = self._http if child.role == "web" else None
        child.process = self._spawn.Process(target=run_worker, args=(msgspec.msgpack.encode(spec), listener), name=name, daemon=True)
        # Ctrl-C reaches the whole group: a worker that has just begun would print where it was, until it ignores the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            child.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        child.started_at = child.beat_at = time.monotonic()
        child.restarts += 1
        child.error = ""
        child.become("starting")
        self._poller.register(child.process.sentinel, zmq.POLLIN)

    # Loop

    def _loop(self) -> None:
        self._start(self.children[0])
        while not self._stopping:
            self._poll()
            now = time.monotonic()
            writer = self.children[0]
            for child in self.children:
                if child.process is not None and not child.process.is_alive():
                    self._on_exit(child, now)
                elif child.process is not None and now - child.beat_at > self.options.heartbeat_timeout_s:
                    log.error("%s (process %d) has shown no life for %g s, killing it", child.name, child.pid, now - child.beat_at)
                    child.process.kill()
                    child.beat_at = now
                elif child.process is None and now >= child.restart_at and (child.restarts >= 0 or writer.state == "running"):
                    self._start(child)  # for the first time after the writer: the others read what it has recovered
            if not self._announced and all(child.state == "running" for child in self.children):
                self._announce()
            if self.options.idle_stop_s and self._nobody_attached(now):
                log.info("no client for %g s, stopping", self.options.idle_stop_s)
                self._stopping = True

    def _poll(self) -> None:
        timeout = 1.0
        now = time.monotonic()
        for child in self.children:
            if child.process is None and child.restart_at:
                timeout = min(timeout, max(0.0, child.restart_at - now))
        if self.options.idle_stop_s:
            timeout = min(timeout, CLIENTS_CHECK_S)
        events = dict(self._poller.poll(math.ceil(timeout * 1000)))
        if self._wake_read.fileno() in events:
            try:
                self._wake_read.recv(1024)
            except BlockingIOError:
                pass
        if self._control in events:
            self._take_messages()

    def _take_messages(self) -> None:
        for _ in range(1000):
            try:
                frames = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(frames) != 3:
                    raise ProtocolError(f"message of {len(frames) - 1} frames, not 2")
                request = decode_request(frames[1])
                if request.op == "ps":
                    answer = [frames[0], encode(Response(PROTOCOL_VERSION, request.request, 0)), encode(self.processes())]
                    self._control.send_multipart(answer, zmq.NOBLOCK)
                else:
                    role, number, pid, body = decode_body(frames[2], tuple[str, int, int, Any])
                    self._on_message(request.op, role, number, pid, body)
            except (ProtocolError, zmq.ZMQError) as error:
                log.warning("dropped a malformed control message: %s", error)

    def _on_message(self, op: str, role: str, number: int, pid: int, body: Any) -> None:
        child = next((child for child in self.children if (child.role, child.number, child.pid) == (role, number, pid)), None)
        if child is None:
            return  # of a process that is gone
        if op == "failed":
            try:
                name, message, permanent = msgspec.convert(body, tuple[str, str, bool])
            except msgspec.ValidationError as error:
                raise ProtocolError(f"body cannot be decoded: {error}") from None
            child.error = f"{name}: {message}"
            child.permanent = permanent
        elif op == "ready":
            child.become("running")
            child.start_failures = 0
            log.debug("%s (process %d) is ready", child.name, pid)
        child.beat_at = time.monotonic()

    def _on_exit(self, child: Child, now: float) -> None:
        self._take_messages()  # its last words
        process = child.process
        self._poller.unregister(process.sentinel)
        process.join()
        code = process.exitcode
        was_ready = child.state == "running"
        child.process = None
        process.close()
        reason = child.error or (f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}")
        if child.permanent:
            raise NodeError(child.error)
        if not was_ready and not (child.error.startswith(NoSpaceError.__name__) and self._announced):
            # A running store waits for room, however long that takes; a node that starts says so and ends
            child.start_failures += 1
            spare = child.role in ("web", "reader") and self._announced  # the store works without it
            if not spare and child.start_failures >= START_FAILURES_MAX:
                raise NodeError(f"the {child.name} cannot start ({child.start_failures} tries): {reason}")
        child.failures = 1 if now - child.started_at >= HEALTHY_AFTER_S else child.failures + 1
        pause = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** (child.failures - 1))
        child.restart_at = now + pause
        child.become("restarting")
        log.warning("%s ended (%s), starting it again in %g s", child.name, reason, pause)

    def _announce(self) -> None:
        if time.monotonic() < self._announce_at:
            return
        info = NodeInfo(
            pid=os.getpid(),
            version=__version__,
            directory=self.directory,
            started_at=self.started_at,
            endpoints=self.endpoints,
            http=self.http_url,
        )
        try:
            write_node_info(self.directory, info)
        except OSError as error:
            if not isinstance(translate(error, ""), NoSpaceError):
                raise
            log.warning("ready, but there is no space to write %s: trying again", os.path.join(self.directory, NODE))
            self._announce_at = time.monotonic() + 1.0
            return
        self._announced = True
        self.on_ready(info)

    def _nobody_attached(self, now: float) -> bool:
        """Whether no client has been attached for long enough; then clients.lock is held and none can attach any more."""
        if now - self._clients_checked_at < CLIENTS_CHECK_S or not self._announced:
            return False
        self._clients_checked_at = now
        if Lock.is_held(os.path.join(self.directory, CLIENTS_LOCK), also_shared=True):
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self.options.idle_stop_s:
            return False
        assert self._clients_lock is not None
        return self._clients_lock.acquire()

    def processes(self) -> list[dict[str, Any]]:
        """Return what `keyva ps` shows."""
        node = {"role": "node", "pid": os.getpid(), "state": "running", "since": self.started_at, "restarts": 0, "address": ""}
        return [
            node,
            *(
                {
                    "role": child.name,
                    "pid": child.pid,
                    "state": child.state,
                    "since": child.since,
                    "restarts": max(0, child.restarts),
                    "address": self._address_of(child),
                }
                for child in self.children
            ),
        ]

    def _address_of(self, child: Child) -> str:
        match child.role:
            case "writer":
                return self.endpoints.writer
            case "reader":
                return self.endpoints.readers[child.number]
            case "web":
                return self.http_url
        return ""

    # Stop

    def _stop_children(self) -> None:
        FILES.unlink(os.path.join(self.directory, NODE))
        writer, *others = self.children
        for group in (others, [writer]):  # the writer last: the others' results are of use until then
            for child in group:
                if child.process is not None and child.process.is_alive():
                    child.process.terminate()
            deadline = time.monotonic() + STOP_TIMEOUT_S
            for child in group:
                if child.process is None:
                    continue
                child.process.join(max(0.0, deadline - time.monotonic()))
                if child.process.is_alive():
                    log.error("%s (process %d) did not stop in %g s, killing it", child.name, child.pid, STOP_TIMEOUT_S)
                    child.process.kill()
                    child.process.join()
                child.process.close()
                child.process = None

    def _close_sockets(self) -> None:
        signal.set_wakeup_fd(-1)
        if self._http is not None:
            self._http.close()
        self._control.close()
        self._context.term()
        self._wake_read.close()
        self._wake_write.close()
        folder = os.path.dirname(self.endpoints.control.removeprefix("ipc://"))
        if folder == os.path.join(self.directory, "run"):
            for name in FILES.listdir(folder):
                FILES.unlink(os.path.join(folder, name))
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _owner(lock: Lock) -> int:
    """Return the pid of the node that holds ``lock``; until it has written that, the file is empty or names one that was killed."""
    deadline = time.monotonic() + OWNER_WAIT_S
    while True:
        pid = lock.owner()
        try:
            if pid:
                os.kill(pid, 0)
                return pid
        except ProcessLookupError:
            pass
        except PermissionError:
            return pid  # of another user
        if time.monotonic() >= deadline:
            return pid
        time.sleep(0.01)


def check_listen(options: Options) -> None:
    """Refuse an address that is malformed, or reachable from other hosts without keys; raises `ConfigError`."""
    listen = options.listen
    if listen:
        host, _, port = listen.removeprefix("tcp://").rpartition(":")
        if not listen.startswith("tcp://") or not host or not port.isdigit() or not 0 < int(port) + options.readers < 65536:
            raise ConfigError(f"setting 'listen' must be tcp://HOST:PORT, not {listen!r}")
        if not is_loopback(listen) and not (options.curve_server_key_file and options.curve_client_keys_dir):
            raise ConfigError(
                f"setting 'listen' = {listen!r} is reachable from other hosts, so 'curve_server_key_file' and "
                "'curve_client_keys_dir' must be set"
            )
    if bool(options.curve_server_key_file) != bool(options.curve_client_keys_dir):
        raise ConfigError("settings 'curve_server_key_file' and 'curve_client_keys_dir' belong together")
    if options.curve_server_key_file and not os.path.isfile(options.curve_server_key_file):
        raise ConfigError(f"setting 'curve_server_key_file': there is no file {options.curve_server_key_file}")
    if options.curve_client_keys_dir and not os.path.isdir(options.curve_client_keys_dir):
        raise ConfigError(f"setting 'curve_client_keys_dir': there is no directory {options.curve_client_keys_dir}")


def check_http(options: Options) -> None:
    """Refuse an HTTP address that is malformed, or reachable from other hosts without a token; raises `ConfigError`."""
    if options.http:
        host, _ = split_http(options.http)
        if not is_loopback(f"tcp://{options.http}") and not options.http_token_file:
            raise ConfigError(
                f"setting 'http' = {options.http!r} (host {host}) is reachable from other hosts, so 'http_token_file' must be set"
            )
    if options.http_token_file:
        read_token(options.http_token_file)


def _print_ready(output: TextIO, info: NodeInfo) -> None:
    endpoints = info.endpoints
    where = f" listen={endpoints.listen}" if endpoints.listen else ""
    where += f" http={info.http}" if info.http else ""
    line = f"ready dir={info.directory} endpoint={endpoints.writer}{where} readers={','.join(endpoints.readers) or '-'} pid={info.pid}"
    _say(output, line)


def _say(output: TextIO, line: str) -> None:
    try:
        print(line, file=output, flush=True)
    except BrokenPipeError:
        pass  # whoever started us has gone; the node has not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``keyva-node``; returns the exit code: 0 after a clean stop, 1 for a store that cannot be run, 2 for bad settings."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    directory, config, background = given.pop("dir"), given.pop("config"), given.pop("background")
    output = _starters_pipe() if background else None
    try:
        settings: dict[str, Any] = load_toml(config) if config else {}
        settings |= given
        options = Options.of(**absolute_paths(settings))
        check_listen(options)
        check_http(options)
        set_up_logging("node", options.log_level)
        if background:
            _cut_log()
        raise_open_files_limit()  # the workers inherit it
        node = Node(directory, options)
        if output is not None:
            node.on_ready = partial(_print_ready, output)
        node.run()
    except ConfigError as error:
        return _fail(error, output, 2)
    except (KeyvaError, zmq.ZMQError) as error:
        return _fail(error, output, 1)
    except OSError as error:
        reason = translate(error, f"using {directory}")
        if isinstance(reason, OSError):
            where = f" ({error.filename})" if error.filename not in (None, directory) else ""
            reason = StoreError(f"cannot use {directory}: {error.strerror or error}{where}")
        return _fail(reason, output, 1)
    return 0


def _starters_pipe() -> TextIO:
    """Return the pipe to the client that started this node in the background, and let whatever else is printed go to the log.

    The workers must not have it: what they print would fill it, and it must end with this process.
    """
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    _say(output, "")  # ends a line that something else has begun
    return output


def _fail(error: Exception, output: TextIO | None, code: int) -> int:
    """Say the reason in one line; a client that started the node in the background reads it from ``output``."""
    print(f"keyva-node: {error}", file=sys.stderr)
    if output is not None:
        _say(output, f"error: {type(error).__name__}: {error}")
    return code


def _cut_log() -> None:
    """Begin the log file of a background node anew when it has grown too long (standard error is that file, in append mode)."""
    try:
        if os.fstat(2).st_size > LOG_BYTES_MAX:
            os.ftruncate(2, 0)
    except OSError:
        pass


def _parser() -> Any:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"keyva-node: {message} (see `keyva-node --help`)\n")  # one line, without the usage of all settings

    def not_empty(text: str) -> str:
        if not text:  # not the current directory: a script whose variable is not set must not make a store there
            raise argparse.ArgumentTypeError("it is empty")
        return text

    parser = Parser(
        prog="keyva-node",
        description="Run the store in a directory: a writer, a flusher, a compactor and readers, watched and restarted by this process. "
        "Prints one line when it is ready; stops cleanly on SIGTERM and Ctrl-C.",
        epilog="Settings can also stand in a TOML file (--config), one `name = value` a line; flags win over the file. "
        "Example: keyva-node --dir ./data --readers 2 --listen tcp://127.0.0.1:7700",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--dir", required=True, type=not_empty, metavar="DIR", help="The store's directory; made when it is not there.")
    parser.add_argument("--config", default=None, type=not_empty, metavar="FILE", help="TOML file with settings (see configs/keyva.toml).")
    parser.add_argument("--background", action="store_true", default=False, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"keyva {__version__}")
    group = parser.add_argument_group("settings")
    for field in msgspec.structs.fields(Options):
        name = "--" + field.name.replace("_", "-")
        text = OPTION_DOCS[field.name].replace("%", "%%") + f" Default: {field.default!r}."
        if field.name == "http":
            group.add_argument("--no-http", dest="http", action="store_const", const="", help="Serve no HTTP.")
        if field.type is bool:
            group.add_argument(name, dest=field.name, action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(name, dest=field.name, type=_value_of(field.type), metavar=_metavar(field.type), help=text)
    return parser


def _value_of(kind: Any) -> Any:
    def convert(text: str) -> Any:
        if kind is int:
            return int(text) if text.lstrip("-").isdigit() else text
        if kind is float:
            try:
                return float(text)
            except ValueError:
                return text
        return text  # a wrong type is named by Options.of, in the same words as for the file

    return convert


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X"}.get(kind, "TEXT")


if __name__ == "__main__":
    sys.exit(main())
