"""One million entries loaded, flushed and compacted: time, disk, and the memory of each process at its peak.

    pip install '.[bench]'
    python benchmarks/load_million.py

Ends with code 1 when a process took more than 400 MB.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time

import keyva
from keyva.client import node_processes

LIMIT_MB = 400


def peak_mb(pid: int) -> float:
    """Return the largest resident set a process has had (VmHWM), in MB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1_000_000, help="entries (default: 1000000)")
    options = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="keyva-bench-")
    rng = random.Random(1)
    try:
        with keyva.open(directory) as db:
            start = time.perf_counter()
            for _ in range(0, options.num, 1000):
                db.put_many([(b"%016d" % rng.randrange(10**15), rng.randbytes(100)) for _ in range(1000)])
            loaded = time.perf_counter()
            db.flush()
            db.compact_range()
            compacted = time.perf_counter()
            count = sum(1 for _ in db.iterator(include_value=False))
            size = sum(entry.stat().st_size for entry in os.scandir(os.path.join(directory, "sst")))
            took = f"loaded in {loaded - start:.1f} s, flushed and compacted in {compacted - loaded:.1f} s"
            print(f"{count} entries: {took}, {size / 1e6:.0f} MB in SSTs")
            peaks = {process["role"]: peak_mb(process["pid"]) for process in node_processes(directory)}
            peaks["client"] = peak_mb(os.getpid())
        for role, peak in peaks.items():
            print(f"{role:10} {peak:6.0f} MB at its peak")
        return 1 if max(peaks.values()) > LIMIT_MB else 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
