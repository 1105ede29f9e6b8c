"""Sampling text: equal to a plain loop without cache or batch, and right in what it returns, streams, refuses and
leaves alone.
"""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gengen.cli.sample_text import sample_text
from gengen.config.commands import DecodingSettings, TextSampling
from gengen.config.model import GPTConfig
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.sampling import draw, next_token_probabilities
from gengen.models.gpt import GPT
from gengen.models.kv_cache import Cache
from helpers.draws import uniforms

BYTES = TextTokenizer.byte()
PROMPTS = ["Once upon a time", "", "é", "The bear said: go home"]


def nano(**config: Any) -> GPT:
    size = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ff": 48, "vocab_size": 257, "context": 32}
    return GPT(GPTConfig(**{"size": "nano", **size, **config})).eval()


class Scripted(GPT):
    """Continues the empty prompt with given tokens, then ends the text."""

    def __init__(self, script: list[int], vocab_size: int = 257):
        super().__init__(
            GPTConfig(size="nano", layers=1, width=8, heads=2, kv_heads=1, ff=8, vocab_size=vocab_size, context=256)
        )
        self.script = torch.tensor([*script, 0])

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        assert cache is not None
        at = cache.lengths.clamp(max=len(self.script) - 1)
        return torch.nn.functional.one_hot(self.script[at], self.vocab_size)[:, None] * 1e4


def scripted(text: str | bytes | list[int], tokenizer: TextTokenizer = BYTES) -> TextGenerator:
    text = text.encode() if isinstance(text, str) else text
    script = [byte + 1 for byte in text] if isinstance(text, bytes) else text
    return TextGenerator(Scripted(script, tokenizer.vocab_size), tokenizer)


def plain_loop(
    model: GPT,
    prompt: str,
    index: int,
    max_tokens: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[int]:
    """One sample with neither cache nor batch: the model reads all its window again for each token."""
    context, tokens = model.config.context or 0, [0, *BYTES.encode(prompt)]
    start, begin = len(tokens), 0
    for u in uniforms(seed, [index], max_tokens)[0]:
        if len(tokens) - begin > context:
            begin = len(tokens) - max(context // 2, 1)
        with torch.no_grad():
            logits = model(torch.tensor([tokens[begin:]]))[:, -1]
        token = int(draw(next_token_probabilities(logits, temperature, top_k, top_p), u[None]))
        if token == 0:
            break
        tokens.append(token)
    return tokens[start:]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 7}],
    ids=["greedy", "all", "top"],
)
def test_samples_equal_those_of_a_plain_loop(model: GPT, generator: TextGenerator, settings: dict[str, Any]) -> None:
    """Ragged prompts, three samples of each, far beyond the context of 32, so that it is read again from its last
    half.
    """
    samples = generator.generate(PROMPTS, n=3, max_tokens=80, **settings)
    assert [s.prompt for s in samples] == [p for p in PROMPTS for _ in range(3)] and [
        s.index for s in samples
    ] == list(range(12))
    for s in samples:
        assert s.tokens == plain_loop(model, s.prompt, s.index, 80, **settings)
        assert s.seed == settings.get("seed", 0)
    assert max(len(s.tokens) for s in samples) == 80
    assert len({tuple(s.tokens) for s in samples}) == (4 if settings["temperature"] == 0 else 12)


def test_a_sample_does_not_depend_on_its_batch(model: GPT, generator: TextGenerator) -> None:
    alone = generator.generate(PROMPTS[0], max_tokens=40)[0]
    eight = generator.generate(PROMPTS[0], n=8, max_tokens=40)
    assert generator.generate(PROMPTS[0], n=4, max_tokens=40) == eight[:4]
    assert generator.generate(PROMPTS, max_tokens=40)[0] == eight[0] == alone
    assert TextGenerator(model, BYTES, batch_size=3).generate(PROMPTS[0], n=8, max_tokens=40) == eight
    assert len({s.text for s in eight}) == 8


