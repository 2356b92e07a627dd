"""Redis as a system under test: a server of Debian's redis-server for each store, and redis-py with hiredis."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any, ClassVar

from keyva.bench.keyvas import free_ports
from keyva.bench.machine import wait_until
from keyva.bench.system import CACHE_BYTES, Batch, System
from keyva.errors import ConfigError, UnavailableError

__all__ = ["Redis", "RedisEverysec", "RedisTcp"]

_ENDPOINT = "redis.endpoint"
_SOCKET_PATH_MAX = 100
_END_S = 60.0


class Redis(System):
    name = "redis"
    setup = 'redis-server on a unix socket, appendonly yes, appendfsync always, save ""; redis-py with hiredis'
    module = "redis"
    program = "redis-server"
    processes = True
    remote = True
    _fsync: ClassVar[str] = "always"

    def __init__(self, directory: str, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(directory)
        endpoint, flags = self._choose_endpoint()
        with open(os.path.join(directory, _ENDPOINT), "w") as file:
            file.write(endpoint)
        fixed = ["--dir", directory, "--save", "", "--appendonly", "yes", "--appendfsync", self._fsync, "--daemonize", "no"]
        self._server: subprocess.Popen[bytes] | None = subprocess.Popen([self.program, *flags, *fixed], stdout=subprocess.DEVNULL)
        self._connect(endpoint)
        try:
            wait_until(self._serves, "redis-server has loaded its log")
        except BaseException:
            self.close()
            raise

    def _choose_endpoint(self) -> tuple[str, list[str]]:
        path = os.path.join(self.directory, "redis.sock")
        if len(path.encode()) > _SOCKET_PATH_MAX:
            raise ConfigError(f"{path} is too long for a unix socket ({_SOCKET_PATH_MAX} bytes); name a shorter --dir")
        return f"unix://{path}", ["--port", "0", "--unixsocket", path]

    def _connect(self, endpoint: str) -> None:
        import redis

        self.db: Any = redis.Redis.from_url(endpoint)
        self.get = self.db.get  # type: ignore[method-assign]

    def _serves(self) -> bool:
        import redis

        assert self._server is not None
        if self._server.poll() is not None:
            raise UnavailableError(f"redis-server ended with code {self._server.returncode} before it was ready")
        try:
            return bool(self.db.ping())
        except redis.exceptions.ConnectionError:  # not there yet, or loading
            return False

    @classmethod
    def attach(cls, directory: str, cache_bytes: int = CACHE_BYTES) -> System:
        other = object.__new__(cls)
        System.__init__(other, directory)
        other._server = None
        with open(os.path.join(directory, _ENDPOINT)) as file:
            other._connect(file.read())
        return other

    def put(self, key: bytes, value: bytes) -> None:
        self.db.set(key, value)

    def delete(self, key: bytes) -> None:
        self.db.delete(key)

    def write(self, batch: Batch) -> None:
        self.db.mset(dict(batch))

    def pipeline(self, batch: Batch) -> None:
        pipeline = self.db.pipeline(transaction=False)
        for key, value in batch:
            pipeline.set(key, value)
        pipeline.execute()

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        return self.db.mget(keys)  # type: ignore[no-any-return]

    def quiet(self) -> None:
        wait_until(lambda: not self.db.info("persistence")["aof_rewrite_in_progress"], "redis has rewritten its log")

    def pids(self) -> dict[str, int]:
        return {"redis-server": self._server.pid} if self._server is not None else {}

    def close(self) -> None:
        self.db.close()
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            try:
                self._server.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait(_END_S)


class RedisTcp(Redis):
    name = "redis-tcp"
    setup = 'redis-server on tcp (loopback), appendonly yes, appendfsync always, save ""; redis-py with hiredis'

    def _choose_endpoint(self) -> tuple[str, list[str]]:
        port = free_ports(1)
        return f"redis://127.0.0.1:{port}/0", ["--bind", "127.0.0.1", "--port", str(port)]


class RedisEverysec(Redis):
    name = "redis-everysec"
    setup = "as redis, but appendfsync everysec: a power cut may lose a second of writes"
    sync = False
    _fsync = "everysec"
