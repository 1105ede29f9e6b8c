"""Editing as pure functions: redraw a sample from part of the way (SDEdit), or part of a sample (RePaint).

They work on any path and with any sampler, on pixels and latents alike. x0: (B, ...), the sample to be edited.
is_open: bool, broadcast over it, True where it is drawn anew; what is not open is known.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from gengen.diffusion.guidance import Denoiser
from gengen.diffusion.paths import NoisePath, at_least_fp32
from gengen.diffusion.samplers import Callback, DrawNoise, Times

Sampler = Callable[[Denoiser, Tensor, Times, NoisePath, DrawNoise, Callback], Tensor]


def noised_start(x0: Tensor, eps: Tensor, times: Times, path: NoisePath, strength: float) -> Tensor:
    """Return x_t at times[0], where an edit of x0 of this strength begins (SDEdit, Meng et al. 2022): `eps` is
    N(0, 1), times are path.times(steps, strength).

    At strength 1 it is noise alone, as any sample begins: on a path that ends before alpha = 0 (EDM) too.
    """
    return path.sigma(times[0]) * eps if strength == 1 else path.add_noise(x0, eps, times[0])


def noised_again(x: Tensor, eps: Tensor, s: float, t: float, path: NoisePath) -> Tensor:
    """Return x_t drawn from q(x_t | x_s) for x_s and s < t: k x_s + sqrt(sigma_t^2 - k^2 sigma_s^2) eps, with
    k = alpha_t / alpha_s.
    """
    k = path.alpha(t) / path.alpha(s)
    return k * x + math.sqrt(max(0.0, path.sigma(t) ** 2 - (k * path.sigma(s)) ** 2)) * eps


def inpaint(
    sampler: Sampler,
    denoise: Denoiser,
    x: Tensor,
    times: Times,
    path: NoisePath,
    noise: DrawNoise,
    known_noise: Callable[[], Tensor],
    x0: Tensor,
    is_open: Tensor,
    resamples: int = 10,
    callback: Callback = None,
) -> Tensor:
    """Draw what is open of x0, given the rest, with a model that was never trained for it (RePaint, Lugmayr et al.
    2022, Alg. 1, on any path and with any sampler). Returns (B, ...), x0 itself where it is known.

    In each of `resamples` rounds of a step [t, s] the known part is put in as it is at t; the sampler takes the step,
    which fits the open part to it; and noise leads back to t. One round is plain replacement: what is known then
    hardly reaches what is open, however many steps there are. A sampler that remembers steps (DPM-Solver++(2M)) takes
    first order ones, as it is called with two times. Costs `resamples` times the sampler's calls of the denoiser.

    x: (B, ...) at times[0]. noise: draws what the sampler asks for; known_noise: draws (B, ...) of N(0, 1), for the
    known part and for the way back, so that what the sampler draws is what it would draw without a mask.
    """

    def last_round(i: int) -> Callback:
        if callback is None:
            return None
        return lambda _, t, x, estimate: callback(i, t, x, torch.where(is_open, estimate, x0.to(estimate.dtype)))

    for i, (t, s) in enumerate(pairwise(times)):
        for later in reversed(range(resamples)):
            x = torch.where(is_open, x, path.add_noise(x0, known_noise(), t).to(x.dtype))
            x = sampler(denoise, x, [t, s], path, noise, None if later else last_round(i))
            if later:
                x = noised_again(x, known_noise(), s, t, path)
    return torch.where(is_open, x, at_least_fp32(x0).to(x.dtype))  # the truth, not the sampler's estimate of it


def windows(is_open: Tensor, side: int, stride: int) -> list[tuple[int, int]]:
    """Return (top, left) of squares that cover what is open of a canvas (H, W), in the order to draw them: next always
    the one with the least left to draw, so that each sees as much as can be seen.

    They lie `stride` <= side apart, and the last of a row or column ends with the canvas.
    """
    height, width = is_open.shape
    corners = [(top, left) for top in starts(height, side, stride) for left in starts(width, side, stride)]
    remaining, order = is_open.clone(), []

    def left_to_draw(corner: tuple[int, int]) -> int:
        return int(within(remaining, corner, side).sum())

    while waiting := [corner for corner in corners if left_to_draw(corner)]:
        order.append(corner := min(waiting, key=left_to_draw))
        within(remaining, corner, side).fill_(False)
    return order


def starts(length: int, side: int, stride: int) -> list[int]:
    """Return where windows of `side` begin that cover `length` >= side."""
    return [*range(0, length - side, stride), length - side]


def within(canvas: Tensor, corner: tuple[int, int], side: int) -> Tensor:
    """Return the view of a canvas (..., H, W) in the window at (top, left): (..., side, side)."""
    top, left = corner
    return canvas[..., top : top + side, left : left + side]


def outpaint(
    canvas: Tensor, is_open: Tensor, side: int, stride: int, redraw: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Return a canvas (B, C, H, W), larger than the squares a model draws, with what is open of it (H, W) drawn in
    overlapping windows, each inpainted given the last.

    redraw(i, part, is_open): draws the open part (side, side) of part number i, (B, C, side, side).
    """
    canvas, remaining = canvas.clone(), is_open.clone()
    for i, corner in enumerate(windows(is_open, side, stride)):
        part, still_open = within(canvas, corner, side), within(remaining, corner, side)
        part.copy_(torch.where(still_open, redraw(i, part.clone(), still_open.clone()), part))
        still_open.fill_(False)
    return canvas
