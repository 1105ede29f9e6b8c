"""Every control of sampling against a distribution written out in loops; what ends a text; what a compiled engine
changes.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.config.commands import DecodingSettings
from gengen.config.model import GPTConfig
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text import drawing, engine, sampling
from gengen.generation.text.drawing import controlled
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.row import Request, Row
from gengen.generation.text.sampling import draw, next_token_probabilities, penalized
from gengen.models.gpt import GPT
from gengen.models.kv_cache import Cache
from helpers.draws import uniforms

BYTES = TextTokenizer.byte()
SIZE = {
    "size": "nano",
    "layers": 2,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "ff": 48,
    "vocab_size": 257,
    "context": 32,
}


class Constant(GPT):
    """Says the same logits whatever it has read."""

    def __init__(self, logits: list[float]):
        super().__init__(GPTConfig(**(SIZE | {"layers": 1, "width": 8, "ff": 8})))
        self.logits = F.pad(torch.tensor(logits), (1, 256 - len(logits)), value=float("-inf"))  # token 1 is logits[0]

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        return self.logits.expand(*tokens.shape, -1)


class Scripted(GPT):
    """Continues the empty prompt with given tokens, then ends the text."""

    def __init__(self, script: list[int]):
        super().__init__(GPTConfig(**(SIZE | {"layers": 1, "width": 8, "ff": 8, "context": 64})))
        self.script = torch.tensor([*script, 0])

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        assert cache is not None
        at = cache.lengths.clamp(max=len(self.script) - 1)
        return F.one_hot(self.script[at], self.vocab_size)[:, None] * 1e4


def scripted(text: str) -> TextGenerator:
    return TextGenerator(Scripted([byte + 1 for byte in text.encode()]), BYTES)


# --- the sampler against a distribution written out

LOGITS = [2.5, 2.1, 1.7, 1.4, 1.4, 0.9, 0.3, 0.0, -0.4, -0.4, -1.2, -3.0]
PROMPT, TEXT = [1, 1, 5, 9], [0, 3, 3, 3, 8, 10]  # what was there before the token that is drawn

Settings = dict[str, Any]


def reference(c: Settings, logits: Sequence[float] = LOGITS) -> list[float]:
    """The distribution by plain loops, in the order that the docstrings give."""
    score = list(logits)
    for entry in c.get("logit_bias", []):
        token, number = entry.split(":")
        score[int(token)] += float(number)
    for token in set(PROMPT) | set(TEXT):  # as transformers' RepetitionPenaltyLogitsProcessor: once a token, by sign
        score[token] = (
            score[token] * c.get("repetition_penalty", 1.0)
            if score[token] < 0
            else score[token] / c.get("repetition_penalty", 1.0)
        )
    for token in set(TEXT):
        score[token] -= c.get("presence_penalty", 0.0) + c.get("frequency_penalty", 0.0) * TEXT.count(token)
    if c["temperature"] == 0:
        return [float(i == score.index(max(score))) for i in range(len(score))]
    weight = [math.exp(s / c["temperature"]) for s in score]
    order = sorted(range(len(score)), key=lambda i: -score[i])[: c.get("top_k")]
    left, mass, nucleus = sum(weight[i] for i in order), 0.0, list[int]()
    for i in order:
        if not nucleus or mass < c.get("top_p", 2.0) * left:
            nucleus.append(i)
            mass += weight[i]
    kept = [i for i in nucleus if weight[i] >= c.get("min_p", 0.0) * weight[order[0]]]
    return [weight[i] / sum(weight[j] for j in kept) if i in kept else 0.0 for i in range(len(score))]


def probabilities(c: Settings, logits: Sequence[float] = LOGITS) -> Tensor:
    """(1, V) as a row of `generate` has them."""
    settings, vocabulary = (
        DecodingSettings(**c),
        TextTokenizer("letters", [b"x"] * 12, None, start=99, eot=99),
    )
    row = Row(Request(PROMPT, settings), vocabulary, torch.device("cpu"))
    for token in TEXT:
        row.add(token, 0.0, [])
    wanted = controlled(torch.tensor([list(logits)]), [row])
    return next_token_probabilities(wanted, settings.temperature, settings.top_k, settings.top_p, settings.min_p)


def drawn(c: Settings, n: int = 20_000, seed: int = 0) -> list[int]:
    tokens = draw(probabilities(c).expand(n, -1), uniforms(seed, range(n // 100), 100).flatten())
    return torch.bincount(tokens, minlength=len(LOGITS)).tolist()


def p_value(counts: Sequence[int], expected: Sequence[float]) -> float:
    """Of Pearson's chi-squared; cells in which fewer than 5 are expected are one cell. 0 where the impossible came."""
    if any(count for count, chance in zip(counts, expected, strict=True) if chance == 0):
        return 0.0
    n = sum(counts)
    large = [(count, n * chance) for count, chance in zip(counts, expected, strict=True) if n * chance >= 5]
    rest = (n - sum(count for count, _ in large), n - sum(chance for _, chance in large))
    cells = large + [rest] * (rest[1] > 1e-3)
    if len(cells) == 1:
        return 1.0
    return beyond(sum((count - chance) ** 2 / chance for count, chance in cells), len(cells) - 1)


