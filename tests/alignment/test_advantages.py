"""From scores to advantages: by hand, against the naive sum, and blind to what lies off the mask."""

import math

import pytest
import torch
from torch import Tensor

from gengen.alignment.advantages import gae, group_advantages, overlong, token_rewards, whiten

NAN = math.nan


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def ragged() -> Tensor:
    """Six rows of 9 places: a prompt, a response, padding. The last two rows fill the axis, and have no prompt."""
    mask = torch.zeros(6, 9, dtype=torch.float64)
    for row, (start, end) in zip(mask, [(2, 5), (0, 1), (4, 9), (3, 4), (0, 9), (0, 9)], strict=True):
        row[start:end] = 1
    return mask


def seeded(seed: int) -> Tensor:
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def junk(x: Tensor, mask: Tensor, value: float) -> Tensor:
    return x.masked_fill(mask == 0, value)


# --- rewards of tokens


def test_the_score_stands_at_the_last_token_and_a_rewards_sum_is_score_minus_kl() -> None:
    mask, kl, scores = ragged(), seeded(0), seeded(1)[:, 0]
    rewards = token_rewards(scores, kl, mask, beta=0.1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.1 * (kl * mask).sum(1))
    places = token_rewards(scores, torch.zeros_like(kl), mask, beta=0.1).nonzero().tolist()
    assert places == [
        [0, 4],
        [1, 0],
        [2, 8],
        [3, 3],
        [4, 8],
        [5, 8],
    ]  # the end token's, in the last place of the axis too
    for value in (NAN, 1e9):
        assert torch.equal(token_rewards(scores, junk(kl, mask, value), mask, beta=0.1), rewards)


def test_token_rewards_of_the_worked_example() -> None:
    """q0 q1 q2 | a b <end> | pad pad, on the shifted axis: a, b and the end are the places 2, 3, 4."""
    mask, kl = tensor([0, 0, 1, 1, 1, 0, 0]), tensor([9, 9, 0.5, -0.25, 1, 9, 9])
    torch.testing.assert_close(
        token_rewards(torch.tensor([2.0]).double(), kl, mask, 0.2), tensor([0, 0, -0.1, 0.05, 1.8, 0, 0])
    )


def test_an_empty_response_earns_nothing_and_spoils_no_other_row() -> None:
    mask, scores = tensor([0, 0, 0], [0, 1, 0]), torch.tensor([5.0, 2.0], dtype=torch.float64)
    rewards = token_rewards(scores, torch.ones_like(mask), mask, 0.5)
    assert torch.equal(rewards, tensor([0, 0, 0], [0, 1.5, 0]))
    advantages, returns = gae(rewards, torch.ones_like(mask), mask)
    assert torch.equal(advantages, tensor([0, 0, 0], [0, 0.5, 0])) and torch.equal(
        returns, tensor([0, 0, 0], [0, 1.5, 0])
    )


# --- GAE


def test_gae_by_hand() -> None:
    rewards, values = tensor([0.1, -0.2, 1.0]), tensor([0.5, 0.4, 0.3])
    advantages, returns = gae(rewards, values, torch.ones_like(rewards))
    torch.testing.assert_close(advantages, tensor([0.34675, 0.365, 0.7]))
    torch.testing.assert_close(returns, tensor([0.84675, 0.765, 1.0]))


