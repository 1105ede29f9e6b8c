"""The configs of GANs."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

from gengen.config.commands import GANSampling
from gengen.config.fields import choice, option, positive
from gengen.config.model.base import ImageModelConfig, ImageShape, SizeTable, check_levels, shape_of, size_table
from gengen.errors import UserError
from gengen.registry import register_model


@dataclass
class AdversarialConfig(ImageModelConfig):
    """What a GAN is trained by, whatever its networks."""

    latent_size: int = positive(64, "numbers in z, the noise that becomes an image")
    loss: str = choice(
        "relativistic",
        ["relativistic", "nonsaturating", "hinge"],
        "relativistic: which of two is real; else if each is",
    )
    spectral_norm: bool = option(
        False, "limit the discriminator's slope by the largest singular value of each of its layers"
    )
    gamma: float = option(
        0.0,
        "weight of the penalties on the discriminator's squared slope at real (R1) and generated (R2) images",
        low=0,
    )
    final_gamma: float = option(1.0, "share of gamma that is left when the burn-in ends", low=0)
    penalty_every: int = positive(1, "steps between penalties, whose weight is then as many times as large")
    augment: str = option(
        "", "DiffAugment for small sets: of color, translation and cutout those wanted, commas between them"
    )
    burn_in: float = option(
        1.0, "share of max_steps in which gamma, beta2 and the average's half-life reach their end", above=0, high=1
    )
    first_beta2: float | None = option(None, "optim.beta2 at the first step; null = it stays the same", low=0, below=1)

    def augmentations(self) -> list[str]:
        return [name.strip() for name in self.augment.split(",") if name.strip()]

    def check(self) -> None:
        known = ["color", "translation", "cutout"]
        if bad := [name for name in self.augmentations() if name not in known]:
            raise UserError(f"model.augment={self.augment}: {bad[0]!r} is none of {', '.join(known)}")


GAN_SIZES = size_table(
    "widths blocks patch",
    nano=([32, 64], 1, 4),
    tiny=([64, 128], 1, 4),
    mini=([48, 96, 192], 1, 2),
    small=([64, 128, 256, 256], 1, 1),
    base=([128, 256, 512, 512], 2, 1),
)
_register_gan = partial(
    register_model,
    kind="image",
    objectives={"pretrain": "gengen.training.objectives.gan:Adversarial"},
    generator="gengen.generation.image.gan:GANGenerator",
    sampling=GANSampling,
)


@dataclass(frozen=True)
class GANShape(ImageShape):
    widths: list[int]
    blocks: int
    patch: int


@_register_gan("gan", model="gengen.models.gan:GAN")
@dataclass
class GANConfig(AdversarialConfig):
    """Residual networks without normalisation, trained by the recipe of R3GAN."""

    name: str = option("gan", "registered name of the model family")
    size: str = choice("tiny", list(GAN_SIZES), "row of the size table that fills every null below")
    widths: list[int] | None = option(None, "channels of each level, finest first; each level halves the resolution")
    blocks: int | None = positive(None, "residual blocks a level, in either network")
    patch: int | None = positive(None, "pixels a side that are one position of the finest level")

    sizes: ClassVar[SizeTable] = GAN_SIZES

    def shape(self) -> GANShape:
        return shape_of(self, GANShape)

    def check(self) -> None:
        super().check()
        c = self.resolved()
        assert c.widths is not None and c.patch
        check_levels(c.resolution, c.patch, c.widths)


@dataclass(frozen=True)
class DCGANShape(ImageShape):
    widths: list[int]


@_register_gan("dcgan", model="gengen.models.dcgan:DCGAN")
@dataclass
class DCGANConfig(AdversarialConfig):
    """The classic, with batch normalisation and without a penalty, for comparison."""

    name: str = option("dcgan", "registered name of the model family")
    widths: list[int] | None = option(
        None, "channels from the finest level to 4 x 4; null = 64 at half the resolution, doubled each level"
    )
    loss: str = choice("nonsaturating", ["relativistic", "nonsaturating", "hinge"], "as that of model=gan")

    def shape(self) -> DCGANShape:
        return shape_of(self, DCGANShape)

    def resolved(self) -> Self:
        if self.widths is not None or self.resolution is None:
            return self
        return replace(
            self, widths=[64 * 2**level for level in range(max(1, (self.resolution // 4).bit_length() - 1))]
        )

    def check(self) -> None:
        super().check()
        c = self.resolved()
        if c.widths is not None:
            check_levels(None, 1, c.widths)
            if c.resolution is not None and c.resolution != 4 * 2 ** len(c.widths):
                raise UserError(
                    f"resolution {c.resolution} is not 4 doubled len(model.widths) = {len(c.widths)} times"
                )
        if self.gamma:
            raise UserError(
                f"model.gamma={self.gamma}: batch normalisation makes a logit depend on the whole batch, so an image "
                "has no slope of its own to penalise: take model=gan"
            )
