"""What the pictures of a data set show, in words: captions, and the tokens of captions that a network reads."""

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from gengen.config.data import ImageConfig
from gengen.config.model.diffusion import PADDING, START
from gengen.data.image.sources.base import Picture, Thing
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError

SIDES = re.compile(  # left and right in the languages that CLDR's names are had in here
    r"\b((left|right)(wards?)?|links|rechts|linke[rnms]?|rechte[rnms]?|izquierd[ao]|derech[ao]|gauche|droite?"
    r"|sinistr[ao]|destr[ao]|esquerd[ao]|direit[ao]|kiri|kanan|(sol|sağ)([au]|dan|daki)?|влево|вправо|налев\w|направ\w"
    r"|چپ|راست)\b|يسار|يمين|왼쪽|오른쪽|좌향|우향|[左右]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Description:
    """What a picture shows: see `Picture`."""

    captions: tuple[str, ...] = ()
    things: tuple[Thing, ...] = ()
    category: str = ""

    @classmethod
    def of(cls, picture: Picture) -> Self:
        return cls(picture.captions, picture.things, picture.category)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        things = [
            Thing(thing["attributes"], (float(at[0]), float(at[1])) if (at := thing.get("centre")) else None)
            for thing in found.get("things", [])
        ]
        return cls(tuple(found.get("captions", [])), tuple(things), found.get("category", ""))

    def to_json(self) -> dict[str, Any]:
        """Return a tree for JSON, without what is empty."""
        things = [
            {"attributes": dict(thing.attributes)} | ({"centre": list(thing.centre)} if thing.centre else {})
            for thing in self.things
        ]
        facts = {"captions": list(self.captions), "things": things, "category": self.category}
        return {name: value for name, value in facts.items() if value}

    @property
    def caption(self) -> str:
        """The plainest caption; "" where there is none."""
        return self.captions[0] if self.captions else ""


class CaptionTokenizer(TextTokenizer):
    """Byte-level BPE of captions, which reads capitals as small letters. It also knows the captions' words: others are
    read as well, but nothing was ever learnt of them."""

    def __init__(self, inner: TextTokenizer, words: Sequence[str]):
        self.inner, self.words = inner, frozenset(words)
        text = json.dumps({"gengen": "captions", "words": sorted(self.words), "tokenizer": inner.to_json()})
        super().__init__(text, inner._bytes, inner._bpe, inner.start, inner.eot)

    @classmethod
    def of(cls, captions: Sequence[str], vocab_size: int) -> Self:
        """Train BPE of at most vocab_size tokens on captions. Words it has never met fall to bytes."""
        words = {word for text in captions for word in words_of(text)}
        return cls(TextTokenizer.train(map(folded, captions), vocab_size), sorted(words))

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(folded(text))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.inner.encode_batch(list(map(folded, texts)))

    def unseen(self, text: str) -> dict[str, str]:
        """Return the words of a text that no caption had, each with the nearest that one had, or ""."""
        missing = [word for word in words_of(text) if word not in self.words]
        near = {word: difflib.get_close_matches(word, self.words, 1) for word in missing}
        return {word: found[0] if found else "" for word, found in near.items()}


def read_captions(found: dict[str, Any]) -> CaptionTokenizer:
    """Read what `CaptionTokenizer.to_json` wrote, parsed."""
    return CaptionTokenizer(TextTokenizer.from_json(found["tokenizer"]), [str(word) for word in found["words"]])


def folded(text: str) -> str:
    """Return a text as the tokenizer reads it: composed, in small letters, with plain apostrophes."""
    return unicodedata.normalize("NFC", text.casefold()).replace("\u2019", "'")


def words_of(text: str) -> list[str]:
    """Return the words of a text, in small letters."""
    return re.findall(r"\w+", folded(text))


def caption_tokens(tokenizer: TextTokenizer, texts: Sequence[str], slots: int, what: str) -> Tensor:
    """Return the tokens of texts, (N, slots) int64, PADDING behind each.

    Every row begins with START, which alone is the row of the empty text. Raises UserError where a text has more
    tokens than there are slots; `what` names such a text.
    """
    rows = torch.full((len(texts), slots), PADDING)
    for row, text, ids in zip(rows, texts, tokenizer.encode_batch(list(texts)), strict=True):
        if len(ids) >= slots:
            raise UserError(
                f"{what} is too long: {len(ids)} tokens, the model reads model.text_context - 1 = {slots - 1}"
                f"\n  {text[:200]!r}"
            )
        row[: len(ids) + 1] = torch.tensor([START, *ids])
    return rows


def check_captions(parts: Mapping[str, Sequence[Description]], config: ImageConfig, usable: bool) -> None:
    """Raise UserError where there are no captions or too many are missing, and for captions that are not true of a
    mirrored picture where data.flip is on. usable: whether a picture to train on has one.
    """
    rows = [row for part in parts.values() for row in part]
    bare = sum(not row.captions for row in rows)
    if not usable:
        raise UserError(
            f"model.text=true: no image of data={config.name} has a caption to train on: data=emoji has captions, "
            "and data=imagefolder those of its metadata.jsonl"
        )
    if bare > config.max_uncaptioned * len(rows):
        raise UserError(
            f"model.text=true: {bare:,} of {len(rows):,} images have no caption: name them in metadata.jsonl, or "
            f"raise data.max_uncaptioned (now {config.max_uncaptioned:g}): they then train as unconditional"
        )
    if config.flip and (sided := next((c for row in rows for c in row.captions if SIDES.search(c)), None)):
        raise UserError(
            f"data.flip=true mirrors pictures, and a caption would no longer be true: {sided[:200]!r}"
            "\n  data.flip=false, or captions without left and right"
        )


@dataclass(frozen=True)
class CaptionTokens:
    """The captions of both parts of a data set as a network reads them.

    tokens: part -> (N, K, L) int32, K the most captions that a picture has, L the tokens of the longest caption;
    counts: part -> (N,), how many captions each picture has. A picture without one has the empty text, and so is
    trained on as unconditional.
    """

    tokenizer: TextTokenizer
    tokens: dict[str, Tensor]
    counts: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Sequence[Description]],
        tokenizer: TextTokenizer | None,
        slots: int,
        config: ImageConfig,
    ) -> Self:
        """Encode all captions. Raises UserError for what `check_captions` refuses, and for one that is too long."""
        check_captions(parts, config, usable=tokenizer is not None)
        assert tokenizer
        tokens, counts = {}, {}
        for part, found in parts.items():
            texts = [row.captions or ("",) for row in found]
            most = max(map(len, texts))
            flat = caption_tokens(tokenizer, [text for row in texts for text in row], slots, f"a caption ({part})")
            counts[part] = torch.tensor([len(row) for row in texts])
            tokens[part] = torch.full((len(found), most, slots), PADDING, dtype=torch.int32)
            tokens[part][torch.arange(most) < counts[part][:, None]] = flat.int()
        longest = max(
            int((part != PADDING).sum(-1).max()) for part in tokens.values()
        )  # padding costs as much as words
        return cls(tokenizer, {part: found[..., :longest].contiguous() for part, found in tokens.items()}, counts)

    @property
    def model_facts(self) -> dict[str, Any]:
        """Return what the captions fix of the model."""
        return {"text_vocab_size": self.tokenizer.vocab_size}

    @property
    def dependencies(self) -> dict[str, Path]:
        """Return the folders that a run keeps a copy of, by the name they have there: none."""
        return {}

    def rows(self, part: str, index: Tensor) -> dict[str, Tensor]:
        """Return {"captions": (B, K, L) int64, "caption_count": (B,) int64} of pictures of one part."""
        return {"captions": self.tokens[part][index].long(), "caption_count": self.counts[part][index]}


