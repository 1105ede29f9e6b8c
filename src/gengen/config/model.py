"""Model configs, one dataclass a family. Dimensions left at null come from the family's size table."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Self

from gengen.config.commands import AutoencoderSampling, DiffusionSampling, GANSampling, TextSampling
from gengen.config.fields import choice, option, positive, run_of
from gengen.errors import UserError
from gengen.registry import register_model


@dataclass
class ModelConfig:
    """What every model family has."""

    name: str = option("", "registered name of the model family")

    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    """size name -> the dimensions it stands for."""
    hidden_maps: ClassVar[str] = ""
    """A regular expression for the names of weights that map features to features, which optim=muon is for; "" refuses
    it.
    """
    measured: ClassVar[tuple[str, ...]] = ()
    """Fields that are measured on the data where they are null."""

    def largest_width(self) -> int | None:
        """Features of the widest layer, which a recipe's learning rate depends on; None = not known before the data
        is.
        """
        return None

    def with_data(self, facts: dict[str, Any]) -> Self:
        """The config with what the data fixes of it, and with what is measured on the data where that is null."""
        given = {name for name in self.measured if getattr(self, name) is not None}
        own = {f.name for f in fields(self)} - given
        return replace(self, **{name: value for name, value in facts.items() if name in own})

    def resolved(self) -> Self:
        """The same config with every null dimension filled from the size table; explicit values win."""
        table = self.sizes.get(getattr(self, "size", ""), {})
        empty = {f.name for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **{key: value for key, value in table.items() if key in empty})

    def size_name(self) -> str:
        """The size whose dimensions these are, whatever the tokenizer and the context; empty if no size's."""

        def fits(row: dict[str, Any]) -> bool:
            return all(getattr(mine, key) == row[key] for key in row.keys() - {"vocab_size", "context"})

        mine, stated = self.resolved(), getattr(self, "size", "")
        names = sorted(self.sizes, key=lambda name: name != stated)  # of equal ones the stated
        return next((name for name in names if fits(self.sizes[name])), "")

    def latents(self) -> dict[str, Any]:
        """What images become that this model encodes: resolution and channels; nothing, if it encodes none."""
        return {}

    def check(self) -> None:
        """Raise UserError where fields do not go together."""


