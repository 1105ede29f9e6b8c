"""What diffusion asks of a network."""

from typing import Protocol

from torch import Tensor

from gengen.config.model import DiffusionProcess


class DiffusionNetwork(Protocol):
    """An nn.Module that answers what was hidden in noise, built from its config alone."""

    @property
    def config(self) -> DiffusionProcess: ...

    def __call__(self, x: Tensor, level: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the parameterization's target, in fp32 whatever the network computes in.

        x: (B, *config.sample_shape()) fp32, noisy data scaled to a variance of about 1.
        level: (B,) fp32, a number of order one that says how noisy x is.
        labels: (B,) int64, the class of each row, NO_CLASS where it is not given; None = not given for any row.
        Returns (B, *config.sample_shape()).
        """
