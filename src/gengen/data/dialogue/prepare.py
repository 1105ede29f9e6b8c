"""Records of conversations, preferences and prompts, prepared once and opened for a model's context.

    <data.dir>/prepared/<name>-<fingerprint>/  train.jsonl  val.jsonl  meta.json

A record becomes tokens when it is opened; what the model's context does not hold is cut off then, with a line for each
part.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gengen.config.data import ConversationsConfig, ExamplesConfig
from gengen.data import order
from gengen.data.dialogue.packing import KINDS, Conversations, Preferences, Prompts
from gengen.data.dialogue.records import Record, dialogue_source, records
from gengen.data.dialogue.template import Messages, coloured, prompt_tokens
from gengen.data.prepared import Batch, FromMeta, PreparedFolder, PrepareRequest
from gengen.data.sources.skips import Skips
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.io import Say, write_text


def opening(record: Record) -> Messages:
    """Return the messages before the assistant first speaks."""
    return list(takewhile(lambda message: message["role"] != "assistant", record.get("prompt") or record["messages"]))


@dataclass(frozen=True)
class PreparedExamples(FromMeta):
    """The examples of the two parts, as tokens of a model's context. `config` is the one given."""

    config: ExamplesConfig
    tokenizer: TextTokenizer
    meta: dict[str, Any]
    train: Prompts
    val: Prompts

    @property
    def model_facts(self) -> dict[str, Any]:
        packed = isinstance(self.train, Conversations)  # only then has a row several texts, to be kept apart
        return {"vocab_size": self.tokenizer.vocab_size, "document_token": self.tokenizer.start if packed else None}

    def batch(self, split: str, index: Sequence[int] | Tensor) -> Batch:
        """Return these examples, laid out as Prompts, Conversations or Preferences say."""
        part = self.train if split == "train" else self.val
        return part.batch(np.asarray(index))

    def prompts(self, split: str, iteration: int, count: int, seed: int) -> np.ndarray:
        """Return which examples an iteration has, (count,): each once a pass, in an order of the pass's own."""
        return order.images(iteration * count, count, seed, len(self.train if split == "train" else self.val))[0]

    def sample_prompts(self, n: int) -> list[list[int]]:
        """Return the tokens of the first held-out prompts, up to where the assistant speaks; without those that leave
        it no room."""
        asked = (prompt_tokens(self.tokenizer, opening(record)) for record in self.val.records[:n])
        return [tokens for tokens in asked if len(tokens) < self.val.context]

    def describe(self) -> list[str]:
        """Return what it is, in aligned lines."""
        train, val = self.train, self.val
        sizes = f"{len(train.examples):,} for training, {len(val.examples):,} for validation ({self.meta['split']})"
        tokens = f"{train.n_tokens:,} and {val.n_tokens:,}"
        if isinstance(train, Conversations):
            tokens += f" in {len(train):,} and {len(val):,} rows of {train.context}"
        shown = coloured(self.tokenizer, *train.examples[0][0].tolist())
        return self.described({self.config.kind: sizes, "tokens": tokens, "the first": shown})

    def say_what_is_cut(self, say: Say) -> None:
        """Name what the context does not hold; raise UserError where nothing is left."""
        for split, part in (("train", self.train), ("val", self.val)):
            of = f"of {len(part.examples) + len(part.left_out):,} {self.config.kind} ({split})"
            context = f"the context of {part.context} tokens"
            if part.cut:
                say(f"data: {part.cut:,} {of} are longer than {context}, and cut at their end")
            if out := part.left_out:
                first = out[0]["origin"]
                say(f"data: {len(out):,} {of} have {part.lacks} in {context}, and are left out; first: {first}")
            if not part.examples:
                raise UserError(f"data: the {split} part of {self.meta['source']} is empty")
            pairs = part.examples if isinstance(part, Preferences) else []
            if equal := sum(np.array_equal(chosen, rejected) for chosen, rejected in pairs):
                if equal == len(part.examples) and split == "train":
                    raise UserError(
                        f"data: in all {of} the chosen response is the rejected one: nothing can be learnt"
                    )
                say(f"data: in {equal:,} {of} the chosen response is the rejected one, which says nothing")