def test_a_seed_decides_and_more_tokens_only_add(generator: TextGenerator) -> None:
    long = generator.generate("so", n=2, max_tokens=60, seed=5)
    for short, full in zip(generator.generate("so", n=2, max_tokens=20, seed=5), long, strict=True):
        assert full.tokens[:20] == short.tokens
    assert generator.generate("so", n=2, max_tokens=60, seed=6)[0].tokens != long[0].tokens


def test_an_empty_prompt_starts_from_end_of_text(model: GPT, generator: TextGenerator) -> None:
    first = generator.generate("", max_tokens=1, temperature=0)[0].tokens
    assert first == model(torch.tensor([[0]]))[0, -1].argmax(-1, keepdim=True).tolist()
    assert generator.generate([]) == []


def test_a_prompt_may_fill_the_context_and_no_more(model: GPT, generator: TextGenerator) -> None:
    full = generator.generate("x" * 31, max_tokens=5, temperature=0)[0]
    assert full.tokens == plain_loop(model, "x" * 31, 0, 5, 0.0)
    with pytest.raises(UserError, match="the prompt has 300 tokens, the model's context is 32: at most 31"):
        generator.generate(["short", "x" * 300])
    with pytest.raises(UserError, match="at most 31"):
        generator.stream("x" * 32)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_smallest_contexts_work(context: int) -> None:
    model = nano(context=context)
    assert generator_tokens(model, 9) == plain_loop(model, "", 0, 9, 1.0)


def generator_tokens(model: GPT, max_tokens: int) -> list[int]:
    return TextGenerator(model, BYTES).generate("", max_tokens=max_tokens, temperature=1.0)[0].tokens


def test_finish_reasons() -> None:
    bear = scripted("a bear")
    ended, cut, stopped = bear.generate("")[0], bear.generate("", max_tokens=3)[0], bear.generate("", stop="be")[0]
    assert (ended.text, ended.finish_reason) == ("a bear", "end")
    assert (cut.text, cut.finish_reason) == ("a b", "length")
    assert (stopped.text, stopped.finish_reason) == ("a ", "stop")
    assert BYTES.decode(stopped.tokens) == "a be", "tokens are all that were drawn"
    assert bear.generate("", max_tokens=6)[0].finish_reason == "length", "the end of text was not drawn"


def test_rows_that_finish_leave_the_others_as_they_were(generator: TextGenerator) -> None:
    free = generator.generate("a", n=6, max_tokens=50, temperature=1.2)
    letter = free[0].text[3]
    for one, s in zip(free, generator.generate("a", n=6, max_tokens=50, temperature=1.2, stop=letter), strict=True):
        assert s.text == one.text.split(letter)[0]
        assert s.finish_reason == ("stop" if letter in one.text else one.finish_reason)


def test_a_stop_string_is_found_behind_its_own_beginning() -> None:
    """Matching that starts over at a mismatch misses 12 in 112."""
    assert scripted("112").generate("", stop=["12"])[0].text == "1"
    assert scripted("aabaabaaac").generate("", stop=["aabaaa"])[0].text == "aab"


def test_stop_strings_are_found_across_tokens() -> None:
    tokenizer = TextTokenizer.train(["once upon a time there was a time once upon a bear"] * 3, 280)
    tokens = tokenizer.encode("once upon a time there")
    assert len(tokens) < 12, "tokens of several characters"
    for stop in ["n a", "upon a t", " ", "once upon a time there", "e t", "xyz"]:
        sample = scripted(tokens, tokenizer).generate("", stop=[stop])[0]
        assert sample.text == "once upon a time there".split(stop)[0]
        assert sample.finish_reason == ("end" if stop == "xyz" else "stop")


class Pieces:
    """A tokenizer whose tokens are given strings, so that token borders lie anywhere."""

    ends = (0,)

    def __init__(self, pieces: list[str]):
        self.pieces = pieces

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.pieces[i - 1].encode() for i in ids)


