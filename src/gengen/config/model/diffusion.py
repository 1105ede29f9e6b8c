"""The configs of diffusion: the process, which all networks share, and each network."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from gengen.config.commands import DiffusionSampling
from gengen.config.fields import choice, option, positive, run_of
from gengen.config.model.base import ImageModelConfig, SizeTable, check_levels, size_table
from gengen.errors import UserError
from gengen.registry import register_model

UNET_SIZES = size_table(
    "widths blocks attention patch",
    nano=([32], 1, [0], 4),
    micro=([48, 96], 1, [1], 4),
    tiny=([64, 128], 1, [1], 4),
    mini=([64, 128, 128], 2, [1, 2], 1),
    small=([128, 256, 256, 256], 2, [1], 1),
    base=([192, 384, 576, 768], 2, [1, 2, 3], 1),
)


_register_diffusion = partial(
    register_model,
    kind="image",
    model="gengen.models.unet:UNet",
    objectives={"pretrain": "gengen.training.objectives.diffusion:Diffusion"},
    generator="gengen.generation.image.diffusion:ImageGenerator",
    sampling=DiffusionSampling,
)


@_register_diffusion("unet")
@dataclass
class UNetConfig(ImageModelConfig):
    """Diffusion on pixels: a UNet that is given the noise level and the class."""

    name: str = option("unet", "registered name of the model family")
    size: str = choice("tiny", list(UNET_SIZES), "row of the size table that fills every null below")
    widths: list[int] | None = option(None, "channels of each level, finest first; each level halves the resolution")
    blocks: int | None = positive(None, "residual blocks a level on the way down; one more on the way up")
    attention: list[int] | None = option(None, "levels with self-attention, counted from 0, the finest")
    patch: int | None = positive(None, "pixels a side that enter the network as one position")
    head_size: int = positive(32, "channels of an attention head")
    dropout: float = option(0.0, "dropped share inside each residual block", low=0, below=1)
    drop_condition: float = option(0.1, "share of images trained without their class, drawn per image", low=0, below=1)
    path: str = choice("flow", ["flow", "cosine", "edm"], "how an image turns into noise")
    shift: float = positive(1.0, "flow: above 1, more of the time is spent at high noise (for large images)")
    prediction: str = choice("velocity", ["velocity", "v", "x0", "eps", "edm"], "what the network is trained to say")
    times: str = choice(
        "logit_normal", ["logit_normal", "uniform", "lognormal"], "which noise levels it is trained on"
    )
    weighting: str = choice("none", ["none", "min_snr", "edm"], "how much each noise level counts")
    sigma_data: float | None = positive(
        None, "root mean square of the data; null = as measured on the training images"
    )
    activation_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, a third more work"
    )

    sizes: ClassVar[SizeTable] = UNET_SIZES
    hidden_maps: ClassVar[str] = r"^(down|middle|up)\."
    measured: ClassVar[tuple[str, ...]] = ("sigma_data",)

    def check(self) -> None:
        c = self.resolved()
        assert c.widths and c.attention is not None and c.patch
        if bad := [level for level in c.attention if not 0 <= level < len(c.widths)]:
            raise UserError(
                f"model.attention={c.attention} names level {bad[0]}; model.widths={c.widths} has levels 0 to "
                f"{len(c.widths) - 1}"
            )
        if bad := [width for width in c.widths if width < 1 or width % c.head_size]:
            raise UserError(f"model.widths={c.widths}: {bad[0]} is no multiple of model.head_size={c.head_size}")
        check_levels(c.resolution, c.patch, c.widths)
        if c.prediction == "eps" and c.path != "edm":
            raise UserError(
                f"model.prediction=eps divides by zero where model.path={c.path} is pure noise: take velocity, v or x0"
            )


LDM_SIZES = {name: row | {"patch": 1} for name, row in UNET_SIZES.items()}


@_register_diffusion("ldm", encode="gengen.generation.image.codec:encode")
@dataclass
class LDMConfig(UNetConfig):
    """Latent diffusion: the same UNet on the whitened latents of an autoencoder that was trained before."""

    name: str = option("ldm", "registered name of the model family")
    codec: str | None = run_of("a run of an autoencoder, of which what sampling needs is copied into the new run")

    sizes: ClassVar[SizeTable] = LDM_SIZES
