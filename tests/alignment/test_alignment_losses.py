"""PPO's losses inside and outside their bands, losses of pairs by hand, and sums that do not depend on how a batch was
cut.
"""

import math

import pytest
import torch
from torch import Tensor

from gengen.alignment.losses import (
    PREFERENCE_LOSSES,
    aggregate,
    bradley_terry,
    clipped_policy_loss,
    clipped_value_loss,
    dpo,
    ipo,
    kto,
    of_answers,
    orpo,
    simpo,
)


def tensor(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def value_and_slope(loss: Tensor, at: Tensor) -> tuple[list[float], list[float]]:
    return loss.tolist(), torch.autograd.grad(loss.sum(), at)[0].tolist()


# --- PPO


def test_the_policy_loss_by_hand_and_where_it_lets_go() -> None:
    """No slope where the ratio already went past the band the way the advantage pulls, and -A ratio elsewhere."""
    ratio, advantage = [1.0, 1.1, 1.3, 1.3, 0.9, 0.7, 0.7, 1.3], [2.0, 2, 2, -2, -2, -2, 2, 0]
    old = torch.full((8,), -1.5, dtype=torch.float64)
    log_probs = (old + tensor(*ratio).log()).requires_grad_()
    loss, slope = value_and_slope(clipped_policy_loss(log_probs, old, tensor(*advantage)), log_probs)
    assert loss == pytest.approx([-2, -2.2, -2.4, 2.6, 1.8, 1.6, -1.4, 0])
    assert slope == pytest.approx([-2, -2.2, 0, 2.6, 1.8, 0, -1.4, 0])


def test_the_upper_band_alone_can_be_widened() -> None:
    old, advantages = torch.zeros(3, dtype=torch.float64), tensor(1, 1, -1)
    log_probs = tensor(1.25, 1.35, 0.75).log().requires_grad_()
    loss, slope = value_and_slope(clipped_policy_loss(log_probs, old, advantages, 0.2, clip_high=0.3), log_probs)
    assert loss == pytest.approx([-1.25, -1.3, 0.8]) and slope == pytest.approx([-1.25, 0, 0])


def test_on_its_own_draws_the_policy_loss_is_minus_the_advantage_exactly() -> None:
    log_probs = -torch.rand(5, 9, generator=torch.Generator().manual_seed(0)) * 30
    advantages = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(clipped_policy_loss(log_probs, log_probs.clone(), advantages), -advantages)


def test_a_policy_far_away_gives_a_finite_loss() -> None:
    loss = clipped_policy_loss(torch.tensor([0.0, -500]), torch.tensor([-500.0, 0]), torch.tensor([-1.0, 1]))
    torch.testing.assert_close(loss, torch.tensor([math.exp(20), -math.exp(-20)]))


def test_the_value_loss_by_hand_and_where_it_lets_go() -> None:
    """No slope where the value left its band towards the return, which it still pulls at from the far side."""
    values, old, returns = (
        tensor(0.1, 0.5, -0.5, 0.5, 1.9).requires_grad_(),
        tensor(0, 0, 0, 0, 2),
        tensor(1, 1, 1, -1, 1),
    )
    loss, slope = value_and_slope(clipped_value_loss(values, old, returns, 0.2), values)
    assert loss == pytest.approx([0.405, 0.32, 1.125, 1.125, 0.405])
    assert slope == pytest.approx([-0.9, 0, -1.5, 1.5, 0.9])


# --- pairs


def test_bradley_terry_by_hand() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(bradley_terry(zero, zero), torch.full_like(zero, math.log(2)))
    chosen, rejected = tensor(2, 0.5), tensor(1, 1.5)
    torch.testing.assert_close(
        bradley_terry(chosen, rejected), tensor(0.313261687518, 1.313261687518)
    )  # softplus(-1), softplus(1)
    torch.testing.assert_close(bradley_terry(chosen, rejected, margin=tensor(1, -1)), tensor(math.log(2), math.log(2)))
    torch.testing.assert_close(bradley_terry(chosen, rejected, centring=0.01), tensor(0.403261687518, 1.353261687518))


def test_bradley_terry_is_of_the_difference_and_centring_of_the_sum() -> None:
    chosen, rejected = (
        torch.randn(50, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1)
    )
    torch.testing.assert_close(bradley_terry(chosen + 7, rejected + 7), bradley_terry(chosen, rejected))
    moved, still = (bradley_terry(c, r, centring=0.01) for c, r in ((chosen + 7, rejected + 7), (chosen, rejected)))
    torch.testing.assert_close(
        moved - still, 0.01 * ((chosen + rejected + 14).square() - (chosen + rejected).square())
    )


def test_the_expected_loss_is_least_at_the_true_gap() -> None:
    """Pairs labelled with probability sigma(1.5): the mean loss has no slope there."""
    gap = tensor(1.5).requires_grad_()
    p, zero = gap.detach().sigmoid(), torch.zeros(1, dtype=torch.float64)
    loss = p * bradley_terry(gap, zero) + (1 - p) * bradley_terry(zero, gap)
    assert torch.autograd.grad(loss, gap)[0].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "at_0", "slope_at_0", "at_2", "slope_at_2"),
    [
        ("dpo", 0.693147, -0.05, 0.598139, -0.045017),
        ("ipo", 25.0, -10.0, 9.0, -6.0),
        ("cdpo", 0.693147, -0.04, 0.618139, -0.035017),  # .9 softplus(-.2) + .1 softplus(.2) = softplus(-.2) + .1 * .2
    ],
)
def test_preference_losses_by_hand(name: str, at_0: float, slope_at_0: float, at_2: float, slope_at_2: float) -> None:
    """beta .1, of cDPO smoothing .1: at the start, where policy and reference agree, and where h = 2."""
    loss, slope = value_and_slope(PREFERENCE_LOSSES[name](h := tensor(0, 2).requires_grad_(), 0.1, 0.1), h)
    assert loss == pytest.approx([at_0, at_2], abs=1e-6) and slope == pytest.approx([slope_at_0, slope_at_2], abs=1e-6)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_a_preference_loss_pulls_the_two_apart_and_leaves_the_reference(name: str) -> None:
    chosen, rejected = tensor(-20.0).requires_grad_(), tensor(-30.0).requires_grad_()
    ref = tensor(-21, -29)
    with torch.no_grad():
        ref_gap = ref[0] - ref[1]
    loss = PREFERENCE_LOSSES[name](chosen - rejected - ref_gap, 0.1, 0.2)
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert up < 0 < down and torch.equal(up, -down) and not ref.requires_grad


