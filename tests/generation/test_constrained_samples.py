"""Samples that obey a grammar: what is drawn, streamed and ended, from a model that was never trained."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from gengen.cli.sample_text import sample_text
from gengen.config.commands import DecodingSettings, TextSampling
from gengen.config.compose import compose_flat, read_command_line
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.exactness import build_engine
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.grammar import GrammarSpec, compile_grammar
from gengen.generation.text.row import Request
from gengen.generation.text.sampling import draw, next_token_probabilities
from gengen.generation.text.scheduler import Scheduler
from gengen.generation.text.speculation import PromptLookup, Speculation
from gengen.models.gpt import GPT
from helpers.draws import uniforms
from helpers.schemas import TWENTY

BYTES = TextTokenizer.byte()
ORDER = GrammarSpec(
    json_schema={
        "type": "object",
        "properties": {"sku": {"type": "string", "pattern": "^[A-Z]{2}$"}, "n": {"type": "integer", "maximum": 99}},
        "required": ["sku", "n"],
    }
)


def plain_loop(model: GPT, spec: GrammarSpec, index: int, count: int, **controls: Any) -> tuple[list[int], str]:
    """One sample with neither cache nor batch: forbidden tokens get no logit, then come temperature and the rest."""
    constraint, tokens = compile_grammar(spec, BYTES).constraint(), [0]
    for u in uniforms(0, [index], count)[0]:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[:, -1]
        logits[0, ~constraint.allowed()] = -torch.inf
        token = int(draw(next_token_probabilities(logits, **controls), u[None]))
        if token == 0:
            return tokens[1:], "end"
        tokens.append(token)
        constraint.add(token)
        if constraint.complete:
            return tokens[1:], "stop"
    return tokens[1:], "length"


@pytest.mark.parametrize(
    "controls", [{"temperature": 1.0}, {"temperature": 0.0}, {"temperature": 1.3, "top_k": 3, "min_p": 0.01}], ids=str
)
def test_samples_equal_those_of_a_plain_loop(model: GPT, generator: TextGenerator, controls: dict[str, Any]) -> None:
    """top_k counts allowed tokens alone, so the mask comes first."""
    samples = generator.generate("", n=3, max_tokens=30, grammar=ORDER, **controls)
    for sample in samples:
        tokens, reason = plain_loop(model, ORDER, sample.index, 30, **controls)
        assert (sample.tokens, sample.finish_reason) == (tokens, reason)
    assert all(set(json.loads(s.text)) == {"sku", "n"} for s in samples if s.finish_reason == "stop")
    assert any(s.finish_reason == "stop" for s in samples)


def test_a_sample_does_not_depend_on_its_batch(model: GPT, generator: TextGenerator) -> None:
    eight = generator.generate(["a", "Once upon a"], n=4, max_tokens=40, grammar=ORDER, temperature=1.0)
    small = TextGenerator(model, BYTES, batch_size=3)
    again = small.generate(["a", "Once upon a"], n=4, max_tokens=40, grammar=ORDER, temperature=1.0)
    assert again == eight and [s.logprobs for s in again] == [s.logprobs for s in eight]
    assert generator.generate("a", max_tokens=40, grammar=ORDER, temperature=1.0)[0] == eight[0]


def test_free_neighbours_of_a_constrained_text_draw_the_same(model: GPT) -> None:
    def request(index: int, spec: GrammarSpec | None) -> Request:
        constraint = compile_grammar(spec, BYTES).constraint() if spec else None
        return Request([0, 66], DecodingSettings(max_tokens=20, temperature=1.0), index, constraint=constraint)

    def drawn(requests: list[Request]) -> list[tuple[str, list[float]]]:
        some = Scheduler(build_engine(model), BYTES, 32, rows=4)
        texts = [some.admit(one) for one in requests]
        while not some.idle:
            some.step()
        return [(text.text, text.logprobs) for text in texts]

    mixed = drawn([request(i, ORDER if i % 2 else None) for i in range(4)])
    assert mixed == [drawn([request(i, ORDER if i % 2 else None)])[0] for i in range(4)]


def test_guessed_tokens_obey_too(model: GPT) -> None:
    """A guess is checked by the mask of its own place: guesses change no text."""
    spec = GrammarSpec(regex="(ab|ba){20}")  # which prompt lookup guesses well

    def drawn(speculation: Speculation | None) -> list[tuple[str, str]]:
        some = Scheduler(build_engine(model), BYTES, 32, rows=2, speculation=speculation)
        settings = DecodingSettings(max_tokens=25, temperature=1.0)
        constraints = [compile_grammar(spec, BYTES).constraint() for _ in range(2)]
        texts = [some.admit(Request([0, 66], settings, i, constraint=one)) for i, one in enumerate(constraints)]
        while not some.idle:
            some.step()
        return [(text.text, text.finish_reason) for text in texts]

    guessing = Speculation(PromptLookup())
    assert drawn(guessing) == drawn(None) and guessing.accepted > 0


def test_a_stream_is_its_sample(generator: TextGenerator) -> None:
    whole = generator.generate("so", max_tokens=60, grammar=ORDER)[0]
    assert "".join(generator.stream("so", max_tokens=60, grammar=ORDER)) == whole.text != ""


def test_a_text_that_is_whole_with_its_last_token_is_whole(generator: TextGenerator) -> None:
    spec = GrammarSpec(regex="[a-z]{5}")
    for count, reason in ((4, "length"), (5, "stop"), (6, "stop")):
        assert {s.finish_reason for s in generator.generate("a", n=3, max_tokens=count, grammar=spec)} == {reason}


def test_the_end_is_drawn_only_where_an_answer_is_whole(generator: TextGenerator) -> None:
    samples = generator.generate("", n=60, max_tokens=12, grammar=GrammarSpec(regex="(ab)*c?"), temperature=1.5)
    ended = [s.text for s in samples if s.finish_reason == "end"]
    assert ended and all(text.replace("ab", "") in ("", "c") for text in ended)


class Broken:
    """Allows everything for a while, then cannot go on."""

    complete = False

    def __init__(self, at_add: bool):
        self.at_add, self.left = at_add, 3

    def allowed(self) -> torch.Tensor:
        if not self.at_add and not self.left:
            raise UserError("too complex")
        return torch.ones(257, dtype=torch.bool)

    def add(self, token: int) -> None:
        self.left -= 1
        if self.at_add and not self.left:
            raise UserError("too complex")


@pytest.mark.parametrize("at_add", [False, True])
def test_a_constraint_that_fails_ends_its_text_alone(model: GPT, at_add: bool) -> None:
    """Its neighbours have the same controls, and are drawn in the same call."""
    settings = DecodingSettings(max_tokens=12, temperature=1.0, logit_bias=["0:-inf"])
    some = Scheduler(build_engine(model), BYTES, 32)
    texts = [
        some.admit(Request([0, 66], settings, i, constraint=Broken(at_add) if i == 1 else None)) for i in range(3)
    ]
    while not some.idle:
        some.step()
    assert [text.finish_reason for text in texts] == ["length", "error", "length"]
    assert texts[1].error == "too complex" and len(texts[1].tokens) == 3


def ended_and_valid(
    generator: TextGenerator, schemas: Sequence[dict[str, Any]], count: int, max_tokens: int
) -> Iterator[bool]:
    """Yield of each text whether it ended by itself; those that did must obey the schema. `count` texts of each."""
    for i, schema in enumerate(schemas):
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        spec = GrammarSpec(json_schema=schema)
        for sample in generator.generate("", n=count, max_tokens=max_tokens, temperature=1.0, seed=i, grammar=spec):
            assert sample.finish_reason in ("stop", "end", "length")
            if ended := sample.finish_reason != "length":
                validator.validate(json.loads(sample.text))
            yield ended


def test_what_ends_is_valid(generator: TextGenerator) -> None:
    assert sum(ended_and_valid(generator, TWENTY[1::4], 2, 40)) > 4


@pytest.mark.slow
def test_what_ends_is_valid_of_twenty_schemas(model: GPT) -> None:
    assert sum(ended_and_valid(TextGenerator(model, BYTES, exact=False), TWENTY, 15, 150)) > 200


# --- on the command line


def shown(generator: TextGenerator, **settings: Any) -> list[str]:
    """Return the texts that the command writes."""
    said: list[str] = []
    sample_text(generator, TextSampling(run="r", temperature=1.0, max_tokens=60, **settings), said.append)
    return [one.split("\n", 1)[1] for one in said]


def test_the_command_takes_each_kind_of_grammar(generator: TextGenerator, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["é", 12, null]}', encoding="utf8")
    (tmp_path / "grammar.lark").write_text('start: "a" "b"~2..3\n')
    schema = str(tmp_path / "schema.json")
    assert set(shown(generator, n=8, json_schema=schema)) <= {'"é"', "12", "null"}
    assert set(shown(generator, n=8, lark=str(tmp_path / "grammar.lark"))) <= {"abb", "abbb"}
    assert set(shown(generator, n=8, choice=["yes", "no, never"])) == {"yes", "no, never"}
    assert all(text.isdigit() and len(text) == 3 for text in shown(generator, n=4, regex="[0-9]{3}"))
    assert all(text.startswith("{") for text in shown(generator, n=2, json=True))


def test_a_stream_of_the_command_obeys(generator: TextGenerator, capsys: pytest.CaptureFixture[str]) -> None:
    shown(generator, stream=True, choice=["maybe"])
    assert capsys.readouterr().out == "maybe\n"


def test_choices_and_expressions_are_taken_as_they_are_typed() -> None:
    line = read_command_line(["run=r", "choice=yes, it's so", "choice=no"])
    assert compose_flat(TextSampling, line).choice == ["yes, it's so", "no"]
    assert compose_flat(TextSampling, read_command_line(["regex=[a,b]{2}=1"])).regex == "[a,b]{2}=1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regex": "a", "json": True}, "json and regex: one of them says what a text must obey"),
        ({"json_schema": "none.json"}, "json_schema=none.json: no such file"),
        ({"lark": "none.lark"}, "lark=none.lark: no such file"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_model_is_loaded(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        TextSampling(run="r", **settings).check()
    assert words in str(error.value)


def test_a_file_that_is_no_json_is_an_error(generator: TextGenerator, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("{'type': 'null'}")
    with pytest.raises(UserError, match=r"schema\.json: no JSON: Expecting property name"):
        shown(generator, json_schema=str(tmp_path / "schema.json"))
