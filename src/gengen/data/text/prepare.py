"""Documents -> a folder of token shards.

<data.dir>/prepared/<name>-<fingerprint>/  train-00000.bin ...  val-00000.bin ...  tokenizer.json  meta.json
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from gengen.config.data import TextConfig
from gengen.data.prepared import FromMeta, PreparedData, PreparedFolder, PrepareRequest
from gengen.data.sources.base import Source, read_records
from gengen.data.sources.skips import Skips
from gengen.data.text.encode import SIDES, Encoding, encode_parts, on_side
from gengen.data.text.fast_encoder import encoder_for
from gengen.data.text.holdout import Split, settled_split
from gengen.data.text.shards import TokenStream, write_shards
from gengen.data.text.sources.base import Document, settle_source, text_source
from gengen.data.text.spool import Spool, finish_spool, open_spool, put_text, write_spool
from gengen.data.text.tokenizer import TextTokenizer, pieces
from gengen.errors import UserError
from gengen.io import Say, write_text

BPE_CHARACTERS = 64_000_000  # of the training text, from all over it, that BPE is trained on
MAX_TABLED = 2**28  # tokens; more windows than these have are shuffled without a table
UNCAPPED = 2  # formats up to this one hold out a share, however large


class PreparedTokens(PreparedData, Protocol):
    """Prepared data of a language model, whatever the stage: texts, conversations, preferences or prompts."""

    @property
    def tokenizer(self) -> TextTokenizer: ...

    def sample_prompts(self, n: int) -> list[list[int]]:
        """Return tokens of up to n prompts for the samples written during training."""


@dataclass(frozen=True)
class PreparedText(FromMeta):
    """Token streams of the two parts and their tokenizer. `config` is the one given, its source settled."""

    config: TextConfig
    tokenizer: TextTokenizer
    meta: dict[str, Any]
    train: TokenStream
    val: TokenStream

    @property
    def val_bytes(self) -> int:
        """UTF-8 bytes of the validation text: what bits-per-byte divides by."""
        return self.meta["val"]["bytes"]

    @property
    def model_facts(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size}

    def sample_prompts(self, n: int) -> list[list[int]]:
        """Return none: the config's own `prompts` are used."""
        return []

    def describe(self) -> list[str]:
        """Return what it is, in aligned lines."""
        tokens = f"{len(self.train):,} for training, {len(self.val):,} for validation ({self.meta['split']})"
        ratio = f"{self.meta['bytes_per_token']:.3f} with {self.tokenizer.vocab_size:,} tokens in the vocabulary"
        copies = self.meta.get("copies")
        documents = f"{self.meta['documents']:,}" + (f", {copies:,} of them copies of others" if copies else "")
        return self.described({"documents": documents, "tokens": tokens, "bytes/token": ratio})


def prepare_for(request: PrepareRequest[TextConfig]) -> PreparedText:
    """Prepare text for a model: with its vocabulary size, unless the data's own is set or a tokenizer is brought
    along."""
    vocab_size = request.config.vocab_size or getattr(request.model, "vocab_size", None) or 2048
    tokenizer = TextTokenizer.from_json(request.tokenizer) if request.tokenizer else None
    return prepare(
        replace(request.config, vocab_size=vocab_size),
        vocab_size,
        request.say,
        tokenizer,
        trained_on=request.trained_on,
        allow_build=request.allow_build,
    )


def prepare(
    config: TextConfig,
    vocab_size: int,
    say: Say,
    tokenizer: TextTokenizer | None = None,
    *,
    trained_on: str = "",
    allow_build: bool = True,
) -> PreparedText:
    """Open the prepared text of this config, and make it first where it is missing or damaged.

    vocab_size: tokens at most, for a BPE that is trained here; tokenizer: one to use instead. say: takes progress
    lines. trained_on, allow_build: see PrepareRequest.
    """
    config = settle_source(config, say)
    if config.tokenizer == "byte" and tokenizer is None:
        tokenizer = TextTokenizer.byte()
    return TextFolder(config, vocab_size, say, tokenizer, trained_on).get(allow_build)


