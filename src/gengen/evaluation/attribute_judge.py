"""The judge of pictures of one thing: a classification head for each of its attributes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.data.image.captions import Description
from gengen.data.image.prepare import PreparedImages
from gengen.data.image.sources.base import Thing
from gengen.evaluation.attributes import UNKNOWN, CaptionReader, Vocabulary
from gengen.evaluation.judges import BATCH, augmented, fit, predicted
from gengen.generation.image.files import to_float

COLOURS = {"colour", "color", "tone"}  # attributes that change with the colours of a picture; others do not


class AttributeJudge(nn.Module):
    """Judges pictures of one thing by a convolutional trunk with a head for each attribute.

    What a thing is must be told of combinations that were never seen. So heads of colours learn from pictures that are
    turned and moved about, the others from pictures that are recoloured: neither can know the one by the other. No
    head learns from a picture that lacks its attribute.
    """

    SEEN = 100_000  # training images in all: fewer leave it below its own bar

    def __init__(self, prepared: PreparedImages):
        super().__init__()
        self.bars: Mapping[str, float] = {"real": 0.99, "noisy": 0.95}
        self.facts: dict[str, Any] = {}
        self.vocabulary = Vocabulary.of(prepared.train.descriptions)
        self.asked_of = CaptionReader(self.vocabulary, [*prepared.train.descriptions, *prepared.val.descriptions])
        self.network = trunk(prepared.train.images.shape[1], sum(self.vocabulary.sizes))

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Sequence[Tensor]:
        """uint8 (N, C, H, W) -> the logits of each attribute's values, (N, values) each."""
        found = torch.cat([self.network(to_float(part)) for part in images.split(2 * BATCH)])
        return found.split(self.vocabulary.sizes, 1)

    def judges(self, description: Description) -> bool:
        things = description.things
        return bool(description.captions) and len(things) == 1 and self.vocabulary.knows(things)

    def read(self, images: Tensor) -> list[Sequence[Thing]]:
        numbers = torch.stack([logits.argmax(1) for logits in self.logits(images)], 1)
        return [[Thing(self.vocabulary.named(row))] for row in numbers.tolist()]

    def verdicts(self, description: Description, found: Sequence[Thing]) -> Mapping[str, bool]:
        asked, seen = description.things[0].attributes, found[0].attributes
        return {name: seen[name] == value for name, value in asked.items()}

    def log_probs(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        targets = self.vocabulary.targets([self.asked_of(caption) for caption in captions])
        return -sum_of_losses(self.logits(images), targets)

    def train_on(self, prepared: PreparedImages) -> None:
        """Train on the pictures of the training split that can be judged, as often on each set of attributes."""
        data, kinds = prepared.train, dict[tuple[str, ...], list[int]]()
        targets = torch.full((len(data.labels), len(self.vocabulary.values)), UNKNOWN)
        for i, row in enumerate(data.descriptions):
            if self.judges(row):
                attributes = row.things[0].attributes
                targets[i] = torch.tensor(self.vocabulary.numbers(attributes))
                kinds.setdefault(tuple(sorted(attributes)), []).append(i)
        most = max(map(len, kinds.values()))
        balanced = torch.cat([torch.tensor(rows).repeat(most // len(rows)) for rows in kinds.values()])
        coloured = torch.tensor([name in COLOURS for name in self.vocabulary.values])

        def loss(rows: Tensor) -> Tensor:
            images, wanted = augmented(data.images.index_select(0, rows), prepared.config.flip), targets[rows]
            third = len(rows) // 3  # of an order that is random already; colours are the easier to learn
            images = torch.cat([displaced(images[:third]), recoloured(images[third:])])
            of_colours = torch.arange(len(rows))[:, None] < third
            logits = predicted(self.network, images).split(self.vocabulary.sizes, 1)
            return sum_of_losses(logits, wanted.where(of_colours == coloured, UNKNOWN), smoothing=0.1).mean()

        fit(self.network, balanced, max(8, -(-self.SEEN // len(balanced))), loss)


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the side (of 4 pixels with stride 2: halves it), with batch norm and ReLU."""
    convolved = nn.Conv2d(inputs, outputs, size, stride, padding=1, bias=False)
    return [convolved, nn.BatchNorm2d(outputs), nn.ReLU()]


def trunk(channels: int, outputs: int) -> nn.Sequential:
    """Return a network from images (N, C, H, W) in [-1, 1] to (N, outputs), which knows what is where: pictures of one
    thing have it in the middle.
    """
    shallow = [*convolution(channels, 24, 4, 2), *convolution(24, 48), nn.MaxPool2d(2)]
    deep = [*convolution(48, 96), nn.MaxPool2d(2), *convolution(96, 96), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*shallow, *deep, nn.Dropout(0.2), nn.Linear(16 * 96, outputs))


def recoloured(images: Tensor) -> Tensor:
    """Mix the channels of two thirds of uint8 images (N, C, H, W), of each in a way of its own; white stays white.
    Returns uint8.
    """
    n, channels = images.shape[:2]
    mix = torch.rand(n, channels, channels)
    mix = mix / mix.sum(2, keepdim=True) * torch.empty(n, channels, 1).uniform_(0.5, 1.3)
    mix[torch.rand(n) < 1 / 3] = torch.eye(channels)
    dark = torch.einsum("nij,njhw->nihw", mix, 255 - images.float())
    return (255 - dark).round().clamp(0, 255).to(torch.uint8)


def displaced(images: Tensor) -> Tensor:
    """Mirror each image of (N, C, H, W), square, or turn it by a quarter, and move it round by any distance: of what
    was where, nothing is left.
    """
    n, channels, side, _ = images.shape
    turned = torch.where(torch.rand(n, 1, 1, 1) < 0.5, images, images.transpose(2, 3))
    y, x = (torch.arange(side) * (2 * torch.randint(2, (n, 1)) - 1) + torch.randint(side, (n, 1)) for _ in "yx")
    y, x = (y % side)[:, None, :, None], (x % side)[:, None, None, :]
    return turned[torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None], y, x]


def sum_of_losses(logits: Sequence[Tensor], targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each row, (N,), summed over its attributes: logits (N, values) of each, targets
    (N, attributes), UNKNOWN where there is nothing to be right about.
    """
    each = [
        F.cross_entropy(found, wanted, ignore_index=UNKNOWN, label_smoothing=smoothing, reduction="none")
        for found, wanted in zip(logits, targets.unbind(1), strict=True)
    ]
    return torch.stack(each).sum(0)
