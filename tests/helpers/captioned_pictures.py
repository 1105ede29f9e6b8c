"""Made-up pictures of coloured shapes, alone or several in a scene, with captions and what is in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gengen.data.image.captions import CaptionTokenizer, Description
from gengen.data.image.sources.base import Picture, Thing

SHAPES = ("cross", "ring", "square")
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 90, 220)}
UNSEEN = {("cross", "red"), ("ring", "green"), ("square", "blue")}
SIDE = 16
SETTINGS = [
    "model=unet", "model.text=true", "model.text_width=32", "model.text_layers=1", "model.text_heads=2",
    "model.widths=[32]", "model.blocks=1", "model.attention=[0]", "model.patch=4", "optim.ema=0.9",
    "data=imagefolder", "data.source=made-up-shapes", "data.path=.", "data.resolution=16", "data.batch_size=12",
    "data.holdout=combinations", "data.validation=0.34", "data.vocab_size=300",
    "trainer.max_steps=4", "trainer.save_every=4", "trainer.eval_every=4", "trainer.sample_every=4",
    "trainer.log_every=4", "trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1",
]  # fmt: skip
"""Of a tiny run of captions on them; the source must be registered under that name."""


def pasted(pixels: np.ndarray, shape: str, colour: str, centre: tuple[float, float], radius: float) -> None:
    """Draw one shape into (3, H, W) uint8, about its centre (x, y) in pixels."""
    rows, columns = np.mgrid[0 : pixels.shape[1], 0 : pixels.shape[2]] + 0.5
    y, x = abs(rows - centre[1]), abs(columns - centre[0])
    inside = {
        "cross": (np.maximum(y, x) <= radius) & (np.minimum(y, x) <= radius / 3),
        "ring": (np.hypot(y, x) <= radius) & (np.hypot(y, x) >= radius / 2),
        "square": np.maximum(y, x) <= 0.8 * radius,
    }[shape]
    pixels[:, inside] = np.array(COLOURS[colour], np.uint8)[:, None]


def picture_of(shape: str, colour: str, draw: np.random.Generator) -> Picture:
    """Draw one thing in the middle, or nearly."""
    pixels = np.full((3, SIDE, SIDE), 255, np.uint8)
    pasted(pixels, shape, colour, tuple(SIDE / 2 + draw.uniform(-1, 1, 2)), draw.uniform(5.5, 7))
    pixels -= draw.integers(0, 6, pixels.shape, dtype=np.uint8)  # no two are equal
    name = f"{colour} {shape}"
    thing = Thing({"shape": shape, "colour": colour})
    return Picture(torch.from_numpy(pixels), colour, (name, f"a {shape} in {colour}"), (thing,), group=name)


def scene_of(draw: np.random.Generator, side: int = 32) -> Picture:
    """Draw one thing or two in opposite quarters, captioned as gengen.data.image.scenes.words reads it."""
    pixels = np.full((3, side, side), 255, np.uint8)
    things = []
    shapes, colours = draw.permutation(SHAPES)[:2], draw.permutation(list(COLOURS))[:2]
    for shape, colour, quarter in zip(
        shapes[: draw.integers(1, 3)], colours, draw.permutation(4)[[0, 1]], strict=False
    ):
        centre = side * (np.array([quarter % 2, quarter // 2]) / 2 + 0.25) + draw.uniform(-1, 1, 2)
        pasted(pixels, shape, colour, tuple(centre), draw.uniform(5.5, 7))
        things.append(Thing({"shape": str(shape), "colour": str(colour)}, tuple((centre / side).tolist())))
    caption = " and ".join(f"a {thing.attributes['colour']} {thing.attributes['shape']}" for thing in things)
    category = "binding" if len(things) > 1 else "colour"
    return Picture(torch.from_numpy(pixels), None, (caption,), tuple(things), category)


class Shapes:
    """A source of `per` pictures of each combination, in turn."""

    per = 14

    def __init__(self, config: Any = None):
        pass

    def describe(self) -> tuple[str, str]:
        return "made-up shapes", "none"

    def facts(self) -> dict[str, Any]:
        return {"per": self.per}

    def read(self, skips: Any, say: Any) -> Iterator[Picture]:
        draw = np.random.default_rng(0)
        for _ in range(self.per):
            for shape in SHAPES:
                for colour in COLOURS:
                    yield picture_of(shape, colour, draw)


@dataclass
class Part:
    images: Tensor
    labels: Tensor
    descriptions: list[Description]

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> "Part":
        images = torch.stack([picture.pixels for picture in pictures])
        return cls(images, torch.full((len(images),), -1), [Description.of(picture) for picture in pictures])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Captioned:
    """Prepared images with captions, as far as evaluation reads them."""

    config: SimpleNamespace
    train: Part
    val: Part
    fingerprint: str
    classes: list[str] = field(default_factory=list)

    @property
    def caption_tokenizer(self) -> CaptionTokenizer:
        return CaptionTokenizer.of([text for row in self.train.descriptions for text in row.captions], 300)


def single_things(folder: Any) -> Captioned:
    """Prepare single things; what shows one of UNSEEN is held out."""
    pictures = list(Shapes().read(None, None))
    new = [tuple(row.things[0].attributes.values()) in UNSEEN for row in pictures]
    parts = [Part.of([row for row, is_new in zip(pictures, new, strict=True) if is_new == held]) for held in (0, 1)]
    return Captioned(SimpleNamespace(dir=str(folder), flip=False), *parts, fingerprint="5" * 64)


def scenes(folder: Any, train: int = 300, val: int = 60) -> Captioned:
    """Prepare scenes; of those held out, some show a combination of UNSEEN, which no other does."""
    draw = np.random.default_rng(0)
    seen, unseen = [], []
    while len(seen) < train or len(unseen) < val:
        row = scene_of(draw)
        new = any(tuple(thing.attributes.values()) in UNSEEN for thing in row.things)
        (unseen if new else seen).append(row)
    return Captioned(
        SimpleNamespace(dir=str(folder), flip=False), Part.of(seen[:train]), Part.of(unseen[:val]), "6" * 64
    )
