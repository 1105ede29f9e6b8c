"""The config of autoencoders: VAE, the first stage of latent diffusion, VQ-VAE."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from gengen.config.commands import AutoencoderSampling
from gengen.config.fields import choice, option, positive
from gengen.config.model.base import (
    Facts,
    ImageModelConfig,
    ImageShape,
    SizeTable,
    check_levels,
    shape_of,
    size_table,
)
from gengen.errors import UserError
from gengen.registry import register_model

AUTOENCODER_SIZES = size_table(
    "widths blocks patch latent_channels",
    nano=([16, 32], 1, 2, 4),
    tiny=([32, 64], 1, 2, 4),
    small=([64, 128, 128], 1, 1, 4),
    base=([128, 256, 512, 512], 2, 1, 4),
)


@dataclass(frozen=True)
class AutoencoderShape(ImageShape):
    widths: list[int]
    blocks: int
    patch: int
    latent_channels: int


_register_autoencoder = partial(
    register_model,
    kind="image",
    model="gengen.models.autoencoder:Autoencoder",
    objectives={"pretrain": "gengen.training.objectives.autoencoder:Autoencoding"},
    generator="gengen.generation.image.autoencoder:AutoencoderGenerator",
    sampling=AutoencoderSampling,
)


@_register_autoencoder("vae")
@_register_autoencoder("autoencoder_kl")
@_register_autoencoder("vqvae")
@dataclass
class AutoencoderConfig(ImageModelConfig):
    """An encoder to latents and a decoder back, convolutional. The families differ in nothing but these settings."""

    size: str = choice("tiny", list(AUTOENCODER_SIZES), "row of the size table that fills every null below")
    widths: list[int] | None = option(
        None, "channels of each level, finest first; each level after the first halves the resolution"
    )
    blocks: int | None = positive(None, "residual blocks a level")
    patch: int | None = positive(None, "pixels a side that enter the network as one position")
    latent_channels: int | None = positive(None, "channels of the latents")
    quantizer: str | None = choice(
        None, ["vq", "fsq"], "latents from a codebook, or each channel rounded; null = Gaussian latents"
    )
    codebook: int = positive(512, "vq: vectors in the codebook")
    commitment: float = option(
        0.25, "vq: how much the encoder is drawn to the codebook, beside the codebook to the encoder", low=0
    )
    levels: list[int] = option(
        [8, 5, 5, 5], "fsq: values each latent channel can take; their product is the number of codes"
    )
    loss: str = choice(
        "elbo", ["elbo", "l1_l2"], "elbo: nats of 8-bit values; l1_l2: |error| + error^2; summed over pixels"
    )
    perceptual: float = option(
        0.0, "weight of the distance in EfficientNet-Lite0's features, times the number of pixels", low=0
    )
    adversarial: float = option(
        0.0, "weight of what a discriminator says of the reconstruction's patches, times the number of pixels", low=0
    )
    adversarial_from: float = option(
        0.5, "share of max_steps after which that counts, when reconstructions have settled", low=0, below=1
    )
    beta: float = option(1.0, "weight of the KL to N(0, 1), summed over latents, or of the quantizer's penalty", low=0)
    kl_warmup: float = option(0.0, "share of max_steps in which that weight rises to beta", low=0, high=1)
    free_bits: float = option(
        0.0, "nats a latent that cost nothing: an image's KL counts in a channel where it exceeds them", low=0
    )

    sizes: ClassVar[SizeTable] = AUTOENCODER_SIZES
    hidden_maps: ClassVar[str] = r"^(encoder|decoder)\.\d+\.conv_(in|out)\."  # of the residual blocks

    def shape(self) -> AutoencoderShape:
        return shape_of(self, AutoencoderShape)

    def latents(self) -> Facts:
        c = self.resolved()
        assert c.resolution and c.patch and c.widths
        return {"resolution": c.resolution // c.patch // 2 ** (len(c.widths) - 1), "channels": c.latent_channels}

    def check(self) -> None:
        c = self.resolved()
        assert c.widths is not None and c.patch
        check_levels(c.resolution, c.patch, c.widths)
        if c.quantizer == "fsq" and (len(c.levels) != c.latent_channels or min(c.levels) < 2):
            raise UserError(
                f"model.levels={c.levels} needs a number of 2 or more for each of "
                f"model.latent_channels={c.latent_channels}"
            )
        if c.quantizer and (c.loss == "elbo" or c.kl_warmup or c.free_bits):
            raise UserError(
                f"model.quantizer={c.quantizer} has no KL: take model.loss=l1_l2, and model.kl_warmup and "
                "model.free_bits at 0"
            )
        for key in ("perceptual", "adversarial"):
            if getattr(c, key) and c.loss == "elbo":
                raise UserError(f"model.{key}={getattr(c, key)} belongs to no likelihood: take model.loss=l1_l2")