def prepare_for(request: PrepareRequest[ExamplesConfig]) -> PreparedExamples:
    """Prepare records and open them for a model's context; without a tokenizer brought along, text is bytes."""
    asked = request.config
    source = "files" if asked.path else "hub" if asked.hub else asked.source
    tokenizer = TextTokenizer.from_json(request.tokenizer) if request.tokenizer else TextTokenizer.byte()
    folder = ExamplesFolder(
        replace(asked, source=source),
        tokenizer.with_chat(),
        getattr(request.model, "context"),
        request.say,
        request.trained_on,
    )
    prepared = replace(folder.get(request.allow_build), config=asked)
    prepared.say_what_is_cut(request.say)
    return prepared


class ExamplesFolder(PreparedFolder[PreparedExamples]):
    """Records, to be opened with a tokenizer that has a chat, for a context of so many tokens. The same folder serves
    every tokenizer and context."""

    FORMAT = 2
    config: ExamplesConfig

    def __init__(self, config: ExamplesConfig, tokenizer: TextTokenizer, context: int, say: Say, trained_on: str = ""):
        super().__init__(config, dialogue_source(config), say, trained_on)
        self.tokenizer, self.context = tokenizer, context

    def facts(self) -> dict[str, Any]:
        keys = ("source", "validation", "max_bad", "max_examples")
        return {key: getattr(self.config, key) for key in keys} | {"kind": self.config.kind}

    def opened(self, meta: dict[str, Any]) -> PreparedExamples:
        return PreparedExamples(self.config, self.tokenizer, meta, self.part("train", meta), self.part("val", meta))

    def part(self, part: str, meta: dict[str, Any]) -> Prompts:
        """Open one part; raise ValueError where a record is missing."""
        found = [json.loads(line) for line in (self.home / f"{part}.jsonl").read_bytes().splitlines()]
        if meta[part] != len(found):
            raise ValueError(f"{len(found)} records in {part}.jsonl, expected {meta[part]}")
        train_on = self.config.train_on if isinstance(self.config, ConversationsConfig) else ""
        return KINDS[self.config.kind](found, self.tokenizer, self.context, train_on)

    def build(self, folder: Path, spool: Path, skips: Skips) -> dict[str, Any]:
        """Read the source, hold out a share where it is not divided, and write each part."""
        found, split = list(records(self.config, skips, self.say)), "as the source is divided"
        source, licence = self.source.describe()
        if not any(record["split"] for record in found):
            if copies := len(found) - len(set(map(content, found))):
                kept = "what is asked is held out with every answer"
                self.say(f"data: {copies:,} of {len(found):,} {self.config.kind} are copies of others; {kept}")
            found = apart(found, self.config.validation)
            split = f"{self.config.validation:.0%} of what is asked"
        meta: dict[str, Any] = {"fingerprint": self.fingerprint, "source": source, "licence": licence, "split": split}
        for part in ("train", "val"):
            lines = [json.dumps(record, default=str) + "\n" for record in found if record["split"] == part]
            write_text(folder / f"{part}.jsonl", "".join(lines))
            meta[part] = len(lines)
        return meta


def content(record: Record) -> str:
    """Return a record as text, the same wherever it was read."""
    return json.dumps({key: value for key, value in record.items() if key != "origin"}, sort_keys=True, default=str)


def apart(found: list[Record], share: float) -> list[Record]:
    """Return the records with their split: a share of all that is asked is held out, whatever the answers; chosen by
    hash, which no order changes."""
    asked = [json.dumps(opening(record)) for record in found]
    line = sorted(set(asked), key=lambda text: hashlib.sha256(text.encode()).digest())
    taken = set(line[: max(1, round(share * len(line)))])
    return [record | {"split": "val" if text in taken else "train"} for record, text in zip(found, asked, strict=True)]
