"""The judge of pictures of several things: a small detector, and rules of what its caption asks for.

As GenEval (Ghosh et al. 2023), with a detector of the data's own things: a grid of cells says where the middle of a
thing is, and what it is like; what is found is held against the caption by rules (data/image/scenes/words.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.data.image.captions import Description
from gengen.data.image.prepare import PreparedImages
from gengen.data.image.scenes.words import asked_of, obeys
from gengen.data.image.sources.base import Thing
from gengen.evaluation.attribute_judge import COLOURS, convolution, recoloured
from gengen.evaluation.attributes import UNKNOWN, Vocabulary
from gengen.evaluation.judges import BATCH, fit, predicted, worsened
from gengen.generation.image.files import to_float

CELL = 4  # pixels a side
REACH = 2  # cells around a peak in which no other thing is found
POSSIBLE = 0.02  # the least probability of a thing that readings drawn at random may have
READINGS = 32  # drawn of a picture for the probability that it obeys


class Grid(NamedTuple):
    """What is said of each cell of N images. presence: (N, h, w), a logit; offset: (N, 2, h, w), from the middle of
    the cell to that of the thing, x and y in cells; attributes: the logits of each one's values, (N, values, h, w).
    """

    presence: Tensor
    offset: Tensor
    attributes: Sequence[Tensor]


class SceneJudge(nn.Module):
    """Judges pictures of several things by a fully convolutional detector and the rules of scenes."""

    SEEN = 60_000  # training images in all

    def __init__(self, prepared: PreparedImages):
        super().__init__()
        self.bars: Mapping[str, float] = {
            "real": 0.95,
            "noisy": 0.9,
        }  # a picture counts whole: all of its things must be found
        self.facts: dict[str, Any] = {}
        self.vocabulary = Vocabulary.of(prepared.train.descriptions)
        channels = prepared.train.images.shape[1]
        shallow = [*convolution(channels, 16, 4, 2), *convolution(16, 32), nn.MaxPool2d(2)]
        deep = [*convolution(32, 64), *convolution(64, 64), *convolution(64, 64)]
        last = nn.Conv2d(64, 3 + sum(self.vocabulary.sizes), 1)
        nn.init.constant_(cast(Tensor, last.bias)[:1], -3)  # things are few
        self.network = nn.Sequential(*shallow, *deep, last)

    def parts(self, found: Tensor) -> Grid:
        """Name the outputs of the network, (N, 3 + values, h, w)."""
        presence, offset, rest = found.split([1, 2, sum(self.vocabulary.sizes)], 1)
        return Grid(presence[:, 0], offset, rest.split(self.vocabulary.sizes, 1))

    @torch.inference_mode()
    def grid(self, images: Tensor) -> Grid:
        """uint8 (N, C, H, W) -> what is said of each cell."""
        return self.parts(torch.cat([self.network(to_float(part)) for part in images.split(2 * BATCH)]))

    def judges(self, description: Description) -> bool:
        return bool(description.captions) and self.vocabulary.knows(description.things)

    def read(self, images: Tensor) -> list[Sequence[Thing]]:
        grid = self.grid(images)
        best = torch.stack([logits.argmax(1) for logits in grid.attributes], 1)  # (N, attributes, h, w)
        found: list[Sequence[Thing]] = []
        for i, places in enumerate(peaks(grid.presence.sigmoid(), 0.5)):
            found.append([self.thing(grid, i, y, x, best[i, :, y, x].tolist()) for y, x in places])
        return found

    def thing(self, grid: Grid, i: int, y: int, x: int, numbers: Sequence[int]) -> Thing:
        """Return what is in a cell of image i, with these values."""
        height, width = grid.presence.shape[1:]
        dx, dy = grid.offset[i, :, y, x].tolist()
        return Thing(self.vocabulary.named(numbers), ((x + 0.5 + dx) / width, (y + 0.5 + dy) / height))

    def verdicts(self, description: Description, found: Sequence[Thing]) -> Mapping[str, bool]:
        asked = asked_of(description.caption)
        return {asked.category: obeys(asked, found)}

    def log_probs(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """As `PromptJudge`: by the share of readings, drawn from what the detector holds possible, that obey."""
        requests, grid = [asked_of(caption) for caption in captions], self.grid(images)
        generator = torch.Generator().manual_seed(0)
        shares = []
        for i, places in enumerate(peaks(grid.presence.sigmoid(), POSSIBLE)):
            obeyed = sum(obeys(requests[i], found) for found in self.readings(grid, i, places, generator))
            shares.append((obeyed + 0.5) / (READINGS + 1))
        return torch.tensor(shares).log()

    def readings(
        self, grid: Grid, i: int, places: Sequence[tuple[int, int]], generator: torch.Generator
    ) -> list[list[Thing]]:
        """Draw what may be in image i at these places, READINGS times."""
        found: list[list[Thing]] = [[] for _ in range(READINGS)]
        for y, x in places:
            there = torch.rand(READINGS, generator=generator) < grid.presence[i, y, x].sigmoid()
            probabilities = [logits[i, :, y, x].softmax(0) for logits in grid.attributes]
            drawn = [torch.multinomial(p, READINGS, True, generator=generator) for p in probabilities]
            for reading, present, numbers in zip(found, there.tolist(), torch.stack(drawn, 1).tolist(), strict=True):
                if present:
                    reading.append(self.thing(grid, i, y, x, numbers))
        return found

    def train_on(self, prepared: PreparedImages) -> None:
        """Train on the pictures of the training split all of whose things are known and have a place.

        As `AttributeJudge`: half of them are recoloured and teach no colours, half turned about and teach only those.
        """
        data = prepared.train
        rows = [i for i, row in enumerate(data.descriptions) if self.judges(row) and all(t.centre for t in row.things)]
        side = data.images.shape[-1] // CELL
        targets = {i: self.targets(data.descriptions[i].things, side) for i in rows}
        coloured = torch.tensor([name in COLOURS for name in self.vocabulary.values])

        def loss(part: Tensor) -> Tensor:
            images, half = data.images.index_select(0, part), len(part) // 2
            things = [torch.cat([targets[i] for i in some.tolist()]) for some in (part[:half], part[half:])]
            recolour, (turned, things[1]) = recoloured(images[:half]), turned_about(images[half:], things[1], side)
            for found, taught in zip(things, (~coloured, coloured), strict=True):
                found[:, 4:] = found[:, 4:].where(taught, UNKNOWN)
            grid = self.parts(predicted(self.network, worsened(torch.cat([recolour, turned]))))
            return detection_loss(grid, torch.cat(things), part_of(part, targets))

        fit(self.network, torch.tensor(rows), -(-self.SEEN // len(rows)), loss)

    def targets(self, things: Sequence[Thing], side: int) -> Tensor:
        """Return the cell of each thing and what is there: row, column, dx, dy, values, (things, 4 + attributes)."""
        rows = []
        for thing in things:
            x, y = (min(at * side, side - 1e-3) for at in thing.centre or (0.0, 0.0))
            cell = int(y), int(x)
            rows.append([*cell, x - cell[1] - 0.5, y - cell[0] - 0.5, *self.vocabulary.numbers(thing.attributes)])
        return torch.tensor(rows)


def turned_about(images: Tensor, things: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mirror pictures (N, C, H, H) or turn them, all in one of eight ways, and what is in them: things (M, 4 + ...),
    as `SceneJudge.targets`.
    """
    transposed, flipped = (torch.rand(3) < 0.5).split([1, 2])
    if transposed:
        images, things = images.transpose(2, 3), torch.cat([things[:, [1, 0, 3, 2]], things[:, 4:]], 1)
    images = images.flip([2 + axis for axis in range(2) if flipped[axis]])
    cells, offsets = things[:, :2], things[:, [3, 2]]  # row and column, dy and dx
    cells, offsets = cells.where(~flipped, side - 1 - cells), offsets.where(~flipped, -offsets)
    return images, torch.cat([cells, offsets.flip(1), things[:, 4:]], 1)


