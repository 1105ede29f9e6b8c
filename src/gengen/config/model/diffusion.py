"""The configs of diffusion: the process, which is every network's; images and latents of images; each network."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

from gengen.config.commands import DiffusionSampling
from gengen.config.fields import choice, option, positive, run_of
from gengen.config.model.base import (
    ImageModelConfig,
    ImageShape,
    ModelConfig,
    SizeTable,
    check_levels,
    shape_of,
    size_table,
)
from gengen.errors import UserError
from gengen.registry import register_model

START, PADDING = 0, -1
"""A caption is a row of tokens: START, its words, and PADDING in the slots behind. START alone is the empty one."""


@dataclass
class DiffusionProcess(ModelConfig):
    """How data turn into noise and what a network learns of it, whatever the network and the modality.

    A modality adds its shape (`sample_shape`), a network its dimensions.
    """

    classes: list[str] = option([], "names of the classes, in the order of their labels; none = unlabelled")
    path: str = choice("flow", ["flow", "cosine", "edm"], "how a sample turns into noise")
    shift: float | None = positive(
        None,
        "flow: above 1, more of the time is spent at high noise (for large images); null = 3 for a model that reads "
        "captions, which say most there, else 1",
    )
    prediction: str = choice("velocity", ["velocity", "v", "x0", "eps", "edm"], "what the network is trained to say")
    times: str = choice(
        "logit_normal", ["logit_normal", "uniform", "lognormal"], "which noise levels it is trained on"
    )
    weighting: str = choice("none", ["none", "min_snr", "edm"], "how much each noise level counts")
    sigma_data: float | None = positive(
        None, "root mean square of the data; null = as measured on the training samples"
    )
    drop_condition: float = option(
        0.1, "share of samples trained without their class or their caption, drawn each", low=0, below=1
    )
    text: bool = option(False, "condition on captions")
    text_encoder: str = choice(
        "own",
        ["own", "minilm"],
        "what reads them: a transformer trained with the network, or a frozen one",
    )
    text_width: int = positive(128, "features of a token of a caption")
    text_layers: int = positive(2, "transformer blocks of the own text encoder")
    text_heads: int = positive(4, "attention heads of the own text encoder")
    text_context: int = option(32, "tokens of a caption at most, the start token included", low=2)
    text_vocab_size: int | None = positive(None, "tokens of the captions' tokenizer; a run records what its data has")
    text_feature_width: int | None = positive(
        None, "features of a token that the frozen text encoder says; a run records what its encoder has"
    )

    measured: ClassVar[tuple[str, ...]] = ("sigma_data",)

    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample as the network sees it, without the batch: (C, R, R) for images."""
        raise NotImplementedError

    @property
    def time_shift(self) -> float:
        """Return the shift of a flow's time; with captions 3 measured best (docs/results.md)."""
        return self.shift or (3.0 if self.text else 1.0)

    def check(self) -> None:
        if self.text_encoder != "own" and not self.text:
            raise UserError(f"model.text_encoder={self.text_encoder} reads captions: add model.text=true")
        if self.text_width % self.text_heads:
            raise UserError(f"model.text_width={self.text_width} is no multiple of model.text_heads={self.text_heads}")
        if self.prediction == "eps" and self.path != "edm":
            raise UserError(
                f"model.prediction=eps divides by zero where model.path={self.path} is pure noise: take velocity, v "
                "or x0"
            )


@dataclass
class DiffusionConfig(ImageModelConfig, DiffusionProcess):
    """Diffusion of images, or of latents of images where there is a field `codec` declared by `run_of`."""

    inpaint: bool = option(False, "train for inpainting: a mask and what is known of the image are inputs, too")

    @classmethod
    def needs_codec(cls) -> bool:
        """Return whether the model is trained on, and draws, latents of another run's autoencoder."""
        return any(f.name == "codec" and f.metadata.get("run") for f in fields(cls))

    def sample_shape(self) -> tuple[int, ...]:
        shape = shape_of(self, ImageShape)
        return shape.channels, shape.resolution, shape.resolution

    def input_channels(self) -> int:
        """Return the channels that a network reads: those of x_t, and of what is known where it is for inpainting."""
        channels = shape_of(self, ImageShape).channels
        return 2 * channels + 1 if self.inpaint else channels


