"""A network as a denoiser: what stands between it and a sampler."""

from collections.abc import Callable

import torch
from torch import Tensor

from gengen.diffusion.guidance import Denoiser
from gengen.diffusion.parameterizations import input_scale, to_x0
from gengen.diffusion.paths import Path, Time, lift, spread

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t of unit variance (B, ...), level (B,)) -> the parameterization's target (B, ...)."""


def network_inputs(x_t: Tensor, t: Time, path: Path, sigma_data: float) -> tuple[Tensor, Tensor]:
    """What the network is given for x_t (B, ...) at t (float or (B,)): x_t of unit variance, and level(t) (B,)."""
    scaled = lift(x_t) * input_scale(spread(t, x_t), path, sigma_data)
    level = torch.as_tensor(path.level(t), dtype=scaled.dtype, device=scaled.device)
    return scaled, level.expand(x_t.shape[0])


def denoiser(network: Network, path: Path, parameterization: str, sigma_data: float) -> Denoiser:
    """The network as a function (x_t, t) -> x_0 in fp32 (fp64 if x_t is), whatever precision it computes in itself."""

    def denoise(x: Tensor, t: float) -> Tensor:
        return to_x0(parameterization, network(*network_inputs(x, t, path, sigma_data)), x, t, path, sigma_data)

    return denoise
