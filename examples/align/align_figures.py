"""What the alignment demonstration measures: what answers to held-out prompts are worth by a gold reward that no
training has seen; and the gates that must hold."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gengen.alignment.kl import best_of_n_kl
from gengen.data.sources.storygen import LABEL_SCALE, coverage, gold, requested
from gengen.evaluation.preference import (
    agreement,
    best_of_n,
    draw_preferences,
    pair_gaps,
    paired_gain,
    pass_at_k,
    sequence_log_probs,
    sigmoid,
    spearman,
    win_rate,
)
from gengen.evaluation.text import calibration, distinct
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Answer, Scorer, answer_of
from gengen.models.gpt import GPT

Figures = dict[str, Any]
"""A tree of what was measured, as JSON holds it."""
Stories = Sequence[tuple[str, str]]
"""Prompts, each with an answer such as supervised fine-tuning learns from."""

ANSWERS = 8  # of each policy to a prompt
BEST_OF = (1, 2, 4, 8, 16)  # of how many of the SFT policy's answers the best one is taken
SHOWN = 4  # prompts whose answers the report shows

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


def gates(seeds: Sequence[Figures]) -> list[Figures]:
    """Return each gate with its value for each seed, and whether it is met. seeds: of each, stage -> figures."""
    rows = []
    for stage, name, sign, threshold in GATES:
        values = [figures[stage][name] for figures in seeds]
        gate = {"stage": stage, "figure": name, "sign": sign, "threshold": threshold, "values": values}
        rows.append(gate | {"met": [SIGNS[sign](value, threshold) for value in values]})
    return rows


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
        """Return log p(answer | prompt) of each in nats, at temperature 1."""
        return sequence_log_probs(model, [answer.row(self.end) for answer in self.answers]).reshape(self.ended.shape)


def draw(policy: TextGenerator, prompts: Sequence[str], n: int, seed: int, max_tokens: int) -> Drawn:
    """Draw n answers of a policy to each prompt, at temperature 1."""
    tokens = [policy.prompt_tokens(prompt) for prompt in prompts]
    samples = policy.generate(tokens, n=n, seed=seed, temperature=1.0, max_tokens=max_tokens)
    answers = [answer_of(tokens[i // n], sample) for i, sample in enumerate(samples)]
    asked = [prompts[i // n] for i in range(len(answers))]
    ended = np.array([answer.ended for answer in answers])
    worth = np.array([gold(prompt, a.text, a.ended) for prompt, a in zip(asked, answers, strict=True)])
    covered = np.array([coverage(prompt, a.text) for prompt, a in zip(asked, answers, strict=True)])
    return Drawn(answers, policy.tokenizer.eot, *(figure.reshape(-1, n) for figure in (ended, worth, covered)))


def nll(policy: TextGenerator, stories: Stories) -> float:
    """Return the nats a token of the stories, their ends included, after their prompts."""
    rows = []
    for prompt, story in stories:
        rows.append((policy.prompt_tokens(prompt), [*policy.tokenizer.encode(story), policy.tokenizer.eot]))
    return -float(sequence_log_probs(policy.model, rows).sum()) / sum(len(story) for _, story in rows)


def compare(before: Drawn, after: Drawn, clusters: np.ndarray) -> Figures:
    """Compare a policy's answers with those of the one it was trained from; clusters: of the prompts, (P,)."""
    result = {"ended": float(after.ended.mean()), "tokens": float(np.mean([len(a.tokens) for a in after.answers]))}
    result |= paired_gain("gold", before.gold, after.gold, clusters) | {"win_rate": win_rate(before.gold, after.gold)}
    result |= paired_gain("coverage", before.coverage, after.coverage, clusters)
    result |= paired_gain("passed", before.passed, after.passed, clusters)
    passed = [pass_at_k(8, drawn.passed)[:, None] for drawn in (before, after)]
    result |= paired_gain("pass_at_8", *passed, clusters)
    was, now = distinct_2(before), distinct_2(after)
    return result | {"distinct_2_before": was, "distinct_2": now, "distinct_2_kept": now / (was or 1)}


def distinct_2(drawn: Drawn) -> float:
    """Return the share of distinct pairs of tokens in the first answer to each prompt."""
    return distinct([a.tokens for a in drawn.answers[:: drawn.ended.shape[1]]], 2) or 0.0


