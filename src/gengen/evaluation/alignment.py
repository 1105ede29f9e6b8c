"""How alignment is judged: answers to held-out prompts, and what they are worth by a gold reward that no training has
seen.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gengen.alignment.kl import best_of_n_kl
from gengen.data.sources.storygen import LABEL_SCALE, coverage, gold, requested
from gengen.evaluation.text import calibration, distinct
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Answer, Scorer, answer_of
from gengen.models.completions import answer_log_probs, right_padded
from gengen.models.gpt import GPT

Figures = dict[str, Any]
Stories = Sequence[tuple[str, str]]
"""Prompts, each with an answer such as supervised fine-tuning learns from."""

DRAWN, BEST_OF = (
    8,
    (1, 2, 4, 8, 16),
)  # answers of each policy to a prompt; of how many of the SFT policy's the best one is taken
SHOWN, ROWS = 4, 64  # prompts whose answers the report shows; texts in a forward pass

SIGNS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, ">": operator.gt, "<=": operator.le}
GATES = [  # stage, figure of it, how that must stand to the threshold
    ("sft", "nll_saved", ">=", 0.20),
    ("sft", "ended", ">=", 0.95),
    ("sft", "coverage_gain", ">=", 0.30),
    ("reward", "below_ceiling", "<=", 0.03),
    ("reward", "ece", "<=", 0.05),
    ("reward", "spearman", ">=", 0.85),
    ("ppo", "gold_gain", ">=", 0.50),
    ("ppo", "gold_gain_low", ">", 0.0),
    ("ppo", "kl", ">=", 1.0),
    ("ppo", "kl", "<=", 12.0),
    ("ppo", "ended", ">=", 0.95),
    ("ppo", "distinct_2_kept", ">=", 0.80),
    ("ppo", "win_rate", ">=", 0.65),
    ("ppo", "score_gain", ">", 0.0),
    ("dpo", "below_reward", "<=", 0.05),
    ("dpo", "gold_gain", ">=", 0.30),
    ("dpo", "gold_gain_low", ">", 0.0),
    ("grpo", "passed_gain", ">=", 0.30),
    ("grpo", "pass_at_8_gain_high", ">=", 0.0),  # not lower, but for chance
]


def gates(seeds: Sequence[dict[str, Figures]]) -> list[Figures]:
    """Each gate with its value for each seed, and whether it is met. seeds: of each, stage -> figures."""
    rows = []
    for stage, name, sign, threshold in GATES:
        values = [figures[stage][name] for figures in seeds]
        met = [SIGNS[sign](value, threshold) for value in values]
        rows.append(
            {"stage": stage, "figure": name, "sign": sign, "threshold": threshold, "values": values, "met": met}
        )
    return rows


def interval(
    gains: np.ndarray, clusters: np.ndarray | None = None, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of paired differences (N,), by bootstrap (Efron 1979).

    clusters: of each difference, which ones it may depend on, (N,); whole clusters are drawn again (Cameron, Gelbach &
    Miller 2008), as prompts that ask for the same two words are no independent prompts. None = each by itself.
    """
    _, which = np.unique(np.arange(len(gains)) if clusters is None else clusters, return_inverse=True)
    sums, counts = np.bincount(which, gains), np.bincount(which)
    draws, size = np.random.default_rng(seed), (100, len(sums))  # a hundred at a time: memory
    rounds = [draws.integers(len(sums), size=size) for _ in range(resamples // 100)]
    means = [sums[drawn].sum(1) / counts[drawn].sum(1) for drawn in rounds]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def gain(name: str, before: np.ndarray, after: np.ndarray, clusters: np.ndarray | None = None) -> Figures:
    """The means of (P, m) and (P, n), what each prompt's answers got, and of their difference, with its interval.

    clusters: of each prompt, (P,), as `interval` has them."""
    gains = after.mean(1) - before.mean(1)
    low, high = interval(gains, clusters)
    means = {f"{name}_before": float(before.mean()), name: float(after.mean()), f"{name}_gain": float(gains.mean())}
    return means | {f"{name}_gain_low": low, f"{name}_gain_high": high}


def ranks(x: np.ndarray) -> np.ndarray:
    """1 for the least of (N,); equal ones share the mean of their places."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of the ranks of (N,) and (N,); 0 where either is constant."""
    a, b = (ranks(z) - (len(z) + 1) / 2 for z in (x, y))
    return float(a @ b / (math.sqrt((a @ a) * (b @ b)) or 1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def pass_at(k: int, passed: np.ndarray) -> np.ndarray:
    """The chance that one of k answers passes, for each prompt of (P, n >= k): 1 - C(n - c, k) / C(n, k) (Chen et al.
    2021).
    """
    n = passed.shape[1]
    return np.array([1 - math.comb(n - c, k) / math.comb(n, k) for c in passed.sum(1).tolist()])


def win_rate(before: np.ndarray, after: np.ndarray) -> float:
    """How often one of the answers (P, n) is worth more than one of those (P, m) to the same prompt; a tie is half a
    win.
    """
    return float((1 + np.sign(after[:, :, None] - before[:, None]).mean()) / 2)


def best_of(n: int, scores: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """What the one of n answers with the highest score is worth, mean over a row's groups of n. (P, N), (P, N) -> (P,
    1).
    """
    groups = (len(scores), -1, n)
    best = scores.reshape(groups).argmax(2, keepdims=True)
    return np.take_along_axis(worth.reshape(groups), best, 2).mean(1)


def pair_gaps(x: np.ndarray) -> np.ndarray:
    """x of the first less x of the second, of the answers of (P, n) two by two: (P * (n // 2),)."""
    return (x[:, 0:-1:2] - x[:, 1::2]).ravel()


def preferred(gaps: np.ndarray, seed: int) -> np.ndarray:
    """Whether the first of each pair is: with probability sigma(gap) (Bradley and Terry 1952). (K,) -> (K,)."""
    return np.random.default_rng(seed).random(len(gaps)) < sigmoid(gaps)


def agreement(logits: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """Return 1 where logits (K,) say which of a pair was preferred, 0 for the other, 1/2 for neither."""
    return (1 + np.sign(logits) * (2 * wins - 1.0)) / 2


@dataclass
class Drawn:
    """n answers to each of P prompts; all arrays are (P, n)."""

    answers: list[Answer]  # P * n, those to one prompt side by side
    end: int  # the token that ends one
    ended: np.ndarray
    gold: np.ndarray
    coverage: np.ndarray

    @property
    def passed(self) -> np.ndarray:
        return (self.coverage == 1) & self.ended

    def scores(self, reward: Callable[[Sequence[Answer]], torch.Tensor]) -> np.ndarray:
        return reward(self.answers).double().cpu().numpy().reshape(self.ended.shape)

    def log_probs(self, model: GPT) -> np.ndarray:
        """log p(answer | prompt) of each in nats, at temperature 1."""
        return sequence_log_probs(model, [answer.row(self.end) for answer in self.answers]).reshape(self.ended.shape)


def draw(policy: TextGenerator, prompts: Sequence[str], n: int, seed: int, max_tokens: int) -> Drawn:
    """n answers of a policy to each prompt, at temperature 1."""
    read = [policy.prompt_tokens(prompt) for prompt in prompts]
    samples = policy.generate(read, n=n, seed=seed, temperature=1.0, max_tokens=max_tokens)
    answers = [answer_of(read[i // n], sample) for i, sample in enumerate(samples)]
    told = [(prompts[i // n], answer.text) for i, answer in enumerate(answers)]
    figures = [
        [a.ended for a in answers],
        [gold(*t, a.ended) for t, a in zip(told, answers, strict=True)],
        [coverage(*t) for t in told],
    ]
    return Drawn(answers, policy.tokenizer.eot, *(np.array(figure).reshape(-1, n) for figure in figures))


@torch.inference_mode()
def sequence_log_probs(model: GPT, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """log p(answer | prompt) of each (prompt, answer), in nats: (N,)."""
    device = model.embedding.weight.device
    parts = [
        answer_log_probs(model, *right_padded(list(rows[i : i + ROWS]), device)) for i in range(0, len(rows), ROWS)
    ]
    return np.concatenate([part.double().sum(1).cpu().numpy() for part in parts])


def nll(policy: TextGenerator, stories: Stories) -> float:
    """Nats a token of the stories, their ends included, after their prompts."""
    rows = [
        (policy.prompt_tokens(prompt), [*policy.tokenizer.encode(story), policy.tokenizer.eot])
        for prompt, story in stories
    ]
    return -float(sequence_log_probs(policy.model, rows).sum()) / sum(len(story) for _, story in rows)


def compared(before: Drawn, after: Drawn, clusters: np.ndarray) -> Figures:
    """A policy's answers beside those of the one it was trained from; clusters: of the prompts, (P,)."""
    result = {"ended": float(after.ended.mean()), "tokens": float(np.mean([len(a.tokens) for a in after.answers]))}
    result |= gain("gold", before.gold, after.gold, clusters) | {"win_rate": win_rate(before.gold, after.gold)}
    result |= gain("coverage", before.coverage, after.coverage, clusters)
    result |= gain("passed", before.passed, after.passed, clusters)
    once, now_once = (pass_at(8, drawn.passed)[:, None] for drawn in (before, after))
    result |= gain("pass_at_8", once, now_once, clusters)
    was, now = (
        distinct([a.tokens for a in drawn.answers[:: drawn.ended.shape[1]]], 2) or 0.0 for drawn in (before, after)
    )
    return result | {"distinct_2_before": was, "distinct_2": now, "distinct_2_kept": now / (was or 1)}


def judge(policies: dict[str, TextGenerator], scorer: Scorer, stories: Stories, seed: int, max_tokens: int) -> Figures:
    """`figures`: stage -> all that is known of one seed's runs; `samples`: what each of them answered to the first
    prompts.

    policies: base, sft, ppo, dpo and grpo; scorer: the reward model; stories: held out. Of the SFT policy's answers
    are the pairs, which are labelled as those that the reward model learnt from, the reference of every KL, and
    best-of-n.
    """
    prompts = [prompt for prompt, _ in stories]
    clusters = np.array([" ".join(requested(prompt)) for prompt in prompts])
    drawn = {
        name: draw(p, prompts, max(BEST_OF) if name == "sft" else DRAWN, seed, max_tokens)
        for name, p in policies.items()
    }
    base, sft, reference = drawn["base"], drawn["sft"], policies["sft"].model
    was, now, unasked = (
        nll(policies["base"], stories),
        nll(policies["sft"], stories),
        nll(policies["base"], [("", s) for _, s in stories]),
    )
    result = {"sft": compared(base, sft, clusters)}
    result["sft"] |= {"nll_before": was, "nll_before_unasked": unasked, "nll": now, "nll_saved": 1 - now / was}

    raw, gaps = sft.scores(scorer.outputs), LABEL_SCALE * pair_gaps(sft.gold)
    wins, logits, ceiling = preferred(gaps, seed), pair_gaps(raw), float(sigmoid(abs(gaps)).mean())
    right = agreement(logits, wins)
    of_pairs = clusters.repeat(len(right) // len(clusters))
    result["reward"] = gain("accuracy", np.full((len(right), 1), 0.5), right[:, None], of_pairs)
    result["reward"] |= {"ceiling": ceiling, "pairs": len(right)}
    result["reward"] |= {
        "below_ceiling": ceiling - float(right.mean()),
        "spearman": spearman(raw.ravel(), sft.gold.ravel()),
    }
    # Equal gold is never equal in score: the most that Spearman can be is what an order that breaks gold's ties at
    # will has.
    result["reward"] |= {
        "spearman_ceiling": spearman(sft.gold.ravel(), sft.gold.ravel().argsort(kind="stable").argsort())
    }
    result["reward"] |= calibration(torch.from_numpy(sigmoid(abs(logits))), torch.from_numpy(right))

    scores = sft.scores(scorer)
    for name in ("ppo", "dpo", "grpo"):
        kl = drawn[name].log_probs(policies[name].model) - drawn[name].log_probs(
            reference
        )  # of an answer, whole: k1 summed
        result[name] = compared(sft, drawn[name], clusters) | {"kl": float(kl.mean())}
        result[name] |= gain("score", scores, drawn[name].scores(scorer), clusters)
    implicit = sft.log_probs(policies["dpo"].model) - sft.log_probs(reference)
    result["dpo"]["accuracy"] = float(agreement(pair_gaps(implicit), wins).mean())
    result["dpo"]["below_reward"] = result["reward"]["accuracy"] - result["dpo"]["accuracy"]
    for n in BEST_OF:
        best = best_of(n, np.where(sft.ended, scores, -np.inf), sft.gold)
        result[f"best_of_{n}"] = gain("gold", sft.gold, best, clusters) | {"kl": best_of_n_kl(n)}
    texts = {name: [a.text for a in d.answers[:: d.ended.shape[1]]] for name, d in drawn.items()}
    samples = [
        {"prompt": prompt} | {name: texts[name][i] for name in texts} for i, prompt in enumerate(prompts[:SHOWN])
    ]
    return {"figures": result, "samples": samples}
