"""Augmentations as what they are by hand: moves by whole pixels, a rectangle cut out, colours; each can be
differentiated twice.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from gengen.adversarial.augment import AUGMENTATIONS, DRAWS, augment, color, cutout, shifts, translation

COLORS, SHIFTS, HOLES = slice(0, 3), slice(3, 5), slice(5, 7)  # which of the numbers each one reads
LAST = 1 - 2**-24  # the largest that torch.rand draws in fp32


def pictures(count: int = 1, channels: int = 3, height: int = 16, width: int = 24) -> Tensor:
    """Without a pixel of 0, so that what was filled with 0 shows."""
    draw = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, height, width, generator=draw, dtype=torch.float64) * 0.9 + 0.1


def draws(count: int = 1, part: slice = slice(0, 0), *values: float) -> Tensor:
    """u of .5, with some of the numbers set."""
    u = torch.full((count, DRAWS), 0.5)
    u[:, part] = torch.tensor(values)
    return u


def test_the_middle_draw_leaves_an_image_as_it_is() -> None:
    x = pictures(2)
    torch.testing.assert_close(color(x, draws(2)), x, rtol=0, atol=1e-12)
    assert torch.equal(translation(x, draws(2)), x)
    assert torch.equal(augment(x, draws(2), []), x)


# --- translation


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """The reference: rolled, and what came round the edge blanked."""
    height, width = x.shape[2:]
    x = x.roll((down, right), (2, 3)).clone()
    rows, columns = torch.arange(height) - down, torch.arange(width) - right
    x[:, :, (rows < 0) | (rows >= height)] = 0
    x[:, :, :, (columns < 0) | (columns >= width)] = 0
    return x


def test_translation_is_a_roll_without_what_comes_round() -> None:
    """Of 16 x 24 pixels: by -2 .. 2 and by -3 .. 3; a larger number moves up and left."""
    x = pictures()
    seen = set()
    for i, j in product(range(5), range(7)):
        result = translation(x, draws(1, SHIFTS, (i + 0.5) / 5, (j + 0.5) / 7))
        assert torch.equal(result, moved(x, 2 - i, 3 - j))
        seen.add(result.numpy().tobytes())
    assert len(seen) == 35


def test_every_offset_is_as_likely() -> None:
    """A point in the middle of 16 x 24, and numbers evenly spaced in [0, 1)."""
    x = torch.zeros(105, 1, 16, 24)
    x[:, :, 8, 12] = 1
    even = (torch.arange(105) + 0.5) / 105
    u = draws(105)
    u[:, SHIFTS] = even[:, None]
    places = translation(x, u).flatten(1).argmax(1)
    assert torch.bincount(places // 24)[6:11].tolist() == [21] * 5  # by rows -2 .. 2
    assert torch.bincount(places % 24)[9:16].tolist() == [15] * 7


@pytest.mark.parametrize("side", [1, 7, 8, 16, 28, 32, 64, 128, 250, 256])
def test_the_first_and_the_last_number_move_by_an_eighth_and_no_further(side: int) -> None:
    matrices = shifts(torch.tensor([0.0, LAST]), side)
    reach = side // 8
    assert torch.equal(matrices[0], torch.diag(torch.ones(side - reach), -reach))  # down
    assert torch.equal(matrices[1], torch.diag(torch.ones(side - reach), reach))  # up


# --- cutout


def test_cutout_blanks_one_rectangle_and_touches_nothing_else() -> None:
    """Of 8 x 12 pixels a hole of 4 x 6, whose middle is anywhere from edge to edge."""
    x = pictures(height=8, width=12)
    for i, j in product(range(9), range(13)):
        result = cutout(x, draws(1, HOLES, (i + 0.5) / 9, (j + 0.5) / 13))
        top, left, bottom, right = max(0, i - 2), max(0, j - 3), min(8, i + 2), min(12, j + 3)
        expected = x.clone()
        expected[:, :, top:bottom, left:right] = 0
        assert torch.equal(result, expected)
        assert int((result[0, 0] == 0).sum()) == (bottom - top) * (right - left)
        if 2 <= i <= 6 and 3 <= j <= 9:
            assert int((result == 0).sum()) * 4 == x.numel()  # a quarter, where nothing hangs over


@pytest.mark.parametrize("side", [4, 8, 16, 28, 32, 64, 128, 256])
def test_the_hole_hangs_over_the_edge_by_half_at_most(side: int) -> None:
    x = torch.ones(1, 1, side, side)
    for first, last in product((0.0, LAST), repeat=2):
        hole = cutout(x, draws(1, HOLES, first, last))[0, 0] == 0
        rows = slice(0, side // 4) if first == 0 else slice(side - side // 4, side)
        columns = slice(0, side // 4) if last == 0 else slice(side - side // 4, side)
        assert hole[rows, columns].all() and int(hole.sum()) == (side // 4) ** 2


# --- color


def test_color_by_hand() -> None:
    """One pixel row of red (.6, 0, 0) and white (1, 1, 1). Brightness +.25; saturation * .5; contrast * 1.3 about the
    mean.
    """
    x = torch.tensor([[[[0.6, 1]], [[0.0, 1]], [[0.0, 1]]]], dtype=torch.float64)
    u = draws(1, COLORS, 0.75, 0.25, 0.8).double()
    # brighter: (.85, .25, .25), (1.25, ...); grey of the first .45: (.65, .35, .35); the mean of all is .85
    expected = [
        [
            [[0.85 - 1.3 * 0.2, 0.85 + 1.3 * 0.4]],
            [[0.85 - 1.3 * 0.5, 0.85 + 1.3 * 0.4]],
            [[0.85 - 1.3 * 0.5, 0.85 + 1.3 * 0.4]],
        ]
    ]
    torch.testing.assert_close(color(x, u), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_each_number_of_color_moves_one_thing() -> None:
    x = pictures(1)
    mean, grey = x.mean(), x.mean(1, keepdim=True)
    for share in (0.0, 0.3, LAST):
        torch.testing.assert_close(color(x, draws(1, COLORS, share, 0.5, 0.5)), x + share - 0.5, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            color(x, draws(1, COLORS, 0.5, share, 0.5)), grey + 2 * share * (x - grey), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            color(x, draws(1, COLORS, 0.5, 0.5, share)), mean + (0.5 + share) * (x - mean), rtol=0, atol=1e-6
        )
    grey_picture = pictures(channels=1)
    torch.testing.assert_close(
        color(grey_picture, draws(1, COLORS, 0.5, 0.0, 0.5)), grey_picture
    )  # no colours to take


# --- all of them

UNEVEN = torch.tensor([[0.1, 0.8, 0.3, 0.95, 0.05, 0.2, 0.7], [0.7, 0.3, 0.9, 0.1, 0.5, 0.9, 0.4]])


@pytest.mark.parametrize(
    "names", [[name] for name in AUGMENTATIONS] + [list(AUGMENTATIONS)], ids=[*AUGMENTATIONS, "all"]
)
def test_gradients_are_right_once_and_twice(names: list[str]) -> None:
    """The second of a cube of what comes out: of the maps themselves, which are linear, it is 0."""
    x = pictures(1, 2, 8, 8).requires_grad_()
    u = UNEVEN[:1].double()
    assert torch.autograd.gradcheck(lambda x: augment(x, u, names), x)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, u, names).pow(3).sum((1, 2, 3)), x)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_do_not_see_each_other(name: str) -> None:
    x, u = pictures(2), UNEVEN
    both = augment(x, u, [name])
    for i in range(2):
        torch.testing.assert_close(augment(x[i : i + 1], u[i : i + 1], [name])[0], both[i], rtol=0, atol=1e-12)
    assert not torch.allclose(augment(x, u.flip(0), [name]), both, atol=1e-2)  # each by its own numbers


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_reads_its_own_numbers_and_every_one_of_them(name: str) -> None:
    x, u = pictures(), UNEVEN[:1]
    own = {"color": COLORS, "translation": SHIFTS, "cutout": HOLES}[name]
    matters = [
        not torch.equal(augment(x, u.index_fill(1, torch.tensor([i]), 0.45), [name]), augment(x, u, [name]))
        for i in range(DRAWS)
    ]
    assert [i for i, does in enumerate(matters) if does] == list(range(own.start, own.stop))


def test_names_are_applied_in_the_order_given() -> None:
    x, u = pictures(2), UNEVEN
    orders = [["color", "cutout"], ["cutout", "color"], ["translation", "cutout"], ["cutout", "translation"]]
    results = [augment(x, u, names) for names in orders]
    for (first, second), result in zip(orders, results, strict=True):
        assert torch.equal(result, AUGMENTATIONS[second](AUGMENTATIONS[first](x, u), u))
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[2], results[3])
    assert torch.equal(augment(x, u, ["translation", "translation"]), translation(translation(x, u), u))


def test_what_is_fp32_stays_so() -> None:
    assert augment(pictures().float(), UNEVEN[:1], list(AUGMENTATIONS)).dtype == torch.float32