def test_where_a_sample_stops_does_not_depend_on_token_borders() -> None:
    """Against a walk along the characters: stop where a stop string is first complete; what is shown stays shown."""
    some = random.Random(0)
    stopped = 0
    for _ in range(500):
        text = "".join(some.choices("abé", k=12))
        stop = [
            some.choice([text, text[::-1]])[at : at + some.randint(1, 5)]
            for at in some.sample(range(4, 12), some.randint(0, 3))
        ]
        expected = text
        for end in range(13):
            if complete := [s for s in stop if text[:end].endswith(s)]:
                expected = text[: end - max(map(len, complete))]
                stopped += 1
                break
        borders = [0, *sorted(some.sample(range(1, 12), 4)), 12]
        pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
        settings = DecodingSettings(stop=stop, max_tokens=len(pieces))
        row = Continuation(Pieces(pieces), [0], settings)  # type: ignore[arg-type]
        for token in range(1, len(pieces) + 1):
            if not row.finish_reason:
                row.add(token, 0.0)
                assert expected.startswith(row.text)
        assert row.text == expected
    assert 100 < stopped < 490


def test_streamed_pieces_join_to_the_generated_text(generator: TextGenerator) -> None:
    for seed in range(6):
        settings: dict[str, Any] = {"max_tokens": 70, "temperature": 1.0, "stop": ["zz", "q\x01"], "seed": seed}
        pieces = list(generator.stream("Once", **settings))
        assert "".join(pieces) == generator.generate("Once", **settings)[0].text
        assert len(pieces) > 10 and all(pieces)


def test_a_stream_never_breaks_a_character() -> None:
    text = "naïve → 日本 🎈é"
    pieces = list(scripted(text).stream(""))
    assert pieces == list(text), "one byte a token: each piece is a whole character"
    for cut in range(1, len(text.encode())):
        whole = text.encode()[:cut].decode(errors="ignore")
        assert (
            scripted(text).generate("", max_tokens=cut)[0].text
            == whole
            == "".join(scripted(text).stream("", max_tokens=cut))
        )


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    some = random.Random(0)
    for _ in range(50):
        raw = bytes(some.choice([65, 0x80, 0xC3, 0xA9, 0xE2, 0x86, 0xF0, 0xFF]) for _ in range(12)) + b"."
        assert scripted(raw).generate("")[0].text == raw.decode(errors="replace")


def test_a_stream_holds_back_what_may_be_a_stop_string() -> None:
    assert list(scripted("abcabdx").stream("", stop=["abd"])) == ["abc"]
    assert list(scripted("abcab").stream("", stop=["abd"])) == ["abc", "ab"]
    assert "".join(scripted("1 2 END 3").stream("", stop=["END"])) == "1 2 "


def test_a_stream_shows_text_as_it_comes() -> None:
    generator = scripted("abc")
    drawn = []
    generator.model.register_forward_hook(lambda *args: drawn.append(1))
    for count, piece in enumerate(generator.stream(""), 1):
        assert (piece, len(drawn)) == ("abc"[count - 1], count)


def test_interrupted_samples_end_as_they_are(generator: TextGenerator) -> None:
    polls: Iterator[bool] = iter([False] * 5 + [True])
    full = generator.generate("go", n=3, max_tokens=20, temperature=1.0)
    for s, whole in zip(
        generator.generate("go", n=3, max_tokens=20, temperature=1.0, interrupted=lambda: next(polls)),
        full,
        strict=True,
    ):
        assert s.tokens == whole.tokens[:5] and s.finish_reason == "interrupted"
    polls = iter([False, False, True])
    assert "".join(scripted("abcd").stream("", stop="bz", interrupted=lambda: next(polls))) == "ab"


def test_the_model_is_evaluated_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nano(dropout=0.5)
    torch.nn.init.normal_(model.get_parameter("blocks.0.mlp.out.weight"))
    generator = TextGenerator(model, BYTES)
    expected = generator.generate("a", n=2, max_tokens=10)
    assert not model.training
    model.train()
    assert generator.generate("a", n=2, max_tokens=10) == expected
    stream = generator.stream("a", max_tokens=10)
    next(stream)
    assert all(module.training for module in model.modules()), "a paused stream switches nothing"
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    stream.close()  # type: ignore[attr-defined]
    assert all(module.training for module in model.modules())


