"""Random draws of sample i as a function of (seed, i) alone."""

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, index: int) -> np.random.Generator:
    """The generator of one sample. numpy's, since torch's CPU generator keeps only 32 bits of a seed: among 65,000 samples,
    two would agree."""
    return np.random.default_rng(int.from_bytes(sha256(f"{seed}/{index}".encode()).digest()))


class Noise:
    """N(0, 1) for some samples, each from a generator of its own: what is drawn beside a sample does not change it."""

    def __init__(self, seed: int, samples: Iterable[int], shape: tuple[int, ...], device: torch.device | str = "cpu"):
        self.shape, self.device = shape, device
        self.streams = [stream(seed, index) for index in samples]

    def __call__(self) -> Tensor:
        """The next draw, (samples, *shape) fp32."""
        drawn = np.stack([stream.standard_normal(self.shape, dtype=np.float32) for stream in self.streams])
        return torch.from_numpy(drawn).to(self.device)