def beyond(chi2: float, degrees: int) -> float:
    """The chance of a chi-squared above this."""
    half = torch.tensor([degrees / 2, chi2 / 2], dtype=torch.float64)
    return torch.special.gammaincc(*half).item()


@pytest.mark.parametrize(
    "degrees,chi2,p", [(1, 3.841, 0.05), (1, 10.828, 1e-3), (5, 11.070, 0.05), (11, 31.264, 1e-3)]
)
def test_the_p_value_is_that_of_the_tables(degrees: int, chi2: float, p: float) -> None:
    assert beyond(chi2, degrees) == pytest.approx(p, rel=1e-3)


def test_the_cells_by_hand() -> None:
    assert p_value([60, 40], [0.5, 0.5]) == beyond(4.0, 1)
    assert (
        p_value([50, 46, 1, 3], [0.5, 0.46, 0.02, 0.02]) == 1.0
        and p_value([50, 46, 4, 0], [0.5, 0.46, 0.02, 0.02]) == 1.0
    )
    assert p_value([99, 1], [1.0, 0.0]) == 0.0


CONTROLS: dict[str, Settings] = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.5},
    "greedy": {"temperature": 0.0},
    "top_k": {"top_k": 5},
    "top_k 4 of tied": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "top_p of one": {"top_p": 0.1},
    "min_p": {"min_p": 0.2},
    "repetition": {"repetition_penalty": 1.7},
    "repetition encouraged": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.1},
    "frequency": {"frequency_penalty": 0.6},
    "negative": {"presence_penalty": -0.5, "frequency_penalty": -0.3},
    "logit_bias": {"logit_bias": ["0:-2", "11:4.5", "2:-inf"]},
    "temperature and top_p": {"temperature": 1.8, "top_p": 0.8},
    "all but min_p": {
        "temperature": 1.3, "top_k": 9, "top_p": 0.9,
        "repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.3,
        "logit_bias": ["4:0.7", "7:-inf"],
    },
}  # fmt: skip
ALL = CONTROLS["all but min_p"] | {"top_p": 0.75, "min_p": 0.3}


@pytest.mark.parametrize("name", CONTROLS)
def test_what_is_drawn_follows_the_reference(name: str) -> None:
    c: Settings = {"temperature": 1.0} | CONTROLS[name]
    expected = reference(c)
    torch.testing.assert_close(
        probabilities(c)[0].double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5
    )
    counts = drawn(c)
    assert not any(count for count, chance in zip(counts, expected, strict=True) if chance == 0)
    assert p_value(counts, expected) > 1e-3
    if name != "plain":
        assert p_value(drawn({"temperature": 1.0}), expected) < 1e-3, "without the control, which this must notice"


@pytest.mark.parametrize("c", [{"temperature": 1.0, "top_p": 0.7, "min_p": 0.3}, ALL], ids=["top_p and min_p", "all"])
def test_top_p_counts_its_mass_before_min_p(c: Settings) -> None:
    """The order that next_token_probabilities states, transformers' as well."""
    assert p_value(drawn(c), reference(c)) > 1e-3


def at_least_two(p: Tensor, mass: float) -> Tensor:
    largest, order = p.sort(dim=-1, descending=True)
    removed = largest.cumsum(-1) > mass
    removed[:, 0] = False
    removed = F.pad(removed[:, :-1], (1, 0))
    return torch.zeros_like(removed).scatter(-1, order, ~removed)


