"""The scheduler: what is drawn does not depend on what else is, to the bit; rows, queues and errors."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gengen.config.commands import DecodingSettings
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text import engine as engine_module
from gengen.generation.text import exactness, scheduler
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.engine import Engine, chunk_of
from gengen.generation.text.exactness import build_engine, is_exact
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.row import Request
from gengen.generation.text.scheduler import Scheduler
from gengen.models.gpt import GPT
from gengen.models.kv_cache import Cache

BYTES = TextTokenizer.byte()
TEXTS = ["Once upon a time", "", "é", "The bear said: go home", "x" * 31, "a", "to", "by the sea"]


def request(prompt: str, index: int = 0, **settings: Any) -> Request:
    settings = {"max_tokens": 12, "temperature": 1.0} | settings
    return Request([0, *BYTES.encode(prompt)], DecodingSettings(**settings), index)


def finished(some: Scheduler, texts: Sequence[Continuation]) -> list[Continuation]:
    while not all(text.finish_reason for text in texts):
        some.step()
    return list(texts)


def alone(model: GPT, asked: Request) -> Continuation:
    some = Scheduler(build_engine(model), BYTES, 32, rows=1)
    return finished(some, [some.admit(asked)])[0]


def facts(text: Continuation) -> tuple[Any, ...]:
    """All of a text; log-probabilities to the bit."""
    return text.text, text.tokens, text.finish_reason, text.logprobs


def many() -> list[Request]:
    """Texts of all lengths and settings, some far beyond the context of 32."""
    ways: list[dict[str, Any]] = [
        {}, {"max_tokens": 70}, {"temperature": 0.0}, {"top_k": 9, "top_p": 0.8}, {"repetition_penalty": 1.4},
        {"min_p": 0.02, "presence_penalty": 0.5}, {"logit_bias": ["70:3", "9:-inf"]}, {"stop": ["e", "qu"], "seed": 4},
    ]  # fmt: skip
    return [request(text, i, **way) for i, (text, way) in enumerate(itertools.product(TEXTS, ways)) if i % 5 == 0]


def test_neighbours_chunks_and_cancelled_texts_change_no_bit(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and log-probabilities of 13 texts, each alone and read at once; then in 7 rows and 33, in arrivals of
    their own, read in small chunks, while others come, end and are cancelled."""
    expected = [facts(alone(model, asked)) for asked in many()]
    for rows, chunk in ((7, 8), (33, 4)):
        monkeypatch.setattr(engine_module, "CHUNK", chunk)
        monkeypatch.setattr(scheduler, "READ_AT_ONCE", 4 * chunk)
        some, texts = Scheduler(build_engine(model), BYTES, 32, rows), list[Continuation]()
        for i, asked in enumerate(many()):
            texts.append(some.admit(asked))
            passing = some.admit(request("passing by", i, max_tokens=50))
            for _ in range(i % 3):
                some.step()
            some.cancel(passing)
            assert passing.finish_reason == "interrupted"
        assert [facts(text) for text in finished(some, texts)] == expected
        assert some.idle and (some.waiting, some.running) == (0, 0)


def test_without_padding_bits_depend_on_the_batch(model: GPT) -> None:
    """The bug put back: a text alone and among 12 others, by products of as many rows as there are texts."""

    def logprobs(rows: int) -> list[float]:
        some = Scheduler(Engine(model), BYTES, 32, rows)
        return finished(some, [some.admit(asked) for asked in many()[:rows]])[0].logprobs

    assert logprobs(1) != logprobs(13)
    assert logprobs(1) == pytest.approx(logprobs(13), abs=1e-4)


