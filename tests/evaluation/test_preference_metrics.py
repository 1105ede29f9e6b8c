"""Metrics of post-training: golden values, and laws that they obey."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gengen.evaluation import preference
from gengen.evaluation.preference import (
    agreement,
    best_of_n,
    bootstrap_interval,
    draw_preferences,
    pair_gaps,
    paired_gain,
    pass_at_k,
    sequence_log_probs,
    sigmoid,
    spearman,
    win_rate,
)
from gengen.evaluation.text import calibration


@pytest.fixture
def draws() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_interval_is_that_of_normal_theory(draws: np.random.Generator) -> None:
    """Of many draws with a mean of .3 and a deviation of 2: .3 +- 1.96 * 2 / sqrt(N)."""
    x = draws.standard_normal(1000)
    x = 0.3 + 2 * (x - x.mean()) / x.std()
    assert bootstrap_interval(x) == pytest.approx((0.3 - 1.96 * 2 / 1000**0.5, 0.3 + 1.96 * 2 / 1000**0.5), abs=0.008)
    assert bootstrap_interval(x, seed=1) == bootstrap_interval(x, seed=1) != bootstrap_interval(x, seed=2)
    assert bootstrap_interval(np.full(9, 0.25)) == (0.25, 0.25)


def test_the_interval_covers_the_truth_as_often_as_it_says(draws: np.random.Generator) -> None:
    covered = sum(
        low <= 0 <= high
        for low, high in (bootstrap_interval(draws.standard_normal(60), resamples=1000) for _ in range(400))
    )
    assert 0.91 <= covered / 400 <= 0.97


def test_prompts_that_share_their_words_are_drawn_together(draws: np.random.Generator) -> None:
    """86 pairs asked for six times each: where a pair decides, six prompts say no more than one, and the interval is
    sqrt(6) wider.
    """
    means = draws.standard_normal(86)
    gains, clusters = means.repeat(6), np.arange(86).repeat(6)
    (low, high), (near_low, near_high) = bootstrap_interval(gains, clusters), bootstrap_interval(gains)
    assert (high - low) / (near_high - near_low) == pytest.approx(6**0.5, rel=0.05)
    assert high - low == pytest.approx(2 * 1.96 * means.std() / 86**0.5, rel=0.05)
    order = draws.permutation(len(gains))
    assert bootstrap_interval(gains[order], clusters[order]) == pytest.approx((low, high))
    assert bootstrap_interval(gains, np.arange(len(gains))) == bootstrap_interval(gains)  # each by itself
    uneven = np.array([0.0, 1, 1, 1])  # a mean of .75, of clusters of 1 and 3
    assert bootstrap_interval(uneven, np.array([0, 1, 1, 1])) == (0.0, 1.0)


def test_the_clustered_interval_covers_the_truth_and_the_plain_one_does_not(draws: np.random.Generator) -> None:
    clusters, covered = np.arange(40).repeat(6), np.zeros(2)
    for _ in range(200):
        gains = draws.standard_normal(40).repeat(6) + 0.3 * draws.standard_normal(240)
        for which, (low, high) in enumerate(
            [bootstrap_interval(gains, clusters, resamples=500), bootstrap_interval(gains, resamples=500)]
        ):
            covered[which] += low <= 0 <= high
    assert covered[0] / 200 > 0.9 and covered[1] / 200 < 0.75


def test_a_gain_is_paired(draws: np.random.Generator) -> None:
    """Prompts differ far more than policies do: unpaired, a gain of .1 on each would be lost among them."""
    before = 10 * draws.standard_normal((200, 4))
    after = before.mean(1, keepdims=True) + 0.1 + 0.01 * draws.standard_normal((200, 8))
    found = paired_gain("gold", before, after)
    assert found["gold_gain"] == pytest.approx(0.1, abs=0.002)
    assert found["gold_gain"] == pytest.approx(found["gold"] - found["gold_before"])
    assert 0.09 < found["gold_gain_low"] < found["gold_gain"] < found["gold_gain_high"] < 0.11
    shuffled = paired_gain("gold", before, draws.permutation(after))
    assert shuffled["gold_gain_low"] < -0.3 and shuffled["gold_gain_high"] > 0.5


def test_spearman() -> None:
    x, y = np.array([1.0, 2.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0, 40.0])
    assert spearman(x, y) == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert spearman(y, np.exp(y)) == pytest.approx(1) == -spearman(y, -(y**3))
    assert spearman(x, np.ones(4)) == 0
    five = np.array([106.0, 100.0, 86.0, 101.0, 99.0, 103.0, 97.0, 113.0, 112.0, 110.0])
    hours = np.array([7.0, 27.0, 2.0, 50.0, 28.0, 29.0, 20.0, 12.0, 6.0, 17.0])
    assert spearman(five, hours) == pytest.approx(-29 / 165)  # the worked example of Wikipedia's article


def test_spearman_of_what_is_one_of_two_values_cannot_reach_one() -> None:
    """Half of gold 0, half 1: a perfect score without ties has sqrt(1 - 2 (1/2)^3)."""
    gold = np.repeat([0.0, 1.0], 500)
    assert spearman(gold, gold.argsort(kind="stable").argsort()) == pytest.approx(math.sqrt(0.75), abs=1e-5)


@pytest.mark.parametrize("deviation,ceiling", [(1, 0.6749), (2, 0.7780), (3, 0.8359)])
def test_known_preferences(deviation: float, ceiling: float, draws: np.random.Generator) -> None:
    """Gaps from N(0, s^2): who knows them is right as often as the ceiling, and calibrated; who is twice as sure is
    not.
    """
    gaps = deviation * draws.standard_normal(200_000)
    assert sigmoid(abs(gaps)).mean() == pytest.approx(ceiling, abs=2e-3)
    wins = draw_preferences(gaps, seed=3)
    right = agreement(gaps, wins)
    assert right.mean() == pytest.approx(ceiling, abs=4e-3)

    def ece(logits: np.ndarray) -> float:
        found: float = calibration(torch.from_numpy(sigmoid(abs(logits))), torch.from_numpy(agreement(logits, wins)))[
            "ece"
        ]
        return found

    assert ece(gaps) < 0.005
    assert 0.05 < ece(2 * gaps) == pytest.approx((sigmoid(abs(2 * gaps)) - sigmoid(abs(gaps))).mean(), abs=5e-3)
    assert (draw_preferences(gaps, seed=3) == wins).all() and (draw_preferences(gaps, seed=4) != wins).any()


def test_agreement_of_a_model_that_cannot_say_is_a_half() -> None:
    assert agreement(np.array([2.0, -1.0, 0.0, 0.0]), np.array([True, True, True, False])).tolist() == [1, 0, 0.5, 0.5]


def test_pairs_are_of_one_prompt() -> None:
    assert pair_gaps(np.array([[5.0, 3.0, 1.0, 7.0], [0.0, 10.0, 20.0, 20.0]])).tolist() == [2, -6, -10, 0]
    assert pair_gaps(np.array([[5.0, 3.0, 1.0]])).tolist() == [2]


def test_pass_at_k() -> None:
    """1 - C(n - c, k) / C(n, k), and the share of all draws of k of n that hold one that passed."""
    passed = np.zeros((3, 16), bool)
    passed[1, 5], passed[2] = True, True
    assert pass_at_k(8, passed).tolist() == [0, 0.5, 1]
    three = np.array([[True, False, True, False, False]])
    pairs = [any(three[0, list(c)]) for c in product(range(5), repeat=2) if c[0] < c[1]]
    assert pass_at_k(2, three) == pytest.approx(sum(pairs) / len(pairs))
    assert pass_at_k(1, three) == pytest.approx(0.4)


def test_win_rate(draws: np.random.Generator) -> None:
    assert win_rate(np.array([[1.0, 3.0]]), np.array([[2.0, 3.0]])) == (1 + 0 + 1 + 0.5) / 4
    x, y = draws.integers(0, 3, (50, 4)), draws.integers(0, 3, (50, 8))
    assert win_rate(x, y) + win_rate(y, x) == pytest.approx(1)
    assert win_rate(np.zeros((2, 1)), np.array([[9.0], [-9.0]])) == 0.5  # each against its own prompt's


def test_best_of_n(draws: np.random.Generator) -> None:
    scores, worth = np.array([[1.0, 4.0, 3.0, 2.0]]), np.array([[10.0, 20.0, 30.0, 40.0]])
    assert [best_of_n(n, scores, worth).item() for n in (1, 2, 4)] == [25, 25, 20]
    uniform = draws.random((4000, 16))
    for n in (1, 2, 4, 8, 16):  # the mean of the largest of n
        assert best_of_n(n, uniform, uniform).shape == (4000, 1)
        assert best_of_n(n, uniform, uniform).mean() == pytest.approx(n / (n + 1), abs=5e-3)


# --- policies


class Coin(torch.nn.Module):
    """A language model that knows no context: each next token has the same probabilities."""

    def __init__(self, probabilities: list[float]):
        super().__init__()
        self.embedding = torch.nn.Embedding(1, 1)
        self.seen: list[tuple[int, ...]] = []
        self.log_p = torch.tensor(probabilities).log()

    def features(self, tokens: Tensor) -> Tensor:
        self.seen.append(tuple(tokens.shape))
        return torch.zeros(*tokens.shape, 1)

    def logits(self, features: Tensor) -> Tensor:
        return self.log_p.expand(*features.shape[:-1], -1) + 3  # logits have no normaliser


def test_log_probabilities_are_of_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = Coin([0.5, 0.3, 0.2])
    monkeypatch.setattr(preference, "ROWS", 2)
    rows = [([1, 1, 1], [2]), ([2], [0, 1, 1, 2]), ([0, 0], [1, 2])]
    wanted = [math.log(p) for p in (0.2, 0.5 * 0.3 * 0.3 * 0.2, 0.3 * 0.2)]
    assert sequence_log_probs(model, rows) == pytest.approx(wanted, abs=1e-6)
    assert model.seen == [(2, 4), (1, 3)]


def test_the_kl_of_answers_is_the_exact_one(draws: np.random.Generator) -> None:
    """Answers of a policy that ends with probability q after each token: KL = (KL of a token) / q."""
    p, r = [0.25, 0.35, 0.4], [0.125, 0.5, 0.375]  # the first ends
    rows = []
    for _ in range(5_000):
        answer: list[int] = []
        while not answer or answer[-1]:
            answer.append(int(draws.choice(3, p=p)))
        rows.append(([1], answer))
    policy, reference = (sequence_log_probs(Coin(weights), rows) for weights in (p, r))  # type: ignore[arg-type]
    exact = sum(a * math.log(a / b) for a, b in zip(p, r, strict=True)) / p[0]
    assert (policy - reference).mean() == pytest.approx(exact, abs=4 * (policy - reference).std() / len(rows) ** 0.5)