def evaluate_policies(
    policies: dict[str, TextGenerator], scorer: Scorer, stories: Stories, seed: int, max_tokens: int
) -> Figures:
    """Return `figures`: stage -> all that is known of one seed's runs; `samples`: what each answered to the first
    prompts.

    policies: base, sft, ppo, dpo and grpo; scorer: the reward model; stories: held out. Answers of the SFT policy make
    the pairs, which are labelled as those that the reward model learnt from; it is the reference of every KL, and the
    policy of best-of-n.
    """
    prompts = [prompt for prompt, _ in stories]
    clusters = np.array([" ".join(requested(prompt)) for prompt in prompts])
    drawn = {}
    for name, policy in policies.items():
        drawn[name] = draw(policy, prompts, max(BEST_OF) if name == "sft" else ANSWERS, seed, max_tokens)
    sft, reference = drawn["sft"], policies["sft"].model
    kls = {name: mean_kl(drawn[name], policies[name].model, reference) for name in ("ppo", "dpo", "grpo")}
    implicit = sft.log_probs(policies["dpo"].model) - sft.log_probs(reference)  # DPO's own reward, over beta
    wins = draw_preferences(LABEL_SCALE * pair_gaps(sft.gold), seed)
    outputs, scores = sft.scores(scorer.outputs), sft.scores(scorer)

    result = {"sft": compare(drawn["base"], sft, clusters) | fine_tuning_figures(policies, stories)}
    result["reward"] = reward_figures(sft, outputs, wins, clusters)
    for name, kl in kls.items():
        result[name] = compare(sft, drawn[name], clusters) | {"kl": kl}
        result[name] |= paired_gain("score", scores, drawn[name].scores(scorer), clusters)
    result["dpo"]["accuracy"] = float(agreement(pair_gaps(implicit), wins).mean())
    result["dpo"]["below_reward"] = result["reward"]["accuracy"] - result["dpo"]["accuracy"]
    for n in BEST_OF:
        best = best_of_n(n, np.where(sft.ended, scores, -np.inf), sft.gold)
        result[f"best_of_{n}"] = paired_gain("gold", sft.gold, best, clusters) | {"kl": best_of_n_kl(n)}
    return {"figures": result, "samples": first_answers(prompts, drawn)}


def mean_kl(drawn: Drawn, policy: GPT, reference: GPT) -> float:
    """Return the mean KL of whole answers to the reference, in nats: k1 summed over their tokens."""
    return float((drawn.log_probs(policy) - drawn.log_probs(reference)).mean())


def fine_tuning_figures(policies: dict[str, TextGenerator], stories: Stories) -> Figures:
    """Return the nats a token of held-out stories before and after supervised fine-tuning."""
    was, now = nll(policies["base"], stories), nll(policies["sft"], stories)
    unasked = nll(policies["base"], [("", story) for _, story in stories])
    return {"nll_before": was, "nll_before_unasked": unasked, "nll": now, "nll_saved": 1 - now / was}


def reward_figures(sft: Drawn, outputs: np.ndarray, wins: np.ndarray, clusters: np.ndarray) -> Figures:
    """Return how well the reward model's outputs (P, n) predict preferences between answers, and their order."""
    logits, gaps = pair_gaps(outputs), LABEL_SCALE * pair_gaps(sft.gold)
    right, ceiling = agreement(logits, wins), float(sigmoid(abs(gaps)).mean())
    chance, of_pairs = np.full((len(right), 1), 0.5), clusters.repeat(len(right) // len(clusters))
    result = paired_gain("accuracy", chance, right[:, None], of_pairs)
    result |= {"ceiling": ceiling, "pairs": len(right), "below_ceiling": ceiling - float(right.mean())}
    # Equal gold is never equal in score: the most that Spearman can be is what an order that breaks gold's ties at
    # will has.
    order = sft.gold.ravel().argsort(kind="stable").argsort()
    result |= {"spearman": spearman(outputs.ravel(), sft.gold.ravel())}
    result |= {"spearman_ceiling": spearman(sft.gold.ravel(), order)}
    return result | calibration(torch.from_numpy(sigmoid(abs(logits))), torch.from_numpy(right))


def first_answers(prompts: Sequence[str], drawn: dict[str, Drawn]) -> list[dict[str, str]]:
    """Return the first prompts, each with the first answer of every policy."""
    samples = []
    for i, prompt in enumerate(prompts[:SHOWN]):
        answers = {name: d.answers[i * d.ended.shape[1]].text for name, d in drawn.items()}
        samples.append({"prompt": prompt} | answers)
    return samples
