"""Random draws of sample i as a function of (seed, i) alone."""

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, index: int, purpose: str = "") -> np.random.Generator:
    """Return the generator of one sample, another one for each purpose. It is numpy's: torch's CPU generator keeps
    only 32 bits of a seed, so that among 65,000 samples two would agree."""
    return np.random.default_rng(int.from_bytes(sha256(f"{seed}/{index}{purpose}".encode()).digest()))


class Noise:
    """Draws from N(0, 1) for some samples, each from a generator of its own: what else is drawn changes none."""

    def __init__(
        self,
        seed: int,
        samples: Iterable[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        purpose: str = "",
    ):
        self.shape, self.device = shape, device
        self.streams = [stream(seed, index, purpose) for index in samples]

    def __call__(self) -> Tensor:
        """Return the next draw, (samples, *shape) fp32."""
        drawn = np.stack([stream.standard_normal(self.shape, dtype=np.float32) for stream in self.streams])
        return torch.from_numpy(drawn).to(self.device)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return points on the great arc from a to b, (T, ...) for a, b (...) and t (T,) in [0, 1] (Shoemake 1985).

    Between draws from N(0, 1) all of them have the norm of such draws; on the straight line they would be shorter.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    weights = torch.stack([torch.sin((1 - t) * angle), torch.sin(t * angle)]) / torch.sin(angle)  # (2, T)
    return torch.einsum("kt,k...->t...", weights, torch.stack([a, b]))
