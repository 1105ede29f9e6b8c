"""Filters on seeded corpora, what they must leave alone, and that a stream shows what the whole text would."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gengen import registry
from gengen.cli import main
from gengen.config.commands import TextSampling
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.base import Sample
from gengen.generation.filters.base import (
    STEP,
    FilteredText,
    FilterRequest,
    Finding,
    filtered_sample,
    judge,
    load_filters,
)
from gengen.generation.filters.copies import CopyFilter, CopyIndex
from gengen.generation.filters.patterns import PATTERNS, PatternFilter, is_card, is_iban
from gengen.generation.filters.plain import plain
from gengen.generation.filters.reward import RewardFilter
from gengen.generation.filters.words import WordFilter
from gengen.generation.load import load_generator
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Scorer
from gengen.registry import register_filter
from gengen.training.evaluate import training_text_of
from helpers.personal_data import DISGUISES, KINDS, near_misses
from helpers.trained_on import Tokens

PATTERN_FILTER = PatternFilter()


def request(training: str = "", option: str = "") -> FilterRequest:
    tokenizer = TextTokenizer.byte()
    return FilterRequest(option, tokenizer, lambda: Tokens(tokenizer.encode(training)))


# --- personal data


def recall(kind: str, disguise: str, n: int) -> float:
    """The share of made-up examples that are found whole, with nothing around them."""
    draw, (change, _) = random.Random(f"{kind} {disguise}"), DISGUISES.get(disguise, (str, set()))
    found = 0
    for _ in range(n):
        secret = change(KINDS[kind](draw))
        findings = PATTERN_FILTER.find(f"Write to {secret}, please.")
        found += Finding(9, 9 + len(secret), kind) in findings
    return found / n


@pytest.mark.parametrize("n", [20, pytest.param(285, marks=pytest.mark.slow)])  # 2,000 of all kinds together
def test_personal_data_is_found_plain_and_disguised(n: int) -> None:
    plainly = {kind: recall(kind, "", n) for kind in KINDS}
    assert min(plainly.values()) >= 0.99, plainly
    disguised = {(kind, d): recall(kind, d, n) for d, (_, kinds) in DISGUISES.items() for kind in sorted(kinds)}
    assert min(disguised.values()) >= 0.9, disguised


@pytest.mark.parametrize("n", [20, pytest.param(182, marks=pytest.mark.slow)])  # 11 of each: 2,002
def test_what_only_looks_like_personal_data_is_left_alone(n: int) -> None:
    draw = random.Random(0)
    wrong = [text for _ in range(n) for text in near_misses(draw) if PATTERN_FILTER.find(f"See {text}, please.")]
    assert not wrong


def test_check_digits_by_known_numbers() -> None:
    assert is_card("4111 1111 1111 1111") and is_card("378282246310005") and not is_card("4111 1111 1111 1112")
    assert not is_card("0000000000000000") and not is_card("79927398713")  # Luhn's own example is no card
    assert is_iban("GB82 WEST 1234 5698 7654 32") and not is_iban("GB82 WEST 1234 5698 7654 33")


def test_where_a_pattern_ends() -> None:
    text = "IBAN DE89 3704 0044 0532 0130 00 IS MINE; card 4111 1111 1111 1111 12/29. See me@a.org. Or not"
    found = {text[f.start : f.end] for f in PATTERN_FILTER.find(text)}
    assert found == {"DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111", "me@a.org"}
    assert {p.kind for p in PATTERNS} == set(KINDS)


def test_plain_text_and_its_places() -> None:
    text = "Ａ\u200bé сat٣ﬁ"  # noqa: RUF001
    assert plain(text) == ("Ae cat3fi", [0, 2, 3, 4, 5, 6, 7, 8, 8, 9])


# --- words


BAD = ["darn", "heck it", "goose", "ass", "god"]


@pytest.mark.parametrize(
    "text",
    ["darn", "DARN", "d4rn", "d@rn!", "daaaarn", "dárn", "ｄａｒｎ", "dаrn",  # noqa: RUF001
     "d.a.r.n", "d a r n", "da\u200brn", "heck it", "heck\nit", "go0se", "goooose", "a$$", "g0d"],
)  # fmt: skip
def test_a_listed_word_is_found_through_disguises(text: str) -> None:
    whole = f"oh, {text}, said he"
    found = WordFilter(BAD).find(whole)
    assert [whole[f.start : f.end].strip("!") for f in found] == [text.strip("!")]


@pytest.mark.parametrize(
    "text",
    ["Scunthorpe assassin bass class grass pass", "darning", "good", "gooses", "as s", "a s w", "heckit",
     "check it out", "his 4 asses", "1055 goods", "cassava", "was s"],
)  # fmt: skip
def test_other_words_are_left_alone(text: str) -> None:
    assert not WordFilter(BAD).find(text)


def test_words_of_scripts_without_spaces() -> None:
    assert WordFilter(["悪い"]).find("とても悪い人") == [Finding(3, 5, "word")]


# --- copies


def test_copies_are_found_and_nothing_else() -> None:
    """By construction: exactly the runs of k tokens that the training text has; one token less is not one."""
    draw, tokenizer = random.Random(0), TextTokenizer.byte()
    training = "".join(draw.choices("abcdef ", k=3000))
    guard = CopyFilter(CopyIndex(Tokens(tokenizer.encode(training)), 12), tokenizer)
    for _ in range(30):
        at, length = draw.randrange(2900), draw.randint(12, 40)
        text = "é" + "XY" * draw.randrange(4) + training[at : at + length] + "Z"
        start = text.index(training[at : at + length])
        found = guard.find(text)
        assert [f.start for f in found] == list(range(start, start + length - 11))
        assert found[-1] == Finding(start + length - 12, start + length, "copy")
        assert not guard.find("X" + training[at : at + 11] + "Z")
    index = guard.index
    index.hashes[:] = index.hashes[0]  # were all hashes one, the tokens would still be compared
    assert not guard.find("XYZXYZXYZXYZXYZXYZXYZ")


# --- whole texts and streams


def pieces(text: str, draw: random.Random) -> list[str]:
    cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randrange(12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def test_a_stream_shows_what_the_whole_text_would() -> None:
    """However it is cut, and never more than the whole would show; of the findings of several filters as well."""
    draw, tokenizer = random.Random(1), TextTokenizer.byte()
    training = " ".join("".join(draw.choices("abcdef", k=5)) for _ in range(400))
    copies = CopyFilter(CopyIndex(Tokens(tokenizer.encode(training)), 12), tokenizer)
    filters = [PATTERN_FILTER, WordFilter(BAD), copies]
    for turn in range(60):
        parts = []
        for _ in range(draw.randrange(1, 25)):
            at = draw.randrange(1900)
            copied = training[at : at + draw.randrange(30)]
            secret = draw.choice(list(KINDS.values()))(draw)
            parts.append(
                draw.choice([secret, copied, draw.choice([*BAD, "d.a.r.n"]), "some words, \u200b1 4 and " * 4])
            )
        text, action = " ".join(parts), ("redact", "refuse")[turn % 2]
        whole = judge(filters, text, action)
        streamed, shown = FilteredText(filters, action), ""
        for piece in pieces(text, draw):
            shown += streamed.add(piece)
            assert whole.text.startswith(shown)
        assert shown + streamed.finish() == whole.text
        assert tuple(streamed.findings) == whole.findings


def test_redact_refuse_and_allow() -> None:
    text = "mail a.b@c.org or d@e.org, darn"
    filters = [PATTERN_FILTER, WordFilter(BAD)]
    assert judge(filters, text, "redact").text == "mail [e-mail] or [e-mail], [word]"
    refused = judge(filters, text, "refuse")
    assert (refused.action, refused.text, len(refused.findings)) == ("refuse", "mail ", 1)
    allowed = judge(filters, "nothing here", "refuse")
    assert (allowed.action, allowed.text, allowed.findings) == ("allow", "nothing here", ())
    sample = Sample("p", text, [1, 2], "end", 0, 0, [-1.0, -2.0])
    shown = filtered_sample(filters, sample, "refuse")
    assert (shown.text, shown.tokens, shown.logprobs, shown.finish_reason) == ("mail ", [], [], "filtered")
    assert filtered_sample(filters, sample, "redact").finish_reason == "end"
    assert filtered_sample([], sample, "redact") is sample


def test_a_stream_is_held_back_no_longer_than_its_filters_reach() -> None:
    filtered = FilteredText([WordFilter(["darn"])], "redact")
    assert filtered.reach == 32
    assert filtered.add("x" * 100) == "x" * 68 and filtered.finish() == "x" * 32
    assert FilteredText([], "redact").add("all at once") == "all at once"
    long, shown = FilteredText([WordFilter(["darn"])], "redact"), ""
    for i in range(200):
        shown += long.add("x")
        assert i + 1 - len(shown) <= 32 + STEP


class Whole:
    reach = None
    reads_prompts = False

    def find(self, text: str, prompt: str) -> list[Finding]:
        return [Finding(0, len(text), "bad")] if text.endswith(prompt) else []


def test_a_filter_of_whole_texts_holds_back_all() -> None:
    filtered = FilteredText([Whole(), PATTERN_FILTER], "refuse", "end")
    assert filtered.add("some text " * 100) == "" and filtered.add("the end") == ""
    assert filtered.finish() == "" and filtered.refused == Finding(0, 1007, "bad")


# --- by name


def test_filters_by_name(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# mine\ndarn  # mild\n\nheck it\n")
    training = "the quick brown fox jumps over the lazy dog"
    filters = load_filters(["patterns", f"words:{tmp_path / 'list'}", "copies:16"], request(training))
    shown = judge(filters, f"darn: {training}", "redact").text
    assert shown == "[word]: [copy]"


def make_whole(request: FilterRequest) -> Whole:
    return Whole()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paterns", "no such filter, and no such run(.|\n)*patterns"),
        ("words", "names a list of words"),
        ("words:nowhere", "cannot be read"),
        ("copies:x", "8 or more"),
        ("copies:3", "8 or more"),
    ],
)
def test_filters_that_cannot_be_made(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_filters([name], request())


def test_a_user_s_own_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FILTERS", dict(registry.FILTERS))
    register_filter("whole")(make_whole)
    assert isinstance(load_filters(["whole"], request())[0], Whole)


# --- the command


def test_sample_filters_prompts_texts_and_streams(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out.jsonl", tmp_path / "list"
    argv = ["sample", str(base), "temperature=0.5", "max_tokens=60", "prompt=One day", "logit_bias=0:-inf"]
    assert main([*argv, "n=2", f"out={out}"]) == 0
    plain = [json.loads(line) for line in out.read_text().splitlines()]
    listed = max(plain[0]["text"].split()[3:], key=len).strip(".,")
    words.write_text(listed)
    assert main([*argv, "n=2", f"out={out}", f"filter=words:{words}"]) == 0
    redacted = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [judge([WordFilter([listed])], sample["text"], "redact").text for sample in plain]
    assert [sample["text"] for sample in redacted] == expected and "[word]" in expected[0]
    assert redacted[0]["tokens"] == redacted[0]["logprobs"] == []
    capsys.readouterr()
    assert main([*argv, f"filter=words:{words}", "stream=true"]) == 0
    assert capsys.readouterr().out == f"One day{expected[0]}\n"
    assert main([*argv, f"filter=words:{words}", "stream=true", "filter_action=refuse"]) == 0
    start = expected[0].partition("[word]")[0]
    assert capsys.readouterr().out == f"One day{start}\n--- filtered: word\n"
    assert main([*argv, "prompt=to a.b@c.org", "filter=patterns", "filter_action=refuse"]) == 2
    assert "the prompt is refused: e-mail at characters 3 to 11" in capsys.readouterr().err
    assert main([*argv, "prompt=to a.b@c.org", "filter=patterns"]) == 0
    assert "\nto [e-mail]" in capsys.readouterr().out


def test_copies_of_the_run_s_own_training_text(base: Path, tmp_path: Path) -> None:
    """The opener of the grammar's stories stands in the training text; a copy is refused where it begins."""
    out = tmp_path / "out.jsonl"
    argv = ["sample", str(base), "temperature=0", "max_tokens=60", f"out={out}", "logit_bias=0:-inf"]
    config = TextSampling(run=str(base))
    training = training_text_of(config, print)
    generator = load_generator(str(base))
    assert isinstance(generator, TextGenerator)
    text = generator.tokenizer.decode(training.read(3, 40).tolist())
    guard = load_filters(["copies:8"], FilterRequest("", generator.tokenizer, lambda: training))
    assert judge(guard, text, "refuse").findings[0].start < 12
    assert main([*argv, "filter=copies:8", "filter_action=refuse"]) == 0
    sample = json.loads(out.read_text())
    whole = generator.generate("", max_tokens=60, temperature=0, logit_bias={0: -math.inf})[0]
    assert (sample["finish_reason"] == "filtered") == bool(judge(guard, whole.text, "refuse").findings)
    assert whole.text.startswith(sample["text"])


def test_a_reward_run_is_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It judges whole answers; what scores below the threshold is found."""

    class Length(Scorer):
        def __init__(self) -> None: ...

        def score(
            self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None
        ) -> Tensor:
            return torch.tensor([float(len(prompts[0]) + len(responses[0]))])

    judged = RewardFilter(Length(), 10.0)
    assert judged.find("short", "abc") == [Finding(0, 5, "low reward")] and not judged.find("longer", "abcd")
    assert judge([judged], "short", "refuse", "abc").text == ""
