"""The best of several texts, by a reward run. Pure: pieces and rewards in, the chosen pieces out."""

import math
from collections.abc import Sequence
from dataclasses import replace

from gengen.generation.text.rewards import Answer
from gengen.generation.text.row import Request
from gengen.serving.pieces import Piece


def answers_of(drawn: Sequence[Piece], requests: Sequence[Request], prompts: Sequence[str]) -> list[Answer]:
    """Return texts, whole and in order of their choices, as a reward reads them; as many of each prompt."""
    each = len(requests) // len(prompts)
    return [
        Answer(request.prompt, piece.ids, piece.finish_reason == "end", prompts[i // each], piece.text)
        for i, (piece, request) in enumerate(zip(drawn, requests, strict=True))
    ]


def chosen_of(drawn: Sequence[Piece], rewards: Sequence[float | None], of: int, n: int) -> list[Piece]:
    """Return the n of each `of` texts with the highest rewards, the best first and of equal ones the first drawn. What
    has no reward comes last.

    They are numbered anew, and say which sample each is, with its reward. How much of the prompt was reused is what
    the first that was drawn says: those after it reuse what it read.
    """
    chosen = []
    known = [-math.inf if reward is None else reward for reward in rewards]
    for start in range(0, len(drawn), of):
        ranked = sorted(range(start, start + of), key=lambda i: (-known[i], i))
        for place, i in enumerate(ranked[:n]):
            number, reused = start // of * n + place, drawn[start].reused
            chosen.append(replace(drawn[i], choice=number, reused=reused, reward=rewards[i], sample=i))
    return chosen
