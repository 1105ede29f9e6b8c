import numpy as np
import pytest

from gengen.data.order import locate, offset, permutation, window


def test_order_is_the_recorded_one():
    """Recorded when this was written: a change here would reorder every run that resumes."""
    assert permutation(0, 0, 8).tolist() == [3, 4, 0, 6, 5, 2, 7, 1]
    assert [offset(7, epoch, 1000) for epoch in range(4)] == [47, 776, 275, 15]


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9 and all(sorted(order) == list(range(50)) for order in orders)
    assert len({offset(seed, epoch, 10**9) for seed in range(3) for epoch in range(3)}) == 9


def test_locate():
    assert [locate(position, 3) for position in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


@pytest.mark.parametrize("tokens, context", [(100, 10), (101, 10), (7, 10), (10, 10), (1, 4), (9, 1)])
def test_every_token_is_a_label_once_an_epoch(tokens, context):
    windows = -(-tokens // context)
    for epoch in range(3):
        labels = []
        for position in range(epoch * windows, (epoch + 1) * windows):
            start, count = window(position, 5, tokens, context)
            assert 1 <= count <= context
            labels += [(start + i) % tokens for i in range(count)]
        np.testing.assert_array_equal(np.sort(labels), np.arange(tokens))
