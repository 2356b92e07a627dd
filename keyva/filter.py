"""The bloom filter of an SST: rbloom's, over 64-bit XXH3 hashes of the keys.

Format: docs/format.md, "Filter". A filter is built of hashes, which the SST's writer gathers (0.07 us per key in bulk), and asked for
keys: rbloom then calls the hash itself, 0.09 us in all, where a hash computed before and handed on by `int` takes 0.02 and 0.08.
"""

from __future__ import annotations

from collections.abc import Iterable

from rbloom import Bloom
from xxhash import xxh3_64_intdigest

__all__ = ["Filter", "build_filter", "hash_key", "load_filter"]

Filter = Bloom
hash_key = xxh3_64_intdigest
"""The 64-bit hash (seed 0) of a key."""

_RATE_PER_BIT = 0.6185  # false positives fall by this factor per bit and key (Bloom 1970, with the best number of hashes)

_BITS_MIN = 2.0  # rbloom takes no hash function at all below 1.5, and no bits at all for few keys


def build_filter(hashes: Iterable[int], keys: int, bits_per_key: float) -> Filter:
    """Build a filter for ``keys`` hashes at ``bits_per_key``, of which there are at least 2. It is there to be saved: it knows hashes,
    ``hash in filter``, where a loaded one knows keys."""
    bloom = Bloom(max(1, keys), _RATE_PER_BIT ** max(_BITS_MIN, bits_per_key), int)
    bloom.update(hashes)
    return bloom


def load_filter(data: bytes) -> Filter:
    """Load what `Bloom.save_bytes` gave, to be asked ``key in filter``; raises ValueError when it cannot be one."""
    if len(data) < 9:
        raise ValueError("filter is cut short")
    return Bloom.load_bytes(data, hash_key)