def naive(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, one response after the other."""
    advantages = torch.zeros_like(values)
    for row, places in enumerate(mask.bool()):
        r, v = rewards[row, places].tolist(), [*values[row, places].tolist(), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        sums = [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(r))]
        advantages[row, places] = torch.tensor(sums, dtype=torch.float64)
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_the_naive_sum(gamma: float, lam: float) -> None:
    mask, rewards, values = ragged(), seeded(0), seeded(1)
    expected = naive(rewards, values, mask, gamma, lam)
    for value in (0.0, NAN, 1e9):
        advantages, returns = gae(junk(rewards, mask, value), junk(values, mask, value), mask, gamma, lam)
        torch.testing.assert_close(advantages, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(returns, (expected + values) * mask, atol=1e-12, rtol=0)


def test_gae_in_its_limits() -> None:
    """lam = 1: what is still to come, minus the value. lam = 0: the surprise of one step."""
    mask, values = ragged(), seeded(1)
    rewards = seeded(0) * mask
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(rewards, values, mask, lam=1.0)[0], (to_come - values) * mask)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(6, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(gae(rewards, values, mask, lam=0.0)[0], (rewards + following - values) * mask)


def test_a_value_behind_the_end_would_be_noticed() -> None:
    """The bug put back: bootstrapping from the padding moves the advantages of every row that has padding."""
    mask, rewards, values = ragged(), seeded(0), seeded(1)
    bug, _ = gae(rewards * mask, values, torch.ones_like(mask))
    right, _ = gae(rewards, values, mask)
    assert ((bug * mask - right).abs().amax(1) > 1e-3).tolist() == [True, True, False, True, False, False]


# --- whitening

GRID = torch.arange(12, 21, dtype=torch.float64).view(3, 3) / 10  # 1.2 to 2.0


def test_whitening_by_hand() -> None:
    mask = torch.ones_like(GRID)
    biased, unbiased = (whiten(GRID, mask, shift_mean=False, unbiased=b)[0] for b in (False, True))
    torch.testing.assert_close(biased, tensor([0.0508, 0.4381, 0.8254])[0], atol=5e-5, rtol=0)
    torch.testing.assert_close(unbiased, tensor([0.1394, 0.5046, 0.8697])[0], atol=5e-5, rtol=0)
    shifted = whiten(GRID, mask)
    torch.testing.assert_close(
        (shifted.mean(), shifted.var(unbiased=False)), (torch.zeros(()).double(), torch.ones(()).double())
    )
    kept = whiten(GRID, mask, shift_mean=False)
    torch.testing.assert_close((kept.mean(), kept.var(unbiased=False)), (GRID.mean(), torch.ones(()).double()))


@pytest.mark.parametrize("unbiased", [True, False])
def test_one_value_is_its_own_mean_and_none_is_nothing(unbiased: bool) -> None:
    x, mask = tensor([9, 3, 9]), tensor([0, 1, 0])
    assert whiten(x, mask, True, unbiased).tolist() == [[0, 0, 0]]
    assert whiten(x, mask, False, unbiased).tolist() == [[0, 3, 0]]
    for shift_mean in (True, False):
        assert not whiten(x, torch.zeros_like(mask), shift_mean, unbiased).any()


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kind", [torch.float64, torch.bool])
def test_whitening_is_that_of_what_the_mask_holds(shift_mean: bool, unbiased: bool, kind: torch.dtype) -> None:
    mask, x = ragged().to(kind), seeded(0) + 3
    dense = x[mask > 0][None]
    expected = whiten(dense, torch.ones_like(dense), shift_mean, unbiased)[0]
    for value in (0.0, NAN, 1e9):
        whitened = whiten(junk(x, mask, value), mask, shift_mean, unbiased)
        torch.testing.assert_close(whitened[mask > 0], expected)
        assert not whitened[mask == 0].any()


def test_the_whitenings_in_print_that_are_wrong_would_be_noticed() -> None:
    """One adds the mean back where it should be taken away, so advantages are never centred; one counts padding as
    advantages of 0.
    """
    mask, x = ragged(), junk(seeded(0) + 3, ragged(), 0.0)
    assert abs(whiten(x, mask).sum()) < 1e-9 < 1 < whiten(x, mask, shift_mean=False).sum()
    over_pads = whiten(x, torch.ones_like(mask)) * mask
    assert (over_pads.sum() / mask.sum()).abs() > 0.3


# --- groups


@pytest.mark.parametrize(
    ("how", "golden"),
    [
        ("grpo", [1.5, -0.5, -0.5, -0.5]),
        ("rloo", [1, -1 / 3, -1 / 3, -1 / 3]),
        ("dr_grpo", [0.75, -0.25, -0.25, -0.25]),
    ],
)
def test_group_advantages_by_hand(how: str, golden: list[float]) -> None:
    rewards = tensor([1, 0, 0, 0], [5, 5, 5, 5], [0, 0, 2, 0])
    advantages = group_advantages(rewards, how)
    torch.testing.assert_close(advantages[0], tensor(golden)[0], atol=1e-4, rtol=0)
    assert torch.equal(advantages[1], torch.zeros(4, dtype=torch.float64))
    scale = 1 if how == "grpo" else 2  # grpo measures in the group's own deviations
    torch.testing.assert_close(advantages[2], scale * tensor(golden)[0][[1, 2, 0, 3]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", ["grpo", "rloo", "dr_grpo"])
def test_equal_rewards_are_worth_exactly_nothing(how: str) -> None:
    """Also where the mean of equal numbers is rounded to another one: grpo would divide that by 1e-6 and less."""
    rewards = torch.tensor([[0.1], [1 / 3], [-123.456], [7e8], [0]]).expand(-1, 7).contiguous()
    assert (rewards.mean(1) != rewards[:, 0]).any()
    assert not group_advantages(rewards, how).any()


@pytest.mark.parametrize(
    ("how", "golden"),
    [
        ("grpo", [1.3, -0.5, -0.4, -0.4]),  # of costs .25, .05, -.05, -.05, centred .2, 0, -.1, -.1
        ("rloo", [(0.75 - 0.2) * 4 / 3, -1 / 3, -0.2, -0.2]),
        ("dr_grpo", [0.55, -0.25, -0.15, -0.15]),
    ],
)
def test_costs_are_taken_behind_the_division_by_the_deviation(how: str, golden: list[float]) -> None:
    """They are nats times beta, whatever the rewards deviate by; where those are all alike, they are all there is."""
    costs = tensor([0.25, 0.05, -0.05, -0.05], [0.25, 0.05, -0.05, -0.05], [0.25, 0.05, -0.05, 9])
    advantages = group_advantages(tensor([1, 0, 0, 0], [5, 5, 5, 5], [5, 5, 5, NAN]), how, costs)
    torch.testing.assert_close(advantages[0], tensor(golden)[0], atol=1e-5, rtol=0)
    scale = 4 / 3 if how == "rloo" else 1
    torch.testing.assert_close(advantages[1], scale * tensor([-0.2, 0, 0.1, 0.1])[0])
    scale = 3 / 2 if how == "rloo" else 1
    torch.testing.assert_close(advantages[2], scale * tensor([-1 / 6, 1 / 30, 2 / 15, 0])[0])


def test_rloo_is_the_reward_minus_the_mean_of_the_others() -> None:
    rewards = seeded(0)
    others = torch.stack([torch.cat([rewards[:, :i], rewards[:, i + 1 :]], 1).mean(1) for i in range(9)], 1)
    torch.testing.assert_close(group_advantages(rewards, "rloo"), rewards - others)


def test_a_baseline_of_a_group_is_none_of_another_and_has_a_known_name() -> None:
    rewards = seeded(0)
    for how in ("grpo", "rloo", "dr_grpo"):
        alone = torch.cat([group_advantages(row[None], how) for row in rewards])
        torch.testing.assert_close(group_advantages(rewards, how), alone)
    with pytest.raises(KeyError):
        group_advantages(rewards, "reinforce")


def test_what_length_costs_by_hand() -> None:
    lengths = torch.tensor([1, 6, 7, 8, 10])
    assert overlong(lengths, most=10, buffer=4).tolist() == [0, 0, 0.25, 0.5, 1]