@dataclass(frozen=True)
class CaptionFeatures:
    """The captions of both parts of a data set as a frozen text encoder reads them, each different one encoded once.

    table: a safetensors file with "features", (M, L, D) fp16, a row for each different caption, all 0 behind its end;
    row 0 is the empty text. numbers: part -> (N, K) int32, the rows of a picture's captions; counts: part -> (N,), how
    many captions it has; one without has the empty text. encoder: the folder of the frozen text encoder.
    """

    table: Path
    encoder: Path
    numbers: dict[str, Tensor]
    counts: dict[str, Tensor]
    tokenizer: TextTokenizer | None = None  # that of the encoder lies in its folder

    def features(self) -> Tensor:
        """Return the table, (M, L, D) fp16, memory-mapped."""
        with safe_open(self.table, "pt") as file:
            features: Tensor = file.get_tensor("features")
        return features

    @property
    def model_facts(self) -> dict[str, Any]:
        """Return what the captions fix of the model."""
        return {"text_feature_width": self.features().shape[-1]}

    @property
    def dependencies(self) -> dict[str, Path]:
        """Return the folders that a run keeps a copy of, by the name they have there."""
        return {"text_encoder": self.encoder}

    def rows(self, part: str, index: Tensor) -> dict[str, Tensor]:
        """Return {"captions": (B, K) int64, rows of the table, "caption_count": (B,)} of pictures of one part."""
        return {"captions": self.numbers[part][index].long(), "caption_count": self.counts[part][index]}


def numbered_captions(
    parts: Mapping[str, Sequence[Description]],
) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor]]:
    """Return the different captions of a data set, the empty one first, and `numbers` and `counts` of
    `CaptionFeatures`.
    """
    number = {"": 0}
    numbers, counts = {}, {}
    for part, found in parts.items():
        rows = [[number.setdefault(text, len(number)) for text in row.captions or ("",)] for row in found]
        counts[part] = torch.tensor([len(row) for row in rows])
        most = int(counts[part].max())
        numbers[part] = torch.tensor([row + [0] * (most - len(row)) for row in rows], dtype=torch.int32)
    return list(number), numbers, counts
