"""Judges of whether a picture shows what its caption asks for: one thing by its attributes, scenes by a detector.

They are trained once on the training split, which shows no combination that is held out, on pictures that are blurred
and noisy; they are used in no training, and kept in <data.dir>/judges/. There are two of them, of different seeds:
`REPORTS` says what is reported, and `SELECTS` alone chooses among candidates (`follows_prompt`), so that no figure is
of pictures that were chosen by the judge which measures them.

A judge that is too often wrong of real held-out pictures is refused: nothing is reported by it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gengen.data.image.captions import Description
from gengen.data.image.prepare import ImageSet, PreparedImages
from gengen.data.image.sources.base import Thing
from gengen.errors import UserError
from gengen.evaluation.attribute_judge import AttributeJudge
from gengen.evaluation.attributes import Vocabulary
from gengen.evaluation.judges import BLUR, NOISE
from gengen.evaluation.kept import kept
from gengen.evaluation.scene_judge import SceneJudge
from gengen.io import Say

VERSION, REPORTS, SELECTS = 1, 7919, 104729
CHECKED = 500  # held-out pictures that a judge is checked on, at most
LEVELS = 10  # of 255, the deviation of the noise that it has to bear


class PromptJudge(Protocol):
    """What pictures are measured by against their captions.

    facts: how it was made, and the share of what real held-out pictures show that it saw, as they are ("real") and
    with noise ("noisy"). bars: what it must see of either to be believed.
    """

    bars: Mapping[str, float]
    facts: dict[str, Any]

    def judges(self, description: Description) -> bool:
        """Return whether it can say of a picture whether it shows what this one shows."""

    def read(self, images: Tensor) -> list[Sequence[Thing]]:
        """Return the things that it sees in each of uint8 images (N, C, H, W)."""

    def verdicts(self, description: Description, found: Sequence[Thing]) -> Mapping[str, bool]:
        """Return whether what was found in a picture is what the caption asks for: name of what is asked -> whether it
        is there. The names are attributes ("tone"), or the category of the caption ("position").
        """

    def log_probs(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the log-probability that each picture shows what its caption asks for, (N,). Raises UserError for a
        caption that asks for nothing it can tell.
        """


def prompt_judge_for(prepared: PreparedImages, say: Say, seed: int = REPORTS) -> AttributeJudge | SceneJudge | None:
    """Return a judge of this data, in eval mode on the CPU; trained first where there is none. None where the pictures
    show no things with two attributes, and so no combinations.
    """
    if not Vocabulary.of(prepared.train.descriptions).values:
        return None
    scenes = any(len(row.things) > 1 for row in prepared.train.descriptions)
    kind = SceneJudge if scenes else AttributeJudge
    home = Path(prepared.config.dir) / "judges" / f"prompts-{seed}-{prepared.fingerprint[:16]}"
    recipe = {"name": kind.__name__, "version": VERSION, "seed": seed, "seen": kind.SEEN, "noise": NOISE, "blur": BLUR}
    recipe |= {"flip": prepared.config.flip, "data": prepared.fingerprint}

    def build() -> AttributeJudge | SceneJudge:
        with torch.random.fork_rng(devices=[]):
            return kind(prepared)

    def trained() -> tuple[AttributeJudge | SceneJudge, dict[str, Any]]:
        say(f"judge: training one of what captions ask for on {len(prepared.train):,} images, once")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            judge = kind(prepared)
            judge.train_on(prepared)
        return judge, checked(judge.eval(), prepared.val)

    judge, facts = kept(home, recipe, build, trained, say)
    judge.facts = facts
    return judge


def checked(judge: PromptJudge, held_out: ImageSet) -> dict[str, Any]:
    """Return how much of what held-out pictures show a judge sees, as they are and with noise of `LEVELS`."""
    rows = [i for i, row in enumerate(held_out.descriptions) if judge.judges(row)]
    rows = [rows[i * len(rows) // CHECKED] for i in range(CHECKED)] if len(rows) > CHECKED else rows
    facts: dict[str, Any] = {"held_out": len(rows)}
    if rows:
        images = held_out.images[rows]
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        noisy = (images + LEVELS * noise).round().clamp(0, 255).to(torch.uint8)
        for name, pictures in {"real": images, "noisy": noisy}.items():
            found = zip(rows, judge.read(pictures), strict=True)
            right = [ok for i, things in found for ok in judge.verdicts(held_out.descriptions[i], things).values()]
            facts[name] = sum(right) / len(right)
    return facts


def why_refused(judge: PromptJudge) -> str:
    """Return why nothing may be reported by a judge; "" where it may."""
    if not judge.facts["held_out"]:
        return "no held-out picture shows a new combination of what was trained on: data.holdout=combinations"
    low = [
        f"{judge.facts[name]:.1%} {of} (it must be {bar:.0%})"
        for name, of, bar in (
            ("real", "of what real held-out pictures show", judge.bars["real"]),
            ("noisy", f"of them with {LEVELS} levels of noise", judge.bars["noisy"]),
        )
        if judge.facts[name] < bar
    ]
    return f"it sees {' and '.join(low)}" if low else ""


def trusted(judge: PromptJudge) -> PromptJudge:
    """Return a judge that may be believed. Raises UserError for one that is refused."""
    if why := why_refused(judge):
        raise UserError(f"the judge of this data's captions is refused: {why}")
    return judge
