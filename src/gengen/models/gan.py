"""Generator and discriminator of a GAN: residual, without normalisation (Huang et al. 2024, sec. 4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gengen.config.model import AdversarialConfig, GANConfig
from gengen.models.layers import ClassEmbedding

SLOPE = 0.2  # of leaky ReLUs, below 0


def activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def conv(inputs: int, outputs: int, size: int, gain: float = 1.0) -> nn.Conv2d:
    """Return a convolution that keeps the size of an activation, and its variance (He et al. 2015), times gain^2."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / (1 + SLOPE**2) / (inputs * size**2)))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), at the beginning x: without a normalisation, what keeps a deep network in range
    (Zhang et al. 2019).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv_in, self.conv_out = conv(channels, channels, 3), conv(channels, channels, 3, gain=0)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        return x + self.conv_out(activation(self.conv_in(activation(x))))


class Generator(nn.Module):
    """From z ~ N(0, 1) and a class to an image: a linear map to the coarsest level, then blocks, twice the resolution
    each level.
    """

    def __init__(self, config: GANConfig):
        super().__init__()
        c = config.shape()
        self.patch, self.widths = c.patch, c.widths
        self.side = c.resolution // c.patch // 2 ** (len(c.widths) - 1)
        self.classes = ClassEmbedding(len(config.classes), config.latent_size)
        self.first = nn.Linear(2 * config.latent_size, c.widths[-1] * self.side**2)
        self.levels = nn.ModuleList()
        for level in reversed(range(len(c.widths))):
            blocks: list[nn.Module] = [ResidualBlock(c.widths[level]) for _ in range(c.blocks)]
            if level:
                blocks.append(nn.Conv2d(c.widths[level], c.widths[level - 1], 1))
            self.levels.append(nn.Sequential(*blocks))
        self.last = conv(c.widths[0], c.channels * c.patch**2, 3, gain=0.5)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z: (B, Z); labels: (B,), negative = none -> (B, C, R, R) fp32, in [-1, 1]."""
        x = self.first(torch.cat([z, self.classes(labels)], dim=1)).unflatten(
            1, (self.widths[-1], self.side, self.side)
        )
        x = x.contiguous(memory_format=torch.channels_last)
        for number, level in enumerate(self.levels):
            if number:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = level(x)
        return F.pixel_shuffle(self.last(activation(x)).float(), self.patch).tanh()


class Trunk(nn.Module):
    """The generator's mirror image: (B, C, R, R) -> features of the coarsest level, activated, (B, D, h, w)."""

    def __init__(self, config: GANConfig):
        super().__init__()
        c = config.shape()
        self.patch, self.width = c.patch, c.widths[-1]
        self.side = c.resolution // c.patch // 2 ** (len(c.widths) - 1)
        self.first = nn.Conv2d(c.channels * c.patch**2, c.widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for level, width in enumerate(c.widths):
            blocks: list[nn.Module] = [nn.Conv2d(c.widths[level - 1], width, 1)] if level else []
            self.levels.append(nn.Sequential(*blocks, *(ResidualBlock(width) for _ in range(c.blocks))))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(F.pixel_unshuffle(images, self.patch).contiguous(memory_format=torch.channels_last))
        for number, level in enumerate(self.levels):
            x = level(F.avg_pool2d(x, 2) if number else x)
        return activation(x)


class Discriminator(nn.Module):
    """A logit for an image and its class, on which its features are projected (Miyato & Koyama 2018, eq. 3)."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.trunk = Trunk(config)
        self.last = nn.Linear(self.trunk.width * self.trunk.side**2, self.trunk.width)
        self.logit = nn.Linear(self.trunk.width, 1)
        self.classes = ClassEmbedding(len(config.classes), self.trunk.width)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """images: (B, C, R, R); labels: (B,), negative = none -> (B,) fp32."""
        return projected(activation(self.last(self.trunk(images).flatten(1))), self.logit, self.classes, labels)


class PatchDiscriminator(nn.Module):
    """A logit for each position of the coarsest level, which sees a patch of the image (Isola et al. 2017)."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.trunk = Trunk(config)
        self.logits = nn.Conv2d(self.trunk.width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, R, R) -> (B, h w), fp32
        return self.logits(self.trunk(images)).flatten(1).float()


def projected(features: Tensor, logit: nn.Linear, classes: ClassEmbedding, labels: Tensor) -> Tensor:
    """Return a logit (B,) fp32 from features (B, D) and labels (B,): a linear map plus the product with the class's
    vector.
    """
    product = (features.float() * classes(labels)).sum(1) / math.sqrt(features.shape[1])
    return logit(features).float()[:, 0] + product


class GAN(nn.Module):
    """The two networks. The generator is what is sampled."""

    networks: tuple[type[nn.Module], type[nn.Module]] = (Generator, Discriminator)

    def __init__(self, config: AdversarialConfig):
        super().__init__()
        self.config = config.resolved()
        self.generator, self.discriminator = (network(self.config) for network in self.networks)
        if config.spectral_norm:
            apply_spectral_norm(self.discriminator)


def apply_spectral_norm(network: nn.Module) -> None:
    """Normalise every convolution, linear map and class embedding by its largest singular value (Miyato et al. 2018).

    Each forward pass in training takes the power iteration a step further, so that what a step computes depends a
    little on how its batch was cut.
    """
    for layer in list(network.modules()):
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding)):
            nn.init.kaiming_normal_(layer.weight)  # of which only the direction counts, and zeros have none
            spectral_norm(layer)
