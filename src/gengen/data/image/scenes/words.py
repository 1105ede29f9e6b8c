"""What a caption of a scene asks for, in words and as a value, and whether a picture obeys it. None of it needs torch.

The categories are those of GenEval (Ghosh et al. 2023): "an apple" (single), "an apple and a car" (two), "three
hearts" (count), "a red apple" (colour), "a star above a car" (position), "a blue cat and a green star" (binding).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gengen.errors import UserError

if TYPE_CHECKING:  # its module imports torch
    from gengen.data.image.sources.base import Thing

CATEGORIES = ("single", "two", "count", "colour", "position", "binding")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black")
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
REGULAR = (
    *("apple", "bell", "bird", "boot", "car", "cat", "circle", "diamond", "dinosaur", "heart", "key", "moon"),
    *("mushroom", "ring", "shirt", "square", "star", "tree", "triangle", "umbrella"),
)
IRREGULAR = {"butterfly": "butterflies", "cross": "crosses", "fish": "fish", "octopus": "octopuses"}
NOUNS = {noun: f"{noun}s" for noun in REGULAR} | IRREGULAR
"""One -> several, for the objects of all sets of sprites."""
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Relation -> the way from the second to the first; x grows to the right, y downwards."""
JOINTS = {  # what stands between two groups -> their relation; the plainest of each relation first
    **{"and": None, "with": None},
    **{"left of": "left of", "to the left of": "left of", "right of": "right of", "to the right of": "right of"},
    **{"above": "above", "over": "above", "below": "below", "under": "below"},
}
FRAMES = ("{}", "a picture of {}")
MARGIN = 1 / 8
"""How far apart along the direction of a relation the centres of any two of its things are at least, in sides."""

_GROUP = f"({'|'.join(NUMBERS)})(?: ({'|'.join(COLOURS)}))? ({'|'.join(sorted({*NOUNS, *NOUNS.values()}))})"
CAPTION = re.compile(f"(?:a picture of )?{_GROUP}(?: ({'|'.join(JOINTS)}) {_GROUP})?")


@dataclass(frozen=True)
class Group:
    """Equal things: "two blue cats". colour: None where any will do."""

    count: int
    shape: str
    colour: str | None = None

    def words(self) -> str:
        noun = self.shape if self.count == 1 else NOUNS[self.shape]
        coloured = f"{self.colour} {noun}" if self.colour else noun
        numbers = [word for word, count in NUMBERS.items() if count == self.count]  # of one: a, an
        return f"{numbers[coloured[0] in 'aeiou' and self.count == 1]} {coloured}"

    def found_in(self, things: Sequence[Thing]) -> list[Thing]:
        """Return the things that are of this shape and colour."""
        asked = {"shape": self.shape} | ({"colour": self.colour} if self.colour else {})
        return [thing for thing in things if asked.items() <= thing.attributes.items()]


@dataclass(frozen=True)
class Asked:
    """One group of things, or two, of which the first may stand in a relation to the second (see `DIRECTIONS`)."""

    groups: tuple[Group, ...]
    relation: str | None = None

    @property
    def category(self) -> str:
        """What kind of request it is, one of `CATEGORIES`."""
        coloured = any(group.colour for group in self.groups)
        if len(self.groups) == 2:
            return "position" if self.relation else "binding" if coloured else "two"
        return "count" if self.groups[0].count > 1 else "colour" if coloured else "single"


def captions_of(asked: Asked) -> tuple[str, ...]:
    """Say it in every way there is, the plainest first; `asked_of` reads each of them."""
    groups = [group.words() for group in asked.groups]
    joints = [joint for joint, relation in JOINTS.items() if relation == asked.relation]
    plain = dict.fromkeys(f" {joint} ".join(groups) for joint in joints)  # one group has no joint
    return tuple(frame.format(text) for frame in FRAMES for text in plain)


def asked_of(caption: str) -> Asked:
    """Read what a caption asks for. Raises UserError, with an example, for one that says anything else."""
    found = CAPTION.fullmatch(" ".join(caption.casefold().split()).removesuffix("."))
    try:
        if found is None:
            raise ValueError
        number, colour, noun, joint, *second = found.groups()
        groups = [_group(number, colour, noun)] + ([_group(*second)] if joint else [])
    except ValueError:
        raise UserError(
            f"{caption[:200]!r} is no caption of scenes: these are such as 'a red apple', 'three hearts', "
            f"'a cat above two blue stars'\n  colours: {', '.join(COLOURS)}\n  objects: {', '.join(sorted(NOUNS))}"
        ) from None
    return Asked(tuple(groups), JOINTS[joint] if joint else None)


def _group(number: str, colour: str | None, noun: str) -> Group:
    """Return the group of these words. Raises ValueError where the noun's number is not that of the group."""
    singular = {(several if NUMBERS[number] > 1 else one): one for one, several in NOUNS.items()}
    if noun not in singular:
        raise ValueError(noun)
    return Group(NUMBERS[number], singular[noun], colour)


def obeys(asked: Asked, things: Sequence[Thing]) -> bool:
    """Whether a picture of these things shows what was asked for: all of it, and nothing else.

    things: with the attributes shape and colour, and, where a relation is asked for, a centre. A relation holds where
    any two things are `MARGIN` apart that way, and the middles of the groups lie further apart that way than across
    it; so of the four at most one does.
    """
    found = [group.found_in(things) for group in asked.groups]
    if [len(those) for those in found] != [group.count for group in asked.groups]:
        return False
    if len({id(thing) for those in found for thing in those}) != len(things):
        return False
    return asked.relation is None or _stand(found[0], found[1], DIRECTIONS[asked.relation])


def _stand(first: Sequence[Thing], second: Sequence[Thing], way: tuple[int, int]) -> bool:
    """Whether the first things lie that way of the second."""
    ends, starts = ([thing.centre for thing in group if thing.centre] for group in (first, second))
    if len(ends) < len(first) or len(starts) < len(second):
        return False
    apart = [(x - x2, y - y2) for x, y in ends for x2, y2 in starts]
    along = [dx * way[0] + dy * way[1] for dx, dy in apart]
    across = [dx * way[1] + dy * way[0] for dx, dy in apart]
    return min(along) >= MARGIN and sum(along) > abs(sum(across))  # sums of equally many compare as their means do
