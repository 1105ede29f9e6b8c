"""Conversations, preferences and prompts: records prepared once, and their tokens drawn in whole steps.

    <data.dir>/prepared/<name>-<fingerprint>/  train.jsonl  val.jsonl  meta.json

A record is made tokens when it is opened; what the model's context does not hold is cut off then, and that is said.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gengen.config.data import ExamplesConfig
from gengen.config.model import ModelConfig
from gengen.config.redact import redact
from gengen.data import order
from gengen.data.dialogue.records import Record, describe_source, records, source_facts
from gengen.data.dialogue.template import Messages, coloured, conversation_tokens, prompt_tokens
from gengen.data.prepared import Prepared, fingerprint, made_once, write_text
from gengen.data.sources.files import Say, Skips, in_words
from gengen.data.text.tokenizer import TextTokenizer
from gengen.data.text.windows import NO_LABEL
from gengen.errors import UserError

FORMAT = 2  # raise it when the same source would be prepared differently
LENGTHS = 16  # what the length of a batch of preferences is a multiple of, so that there are few of them


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Which lengths, each `room` at most, lie together in a row: longest first, each where it leaves the least room."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows that have so much left
    some = 0  # bit r: by_room[r] is not empty
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = some >> lengths[i]
        left = lengths[i] + (fits & -fits).bit_length() - 1 if fits else room  # the lowest bit
        if not fits:
            by_room[room].append(len(rows))
            rows.append([])
        rows[row := by_room[left].pop()].append(i)
        by_room[left - lengths[i]].append(row)
        some = (some if by_room[left] else some & ~(1 << left)) | 1 << (left - lengths[i])
    return rows


class Prompts:
    """One split of a kind of data, as far as the model's context holds it. Of prompts, a batch is {"index"} (B,)
    int64.
    """

    beyond = -1  # tokens that a sequence may have more than the context
    lacks = "no room for an answer"  # why an example is left out

    def __init__(self, found: list[Record], tokenizer: TextTokenizer, context: int, train_on: str):
        self.start, self.context, self.cut = tokenizer.start, context, 0
        self.records: list[Record] = []
        self.examples: list[
            list[np.ndarray]
        ] = []  # of each its sequences, (2, T): tokens, and 1 where they are trained on
        self.left_out: list[Record] = []
        for record in found:
            whole = [np.array(pair, np.int32) for pair in self.encode(tokenizer, record, train_on)]
            held = [pair[:, : context + self.beyond].copy() for pair in whole]
            if all(pair[1].any() for pair in held):
                self.records.append(record)
                self.examples.append(held)
                self.cut += any(pair.shape != full.shape for pair, full in zip(held, whole, strict=True))
            else:
                self.left_out.append(record)

    def __len__(self) -> int:
        """How many things batches are made of."""
        return len(self.examples)

    def __getitem__(self, i: int) -> list[int]:
        """The tokens of example i."""
        return self.examples[i][0][0].tolist()

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        return {"index": torch.from_numpy(index)}

    @staticmethod
    def encode(tokenizer: TextTokenizer, record: Record, train_on: str) -> list[tuple[list[int], list[int]]]:
        """(tokens, mask) of each sequence. Of a prompt the last token is marked: without it, there is nothing to
        answer.
        """
        tokens = prompt_tokens(tokenizer, record["prompt"])
        return [(tokens, [0] * (len(tokens) - 1) + [1])]


class Conversations(Prompts):
    """A batch is {"tokens", "labels"}, (B, context) int64: rows of whole conversations, each of which begins with the
    start token; labels are -100 where nothing is trained on."""

    beyond, lacks = 1, "nothing that is trained on"  # the last token is a label only

    def __init__(self, found: list[Record], tokenizer: TextTokenizer, context: int, train_on: str):
        super().__init__(found, tokenizer, context, train_on)
        self.rows = best_fit([pair.shape[1] - 1 for (pair,) in self.examples], context)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        tokens, labels = np.full((2, len(index), self.context), [[[self.start]], [[NO_LABEL]]])
        for row, at in enumerate(index):
            end = 0
            for found, mask in (self.examples[i][0] for i in self.rows[at]):
                begin, end = end, end + len(found) - 1
                tokens[row, begin:end], labels[row, begin:end] = found[:-1], np.where(mask[1:], found[1:], NO_LABEL)
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}

    @staticmethod
    def encode(tokenizer: TextTokenizer, record: Record, train_on: str) -> list[tuple[list[int], list[int]]]:
        return [conversation_tokens(tokenizer, record["messages"], train_on)]


class Preferences(Prompts):
    """A batch is {"tokens"} (B, 2, T) int64, the chosen before the rejected, with zeros to the right of each; {"mask"}
    (B, 2, T - 1) float, 1 at i where token i + 1 is of the response; {"margin"} (B,)."""

    beyond, lacks = 0, "nothing of a response"

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        longest = max(pair.shape[1] for i in index for pair in self.examples[i])
        both = np.zeros((2, len(index), 2, min(-(-longest // LENGTHS) * LENGTHS, self.context)), np.int64)
        for row, i in enumerate(index):
            for side, pair in enumerate(self.examples[i]):
                both[:, row, side, : pair.shape[1]] = pair
        tokens, mask = torch.from_numpy(both)
        return {
            "tokens": tokens,
            "mask": mask[..., 1:].float(),
            "margin": torch.tensor([self.records[i]["margin"] for i in index]),
        }

    @staticmethod
    def encode(tokenizer: TextTokenizer, record: Record, train_on: str) -> list[tuple[list[int], list[int]]]:
        asked, end = prompt_tokens(tokenizer, record["prompt"]), tokenizer.chat["end"]
        said = [tokenizer.encode(record[side]) + [end] * record[f"{side}_ended"] for side in ("chosen", "rejected")]
        return [([*asked, *tokens], [0] * len(asked) + [1] * len(tokens)) for tokens in said]


KINDS: dict[str, type[Prompts]] = {"conversations": Conversations, "preferences": Preferences, "prompts": Prompts}


def opening(record: Record) -> Messages:
    """The messages before the assistant first speaks."""
    return list(takewhile(lambda message: message["role"] != "assistant", record.get("prompt") or record["messages"]))


@dataclass(frozen=True)
class PreparedExamples(Prepared):
    """Prepared examples, opened for a model's context. `config` is the one given."""

    config: ExamplesConfig
    tokenizer: TextTokenizer
    meta: dict[str, Any]
    train: Prompts
    val: Prompts

    @property
    def model_facts(self) -> dict[str, Any]:
        """What the data fixes of the model."""
        packed = isinstance(self.train, Conversations)  # only then has a row several texts, to be kept apart
        return {"vocab_size": self.tokenizer.vocab_size, "document_token": self.tokenizer.start if packed else None}

    def batch(self, split: str, index: Sequence[int] | Tensor, flipped: Tensor | None = None) -> dict[str, Tensor]:
        """See Prompts, Conversations and Preferences; `flipped` is for images."""
        return getattr(self, split).batch(np.asarray(index))

    def prompts(self, split: str, iteration: int, count: int, seed: int) -> np.ndarray:
        """The examples of an iteration, (count,): each once a pass, in an order of its own."""
        return order.images(iteration * count, count, seed, len(getattr(self, split)))[0]

    def sample_prompts(self, n: int) -> list[list[int]]:
        """The tokens of the first held-out prompts, up to where the assistant speaks; without those that leave it no
        room.
        """
        asked = (prompt_tokens(self.tokenizer, opening(record)) for record in self.val.records[:n])
        return [tokens for tokens in asked if len(tokens) < self.val.context]

    def describe(self) -> list[str]:
        """What it is, in aligned lines."""
        parts = (self.train, self.val)
        tokens = [sum(pair.shape[1] for example in part.examples for pair in example) for part in parts]
        rows = f" in {len(self.train):,} and {len(self.val):,} rows of {self.train.context}" * isinstance(
            self.train, Conversations
        )
        sizes = f"{len(self.train.examples):,} for training, {len(self.val.examples):,} for validation ({self.meta['split']})"
        shown = coloured(self.tokenizer, *self.train.examples[0][0].tolist())
        return self.described(
            {self.config.kind: sizes, "tokens": f"{tokens[0]:,} and {tokens[1]:,}{rows}", "the first": shown}
        )

    def say_what_is_cut(self, say: Say) -> None:
        """Name what the context does not hold; a UserError where nothing is left."""
        for split, part in (("train", self.train), ("val", self.val)):
            of = f"of {len(part.examples) + len(part.left_out):,} {self.config.kind} ({split})"
            context = f"the context of {part.context} tokens"
            if part.cut:
                say(f"data: {part.cut:,} {of} are longer than {context}, and cut at their end")
            if out := part.left_out:
                say(
                    f"data: {len(out):,} {of} have {part.lacks} in {context}, and are left out; first: {out[0]['origin']}"
                )
            if not part.examples:
                raise UserError(f"data: the {split} part of {self.meta['source']} is empty")
            if equal := sum(np.array_equal(one, other) for one, *others in part.examples for other in others):
                if equal == len(part.examples) and split == "train":
                    raise UserError(
                        f"data: in all {of} the chosen response is the rejected one: nothing can be learnt"
                    )
                say(f"data: in {equal:,} {of} the chosen response is the rejected one, which says nothing")


