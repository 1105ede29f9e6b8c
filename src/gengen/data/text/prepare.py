"""Documents -> a folder of token shards.

<data.dir>/prepared/<name>-<fingerprint>/  train-00000.bin ...  val-00000.bin ...  tokenizer.json  meta.json
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gengen.config.data import TextConfig
from gengen.data.prepared import FromMeta, PreparedData, PreparedFolder, PrepareRequest
from gengen.data.sources.base import Source, read_records
from gengen.data.sources.skips import Skips
from gengen.data.text.shards import TokenStream, write_shards
from gengen.data.text.sources.base import Document, settle_source, text_source
from gengen.data.text.tokenizer import TextTokenizer, pieces
from gengen.errors import UserError
from gengen.io import Say, write_text

BPE_CHARACTERS = 64_000_000  # of the training text, from all over it, that BPE is trained on
BATCH = 2**22  # characters tokenized at a time
MAX_ORIGINS = 100
MAX_TABLED = 2**28  # tokens; more windows than these have are shuffled without a table
COPIES = {
    "content": "they are held out together",
    "tails": "the same ends of them are held out",
    "documents": "some may be held out and others trained on; data.split=content keeps them together",
}


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

    FORMAT = 2
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
        return {key: getattr(self.config, key) for key in keys} | {"tokenizer": told}

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
        """Read the source once into a spool on disk, then learn the tokenizer and write each part from there."""
        hashes, origins = _write_spool(spool, read_records(self.source, skips, self.say, self.config.max_documents))
        count, copies = len(hashes), len(hashes) - len(np.unique(hashes))
        split = self.settled_split(count, copies)
        held = (
            held_out(hashes, self.config.validation)
            if split == "content"
            else every_nth(count, self.config.validation)
        )

        def texts(part: str) -> Iterator[str]:
            return _texts_of(part, _read_spool(spool), split, held, self.config.validation)

        tokenizer = self.tokenizer or self.trained_tokenizer(texts)
        parts = {part: self.write_part(folder, part, texts(part), tokenizer, count) for part in ("train", "val")}
        write_text(folder / "tokenizer.json", tokenizer.to_json())
        source, licence = self.source.describe()
        ratio = sum(p["bytes"] for p in parts.values()) / sum(p["tokens"] for p in parts.values())
        return {
            "format": self.format, "fingerprint": self.fingerprint, "name": self.config.name, "source": source,
            "licence": licence, "split": split, "documents": count, "copies": copies, **parts,
            "bytes_per_token": ratio, "tokenizer": tokenizer.hash, "vocab_size": tokenizer.vocab_size,
            "origins": origins,
        }  # fmt: skip

    def settled_split(self, count: int, copies: int) -> str:
        """Return how validation is held out: as the config says, but by the ends where documents are too few for that.
        Says so, and what becomes of copies."""
        split, every = self.config.split, round(1 / self.config.validation)
        if split != "tails" and 0 < count - (copies if split == "content" else 0) < 2 * every:
            different = f"{count - copies} different" if copies else count
            last = f"the last {self.config.validation:.0%} of each is held out"
            self.say(f"data: {different} documents are too few to hold out every {every}th; {last}")
            split = "tails"
        if copies:
            self.say(f"data: {copies:,} of {count:,} documents are copies of others; {COPIES[split]}")
        return split

    def trained_tokenizer(self, texts: Callable[[str], Iterator[str]]) -> TextTokenizer:
        """Train BPE on a sample of the training part. The first format took the sample from its beginning."""
        share = min(1.0, BPE_CHARACTERS / max(1, sum(map(len, texts("train"))))) if self.format > 1 else 1.0
        return TextTokenizer.train(_sample(texts("train"), share), self.vocab_size)

    def write_part(
        self, folder: Path, part: str, texts: Iterable[str], tokenizer: TextTokenizer, count: int
    ) -> dict[str, int]:
        """Write the shards of one part; return its bytes of text and its tokens. count: documents in all."""
        facts = {"bytes": 0}
        chunks = _tokenized(texts, tokenizer, facts)
        facts["tokens"] = write_shards(folder, part, chunks, tokenizer.vocab_size, tokenizer.hash)
        if not facts["tokens"]:
            settings = f"data.split={self.config.split}, data.validation={self.config.validation}"
            raise UserError(f"data: the {part} part is empty: {count} documents, {settings}")
        return facts


def held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Return which documents are for validation, (N,) bool: a share of the different ones with all their copies, in
    any order.
    """
    different = np.unique(hashes)
    return np.isin(hashes, different[: max(1, round(share * len(different)))])


def every_nth(count: int, share: float) -> np.ndarray:
    """Return which documents are for validation, (N,) bool: every n-th, which makes the share."""
    every = round(1 / share)
    return np.arange(count) % every == every - 1


def _texts_of(part: str, texts: Iterable[str], split: str, held: np.ndarray, share: float) -> Iterator[str]:
    """Yield the texts of one part. held: (N,) bool, which are for validation; with "tails", the last `share` of each
    is."""
    for number, text in enumerate(texts):
        if split == "tails":
            cut = int(len(text) * (1 - share))
            yield text[:cut] if part == "train" else text[cut:]
        elif held[number] == (part == "val"):
            yield text


def _write_spool(path: Path, found: Iterable[Document]) -> tuple[np.ndarray, list[str]]:
    """Write the texts, each behind its length; return their hashes (N,), without the white space around a text, and
    the first hundred origins."""
    hashes, origins = array("Q"), dict[str, None]()
    with open(path, "wb") as file:
        for document in found:
            raw = document.text.encode()
            file.write(len(raw).to_bytes(8, "little") + raw)
            hashes.append(int.from_bytes(hashlib.sha256(raw.strip()).digest()[:8], "little"))
            if len(origins) < MAX_ORIGINS:
                origins[document.origin] = None
    return np.array(hashes, np.uint64), list(origins)


def _read_spool(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        while size := file.read(8):
            yield file.read(int.from_bytes(size, "little")).decode()


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


def _tokenized(texts: Iterable[str], tokenizer: TextTokenizer, facts: dict[str, int]) -> Iterator[list[int]]:
    """Yield the tokens of the texts, each behind the end of another and the start of its own (in our tokenizers one
    token); add their bytes to `facts`. Empty texts are left out."""
    batch: list[str] = []
    begins: list[bool] = []  # whether a piece is the first of its text
    opening = list(dict.fromkeys([tokenizer.eot, tokenizer.start]))
    waiting = 0

    def flush() -> Iterator[list[int]]:
        for begin, ids in zip(begins, tokenizer.encode_batch(batch), strict=True):
            yield [*opening, *ids] if begin else ids

    for text in filter(None, texts):
        facts["bytes"] += len(text.encode())
        for number, piece in enumerate(tokenizer.pieces(text)):
            batch.append(piece)
            begins.append(number == 0)
            waiting += len(piece)
            if waiting >= BATCH:
                yield from flush()
                batch, begins, waiting = [], [], 0
    yield from flush()