BUGS: dict[str, tuple[str, Callable[..., Any], Settings]] = {
    "top_p keeps two at least": ("within_nucleus", at_least_two, {"top_p": 0.1}),
    "top_k keeps ties": ("among_largest", lambda x, k: x >= x.topk(k).values[:, -1:], {"top_k": 4}),
    "repetition divides negative logits": (
        "penalized",
        lambda x, prompted, drawn, r, *_: torch.where(prompted | (drawn > 0), x / r, x),
        {"repetition_penalty": 1.7},
    ),
    "repetition forgets the prompt": (
        "penalized",
        lambda x, prompted, drawn, *rest: penalized(x, torch.zeros_like(prompted), drawn, *rest),
        {"repetition_penalty": 1.7},
    ),
    "presence counts the prompt": (
        "penalized",
        lambda x, prompted, drawn, *rest: penalized(x, prompted, drawn + prompted, *rest),
        {"presence_penalty": 1.1},
    ),
    "frequency counts once": (
        "penalized",
        lambda x, prompted, drawn, *rest: penalized(x, prompted, drawn.clamp(max=1), *rest),
        {"frequency_penalty": 0.6},
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_put_back_would_be_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong, c = BUGS[name]
    c = {"temperature": 1.0} | c
    assert p_value(drawn(c), reference(c)) > 1e-3
    monkeypatch.setattr(drawing if function == "penalized" else sampling, function, wrong)
    assert p_value(drawn(c), reference(c)) < 1e-3


def test_the_last_of_several_equal_tokens_may_be_cut() -> None:
    assert probabilities({"temperature": 1.0, "top_k": 4})[0].nonzero()[:, 0].tolist() == [
        0,
        1,
        2,
        3,
    ]  # 3 and 4 are tied
    assert probabilities({"temperature": 1.0, "top_k": 1}, [0.0, 7.0, 7.0]).tolist() == [[0, 1, 0]]


def test_min_p_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.26, 0.24]]).log()
    assert next_token_probabilities(logits, min_p=0.51).tolist() == [pytest.approx([0.5 / 0.76, 0.26 / 0.76, 0.0])]
    assert next_token_probabilities(logits, min_p=1.0).tolist() == [[1, 0, 0]]
    assert next_token_probabilities(logits, min_p=0.0).tolist() == [pytest.approx([0.5, 0.26, 0.24])]
    assert next_token_probabilities(logits, 2.0, min_p=0.7).count_nonzero() == 2, (
        "min_p is of what the temperature left"
    )


def test_penalties_by_hand() -> None:
    logits = torch.tensor([[3.0, -3.0, 2.0, -2.0, 0.0]])
    prompted = torch.tensor([[True, True, False, False, True]])
    times = torch.tensor([[0.0, 0.0, 3.0, 1.0, 0.0]])
    assert penalized(logits, prompted, times, 2.0, 0.0, 0.0).tolist() == [[1.5, -6.0, 1.0, -4.0, 0.0]]
    assert penalized(logits, prompted, times, 1.0, 0.5, 0.0).tolist() == [[3.0, -3.0, 1.5, -2.5, 0.0]]
    assert penalized(logits, prompted, times, 1.0, 0.0, 0.5).tolist() == [[3.0, -3.0, 0.5, -2.5, 0.0]]
    assert penalized(logits, prompted, times, 2.0, 0.5, 0.25).tolist() == [[1.5, -6.0, -0.25, -4.75, 0.0]]


# --- the controls through `generate`


def test_generate_draws_from_the_reference() -> None:
    """First tokens of many samples, and second ones by what the first was: the text's own tokens are counted, not the
    prompt's.
    """
    c = {"temperature": 1.0, "top_k": 8, "frequency_penalty": 1.5}
    samples = TextGenerator(Constant(LOGITS), BYTES, batch_size=4000).generate("\0\1", n=4000, max_tokens=2, **c)
    weight = {i: math.exp(LOGITS[i]) for i in range(8)}
    first = Counter(s.tokens[0] - 1 for s in samples)
    assert p_value([first[i] for i in range(12)], [weight.get(i, 0) / sum(weight.values()) for i in range(12)]) > 1e-3
    second = Counter(s.tokens[1] - 1 for s in samples if s.tokens[0] == 1)
    expected = [
        math.exp(x - 1.5 * (i == 0)) for i, x in enumerate(LOGITS)
    ]  # token 0 falls behind 1 and 2, and stays among the eight
    expected = [x / sum(expected[:8]) if i < 8 else 0 for i, x in enumerate(expected)]
    assert p_value([second[i] for i in range(12)], expected) > 1e-3
    free = [x / sum(map(math.exp, LOGITS[:8])) if i < 8 else 0 for i, x in enumerate(map(math.exp, LOGITS))]
    assert p_value([second[i] for i in range(12)], free) < 1e-3


