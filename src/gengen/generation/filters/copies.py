"""A guard against copying: so many tokens in a row that stand so in the training text are found, all of them."""

from collections.abc import Sequence

import numpy as np

from gengen.data.text.shards import TokenStream
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.filters.base import FilterRequest, Finding

LEAST, USUAL = 8, 32  # tokens in a row
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so no token's part of a hash is ever lost


def hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """Return a number for each run of so many tokens, (N - length + 1,) uint64: sum of (token + 1) FACTOR^j."""
    windows = max(len(tokens) - length + 1, 0)
    total, factor = np.zeros(windows, np.uint64), np.ones(1, np.uint64)
    for j in range(length):
        total += (tokens[j : j + windows].astype(np.uint64) + np.uint64(1)) * factor
        factor = factor * FACTOR
    return total


class CopyIndex:
    """Every run of `length` tokens of a text, by its hash; what a hash finds is compared token by token.

    Takes 12 bytes a token of the text in memory, and about a second for 10^7 of them.
    """

    def __init__(self, stream: TokenStream, length: int):
        self.stream, self.length = stream, length
        found = hashes(stream.read(0, len(stream)), length)
        order = found.argsort(kind="stable")
        self.hashes, self.places = found[order], order.astype(np.uint32 if len(stream) < 2**32 else np.uint64)

    def copied(self, tokens: np.ndarray) -> list[int]:
        """Return where in tokens (N,) a run of `length` begins that the text has too."""
        wanted = hashes(tokens, self.length)
        first, last = self.hashes.searchsorted(wanted), self.hashes.searchsorted(wanted, "right")
        return [
            int(at)
            for at in np.flatnonzero(first < last)
            if any(self.same(tokens[at : at + self.length], int(place)) for place in self.places[first[at] : last[at]])
        ]

    def longest(self, tokens: np.ndarray) -> tuple[int, int]:
        """Return where in tokens (N,) the longest passage begins that the text has too, and how many tokens it has;
        (0, 0) where none has `length` of them. It is followed by its hashes, and then compared token by token."""
        wanted = hashes(tokens, self.length)
        first, last = self.hashes.searchsorted(wanted), self.hashes.searchsorted(wanted, "right")
        best = (0, 0)
        starts = counts = np.zeros(0, np.int64)  # where tokens[0] would stand in the text; windows that follow so
        for at in range(len(wanted)):
            here = self.places[first[at] : last[at]].astype(np.int64) - at  # sorted, as equal hashes are by place
            counts = 1 + looked_up(here, starts, counts)
            starts = here
            if not len(here):
                continue
            i = int(counts.argmax())
            begin, length = at + 1 - int(counts[i]), int(counts[i]) + self.length - 1
            if length > best[1] and self.same(tokens[begin : begin + length], int(here[i]) + begin):
                best = (begin, length)
        return best

    def same(self, run: np.ndarray, place: int) -> bool:
        return bool((self.stream.read(place, len(run)) == run).all())


def looked_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, 0 for one that is not there; keys: sorted."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = keys.searchsorted(wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


class CopyFilter:
    """Finds what is copied from the training text. A text is tokenised anew, so a copy is found from its second word
    on, wherever the drawn tokens had their borders."""

    reads_prompts = False

    def __init__(self, index: CopyIndex, tokenizer: TextTokenizer):
        self.index, self.tokenizer = index, tokenizer
        longest = max(len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab_size))
        self.reach = (index.length + 4) * longest

    def find(self, text: str, prompt: str = "") -> Sequence[Finding]:
        tokens = self.tokenizer.encode(text)
        ends = np.cumsum([0, *(len(self.tokenizer.decode_bytes([token])) for token in tokens)])
        raw = np.frombuffer(text.encode(errors="replace"), np.uint8)
        characters = np.cumsum([0, *((raw & 0xC0) != 0x80)])  # bytes -> how many characters have begun before
        found = self.index.copied(np.array(tokens, np.int64))
        return [
            Finding(int(characters[ends[at]]), int(characters[ends[at + self.index.length]]), "copy") for at in found
        ]


def make(request: FilterRequest) -> CopyFilter:
    option = request.option or str(USUAL)
    if not option.isdecimal() or int(option) < LEAST:
        raise UserError(
            f"filter=copies:{option}: the least number of tokens in a row to be called a copy, {LEAST} or more"
        )
    return CopyFilter(CopyIndex(request.training_text(), int(option)), request.tokenizer)
