"""What a scene asks for and where its objects lie: a pure function of (seed, index)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gengen.data.image.scenes.words import CATEGORIES, COLOURS, DIRECTIONS, Asked, Group
from gengen.data.sources.storygen import pick

GAP = 2  # pixels between objects at least
CLEAR = 1.5  # how many times as far apart along the direction of a relation as across it
NAMES_COLOUR = {"count", "position"}  # categories whose captions name colours in half of the scenes


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels: its top left corner and its sides."""

    x: int
    y: int
    width: int
    height: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Placed:
    """One object of a scene, in a square box."""

    shape: str
    colour: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """asked: what its captions say. objects: what is in it, each with a colour, whether or not that is said."""

    asked: Asked
    objects: tuple[Placed, ...]


def sizes_for(resolution: int) -> list[int]:
    """Return the four sizes that objects have, in pixels: from a third of a side (14 at least) to nearly half."""
    low, high = max(14, resolution // 3), (resolution - GAP) // 2
    return [low + i * (high - low) // 3 for i in range(4)]


def scene(seed: int, index: int, shapes: Sequence[str], resolution: int) -> Scene:
    """Draw one scene of objects of these shapes."""
    draw = random.Random(f"{seed} {index}")
    truth = contents(draw, category := pick(draw, CATEGORIES), shapes)
    named = category in ("colour", "binding") or (category in NAMES_COLOUR and draw.random() < 0.5)
    asked = truth if named else replace(truth, groups=tuple(replace(g, colour=None) for g in truth.groups))
    counts = [group.count for group in truth.groups]
    boxes = place(draw, counts, truth.relation, resolution)
    while truth.relation and not clear(boxes[: counts[0]], boxes[counts[0] :], truth.relation):
        boxes = place(draw, counts, truth.relation, resolution)
    each = [group for group in truth.groups for _ in range(group.count)]
    placed = (Placed(g.shape, str(g.colour), box) for g, box in zip(each, boxes, strict=True))
    return Scene(asked, tuple(placed))


def contents(draw: random.Random, category: str, shapes: Sequence[str]) -> Asked:
    """Draw what is in a scene of a category, colours and all: no two groups share a shape or a colour."""
    first, second = (pick_two(draw, values) for values in (shapes, COLOURS))
    (shape, other_shape), (colour, other_colour) = first, second
    if category in ("single", "colour"):
        return Asked((Group(1, shape, colour),))
    if category == "count":
        return Asked((Group(pick(draw, (2, 3, 4)), shape, colour),))
    if category == "position":
        pair = Group(1, shape, colour), Group(pick(draw, (1, 1, 1, 2)), other_shape, other_colour)
        return Asked(pair, pick(draw, tuple(DIRECTIONS)))
    return Asked((Group(1, shape, colour), Group(1, other_shape, other_colour)))


def pick_two(draw: random.Random, items: Sequence[str]) -> tuple[str, str]:
    """Return two different ones, in either order."""
    first = pick(draw, items)
    return first, pick(draw, [item for item in items if item != first])


def place(draw: random.Random, counts: Sequence[int], relation: str | None, resolution: int) -> list[Box]:
    """Draw square boxes of one size that do not overlap, `GAP` pixels apart: those of the first group, then those of
    the second, on either side of a cut where a relation asks for it.
    """
    size = pick(draw, sizes_for(resolution))
    whole = Box(0, 0, resolution, resolution)
    if relation is None:
        return cut(draw, whole, sum(counts), size)
    x, y = DIRECTIONS[relation]
    before, behind = split(draw, whole, size, across=bool(x))
    first, second = (before, behind) if x + y < 0 else (behind, before)
    return cut(draw, first, counts[0], size) + cut(draw, second, counts[1], size)


def cut(draw: random.Random, area: Box, n: int, size: int) -> list[Box]:
    """Draw n boxes in an area: one anywhere, more on both sides of a cut. Four fit into any that is two sizes wide and
    high, with the gap between."""
    if n == 1:
        x, y = within(draw, area.width - size), within(draw, area.height - size)
        return [Box(area.x + x, area.y + y, size, size)]
    roomy = [across for across in (True, False) if (area.width if across else area.height) >= 2 * size + GAP]
    before, behind = split(draw, area, size, pick(draw, roomy))
    return cut(draw, before, n // 2, size) + cut(draw, behind, n - n // 2, size)


def split(draw: random.Random, area: Box, size: int, across: bool) -> tuple[Box, Box]:
    """Cut an area in two, each with room for an object: left and right of the cut (across), or above and below it."""
    length = area.width if across else area.height
    at = size + within(draw, length - 2 * size - GAP)
    if across:
        return replace(area, width=at), replace(area, x=area.x + at + GAP, width=length - at - GAP)
    return replace(area, height=at), replace(area, y=area.y + at + GAP, height=length - at - GAP)


def within(draw: random.Random, high: int) -> int:
    """Draw a whole number of 0 .. high."""
    return int(draw.random() * (high + 1))


def clear(first: Sequence[Box], second: Sequence[Box], relation: str) -> bool:
    """Whether the middles of two groups lie `CLEAR` times as far apart along the direction as across it."""
    (ax, ay), (bx, by) = middle(first), middle(second)
    along, across = (ax - bx, ay - by) if DIRECTIONS[relation][0] else (ay - by, ax - bx)
    return abs(along) >= CLEAR * abs(across)


def middle(boxes: Sequence[Box]) -> tuple[float, float]:
    """Return the mean of the boxes' centres."""
    centres = [box.centre for box in boxes]
    return sum(x for x, _ in centres) / len(boxes), sum(y for _, y in centres) / len(boxes)
