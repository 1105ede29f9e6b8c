"""The configs of the diffusion transformer."""

from dataclasses import dataclass
from typing import ClassVar

from gengen.config.fields import choice, option, positive, run_of
from gengen.config.model.base import ImageShape, SizeTable, shape_of, size_table
from gengen.config.model.diffusion import CODEC, DiffusionConfig, register_diffusion
from gengen.errors import UserError

DIT_SIZES = size_table(
    "layers width heads patch",
    nano=(2, 64, 2, 4),
    tiny=(4, 128, 4, 4),  # as many FLOPs an image as the UNet's tiny
    micro=(6, 192, 6, 4),
    small=(12, 384, 6, 2),
    base=(12, 768, 12, 2),
    large=(24, 1024, 16, 2),
)
LATENT_DIT_SIZES = {name: row | {"patch": row["patch"] // 4 or 2} for name, row in DIT_SIZES.items()}


@dataclass(frozen=True)
class DiTShape(ImageShape):
    layers: int
    width: int
    heads: int
    patch: int


@register_diffusion("dit", model="gengen.models.dit:DiT")
@dataclass
class DiTConfig(DiffusionConfig):
    """Diffusion on pixels by a transformer over patches."""

    name: str = option("dit", "registered name of the model family")
    size: str = choice("tiny", list(DIT_SIZES), "row of the size table that fills every null below")
    layers: int | None = positive(None, "transformer blocks")
    width: int | None = positive(None, "features of a token; a multiple of 4 and of heads")
    heads: int | None = positive(None, "attention heads")
    patch: int | None = positive(None, "pixels (or latents) a side that are one token")
    text_attention: list[int] | None = option(
        None, "model.text: blocks that read the caption by cross-attention, counted from 0; null = all"
    )
    dropout: float = option(0.0, "dropped share of each residual branch in training", low=0, below=1)
    activation_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, a third more work"
    )

    sizes: ClassVar[SizeTable] = DIT_SIZES
    hidden_maps: ClassVar[str] = r"^(text\.encoder\.)?blocks\."

    def shape(self) -> DiTShape:
        return shape_of(self, DiTShape)

    def largest_width(self) -> int | None:
        return self.resolved().width

    def check(self) -> None:
        super().check()
        c = self.resolved()
        assert c.width and c.heads and c.patch
        if c.width % c.heads or c.width % 4:
            raise UserError(f"model.width={c.width} is no multiple of model.heads={c.heads} and of 4 (positions)")
        if bad := [block for block in c.text_attention or [] if not 0 <= block < (c.layers or 0)]:
            raise UserError(
                f"model.text_attention={c.text_attention} names block {bad[0]}; there are blocks 0 to "
                f"{(c.layers or 0) - 1}"
            )
        if c.resolution and c.resolution % c.patch:
            raise UserError(
                f"resolution {c.resolution} is no multiple of model.patch={c.patch}: an image must be whole patches"
            )


@register_diffusion("latent_dit", model="gengen.models.dit:DiT")
@dataclass
class LatentDiTConfig(DiTConfig):
    """Latent diffusion: the same transformer on the whitened latents of an autoencoder that was trained before."""

    name: str = option("latent_dit", "registered name of the model family")
    codec: str | None = run_of(CODEC)

    sizes: ClassVar[SizeTable] = LATENT_DIT_SIZES
