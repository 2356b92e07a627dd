"""Keys, values and distributions. Statistical: with the printed seed a failure comes back; the tolerances are those of one in a million."""

from __future__ import annotations

import random
import zlib
from collections import Counter

import pytest

from keyva.bench.data import DISTRIBUTIONS, Latest, Uniform, Values, Zipfian, key_of

DRAWS = 100_000


@pytest.fixture
def seed() -> int:
    found = random.SystemRandom().randrange(2**32)
    print(f"seed {found}")
    return found


def assert_share(hits: int, expected: float) -> None:
    """Within five standard deviations of the expected share of `DRAWS`."""
    deviation = (DRAWS * expected * (1 - expected)) ** 0.5
    assert abs(hits - DRAWS * expected) < 5 * deviation + 1, (hits, DRAWS * expected)


def test_keys_have_16_bytes_and_the_order_of_their_numbers() -> None:
    keys = [key_of(number) for number in (0, 9, 10, 99_999_999)]
    assert keys == sorted(keys) and {len(key) for key in keys} == {16}


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_values_have_their_size_and_compress_to_about_half(size: int, seed: int) -> None:
    values = Values(size, seed)
    several = [values.next() for _ in range(50)]
    assert {len(value) for value in several} == {size}
    if size >= 100:
        assert 0.45 < len(zlib.compress(b"".join(several))) / (50 * size) < 0.65


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_numbers_are_below_the_count_and_repeat_with_the_seed(name: str, count: int, seed: int) -> None:
    one, other = DISTRIBUTIONS[name](count, seed), DISTRIBUTIONS[name](count, seed)
    numbers = [one.next() for _ in range(500)]
    assert numbers == [other.next() for _ in range(500)]
    assert min(numbers) >= 0 and max(numbers) < count


def test_uniform_gives_every_part_its_share(seed: int) -> None:
    chooser = Uniform(1000, seed)
    parts = Counter(chooser.next() // 100 for _ in range(DRAWS))
    for part in range(10):
        assert_share(parts[part], 0.1)


def test_zipfian_ranks_fall_as_the_law_says(seed: int) -> None:
    count, theta = 1000, 0.99
    zeta = sum(1 / rank**theta for rank in range(1, count + 1))
    chooser = Zipfian(count, seed)
    ranks = Counter(chooser.rank() for _ in range(DRAWS))
    for rank in (0, 1):  # which the algorithm gives exactly
        assert_share(ranks[rank], 1 / (rank + 1) ** theta / zeta)
    # The others it approximates with a curve, here inverted; how near the curve is to the law needs no draws.
    eta = (1 - (2 / count) ** (1 - theta)) / (1 - (1 + 0.5**theta) / zeta)
    for top in (3, 10, 100, 500):
        given = ((top / count) ** (1 - theta) + eta - 1) / eta
        assert_share(sum(ranks[rank] for rank in range(top)), given)
        assert given == pytest.approx(sum(1 / rank**theta for rank in range(1, top + 1)) / zeta, rel=0.1)


def test_scrambled_zipfian_spreads_the_popular_ones(seed: int) -> None:
    chooser = Zipfian(10_000, seed)
    popular = [number for number, _ in Counter(chooser.next() for _ in range(DRAWS)).most_common(20)]
    assert len([number for number in popular if number < 5000]) in range(2, 19)  # the hash has no seed: this holds or not for ever


def test_zipfian_that_has_grown_is_that_of_the_new_count(seed: int) -> None:
    grown, fresh = Zipfian(100, seed), Zipfian(5000, seed)
    grown.grown(2000)
    grown.grown(5000)
    assert [grown.next() for _ in range(200)] == [fresh.next() for _ in range(200)]


def test_latest_prefers_the_newest_also_after_growth(seed: int) -> None:
    chooser = Latest(1000, seed)
    chooser.grown(2000)
    numbers = Counter(chooser.next() for _ in range(DRAWS))
    assert numbers.most_common(1)[0][0] == 1999
    zeta = sum(1 / rank**0.99 for rank in range(1, 2001))
    assert_share(numbers[1999], 1 / zeta)
