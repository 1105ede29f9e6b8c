"""Which pictures are held out: a share of the groups of each class, or of the combinations of attributes."""

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


def family_of(combination: Combination) -> str:
    """Return what is combined in it: "colour x shape"."""
    return " x ".join(sorted(name for name, _ in combination))


def unseen_combinations(pictures: Sequence[Sequence[Thing]], share: float) -> set[Combination]:
    """Return a share of the combinations of each family that pictures show. Training is to see none of them, but each
    of their parts.

    They are taken in the order of a hash of their names, which no order of pictures changes. One is passed over where
    it would leave a value less than half of its combinations. Raises UserError where none can be taken.
    """
    shown = set[Combination]().union(*map(combinations_of, pictures))
    of_family, of_value = Counter(map(family_of, shown)), Counter(value for each in shown for value in each)
    taken: set[Combination] = set()
    from_family, from_value = Counter[str](), Counter[tuple[str, str]]()
    for combination in sorted(shown, key=lambda each: hashlib.sha256(json.dumps(sorted(each)).encode()).digest()):
        family = family_of(combination)
        enough = from_family[family] >= int(share * of_family[family])
        if enough or any(2 * (from_value[value] + 1) > of_value[value] for value in combination):
            continue
        taken.add(combination)
        from_family[family] += 1
        from_value.update(combination)
    if not taken:
        once = sorted(f"{name} {value}" for (name, value), count in of_value.items() if count == 1)
        family, count = of_family.most_common(1)[0] if shown else ("", 0)
        why = f"data.validation={share:g} of {count} {family} is none"
        if not shown or once:
            why = (
                f"such as {once[0]}, which is in one only"
                if once
                else "the pictures have no two attributes of one thing"
            )
        raise UserError(
            "data.holdout=combinations: no combination of attributes can be held out so that each of its parts stays "
            f"in training ({why})"
        )
    return taken


def shows_any(pictures: Sequence[Sequence[Thing]], unseen: set[Combination]) -> np.ndarray:
    """Return which pictures show one of these combinations, (N,) bool."""
    return np.array([bool(combinations_of(things) & unseen) for things in pictures], bool)


def combinations_held_out(pictures: Sequence[Sequence[Thing]], share: float) -> tuple[np.ndarray, str]:
    """Return which pictures are for validation, (N,) bool, and how many combinations of each family that are: those
    that show one of `unseen_combinations`. Raises UserError where a value is then in no picture to train on.
    """
    unseen = unseen_combinations(pictures, share)
    held_out = shows_any(pictures, unseen)
    shown = [combinations_of(things) for things in pictures]
    trained = {
        value
        for each, out in zip(shown, held_out, strict=True)
        if not out
        for value in set[tuple[str, str]]().union(*each)
    }
    families, taken = Counter(map(family_of, set[Combination]().union(*shown))), Counter(map(family_of, unseen))
    if lost := sorted({value for each in shown for value in set[tuple[str, str]]().union(*each)} - trained):
        raise UserError(
            f"data.holdout=combinations: {' '.join(lost[0])} is in no picture that is left for training: all show a "
            f"combination that is held out, too\n  data.validation={share:g}: take less, or add pictures of it"
        )
    return held_out, "combinations: " + ", ".join(
        f"{taken[f]} of {count} {f}" for f, count in sorted(families.items())
    )