def test_repetition_counts_the_prompt_and_presence_does_not() -> None:
    flat = TextGenerator(Constant([1.0, 1.0, 0.9]), BYTES)
    assert flat.generate("\0", max_tokens=1, temperature=0)[0].tokens == [1]
    assert flat.generate("\0", max_tokens=3, temperature=0, repetition_penalty=1.05)[0].tokens == [2, 1, 1]
    assert flat.generate("\0", max_tokens=3, temperature=0, presence_penalty=0.05)[0].tokens == [1, 2, 1]
    assert flat.generate("\0", max_tokens=4, temperature=0, frequency_penalty=0.2)[0].tokens == [1, 2, 3, 1]


def test_logit_bias_forbids_and_forces(generator: TextGenerator) -> None:
    forced = generator.generate("a", n=3, max_tokens=4, temperature=2.0, logit_bias={66: 100})
    assert [s.text for s in forced] == ["AAAA"] * 3
    assert generator.generate("a", n=3, max_tokens=4, temperature=2.0, logit_bias=["66:100"]) == forced
    free = generator.generate("a", n=20, max_tokens=10, temperature=2.0)
    seen = {token for s in free for token in s.tokens}
    bias = dict.fromkeys(seen, -math.inf) | {0: -math.inf}
    assert not seen & {
        token
        for s in generator.generate("a", n=20, max_tokens=10, temperature=2.0, logit_bias=bias)
        for token in s.tokens
    }


@pytest.mark.parametrize("token", [257, -1])
def test_a_bias_on_a_token_that_does_not_exist_is_refused(generator: TextGenerator, token: int) -> None:
    with pytest.raises(UserError, match=rf"logit_bias: there is no token {token}; the vocabulary has 0\.\.256"):
        generator.generate("a", logit_bias={token: 1})
    with pytest.raises(UserError, match="write TOKEN:NUMBER"):
        generator.generate("a", logit_bias=["a:1"])


def test_a_processor_sees_each_rows_tokens_and_is_obeyed(generator: TextGenerator) -> None:
    seen: list[list[list[int]]] = []

    def vowels(logits: Tensor, rows: list[list[int]]) -> Tensor:
        assert logits.dtype == torch.float32 and logits.shape == (len(rows), 257)
        seen.append([list(row) for row in rows])
        allowed = torch.full_like(logits, -math.inf)
        for row, tokens in zip(allowed, rows, strict=True):
            row[BYTES.encode("aeiou"[len(tokens) % 5])] = 0
        return allowed

    samples = generator.generate(["b", "bcd"], n=2, max_tokens=4, processor=vowels)
    assert [s.text for s in samples] == ["ioua", "ioua", "uaei", "uaei"]
    starts = [[0, *BYTES.encode(s.prompt)] for s in samples]
    assert seen == [[start + s.tokens[:step] for start, s in zip(starts, samples, strict=True)] for step in range(4)]
    assert "".join(generator.stream("b", max_tokens=4, processor=vowels)) == "ioua"


NOTHING: dict[str, dict[str, Any]] = {
    "bias": {"logit_bias": dict.fromkeys(range(257), -math.inf)},
    "processor": {"processor": lambda logits, rows: torch.full_like(logits, -math.inf)},
    "nan": {"processor": lambda logits, rows: logits * math.nan},
}


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("how", NOTHING)
def test_where_nothing_is_allowed_it_is_said(generator: TextGenerator, how: str, temperature: float) -> None:
    with pytest.raises(UserError, match="the logits are not finite, or no token is allowed"):
        generator.generate("a", n=2, max_tokens=5, temperature=temperature, **NOTHING[how])


class Forgetful:
    def __call__(self, logits: Tensor, rows: list[list[int]]) -> None:
        logits[:, 3] = -math.inf


