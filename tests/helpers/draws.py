"""The random numbers of samples, as tests compute them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gengen.generation.noise import stream


def uniforms(seed: int, indices: Sequence[int], count: int) -> Tensor:
    """Return the first numbers in [0, 1) of each sample, (n, count) fp64."""
    return torch.from_numpy(np.stack([stream(seed, index).random(count) for index in indices]))
