"""From scores to advantages: rewards of tokens, GAE, whitening, and the baselines of a group."""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta kl_t, and the score at the last token of the response: (B, T), 0 off the mask.

    scores: (B,); kl: (B, T), k1 without gradient. A response of no token has no place for its score: its row is 0.
    """
    left = mask.flip(1).cumsum(1).flip(1)  # tokens of the response from here on
    return (scores[:, None] * (left == 1) - beta * kl).where(mask > 0, 0)


def overlong(lengths: Tensor, most: int, buffer: int) -> Tensor:
    """What an answer's length costs: 0 up to most - buffer tokens, rising evenly to 1 at `most` (Yu et al. 2025,
    eq. 13). lengths: (N,) of tokens, the end included."""
    return ((lengths - (most - buffer)) / buffer).clamp(0, 1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T) and 0 off the mask (Schulman et al. 2016, eq. 16).

    rewards, values, mask: (B, T); values[:, t] is of the state before the token t.
    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1};   nothing follows the last token.
    """
    rewards, values = rewards.where(mask > 0, 0), values.where(mask > 0, 0)
    advantage = next_value = torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = advantage = mask[:, t] * (delta + gamma * lam * advantage)
        next_value = values[:, t]
    return advantages, mask * (advantages + values)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, unbiased: bool = False) -> Tensor:
    """x (B, T) with variance 1 over the mask, and with mean 0 there or, without shift_mean, the mean it had; 0 off the
    mask.

    unbiased: the variance is over one less than the count. A single value has no variance: it becomes its mean, or 0.
    """
    x, count = x.where(mask > 0, 0), mask.sum()
    mean = x.sum() / count.clamp(min=1)
    centred = (x - mean).where(mask > 0, 0)
    variance = centred.square().sum() / (count - int(unbiased)).clamp(min=1)
    whitened = centred * (variance + 1e-8).rsqrt()
    return whitened if shift_mean else (whitened + mean).where(mask > 0, 0)


def group_advantages(rewards: Tensor, how: str, costs: Tensor | float = 0.0) -> Tensor:
    """How much better each of a prompt's n responses is than the others, (groups, n) as the rewards; exactly 0 where
    all are equal. One whose reward is NaN is 0, and none of the n.

    grpo: (r - mean) / (std + 1e-6), std over n - 1 (Shao et al. 2024); dr_grpo: r - mean (Liu et al. 2025); rloo: r -
    the mean of the n - 1 others (Ahmadian et al. 2024), for n > 1.
    costs: beta KL of each response, (groups, n), taken from the rewards. For grpo that comes after the division, which
    is by the deviation of the rewards alone: where those are all equal, nothing magnifies the costs.
    """
    if how == "grpo":
        centred = from_mean(rewards)
        deviation = (centred.square().sum(1, keepdim=True) / others(rewards)).sqrt()
        return centred / (deviation + 1e-6) + from_mean(0 * rewards - costs)
    n = others(rewards)
    return from_mean(rewards - costs) * {"rloo": 1 + 1 / n, "dr_grpo": torch.ones_like(n)}[how]


def others(rewards: Tensor) -> Tensor:
    """Of (groups, n), one less than how many have a reward, (groups, 1), and 1 at least."""
    return ((~rewards.isnan()).sum(1, keepdim=True) - 1).clamp(min=1).to(rewards)


def from_mean(x: Tensor) -> Tensor:
    """x (groups, n) less the mean of its row, NaNs left out and 0; exactly 0 where a row is of equal numbers."""
    there = ~x.isnan()
    equal = x.where(there, -torch.inf).amax(1, keepdim=True) == x.where(there, torch.inf).amin(1, keepdim=True)
    return (x - x.nanmean(1, keepdim=True)).where(there & ~equal, 0)  # a mean of equal numbers may round to another
