from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gengen.cli import main
from gengen.data.text import prepare as prepare_module
from gengen.data.text.prepare import prepare
from gengen.data.text.windows import TextData
from gengen.errors import UserError
from helpers.batches import assert_equal, take

T, B = 31, 6


@pytest.fixture
def data(archive, book_config, said):
    config = book_config(tokenizer="byte", batch_size=B)
    prepared = prepare(config, 257, said.append)

    def make(**changes):
        options = {"context": T, "seed": 3, **{k: v for k, v in changes.items() if k in ("rank", "world", "seed")}}
        facts = {k: v for k, v in changes.items() if k not in options}
        return TextData(book_config(tokenizer="byte", **{"batch_size": B, **facts}), prepared, **options)

    return make


def test_each_epoch_has_every_token_as_a_label_once(data):
    """Over two epochs, though neither is a whole number of batches."""
    stream = data().prepared.train
    windows = -(-len(stream) // T)
    assert windows % B and len(stream) % T
    steps = take(data().loader(0), 2 * windows // B + 1)
    rows = [(t, y) for step in steps for t, y in zip(step["tokens"], step["labels"], strict=True)]
    want = np.bincount(stream.read(0, len(stream)), minlength=257)
    pairs = stream.read(-1, len(stream) + 1)
    for epoch in (rows[:windows], rows[windows : 2 * windows]):
        labels = torch.cat([y[y >= 0] for _, y in epoch])
        np.testing.assert_array_equal(np.bincount(labels, minlength=257), want)
        seen = sorted((int(a), int(b)) for t, y in epoch for a, b in zip(t, y, strict=True) if b >= 0)
        assert seen == sorted(
            zip(pairs[:-1].tolist(), pairs[1:].tolist(), strict=True)
        )  # each behind its own predecessor
    assert not torch.equal(rows[0][0], rows[windows][0])


def test_a_batch_has_the_shape_of_a_step(data):
    batch = next(iter(data().loader(0)))
    assert (
        batch["tokens"].shape == batch["labels"].shape == (B, T)
        and batch["tokens"].dtype == batch["labels"].dtype == torch.int64
    )
    torch.testing.assert_close(batch["tokens"][0, 1:], batch["labels"][0, :-1])


def test_order_is_a_function_of_the_step(data):
    windows = -(-len(data().prepared.train) // T)
    n = windows // B + 4  # across the end of the first epoch
    steps = take(data().loader(0), n)
    assert_equal(take(data().loader(n - 6), 6), steps[n - 6 :])
    assert_equal(take(data(num_workers=2).loader(n - 6), 6), steps[n - 6 :])
    ranks = [take(data(rank=r, world=2).loader(n - 6), 6) for r in range(2)]
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*ranks, strict=True)]
    assert_equal(joined, steps[n - 6 :])
    assert not torch.equal(take(data(seed=4).loader(0), 1)[0]["tokens"], steps[0]["tokens"])


def test_a_large_corpus_is_shuffled_without_a_table(archive, book_config, said, monkeypatch):
    """The run's config says so; a run that went on from before there was a choice keeps its order."""
    small = prepare(book_config(tokenizer="byte"), 257, said.append)
    monkeypatch.setattr(prepare_module, "MAX_TABLED", len(small.train) - 1)
    large = prepare(book_config(tokenizer="byte"), 257, said.append)
    older = prepare(book_config(tokenizer="byte"), 257, said.append, trained_on=small.fingerprint)
    asked = prepare(book_config(tokenizer="byte", order=1), 257, said.append)
    assert [data.config.order for data in (small, large, older, asked)] == [1, 2, 1, 1]
    assert {data.fingerprint for data in (small, large, older, asked)} == {small.fingerprint}
    one, two = (take(TextData(d.config, d, context=T, seed=3).loader(0), 3) for d in (small, large))
    assert not torch.equal(one[0]["tokens"], two[0]["tokens"])
    assert torch.equal(two[2]["tokens"], TextData(large.config, large, context=T, seed=3).steps[2]["tokens"])


def test_the_loader_starts_at_the_trainers_step(data):
    module = data()
    start = take(module.train_dataloader(), 8)
    module.trainer = SimpleNamespace(global_step=5)
    assert_equal(take(module.train_dataloader(), 3), start[5:])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(data, workers):
    before = torch.get_rng_state()
    take(data(num_workers=workers).loader(0), 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("micro, world", [(None, 1), (None, 2), (4, 1), (4, 2), (5, 3)])
def test_validation_scores_every_token_but_the_first_once(data, micro, world):
    stream = data().prepared.val
    tokens = stream.read(0, len(stream)).tolist()
    assert (len(tokens) - 1) % T  # the last window is padded
    ranks = [
        list(data(micro_batch_size=micro, batch_size=30, rank=r, world=world).val_batches()) for r in range(world)
    ]
    size = min(micro or 30, 30 // world)
    in_order = [ranks[i % world][i // world] for i in range(sum(map(len, ranks)))]
    assert all(len(batch["labels"]) == size for batch in in_order[:-world])
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    labels = torch.cat([batch["labels"].flatten() for batch in in_order])
    assert labels[labels >= 0].tolist() == tokens[1:] and (labels < 0).sum() == -(len(tokens) - 1) % T
    assert torch.cat([batch["tokens"].flatten() for batch in in_order])[: len(tokens) - 1].tolist() == tokens[:-1]


def test_a_batch_must_divide_over_ranks(data):
    with pytest.raises(UserError, match=r"data\.batch_size=6 cannot be cut into equal parts for 4 ranks"):
        data(world=4)


def test_samples_without_prompts_continue_nothing(tiny, tmp_path):
    steps = ["trainer.max_steps=1", "trainer.sample_every=1", "run=r", f"runs_dir={tmp_path}"]
    assert main(["train", *tiny, "data.prompts=[]", *steps]) == 0
    assert (tmp_path / "r" / "samples" / "step-000000001.txt").read_text().strip()
