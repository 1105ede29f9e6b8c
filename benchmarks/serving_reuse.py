"""What a server saves by what it has read before, and by guessing: first tokens of prompts that begin alike, and texts
that repeat themselves beside texts that do not.

    python benchmarks/serving_reuse.py RUN [shared=512] [tokens=100] [rounds=5] [threads=2]

RUN has a context of more than `shared` tokens. Cold: a prompt whose beginning nobody sent before; warm: one whose
first `shared` tokens are those of another. Bar: warm takes .3 of cold at most. Guessing (guess=lookup) at one stream,
beside a server without: a text that a regular expression makes repeat itself, bar 1.3; and one that is drawn freely,
bar .95.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from turns import arguments, ratio, spread, take_turns

from serving import NEVER_ENDS, server

REPEATS = r'(\{"name": "cat", "legs": 4, "says": "meow"\},\n){50}'
TAIL = 16  # tokens of a prompt that are its own


class Asks:
    """A client of one server. Each prompt is made of numbers that no other has."""

    def __init__(self, url: str, model: str, shared: int):
        self.client, self.model, self.draw = httpx.Client(base_url=url, timeout=600), model, random.Random(0)
        about = self.client.get(f"/v1/models/{model}").json()["gengen"]
        self.vocabulary, self.shared = about["vocabulary"], shared
        if about["context"] <= shared + TAIL:
            raise SystemExit(f"{model} has a context of {about['context']} tokens: too few for shared={shared}")
        self.beginning = self.tokens(shared)

    def tokens(self, count: int) -> list[int]:
        return [self.draw.randrange(1, self.vocabulary) for _ in range(count)]

    def seconds(self, prompt: list[int] | str, tokens: int, **settings: Any) -> float:
        """Ask for so many tokens at most. Returns how long a token takes."""
        begun = time.perf_counter()
        asked = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "seed": 0,
            "temperature": 1.0,
            **settings,
        }
        answer = self.client.post("/v1/completions", json=asked)
        answer.raise_for_status()
        return (time.perf_counter() - begun) / answer.json()["usage"]["completion_tokens"]

    def cold(self) -> float:
        return self.seconds(self.tokens(self.shared + TAIL), 1)

    def warm(self) -> float:
        return self.seconds(self.beginning + self.tokens(TAIL), 1)

    def repeating(self, tokens: int) -> float:
        return self.seconds("", tokens, regex=REPEATS)

    def free(self, tokens: int) -> float:
        return self.seconds("Once upon a time", tokens, **NEVER_ENDS)


def main(run: str, shared: int, tokens: int, rounds: int, threads: int) -> None:
    model = Path(run).name
    with server(run, threads) as plain, server(run, threads, "guess=lookup") as guessing:
        one, other = Asks(plain.url, model, shared), Asks(guessing.url, model, shared)
        for first in (one.cold, one.warm, one.warm, lambda: other.repeating(8), lambda: one.repeating(8)):
            first()
        figures = take_turns({"warm": one.warm, "cold": one.cold}, rounds)
        print(f"first token, ms: {shared} tokens known  {spread([1000 * s for s in figures['warm']])}")
        print(f"                 {shared} tokens new    {spread([1000 * s for s in figures['cold']])}")
        print(ratio(figures, "warm", "cold"))
        compare("repeating", lambda: one.repeating(tokens), lambda: other.repeating(tokens), rounds)
        compare("free", lambda: one.free(tokens), lambda: other.free(tokens), rounds)


def compare(name: str, plain: Callable[[], float], guessing: Callable[[], float], rounds: int) -> None:
    turns = take_turns({"plain": plain, "guessing": guessing}, rounds)
    print(f"{name}, ms a token: plain {spread([1000 * s for s in turns['plain']], 2)}")
    print(ratio(turns, "plain", "guessing"), flush=True)


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], shared=512, tokens=100, rounds=5, threads=2)
    main(rest[0], **asked)