def part_of(rows: Tensor, targets: Mapping[int, Tensor]) -> Tensor:
    """Return which row of a batch each thing is in, (things,)."""
    return torch.cat([torch.full((len(targets[row]),), i) for i, row in enumerate(rows.tolist())])


def detection_loss(grid: Grid, targets: Tensor, image: Tensor) -> Tensor:
    """Return the mean over things of the loss of what is said of them: whether one is there (summed over all cells but
    those next to its middle), where, and what it is like.

    targets: (things, 4 + attributes), see `SceneJudge.targets`; image: (things,), the picture each is in.
    """
    row, column = targets[:, 0].long(), targets[:, 1].long()
    there = torch.zeros_like(grid.presence).index_put((image, row, column), torch.tensor(1.0))
    counts = (F.max_pool2d(there[:, None], 3, 1, 1)[:, 0] == there).float()
    presence = F.binary_cross_entropy_with_logits(grid.presence, there, counts, reduction="sum")
    where = F.l1_loss(grid.offset[image, :, row, column], targets[:, 2:4], reduction="sum")
    like = [
        F.cross_entropy(logits[image, :, row, column], wanted, ignore_index=UNKNOWN, reduction="sum")
        for logits, wanted in zip(grid.attributes, targets[:, 4:].long().unbind(1), strict=True)
    ]
    return (presence + where + torch.stack(like).sum()) / len(targets)


def peaks(presence: Tensor, least: float) -> list[list[tuple[int, int]]]:
    """Return of each image the cells (row, column) where a thing is likelier than anywhere within REACH, and at least
    so likely. presence: probabilities (N, h, w).
    """
    highest = F.max_pool2d(presence[:, None], 2 * REACH + 1, 1, REACH)[:, 0]
    found: list[list[tuple[int, int]]] = [[] for _ in presence]
    for i, y, x in ((presence == highest) & (presence >= least)).nonzero().tolist():
        found[i].append((y, x))
    return found