def test_smoothing_is_the_share_of_pairs_the_wrong_way_round() -> None:
    h = torch.linspace(-5, 5, 21, dtype=torch.float64)
    cdpo = PREFERENCE_LOSSES["cdpo"]
    torch.testing.assert_close(cdpo(h, 0.3, 0.0), dpo(h, 0.3))
    torch.testing.assert_close(cdpo(h, 0.3, 1.0), dpo(-h, 0.3))
    torch.testing.assert_close(cdpo(h, 0.3, 0.5), cdpo(-h, 0.3, 0.5))


def test_where_a_preference_loss_comes_to_rest() -> None:
    """IPO at 1 / (2 beta); cDPO where sigma(beta h) is the share of pairs the right way round; DPO nowhere."""
    rest = math.log(0.9 / 0.1) / 0.5
    for loss, place in ((PREFERENCE_LOSSES["cdpo"], rest), (ipo, 1.0)):
        h = tensor(place).requires_grad_()
        assert torch.autograd.grad(loss(h, 0.5, 0.1).sum(), h)[0].item() == pytest.approx(0, abs=1e-12)
    h = tensor(50.0).requires_grad_()
    assert torch.autograd.grad(dpo(h, 0.5).sum(), h)[0] < 0


def test_simpo_by_hand() -> None:
    """softplus(-(2 * .5 - .5)), whose slope is 2 sigma(-.5)."""
    chosen, rejected = tensor(-0.5).requires_grad_(), tensor(-1.0).requires_grad_()
    loss = simpo(chosen, rejected, 2.0, 0.5)
    slopes = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert [loss.item(), *map(float, slopes)] == pytest.approx([0.474077, -0.755081, 0.755081], abs=1e-6)


def test_orpo_by_hand() -> None:
    """p = 1/2 and 1/4 have odds of 1 and 1/3: ln 2 + .1 ln(4/3)."""
    chosen, rejected = tensor(0.5).log().requires_grad_(), tensor(0.25).log().requires_grad_()
    loss = orpo(chosen, rejected, 0.1)
    slopes = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert [loss.item(), *map(float, slopes)] == pytest.approx([0.721915, -1.05, 1 / 30], abs=1e-6)


def test_a_certain_answer_has_odds_that_can_be_compared() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    loss = orpo(chosen, torch.tensor([-50.0]), 0.1)
    assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), chosen)[0].isfinite().all()


