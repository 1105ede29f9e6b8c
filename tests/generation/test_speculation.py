"""Guessed tokens and prompts that were read before: fewer passes, and not a bit of difference."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gengen.config.commands import DecodingSettings
from gengen.config.model import GPTConfig
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.exactness import build_engine
from gengen.generation.text.prefixes import PrefixCache
from gengen.generation.text.row import Request, Row
from gengen.generation.text.scheduler import Scheduler
from gengen.generation.text.speculation import (
    REST,
    WINDOW,
    DraftModel,
    Guesser,
    PromptLookup,
    Speculation,
    continuation_of,
)
from gengen.models.gpt import GPT

BYTES, CONTEXT = TextTokenizer.byte(), 256


def lively(seed: int, **size: Any) -> GPT:
    """A model whose next token depends on all before it."""
    model = GPT(GPTConfig(**({"size": "nano", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ff": 48} | size),
                          vocab_size=257, context=CONTEXT)).eval()  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else 1.5 * p.shape[-1] ** -0.5))
            if p.dim() < 2:
                p.add_(1)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return lively(0)


def requests() -> list[Request]:
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"temperature": 1.0},
        {"top_k": 20, "frequency_penalty": 0.4}, {"stop": ["e"], "seed": 3},
    ]  # fmt: skip
    texts = ["ab ab ab ab ab", "a", "once upon a time once upon a"]
    return [
        Request([0, *BYTES.encode(text)], DecodingSettings(**({"max_tokens": 30} | way)), i)
        for i, (text, way) in enumerate((text, way) for text in texts for way in ways)
    ]


def drawn(some: Scheduler, asked: Sequence[Request]) -> list[tuple[Any, ...]]:
    texts: list[Continuation] = [some.admit(request) for request in asked]
    while not some.idle:
        some.step()
    return [(text.text, text.tokens, text.finish_reason, text.logprobs) for text in texts]


def speculating(model: GPT, guesser: Guesser, rows: int) -> Scheduler:
    return Scheduler(build_engine(model), BYTES, CONTEXT, rows, speculation=Speculation(guesser))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("who", ["lookup", "another", "itself"])
def test_guesses_change_no_bit(model: GPT, who: str, rows: int) -> None:
    expected = drawn(Scheduler(build_engine(model), BYTES, CONTEXT, 1), requests())
    draft = {"another": lively(1, layers=1, width=16, heads=2, kv_heads=1), "itself": model}.get(who)
    guesser = DraftModel(build_engine(draft), 257, CONTEXT, rows) if draft else PromptLookup()
    some = speculating(model, guesser, rows)
    assert drawn(some, requests()) == expected
    assert some.speculation is not None and some.speculation.passes > 20
    if isinstance(guesser, DraftModel):
        assert sorted(guesser.free) == list(range(rows)) and not guesser.places
    if who == "itself":
        assert some.speculation.accepted > 0.6 * 3 * some.speculation.passes, "but for penalties, and what ends"


def test_a_guess_taken_without_a_draw_would_be_noticed(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: what is guessed counts as drawn."""
    expected = drawn(Scheduler(build_engine(model), BYTES, CONTEXT, 1), requests())
    some = speculating(model, PromptLookup(), 1)
    right = Row.add
    current: list[list[int]] = []

    def guess(rows: Sequence[Row], count: int) -> list[list[int]]:
        current[:] = PromptLookup().guess(rows, count)
        return [list(guess) for guess in current]

    def add(self: Row, token: int, logprob: float, top: list[tuple[int, float]]) -> None:
        right(self, current[0].pop(0) if current and current[0] else token, logprob, top)

    assert some.speculation is not None
    monkeypatch.setattr(some.speculation.guesser, "guess", guess)
    monkeypatch.setattr(Row, "add", add)
    assert drawn(some, requests()) != expected


@pytest.mark.parametrize(
    "tokens,guess",
    [
        ([1, 2, 3, 1, 2], [3, 1, 2]),
        ([1, 2, 9, 1, 2, 7, 5, 1, 2], [7, 5, 1]),  # the last time it was said
        ([8, 1, 2, 3, 4, 6, 9, 1, 2, 3, 4], [6, 9, 1]),
        ([5, 2, 7, 3, 2, 1, 5, 2], [7, 3, 2]),  # two words before one
        ([1, 2, 3], []),
        ([4], []),
        ([4, 4], [4]),
    ],
)
def test_a_lookup_by_hand(tokens: list[int], guess: list[int]) -> None:
    assert continuation_of(tokens, 3) == guess


class Wrong:
    """Guesses what is hardly ever drawn."""

    asked = 0

    def guess(self, rows: Sequence[Row], count: int) -> list[list[int]]:
        self.asked += 1
        return [[200] * count for _ in rows]

    def forget(self, row: Row) -> None:
        pass


