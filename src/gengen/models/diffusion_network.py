"""What diffusion asks of a network."""

from typing import Protocol, TypeAlias

from torch import Tensor

from gengen.config.model import DiffusionProcess
from gengen.models.text_encoder import TextFeatures

Text: TypeAlias = Tensor | TextFeatures


class DiffusionNetwork(Protocol):
    """An nn.Module that answers what was hidden in noise, built from its config alone."""

    @property
    def config(self) -> DiffusionProcess: ...

    def __call__(
        self,
        x: Tensor,
        level: Tensor,
        labels: Tensor | None = None,
        text: Text | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Return the parameterization's target, in fp32 whatever the network computes in.

        x: (B, *config.sample_shape()) fp32, noisy data scaled to a variance of about 1.
        level: (B,) fp32, a number of order one that says how noisy x is.
        labels: (B,) int64, the class of each row, NO_CLASS where it is not given; None = not given for any row.
        text: captions, as tokens (B, L) int64, as a frozen text encoder encoded these, (B, L, D'), or as the network's
        own `TextCondition` did either; None = empty ones. It is given to networks with config.text only.
        known: (B, C + 1, R, R), what is known of the sample, as `gengen.diffusion.masks.known_part` makes it: 1 where
        it is known, and the sample there, without noise, as data are; 0 where it is to be drawn. None = nothing is
        known. It is given to networks with config.inpaint only, which are of images.
        Returns (B, *config.sample_shape()).
        """
