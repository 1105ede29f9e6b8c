"""Whether pictures obey their captions, for combinations that training showed and for new ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gengen.data.image.captions import Description
from gengen.data.image.holdout import combinations_of
from gengen.data.image.prepare import ImageSet, PreparedImages
from gengen.data.image.sources.base import Thing
from gengen.errors import UserError
from gengen.evaluation.coverage import coarse
from gengen.evaluation.intervals import interval
from gengen.evaluation.prompt_judges import PromptJudge, prompt_judge_for, why_refused
from gengen.evaluation.retrieval import AMONG, distractors, found_first, towers_for
from gengen.io import Say

PERMUTATIONS = 20  # of the prompts, for the floor
REPEATED, SEEDS = 8, 4  # captions whose samples are compared with each other, and samples of each

Draw = Callable[[Sequence[str]], Tensor]
"""Captions (N) -> an image of each, uint8 (N, C, H, W), from noise of its own."""
Figures = dict[str, Any]
"""A JSON tree of numbers by their names."""


@dataclass(frozen=True)
class Chosen:
    """Descriptions whose captions are drawn, and the real pictures that they describe, uint8 (N, C, H, W)."""

    descriptions: Sequence[Description]
    real: Tensor

    @property
    def captions(self) -> list[str]:
        return [row.caption for row in self.descriptions]


def evaluate_prompts(draw: Draw, prepared: PreparedImages, say: Say, n: int, seed: int = 0) -> tuple[Figures, Tensor]:
    """Draw n captions, half of combinations that training showed ("seen") and half of others ("unseen"), and measure
    whether the pictures obey them. Returns the figures and the images, the seen first.

    rows: what is asked for -> seen, unseen -> `accuracy` with its 95 % interval (`low`, `high`) and count, beside its
    `floor` (the same pictures, prompts permuted) and its `ceiling` (real pictures); `gap`: seen minus unseen.
    retrieval: how often a picture is nearest to its own of 64 captions. spread: see `spread_over_seeds`.
    """
    judge = believed(prepared, say)
    chosen = choose(prepared, judge, n // 2, seed)
    captions = [caption for part in chosen.values() for caption in part.captions]
    repeated = list(dict.fromkeys(reversed(captions)))[:REPEATED]  # the unseen first
    drawn = draw([*captions, *(caption for caption in repeated for _ in range(SEEDS))])
    counts = [len(part.captions) for part in chosen.values()]
    images = dict(zip(chosen, drawn[: len(captions)].split(counts), strict=True))
    result: Figures = {"n": {name: len(part.captions) for name, part in chosen.items()}, "seed": seed}
    if judge is not None:
        result |= {"judge": judge.facts, "rows": accuracies(judge, chosen, images, seed)}
    result["retrieval"] = retrieval(prepared, chosen, images, say, seed)
    result["spread"] = spread_over_seeds(drawn[len(captions) :].unflatten(0, (len(repeated), SEEDS)))
    return {name: found for name, found in result.items() if found is not None}, drawn[: len(captions)]


def believed(prepared: PreparedImages, say: Say) -> PromptJudge | None:
    """Return the judge that reports; None, with a line that says why, where there is none or it is refused."""
    judge = prompt_judge_for(prepared, say)
    why = "the pictures show no things with two attributes" if judge is None else why_refused(judge)
    if why:
        say(f"prompts: nothing is said of what is asked for: {'the judge is refused: ' * (judge is not None)}{why}")
        return None
    return judge


def choose(prepared: PreparedImages, judge: PromptJudge | None, n: int, seed: int) -> dict[str, Chosen]:
    """Choose n captions of each of "seen" and "unseen", as many of each kind of request; those that there are few of
    are taken several times. A part of which there is nothing is left out.

    Unseen is a held-out picture that shows a combination, or without things to judge has a caption, which no training
    picture has.
    """
    shown, told = set().union(*(combinations_of(row.things) for row in prepared.train.descriptions)), set[str]()
    for row in prepared.train.descriptions:
        told |= set(row.captions)

    def is_new(row: Description) -> bool:
        return bool(combinations_of(row.things) - shown) if judge else row.caption not in told

    def taken(part: ImageSet, new: bool) -> Chosen | None:
        kinds: dict[str, list[int]] = {}
        for i, row in enumerate(part.descriptions):
            if (judge.judges(row) if judge else row.captions) and is_new(row) == new:
                kinds.setdefault(kind_of(row), []).append(i)
        generator = torch.Generator().manual_seed(seed)
        orders = [
            [rows[i] for i in torch.randperm(len(rows), generator=generator)] for _, rows in sorted(kinds.items())
        ]
        if not orders:
            return None
        rows = [orders[i % len(orders)][i // len(orders) % len(orders[i % len(orders)])] for i in range(n)]
        return Chosen([part.descriptions[i] for i in rows], part.images[rows])

    parts = {"seen": taken(prepared.train, False), "unseen": taken(prepared.val, True)}
    found = {name: part for name, part in parts.items() if part}
    if not found or n == 0:
        raise UserError("evaluate: there is no caption to draw")
    return found


def kind_of(description: Description) -> str:
    """Return what kind of request a caption is: its category, or else which attributes are asked for."""
    names = sorted({name for thing in description.things for name in thing.attributes})
    return description.category or " x ".join(names)


# ---------------------------------------------------------------------------------------------- what is asked for

Tally = dict[str, list[bool]]
"""What is asked for, such as "tone", "colour x shape" or "position" -> whether it is there, of each picture that was
asked for it."""


def tally(judge: PromptJudge, asked: Sequence[Description], found: Sequence[Sequence[Thing]]) -> Tally:
    """Hold what was found in each picture against what was asked for."""
    rows: Tally = {}
    for description, things in zip(asked, found, strict=True):
        verdicts = judge.verdicts(description, things)
        for name, right in verdicts.items():
            rows.setdefault(name, []).append(right)
        if len(verdicts) > 1:
            rows.setdefault(" x ".join(sorted(verdicts)), []).append(all(verdicts.values()))
    return rows


def accuracies(judge: PromptJudge, chosen: dict[str, Chosen], images: dict[str, Tensor], seed: int) -> Figures:
    """Return the rows of `evaluate_prompts`."""
    rows: Figures = {}
    for part, asked in chosen.items():
        found = judge.read(images[part])
        ceiling = tally(judge, asked.descriptions, judge.read(asked.real))
        floor = permuted(judge, asked.descriptions, found, seed)
        for name, right in tally(judge, asked.descriptions, found).items():
            low, high = interval(sum(right), len(right))
            rows.setdefault(name, {})[part] = {
                "accuracy": share(right), "low": low, "high": high, "n": len(right),
                "floor": share(floor[name]), "ceiling": share(ceiling[name]),
            }  # fmt: skip
    for row in rows.values():
        if len(row) == 2:
            row["gap"] = row["seen"]["accuracy"] - row["unseen"]["accuracy"]
    return rows


def permuted(judge: PromptJudge, asked: Sequence[Description], found: Sequence[Sequence[Thing]], seed: int) -> Tally:
    """Hold the same pictures against the prompts of others of their kind, `PERMUTATIONS` times: what chance gives."""
    generator, rows, kinds = torch.Generator().manual_seed(seed), Tally(), dict[str, list[int]]()
    for i, description in enumerate(asked):
        kinds.setdefault(kind_of(description), []).append(i)
    for of_kind in kinds.values():
        for _ in range(PERMUTATIONS):
            others = [of_kind[i] for i in torch.randperm(len(of_kind), generator=generator)]
            again = tally(judge, [asked[i] for i in of_kind], [found[i] for i in others])
            for name, right in again.items():
                rows.setdefault(name, []).extend(right)
    return rows


def share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


# ------------------------------------------------------------------------------------------------ retrieval and spread


def retrieval(
    prepared: PreparedImages, chosen: dict[str, Chosen], images: dict[str, Tensor], say: Say, seed: int
) -> Figures | None:
    """Return of each part how often a picture is nearer to its caption than to 63 others of the data (`r1`), beside
    chance and the real pictures; None, with a line, where the data have fewer captions.
    """
    described = [*prepared.train.descriptions, *prepared.val.descriptions]
    pool = sorted({row.caption for row in described if row.captions})
    if len(pool) < AMONG:
        say(f"retrieval: {len(pool)} different captions are fewer than the {AMONG} to choose from; it is left out")
        return None
    towers, found = towers_for(prepared, say), Figures()
    vectors = dict(zip(pool, towers.captions(pool), strict=True))
    for part, asked in chosen.items():
        own = torch.stack([vectors[caption] for caption in asked.captions])
        wrong = distractors(asked.captions, pool, seed)
        others = torch.stack([torch.stack([vectors[caption] for caption in row]) for row in wrong])
        first, real = (found_first(towers.images(of), own, others) for of in (images[part], asked.real))
        low, high = interval(int(first.sum()), len(first))
        found[part] = {
            "r1": first.double().mean().item(), "low": low, "high": high, "n": len(first),
            "floor": 1 / AMONG, "ceiling": real.double().mean().item(),
        }  # fmt: skip
    return found


def spread_over_seeds(images: Tensor) -> float | None:
    """Return how much samples of one caption differ, in units of what samples of different captions do: the mean
    distance, in coarse pixels, between two of one caption over that between two of different ones. 0: the seed changes
    nothing. None of one caption.

    images: uint8 (captions, seeds, C, H, W).
    """
    captions, seeds = images.shape[:2]
    features = coarse(images.flatten(0, 1))
    apart, of = torch.cdist(features, features), torch.arange(captions).repeat_interleave(seeds)
    same, other = of[:, None] == of, ~torch.eye(len(of), dtype=torch.bool)
    between = apart[~same]
    return (apart[same & other].mean() / between.mean()).item() if len(between) and between.sum() > 0 else None


# ---------------------------------------------------------------------------------------------------------- for people


def prompts_in_words(figures: Figures) -> Iterator[str]:
    """Yield lines that say what `evaluate_prompts` found."""
    for name, row in figures.get("rows", {}).items():
        for part in ("seen", "unseen"):
            if part in row:
                yield f"  {name:<16} {part:<7} {beside(row[part], 'accuracy')}"
        if "gap" in row:
            yield f"  {name:<16} gap     {row['gap']:+.3f}"
    for part, row in figures.get("retrieval", {}).items():
        yield f"  {f'R@1 of {AMONG}':<16} {part:<7} {beside(row, 'r1')}"
    if "spread" in figures:
        yield f"  {'spread of seeds':<16} {figures['spread']:.3f} of that between captions"


def beside(row: Figures, name: str) -> str:
    """Return a share with its interval, count, floor and ceiling."""
    return (
        f"{row[name]:.3f} [{row['low']:.2f}, {row['high']:.2f}] of {row['n']}  floor {row['floor']:.3f}  "
        f"ceiling {row['ceiling']:.3f}"
    )
