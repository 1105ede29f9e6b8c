"""DiffAugment (Zhao et al. 2020): both real and generated images are changed at random before the discriminator sees
them, by maps that can be differentiated, so that it cannot learn a small training set by heart and the generator
learns no augmentation.

Each is a function (images (B, C, H, W), u (B, DRAWS) uniform in [0, 1)) -> images, linear in the images but for
brightness.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DRAWS = 7  # uniform numbers an image, of which each augmentation reads its own


def color(x: Tensor, u: Tensor) -> Tensor:
    """Move brightness by up to .5 of a range from -1 to 1, multiply saturation by 0 to 2 and contrast by .5 to 1.5."""
    brightness, saturation, contrast = (u[:, i, None, None, None] for i in range(3))
    x = x + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * 2 * saturation
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def shifts(u: Tensor, side: int) -> Tensor:
    """Return boolean matrices (B, side, side) that move a column by up to an eighth of its length and fill with 0."""
    reach = side // 8
    offset = (u * (2 * reach + 1)).floor() - reach
    places = torch.arange(side, device=u.device)
    return places[:, None] + offset[:, None, None] == places


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Move by up to an eighth of each side. By two matrix products: a gather would scatter in the backward pass."""
    rows, columns = shifts(u[:, 3], x.shape[2]).to(x.dtype), shifts(u[:, 4], x.shape[3]).to(x.dtype)
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Blank out a rectangle of half the width and height, at a place that may reach over the edge."""

    def inside(u: Tensor, side: int) -> Tensor:  # (B, side)
        start = (u * (side + 1)).floor() - side // 4  # side + 1 places of the middle
        places = torch.arange(side, device=u.device)
        return (places >= start[:, None]) & (places < start[:, None] + side // 2)

    hole = inside(u[:, 5], x.shape[2])[:, None, :, None] & inside(u[:, 6], x.shape[3])[:, None, None, :]
    return x * ~hole


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}


def augment(x: Tensor, u: Tensor, names: Sequence[str]) -> Tensor:
    """Apply the named augmentations in turn. x: (B, C, H, W) in [-1, 1]; u: (B, DRAWS)."""
    for name in names:
        x = AUGMENTATIONS[name](x, u)
    return x
