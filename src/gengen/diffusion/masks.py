"""Masks that a model for inpainting is trained with, as functions of numbers in (0, 1).

A mask is bool (B, 1, R, R), True where it is open: where the sample is to be drawn, from what is known around it.
"""

import math

import torch
from torch import Tensor

STROKES = 4  # at most, in one mask
NUMBERS = 6 + 5 * STROKES  # that a mask is a function of
EVERYTHING, HALF_PLANE, BOX, SURROUNDINGS = 0.15, 0.4, 0.6, 0.75
"""Up to which number each kind goes; strokes are the rest."""


def masks(u: Tensor, side: int) -> Tensor:
    """Return masks (B, 1, side, side) for u (B, NUMBERS) in (0, 1), a mixture of five kinds.

    Everything open, so that the model still draws from nothing; half planes; boxes; all around a box; strokes.
    """
    kind = u[:, 0, None, None]
    box = boxes(u[:, 1:5], side)
    mask = torch.where(kind < EVERYTHING, True, half_planes(u[:, 1:3], side))
    mask = torch.where(kind >= HALF_PLANE, box, mask)
    mask = torch.where(kind >= BOX, ~box, mask)
    mask = torch.where(kind >= SURROUNDINGS, strokes(u[:, 5], u[:, 6:], side), mask)
    return mask[:, None]


def centres(side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (R, 1) and x (1, R) of the middle of each cell, in (0, 1)."""
    middle = (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side
    return middle[:, None], middle[None]


def half_planes(u: Tensor, side: int) -> Tensor:
    """Return what lies on one side of a line, (B, R, R), for u (B, 2): any direction, at most .35 from the centre."""
    y, x = centres(side, u)
    angle, offset = 2 * math.pi * u[:, 0, None, None], 0.7 * (u[:, 1, None, None] - 0.5)
    return (y - 0.5) * angle.sin() + (x - 0.5) * angle.cos() > offset


def boxes(u: Tensor, side: int) -> Tensor:
    """Return rectangles, (B, R, R), for u (B, 4): each side a quarter to all but a tenth of the canvas, within it."""
    height, width = (0.25 + 0.65 * u[:, i, None, None] for i in (0, 1))
    top, left = (1 - height) * u[:, 2, None, None], (1 - width) * u[:, 3, None, None]
    y, x = centres(side, u)
    return (y > top) & (y < top + height) & (x > left) & (x < left + width)


def strokes(count: Tensor, u: Tensor, side: int) -> Tensor:
    """Return straight strokes with round ends, (B, R, R): 1 to STROKES by count (B,); u (B, 5 STROKES) has the two
    ends and the thickness of each, a twentieth to an eighth to either side, and a cell at least.
    """
    y0, x0, y1, x1, thickness = u.unflatten(1, (STROKES, 5))[..., None, None].unbind(2)  # (B, STROKES, 1, 1) each
    y, x = centres(side, u)
    dy, dx = y1 - y0, x1 - x0
    along = (((y - y0) * dy + (x - x0) * dx) / (dy**2 + dx**2).clamp(min=1e-9)).clamp(0, 1)
    distance = ((y - y0 - along * dy) ** 2 + (x - x0 - along * dx) ** 2).sqrt()  # (B, STROKES, R, R)
    drawn = torch.arange(STROKES, device=u.device) <= (count * STROKES).long()[:, None]
    reach = (0.05 + 0.075 * thickness).clamp(min=0.75 / side)
    return ((distance < reach) & drawn[..., None, None]).any(1)


def known_part(x0: Tensor, is_open: Tensor) -> Tensor:
    """Return what a network for inpainting is told, (B, C + 1, R, R) in the dtype of x0: 1 where x0 (B, C, R, R) is
    known, and x0 there; 0 where it is open.
    """
    known = (~is_open).to(x0.dtype).expand(len(x0), 1, *x0.shape[2:])
    return torch.cat([known, x0 * known], dim=1)