def prepare_for(config: ExamplesConfig, model: ModelConfig, say: Say, tokenizer: str | None) -> PreparedExamples:
    """Open the prepared data of this config, and make it first where it is missing or damaged.

    tokenizer: that of the run which goes on, as JSON; without one, text is bytes.
    """
    asked, config = config, replace(config, source="files" if config.path else "hub" if config.hub else config.source)
    chat = (TextTokenizer.from_json(tokenizer) if tokenizer else TextTokenizer.byte()).with_chat()
    kind = config.kind
    facts = {key: getattr(config, key) for key in ("source", "validation", "max_bad", "max_examples")}
    digest, _ = fingerprint(facts | {"kind": kind} | source_facts(config), FORMAT)
    home = Path(config.dir) / "prepared" / f"{config.name}-{digest[:16]}"

    def open_() -> PreparedExamples:
        try:
            meta, parts = json.loads((home / "meta.json").read_bytes()), {}
            for part in ("train", "val"):
                found = [json.loads(line) for line in (home / f"{part}.jsonl").read_bytes().splitlines()]
                if (meta["fingerprint"], meta[part]) != (digest, len(found)):
                    raise ValueError(f"{len(found)} records in {part}.jsonl, expected {meta[part]}")
                parts[part] = KINDS[kind](found, chat, getattr(model, "context"), getattr(config, "train_on", ""))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{home}: damaged ({type(error).__name__}: {error})") from error
        return PreparedExamples(asked, chat, meta, **parts)

    def build(built: Path, spool: Path) -> None:
        skips = Skips(config.max_bad)
        found = list(records(config, kind, skips, say))
        source, licence = describe_source(config)
        meta: dict[str, Any] = {
            "fingerprint": digest,
            "source": source,
            "licence": licence,
            "split": "as the source is divided",
        }
        if not any(record["split"] for record in found):
            if copies := len(found) - len(set(map(content, found))):
                held = "what is asked is held out with every answer"
                say(f"data: {copies:,} of {len(found):,} {kind} are copies of others; {held}")
            found, meta["split"] = apart(found, config.validation), f"{config.validation:.0%} of what is asked"
        for part in ("train", "val"):
            lines = [json.dumps(record, default=str) + "\n" for record in found if record["split"] == part]
            write_text(built / f"{part}.jsonl", "".join(lines))
            meta[part] = len(lines)
        if skips.bad:
            say(f"data: skipped what cannot be read: {in_words(skips.summary())}")
        write_text(built / "meta.json", redact(json.dumps(meta | {"skips": skips.summary()}, indent=2)))

    prepared = made_once(home, open_, build, say)
    prepared.say_what_is_cut(say)
    return prepared


def content(record: Record) -> str:
    """A record, wherever it was read."""
    return json.dumps({key: value for key, value in record.items() if key != "origin"}, sort_keys=True, default=str)


def apart(found: list[Record], share: float) -> list[Record]:
    """The records, a share of all that is asked held out, whatever the answers; chosen by hash, which no order
    changes.
    """
    asked = [json.dumps(opening(record)) for record in found]
    line = sorted(set(asked), key=lambda text: hashlib.sha256(text.encode()).digest())
    taken = set(line[: max(1, round(share * len(line)))])
    return [record | {"split": "val" if text in taken else "train"} for record, text in zip(found, asked, strict=True)]