def test_fp32_whatever_autocast_it_is_called_in(generator: TextGenerator) -> None:
    expected = generator.generate("a", n=4, max_tokens=30)
    with torch.autocast("cpu", torch.bfloat16):
        assert generator.generate("a", n=4, max_tokens=30) == expected


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_weights_of_fewer_bits_draw_nearly_the_same(model: GPT, precision: str) -> None:
    tokens = torch.tensor([[0, *BYTES.encode("The bear said: go home")]])
    small = TextGenerator(model, BYTES, precision)
    exact, rounded = model(tokens).log_softmax(-1), small.engine.model(tokens).float().log_softmax(-1)
    assert (exact - rounded).abs().mean() < (0.05 if precision == "bf16" else 0.1)
    assert small.generate("The bear", max_tokens=1, temperature=0)[0].tokens == [int(rounded[0, 8].argmax())]
    assert all(p.dtype == torch.float32 for p in model.parameters()), "the model itself stays as it was"
    assert len(small.generate(PROMPTS, n=3, max_tokens=40)) == 12  # more rows than the packed kernel takes


def test_a_model_in_bf16_works_as_it_is() -> None:
    assert TextGenerator(nano().bfloat16(), BYTES).generate("a", max_tokens=40)[0].tokens


def global_states() -> list[Any]:
    numpy_state: Any = np.random.get_state()
    return [torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()]


def test_global_random_generators_are_left_alone(generator: TextGenerator) -> None:
    before = global_states()
    generator.generate("a", n=2, max_tokens=5)
    list(generator.stream("a", max_tokens=5))
    assert global_states() == before


def test_tokens_the_tokenizer_lacks_are_never_drawn() -> None:
    torch.manual_seed(0)
    wide = TextGenerator(nano(vocab_size=512), BYTES)
    assert all(t < 257 for s in wide.generate("", n=8, max_tokens=50, temperature=2.0) for t in s.tokens)
    with pytest.raises(UserError, match="the tokenizer has 257 tokens, the model knows 200"):
        TextGenerator(nano(vocab_size=200), BYTES)


@pytest.mark.parametrize(
    "setting,said",
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"stop": ["a", ""]}, "stop"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(generator: TextGenerator, setting: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        generator.generate("a", **setting)
    with pytest.raises(UserError, match=said):
        generator.stream("a", **setting)


def test_a_diverged_model_is_named() -> None:
    broken = nano()
    torch.nn.init.constant_(broken.norm.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        TextGenerator(broken, BYTES).generate("a")


def test_sampling_needs_no_trainer() -> None:
    code = "import sys, gengen.generation.text.generator; "
    code += "print({'lightning', 'hydra', 'omegaconf', 'datasets', 'wandb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_billion_samples_begin_at_once(generator: TextGenerator, tmp_path: Path) -> None:
    """Every row was built before the first token, and nothing was written before the last. What is drawn is there."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 70:  # more than are drawn at once
            raise KeyboardInterrupt

    asked = TextSampling(run="r", prompt=["ab"], n=10**9, max_tokens=3, out=str(tmp_path / "out.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        sample_text(generator, asked, say)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf8").splitlines()]
    assert [row["text"] for row in rows] == [s.text for s in generator.generate("ab", n=70, max_tokens=3)]


def test_a_billion_tokens_begin_at_once(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All their random numbers were drawn before the first of them. How many are drawn at once changes none."""
    long = generator.generate(["a", "b"], n=2, max_tokens=40, temperature=1.2)
    monkeypatch.setattr("gengen.generation.text.row.AHEAD", 7)
    assert generator.generate(["a", "b"], n=2, max_tokens=40, temperature=1.2) == long
    pieces = "".join(itertools.islice(generator.stream("a", max_tokens=10**9, temperature=1.2), 30))
    assert len(pieces) >= 30 and long[0].text.startswith(pieces[:10])
