"""Latents from a finite set, one code a position: a learned codebook (VQ) or rounding each channel to a few levels
(FSQ).
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2 as |x|^2 - 2 x y + |y|^2, (N, D), (K, D) -> (N, K), in fp32: in bf16 the difference of near
    squares is noise.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True))


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Return the value of `quantized` with the gradient of x (Bengio et al. 2013)."""
    return x + (quantized - x).detach()


class VectorQuantizer(nn.Module):
    """Each position becomes the nearest vector of a codebook (van den Oord et al. 2017, eq. 3).

    The codebook is learned by gradient, not by a running mean of a batch: so the gradient of a step does not depend on
    how its batch was cut, and weights and moments are all there is to resume.
    """

    def __init__(self, codebook: int, channels: int, commitment: float):
        super().__init__()
        self.codes, self.inputs, self.commitment = codebook, channels, commitment
        self.codebook = nn.Parameter(torch.randn(codebook, channels))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) -> the nearest vectors with the gradient of x, and |sg(x) - e|^2 + commitment |x - sg(e)|^2 by
        coordinate; both (B, D, h, w) fp32. There is nothing to draw: `noise` is ignored."""
        x = x.float()
        nearest = self.lookup(self.encode(x))
        penalty = (x.detach() - nearest).square() + self.commitment * (x - nearest.detach()).square()
        return straight_through(x, nearest), penalty

    def encode(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> codes (B, h, w)."""
        rows = x.movedim(1, -1).flatten(0, 2)  # (B h w, D)
        return squared_distances(rows, self.codebook).argmin(1).view(len(x), *x.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> their vectors, (B, D, h, w)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)


class FiniteScalarQuantizer(nn.Module):
    """Each channel d is squashed to (0, L_d - 1) and rounded (Mentzer et al. 2024); its L_d values lie evenly in [-1,
    1].

    Levels are counted from 0, so that even and odd numbers of them need no case. Nothing is learned and no code can
    die.
    """

    levels: Tensor
    places: Tensor

    def __init__(self, levels: list[int]):
        super().__init__()
        self.codes, self.inputs = prod(levels), len(levels)
        top = torch.tensor(levels).view(1, -1, 1, 1)
        self.register_buffer("levels", top, persistent=False)
        self.register_buffer("places", top.cumprod(1) // top, persistent=False)  # 1, L_1, L_1 L_2, ...

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) -> rounded values with the gradient of the squashed ones, and no penalty; both (B, D, h, w)
        fp32.
        """
        position = self.squashed(x)
        latents = self.rescale(straight_through(position, position.round()))
        return latents, torch.zeros_like(latents)

    def squashed(self, x: Tensor) -> Tensor:
        return (x.float().tanh() + 1) / 2 * (self.levels - 1)

    def rescale(self, position: Tensor) -> Tensor:
        return 2 * position / (self.levels - 1) - 1

    def encode(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> codes (B, h, w): the levels as digits of a number, the first channel's the lowest."""
        return (self.squashed(x).round().long() * self.places).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> their values, (B, D, h, w)."""
        return self.rescale((codes[:, None] // self.places % self.levels).float())