class TextFolder(PreparedFolder[PreparedText]):
    """Token shards. tokenizer: None = a BPE of at most `vocab_size` tokens, trained on the training part."""

    FORMAT = 3
    RESUMES = True
    config: TextConfig
    source: Source[Document]

    def __init__(
        self,
        config: TextConfig,
        vocab_size: int,
        say: Say,
        tokenizer: TextTokenizer | None = None,
        trained_on: str = "",
    ):
        super().__init__(config, text_source(config), say, trained_on)
        self.vocab_size, self.tokenizer = vocab_size, tokenizer

    def facts(self) -> dict[str, Any]:
        keys = ("source", "split", "validation", "max_documents", "max_bad", "field")
        told = self.tokenizer.hash if self.tokenizer else f"bpe {self.vocab_size}"
        since = {UNCAPPED + 1: {"val_tokens": self.config.val_tokens}}
        return {key: getattr(self.config, key) for key in keys} | {"tokenizer": told, "since": since}

    def opened(self, meta: dict[str, Any]) -> PreparedText:
        tokenizer = TextTokenizer.from_json((self.home / "tokenizer.json").read_bytes().decode())
        train, val = (TokenStream(self.home, part, tokenizer.hash) for part in ("train", "val"))
        found, expected = (len(train), len(val)), (meta["train"]["tokens"], meta["val"]["tokens"])
        if found != expected:
            raise ValueError(f"{found} tokens, expected {expected}")
        return PreparedText(replace(self.config, order=self.settled_order(len(train))), tokenizer, meta, train, val)

    def settled_order(self, tokens: int) -> int:
        """Return how windows are shuffled where the config leaves that open. Runs from before there was a choice have
        order 1, whatever their size."""
        return self.config.order or (2 if tokens > MAX_TABLED and not self.trained_on else 1)

    def build(self, folder: Path, spool: Path, skips: Skips) -> dict[str, Any]:
        """Read the source once into a spool on disk, hold out a part, learn the tokenizer, encode segment by segment
        and put the parts together. What a killed process has done of it is not done again."""
        documents = open_spool(spool) or self.spooled(spool, skips)
        skips.restore(documents.facts["skips"])
        most = self.config.val_tokens if self.format > UNCAPPED else float("inf")
        split = settled_split(documents, self.config.split, self.config.validation, most, self.say)
        tokenizer = self.settled_tokenizer(documents, split)
        parts = self.encoded(folder, documents, split, tokenizer)
        write_text(folder / "tokenizer.json", tokenizer.to_json())
        ratio = sum(p["bytes"] for p in parts.values()) / sum(p["tokens"] for p in parts.values())
        source, licence = documents.facts["source"]
        return {
            "format": self.format, "fingerprint": self.fingerprint, "name": self.config.name, "source": source,
            "licence": licence, "split": split.kind, "documents": documents.count, "copies": split.copies, **parts,
            "bytes_per_token": ratio, "tokenizer": tokenizer.hash, "vocab_size": tokenizer.vocab_size,
            "origins": documents.facts["origins"],
        }  # fmt: skip

    def spooled(self, folder: Path, skips: Skips) -> Spool:
        """Read the source into a spool."""
        whole = self.tokenizer is not None and not self.tokenizer.cuts_words
        found: Iterable[Document] = read_records(self.source, skips, self.say, self.config.max_documents)
        segments, origins = write_spool(folder, found, whole)
        facts = {"origins": origins, "source": self.source.describe(), "skips": skips.summary()}
        return finish_spool(folder, segments, facts)

    def settled_tokenizer(self, spool: Spool, split: Split) -> TextTokenizer:
        """Return the tokenizer that was brought along, or was trained before this process was killed, or train BPE on
        a sample of the training part. The first format took the sample from its beginning."""
        if self.tokenizer:
            return self.tokenizer
        kept = spool.folder / "tokenizer.json"
        if not kept.exists():
            share = min(1.0, BPE_CHARACTERS / max(1, int(split.cuts.sum()))) if self.format > 1 else 1.0
            trained = TextTokenizer.train(_sample(_training_texts(spool, split), share), self.vocab_size)
            put_text(kept, trained.to_json())
        return TextTokenizer.from_json(kept.read_bytes().decode())

    def encoded(self, folder: Path, spool: Spool, split: Split, tokenizer: TextTokenizer) -> dict[str, dict[str, int]]:
        """Write the shards of both sides; return the bytes of text and the tokens of each."""
        left = len(Encoding(spool, split.cuts, tokenizer, tokenizer.encode_batch).left())
        encode, how = encoder_for(tokenizer, _checked_texts(spool) if left else ())
        encoding = Encoding(spool, split.cuts, tokenizer, encode)
        if spool.segments > 1:
            before = f" ({spool.segments - left} were encoded before)" if left < spool.segments else ""
            self.say(f"data: encoding {spool.sizes.sum():,} bytes in {spool.segments} parts with {how}{before}")
        encode_parts(encoding, self.config.prepare_workers or len(os.sched_getaffinity(0)))
        totals = {side: encoding.totals(side) for side in SIDES}
        if empty := next((side for side in SIDES if not totals[side]["tokens"]), None):
            settings = f"data.split={self.config.split}, data.validation={self.config.validation}"
            raise UserError(f"data: the {empty} part is empty: {spool.count} documents, {settings}")
        for side in SIDES:
            write_shards(folder, side, encoding.joined(side), tokenizer.vocab_size, tokenizer.hash)
        return totals


def _training_texts(spool: Spool, split: Split) -> Iterator[str]:
    for number in range(spool.segments):
        yield from (text for text, _ in on_side("train", spool.pieces(number), split.cuts))


def _checked_texts(spool: Spool) -> Iterator[str]:
    """Yield the beginnings of pieces from all over the spool."""
    for number in range(spool.segments):
        if spool.segment(number).exists():
            for piece in islice(spool.pieces(number), 20):
                yield piece.text[:4096]


def _sample(texts: Iterable[str], share: float) -> Iterator[str]:
    """Yield a share of the texts in pieces, evenly from beginning to end, and BPE_CHARACTERS or so at most."""
    passed, taken = 0, 0
    for text in texts:
        for piece in pieces(text):
            if taken >= BPE_CHARACTERS:
                return
            if taken <= share * passed:
                yield piece
                taken += len(piece)
            passed += len(piece)