CODEC = "a run of an autoencoder, of which what sampling needs is copied into the new run"
Config = TypeVar("Config", bound=type[DiffusionConfig])


def register_diffusion(name: str, *, model: str) -> Callable[[Config], Config]:
    """Register a network for diffusion of images, or of their latents: its class as "module:Class", which is given
    the config and is a `gengen.models.diffusion_network.DiffusionNetwork`. Objective, generator and codec are
    diffusion's.
    """

    def register(config: Config) -> Config:
        register_model(
            name,
            kind="image",
            model=model,
            objectives={"pretrain": "gengen.training.objectives.diffusion:Diffusion"},
            generator="gengen.generation.image.diffusion:ImageGenerator",
            sampling=DiffusionSampling,
            encode="gengen.generation.image.encode:encode",
        )(config)
        return config

    return register


UNET_SIZES = size_table(
    "widths blocks attention patch",
    nano=([32], 1, [0], 4),
    micro=([48, 96], 1, [1], 4),
    tiny=([64, 128], 1, [1], 4),
    mini=([64, 128, 128], 2, [1, 2], 1),
    small=([128, 256, 256, 256], 2, [1], 1),
    base=([192, 384, 576, 768], 2, [1, 2, 3], 1),
)


@dataclass(frozen=True)
class UNetShape(ImageShape):
    widths: list[int]
    blocks: int
    attention: list[int]
    patch: int


@register_diffusion("unet", model="gengen.models.unet:UNet")
@dataclass
class UNetConfig(DiffusionConfig):
    """Diffusion on pixels by a UNet."""

    name: str = option("unet", "registered name of the model family")
    size: str = choice("tiny", list(UNET_SIZES), "row of the size table that fills every null below")
    widths: list[int] | None = option(None, "channels of each level, finest first; each level halves the resolution")
    blocks: int | None = positive(None, "residual blocks a level on the way down; one more on the way up")
    attention: list[int] | None = option(None, "levels with self-attention, counted from 0, the finest")
    text_attention: list[int] | None = option(
        None, "model.text: levels that read the caption by cross-attention; null = those with self-attention"
    )
    patch: int | None = positive(None, "pixels a side that enter the network as one position")
    head_size: int = positive(32, "channels of an attention head")
    dropout: float = option(0.0, "dropped share inside each residual block", low=0, below=1)
    activation_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, a third more work"
    )

    sizes: ClassVar[SizeTable] = UNET_SIZES
    hidden_maps: ClassVar[str] = r"^(down|middle|up|text\.encoder\.blocks)\."

    def shape(self) -> UNetShape:
        return shape_of(self, UNetShape)

    def check(self) -> None:
        super().check()
        c = self.resolved()
        assert c.widths and c.attention is not None and c.patch
        for key, levels in {"attention": c.attention, "text_attention": c.text_attention or []}.items():
            if bad := [level for level in levels if not 0 <= level < len(c.widths)]:
                raise UserError(
                    f"model.{key}={levels} names level {bad[0]}; model.widths={c.widths} has levels 0 to "
                    f"{len(c.widths) - 1}"
                )
        attends = {*c.attention, *(c.text_attention or []), len(c.widths) - 1}  # the last: the middle does
        if bad := [w for level, w in enumerate(c.widths) if w < 1 or (level in attends and w % c.head_size)]:
            raise UserError(f"model.widths={c.widths}: {bad[0]} is no multiple of model.head_size={c.head_size}")
        check_levels(c.resolution, c.patch, c.widths)


LDM_SIZES = {name: row | {"patch": 1} for name, row in UNET_SIZES.items()}


@register_diffusion("ldm", model="gengen.models.unet:UNet")
@dataclass
class LDMConfig(UNetConfig):
    """Latent diffusion: the same UNet on the whitened latents of an autoencoder that was trained before."""

    name: str = option("ldm", "registered name of the model family")
    codec: str | None = run_of(CODEC)

    sizes: ClassVar[SizeTable] = LDM_SIZES
