"""Two towers, one of images and one of captions, trained so that what belongs together lies together (Radford et al.
2021): how often a picture finds its own caption among 64.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.model.diffusion import PADDING
from gengen.data.image.captions import caption_tokens
from gengen.data.image.prepare import PreparedImages
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.evaluation.attribute_judge import trunk
from gengen.evaluation.judges import BATCH, augmented, fit, predicted
from gengen.evaluation.kept import kept
from gengen.generation.image.files import to_float
from gengen.io import Say

VERSION, SEED = 1, 7919
SEEN = 40_000  # training images in all
WIDTH, SLOTS = 128, 64  # features, and tokens of a caption at most
AMONG = 64  # captions, of which a picture's own is one


class Towers(nn.Module):
    """Images and captions as unit vectors of `WIDTH`, near each other where they belong together.

    The text tower reads each token beside its neighbours, and takes the mean.
    """

    def __init__(self, channels: int, tokenizer: TextTokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.image = trunk(channels, WIDTH)
        self.tokens = nn.Embedding(tokenizer.vocab_size + 1, WIDTH)  # the last is padding
        self.neighbours, self.text = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.Linear(WIDTH, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def encoded(self, tokens: Tensor) -> Tensor:
        """Captions as tokens (N, L), PADDING behind -> (N, WIDTH), of norm 1."""
        there = (tokens != PADDING)[:, :, None].float()
        x = self.tokens(tokens.where(tokens != PADDING, self.tokens.num_embeddings - 1)) * there  # (N, L, D)
        x = x + self.neighbours(x.transpose(1, 2)).transpose(1, 2).relu()
        return F.normalize(self.text((x * there).sum(1) / there.sum(1)), dim=1)

    @torch.inference_mode()
    def captions(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of captions, (N, WIDTH). Raises UserError for one that is too long."""
        return self.encoded(caption_tokens(self.tokenizer, texts, SLOTS, "a caption"))

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, WIDTH), of norm 1."""
        return F.normalize(torch.cat([self.image(to_float(part)) for part in images.split(2 * BATCH)]), dim=1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Return the mean cross-entropy of finding each picture's caption among those of the batch, and each caption's
    picture. images, texts: (B, D), of norm 1; same: (B, B) bool, which captions are equal and so no wrong answer.
    """
    logits = scale * images @ texts.T
    logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -torch.inf)
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def towers_for(prepared: PreparedImages, say: Say) -> Towers:
    """Return the towers of this data, in eval mode on the CPU; trained first where there are none, on pictures and
    captions of the training split, a caption drawn of each picture's anew each time.
    """
    home = Path(prepared.config.dir) / "judges" / f"towers-{prepared.fingerprint[:16]}"
    recipe = {"name": "towers", "version": VERSION, "seed": SEED, "seen": SEEN, "data": prepared.fingerprint}

    def build() -> Towers:
        assert prepared.caption_tokenizer, "the training pictures have captions"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return Towers(prepared.train.images.shape[1], prepared.caption_tokenizer)

    def trained() -> tuple[Towers, dict[str, Any]]:
        say(f"retrieval: training a tower of images and one of captions on {len(prepared.train):,} images, once")
        towers = build()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            train(towers, prepared)
        return towers, {}

    return kept(home, recipe, build, trained, say)[0]


def train(towers: Towers, prepared: PreparedImages) -> None:
    """Train on the captioned pictures of the training split."""
    data = prepared.train
    rows = [i for i, row in enumerate(data.descriptions) if row.captions]
    texts = [caption for i in rows for caption in data.descriptions[i].captions]
    tokens = caption_tokens(towers.tokenizer, texts, SLOTS, "a caption")
    counts = torch.zeros(len(data), dtype=torch.int64)
    counts[rows] = torch.tensor([len(data.descriptions[i].captions) for i in rows])
    first = counts.cumsum(0) - counts  # of each picture's captions among all

    def loss(part: Tensor) -> Tensor:
        chosen = tokens[first[part] + (torch.rand(len(part)) * counts[part]).long()]
        images = augmented(data.images.index_select(0, part), prepared.config.flip)
        found = F.normalize(predicted(towers.image, images), dim=1)
        same = (chosen[:, None] == chosen).all(2)
        return contrastive_loss(found, towers.encoded(chosen), towers.log_scale.exp().clamp(max=100), same)

    fit(towers, torch.tensor(rows), max(8, -(-SEEN // len(rows))), loss)


def found_first(images: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Return whether each picture is nearer to its own caption than to each other one, (N,) bool.

    images, own: (N, D); others: (N, K, D), all of norm 1.
    """
    return (images * own).sum(1) > torch.einsum("nd,nkd->nk", images, others).amax(1)


def distractors(captions: Sequence[str], pool: Sequence[str], seed: int) -> list[list[str]]:
    """Return for each caption AMONG - 1 different others, drawn from a pool. Raises UserError where it has too few."""
    different = sorted(set(pool))
    if len(different) < AMONG:
        raise UserError(f"retrieval: {len(different)} different captions are fewer than the {AMONG} to choose from")
    draw = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(different), generator=draw).tolist() for _ in captions)
    return [
        [different[i] for i in order[:AMONG] if different[i] != own][: AMONG - 1]
        for own, order in zip(captions, orders, strict=True)
    ]
