import time
import tracemalloc

import numpy as np
import pytest

from gengen.data import order
from gengen.data.order import locate, offset, permutation, shuffled, window


def test_order_is_the_recorded_one():
    """Recorded when this was written: a change here would reorder every run that resumes."""
    assert permutation(0, 0, 8).tolist() == [3, 4, 0, 6, 5, 2, 7, 1]
    assert [shuffled(index, 0, 0, 8) for index in range(8)] == [3, 2, 1, 6, 7, 5, 0, 4]
    assert [shuffled(index, 7, 3, 10**12) for index in range(3)] == [131135115081, 765377710731, 218715773246]
    assert [offset(7, epoch, 1000) for epoch in range(4)] == [47, 776, 275, 15]


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9 and all(sorted(order) == list(range(50)) for order in orders)
    assert len({offset(seed, epoch, 10**9) for seed in range(3) for epoch in range(3)}) == 9


def test_locate():
    assert [locate(position, 3) for position in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 64, 65, 1000, 4096, 10_007])
def test_every_index_has_a_place_of_its_own(n):
    for seed, epoch in ((0, 0), (1, 5)):
        assert sorted(shuffled(index, seed, epoch, n) for index in range(n)) == list(range(n))


def test_places_look_drawn_at_random():
    """As many as 20,000: no neighbours kept, a mean way of n / 3, as many fixed points as chance gives; and two epochs
    know nothing of each other."""
    n = 20_000
    places = np.array([[shuffled(index, 0, epoch, n) for index in range(n)] for epoch in range(2)])
    for one, other in ((places[0, :-1], places[0, 1:]), (np.arange(n), places[0]), (places[0], places[1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(n)
    assert abs(places[0] - np.arange(n)).mean() / n == pytest.approx(1 / 3, abs=0.01)
    assert (places[0] == np.arange(n)).sum() < 8


def test_a_resume_far_into_a_large_corpus_takes_no_time_and_no_memory():
    """At position 1e9 of 240 million windows, whose table has 1.9 GB: a batch of 64 within 50 ms."""
    order._keys.cache_clear()
    tracemalloc.start()
    start = time.perf_counter()
    found = [window(10**9 + i, 3, 240_000_000 * 1024, 1024, order=2) for i in range(64)]
    assert time.perf_counter() - start < 0.05
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert len(set(found)) == 64 and all(0 <= start < 240_000_000 * 1024 for start, _ in found)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("tokens, context", [(100, 10), (101, 10), (7, 10), (10, 10), (1, 4), (9, 1)])
def test_every_token_is_a_label_once_an_epoch(tokens, context, kind):
    windows = -(-tokens // context)
    for epoch in range(3):
        labels = []
        for position in range(epoch * windows, (epoch + 1) * windows):
            start, count = window(position, 5, tokens, context, kind)
            assert 1 <= count <= context
            labels += [(start + i) % tokens for i in range(count)]
        np.testing.assert_array_equal(np.sort(labels), np.arange(tokens))
