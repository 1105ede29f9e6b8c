"""From logits to tokens, against loops one can follow by hand."""

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from gengen.generation.text.sampling import draw, next_token_probabilities
from helpers.draws import uniforms


def brute_force(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    order = sorted(range(len(logits)), key=lambda i: -logits[i])  # a stable sort: of equal ones the first
    weight = {i: math.exp((logits[i] - logits[order[0]]) / temperature) for i in order[:top_k]}
    total, kept, mass = sum(weight.values()), list[int](), 0.0
    for i in weight:
        if not kept or mass < (top_p or 1.0) * total - 1e-9:
            kept.append(i)
            mass += weight[i]
    return [weight[i] / mass if i in kept else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 20, 50])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_probabilities_equal_brute_force(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)).round(
        decimals=1
    )  # rounded: there are ties
    found = next_token_probabilities(logits, temperature, top_k, top_p)
    expected = torch.tensor([brute_force(row, temperature, top_k, top_p) for row in logits.tolist()])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_temperature_0_takes_the_likeliest_token() -> None:
    assert next_token_probabilities(torch.tensor([[1.0, 3.0, 2.0]]), 0.0, top_k=2, top_p=0.5).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy_not_nan(temperature: float) -> None:
    logits = torch.tensor([[-1e4, 2.0, 1.0, float("-inf")]])
    assert next_token_probabilities(logits, temperature).tolist() == [[0, 1, 0, 0]]


def test_probabilities_of_bf16_logits_are_fp32() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]]).bfloat16()
    torch.testing.assert_close(next_token_probabilities(logits, 0.7), (logits.float() / 0.7).softmax(-1))


def test_exactly_k_survive_where_logits_are_equal() -> None:
    assert (next_token_probabilities(torch.zeros(1, 100), top_k=7) > 0).nonzero()[:, 1].tolist() == list(range(7))
    tied = torch.tensor([[1.0, 5.0, 1.0, 1.0, 5.0, 0.0]])
    assert (next_token_probabilities(tied, top_k=3) > 0).tolist() == [[True, True, False, False, True, False]]


@pytest.mark.parametrize(
    "probabilities,p,kept",
    [
        ([0.9, 0.05, 0.05], 0.5, [0]),  # OLMo-core keeps two
        ([0.9, 0.05, 0.05], 0.9, [0]),
        ([0.05, 0.9, 0.05], 0.91, [0, 1]),
        ([0.5, 0.25, 0.25], 0.75, [0, 1]),
        ([0.5, 0.25, 0.25], 0.76, [0, 1, 2]),
        ([0.25, 0.25, 0.25, 0.25], 1e-9, [0]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_it(probabilities: list[float], p: float, kept: list[int]) -> None:
    found = next_token_probabilities(torch.tensor([probabilities]).log(), top_p=p)
    assert found.nonzero()[:, 1].tolist() == kept
    assert found.sum().item() == pytest.approx(1)


def test_draws_equal_a_walk_along_the_distribution() -> None:
    some = random.Random(0)
    for _ in range(200):
        weights = [some.choice([0.0, 0.0, 1.0, some.random()]) for _ in range(9)] + [0.5]
        u = some.random()
        walk = next(i for i, mass in enumerate(itertools.accumulate(weights)) if mass > u * sum(weights))
        found = draw(torch.tensor([weights], dtype=torch.float64), torch.tensor([u], dtype=torch.float64))
        assert found.tolist() == [walk]


@pytest.mark.parametrize("u", [0.0, 5e-324, 0.25, 0.5, 1 - 2**-53, 1.0])
def test_a_token_of_probability_0_is_never_drawn(u: float) -> None:
    rows = torch.tensor(
        [[0.0, 0.5, 0.0, 0.5, 0.0], [0, 0, 1, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3, 0], [0, 1e-30, 0, 1e-38, 0]]
    )
    tokens = draw(rows, torch.full((4,), u, dtype=torch.float64))
    assert (rows.gather(1, tokens[:, None]) > 0).all()


def test_what_is_drawn_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.15, 0.1, 0.04, 0.01])
    n = 40_000
    tokens = draw(probabilities.expand(n, -1), uniforms(0, range(n // 40), 40).flatten())
    observed = torch.bincount(tokens, minlength=7).double()
    expected = n * probabilities.double()
    assert observed[1] == 0
    chi2 = ((observed - expected).square() / expected)[probabilities > 0].sum().item()
    assert 0.2 < chi2 < 25.7  # chi-squared of 5 degrees: both tails beyond are 1e-3 and 1e-4


def test_uniforms_are_a_function_of_seed_and_index() -> None:
    rows = uniforms(3, range(6), 50)
    assert rows.shape == (6, 50) and rows.dtype == torch.float64 and (rows >= 0).all() and (rows < 1).all()
    assert torch.equal(uniforms(3, [4, 1], 50), rows[[4, 1]])
    assert torch.equal(uniforms(3, range(6), 20), rows[:, :20]), "more tokens must not change the first ones"
    assert len({row[0].item() for seed in range(20) for row in uniforms(seed, range(20), 1)}) == 400
    assert not torch.equal(uniforms(3 + 2**32, [0], 5), uniforms(3, [0], 5)), "all bits of a seed count"
    assert not torch.equal(uniforms(1, [11], 5), uniforms(11, [1], 5))


def test_uniforms_are_the_same_on_every_machine() -> None:
    """Golden: written by numpy 2.4 on x86-64; PCG64 and its doubles are the same in every version and platform."""
    expected = torch.tensor(
        [
            [0.32569387888534307, 0.548066581795755, 0.8350560514028788],
            [0.6120651904095339, 0.7700377339851359, 0.553198767762169],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(uniforms(0, [0, 1], 3), expected, atol=0, rtol=0)


def global_states() -> list[Any]:
    numpy_state: Any = np.random.get_state()
    return [torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()]


def test_uniforms_leave_the_global_generators_alone() -> None:
    before = global_states()
    uniforms(0, range(3), 10)
    assert global_states() == before