def test_wrong_guesses_are_soon_given_up(model: GPT) -> None:
    guesser = Wrong()
    some = speculating(model, guesser, 1)
    for i in range(8):
        drawn(some, [Request([0, 98], DecodingSettings(max_tokens=40, temperature=1.0), i)])
    assert guesser.asked == WINDOW and some.speculation is not None and some.speculation.resting > REST - 400


def test_many_texts_are_not_guessed(model: GPT) -> None:
    guesser = Wrong()
    drawn(speculating(model, guesser, 8), [Request([0, 98], DecodingSettings(max_tokens=5), i) for i in range(5)])
    asked_of_five = guesser.asked
    drawn(speculating(model, guesser, 8), [Request([0, 98], DecodingSettings(max_tokens=5), i) for i in range(4)])
    assert asked_of_five <= 1 < guesser.asked, "five texts of four tokens are more than sixteen"


def test_a_chunk_is_never_padded_beyond_the_memory(model: GPT) -> None:
    """A long prompt with a little left to read, beside one that begins, in a memory smaller than the context: padded
    to the other's chunk its positions lay beyond the memory."""
    some = Scheduler(build_engine(model), BYTES, CONTEXT, 4, slots=144)
    few = DecodingSettings(max_tokens=8, temperature=1.0)
    long, next_one = (Request([3 + i % 90 for i in range(length)], few, length) for length in (134, 129))
    first = some.admit(long)
    some.step()
    second = some.admit(next_one)
    while not some.idle:
        some.step()
    for text, asked in ((first, long), (second, next_one)):
        alone = drawn(Scheduler(build_engine(model), BYTES, CONTEXT, 1), [asked])[0]
        assert (text.text, text.tokens, text.finish_reason, text.logprobs) == alone


# --- prompts that were read before


def prompts() -> list[list[int]]:
    story = [1 + (31 * i + i * i) % 250 for i in range(200)]
    return [story[:150], [*story[:130], 9, 8, 7], story[:64], story[:65], [5, *story[:80]]]


def test_a_prompt_that_was_read_before_gives_the_same_bits(model: GPT) -> None:
    asked = [
        Request(prompt, DecodingSettings(max_tokens=20, temperature=1.0), i) for i, prompt in enumerate(prompts())
    ]
    cold = [drawn(Scheduler(build_engine(model), BYTES, CONTEXT, 1), [request])[0] for request in asked]
    some = Scheduler(build_engine(model), BYTES, CONTEXT, 1, prefixes=PrefixCache())
    assert [drawn(some, [request])[0] for request in asked] == cold
    read: list[int] = []
    right = some.engine.read

    def counting(tokens: list[list[int]], *rest: Any) -> Tensor:
        read.append(len(tokens[0]))
        return right(tokens, *rest)

    some.engine.read = counting  # type: ignore[method-assign]
    warm = [some.admit(request) for request in asked]
    while not some.idle:
        some.step()
    assert [(t.text, t.tokens, t.finish_reason, t.logprobs) for t in warm] == cold
    assert [text.reused for text in warm] == [128, 128, 0, 64, 64]
    assert sum(read) == 24 + 4 + 64 + 16, "what is left of each but its last token, in whole fours"


def test_kept_prefixes_have_a_size(model: GPT) -> None:
    """Of 2 x 2 layers x 2 heads x 64 tokens x 8 x 4 bytes = 16 KiB a block; the longest unused goes first."""
    kept = PrefixCache(max_bytes=3 * 16384)
    some = Scheduler(build_engine(model), BYTES, CONTEXT, 1, prefixes=kept)
    few = DecodingSettings(max_tokens=1)
    for first in (10, 20, 30, 10, 40):
        drawn(some, [Request([first] * 70, few)])
    assert [key[0] for key in kept.blocks] == [30, 10, 40] and kept.bytes == 3 * 16384
    drawn(some, [Request([7] * 250, few)])
    assert len(kept.blocks) == 3 and kept.bytes == 3 * 16384


def test_a_prefix_of_other_tokens_is_not_taken(model: GPT) -> None:
    """The bug put back would be a key of the block alone: the same 64 tokens after others are another block."""
    kept, engine = PrefixCache(), build_engine(model)
    some = Scheduler(engine, BYTES, CONTEXT, 1, prefixes=kept)
    block, few = [3] * 64, DecodingSettings(max_tokens=8, temperature=1.0)
    drawn(some, [Request([*[7] * 64, *block, 1], few)])
    asked = Request([*[8] * 64, *block, 1], few)
    assert drawn(some, [asked]) == drawn(Scheduler(engine, BYTES, CONTEXT, 1), [asked])
