"""Model configs, one dataclass a family. Dimensions left at null come from the family's size table."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from gengen.config.errors import UserError
from gengen.config.fields import choice, option, positive
from gengen.registry import register_model


@dataclass
class ModelConfig:
    """What every model family has."""

    name: str = option("", "registered name of the model family")

    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    """size name -> the dimensions it stands for."""

    def resolved(self) -> Self:
        """The same config with every null dimension filled from the size table; explicit values win."""
        table = self.sizes.get(getattr(self, "size", ""), {})
        empty = {f.name for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **{key: value for key, value in table.items() if key in empty})

    def check(self) -> None:
        """Raise UserError where fields do not go together."""


def _gpt(layers: int, width: int, heads: int, kv_heads: int, ff: int, vocab_size: int, context: int, tied: bool = True) -> dict[str, Any]:
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "ff": ff,
        "vocab_size": vocab_size,
        "context": context,
        "tied": tied,
    }


GPT_SIZES = {
    "nano": _gpt(4, 128, 4, 2, 384, 512, 128),
    "micro": _gpt(4, 256, 4, 2, 704, 2048, 256),
    "tiny": _gpt(6, 384, 6, 2, 1024, 4096, 512),
    "mini": _gpt(8, 512, 8, 4, 1408, 8192, 512),
    "small": _gpt(12, 768, 6, 6, 2048, 32768, 1024),
    "medium": _gpt(24, 1024, 8, 4, 2752, 32768, 2048),
    "large": _gpt(24, 1536, 12, 4, 4096, 32768, 2048, tied=False),
}


@register_model(
    "gpt",
    model="gengen.models.gpt:GPT",
    objectives={"pretrain": "gengen.training.language:Pretraining"},
    generator="gengen.generation.text:TextGenerator",
)
@dataclass
class GPTConfig(ModelConfig):
    """Decoder-only transformer: RMSNorm, rotary positions, SwiGLU, grouped-query attention, QK-norm."""

    name: str = option("gpt", "registered name of the model family")
    size: str = choice("micro", list(GPT_SIZES), "row of the size table that fills every null below")
    layers: int | None = positive(None, "transformer blocks")
    width: int | None = positive(None, "features of the residual stream")
    heads: int | None = positive(None, "query heads; width / heads is the head size")
    kv_heads: int | None = positive(None, "key and value heads; divides heads")
    ff: int | None = positive(None, "hidden features of the SwiGLU")
    vocab_size: int | None = positive(None, "tokens in the vocabulary; a run records what its tokenizer has")
    context: int | None = positive(None, "tokens the model sees at once, in training and in sampling")
    tied: bool | None = option(None, "whether input and output embeddings are one matrix")
    dropout: float = option(0.0, "dropped share of each residual branch in training", low=0, below=1)
    rope_theta: float = positive(10_000.0, "base of the rotary wavelengths")

    sizes: ClassVar[dict[str, dict[str, Any]]] = GPT_SIZES

    def check(self) -> None:
        c = self.resolved()
        assert c.width and c.heads and c.kv_heads
        if c.width % (2 * c.heads):
            raise UserError(f"model.width={c.width} does not fit model.heads={c.heads}: the head size, width / heads, must be even")
        if c.heads % c.kv_heads:
            raise UserError(f"model.heads={c.heads} does not fit model.kv_heads={c.kv_heads}: kv_heads must divide heads")
