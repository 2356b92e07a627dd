"""A process of the chaos test: writes at random, and prints what was acknowledged as one JSON line at the end."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import keyva


def write_randomly(directory: str, seed: int, stop_file: str, endpoint: str) -> None:
    rng = random.Random(seed)
    # values of keys: the last acknowledged one, or several possible ones after an unknown outcome
    known: dict[str, list[str | None]] = {}
    counter, counter_maybe, batches = 0, 0, 0
    numbers: list[int] = []
    numbers_maybe = 0
    errors: list[str] = []
    db = keyva.connect(endpoint) if endpoint else keyva.open(directory, **json.loads(Path(__file__).with_name("settings.json").read_text()))
    speed = 0.0
    while not os.path.exists(stop_file):
        if rng.random() < 0.02:
            speed = rng.choice([0.0, 0.0, 0.001, 0.01])
        time.sleep(speed)
        kind = rng.random()
        changes: dict[str, str | None] = {}
        try:
            if kind < 0.2:
                counter_maybe += 1
                db.increment(f"counter-{seed}")
                counter += 1
                counter_maybe -= 1
                continue
            if kind < 0.25:
                numbers_maybe += 1
                numbers.append(db.sequence_next("shared by all"))
                numbers_maybe -= 1
                continue
            if kind < 0.3:
                # several calls in one message, each with its own answer
                counter_maybe += 2
                changes = {f"{seed}-{rng.randrange(3000)}": f"{rng.random()}" for _ in range(5)}
                pipe = db.pipeline().increment(f"counter-{seed}")
                for key, value in changes.items():
                    pipe.put(key, str(value))
                results = pipe.increment(f"counter-{seed}").execute()
                assert results[-1] == results[0] + 1, results
                counter += 2
                counter_maybe -= 2
            elif kind < 0.5:
                changes = {f"{seed}-{rng.randrange(3000)}": f"{rng.random()}" + "x" * rng.choice([0, 10, 300])}
                (key, value), *_ = changes.items()
                assert value is not None
                db.put(key, value)
            elif kind < 0.6:
                changes = {f"{seed}-{rng.randrange(3000)}": None}
                db.delete(next(iter(changes)))
            else:
                # a batch is there as a whole: all of its keys carry its number
                batches += 1
                changes = {key: str(batches) for key in (f"{seed}-batch-{batches % 50}-{number}" for number in range(100))}
                db.put_many([(key, str(batches)) for key in changes])
        except keyva.OutcomeUnknownError:
            for key, new in changes.items():
                known[key] = [*known.get(key, [None]), new]
            continue
        except keyva.KeyvaError as error:
            errors.append(repr(error))
            if kind < 0.2:
                counter_maybe -= 1
            elif kind < 0.25:
                numbers_maybe -= 1
            elif kind < 0.3:
                counter_maybe -= 2
            continue
        for key, new in changes.items():
            known[key] = [new]
        # what was just acknowledged is seen at once
        if changes and rng.random() < 0.2:
            key = next(iter(changes))
            got = db.get(key)
            assert (got.decode() if got is not None else None) == changes[key], (key, got, changes[key])
    db.close()
    result = {"seed": seed, "known": known, "counter": [counter, counter_maybe], "batches": batches, "errors": errors}
    print(json.dumps({**result, "numbers": numbers, "numbers_maybe": numbers_maybe}))


if __name__ == "__main__":
    write_randomly(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
