"""keyva's HTTP API beside redis behind a thin starlette application: 1 KB GET and PUT, measured with wrk.

    python benchmarks/http_gateway.py [--seconds 5] [--rounds 5] [--connections 64] [--json FILE]

Needs `wrk` and `redis-server` (Debian packages of these names), and the bench extra. The systems take turns, round by round, and the
medians count. Both serve 1,000 keys of 1,000 random bytes over HTTP on loopback, each with one web process.

- keyva: `keyva-node` as it is, durability "sync" (an acknowledged PUT survives a power cut) and "os" (it survives a crash of any process).
- redis: redis-server on a unix socket without snapshots and append-only file (a PUT survives nothing), under uvicorn with uvloop and
  httptools, and a starlette application of two routes with redis-py's asyncio client over a pool of connections.

Run as a module by uvicorn, this file is that application.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEYS = 1000
VALUE_BYTES = 1000

SCRIPT = """
local value = io.open("%s", "rb"):read("*a")
local method = "%s"
local number = 0
request = function()
  number = number + 1
  local path = "/kv/key-" .. math.random(0, %d)
  if method == "GET" then return wrk.format("GET", path) end
  return wrk.format("PUT", path, {["Content-Type"] = "application/octet-stream"}, value)
end
"""


def redis_application() -> Any:
    """What somebody would write to serve redis over HTTP."""
    import redis.asyncio as redis
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    client = redis.Redis(unix_socket_path=os.environ["REDIS_SOCKET"])

    async def get(request: Request) -> Response:
        value = await client.get(request.path_params["key"])
        return Response(status_code=404) if value is None else Response(value, media_type="application/octet-stream")

    async def put(request: Request) -> Response:
        await client.set(request.path_params["key"], await request.body())
        return Response(status_code=204)

    return Starlette(routes=[Route("/kv/{key:path}", get, methods=["GET"]), Route("/kv/{key:path}", put, methods=["PUT"])])


class System:
    """One contestant: its processes, and where it listens."""

    def __init__(self, name: str, url: str, processes: list[subprocess.Popen[str]]) -> None:
        self.name = name
        self.url = url
        self.processes = processes

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def start_keyva(folder: Path, durability: str) -> System:
    command = [
        sys.executable,
        "-m",
        "keyva.workers.node",
        "--dir",
        str(folder / f"keyva-{durability}"),
        "--http=127.0.0.1:0",
        "--readers=0",
    ]
    node = subprocess.Popen([*command, f"--durability={durability}"], stdout=subprocess.PIPE, text=True, cwd="/")
    assert node.stdout is not None
    line = node.stdout.readline()
    url = next(word for word in line.split() if word.startswith("http=")).removeprefix("http=")
    return System(f"keyva ({durability})", url, [node])


def start_redis(folder: Path) -> System:
    path = str(folder / "redis.sock")
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(folder)], stdout=quiet, text=True
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wait_for(lambda: os.path.exists(path))
    uvicorn = [
        sys.executable,
        "-m",
        "uvicorn",
        "http_gateway:redis_application",
        "--factory",
        "--app-dir",
        str(Path(__file__).parent),
        "--port",
        str(port),
    ]
    flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    web = subprocess.Popen([*uvicorn, *flags], env={**os.environ, "REDIS_SOCKET": path}, text=True)
    return System("redis + starlette", f"http://127.0.0.1:{port}", [web, server])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("a server did not start in 30 s")
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/kv/key-0") as answer:
            return bool(answer.status)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def fill(url: str, value: bytes) -> None:
    for number in range(KEYS):
        request = urllib.request.Request(f"{url}/kv/key-{number}", data=value, method="PUT")
        request.add_header("Content-Type", "application/octet-stream")
        with urllib.request.urlopen(request):
            pass


def measure(system: System, method: str, script: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run wrk once; returns requests per second and latencies in milliseconds."""
    command = ["wrk", "-t1", f"-c{arguments.connections}", f"-d{arguments.seconds}s", "--latency", "-s", str(script), system.url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{system.name}, {method}: {text}")
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0])
    found = {"requests_per_s": rate}
    for share in ("50%", "99%"):
        number, unit = re.findall(rf"{share}\s+([\d.]+)(us|ms|s)", text)[0]
        found[f"p{share[:-1]}_ms"] = float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=5, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    for program in ("wrk", "redis-server"):
        if shutil.which(program) is None:
            raise SystemExit(f"this needs {program}: apt install wrk redis-server")
    folder = Path(tempfile.mkdtemp(prefix="keyva-http-", dir=os.environ.get("TMPDIR")))
    systems: list[System] = []
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    try:
        value = secrets.token_bytes(VALUE_BYTES)
        (folder / "value").write_bytes(value)
        scripts = {}
        for method in ("GET", "PUT"):
            scripts[method] = folder / f"{method}.lua"
            scripts[method].write_text(SCRIPT % (folder / "value", method, KEYS - 1))
        systems = [start_keyva(folder, "sync"), start_keyva(folder, "os"), start_redis(folder)]
        for system in systems:
            wait_for(lambda url=system.url: answers(url))  # type: ignore[misc]
            fill(system.url, value)
        for number in range(arguments.rounds + 1):  # the first one only warms up
            for method, script in scripts.items():
                for system in systems:
                    found = measure(system, method, script, arguments)
                    if number:
                        results.setdefault(method, {}).setdefault(system.name, []).append(found)
    finally:
        for system in systems:
            system.stop()
        shutil.rmtree(folder, ignore_errors=True)
    report(results, systems[-1].name)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


def report(results: dict[str, dict[str, list[dict[str, float]]]], base: str) -> None:
    print("| | system | requests/s | 50 % | 99 % | beside redis |\n|---|---|---:|---:|---:|---:|")
    for method, by_system in results.items():
        rates = {name: statistics.median(round_["requests_per_s"] for round_ in rounds) for name, rounds in by_system.items()}
        for name, rounds in by_system.items():
            p50, p99 = (statistics.median(round_[key] for round_ in rounds) for key in ("p50_ms", "p99_ms"))
            print(f"| {method} | {name} | {rates[name]:,.0f} | {p50:.1f} ms | {p99:.1f} ms | {rates[name] / rates[base]:.2f} |")


if __name__ == "__main__":
    main()
