"""Convolutional autoencoder: images to latents and back, by a Gaussian posterior (VAE) or a quantizer (VQ-VAE)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.model import AutoencoderConfig
from gengen.models.layers import GroupNorm, zeroed
from gengen.models.quantizers import FiniteScalarQuantizer, VectorQuantizer

SPEED = 10.0  # factor of log_scale: Adam moves it by about the learning rate a step, which is too slow by itself


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), at the beginning x."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm_in, self.conv_in = GroupNorm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out, self.conv_out = GroupNorm(channels), zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        h = self.conv_in(F.silu(self.norm_in(x)))
        return x + self.conv_out(F.silu(self.norm_out(h)))


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Double the resolution: repeat each position, then convolve, which leaves no checkerboard (Odena et al. 2016)."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 3, padding=1))


def head(inputs: int, outputs: int) -> list[nn.Module]:
    return [GroupNorm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)]


def encoder(pixels: int, widths: list[int], blocks: int, outputs: int) -> nn.Sequential:
    """(B, pixels, H, W) -> (B, outputs, h, w): blocks at each level, a strided convolution between levels."""
    layers: list[nn.Module] = [nn.Conv2d(pixels, widths[0], 3, padding=1)]
    for level, width in enumerate(widths):
        if level:
            layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
        layers += [ResidualBlock(width) for _ in range(blocks)]
    return nn.Sequential(*layers, *head(widths[-1], outputs))


def decoder(latents: int, widths: list[int], blocks: int, pixels: int) -> nn.Sequential:
    """(B, latents, h, w) -> (B, pixels, H, W): the encoder's mirror image."""
    layers: list[nn.Module] = [nn.Conv2d(latents, widths[-1], 3, padding=1)]
    for level in reversed(range(len(widths))):
        layers += [ResidualBlock(widths[level]) for _ in range(blocks)]
        if level:
            layers.append(up(widths[level], widths[level - 1]))
    return nn.Sequential(*layers, *head(widths[0], pixels))


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, by coordinate: (mean^2 + exp(logvar) - 1 - logvar) / 2."""
    return (mean.square() + logvar.exp() - 1 - logvar) / 2


class Gaussian(nn.Module):
    """A posterior with its own mean and variance for each latent (Kingma & Welling 2014). Always fp32, the variance
    within exp(-30) and exp(20), as latent diffusion has it: one latent that runs away does not drown the step."""

    codes = 0

    def __init__(self, channels: int):
        super().__init__()
        self.inputs = 2 * channels

    def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2 Z, h, w) -> mean and log-variance, (B, Z, h, w) each."""
        mean, logvar = x.float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 2 Z, h, w) -> mean + std * noise, or the mean without noise, and its KL to N(0, 1); both (B, Z, h, w)
        fp32.
        """
        mean, logvar = self.parameters_of(x)
        latents = mean if noise is None else mean + (logvar / 2).exp() * noise
        return latents, kl_to_standard_normal(mean, logvar)


class Autoencoder(nn.Module):
    """Images in [-1, 1] to latents and back. The statistics of the latents over a data set, where they were taken, are
    kept with the weights: diffusion works on (latents - latent_mean) / latent_std."""

    latent_mean: Tensor
    latent_std: Tensor
    bottleneck: Gaussian | VectorQuantizer | FiniteScalarQuantizer

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config.resolved()
        c = self.config.shape()
        side = c.resolution // c.patch // 2 ** (len(c.widths) - 1)
        self.patch, self.latent_shape = c.patch, (c.latent_channels, side, side)
        pixels = c.channels * c.patch**2
        if config.quantizer == "vq":
            self.bottleneck = VectorQuantizer(config.codebook, c.latent_channels, config.commitment)
        elif config.quantizer == "fsq":
            self.bottleneck = FiniteScalarQuantizer(config.levels)
        else:
            self.bottleneck = Gaussian(c.latent_channels)
        self.encoder = encoder(pixels, c.widths, c.blocks, self.bottleneck.inputs)
        self.decoder = decoder(c.latent_channels, c.widths, c.blocks, pixels)
        self.log_scale = nn.Parameter(torch.zeros(())) if config.loss == "elbo" else None
        self.register_buffer("latent_mean", torch.zeros(c.latent_channels))
        self.register_buffer("latent_std", torch.ones(c.latent_channels))

    @property
    def scale(self) -> Tensor:
        """Return the scale of a pixel's likelihood around its reconstruction: learned, one for all pixels (Rybkin et
        al. 2021).
        """
        assert self.log_scale is not None
        return (SPEED * self.log_scale).exp()

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) in [-1, 1], noise (B, Z, h, w) of N(0, 1), without it the posterior's mean ->
        reconstructions (B, C, H, W), and what the bottleneck costs by latent, (B, Z, h, w): KL in nats, or a
        quantizer's penalty. Both fp32."""
        latents, cost = self.bottleneck(self.hidden(images), noise)
        return self.decode(latents), cost

    def hidden(self, images: Tensor) -> Tensor:
        """Return what the bottleneck reads."""
        return self.encoder(F.pixel_unshuffle(images, self.patch).contiguous(memory_format=torch.channels_last))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, (B, Z, h, w) fp32 each; a quantizer's latents are certain."""
        return self.posterior(self.hidden(images))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from what the bottleneck reads."""
        if isinstance(self.bottleneck, Gaussian):
            mean, logvar = self.bottleneck.parameters_of(x)
            return mean, (logvar / 2).exp()
        latents, _ = self.bottleneck(x)
        return latents, torch.zeros_like(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, C, H, W), fp32; what lies beyond [-1, 1] is that end of it."""
        x = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        return F.pixel_shuffle(x.float(), self.patch)

    @property
    def quantizer(self) -> VectorQuantizer | FiniteScalarQuantizer:
        assert not isinstance(self.bottleneck, Gaussian), "Gaussian latents have no codes"
        return self.bottleneck

    def codes(self, images: Tensor) -> Tensor:
        """A quantizer's codes, (B, h, w) int64, each below bottleneck.codes: an image as tokens."""
        return self.quantizer.encode(self.hidden(images))

    def whitened(self, latents: Tensor) -> Tensor:
        """Latents of mean 0 and variance 1 in every channel, over the data whose statistics are held."""
        return (latents - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def unwhitened(self, latents: Tensor) -> Tensor:
        """The inverse of `whitened`."""
        return latents * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
