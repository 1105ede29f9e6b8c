"""Metrics of post-training: paired gains with their intervals, pass@k, win rates, best of n, rank correlation, and how
well preferences are predicted. (Calibration: `evaluation.text.calibration`.)
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from gengen.models.completions import answer_log_probs, right_padded
from gengen.models.gpt import GPT

ROWS = 64  # texts in a forward pass


def bootstrap_interval(
    gains: np.ndarray, clusters: np.ndarray | None = None, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of paired differences (N,), by bootstrap (Efron 1979).

    clusters: of each difference, which ones it may depend on, (N,); whole clusters are drawn again (Cameron, Gelbach &
    Miller 2008), as prompts that ask for the same two words are not independent. None = each by itself.
    """
    _, which = np.unique(np.arange(len(gains)) if clusters is None else clusters, return_inverse=True)
    sums, counts = np.bincount(which, gains), np.bincount(which)
    draws, size = np.random.default_rng(seed), (100, len(sums))  # a hundred at a time: memory
    rounds = [draws.integers(len(sums), size=size) for _ in range(resamples // 100)]
    means = [sums[drawn].sum(1) / counts[drawn].sum(1) for drawn in rounds]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def paired_gain(
    name: str, before: np.ndarray, after: np.ndarray, clusters: np.ndarray | None = None
) -> dict[str, float]:
    """Return the means of (P, m) and (P, n), what each prompt's answers got, and of their difference, with its
    interval. clusters: of each prompt, (P,), as in `bootstrap_interval`."""
    gains = after.mean(1) - before.mean(1)
    low, high = bootstrap_interval(gains, clusters)
    means = {f"{name}_before": float(before.mean()), name: float(after.mean()), f"{name}_gain": float(gains.mean())}
    return means | {f"{name}_gain_low": low, f"{name}_gain_high": high}


def ranks(x: np.ndarray) -> np.ndarray:
    """Return 1 for the least of (N,), and so on; equal values share the mean of their places."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of the ranks of (N,) and (N,); 0 where either is constant."""
    a, b = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    return float(a @ b / (math.sqrt((a @ a) * (b @ b)) or 1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def pass_at_k(k: int, passed: np.ndarray) -> np.ndarray:
    """Return the chance that one of k answers passes, for each prompt of (P, n >= k), c of whose answers passed:
    1 - C(n - c, k) / C(n, k) (Chen et al. 2021)."""
    n = passed.shape[1]
    return np.array([1 - math.comb(n - c, k) / math.comb(n, k) for c in passed.sum(1).tolist()])


def win_rate(before: np.ndarray, after: np.ndarray) -> float:
    """Return how often one of the answers (P, n) is worth more than one of those (P, m) to the same prompt; a tie is
    half a win."""
    return float((1 + np.sign(after[:, :, None] - before[:, None]).mean()) / 2)


def best_of_n(n: int, scores: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Return what the one of n answers with the highest score is worth, the mean over a row's groups of n.

    scores, worth: (P, N); N is a multiple of n. Returns (P, 1)."""
    groups = (len(scores), -1, n)
    best = scores.reshape(groups).argmax(2, keepdims=True)
    return np.take_along_axis(worth.reshape(groups), best, 2).mean(1)


def pair_gaps(x: np.ndarray) -> np.ndarray:
    """Return x of the first less x of the second, of the answers of (P, n) two by two: (P * (n // 2),)."""
    return (x[:, 0:-1:2] - x[:, 1::2]).ravel()


def draw_preferences(gaps: np.ndarray, seed: int) -> np.ndarray:
    """Return whether the first of each pair is preferred: with probability sigma(gap) (Bradley and Terry 1952).
    (K,) -> (K,)."""
    return np.random.default_rng(seed).random(len(gaps)) < sigmoid(gaps)


def agreement(logits: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """Return 1 where logits (K,) say which of a pair was preferred, 0 where they say the other, 1/2 where they say
    neither."""
    return (1 + np.sign(logits) * (2 * wins - 1.0)) / 2


@torch.inference_mode()
def sequence_log_probs(model: GPT, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """Return log p(answer | prompt) of each (prompt, answer), in nats: (N,)."""
    device = model.embedding.weight.device
    parts = [right_padded(list(rows[start : start + ROWS]), device) for start in range(0, len(rows), ROWS)]
    log_probs = [answer_log_probs(model, tokens, mask).double().sum(1) for tokens, mask in parts]
    return np.concatenate([part.cpu().numpy() for part in log_probs])
