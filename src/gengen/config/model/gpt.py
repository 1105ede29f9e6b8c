"""The config of decoder-only transformers."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from gengen.config.commands import TextSampling
from gengen.config.fields import choice, option, positive
from gengen.config.model.base import ModelConfig, SizeTable, size_table
from gengen.config.model.lora import LoRAConfig
from gengen.errors import UserError
from gengen.registry import register_model

GPT_SIZES = size_table(
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
        "kto": "gengen.training.objectives.kto:RatedAnswers",
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
    activation_checkpointing: bool = option(
        False, "keep no activations inside blocks but compute them again: less memory, more time", on_resume="free"
    )
    z_loss: float = option(0.0, "weight of the squared log-normaliser in training; 1e-4 is usual", low=0)
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    sizes: ClassVar[SizeTable] = GPT_SIZES
    hidden_maps: ClassVar[str] = r"(^|\.)blocks\."

    @property
    def is_adapted(self) -> bool:
        return self.lora.is_on

    def largest_width(self) -> int | None:
        return super().resolved().width

    def windows(self) -> list[int | None]:
        """Return the sliding window of each layer, None where it sees all."""
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
        self.lora.adapted(self.mlp)
        given = super().resolved()
        if not given.head_size and given.width and given.heads and given.width % given.heads:
            raise UserError(
                f"model.width={given.width} does not fit model.heads={given.heads}: without model.head_size, heads "
                "must divide width"
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
                f"model.window_pattern={self.window_pattern}: write a letter S or L for each layer in turn, such as "
                "SSSL"
            )
