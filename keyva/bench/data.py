"""Keys, values and the distributions that choose among them: db_bench's data, YCSB's choices.

Everything is made from a seed, so that all systems meet the same data in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import xxhash

__all__ = ["DISTRIBUTIONS", "KEY_BYTES", "Chooser", "Latest", "Uniform", "Values", "Zipfian", "key_of"]

KEY_BYTES = 16
_POOL_BYTES = 1024 * 1024


def key_of(number: int) -> bytes:
    """Return db_bench's key of a number: 16 decimal digits."""
    return b"%016d" % number


class Values:
    """Values that compress to about half, as db_bench's do (--compression_ratio=0.5): half of each is random, half is one byte."""

    def __init__(self, value_bytes: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._pool = self._random.randbytes(_POOL_BYTES + value_bytes)
        self._head = (value_bytes + 1) // 2
        self._tail = b"x" * (value_bytes // 2)

    def next(self) -> bytes:
        """Return another value; about 0.5 us."""
        at = int(self._random.random() * _POOL_BYTES)
        return self._pool[at : at + self._head] + self._tail


class Chooser:
    """Chooses numbers below ``count``, which may grow with `grown`."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.random = random.Random(seed)

    def next(self) -> int:
        """Return a number below ``count``."""
        raise NotImplementedError

    def grown(self, count: int) -> None:
        """Say that there are ``count`` now."""
        self.count = count


class Uniform(Chooser):
    """All with the same probability."""

    def next(self) -> int:
        """Return a number below ``count``."""
        return int(self.random.random() * self.count)


class Zipfian(Chooser):
    """Number k (from 0) with a probability that falls as 1 / (k + 1) ** theta, spread over all numbers by a hash.

    The algorithm is that of Gray et al., "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994, section 3.3, as in YCSB
    (theta 0.99). ``scrambled`` False leaves the popular ones at the beginning.
    """

    theta = 0.99

    def __init__(self, count: int, seed: int, *, scrambled: bool = True) -> None:
        super().__init__(0, seed)
        self._scrambled = scrambled
        self._zeta = 0.0
        self._alpha = 1 / (1 - self.theta)
        self._zeta2 = 1 + 0.5**self.theta
        self.grown(count)

    def grown(self, count: int) -> None:
        """Say that there are ``count`` now; costs a step for each new one."""
        self._zeta += sum(1 / number**self.theta for number in range(self.count + 1, count + 1))
        self.count = count
        self._eta = (1 - (2 / count) ** (1 - self.theta)) / (1 - self._zeta2 / self._zeta) if count > 2 else 0.0

    def rank(self) -> int:
        """Return how popular the next one is: 0 for the most popular."""
        u = self.random.random()
        uz = u * self._zeta
        if uz < 1:
            return 0
        if uz < self._zeta2:
            return min(1, self.count - 1)
        return min(self.count - 1, int(self.count * (self._eta * u - self._eta + 1) ** self._alpha))

    def next(self) -> int:
        """Return a number below ``count``."""
        rank = self.rank()
        return xxhash.xxh3_64_intdigest(rank.to_bytes(8, "little")) % self.count if self._scrambled else rank


class Latest(Chooser):
    """The newest (largest) numbers most often: YCSB's distribution for reads of what was just inserted."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self._zipfian = Zipfian(count, seed, scrambled=False)

    def next(self) -> int:
        """Return a number below ``count``."""
        return self.count - 1 - self._zipfian.rank()

    def grown(self, count: int) -> None:
        """Say that there are ``count`` now."""
        self.count = count
        self._zipfian.grown(count)


DISTRIBUTIONS: dict[str, Callable[[int, int], Chooser]] = {"uniform": Uniform, "zipfian": Zipfian, "latest": Latest}
