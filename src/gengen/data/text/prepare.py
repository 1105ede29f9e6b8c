"""Documents -> a folder of token shards, made once and named by a fingerprint of all that shaped it.

    <data.dir>/prepared/<name>-<fingerprint>/  train-00000.bin ...  val-00000.bin ...  tokenizer.json  meta.json

How it is made once, whole or not at all, is in once.py.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gengen.config.data import TextConfig
from gengen.config.redact import redact
from gengen.data.prepared import Prepared, file_facts, fingerprint, made_once, write_text
from gengen.data.sources import storygen
from gengen.data.sources.files import (
    Document,
    Say,
    Skips,
    describe_source,
    documents,
    find_files,
    in_words,
    resolve_source,
)
from gengen.data.sources.wheels import pin
from gengen.data.text.shards import TokenStream, write_shards
from gengen.data.text.tokenizer import TextTokenizer, pieces
from gengen.errors import UserError

FORMAT = 2  # raise it when the same source would be prepared differently
BPE_CHARACTERS = 64_000_000  # of the training text, from all over it, that BPE is trained on
BATCH = 2**22  # characters tokenized at a time
MAX_HASHED = 64 * 2**20  # bytes; a larger file is told by its size and time of change
MAX_ORIGINS = 100
COPIES = {
    "content": "they are held out together",
    "tails": "the same ends of them are held out",
    "documents": "some may be held out and others trained on; data.split=content keeps them together",
}


@dataclass(frozen=True)
class PreparedText(Prepared):
    """Prepared data, opened. `config` is the one given with its source settled."""

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
        """What the data fixes of the model."""
        return {"vocab_size": self.tokenizer.vocab_size}

    def describe(self) -> list[str]:
        """What it is, in aligned lines."""
        tokens = f"{len(self.train):,} for training, {len(self.val):,} for validation ({self.meta['split']})"
        ratio = f"{self.meta['bytes_per_token']:.3f} with {self.tokenizer.vocab_size:,} tokens in the vocabulary"
        copies = self.meta.get("copies")
        documents = f"{self.meta['documents']:,}" + (f", {copies:,} of them copies of others" if copies else "")
        return self.described({"documents": documents, "tokens": tokens, "bytes/token": ratio})


def prepare(config: TextConfig, vocab_size: int, say: Say, tokenizer: TextTokenizer | None = None) -> PreparedText:
    """Open the prepared data of this config, and make it first where it is missing or damaged.

    vocab_size: tokens at most, for a BPE that is trained here; tokenizer: one to use instead. say: takes progress
    lines.
    """
    config = resolve_source(config, say)
    if config.tokenizer == "byte" and tokenizer is None:
        tokenizer = TextTokenizer.byte()
    digest, version = fingerprint(facts_of(config, tokenizer.hash if tokenizer else f"bpe {vocab_size}"), FORMAT)
    home = Path(config.dir) / "prepared" / f"{config.name}-{digest[:16]}"

    def build(folder: Path, spool: Path) -> None:
        _build(folder, spool, config, vocab_size, tokenizer, {"format": version, "fingerprint": digest}, say)

    return made_once(home, lambda: _open(home, config, digest), build, say)


def facts_of(config: TextConfig, tokenizer: str) -> dict[str, Any]:
    """All that shapes the prepared data: source, tokenizer, split. Not the folder it goes to, nor the hub's revision,
    which must not be needed to open what is there; meta.json records it."""
    facts: dict[str, Any] = {
        key: getattr(config, key) for key in ("source", "split", "validation", "max_documents", "max_bad", "field")
    }
    facts["tokenizer"] = tokenizer
    if config.source == "hub":
        facts["hub"] = config.hub
    elif config.source == "wheel":
        facts |= {"wheel": pin(config.wheel).line.split(), "members": config.members}
    elif config.source == "storygen":
        facts["storygen"] = storygen.FORMAT
    else:
        facts["files"] = files_facts(config.path, find_files(config.path))
    return facts


def files_facts(path: str | None, files: list[Path]) -> list[list[Any]]:
    """[name below data.path, bytes, what tells the content] of each file."""
    root = Path(path or "")
    return [[str(file.relative_to(root)), *file_facts(file, file.stat().st_size <= MAX_HASHED)] for file in files]


def _open(home: Path, config: TextConfig, fingerprint: str) -> PreparedText:
    """What lies in a finished folder, verified; a UserError that names what is damaged."""
    try:
        meta = json.loads((home / "meta.json").read_bytes())
        tokenizer = TextTokenizer.from_json((home / "tokenizer.json").read_bytes().decode())
        train, val = (TokenStream(home, split, tokenizer.hash) for split in ("train", "val"))
        counts, expected = (len(train), len(val)), (meta["train"]["tokens"], meta["val"]["tokens"])
        if meta["fingerprint"] != fingerprint or counts != expected:
            raise ValueError(
                f"{counts} tokens of {meta['fingerprint'][:16]}, expected {expected} of {fingerprint[:16]}"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{home}: damaged ({type(error).__name__}: {error})") from error
    return PreparedText(config, tokenizer, meta, train, val)


def _build(
    built: Path,
    spool: Path,
    config: TextConfig,
    vocab_size: int,
    tokenizer: TextTokenizer | None,
    made: dict[str, Any],
    say: Say,
) -> None:
    """Read the source once into a spool on disk, then learn the tokenizer and write each split from there."""
    skips = Skips(config.max_bad)
    hashes, origins = _write_spool(spool, documents(config, skips, say))
    count, copies = len(hashes), len(hashes) - len(np.unique(hashes))
    every = round(1 / config.validation)
    split = config.split
    if split != "tails" and 0 < count - (copies if split == "content" else 0) < 2 * every:
        different = f"{count - copies} different" if copies else count
        last = f"the last {config.validation:.0%} of each is held out"
        say(f"data: {different} documents are too few to hold out every {every}th; {last}")
        split = "tails"
    if copies:
        say(f"data: {copies:,} of {count:,} documents are copies of others; {COPIES[split]}")
    val = held_out(hashes, config.validation) if split == "content" else np.arange(count) % every == every - 1

    def texts(part: str) -> Iterator[str]:
        for number, text in enumerate(_read_spool(spool)):
            if split == "tails":
                cut = int(len(text) * (1 - config.validation))
                yield text[:cut] if part == "train" else text[cut:]
            elif val[number] == (part == "val"):
                yield text

    if tokenizer is None:
        share = min(1.0, BPE_CHARACTERS / max(1, sum(map(len, texts("train"))))) if made["format"] > 1 else 1.0
        tokenizer = TextTokenizer.train(_sample(texts("train"), share), vocab_size)
    parts: dict[str, dict[str, int]] = {}
    for part in ("train", "val"):
        facts = {"bytes": 0}
        chunks = _tokenized(texts(part), tokenizer, facts)
        facts["tokens"] = write_shards(built, part, chunks, tokenizer.vocab_size, tokenizer.hash)
        if not facts["tokens"]:
            raise UserError(
                f"data: the {part} part is empty: {count} documents, data.split={split}, data.validation={config.validation}"
            )
        parts[part] = facts
    source, licence = describe_source(config)
    ratio = sum(p["bytes"] for p in parts.values()) / sum(p["tokens"] for p in parts.values())
    meta = {
        **made, "name": config.name, "source": source, "licence": licence, "split": split, "documents": count, "copies": copies,
        **parts, "bytes_per_token": ratio, "tokenizer": tokenizer.hash, "vocab_size": tokenizer.vocab_size,
        "origins": origins, "skips": skips.summary(),
    }  # fmt: skip
    if skips.bad:
        say(f"data: skipped what cannot be read: {in_words(skips.summary())}")
    write_text(built / "tokenizer.json", tokenizer.to_json())
    write_text(built / "meta.json", redact(json.dumps(meta, indent=2)))


def held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which documents are for validation, (N,) bool: a share of the different ones with all their copies, in any
    order.
    """
    different = np.unique(hashes)
    return np.isin(hashes, different[: max(1, round(share * len(different)))])


def _write_spool(path: Path, found: Iterable[Document]) -> tuple[np.ndarray, list[str]]:
    """Write the texts, each behind its length; return their hashes (N,), white space around a text left aside, and the
    origins, the first hundred of them."""
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
    """A share of the texts in pieces, evenly from beginning to end, and BPE_CHARACTERS or so at most."""
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
    """The tokens of the texts, each behind the end of another and the start of its own (in our tokenizers one token),
    its bytes added to facts. Empty texts are left out."""
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
