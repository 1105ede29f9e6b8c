"""Guesses of the next tokens, which the model checks several at a time.

A guess is accepted only where it equals what the sample's own random number draws from the model's own distribution.
So a text is the same with and without guesses, to the bit where the engine is exact; only the passes are fewer.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from gengen.generation.text.engine import Engine, chunk_of
from gengen.generation.text.row import Row
from gengen.generation.text.sampling import draw, next_token_probabilities
from gengen.models.kernels.attention import FEWEST_QUERIES

LONGEST_SUFFIX = 4  # tokens that a lookup compares
GUESSES = FEWEST_QUERIES - 1  # tokens that are guessed at once: with the one before them a whole chunk
MOST_ROWS = 16  # tokens in one pass up to which guessing may pay: more of them cost as much as they save
WINDOW, WORTH, REST = 64, 0.6, 1024  # after so many passes with fewer guesses accepted a pass, none for so many passes


class Guesser(Protocol):
    """Says what some texts may go on with."""

    def guess(self, rows: Sequence[Row], count: int) -> list[list[int]]:
        """Return the next tokens of each row, `count` at most."""
        ...

    def forget(self, row: Row) -> None:
        """Let go of what is kept for a text that has ended."""
        ...


class Speculation:
    """When to guess: while few texts are drawn, and as long as enough of the guesses are right.

    passes, offered, accepted: since the start, passes with guesses, guesses, and those that were right.
    """

    def __init__(self, guesser: Guesser):
        self.guesser = guesser
        self.passes = self.offered = self.accepted = 0
        self.window = [0, 0]  # passes and right guesses since the last look at them
        self.resting = 0

    def guess(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return what to check, for each row; nothing where it does not pay."""
        if self.resting or len(rows) * (GUESSES + 1) > MOST_ROWS:
            self.resting = max(0, self.resting - 1)
            return []
        guesses = self.guesser.guess(rows, GUESSES)
        self.offered += sum(map(len, guesses))
        return guesses if any(guesses) else []

    def count(self, accepted: int) -> None:
        """Take note of a pass, and of how many of its guesses were right."""
        self.passes, self.accepted = self.passes + 1, self.accepted + accepted
        self.window = [self.window[0] + 1, self.window[1] + accepted]
        if self.window[0] == WINDOW:
            self.resting = REST if self.window[1] < WORTH * WINDOW else 0
            self.window = [0, 0]


class PromptLookup:
    """Guesses that a text goes on as it did the last time it said the same few words."""

    def guess(self, rows: Sequence[Row], count: int) -> list[list[int]]:
        return [continuation_of(row.tokens, count) for row in rows]

    def forget(self, row: Row) -> None:
        pass


def continuation_of(tokens: list[int], count: int) -> list[int]:
    """Return what followed the last occurrence of the longest suffix of some tokens, LONGEST_SUFFIX of them at most,
    that stands in them before."""
    for length in range(min(LONGEST_SUFFIX, len(tokens) - 1), 0, -1):
        suffix = tokens[-length:]
        for at in range(len(tokens) - length - 1, -1, -1):
            if tokens[at : at + length] == suffix:
                return tokens[at + length : at + length + count]
    return []


class DraftModel:
    """Guesses what a smaller model draws by the same random numbers; its tokenizer must be the same."""

    def __init__(self, engine: Engine, vocab_size: int, context: int, rows: int):
        self.engine, self.vocab_size, self.context = engine, vocab_size, context
        self.memory = engine.memory(rows, context)
        self.free = list(range(rows))
        self.places: dict[Row, tuple[int, int]] = {}  # of each text: its row in the memory, how many tokens it holds

    def guess(self, rows: Sequence[Row], count: int) -> list[list[int]]:
        fits = [row for row in rows if len(row.tokens) + count <= self.context]
        for row in fits:
            self.catch_up(row)
        guessed: dict[Row, list[int]] = {row: [] for row in rows}
        numbers = {row: row.next_numbers(count) for row in fits}
        for step in range(count if fits else 0):
            newest = [[(row.tokens + guessed[row])[-1]] for row in fits]
            held = [self.places[row] for row in fits]
            features = self.engine.read(newest, [at for at, _ in held], [seen + step for _, seen in held], self.memory)
            logits = self.engine.logits(features)[:, -1, : self.vocab_size]
            for i, row in enumerate(fits):
                c, u = row.request.settings, torch.tensor([numbers[row][step]], dtype=torch.float64)
                odds = next_token_probabilities(logits[i : i + 1], c.temperature, c.top_k, c.top_p, c.min_p)
                guessed[row].append(int(draw(odds, u.to(odds.device))))
        return [guessed[row] for row in rows]

    def catch_up(self, row: Row) -> None:
        """Read what a text has come to since its last guess, but for its last token."""
        at, seen = self.places.get(row) or (self.free.pop(), 0)
        seen = min(seen, len(row.tokens) - 1)
        while unread := len(row.tokens) - 1 - seen:
            part = row.tokens[seen:-1][: chunk_of(unread, self.context - seen)]
            padded = [*part, *[0] * (chunk_of(unread, self.context - seen) - len(part))]
            self.engine.read([padded], [at], [seen], self.memory)
            seen += len(part)
        self.places[row] = at, seen

    def forget(self, row: Row) -> None:
        if row in self.places:
            self.free.append(self.places.pop(row)[0])