def dividing(logits: Tensor, rows: list[list[int]]) -> Tensor:
    return logits / (1 // 0)


PROCESSORS: dict[str, tuple[Any, str]] = {
    "raises": (dividing, r"processor dividing raised ZeroDivisionError: .*\n  at .*test_controls.py, .* in dividing"),
    "takes less": (lambda logits: logits, r"processor <lambda> raised TypeError: .* 2 were given"),
    "returns nothing": (Forgetful(), r"processor Forgetful returned None, not logits: floats \(2, 257\)"),
    "numbers": (lambda logits, rows: logits.tolist(), r"returned \[\[.*, not logits"),
    "one row": (lambda logits, rows: logits[0], r"returned torch.float32 \(257,\), not logits: floats \(2, 257\)"),
    "what is allowed": (lambda logits, rows: logits > 0, r"returned torch.bool \(2, 257\), not logits"),
    "tokens": (lambda logits, rows: logits.argmax(-1), r"returned torch.int64 \(2,\), not logits"),
    "NaN": (lambda logits, rows: logits * math.nan, "is allowed: processor <lambda> forbids everything"),
    "infinity": (lambda logits, rows: logits + math.inf, "is allowed: processor <lambda> forbids everything"),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_processor_gone_wrong_is_named(generator: TextGenerator, kind: str) -> None:
    """What it returned was written into the rows by the rules of broadcasting: one row for all, a mask as 0 and 1."""
    processor, words = PROCESSORS[kind]
    with pytest.raises(UserError, match=words):
        generator.generate("a", n=2, max_tokens=5, processor=processor)


# --- what ends a text


def test_a_stop_id_ends_a_sample_and_is_left_out(generator: TextGenerator) -> None:
    free = generator.generate("a", n=6, max_tokens=30, temperature=1.2)
    token = free[0].tokens[4]
    for whole, s in zip(
        free, generator.generate("a", n=6, max_tokens=30, temperature=1.2, stop_ids=[token, 256]), strict=True
    ):
        at = next((i for i, t in enumerate(whole.tokens) if t in (token, 256)), None)
        assert s.tokens == whole.tokens[:at] and len(s.logprobs) == len(s.tokens)
        assert s.finish_reason == (whole.finish_reason if at is None else "stop")
    assert scripted("ab").generate("", stop_ids=[0])[0].finish_reason == "stop", (
        "the end of text, where it is asked for"
    )


@pytest.mark.parametrize(
    "text,stop,left",
    [
        ("aab", "ab", "a"),
        ("112", "12", "1"),
        ("1121", "121", "1"),
        ("abababac", "ababac", "ab"),
        ("aaab", "aab", "a"),
        ("aab", "b", "aa"),
    ],
)
def test_a_stop_string_is_found_behind_its_own_beginning(text: str, stop: str, left: str) -> None:
    sample = scripted(text + "z").generate("", stop=stop)[0]
    assert (sample.text, sample.finish_reason) == (left, "stop")
    assert "".join(scripted(text + "z").stream("", stop=stop)) == left


def test_bytes_of_a_character_are_held_back_until_it_is_whole() -> None:
    pieces = list(scripted("aé→🎈").stream(""))
    assert pieces == ["a", "é", "→", "🎈"]
    cut = scripted("a🎈").generate("", max_tokens=4)[0]
    assert (cut.text, len(cut.tokens), cut.finish_reason) == ("a", 4, "length")
    assert scripted("a🎈b").generate("", stop="🎈")[0].text == "a", "a stop string of four tokens"


# --- what comes with a text


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 1.5, "top_k": 30, "repetition_penalty": 1.4, "logit_bias": {70: 2.0}},
    ],
    ids=["as it is", "cold", "controlled"],
)
def test_logprobs_are_the_models_own(model: GPT, generator: TextGenerator, settings: dict[str, Any]) -> None:
    """Of the whole text in one pass without a cache, at the drawn tokens, before temperature and every control."""
    for s in generator.generate(["Once", "a bear"], n=3, max_tokens=20, **settings):
        prompt = [0, *BYTES.encode(s.prompt)]
        with torch.no_grad():
            exact = model(torch.tensor([prompt + s.tokens]))[0].log_softmax(-1)
        expected = [exact[len(prompt) - 1 + i, token].item() for i, token in enumerate(s.tokens)]
        assert len(s.tokens) > 3 and s.logprobs == pytest.approx(expected, abs=1e-4)


