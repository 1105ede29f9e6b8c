"""A watermark of text that its key finds again: a soft green list (Kirchenbauer et al. 2023, algorithm 2, h = 1).

The key and the token before decide by a fair coin for each token of the vocabulary whether it is green. Green tokens
get `delta` more on their logits. Of a text that knows nothing of the key half of the tokens are green; of a marked one
more, as far as the model left a choice: where only one token will do, the mark has no room.
"""

from collections.abc import Sequence
from hashlib import shake_256
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gengen.generation.evidence import Evidence
from gengen.generation.text.generator import TextGenerator

PURPOSE = b"gengen text watermark"


class Watermark:
    """A processor of logits (processor.py) that prefers green tokens, and the detector of what it left.

    It is a function of the key, the logits and the last token of each row alone, so sample i stays a function of
    (seed, i). delta: 2 makes a green token 7.4 times as likely, beside a red one, as the model has it.
    """

    def __init__(self, key: bytes, delta: float = 2.0):
        self.key, self.delta = key, delta

    @property
    def key_id(self) -> str:
        """Return what tells this key from others, and nothing of it: no other use makes this hash."""
        return shake_256(PURPOSE + b" id" + self.key).hexdigest(4)

    def __call__(self, logits: Tensor, tokens: list[list[int]]) -> Tensor:
        """Return logits (B, V) with delta added to those of green tokens."""
        green = self.green([row[-1] for row in tokens], logits.shape[-1])
        return logits + self.delta * torch.from_numpy(green).to(logits)

    def green(self, before: Sequence[int], vocab_size: int) -> np.ndarray:
        """Return which tokens are green after each of the tokens `before`, (B, V) of 0 and 1: the first V bits of
        SHAKE-256 of the key and that token, whatever V."""
        size = -(-vocab_size // 8)
        digests = [shake_256(PURPOSE + self.key + token.to_bytes(8)).digest(size) for token in before]
        return np.unpackbits(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, size), axis=1, count=vocab_size)

    def detect(self, tokens: Sequence[int], prompt: int = 1) -> Evidence:
        """Count the green ones of a text's tokens, without the first `prompt`, which it did not draw.

        Each pair of a token and the one before counts once: what repeats itself says nothing new, and would make
        chance look like a mark (Fernandez et al. 2023). The first token of all has none before it.
        """
        first = max(prompt, 1)
        after: dict[int, set[int]] = {}
        for before, token in pairwise(tokens[first - 1 :]):
            after.setdefault(before, set()).add(token)
        matching = sum(
            int(self.green([before], max(drawn) + 1)[0, list(drawn)].sum()) for before, drawn in after.items()
        )
        return Evidence(matching, sum(map(len, after.values())))

    def expected_z(self, logits: Tensor, tokens: Sequence[int], prompt: int = 1) -> float:
        """Return the z that `detect` would find on average, were these tokens' distributions marked: how much room the
        text left. Far below 4, nothing found means nothing.

        logits: (T, V) of the model at each of T tokens; the green share of each distribution, marked, is
        sum_green p e^delta / (1 + (e^delta - 1) sum_green p).
        """
        places = {pair: i for i, pair in enumerate(pairwise(tokens)) if i >= max(prompt, 1) - 1}
        if not places:
            return 0.0
        rows = list(places.values())
        green = self.green([tokens[i] for i in rows], logits.shape[-1])
        share = (logits[rows].double().softmax(-1).cpu() * torch.from_numpy(green)).sum(-1)
        grown = share * np.exp(self.delta)
        return float((2 * grown / (grown + 1 - share) - 1).sum()) / len(rows) ** 0.5


def examine(generator: TextGenerator, watermark: Watermark, text: str, prompt: str = "") -> tuple[Evidence, float]:
    """Look for the mark in a text, tokenised anew, that went on from a prompt. Returns what was counted, and the z to
    expect of a text like this, were it marked (`expected_z`)."""
    start = generator.prompt_tokens(prompt)
    tokens = [*start, *generator.tokenizer.encode(text)]
    with torch.inference_mode():
        windows = torch.tensor(tokens, device=generator.engine.device).split(generator.context)
        logits = torch.cat([generator.model(window[None])[0] for window in windows])
    expected = watermark.expected_z(logits[:, : generator.tokenizer.vocab_size], tokens, len(start))
    return watermark.detect(tokens, len(start)), expected
