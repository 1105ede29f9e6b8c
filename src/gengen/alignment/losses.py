"""Losses of post-training: of tokens (PPO), of pairs (reward model, DPO and its kin), of rated answers (KTO), and sums
of them that do not depend on how a batch was cut."""

import torch
import torch.nn.functional as F
from torch import Tensor


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float = 0.2, clip_high: float | None = None
) -> Tensor:
    """max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip_high)) of each token (Schulman et al. 2017, eq. 7), any shape.

    clip_high: `clip` if not given; higher lets unlikely tokens rise faster (Yu et al. 2025).
    """
    ratio = (log_probs - old_log_probs).clamp(-20, 20).exp()  # e^20: a lost policy gives a large number and no inf
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def of_answers(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The mean over an answer's tokens in the place of each token's log ratio, (B, T): importance of whole answers
    (Zheng et al. 2025, eq. 7). Each token's share of the gradient of e^mean is the same; with aggregate=sequence the
    loss is that paper's eq. 5."""
    mean = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V' - R)^2) / 2 of each token, any shape, where V' is V kept within `clip` of its old value."""
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (kept - returns).square()) / 2


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centring: float = 0.0) -> Tensor:
    """-log sigma(chosen - rejected - margin) + centring (chosen + rejected)^2 of each pair of scores (B,).

    The margin is how much better the chosen one is at least (Touvron et al. 2023, eq. 2); centring ties the sum of the
    two, which the first term leaves free, to 0 (Eisenstein et al. 2023).
    """
    return centring * (chosen + rejected).square() - F.logsigmoid(chosen - rejected - margin)


# Each is (h (B,), beta, smoothing) -> (B,), where h = (log pi - log ref)(chosen) - (log pi - log ref)(rejected): sums
# over a response, or means over its tokens.


def dpo(h: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """-log sigma(beta h) (Rafailov et al. 2023, eq. 7); no smoothing."""
    return -F.logsigmoid(beta * h)


def cdpo(h: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """DPO where a share `smoothing` of the pairs is held to be the wrong way round (Mitchell 2023)."""
    return (1 - smoothing) * dpo(h, beta) + smoothing * dpo(-h, beta)


def ipo(h: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """(h - 1 / (2 beta))^2 (Azar et al. 2024, eq. 17): h has a place to stop; no smoothing.

    Of sums beta would mean another thing for each length; its authors' own code takes means.
    """
    return (h - 1 / (2 * beta)).square()


PREFERENCE_LOSSES = {"dpo": dpo, "cdpo": cdpo, "ipo": ipo}


# The two that need no reference take means over an answer's tokens of log pi itself, (B,) of the preferred answer and
# of the other.


def simpo(chosen: Tensor, rejected: Tensor, beta: float, margin: float) -> Tensor:
    """-log sigma(beta (chosen - rejected) - margin) (Meng et al. 2024, eq. 6)."""
    return -F.logsigmoid(beta * (chosen - rejected) - margin)


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-chosen - beta log sigma(log odds(chosen) - log odds(rejected)), where odds = p / (1 - p) of p = e^mean (Hong et
    al. 2024, eq. 6): supervised fine-tuning on the preferred answer, and a pull away from the other."""
    return -chosen - beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(log_p: Tensor) -> Tensor:
    """log p / (1 - p) for log p <= 0."""
    return log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))  # at p = 1 the odds have no end


def kto(ratio: Tensor, good: Tensor, baseline: Tensor, beta: float, good_weight: float, bad_weight: float) -> Tensor:
    """What an answer's value lacks of the most there is, (B,) (Ethayarajh et al. 2024, eq. 8).

    ratio: log pi - log ref of an answer, (B,); good: 1 or 0, (B,). baseline: an estimate of KL(pi || ref), not below
    0, without gradient: the ratio counts as a gain beyond it, and as a loss below it.
    """
    gain = torch.sigmoid(beta * (ratio - baseline))
    return torch.where(good > 0, good_weight * (1 - gain), bad_weight * gain)


def aggregate(losses: Tensor, mask: Tensor, how: str, length: int) -> Tensor:
    """One number a row, (B,), to be added up and divided by the count of the whole step over all ranks, never of a
    micro-batch.

    losses, mask: (B, T). token: the row's sum, and the count is of tokens. sequence: the mean over its tokens, and
    constant: its sum / length (Liu et al. 2025), and the count is of rows. A row without tokens gives 0.
    """
    total = losses.where(mask > 0, 0).sum(1)
    if how == "sequence":
        return total / mask.sum(1).clamp_min(1)
    return total / {"token": 1, "constant": length}[how]
