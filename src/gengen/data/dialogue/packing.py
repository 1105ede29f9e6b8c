"""Conversations, preferences, ratings and prompts as tokens: one part of each kind, and how batches are laid out."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gengen.data.dialogue.records import Record
from gengen.data.dialogue.template import Messages, conversation_tokens, prompt_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.data.text.windows import NO_LABEL

LENGTHS = 16  # what the length of a batch of pairs is a multiple of, so that there are few of them


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Return which lengths, each `room` at most, share a row: longest first, each where it leaves the least room."""
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
    """One part of the data, as far as the model's context holds it. A batch of prompts is {"index"} (B,) int64."""

    beyond = -1  # tokens that a sequence may have more than the context
    lacks = "no room for an answer"  # why an example is left out

    def __init__(self, found: list[Record], tokenizer: TextTokenizer, context: int, train_on: str):
        self.start, self.context, self.cut = tokenizer.start, context, 0
        self.records: list[Record] = []
        self.examples: list[list[np.ndarray]] = []
        """Of each record its sequences, (2, T) int32: tokens, and 1 where they are trained on."""
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
        """Return how many rows batches are made of."""
        return len(self.examples)

    def __getitem__(self, i: int) -> list[int]:
        """Return the tokens of example i, of its first sequence."""
        return self.examples[i][0][0].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[i] for i in range(len(self.examples)))

    @property
    def n_tokens(self) -> int:
        """All tokens of all sequences."""
        return sum(pair.shape[1] for example in self.examples for pair in example)

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        return {"index": torch.from_numpy(index)}

    @staticmethod
    def encode(tokenizer: TextTokenizer, record: Record, train_on: str) -> list[tuple[list[int], list[int]]]:
        """Return (tokens, mask) of each sequence. A prompt's last token is marked: without it, there is nothing to
        answer."""
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
        margin = torch.tensor([self.records[i]["margin"] for i in index])
        return side_by_side([self.examples[i] for i in index], self.context) | {"margin": margin}

    @staticmethod
    def encode(tokenizer: TextTokenizer, record: Record, train_on: str) -> list[tuple[list[int], list[int]]]:
        return [
            answered(tokenizer, record["prompt"], record[side], record[f"{side}_ended"])
            for side in ("chosen", "rejected")
        ]


class Ratings(Prompts):
    """A batch is {"tokens"} (B, 2, T) and {"mask"} (B, 2, T - 1), as of preferences: a prompt with its answer, and the
    same prompt with the answer to another one, by which the KL is estimated; {"good"} (B,) float, 1 or 0."""

    beyond, lacks = 0, "nothing of an answer"

    def __init__(self, found: list[Record], tokenizer: TextTokenizer, context: int, train_on: str):
        super().__init__(found, tokenizer, context, train_on)
        own = [pair for (pair,) in self.examples]
        for i, other in enumerate(next_of_another([str(record["prompt"]) for record in self.records])):
            asked, said = own[i][:, own[i][1] == 0], own[other][:, own[other][1] == 1]
            self.examples[i].append(np.concatenate([asked, said], 1)[:, :context])

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        good = torch.tensor([float(self.records[i]["good"]) for i in index])
        return side_by_side([self.examples[i] for i in index], self.context) | {"good": good}

    @staticmethod
    def encode(tokenizer: TextTokenizer, record: Record, train_on: str) -> list[tuple[list[int], list[int]]]:
        return [answered(tokenizer, record["prompt"], record["answer"], record["ended"])]


def answered(tokenizer: TextTokenizer, prompt: Messages, answer: str, ended: bool) -> tuple[list[int], list[int]]:
    """Return (tokens, mask) of a prompt and an answer to it, 1 where a token is the answer's."""
    asked = prompt_tokens(tokenizer, prompt)
    said = tokenizer.encode(answer) + [tokenizer.chat["end"]] * ended
    return [*asked, *said], [0] * len(asked) + [1] * len(said)


def next_of_another(groups: list[str]) -> list[int]:
    """Return of each place the next one, around the end, that is of another group; of a single group the next one."""
    n = len(groups)
    following = [(i + 1) % n for i in range(n)]
    if len(set(groups)) > 1:
        for i in reversed(range(2 * n)):  # twice around: the first time, the last ones do not know those at the start
            here, after = i % n, (i + 1) % n
            following[here] = after if groups[after] != groups[here] else following[after]
    return following


def side_by_side(examples: list[list[np.ndarray]], context: int) -> dict[str, Tensor]:
    """Return {"tokens" (B, 2, T) int64, "mask" (B, 2, T - 1)} of examples of two sequences, zeros to the right."""
    longest = max(pair.shape[1] for example in examples for pair in example)
    both = np.zeros((2, len(examples), 2, min(-(-longest // LENGTHS) * LENGTHS, context)), np.int64)
    for row, example in enumerate(examples):
        for side, pair in enumerate(example):
            both[:, row, side, : pair.shape[1]] = pair
    tokens, mask = torch.from_numpy(both)
    return {"tokens": tokens, "mask": mask[..., 1:].float()}


KINDS: dict[str, type[Prompts]] = {
    "conversations": Conversations, "preferences": Preferences, "ratings": Ratings, "prompts": Prompts,
}  # fmt: skip