def test_kto_by_hand() -> None:
    """Ratios of 2 (good) and -1 (bad) around a baseline of .5: 1.5 (1 - sigma(.15)) and sigma(-.15)."""
    ratio = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    losses = kto(ratio, tensor(1.0, 0.0), tensor(0.5), 0.1, 1.5, 1.0)
    slopes = torch.autograd.grad(losses.sum(), ratio)[0]
    assert losses.tolist() == pytest.approx([0.693855, 0.462570], abs=1e-6)
    assert slopes.tolist() == pytest.approx([-0.0372898, 0.0248599], abs=1e-6)


def test_kto_of_a_policy_that_is_its_reference() -> None:
    """Half of the weight, and no answer moves the other kind's way."""
    ratio = torch.zeros(2, requires_grad=True)
    losses = kto(ratio, torch.tensor([1.0, 0.0]), torch.tensor(0.0), 0.3, 1.0, 1.0)
    assert losses.tolist() == [0.5, 0.5]
    assert torch.autograd.grad(losses.sum(), ratio)[0].tolist() == pytest.approx([-0.075, 0.075])


def test_the_importance_of_answers_by_hand() -> None:
    """Means of .1 and .3, and of -.5: e^.2 and e^-.5, of which a band of .3 cuts the bad answer alone. Each token has
    an equal share of the slope, and what is off the mask none."""
    log_ratio = torch.tensor([[0.1, 0.3, 9.0], [-0.5, 9.0, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    advantages = torch.tensor([[1.0], [-1.0]])
    ratio = of_answers(log_ratio, mask)
    losses = clipped_policy_loss(ratio, torch.zeros_like(ratio), advantages.expand(2, 3), 0.3)
    rows = aggregate(losses, mask, "sequence", 3)
    assert rows.tolist() == pytest.approx([-math.exp(0.2), 0.7])
    (slope,) = torch.autograd.grad(rows.sum(), log_ratio)
    assert slope.flatten().tolist() == pytest.approx([-math.exp(0.2) / 2, -math.exp(0.2) / 2, 0, 0, 0, 0])


# --- sums

LOSSES = torch.tensor([[9.0, 1, 2, 3, 9], [9, 9, 5, 9, 9], [9, 9, 9, 9, 9]])
MASK = torch.tensor([[0.0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("how", "rows"), [("token", [6.0, 5, 0]), ("sequence", [2.0, 5, 0]), ("constant", [0.6, 0.5, 0])]
)
def test_aggregates_by_hand(how: str, rows: list[float]) -> None:
    torch.testing.assert_close(aggregate(LOSSES, MASK, how, 10), torch.tensor(rows))
    for value in (math.nan, 1e9):
        padded = LOSSES.masked_fill(MASK == 0, value).requires_grad_()
        sums = aggregate(padded, MASK, how, 10)
        torch.testing.assert_close(sums, torch.tensor(rows))
        (slope,) = torch.autograd.grad(sums.sum(), padded)
        assert not slope[MASK == 0].any() and (slope[MASK > 0] > 0).all()


def test_an_aggregate_has_a_known_name() -> None:
    with pytest.raises(KeyError):
        aggregate(LOSSES, MASK, "mean", 10)


def one_parameter(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B, 3), mask and parameter of a policy sigma(theta), on its own draws: lengths 1 and 3, advantages 1 and
    -1.
    """
    theta = torch.zeros((), requires_grad=True)
    log_probs = torch.nn.functional.logsigmoid(theta).expand(2, 3)
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 3)
    losses = clipped_policy_loss(log_probs, log_probs.detach(), advantages)
    return losses[rows], torch.tensor([[1.0, 0, 0], [1, 1, 1]])[rows], theta


@pytest.mark.parametrize("cuts", [[slice(0, 2)], [slice(0, 1), slice(1, 2)]], ids=["whole", "cut"])
def test_the_loss_does_not_depend_on_the_cut(cuts: list[slice]) -> None:
    """The sum over micro-batches, or ranks, of sums divided by the count of the whole step: .5, with slope .25. A mean
    of means: 0, 0.
    """
    loss = slope = naive = naive_slope = 0.0
    for rows in cuts:
        losses, mask, theta = one_parameter(rows)
        share = aggregate(losses, mask, "token", 1).sum() / 4
        mean = (losses * mask).sum() / mask.sum() / len(cuts)
        loss, naive = loss + share.item(), naive + mean.item()
        slope += torch.autograd.grad(share, theta, retain_graph=True)[0].item()
        naive_slope += torch.autograd.grad(mean, theta)[0].item()
    assert (loss, slope) == pytest.approx((0.5, 0.25))
    assert (naive, naive_slope) == pytest.approx(
        (0.5, 0.25) if len(cuts) == 1 else (0, 0)
    )  # why the count is the step's
