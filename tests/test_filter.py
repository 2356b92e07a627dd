from __future__ import annotations

import os

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from keyva.filter import build_filter, hash_key, load_filter


@given(st.sets(st.binary(max_size=30), min_size=1), st.floats(0.1, 32))
def test_a_key_that_is_there_is_never_denied(keys: set[bytes], bits: float) -> None:
    bloom = build_filter(map(hash_key, keys), len(keys), bits)
    again = load_filter(bloom.save_bytes())
    assert all(hash_key(key) in bloom for key in keys)
    assert all(key in again for key in keys)
    assert again.save_bytes() == bloom.save_bytes()


@pytest.mark.parametrize(("bits", "rate"), [(5, 0.09), (10, 0.0085), (16, 0.0005)])
def test_false_positives_are_as_rare_as_the_bits_promise(bits: float, rate: float) -> None:
    count = 20_000
    bloom = load_filter(build_filter((hash_key(b"in%d" % number) for number in range(count)), count, bits).save_bytes())
    false = sum(b"out%d" % number in bloom for number in range(count))
    assert false / count < 1.6 * rate
    assert len(bloom.save_bytes()) * 8 < count * bits * 1.05 + 200


def test_the_hash_is_xxh3_with_seed_0() -> None:
    assert hash_key(b"apple") == int(xxhash.xxh3_64_hexdigest(b"apple"), 16) == 0x517A430DCF1F8A00


def test_the_same_keys_give_the_same_bytes() -> None:
    hashes = [hash_key(os.urandom(8)) for _ in range(1000)]
    assert build_filter(hashes, 1000, 10).save_bytes() == build_filter(reversed(hashes), 1000, 10).save_bytes()


@pytest.mark.parametrize("bits", [0.1, 0.5, 1, 1.4])
def test_too_few_bits_still_make_a_filter_that_can_be_loaded(bits: float) -> None:
    data = build_filter([hash_key(b"k")], 1, bits).save_bytes()
    assert data[0] == 1
    assert b"k" in load_filter(data)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\1"])
def test_what_is_too_short_for_a_filter_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        load_filter(data)
