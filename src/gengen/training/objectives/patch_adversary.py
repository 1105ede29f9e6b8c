"""The adversarial part of an autoencoder's loss: a discriminator tells patches of an image from those of its
reconstruction.
"""

import torch
from torch import Tensor

from gengen.adversarial.losses import LOSSES, gradient_penalty
from gengen.config.model import AutoencoderConfig, GANConfig
from gengen.models.gan import PatchDiscriminator
from gengen.training.objectives.side_network import SideNetwork

GAMMA = 1.0  # of R1 and R2
LOSS = LOSSES["relativistic"]  # a reconstruction comes with the image it is compared with


class PatchAdversary(SideNetwork[PatchDiscriminator]):
    """A discriminator of patches (Isola et al. 2017; Esser et al. 2021, eq. 5) as deep as the autoencoder."""

    def __init__(self, c: AutoencoderConfig):
        self.c = c
        shape = GANConfig(
            resolution=c.resolution, channels=c.channels, widths=c.widths, blocks=c.blocks, patch=c.patch
        )
        super().__init__(PatchDiscriminator(shape))

    def plays(self, step: int, max_steps: int) -> bool:
        """Return whether it takes part in update number `step` (from 0)."""
        return step >= self.c.adversarial_from * max_steps

    def cost(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the autoencoder's loss, (B,), times the number of pixels, as its other terms are sums over them."""
        cost = LOSS.generator(self.network(images), self.network(reconstructions)).mean(1)
        return self.c.adversarial * images[0].numel() * cost

    def loss(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the discriminator's loss, (B,), with both penalties, in fp32."""
        with torch.autocast(images.device.type, enabled=False):
            images, reconstructions = images.requires_grad_(), reconstructions.requires_grad_()
            real, fake = self.network(images), self.network(reconstructions)
            penalties = gradient_penalty(real, images) + gradient_penalty(fake, reconstructions)
        return LOSS.discriminator(real, fake).mean(1) + GAMMA / 2 * penalties
