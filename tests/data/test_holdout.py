"""Combinations that are held out: none of them is in training, and every part of each is."""

import random
from collections import Counter

import numpy as np
import pytest

from gengen.data.image.holdout import combinations_held_out, combinations_of, family_of, shows_any, unseen_combinations
from gengen.data.image.sources.base import Thing
from gengen.errors import UserError

Pictures = list[tuple[Thing, ...]]


def grid(rows: int, columns: int, names: tuple[str, str] = ("shape", "colour")) -> Pictures:
    """A picture of each of rows x columns combinations."""
    first, second = names
    return [(Thing({first: f"{first} {i}", second: f"{second} {j}"}),) for i in range(rows) for j in range(columns)]


def some(seed: int) -> Pictures:
    """Pictures of up to three things with up to three attributes, most combinations of them missing."""
    draw = random.Random(seed)

    def thing() -> Thing:
        names = draw.sample(["shape", "colour", "size"], draw.randint(0, 3))
        return Thing({name: f"{name} {draw.randint(0, 6)}" for name in names})

    return [tuple(thing() for _ in range(draw.randint(0, 3))) for _ in range(draw.randint(120, 300))]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(20))
def test_each_value_keeps_half_of_its_combinations(seed: int, share: float) -> None:
    pictures = some(seed)
    unseen = unseen_combinations(pictures, share)
    held_out = shows_any(pictures, unseen)
    shown = set().union(*map(combinations_of, pictures))
    trained = set().union(*(combinations_of(each) for each, out in zip(pictures, held_out, strict=True) if not out))
    assert not unseen & trained
    before, after = (Counter(value for each in found for value in each) for found in (shown, shown - unseen))
    assert all(2 * after[value] >= count for value, count in before.items())
    families, taken = Counter(map(family_of, shown)), Counter(map(family_of, unseen))
    assert all(taken[family] <= int(share * count) for family, count in families.items())
    for each, out in zip(pictures, held_out, strict=True):
        assert not out or any(
            len(thing.attributes) > 1 for thing in each
        )  # one attribute or none is always trained on


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_pictures_changes_nothing(seed: int) -> None:
    pictures = some(seed)
    unseen = unseen_combinations(pictures, 0.3)
    mixed = random.Random(1).sample(pictures, len(pictures))
    turned = [tuple(Thing(dict(reversed(thing.attributes.items()))) for thing in each) for each in mixed]
    assert unseen_combinations(turned, 0.3) == unseen


def test_what_is_held_out_is_recorded() -> None:
    """A change here would move pictures across in every prepared set."""
    found = shows_any(grid(4, 5), unseen_combinations(grid(4, 5), 0.3))
    assert np.flatnonzero(found).tolist() == [3, 4, 10, 11, 15, 16]


def test_each_family_gives_its_share() -> None:
    pictures = grid(48, 6, ("gesture", "tone")) + grid(3, 9)
    taken = Counter(map(family_of, unseen_combinations(pictures, 0.2)))
    assert taken == {"gesture x tone": 57, "colour x shape": 5}


@pytest.mark.parametrize(
    "pictures, share, why",
    [
        (grid(1, 1), 0.5, r"such as colour colour 0, which is in one only"),
        (grid(5, 1), 0.5, r"such as shape shape 0, which is in one only"),
        (grid(3, 3), 0.1, r"data\.validation=0\.1 of 9 colour x shape is none"),
        ([(Thing({"shape": "heart"}),), ()], 0.5, r"the pictures have no two attributes of one thing"),
    ],
)
def test_where_none_can_be_held_out_one_line_says_why(pictures: Pictures, share: float, why: str) -> None:
    with pytest.raises(UserError, match=rf"data\.holdout=combinations: no combination .*stays in training \({why}\)"):
        unseen_combinations(pictures, share)


def test_a_value_that_all_its_pictures_lose_is_named() -> None:
    """Where a picture shows two things, one is held out with the other."""
    pictures = grid(4, 4)
    unseen = min(unseen_combinations(pictures, 0.1), key=sorted)
    pictures.append((Thing(dict(unseen)), Thing({"shape": "star", "colour": "gold"})))
    with pytest.raises(UserError, match=r"data\.holdout=combinations: colour gold is in no picture that is left"):
        combinations_held_out(pictures, 0.1)
    pictures.append((Thing({"shape": "star", "colour": "gold"}),))
    held_out, how = combinations_held_out(pictures, 0.1)
    assert held_out.sum() == 2 and how == "combinations: 1 of 17 colour x shape"
