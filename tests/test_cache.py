from __future__ import annotations

import gc
import threading
import weakref

from keyva.cache import BlockCache

BLOCK = bytes(1000)
CHARGE = 1000 + 200
"""What `BLOCK` counts."""


def cached(cache: BlockCache, block_id: int) -> bool:
    return block_id in cache.young or cache.get_old(block_id) is not None


def test_a_block_put_in_is_found() -> None:
    cache = BlockCache(10**6, 60)
    cache.put(7, BLOCK)
    assert cache.young[7] is BLOCK
    assert cache.size_bytes == CHARGE
    assert cache.get_old(8) is None
    assert cache.misses == 1
    cache.clear()


def test_the_cache_stays_below_its_capacity() -> None:
    cache = BlockCache(20 * CHARGE, 60)
    for at in range(500):
        cache.put(at, BLOCK)
        cache.put(at, BLOCK)  # missed twice: kept also when the cache is full
        assert cache.size_bytes <= cache.capacity_bytes + CHARGE
        assert len(cache.young) + len(cache.old) <= 21
    assert cached(cache, 499)
    assert not cached(cache, 400)
    cache.clear()


def test_blocks_in_use_stay_while_others_pass_through() -> None:
    cache = BlockCache(20 * CHARGE, 60)
    cache.put(1, BLOCK)
    for at in range(100, 500):
        assert cached(cache, 1)
        cache.put(at, BLOCK)
        cache.put(at, BLOCK)
    assert cache.hits_old > 10
    cache.clear()


def test_what_is_read_once_does_not_push_out_what_is_there() -> None:
    cache = BlockCache(20 * CHARGE, 60)
    for at in range(21):  # one more than it holds
        cache.put(at, BLOCK)
    kept = set(cache.young) | set(cache.old)
    for at in range(100, 1000):
        cache.put(at, BLOCK)
        assert len(cache._seen) <= len(kept) + 2
    assert set(cache.young) | set(cache.old) == kept
    cache.put(999, BLOCK)
    assert cached(cache, 999), "missed twice in a row"
    for _ in range(2):
        cache.drop_idle()
    cache.put(2000, BLOCK)
    assert cached(cache, 2000), "an idle cache takes all again"
    cache.clear()


def test_the_whole_capacity_is_used_and_what_was_read_last_is_kept() -> None:
    cache = BlockCache(20 * CHARGE, 60)
    for at in range(200):
        cache.put(at, BLOCK)
        cache.put(at, BLOCK)
        if at >= 20:
            assert len(cache.young) + len(cache.old) == 20
            assert all(cached(cache, recent) for recent in range(at - 9, at + 1))
    assert cache.size_bytes == 20 * CHARGE
    cache.clear()


def test_the_timer_drops_nothing_of_a_cache_that_is_turned_over() -> None:
    cache = BlockCache(20 * CHARGE, 3600)
    for at in range(40):
        cache.put(at, BLOCK)
        cache.put(at, BLOCK)
    cache.drop_idle()
    assert cache.size_bytes == 20 * CHARGE
    cache.drop_idle()
    assert cache.size_bytes == 0


def test_a_block_larger_than_half_the_cache_is_not_kept() -> None:
    cache = BlockCache(CHARGE, 60)
    cache.put(1, BLOCK)
    assert not cached(cache, 1)
    assert cache.size_bytes == 0
    cache.clear()


def test_capacity_zero_keeps_nothing() -> None:
    cache = BlockCache(0, 60)
    cache.put(1, BLOCK)
    assert not cached(cache, 1)
    assert cache._timer is None


def test_idle_blocks_are_dropped_and_used_ones_stay() -> None:
    cache = BlockCache(10**6, 3600)
    cache.put(1, BLOCK)
    cache.put(2, BLOCK)
    cache.drop_idle()
    assert cache.size_bytes == 2 * CHARGE
    assert cached(cache, 1), "a hit moves it over"
    cache.drop_idle()
    assert cached(cache, 1)
    assert not cached(cache, 2)
    cache.drop_idle()
    cache.drop_idle()
    assert cache.size_bytes == 0


def test_no_timer_runs_for_an_empty_cache() -> None:
    cache = BlockCache(10**6, 3600)
    assert cache._timer is None
    cache.put(1, BLOCK)
    assert cache._timer is not None
    for _ in range(2):  # type: ignore[unreachable]
        timer = cache._timer
        assert timer is not None
        timer.cancel()
        cache.drop_idle()
    assert cache._timer is None


def test_the_timer_does_not_keep_a_forgotten_cache_alive() -> None:
    cache = BlockCache(10**6, 3600)
    cache.put(1, BLOCK)
    timer, seen = cache._timer, weakref.ref(cache)
    assert timer is not None
    del cache
    gc.collect()
    assert seen() is None
    timer.cancel()


def test_clear_empties_the_cache_and_stops_the_timer() -> None:
    cache = BlockCache(10**6, 3600)
    cache.put(1, BLOCK)
    timer = cache._timer
    assert timer is not None
    cache.clear()
    timer.join(10)
    assert not timer.is_alive()
    assert cache.size_bytes == 0
    assert not cached(cache, 1)


def test_threads_share_a_cache() -> None:
    cache = BlockCache(30 * CHARGE, 3600)
    wrong: list[str] = []
    blocks = [b"%1000d" % at for at in range(100)]

    def use(seed: int) -> None:
        try:
            for step in range(3000):
                at = (step * (seed * 2 + 1)) % 100
                found = cache.young.get(at) or cache.get_old(at)
                if found is None:
                    cache.put(at, blocks[at])
                elif found != blocks[at]:
                    wrong.append(f"block {at} is {found!r}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 0 <= cache.size_bytes <= cache.capacity_bytes + 4 * CHARGE
    cache.clear()
