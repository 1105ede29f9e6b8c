"""BERT (Devlin et al. 2019), as the sentence encoders of the MiniLM family are (Wang et al. 2020).

Norms come behind the branches, positions are learned, and a text is [CLS], its word pieces, [SEP].
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.models.layers import attend


@dataclass(frozen=True)
class BertShape:
    """The dimensions of a BERT, by the names that its published config.json has."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float = 1e-12


class Bert(nn.Module):
    """Texts of one length in, the features of each token out."""

    def __init__(self, shape: BertShape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = nn.Embedding(shape.max_position_embeddings, shape.hidden_size)
        self.norm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, L) int64, without padding. Returns (B, L, D)."""
        x = self.norm(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, shape: BertShape):
        super().__init__()
        width, eps = shape.hidden_size, shape.layer_norm_eps
        self.heads = shape.num_attention_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, shape.intermediate_size), nn.Linear(shape.intermediate_size, width)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, D / H) each
        x = self.attention_norm(x + self.out(attend(q, k, v).transpose(1, 2).flatten(2)))
        return self.mlp_norm(x + self.down(F.gelu(self.up(x))))


def bert_weights(published: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return the weights of `Bert` from those of a published one, by the names that transformers gives them.

    A single text is all of type 0, whose embedding is added to every position: the two become one table. Raises
    KeyError for a weight that is missing.
    """
    renamed = {"tokens.weight": "embeddings.word_embeddings.weight"}
    renamed |= {f"norm.{kind}": f"embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")}
    parts = {
        "out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm", "up": "intermediate.dense",
        "down": "output.dense", "mlp_norm": "output.LayerNorm",
    }  # fmt: skip
    weights = {
        "positions.weight": published["embeddings.position_embeddings.weight"]
        + published["embeddings.token_type_embeddings.weight"][0]
    }
    for layer in range(layers):
        for kind in ("weight", "bias"):
            theirs, ours = f"encoder.layer.{layer}", f"blocks.{layer}"
            renamed |= {f"{ours}.{part}.{kind}": f"{theirs}.{name}.{kind}" for part, name in parts.items()}
            qkv = [published[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            weights[f"{ours}.qkv.{kind}"] = torch.cat(qkv)
    return weights | {ours: published[theirs] for ours, theirs in renamed.items()}
