"""Which pictures are held out: a share of the groups of each class, or of combinations of what can be asked for."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gengen.data.image.sources.base import Thing
from gengen.errors import UserError

Combination = frozenset[tuple[str, str]]
"""(attribute, value) pairs of one thing, two or more."""


def held_out(groups: list[str], labels: list[str], share: float) -> np.ndarray:
    """Return which pictures are for validation, (N,) bool: all of a group or none, and of each class the share, to
    within a group.

    Groups are laid out by class, and in a class by the hash of their names, which no order of files changes; along
    that line one is taken each time `share` of one more has passed.
    """
    label_of: dict[str, str] = {}
    for group, label in zip(groups, labels, strict=True):
        label_of.setdefault(group, label)
    line = sorted(label_of, key=lambda group: (label_of[group], hashlib.sha256(group.encode()).digest()))
    taken = {group for i, group in enumerate(line) if int((i + 1) * share) > int(i * share)}
    return np.array([group in taken for group in groups], bool)


def combinations_of(things: Sequence[Thing]) -> set[Combination]:
    """Return the combinations that a picture shows: the attributes of each thing that has two or more."""
    return {frozenset(thing.attributes.items()) for thing in things if len(thing.attributes) > 1}


def unseen_combinations(pictures: Sequence[Sequence[Thing]], share: float) -> set[Combination]:
    """Return a share of the combinations that pictures show, of which training is to see none, but each part.

    They are taken in the order of a hash of their names, which no order of pictures changes. One is passed over where
    it would leave a value less than half of its combinations. Raises UserError where none can be taken.
    """
    shown = set[Combination]().union(*map(combinations_of, pictures))
    total = Counter(value for combination in shown for value in combination)
    taken: set[Combination] = set()
    lost = Counter[tuple[str, str]]()
    for combination in sorted(shown, key=lambda c: hashlib.sha256(json.dumps(sorted(c)).encode()).digest()):
        if len(taken) == int(share * len(shown)):
            break
        if all(2 * (lost[value] + 1) <= total[value] for value in combination):
            taken.add(combination)
            lost.update(combination)
    if not taken:
        once = sorted(f"{name} {value}" for (name, value), count in total.items() if count == 1)
        why = f"such as {once[0]}, which is in one only" if once else f"of {share:g} of {len(shown)} combinations"
        raise UserError(
            "data.holdout=combinations: no combination of attributes can be held out so that each of its parts stays "
            f"in training ({why if shown else 'the pictures have no two attributes of one thing'})"
        )
    return taken


def shows_any(pictures: Sequence[Sequence[Thing]], unseen: set[Combination]) -> np.ndarray:
    """Return which pictures show one of these combinations, (N,) bool."""
    return np.array([bool(combinations_of(things) & unseen) for things in pictures], bool)