def _sizes(fields: str, **rows: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    return {size: dict(zip(fields.split(), row, strict=True)) for size, row in rows.items()}


GPT_SIZES = _sizes(
    "layers width heads kv_heads ff vocab_size context tied",
    nano=(4, 128, 4, 2, 384, 512, 128, True),
    micro=(4, 256, 4, 2, 704, 2048, 256, True),
    tiny=(6, 384, 6, 2, 1024, 4096, 512, True),
    mini=(8, 512, 8, 4, 1408, 8192, 512, True),
    gpt2=(12, 768, 12, 12, 3072, 50257, 1024, True),
    small=(12, 768, 6, 6, 2048, 32768, 1024, True),
    medium=(24, 1024, 8, 4, 2752, 32768, 2048, True),
    large=(24, 1536, 12, 4, 4096, 32768, 2048, False),
)


@register_model(
    "gpt",
    kind="text",
    model="gengen.models.gpt:GPT",
    objectives={
        "pretrain": "gengen.training.objectives.language:Pretraining",
        "sft": "gengen.training.objectives.language:FineTuning",
        "reward": "gengen.training.objectives.reward:RewardModeling",
        "ppo": "gengen.training.objectives.ppo:PPO",
        "grpo": "gengen.training.objectives.grpo:GRPO",
        "dpo": "gengen.training.objectives.preference:DirectPreference",
    },
    generator="gengen.generation.text.generator:TextGenerator",
    sampling=TextSampling,
    variants={
        "model:reward": "gengen.models.reward:RewardModel",
        "generator:reward": "gengen.generation.text.rewards:Scorer",
    },
)
@dataclass
class GPTConfig(ModelConfig):
    """Decoder-only transformer; by default with RMSNorm, rotary positions, SwiGLU, grouped-query attention and
    QK-norm.
    """

    name: str = option("gpt", "registered name of the model family")
    size: str = choice("micro", list(GPT_SIZES), "row of the size table that fills every null below")
    layers: int | None = positive(None, "transformer blocks")
    width: int | None = positive(None, "features of the residual stream")
    heads: int | None = positive(None, "query heads")
    kv_heads: int | None = positive(None, "key and value heads; divides heads")
    head_size: int | None = positive(None, "features of a head; null = width / heads")
    ff: int | None = positive(None, "hidden features of the MLP")
    vocab_size: int | None = positive(None, "tokens in the vocabulary; a run records what its tokenizer has")
    context: int | None = positive(None, "tokens the model sees at once, in training and in sampling")
    tied: bool | None = option(None, "whether input and output embeddings are one matrix")
    dropout: float = option(0.0, "dropped share of each residual branch in training", low=0, below=1)
    norm: str = choice("rmsnorm", ["rmsnorm", "layernorm"], "normalisation ahead of each branch and of the head")
    norm_eps: float = positive(1e-6, "added to the mean square in a norm")
    bias: bool = option(False, "biases in matrices and layer norms; the head has none")
    mlp: str = choice("swiglu", ["swiglu", "gelu", "relu2"], "gated SiLU, GELU (tanh form), or the square of ReLU")
    qk_norm: bool = option(True, "RMSNorm of each query and key, before they are turned")
    positions: str = choice("rotary", ["rotary", "learned"], "rotary angles, or an embedding of each position")
    rope_theta: float = positive(10_000.0, "base of the rotary wavelengths")
    rope_scaling: str | None = choice(
        None, ["linear", "llama3"], "longer contexts: all wavelengths times rope_factor, or the long ones"
    )
    rope_factor: float = positive(8.0, "by how much wavelengths are stretched")
    rope_context: int = positive(8192, "llama3: the context before stretching")
    rope_low: float = positive(1.0, "llama3: wavelengths above rope_context / rope_low are stretched in full")
    rope_high: float = positive(4.0, "llama3: wavelengths below rope_context / rope_high are left alone")
    window: int | None = positive(None, "tokens, itself included, that a token sees in a layer of a sliding window")
    window_pattern: str = option(
        "S", "layers in turn: S = sliding window, L = the whole context; matters where there is a window"
    )
    document_token: int | None = option(
        None, "id that begins a document (0 in our tokenizers): a token sees its own document only", low=0
    )
    residual_init: str = choice(
        "zero", ["zero", "scaled"], "of what is added to the stream: 0, or N(0, .02 / sqrt(2 layers))"
    )
    logit_softcap: float | None = positive(None, "logits become cap * tanh(logits / cap)")
    checkpointing: bool = option(False, "keep no activations inside blocks but compute them again: less memory, more time",
                                 on_resume="free")  # fmt: skip
    z_loss: float = option(0.0, "weight of the squared log-normaliser in training; 1e-4 is usual", low=0)

    sizes: ClassVar[dict[str, dict[str, Any]]] = GPT_SIZES
    hidden_maps: ClassVar[str] = r"(^|\.)blocks\."

    def largest_width(self) -> int | None:
        return super().resolved().width

    def windows(self) -> list[int | None]:
        """The sliding window of each layer, None where it sees all."""
        assert self.layers
        pattern = [self.window if letter == "S" else None for letter in self.window_pattern]
        return [pattern[layer % len(pattern)] for layer in range(self.layers)]

    def resolved(self) -> Self:
        c = super().resolved()
        assert c.width and c.heads
        return c if c.head_size else replace(c, head_size=c.width // c.heads)

    def size_name(self) -> str:
        c = self.resolved()
        assert c.width and c.heads
        return super().size_name() if c.head_size == c.width // c.heads else ""

    def check(self) -> None:
        if not self.head_size and (c := super().resolved()).width and c.heads and c.width % c.heads:
            raise UserError(
                f"model.width={c.width} does not fit model.heads={c.heads}: without model.head_size, heads must divide width"
            )
        c = self.resolved()
        assert c.heads and c.kv_heads and c.head_size
        if c.head_size % 2 and c.positions == "rotary":
            raise UserError(
                f"model.head_size={c.head_size}: rotary positions turn pairs, so it (or width / heads) must be even"
            )
        if c.heads % c.kv_heads:
            raise UserError(
                f"model.heads={c.heads} does not fit model.kv_heads={c.kv_heads}: kv_heads must divide heads"
            )
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise UserError(
                f"model.window_pattern={self.window_pattern}: write a letter S or L for each layer in turn, such as SSSL"
            )


@dataclass
class ImageModelConfig(ModelConfig):
    """What every model of images has. A run records what its data has."""

    resolution: int | None = positive(None, "pixels (or latents) a side")
    channels: int | None = positive(None, "colours (or latent channels)")
    classes: list[str] = option([], "names of the classes, in the order of their labels; none = unlabelled")

    def largest_width(self) -> int | None:
        widths = getattr(self.resolved(), "widths", None)
        return max(widths) if widths else None


def check_levels(resolution: int | None, patch: int, widths: list[int]) -> None:
    """Raise UserError unless there are levels, and a resolution, where it is known, that can be halved from each to
    the next.
    """
    if not widths or min(widths) < 1:
        raise UserError(f"model.widths={widths}: at least one level is needed, each of one channel or more")
    if resolution and resolution % (least := patch * 2 ** (len(widths) - 1)):
        raise UserError(
            f"resolution {resolution} is no multiple of {least}: model.patch={patch}, halved {len(widths) - 1} times"
        )


UNET_SIZES = _sizes(
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

    sizes: ClassVar[dict[str, dict[str, Any]]] = UNET_SIZES
    hidden_maps: ClassVar[str] = r"^(down|middle|up)\."
    measured: ClassVar[tuple[str, ...]] = ("sigma_data",)

    def check(self) -> None:
        c = self.resolved()
        assert c.widths and c.attention is not None and c.patch
        if bad := [level for level in c.attention if not 0 <= level < len(c.widths)]:
            raise UserError(
                f"model.attention={c.attention} names level {bad[0]}; model.widths={c.widths} has levels 0 to {len(c.widths) - 1}"
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

    sizes: ClassVar[dict[str, dict[str, Any]]] = LDM_SIZES


AUTOENCODER_SIZES = _sizes(
    "widths blocks patch latent_channels",
    nano=([16, 32], 1, 2, 4),
    tiny=([32, 64], 1, 2, 4),
    small=([64, 128, 128], 1, 1, 4),
    base=([128, 256, 512, 512], 2, 1, 4),
)
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

    sizes: ClassVar[dict[str, dict[str, Any]]] = AUTOENCODER_SIZES
    hidden_maps: ClassVar[str] = r"^(encoder|decoder)\.\d+\.conv_(in|out)\."  # of the residual blocks

    def latents(self) -> dict[str, Any]:
        c = self.resolved()
        assert c.resolution and c.patch and c.widths
        return {"resolution": c.resolution // c.patch // 2 ** (len(c.widths) - 1), "channels": c.latent_channels}

    def check(self) -> None:
        c = self.resolved()
        assert c.widths is not None and c.patch
        check_levels(c.resolution, c.patch, c.widths)
        if c.quantizer == "fsq" and (len(c.levels) != c.latent_channels or min(c.levels) < 2):
            raise UserError(
                f"model.levels={c.levels} needs a number of 2 or more for each of model.latent_channels={c.latent_channels}"
            )
        if c.quantizer and (c.loss == "elbo" or c.kl_warmup or c.free_bits):
            raise UserError(
                f"model.quantizer={c.quantizer} has no KL: take model.loss=l1_l2, and model.kl_warmup and model.free_bits at 0"
            )
        for key in ("perceptual", "adversarial"):
            if getattr(c, key) and c.loss == "elbo":
                raise UserError(f"model.{key}={getattr(c, key)} belongs to no likelihood: take model.loss=l1_l2")


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


GAN_SIZES = _sizes(
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


@_register_gan("gan", model="gengen.models.gan:GAN")
@dataclass
class GANConfig(AdversarialConfig):
    """Residual networks without normalisation, trained by the recipe of R3GAN."""

    name: str = option("gan", "registered name of the model family")
    size: str = choice("tiny", list(GAN_SIZES), "row of the size table that fills every null below")
    widths: list[int] | None = option(None, "channels of each level, finest first; each level halves the resolution")
    blocks: int | None = positive(None, "residual blocks a level, in either network")
    patch: int | None = positive(None, "pixels a side that are one position of the finest level")

    sizes: ClassVar[dict[str, dict[str, Any]]] = GAN_SIZES

    def check(self) -> None:
        super().check()
        c = self.resolved()
        assert c.widths is not None and c.patch
        check_levels(c.resolution, c.patch, c.widths)


@_register_gan("dcgan", model="gengen.models.dcgan:DCGAN")
@dataclass
class DCGANConfig(AdversarialConfig):
    """The classic, with batch normalisation and without a penalty, for comparison."""

    name: str = option("dcgan", "registered name of the model family")
    widths: list[int] | None = option(
        None, "channels from the finest level to 4 x 4; null = 64 at half the resolution, doubled each level"
    )
    loss: str = choice("nonsaturating", ["relativistic", "nonsaturating", "hinge"], "as that of model=gan")

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
                f"model.gamma={self.gamma}: batch normalisation makes a logit depend on the whole batch, so an image has no slope of its "
                "own to penalise: take model=gan"
            )
