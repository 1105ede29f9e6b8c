"""Which times a model is trained at: u in (0, 1), one stratum a row, and distributions as functions of u."""

from collections.abc import Callable

import torch
from torch import Tensor

from gengen.diffusion.paths import NoisePath

GOLDEN = (5**0.5 - 1) / 2  # whose multiples, modulo 1, cover (0, 1) evenly however many there are
GRID = 2**24  # u is the middle of one of so many parts: never 0, never 1


def stratified(rows: int, generator: torch.Generator) -> Tensor:
    """Return u, (rows,) fp64 in (0, 1): one in each of `rows` equal cells, in random order.

    Each alone is uniform; together they cover (0, 1) evenly, so that a step's loss varies less (Kingma et al. 2021,
    App. I.1).
    """
    cell = torch.randperm(rows, generator=generator, device=generator.device)
    within = (torch.randint(GRID, (rows,), generator=generator, device=generator.device).double() + 0.5) / GRID
    return (cell + within) / rows


def indexed(index: Tensor) -> Tensor:
    """Return u, (N,) fp64 in (0, 1), a function of each index (N,) alone; neighbouring indices cover (0, 1) evenly.

    Not in fp32, which from index 4674 on rounds some of them to 0, where no weight and no quantile is finite.
    """
    return (((index.double() + 0.5) * GOLDEN % 1 * GRID).floor() + 0.5) / GRID


def uniform(u: Tensor, path: NoisePath) -> Tensor:
    """Return times uniform in the path's own spacing."""
    return path.time_from_quantile(u)


def logit_normal(u: Tensor, path: NoisePath, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Return times most often half way, in the path's own spacing (Esser et al. 2024, eq. 19)."""
    return path.time_from_quantile(torch.sigmoid(mean + std * torch.special.ndtri(u)))


def lognormal(u: Tensor, path: NoisePath, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Return times with ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, Table 1). It chooses the noise
    itself: no spacing, no shift.
    """
    return path.time_at(torch.exp(mean + std * torch.special.ndtri(u)))


TIME_SAMPLERS: dict[str, Callable[[Tensor, NoisePath], Tensor]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "lognormal": lognormal,
}
"""From u (B,) in (0, 1) to times (B,), in the dtype of u."""