def test_logprobs_of_what_is_drawn_from(model: GPT, generator: TextGenerator) -> None:
    """After bias, temperature and top_k, by the formula; the tokens, and a neighbour's own log-probabilities, stay."""
    settings: dict[str, Any] = {"temperature": 0.7, "top_k": 5, "logit_bias": {70: 2.0}, "max_tokens": 12, "seed": 4}
    drawn = generator.generate("Once", n=3, logprobs_of="drawn", **settings)
    plain = generator.generate("Once", n=3, **settings)
    assert drawn == plain
    prompt = [0, *BYTES.encode("Once")]
    for s in drawn:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + s.tokens]))[0][len(prompt) - 1 :]
        logits[:, 70] += 2.0
        expected = next_token_probabilities(logits, 0.7, 5).log()
        chosen = [expected[i, token].item() for i, token in enumerate(s.tokens)]
        assert s.logprobs == pytest.approx(chosen, abs=1e-4)
    asked = [DecodingSettings(**settings | {"logit_bias": ["70:2.0"]}, logprobs_of=of) for of in ("drawn", "model")]
    scheduler = generator.scheduler(2)
    texts = [scheduler.admit(Request(prompt, one, 0, top_logprobs=7)) for one in asked]
    while not scheduler.idle:
        scheduler.step()
    assert [text.logprobs for text in texts] == [drawn[0].logprobs, plain[0].logprobs]
    assert [logprob for _, logprob in texts[0].top_logprobs[0]][5:] == [-math.inf] * 2, "five may be drawn"
    assert all(math.isfinite(logprob) for _, logprob in texts[1].top_logprobs[0])


def test_the_likeliest_token_is_drawn_for_certain(generator: TextGenerator) -> None:
    sample = generator.generate("Once", temperature=0, max_tokens=5, logprobs_of="drawn")[0]
    assert sample.logprobs == [0.0] * 5


def test_a_prompt_of_tokens_equals_one_of_text(generator: TextGenerator) -> None:
    prompts = ["Once upon", "", "é"]
    texts = generator.generate(prompts, n=2, max_tokens=15)
    assert generator.generate([[0, *BYTES.encode(prompt)] for prompt in prompts], n=2, max_tokens=15) == texts
    for wrong in ([], [257], [5, -1]):
        with pytest.raises(UserError, match=r"a prompt of tokens needs one at least, each of 0\.\.256"):
            generator.generate([wrong])


def test_a_prompt_of_tokens_the_tokenizer_lacks_is_refused() -> None:
    wide = TextGenerator(GPT(GPTConfig(**(SIZE | {"vocab_size": 300}))).eval(), BYTES)
    with pytest.raises(UserError):
        wide.generate([[0, 299]], max_tokens=1)


def test_samples_of_a_prompt_share_one_pass_over_it(
    model: GPT, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, ...]] = []
    right = GPT.features

    def features(self: GPT, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        passes.append(tuple(tokens.shape))
        return right(self, tokens, cache)

    assert generator.engine.exact, "chunks of four tokens"
    monkeypatch.setattr(GPT, "features", features)
    samples = generator.generate("Once upon", n=8, max_tokens=3, temperature=1.5)
    assert passes == [(1, 12), (8, 1), (8, 1), (8, 1)]
    assert len({s.tokens[0] for s in samples}) > 4, "and yet not their first token"
    passes.clear()
    generator.generate(["Once", "upon a", "Once"], n=2, max_tokens=1)
    assert passes == [(2, 8), (6, 1)]


# --- an engine that keeps its shapes, as a compiled one does


PROMPTS = ["Once upon a time", "", "é", "The bear said: go home"]
TURNS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "early stops": {"temperature": 1.2, "stop": ["e", "\x10"], "stop_ids": [5, 70, 90, 200]},
    "beyond the context": {"temperature": 1.0},
    "penalties": {
        "temperature": 1.0, "repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.3,
        "stop_ids": [*range(60, 90)],
    },
}  # fmt: skip


def kept_rows(model: GPT) -> TextGenerator:
    """Rows that have ended stay in the batch, as in a compiled engine; its step is not compiled."""
    generator = TextGenerator(model, BYTES)
    generator.engine.compiled = True
    return generator


def facts(samples: list[Any]) -> list[tuple[Any, ...]]:
    return [(s.text, s.tokens, s.finish_reason) for s in samples]


