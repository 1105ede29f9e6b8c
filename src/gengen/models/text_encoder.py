"""A text encoder that is trained with the network it conditions, or an adapter of what a frozen one said; and the
cross-attention by which the network reads it.

The empty caption, of the own encoder START alone, is what a row is given whose condition is dropped in training, and
what guidance leads away from. So what is learnt for "no text" is a vector like that of any other token, the same in
training and in sampling.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.model import DiffusionProcess
from gengen.config.model.diffusion import PADDING, START
from gengen.models.layers import attend, zeroed


class TextFeatures(NamedTuple):
    """Captions as a network reads them."""

    tokens: Tensor  # (B, L, D), normalised
    mask: Tensor  # (B, L) bool, True where a caption has a token
    pooled: Tensor  # (B, D), the mean over those


def empty_captions(rows: int, slots: int, device: torch.device | None = None) -> Tensor:
    """Return the tokens of that many empty captions, (rows, slots) int64; device: None = the default one."""
    tokens = torch.full((rows, slots), PADDING, device=device)
    tokens[:, :1].fill_(START)
    return tokens


class TextEncoder(nn.Module):
    """A small bidirectional transformer over the tokens of captions, with learned positions (as Devlin et al. 2019,
    norms first).
    """

    def __init__(self, config: DiffusionProcess):
        super().__init__()
        assert config.text_vocab_size, "the data say it (with_data)"
        width = config.text_width
        self.tokens = nn.Embedding(config.text_vocab_size, width)
        self.positions = nn.Embedding(config.text_context, width)
        nn.init.normal_(self.tokens.weight)  # as large as what blocks will add: smaller, all captions become alike
        nn.init.normal_(self.positions.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(width, config.text_heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> TextFeatures:
        """tokens: (B, L) int64, PADDING behind the end of each caption; L at most model.text_context."""
        mask = tokens != PADDING
        x = self.tokens(tokens.clamp(min=0)) + self.positions.weight[: tokens.shape[1]]  # (B, L, D)
        for block in self.blocks:
            x = block(x, mask)
        return with_mean(self.norm(x), mask)

    def empty(self, rows: int, slots: int) -> Tensor:
        """Return the tokens of empty captions, (rows, slots), on the encoder's device."""
        return empty_captions(rows, slots, self.norm.weight.device)


class TextAdapter(nn.Module):
    """What a frozen text encoder said of captions, in the width of the network that reads them: norm(linear(x)).

    `null` is what it said of the empty caption, [CLS] and [SEP]. The training sets it (`Diffusion`), and checkpoints
    keep it, so that guidance needs no text encoder.
    """

    null: Tensor

    def __init__(self, config: DiffusionProcess):
        super().__init__()
        assert config.text_feature_width, "the data say it (with_data)"
        self.linear = nn.Linear(config.text_feature_width, config.text_width)
        self.norm = nn.LayerNorm(config.text_width)
        self.register_buffer("null", torch.zeros(2, config.text_feature_width))

    def forward(self, features: Tensor) -> TextFeatures:
        """features: (B, L, D'), all 0 behind the end of each caption, which no token of a caption is."""
        return with_mean(self.norm(self.linear(features)), features.any(-1))

    def empty(self, rows: int, slots: int) -> Tensor:
        """Return the features of empty captions, (rows, slots, D')."""
        return F.pad(self.null, (0, 0, 0, slots - len(self.null))).expand(rows, -1, -1)


class CaptionTable(nn.Module):
    """What a frozen text encoder said of each different caption of a data set, looked up by number."""

    features: Tensor

    def __init__(self, features: Tensor):
        """features: (M, L, D'), all 0 behind the end of each caption."""
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, numbers: Tensor) -> Tensor:  # (B,) -> (B, L, D'), fp32
        return self.features.index_select(0, numbers).float()


def with_mean(tokens: Tensor, mask: Tensor) -> TextFeatures:
    """Return the features of tokens, (B, L, D), with their mean over those that a caption has."""
    weights = mask.to(tokens.dtype)[:, :, None]
    return TextFeatures(tokens, mask, (tokens * weights).sum(1) / weights.sum(1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); no token attends to padding."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), zeroed(nn.Linear(width, width))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), zeroed(nn.Linear(4 * width, width)))
        setattr(self.qkv.weight, "stacked_rows", [width] * 3)  # for Muon

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (B, L, D), (B, L) -> (B, L, D)
        qkv = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, L, D / H) each
        x = x + self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class CrossAttention(nn.Module):
    """What positions of a sample read in its caption: queries from the positions, keys and values from the text.

    It begins as 0, to be added to what it reads for.
    """

    def __init__(self, width: int, text_width: int, head_size: int):
        super().__init__()
        self.heads = width // head_size
        self.q, self.kv = nn.Linear(width, width), nn.Linear(text_width, 2 * width)
        self.out = zeroed(nn.Linear(width, width))
        setattr(self.kv.weight, "stacked_rows", [width] * 2)  # for Muon

    def forward(self, x: Tensor, text: TextFeatures) -> Tensor:  # (B, T, D), normalised -> (B, T, D)
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
        k, v = self.kv(text.tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, D / H) each
        return self.out(attend(q, k, v, text.mask).transpose(1, 2).flatten(2))


class TextCondition(nn.Module):
    """The trained part of a network's text encoder, and the map of a caption's mean into the network's condition."""

    def __init__(self, config: DiffusionProcess, condition: int):
        super().__init__()
        self.context = config.text_context
        self.encoder = TextEncoder(config) if config.text_encoder == "own" else TextAdapter(config)
        self.pooled = zeroed(nn.Linear(config.text_width, condition))

    def forward(self, text: Tensor | TextFeatures | None, rows: int) -> TextFeatures:
        """Return the features of captions: of what the encoder reads, or as they are given; None = empty ones.

        What it reads is their tokens (B, L), or what a frozen text encoder said of these, (B, L, D').
        """
        if isinstance(text, TextFeatures):
            return text
        return self.encoder(self.empty(rows) if text is None else text)

    def empty(self, rows: int, slots: int | None = None) -> Tensor:
        """Return empty captions as the encoder reads them, of as many slots; None = all that it has."""
        return self.encoder.empty(rows, slots or self.context)


def mixed(a: TextFeatures, b: TextFeatures, t: Tensor) -> TextFeatures:
    """Return captions on the way from a to b, (B, ...) for t (B,) in [0, 1]: 0 is a and 1 is b, exactly.

    Where both have a token its features go along the great arc between them (Shoemake 1985), and so does the mean;
    where one has, they are that one's.
    """
    between = (t > 0) & (t < 1)
    tokens = arc(a.tokens, b.tokens, t[:, None, None])
    tokens = torch.where((a.mask & b.mask)[:, :, None], tokens, torch.where(a.mask[:, :, None], a.tokens, b.tokens))
    ends = torch.where((t < 1)[:, None], a.mask, b.mask)
    pooled = arc(a.pooled, b.pooled, t[:, None])
    return TextFeatures(tokens, torch.where(between[:, None], a.mask | b.mask, ends), pooled)


def arc(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return points between vectors a and b (..., D), at t (..., 1) of the way along the great arc.

    Angles are fp32: in bf16 that between near vectors would be 0, and divided by.
    """
    cosine = F.cosine_similarity(a.float(), b.float(), dim=-1)[..., None].clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cosine)
    point = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return torch.where(t <= 0, a, torch.where(t >= 1, b, point.to(a.dtype)))
