"""What a diffusion model is asked to draw: n samples, or n of each of several prompts from the same noise; and what is
drawn with prompts beside single images: the way from one to another, and a row at several scales of guidance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gengen.config.commands import DiffusionSampling
from gengen.data.image.captions import CaptionTokenizer
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.diffusion import Condition
from gengen.generation.image.files import SHOWN, Drawn, batches, named


@dataclass(frozen=True)
class Request:
    """What is to be drawn at once: a condition, and the number of each sample, which its noise is a function of."""

    condition: Condition
    samples: Sequence[int]


Paint = Callable[[Request, DiffusionSampling], Tensor]
"""Draws what a request asks for, uint8 (B, C, H, W)."""


@dataclass(frozen=True)
class Asked:
    """All that is to be drawn, of which any part can be had: n samples, or n of each prompt, prompt by prompt.

    Image r shows prompt r // n, and its noise is that of sample first + r % n: the same for every prompt.
    """

    n: int
    first: int
    turn: Sequence[int]  # the labels of samples, in turn
    classes: Sequence[str]
    device: torch.device
    prompts: Sequence[str] = ()
    tokens: Tensor | None = None  # (P, L), of the prompts, or of the empty text; None for a model that reads none
    negative: str = ""
    negative_tokens: Tensor | None = None  # (1, L); None = guidance leads away from the empty text
    # of a model with a frozen text encoder, tokens are what that said of them, (P, L, D') and (1, L, D')

    def __len__(self) -> int:
        return self.n * max(1, len(self.prompts))

    def rows(self, rows: range) -> Request:
        """Return what some of the images are asked to be."""
        labels = torch.tensor([self.turn[r % self.n % len(self.turn)] for r in rows], device=self.device)
        captions = None if self.tokens is None else self.tokens[[r // self.n for r in rows]]
        away = None if self.negative_tokens is None else self.negative_tokens[[0] * len(rows)]
        return Request(Condition(labels, captions, negative=away), [self.first + r % self.n for r in rows])

    def facts(self, rows: range) -> list[dict[str, Any]]:
        """Return what samples.json says of some of the images: their numbers, classes and texts."""
        negative = {"negative": self.negative} if self.negative else {}
        return [
            {"index": self.first + r % self.n}
            | named(self.turn[r % self.n % len(self.turn)], self.classes)
            | ({"prompt": self.prompts[r // self.n]} if self.prompts else {})
            | negative
            for r in rows
        ]

    def columns(self) -> int | None:
        """Return how many images a row of the grid has: of several prompts each has a row; else None."""
        return self.n if len(self.prompts) > 1 and self.n <= SHOWN else None


def unseen_words(tokenizer: TextTokenizer | None, texts: Sequence[str]) -> list[str]:
    """Return a line that names the words of texts that no caption had in training; none where there are none."""
    if not isinstance(tokenizer, CaptionTokenizer):
        return []
    words = {word: near for text in texts for word, near in tokenizer.unseen(text).items()}
    shown = [f"{word} (near: {near})" if near else word for word, near in words.items()]
    return [f"never seen in training: {', '.join(shown)}"] if shown else []


def between(a: Request, b: Request, share: float) -> Request:
    """Return the samples of a on their way to the texts of b: at 0 they are those of a, and at 1 of b, exactly."""
    condition = replace(
        a.condition,
        towards=b.condition.captions,
        share=torch.full((len(a.samples),), share, device=a.condition.labels.device),
    )
    return Request(condition, a.samples)


def remix(paint: Paint, asked: Asked, rows: range, pictures: int, settings: DiffusionSampling) -> Tensor:
    """Return the way from the first prompt to the second, (rows, pictures, C, H, W) uint8, for some of the n samples.

    Each step of the way is drawn by itself, as many at once as without a remix: so both ends are the images of the
    plain prompts, bit for bit.
    """
    a, b = asked.rows(rows), asked.rows(range(asked.n + rows.start, asked.n + rows.stop))
    steps = [paint(between(a, b, i / (pictures - 1)), settings) for i in range(pictures)]
    return torch.stack(steps, 1)


def drawn_remix(paint: Paint, asked: Asked, config: DiffusionSampling, how: dict[str, Any]) -> Iterator[Drawn]:
    """Yield a row a sample, from the first prompt to the second, and the frames of the way there and back."""
    for rows in batches(asked.n, config.batch_size):
        way = remix(paint, asked, rows, config.pictures, config)
        shares = [i / (config.pictures - 1) for i in range(config.pictures)]
        facts = [fact | how | {"to": asked.prompts[1], "at": share} for fact in asked.facts(rows) for share in shares]
        there = way.unbind(1)
        frames = (*there, *there[::-1]) if config.animation and rows.start * config.pictures < SHOWN else ()
        yield Drawn(way.flatten(0, 1), facts, config.pictures, frames)


def drawn_guidances(paint: Paint, asked: Asked, config: DiffusionSampling, how: dict[str, Any]) -> Iterator[Drawn]:
    """Yield a row an image, a column a scale of guidance, all of a row from the same noise."""
    scales = config.guidances
    for rows in batches(len(asked), config.batch_size):
        request = asked.rows(rows)
        images = torch.stack([paint(request, replace(config, guidance=scale)) for scale in scales], 1)
        facts = [fact | how | {"guidance": scale} for fact in asked.facts(rows) for scale in scales]
        yield Drawn(images.flatten(0, 1), facts, len(scales))