def test_a_machine_that_cannot_be_exact_is_found_out(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose bits depend on the number of rows, however many there are: the probe fails, nothing is promised,
    and texts are drawn all the same."""
    assert is_exact(build_engine(model)) and build_engine(model).exact
    right = GPT.forward

    def by_rows(self: GPT, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        return right(self, tokens, cache) * (1 + 1e-6 * len(tokens))

    monkeypatch.setattr(GPT, "forward", by_rows)
    monkeypatch.setattr(exactness, "FOUND", {})
    engine = build_engine(model)
    assert not engine.exact and list(exactness.FOUND.values()) == [None]
    assert TextGenerator(model, BYTES).generate("a", max_tokens=3)[0].tokens
    assert not build_engine(model, exact=False).exact and not build_engine(model, "bf16").exact
    assert not build_engine(model, compile=True).exact


@pytest.mark.parametrize("unread", range(1, 40))
def test_chunks_end_where_a_block_of_queries_may_end(unread: int) -> None:
    """Never in a last block of one to three queries, which kernels add up in another order; never beyond the room."""
    for room in range(unread, 50):
        T = chunk_of(unread, room)
        assert 1 <= T <= room and (T % 4 == 0 or (T == 1 and room < 4)) and unread + 4 > T


def test_texts_wait_for_a_row_and_are_drawn_in_their_order(model: GPT) -> None:
    some = Scheduler(build_engine(model), BYTES, 32, rows=2)
    texts = [some.admit(request("a", i, max_tokens=4)) for i in range(5)]
    assert (some.waiting, some.running) == (5, 0)
    ended = list[int]()
    while not some.idle:
        changed = some.step()
        assert some.running <= 2
        ended += [i for i, text in enumerate(texts) if text.finish_reason and text in changed]
    assert sorted(ended[:2]) == [0, 1] and sorted(ended[2:4]) == [2, 3] and ended[4:] == [4]


def test_a_cancelled_text_gives_its_row_to_the_next(model: GPT) -> None:
    some = Scheduler(build_engine(model), BYTES, 32, rows=1)
    first, second, third = (some.admit(request("a", i, max_tokens=9)) for i in range(3))
    some.step()
    some.cancel(second)
    some.cancel(first)
    assert (some.waiting, some.running) == (1, 0)
    assert (first.finish_reason, len(first.tokens), second.tokens) == ("interrupted", 1, [])
    some.step()
    assert len(third.tokens) == 1 and facts(finished(some, [third])[0]) == facts(
        alone(model, request("a", 2, max_tokens=9))
    )


def test_an_error_ends_its_own_text_alone(model: GPT) -> None:
    def broken(logits: Tensor, rows: list[list[int]]) -> Tensor:
        raise ValueError("no such verb")

    some, asked = Scheduler(build_engine(model), BYTES, 32), request("a", 1)
    bad = some.admit(Request(asked.prompt, asked.settings, 0, processor=broken))
    none = some.admit(request("a", 2, logit_bias=[f"{token}:-inf" for token in range(257)]))
    good = some.admit(asked)
    finished(some, [bad, none, good])
    assert (bad.finish_reason, none.finish_reason) == ("error", "error")
    assert "processor" in bad.error and "ValueError: no such verb" in bad.error and "forbids everything" in none.error
    assert facts(good) == facts(alone(model, asked))


def test_a_long_prompt_does_not_hold_up_those_that_are_drawn(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CHUNK", 4)
    monkeypatch.setattr(scheduler, "CHUNK", 4)
    some = Scheduler(build_engine(model), BYTES, 32)
    short = some.admit(request("a", max_tokens=20))
    some.step()
    long = some.admit(request("x" * 30))
    for step in range(2, 9):
        some.step()
        assert (len(short.tokens), long.tokens) == (step, [])
    some.step()
    assert (len(short.tokens), len(long.tokens)) == (9, 1), "30 tokens in 8 chunks of 4"


def test_a_text_may_end_where_the_context_does(model: GPT) -> None:
    """The last token of the context is still drawn from all that is before it."""
    text = alone(model, request("x" * 25, max_tokens=100, overflow="end"))
    assert (text.finish_reason, len(text.tokens)) == ("length", 32 - 26 + 1)
    assert text.tokens == alone(model, request("x" * 25, max_tokens=7)).tokens


def test_a_text_that_fills_the_context_leaves_its_neighbours_alone(model: GPT) -> None:
    """The context is as long as the memory here: a step for the full row would write beyond it."""
    some = Scheduler(build_engine(model), BYTES, 64, rows=2)
    full = some.admit(request("x" * 60, max_tokens=100, overflow="end"))
    other = some.admit(request("by the sea", 1, max_tokens=40))
    waits = some.admit(request("to", 2, max_tokens=5))
    told = list[Continuation]()
    while not some.idle:
        told += [text for text in some.step() if text.finish_reason]
    assert told == [full, waits, other], "each is told once, and what waits gets the row that is free"
    assert (full.finish_reason, len(full.tokens)) == ("length", 64 - 61 + 1)
    single = Scheduler(build_engine(model), BYTES, 64, rows=1)
    assert facts(finished(single, [single.admit(request("by the sea", 1, max_tokens=40))])[0]) == facts(other)


def test_log_probabilities_of_the_prompt_and_of_the_likeliest(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CHUNK", 8)
    asked = request("The bear said", max_tokens=5)
    asked.top_logprobs, asked.prompt_logprobs = 3, True
    some = Scheduler(build_engine(model), BYTES, 32)
    texts = finished(some, [some.admit(asked), some.admit(request("The bear said", 1)), some.admit(asked)])
    text = texts[0]
    with torch.no_grad():
        exact = model(torch.tensor([asked.prompt + text.tokens]))[0].log_softmax(-1)
    whole = asked.prompt + text.tokens
    found = text.prompt_logprobs + text.logprobs
    assert found == pytest.approx([float(exact[t, token]) for t, token in enumerate(whole[1:])], abs=1e-4)
    for t, top in enumerate(text.prompt_top_logprobs + text.top_logprobs):
        values, tokens = exact[t].topk(3)
        assert [token for token, _ in top] == tokens.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)
    assert facts(texts[2]) == facts(text) and texts[1].prompt_logprobs == [] == texts[1].top_logprobs[0]


class Digits:
    """Three digits and nothing else; a whole answer has one at least."""

    def __init__(self) -> None:
        self.text: list[int] = []

    def allowed(self) -> Tensor:
        allowed = torch.zeros(257, dtype=torch.bool)
        allowed[BYTES.encode("0123456789")] = True
        allowed[0] = len(self.text) > 0
        return allowed

    def add(self, token: int) -> None:
        self.text.append(token)

    @property
    def complete(self) -> bool:
        return len(self.text) == 3


def test_a_constraint_is_obeyed_and_ends_its_text(model: GPT) -> None:
    some = Scheduler(build_engine(model), BYTES, 32)
    texts = []
    for i in range(40):
        asked = request("a", i)
        asked.constraint = Digits()
        texts.append(some.admit(asked))
    free = some.admit(request("b", 3))
    finished(some, [*texts, free])
    assert all(text.text.isdigit() and text.finish_reason in ("stop", "end") for text in texts)
    assert {(len(text.text), text.finish_reason) for text in texts} >= {(3, "stop")}
    assert all(len(text.text) == 3 or text.finish_reason == "end" for text in texts)
    assert facts(free) == facts(alone(model, request("b", 3)))


class Nothing(Digits):
    def allowed(self) -> Tensor:
        return torch.zeros(257, dtype=torch.bool)


def test_a_constraint_that_allows_nothing_is_an_error_of_its_text(model: GPT) -> None:
    asked = request("a")
    asked.constraint = Nothing()
    text = alone(model, asked)
    assert (text.finish_reason, text.tokens) == ("error", []) and "the constraint allows none" in text.error


def test_draws_in_a_batch_are_those_of_each_alone(model: GPT) -> None:
    """`generate` itself, by batches of 1, 3 and 64, with log-probabilities."""
    by_size = [TextGenerator(model, BYTES, batch_size=size) for size in (1, 3, 64)]
    everything = [generator.generate(TEXTS[:4], n=2, max_tokens=40) for generator in by_size]
    for samples in everything[1:]:
        assert samples == everything[0]
        assert [s.logprobs for s in samples] == [s.logprobs for s in everything[0]]


def steps_of(some: Scheduler) -> Iterator[int]:
    while not some.idle:
        yield len(some.step())


def test_rows_stay_side_by_side(model: GPT) -> None:
    """After each step the rows in use are the first ones, so that no step pays for a row that has ended."""
    some = Scheduler(build_engine(model), BYTES, 32, rows=9)
    for i in range(9):
        some.admit(request(TEXTS[i % 8], i, max_tokens=3 + 2 * i))
    sizes = []
    right = some.engine.step

    def step(newest: list[int], lengths: list[int], memory: Cache) -> Tensor:
        sizes.append(len(newest))
        return right(newest, lengths, memory)

    some.engine.step = step  # type: ignore[method-assign]
    list(steps_of(some))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 9 and sizes[-1] == 1
    assert math.isclose(sum(sizes), sum(3 + 2 * i for i in range(9)), rel_tol=0.2), "some end by themselves"
