"""The KL's estimators by hand and by their gradients, the controller and the bound of best-of-n."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gengen.alignment.advantages import token_rewards
from gengen.alignment.kl import ESTIMATORS, KLController, best_of_n_kl, k1, k2, k3

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.5, 0.9, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(("r", "golden"), [(0.3, (0.3, 0.045, 0.040818)), (-0.3, (-0.3, 0.045, 0.049859))])
def test_estimators_by_hand(r: float, golden: tuple[float, ...]) -> None:
    ref = torch.tensor([-1.7], dtype=torch.float64)
    for estimator, expected in zip(ESTIMATORS.values(), golden, strict=True):
        assert estimator(ref + r, ref).item() == pytest.approx(expected, abs=1e-6)


def test_a_policy_that_is_its_reference_pays_nothing() -> None:
    log_probs = -torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) * 20
    for estimator in ESTIMATORS.values():
        assert not estimator(log_probs, log_probs).any()
    scores = torch.tensor([1.0, -2, 0.5, 3])
    rewards = token_rewards(scores, k1(log_probs, log_probs), torch.ones(4, 7), beta=0.3)
    assert torch.equal(rewards.sum(1), scores)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    log_pi, log_ref = LOGITS.log_softmax(0), REF.log()
    exact = (log_pi.exp() * (log_pi - log_ref)).sum()
    for estimator in (k1, k3):
        torch.testing.assert_close((log_pi.exp() * estimator(log_pi, log_ref)).sum(), exact)
    assert not torch.isclose((log_pi.exp() * k2(log_pi, log_ref)).sum(), exact, rtol=1e-3)
    assert (k3(log_pi, log_ref) > 0).all() and (k1(log_pi, log_ref) < 0).any()


def test_k3_keeps_its_digits_where_the_two_are_close() -> None:
    assert k3(torch.tensor([1e-4]), torch.zeros(1)).item() == pytest.approx(
        5e-9, rel=1e-2
    )  # exp(-r) - 1 + r is 0 or 6e-8 in fp32


def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(of(logits.log_softmax(0)), logits)
    return slope


REVERSE = gradient(lambda log_pi: (log_pi.exp() * (log_pi - REF.log())).sum())  # grad KL(pi || ref)
FORWARD = gradient(lambda log_pi: (REF * (REF.log() - log_pi)).sum())  # grad KL(ref || pi)
IN_REWARD = {"k1": REVERSE, "k3": REVERSE - FORWARD}
IN_LOSS = {"k1": torch.zeros_like(REVERSE), "k2": REVERSE, "k3": FORWARD}


@pytest.mark.parametrize("name", IN_REWARD)
def test_gradients_in_the_reward(name: str) -> None:
    """E_pi[k grad log pi], exactly, over four tokens: what a policy gradient makes of an estimator it is charged."""
    slope = gradient(lambda log_pi: (log_pi.exp() * ESTIMATORS[name](log_pi, REF.log())).detach() @ log_pi)
    torch.testing.assert_close(slope, IN_REWARD[name], atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", IN_LOSS)
def test_gradients_in_the_loss(name: str) -> None:
    """E_pi[grad k], exactly: draws are fixed when the loss is differentiated."""
    slope = gradient(lambda log_pi: log_pi.exp().detach() @ ESTIMATORS[name](log_pi, REF.log()))
    torch.testing.assert_close(slope, IN_LOSS[name], atol=1e-8, rtol=0)


def test_the_right_gradient_is_far_from_the_wrong_ones() -> None:
    assert REVERSE.norm() > 0.1 and (REVERSE - FORWARD).norm() > 0.05 and FORWARD.norm() > 0.1


# --- the controller


@pytest.mark.parametrize(("kl", "beta"), [(12, 0.151536), (0, 0.148464), (6.6, 0.150768), (6, 0.15)])
def test_the_adaptive_weight_by_hand(kl: float, beta: float) -> None:
    controller = KLController(0.15, target=6)
    controller.update(kl, 512)
    assert controller.beta == pytest.approx(beta, abs=1e-9)


def test_a_fixed_weight_stays() -> None:
    controller = KLController(0.15)
    controller.update(100, 512)
    assert controller.beta == 0.15


def test_the_weight_brings_the_kl_to_its_target() -> None:
    """Where the KL a response is 1 / beta, the weight comes to rest at 1 / target, from either side."""
    for start in (0.02, 2.0):
        controller = KLController(start, target=4, horizon=1_000)
        for _ in range(400):
            controller.update(1 / controller.beta, 64)
        assert controller.beta == pytest.approx(1 / 4, rel=1e-3)


# --- best-of-n


@pytest.mark.parametrize(("n", "nats"), [(1, 0.0), (4, 0.6363), (8, 1.2044), (16, 1.8351)])
def test_best_of_n_by_hand(n: int, nats: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(nats, abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_best_of_n_is_a_bound_and_near_for_many_answers(n: int) -> None:
    """Over V equally likely answers, none as good as another, the best of n is answer k of V with (k/V)^n -
    ((k-1)/V)^n.
    """
    for answers, slack in ((4, math.inf), (100_000, 1e-3)):
        k = torch.arange(answers + 1, dtype=torch.float64) / answers
        p = k.pow(n).diff()
        kl = torch.special.xlogy(p, p * answers).sum().item()
        assert kl <= best_of_n_kl(n) + 1e-9 and best_of_n_kl(n) - kl < slack