@pytest.mark.parametrize("block", [1, 8, 64])
@pytest.mark.parametrize("name", TURNS)
def test_rows_that_stay_change_nothing(
    model: GPT, generator: TextGenerator, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generator.generate(PROMPTS, n=3, max_tokens=60, **TURNS[name])
    monkeypatch.setattr(engine, "BLOCK", block)
    found = kept_rows(model).generate(PROMPTS, n=3, max_tokens=60, **TURNS[name])
    assert facts(found) == facts(expected)
    for s, other in zip(found, expected, strict=True):
        assert s.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    lengths = {len(s.tokens) for s in expected}
    assert len(lengths) > 4 if "stop_ids" in TURNS[name] else max(lengths) == 60


def test_the_batch_of_a_compiled_engine_keeps_its_shape(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[tuple[int, ...]] = set()
    keeping = kept_rows(model)
    right = keeping.engine._step

    def step(newest: Tensor, keys: list[Tensor], values: list[Tensor], lengths: Tensor) -> Tensor:
        shapes.add((*newest.shape, keys[0].shape[2]))
        assert int(lengths.max()) < keys[0].shape[2]
        return right(newest, keys, values, lengths)

    monkeypatch.setattr(keeping.engine, "_step", step)
    monkeypatch.setattr(engine, "BLOCK", 8)
    keeping.generate(PROMPTS, n=3, max_tokens=60, **TURNS["early stops"])
    assert {shape[:2] for shape in shapes} == {(12, 1)} and {shape[2] for shape in shapes} <= {24, 32}


class Interrupted:
    """True from the n-th poll on."""

    def __init__(self, polls: int):
        self.left = polls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_an_interruption_ends_what_has_not_ended(model: GPT, generator: TextGenerator) -> None:
    settings = {"n": 6, "max_tokens": 30, **TURNS["penalties"]}
    found = generator.generate("a", interrupted=Interrupted(6), **settings)
    assert {s.finish_reason for s in found} == {"stop", "interrupted"}


def test_an_interruption_leaves_the_ending_of_rows_that_stay(model: GPT, generator: TextGenerator) -> None:
    settings = {"n": 6, "max_tokens": 30, **TURNS["penalties"]}
    expected = generator.generate("a", interrupted=Interrupted(6), **settings)
    assert facts(kept_rows(model).generate("a", interrupted=Interrupted(6), **settings)) == facts(expected)


def then_nothing(logits: Tensor, rows: list[list[int]]) -> Tensor:
    """A grammar of two texts, a. and bb., behind which nothing may come."""
    allowed = torch.full_like(logits, -math.inf)
    for index, (row, tokens) in enumerate(zip(allowed, rows, strict=True)):
        text = BYTES.decode(tokens)
        wanted = {"x": "a", "xa": ".", "y": "b", "yb": "b", "ybb": "."}.get(text)
        if wanted:
            row[BYTES.encode(wanted)] = logits[index].max()
    return allowed


def test_a_grammar_may_allow_nothing_behind_the_end(generator: TextGenerator) -> None:
    assert [s.text for s in generator.generate(["x", "y"], stop=".", max_tokens=9, processor=then_nothing)] == [
        "a",
        "bb",
    ]


def test_a_grammar_may_allow_nothing_behind_the_end_of_rows_that_stay(model: GPT) -> None:
    samples = kept_rows(model).generate(["x", "y"], stop=".", max_tokens=9, processor=then_nothing)
    assert [s.text for s in samples] == ["a", "bb"]


def test_a_processor_changes_what_is_drawn_and_no_log_probability(generator: TextGenerator) -> None:
    """The bug put back would be one line: a processor whose result is written over the model's own logits."""
    token = generator.generate("a", max_tokens=1, temperature=0)[0].tokens[0]
    forced = generator.generate(
        "a", max_tokens=1, temperature=0, processor=lambda logits, rows: logits + 50 * (torch.arange(257) == 9)
    )
    with torch.no_grad():
        expected = generator.model(torch.tensor([[0, *BYTES.encode("a")]]))[0, -1].log_softmax(-1)
    assert forced[0].tokens == [9] != [token]
    assert forced[0].logprobs == pytest.approx([float(expected[9])], abs=1e-4)


def test_what_is_no_setting_is_refused(generator: TextGenerator) -> None:
    with pytest.raises(TypeError, match="precision"):
        generator.generate("a", precision="int8")
    with pytest.raises(TypeError, match="temprature"):
        generator.stream("a", temprature=1.0)
