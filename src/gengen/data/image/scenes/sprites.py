"""The objects of scenes as little pictures in nine colours: drawn shapes, or Twemoji's pictures recoloured."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from gengen.data.image.scenes.words import COLOURS

SIDE = 72  # pixels that sprites are drawn at before they are scaled; Twemoji's own
OVERSAMPLING = 4  # times SIDE that shapes are drawn at, for smooth edges
RGB = dict(
    zip(
        COLOURS,
        [(221, 46, 68), (244, 144, 12), (255, 217, 59), (92, 160, 54), (64, 140, 235), (133, 76, 199), (250, 150, 200),
         (130, 74, 48), (49, 55, 61)],
        strict=True,
    )
)  # fmt: skip
"""Colour -> RGB, near Twemoji's palette and told apart at a glance."""
TWEMOJI = {
    "apple": "1f34e", "bell": "1f514", "bird": "1f426", "boot": "1f462", "butterfly": "1f98b", "car": "1f697",
    "cat": "1f408", "dinosaur": "1f995", "fish": "1f41f", "heart": "2764", "key": "1f511", "moon": "1f319",
    "mushroom": "1f344", "octopus": "1f419", "shirt": "1f455", "star": "2b50", "tree": "1f333", "umbrella": "2602",
}  # fmt: skip
"""Shape -> code of a picture whose main colour is one hue."""

FILTER = Image.Resampling.HAMMING  # as sharp as bicubic, and rings no edge
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue (BT.601)

Plane: TypeAlias = np.ndarray
"""Values at every pixel, (H, W) or (H, W, C)."""
Sprites: TypeAlias = dict[tuple[str, str, int], np.ndarray]
"""(shape, colour, size) -> a picture on white, (3, size, size) uint8."""


# ------------------------------------------------------------------------------------------------------- drawn shapes


def star(x: Plane, y: Plane) -> Plane:
    """Five tips on the unit circle, dents at two fifths of the way, one tip up."""
    radius, angle = np.hypot(x, y), np.arctan2(x, y)
    turn = 2 * np.pi / 5
    folded = np.abs((angle + turn / 2) % turn - turn / 2)  # from the nearest tip, 0 .. turn / 2
    along, off = radius * np.cos(folded), radius * np.sin(folded)
    dent = 0.42 * np.cos(turn / 2), 0.42 * np.sin(turn / 2)
    return (dent[0] - 1) * off - dent[1] * (along - 1) >= 0


SHAPES: Mapping[str, Callable[[Plane, Plane], Plane]] = {  # inside or not; x to the right, y upwards, both in -1 .. 1
    "circle": lambda x, y: x**2 + y**2 <= 0.9,
    "cross": lambda x, y: np.minimum(abs(x), abs(y)) <= 0.32,
    "diamond": lambda x, y: abs(x) / 0.75 + abs(y) <= 1,
    "heart": lambda x, y: ((1.2 * x) ** 2 + (1.2 * y + 0.15) ** 2 - 1) ** 3 <= (1.2 * x) ** 2 * (1.2 * y + 0.15) ** 3,
    "moon": lambda x, y: (x**2 + y**2 <= 0.95) & ((x - 0.5) ** 2 + (y - 0.3) ** 2 > 0.6),
    "ring": lambda x, y: (x**2 + y**2 <= 0.95) & (x**2 + y**2 >= 0.3),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.78,
    "star": star,
    "triangle": lambda x, y: (abs(x) <= (0.9 - y) / 1.8) & (y >= -0.9),
}


def drawn(sizes: Sequence[int]) -> Sprites:
    """Draw every shape in every colour and size."""
    line = (np.arange(SIDE * OVERSAMPLING) + 0.5) / (SIDE * OVERSAMPLING) * 2 - 1
    x, y = np.meshgrid(line, -line)
    found: Sprites = {}
    for shape, inside in SHAPES.items():
        mask = Image.fromarray(inside(x, y).astype(np.uint8) * 255)
        for size in sizes:
            coverage = np.asarray(mask.resize((size, size), FILTER), np.float64) / 255
            for colour, rgb in RGB.items():
                on_white = 255 - coverage * (255 - np.array(rgb)[:, None, None])
                found[shape, colour, size] = on_white.round().astype(np.uint8)
    return found


# ------------------------------------------------------------------------------------------------ recoloured pictures


def recoloured(pictures: Mapping[str, Image.Image], sizes: Sequence[int]) -> Sprites:
    """Return pictures with transparency, by shape, in every colour and size."""
    found: Sprites = {}
    for shape, picture in pictures.items():
        rgba = squared(picture.convert("RGBA"))
        opacity = np.asarray(rgba.getchannel("A"), np.float64)[..., None] / 255
        rgb, share, lightness = shades(rgba)
        for colour, target in RGB.items():
            painted = share * shaded(np.array(target) / 255, lightness) + (1 - share) * rgb
            on_white = Image.fromarray(((1 - opacity * (1 - painted)) * 255).round().astype(np.uint8))
            for size in sizes:
                small = np.asarray(on_white.resize((size, size), FILTER))
                found[shape, colour, size] = np.ascontiguousarray(small.transpose(2, 0, 1))
    return found


def shades(picture: Image.Image) -> tuple[Plane, Plane, Plane]:
    """Find the shades of the main colour of an RGBA picture, the most frequent one that has a hue.

    Returns (rgb, share, lightness), (H, W, 3 or 1) each. rgb: in 0 .. 1. share: how much of a pixel is a shade: all
    where its hue is within 25 degrees of the main colour's, nothing beyond 45 or where it is grey. lightness: 0 where
    it is black, 1 where it is as light as the main colour, 2 where it is white.
    """
    rgb = np.asarray(picture.convert("RGB"), np.float64) / 255
    hue, saturation, _ = np.moveaxis(np.asarray(picture.convert("RGB").convert("HSV"), np.float64) / 255, -1, 0)
    counted = (np.asarray(picture.getchannel("A")) > 230) & (np.ptp(rgb, axis=-1) > 0.25)
    colours, counts = np.unique(rgb[counted], axis=0, return_counts=True)
    main = colours[counts.argmax()]
    main_hue = hue[(rgb == main).all(-1)][0]
    away = abs((hue - main_hue + 0.5) % 1 - 0.5) * 360  # degrees around the circle of hues
    share = np.clip((45 - away) / 20, 0, 1) * np.clip((saturation - 0.1) / 0.15, 0, 1)
    luma, main_luma = rgb @ LUMA, main @ LUMA
    lightness = np.where(luma < main_luma, luma / main_luma, 1 + (luma - main_luma) / (1 - main_luma))
    return rgb, share[..., None], lightness[..., None]


def shaded(colour: np.ndarray, lightness: Plane) -> Plane:
    """Return shades of a colour (3,), (H, W, 3), as light as `shades` says: black 0, itself 1, white 2."""
    return colour * np.minimum(lightness, 1) + (1 - colour) * np.maximum(lightness - 1, 0)


def squared(picture: Image.Image) -> Image.Image:
    """Cut off the transparent border, and centre the rest in a square."""
    picture = picture.crop(picture.getchannel("A").getbbox())
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
