"""The classic GAN of convolutions, for comparison (Radford et al. 2016): batch normalisation, no residuals, a tanh at
the end.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from gengen.config.model import DCGANConfig
from gengen.models.gan import GAN, SLOPE, projected
from gengen.models.layers import ClassEmbedding


def initialise(network: nn.Module) -> None:
    """Draw weights of N(0, .02^2), as in the paper's section 4."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)


class Generator(nn.Module):
    """z and a vector of its class to 4 x 4, then transposed convolutions, each to twice the resolution."""

    def __init__(self, config: DCGANConfig):
        super().__init__()
        c, latent_size = config.shape(), config.latent_size
        self.classes = ClassEmbedding(len(config.classes), latent_size)
        widths = c.widths[::-1]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(2 * latent_size, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, width in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(c.widths[0], c.channels, 4, 2, 1), nn.Tanh())
        initialise(self)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:  # (B, Z), (B,) -> (B, C, R, R) in [-1, 1]
        return self.layers(torch.cat([z, self.classes(labels)], dim=1)[:, :, None, None]).float()


class Discriminator(nn.Module):
    """Strided convolutions to 4 x 4 and one over all of it; the class by projection, of 2018."""

    def __init__(self, config: DCGANConfig):
        super().__init__()
        c = config.shape()
        layers: list[nn.Module] = [nn.Conv2d(c.channels, c.widths[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for before, width in pairwise(c.widths):
            layers += [nn.Conv2d(before, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers)
        self.logit = nn.Linear(16 * c.widths[-1], 1)
        self.classes = ClassEmbedding(len(config.classes), 16 * c.widths[-1])
        initialise(self)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # (B, C, R, R), (B,) -> (B,)
        return projected(self.layers(images).flatten(1), self.logit, self.classes, labels)


class DCGAN(GAN):
    networks = (Generator, Discriminator)
