import copy
import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from gengen.config.data import DataConfig, ImageConfig
from gengen.data import order
from gengen.data.image.prepare import prepare_for
from gengen.data.loader import IndexedData, datamodule_for
from gengen.data.prepared import PrepareRequest
from gengen.errors import UserError
from helpers.batches import assert_equal, take

B = 7


# ---------------------------------------------------------------------------------------------------- the order is a
# function


def test_order_and_flips_are_the_recorded_ones():
    """Recorded when this was written: a change here would reorder every run that resumes."""
    assert order.images(5, 6, 0, 8)[0].tolist() == [2, 7, 1, 3, 7, 0]
    assert order.flips(0, 0, 16).astype(int).tolist() == [0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0]


def test_positions_can_be_asked_for_in_any_pieces():
    n = 10
    index, mirrored = order.images(0, 47, 3, n)
    for size in (1, 4, 23):  # one reaches over three epochs
        parts = [order.images(first, min(size, 47 - first), 3, n) for first in range(0, 47, size)]
        assert np.concatenate([p[0] for p in parts]).tolist() == index.tolist()
        assert np.concatenate([p[1] for p in parts]).tolist() == mirrored.tolist()
    for epoch in range(4):
        assert sorted(index[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_flips_are_fair_and_of_each_epoch_its_own():
    coins = np.stack([order.flips(seed, epoch, 10_000) for seed in range(2) for epoch in range(2)])
    assert (abs(coins.mean(1) - 0.5) < 0.02).all()
    agree = (coins[:, None] == coins[None]).mean(-1)
    assert (abs(agree[~np.eye(4, dtype=bool)] - 0.5) < 0.02).all()
    coins = order.flips(0, 0, 10_000)
    assert abs(coins[order.permutation(0, 0, 10_000)[:5000]].mean() - 0.5) < 0.02  # nothing to do with the order


# -------------------------------------------------------------------------------------------------------------
# datamodule


@pytest.fixture(scope="session")
def prepared(picture_data):
    from gengen.config.compose import compose_train, read_command_line

    config = compose_train(read_command_line(["model=unet", *picture_data]))
    return prepare_for(PrepareRequest(config.data, config.model, lambda line: None))


@pytest.fixture
def data(prepared):
    def make(seed=3, rank=0, world=1, **changes):
        config = copy.copy(prepared.config)
        for key, value in {"batch_size": B, **changes}.items():
            setattr(config, key, value)
        return datamodule_for(config, prepared, None, seed=seed, rank=rank, world=world)

    return make


def test_the_pictures_of_all_tests(prepared):
    assert prepared.classes == ["circle", "cross", "square"] and len(prepared.train) == 108 and len(prepared.val) == 12
    assert torch.bincount(prepared.val.labels).tolist() == [4, 4, 4] and prepared.meta["duplicates"] == 0


def test_each_epoch_has_every_image_once(data):
    """Over two epochs, though neither is a whole number of batches."""
    n = len(data().prepared.train)
    assert n % B
    index = torch.cat([batch["index"] for batch in take(data().loader(0), 2 * n // B + 1)])
    for epoch in (index[:n], index[n : 2 * n]):
        assert sorted(epoch.tolist()) == list(range(n))
    assert not torch.equal(index[:n], index[n : 2 * n])


def test_a_batch_holds_the_images_of_its_index(data, prepared):
    batch = next(iter(data().loader(2)))
    assert batch["images"].shape == (B, 1, 16, 16)
    torch.testing.assert_close(batch["images"], prepared.train.images[batch["index"]] / 127.5 - 1, rtol=0, atol=1e-6)
    assert torch.equal(batch["labels"], prepared.train.labels[batch["index"]])


def test_flips_only_when_told_and_as_the_order_says(data, prepared):
    straight, flipped = (take(data(flip=flip).loader(0), 40) for flip in (False, True))
    coins = np.concatenate([order.images(step * B, B, 3, len(prepared.train))[1] for step in range(40)])
    assert 0.3 < coins.mean() < 0.7
    one, two = (torch.cat([batch["images"] for batch in batches]) for batches in (straight, flipped))
    torch.testing.assert_close(
        two, torch.where(torch.from_numpy(coins)[:, None, None, None], one.flip(-1), one), rtol=0, atol=0
    )


def test_order_is_a_function_of_the_step(data):
    n = len(data().prepared.train) // B + 4  # across the end of the first epoch
    steps = take(data(flip=True).loader(0), n)
    assert_equal(take(data(flip=True).loader(n - 6), 6), steps[n - 6 :])
    assert_equal(take(data(flip=True, num_workers=2).loader(n - 6), 6), steps[n - 6 :])
    assert not torch.equal(next(iter(data(seed=4, flip=True).loader(0)))["index"], steps[0]["index"])


@pytest.mark.fault("F7")
def test_ranks_share_a_step(data):
    whole = take(data(batch_size=8, flip=True).loader(10), 8)
    ranks = [take(data(batch_size=8, flip=True, rank=r, world=2).loader(10), 8) for r in range(2)]
    assert_equal([{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*ranks, strict=True)], whole)
    with pytest.raises(UserError, match=r"data\.batch_size=7 cannot be cut into equal parts for 2 ranks"):
        data(world=2)


def test_the_loader_starts_at_the_trainers_step(data):
    module = data(flip=True)
    start = take(module.train_dataloader(), 8)
    module.trainer = SimpleNamespace(global_step=5)
    assert_equal(take(module.train_dataloader(), 3), start[5:])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(data, workers):
    before = torch.get_rng_state()
    take(data(num_workers=workers, flip=True).loader(0), 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("micro, world", [(None, 1), (None, 3), (4, 1), (5, 1), (5, 2), (5, 3)])
def test_validation_takes_every_image_once_and_mirrors_none(data, prepared, micro, world):
    ranks = [
        list(data(micro_batch_size=micro, batch_size=30, flip=True, rank=r, world=world).val_batches())
        for r in range(world)
    ]
    batches = [ranks[i % world][i // world] for i in range(sum(map(len, ranks)))]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(prepared.val)))
    torch.testing.assert_close(
        torch.cat([b["images"] for b in batches]), prepared.val.images / 127.5 - 1, rtol=0, atol=1e-6
    )
    assert all(len(batch["index"]) == min(micro or 30, 30 // world) for batch in batches[:-world])
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


EVEN = [(6, [3], [3]), (13, [3, 3, 1], [3, 3]), (9, [3, 2], [3, 1]), (1, [1], []), (0, [], [])]


@pytest.mark.parametrize("n, first, second", EVEN)
def test_two_ranks_share_what_is_held_out_evenly(data, n, first, second):
    """Of a batch of 6, no rank evaluates more rows at once than the 3 it trains on; the last rows are shared, too."""
    ranks = [list(data(batch_size=6, rank=r, world=2).val_parts(n)) for r in range(2)]
    assert [[len(part) for part in rank] for rank in ranks] == [first, second]
    assert sorted(i for rank in ranks for part in rank for i in part) == list(range(n))


class Encoded:
    """What latent diffusion puts in the place of prepared images."""

    train, val = range(20), range(5)

    def batch(self, split: str, index: Tensor, flipped: Tensor | None = None) -> dict[str, Tensor]:
        return {"mean": index + 100.0 * (0 if flipped is None else flipped), "index": index}


class Signals:
    """Rows that cannot be mirrored: their `batch` takes no flips."""

    train, val = range(20), range(5)

    def batch(self, split: str, index: Tensor) -> dict[str, Tensor]:
        return {"index": index}


def test_anything_that_makes_batches_will_do():
    module = IndexedData(ImageConfig(batch_size=10, flip=True), Encoded(), seed=0)
    first, second = take(module.loader(0), 2)
    assert sorted(torch.cat([first["index"], second["index"]]).tolist()) == list(range(20))
    assert 0 < int((torch.cat([first["mean"], second["mean"]]) >= 100).sum()) < 20
    assert [batch["mean"].tolist() for batch in module.val_batches()] == [[0, 1, 2, 3, 4]]
    module = IndexedData(DataConfig(batch_size=10), Signals(), seed=0)
    expected = [{"index": first["index"]}, {"index": second["index"]}]  # the same order, whatever the rows are
    assert_equal(take(module.loader(0), 2), expected)
    assert [batch["index"].tolist() for batch in module.val_batches()] == [[0, 1, 2, 3, 4]]


def test_a_worker_that_is_spawned_opens_the_files_itself(prepared):
    sent = pickle.dumps(prepared)
    assert len(sent) < 20_000 < prepared.train.images.numel()
    again = pickle.loads(sent)
    assert torch.equal(again.train.images, prepared.train.images) and torch.equal(
        again.val.labels, prepared.val.labels
    )


def test_a_large_batch_is_drawn_in_little_time(data):
    """A step takes some 100 ms; a loop over the images would take tens."""
    steps = iter(data(batch_size=256, flip=True).loader(0))
    next(steps)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - start)
    assert min(times) < 4e-3  # 0.3 ms


def test_channels_are_grey_or_rgb():
    with pytest.raises(UserError, match=r"data\.channels=2"):
        ImageConfig(channels=2).check()
