"""Every method on a bandit whose best policy is known: one token, four arms, pi* = ref e^(r / beta) / Z."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gengen.alignment.advantages import gae, group_advantages, token_rewards, whiten
from gengen.alignment.kl import ESTIMATORS, k1, k2
from gengen.alignment.log_probs import log_probs
from gengen.alignment.losses import PREFERENCE_LOSSES, clipped_policy_loss, clipped_value_loss

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARD = torch.tensor([0, 0.5, 1, 2], dtype=torch.float64)
BEST = torch.tensor([0.1837, 0.2272, 0.2497, 0.3394], dtype=torch.float64)
BETA, ARMS = 1.0, torch.arange(4)


def tensor(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def near(policy: Tensor, expected: Tensor, tolerance: float = 0.03) -> bool:
    return bool((policy - expected).abs().max() <= tolerance)


def test_the_best_policy_by_hand() -> None:
    best = (REF.log() + REWARD / BETA).softmax(0)
    assert near(best, BEST, 5e-5)
    kl = (best * k1(best.log(), REF.log())).sum().item()
    assert (REF @ REWARD).item() == pytest.approx(0.55) and (best @ REWARD).item() == pytest.approx(1.0421, abs=5e-5)
    assert kl == pytest.approx(0.2640, abs=5e-5) and (best @ REWARD).item() - BETA * kl == pytest.approx(
        0.7780, abs=5e-5
    )


# --- the exact gradient, with an estimator in its right and in its wrong place


def flow(loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """The policy at the end of the gradient flow of a loss of log pi, from the reference."""
    logits = REF.log().requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(logits.log_softmax(0)), logits)
        logits = (logits - 0.5 * slope).detach().requires_grad_()
    return logits.detach().softmax(0)


def in_reward(name: str, most: float = torch.inf) -> Callable[[Tensor], Tensor]:
    def loss(log_pi: Tensor) -> Tensor:
        reward = REWARD - BETA * ESTIMATORS[name](log_pi, REF.log()).clamp(max=most)
        return -(log_pi.exp() * reward).detach() @ log_pi

    return loss


def in_loss(name: str) -> Callable[[Tensor], Tensor]:
    return lambda log_pi: -log_pi.exp() @ REWARD + BETA * log_pi.exp().detach() @ ESTIMATORS[name](log_pi, REF.log())


FIXED_POINTS = {
    "k1 in the reward": (in_reward("k1"), BEST),
    "k2 in the loss": (in_loss("k2"), BEST),
    "k3 in the loss": (in_loss("k3"), tensor(0.1811, 0.1755, 0.1654, 0.4780)),
    "k3 in the reward collapses": (in_reward("k3"), tensor(0, 0, 0, 1)),
    "k3 in the reward, at most 10": (in_reward("k3", 10), tensor(0, 0, 0.307, 0.693)),
    "k1 in the loss is no KL at all": (in_loss("k1"), tensor(0, 0, 0, 1)),
}


@pytest.mark.parametrize("place", FIXED_POINTS)
def test_where_an_estimator_leads(place: str) -> None:
    loss, expected = FIXED_POINTS[place]
    steps = 500 if "collapses" in place else 3_000  # its logits part until ref / pi is inf
    tolerance = 2e-3 if "at most" in place or "no KL" in place else 1e-4  # the last arms die out slowly
    assert near(flow(loss, steps), expected, tolerance)


# --- the methods, from their own draws


def descended(steps: int, rate: float, *parameters: Tensor) -> Iterator[torch.optim.Optimizer]:
    """An optimizer for each of some steps, its rate falling to 0 in a line."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        yield optimizer


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def drawn(logits: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Arms, their log-probabilities and rewards with k1 taken off, (n, 1) each: episodes of one token."""
    arms = torch.multinomial(logits.detach().softmax(0), n, replacement=True, generator=generator)[:, None]
    old = log_probs(logits.detach().expand(n, 1, 4), arms)
    rewards = token_rewards(REWARD[arms[:, 0]], k1(old, REF.log()[arms]), torch.ones(n, 1), BETA)
    return arms, old, rewards


@pytest.mark.parametrize("whitened", [True, False])
def test_ppo(whitened: bool) -> None:
    """Two passes over each rollout in two minibatches, with a critic of one number."""
    generator, n = torch.Generator().manual_seed(0), 512
    logits, value = REF.log().requires_grad_(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    mask = torch.ones(n, 1)
    for optimizer in descended(150, 0.05, logits, value):
        arms, old, rewards = drawn(logits, n, generator)
        old_values = value.detach().expand(n, 1).clone()
        advantages, returns = gae(rewards, old_values, mask)
        advantages = whiten(advantages, mask) if whitened else advantages
        for _ in range(2):
            for i in torch.randperm(n, generator=generator).view(2, -1):
                new = log_probs(logits.expand(len(i), 1, 4), arms[i])
                critic = clipped_value_loss(value.expand(len(i), 1), old_values[i], returns[i], 0.2)
                update(optimizer, (clipped_policy_loss(new, old[i], advantages[i]) + 0.1 * critic).mean())
    assert near(logits.softmax(0), BEST)
    assert value.item() == pytest.approx(0.7780, abs=0.1)  # at pi* every arm earns the same: the objective


SHRUNK = (REF.log() + 7 / 8 * REWARD / BETA).softmax(0)  # the mean of 8 has an eighth of the reward itself in it
# Where dividing by a group's deviation, which weighs rewards anew, leads: the fixed points over all 165 groups.
REWEIGHED = {"reward": tensor(0.1451, 0.1818, 0.2306, 0.4425), "loss": tensor(0.1677, 0.2038, 0.2449, 0.3837)}


@pytest.mark.parametrize(("how", "kl_in", "expected"), [
    ("rloo", "reward", BEST), ("rloo", "loss", BEST),
    ("dr_grpo", "reward", BEST), ("dr_grpo", "loss", SHRUNK),
    ("grpo", "reward", REWEIGHED["reward"]), ("grpo", "loss", REWEIGHED["loss"]),
])  # fmt: skip
def test_group_methods(how: str, kl_in: str, expected: Tensor) -> None:
    """64 groups of 8 draws. k1 in the reward and k2 in the loss lead to pi*, unless rewards alone are scaled."""
    generator, logits = torch.Generator().manual_seed(0), REF.log().requires_grad_()
    for optimizer in descended(150, 0.05, logits):
        arms, old, _ = drawn(logits, 512, generator)
        costs = BETA * k1(old, REF.log()[arms]).view(64, 8) * (kl_in == "reward")
        advantages = group_advantages(REWARD[arms].view(64, 8), how, costs).view(-1, 1)
        new = log_probs(logits.expand(512, 1, 4), arms)
        penalty = BETA * k2(new, REF.log()[arms]) * (kl_in == "loss")
        update(optimizer, (clipped_policy_loss(new, old, advantages) + penalty).mean())
    assert near(logits.softmax(0), expected, 0.01)


def test_reinforce() -> None:
    """No baseline, no ratio: the reward times the slope of the log-probability."""
    generator, logits = torch.Generator().manual_seed(0), REF.log().requires_grad_()
    for optimizer in descended(200, 0.05, logits):
        arms, _, rewards = drawn(logits, 1_024, generator)
        update(optimizer, -(rewards * log_probs(logits.expand(1_024, 1, 4), arms)).mean())
    assert near(logits.softmax(0), BEST)


def test_dpo() -> None:
    """40,000 pairs of the reference's own draws, labelled by Bradley-Terry on the reward."""
    generator, n = torch.Generator().manual_seed(0), 40_000
    pair = torch.multinomial(REF, 2 * n, replacement=True, generator=generator).view(n, 2)
    first = (
        torch.rand(n, generator=generator, dtype=torch.float64) < (REWARD[pair[:, 0]] - REWARD[pair[:, 1]]).sigmoid()
    )
    chosen, rejected = torch.where(first[:, None], pair, pair.flip(1)).unbind(1)
    logits = REF.log().requires_grad_()
    for optimizer in descended(150, 0.1, logits):
        gain = log_probs(logits.expand(4, 4), ARMS) - REF.log()
        update(optimizer, PREFERENCE_LOSSES["dpo"](gain[chosen] - gain[rejected], BETA, 0.0).mean())
    assert near(logits.softmax(0), BEST)
