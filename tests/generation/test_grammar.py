"""Grammars: which tokens may come next, on vocabularies of bytes and of pieces, and what ends a text."""

import ast
import json
import random
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text import grammar as grammars
from gengen.generation.text import grammar_trial
from gengen.generation.text.grammar import Grammar, GrammarSpec, compile_grammar
from helpers.benchmark import benchmark

suite = benchmark("json_schema_suite")
SOURCES = Path(grammars.__file__).parents[2]
BYTES = TextTokenizer.byte()
VOCABULARY = grammars.vocabulary_of(BYTES)
CHOICE = ["yes", "no", "not at all", "né\n", 'q"\\', "yes, please"]
TREE = r"""
start: expr
expr: NUMBER | "(" expr OP expr ")"
OP: /[-+*]/
NUMBER: /[0-9]{1,3}/
"""


@pytest.fixture(scope="module")
def pieces() -> TextTokenizer:
    """A vocabulary with tokens of several characters, some of them of every choice."""
    words = ["yes, please, not at all: no", 'né\n q"\\ yes no not', '{"name":"a","age":12} true false null'] * 20
    return TextTokenizer.train(words, 330)


def texts_of(grammar: Grammar, tokenizer: TextTokenizer, limit: int = 200) -> set[str]:
    """Return all texts of a grammar that has few, by following each allowed token."""
    found, open_texts = set[str](), [list[int]()]
    while open_texts:
        tokens = open_texts.pop()
        constraint = grammar.constraint()
        for token in tokens:
            constraint.add(token)
        for token in constraint.allowed().nonzero()[:, 0].tolist():
            if token in tokenizer.ends:
                found.add(tokenizer.decode(tokens))
            else:
                open_texts.append([*tokens, token])
        assert len(found) <= limit
    return found


@pytest.mark.parametrize("chat", [False, True])
def test_the_texts_of_a_choice_are_its_texts_in_any_pieces(pieces: TextTokenizer, chat: bool) -> None:
    for tokenizer in (BYTES, pieces):
        tokenizer = tokenizer.with_chat() if chat else tokenizer
        assert texts_of(compile_grammar(GrammarSpec(choice=CHOICE), tokenizer), tokenizer) == set(CHOICE)


def test_allowed_tokens_are_those_that_a_loop_finds(pieces: TextTokenizer) -> None:
    """All of the vocabulary that goes on with one of the choices, at each place; the end where one is whole. Where all
    choices go on alike, only the tokens that the tokenizer writes that with."""
    tokenizer = pieces.with_chat()
    grammar = compile_grammar(GrammarSpec(choice=CHOICE), tokenizer)
    spelled = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    assert max(len(text) for text in spelled) > 3
    for choice in CHOICE:
        constraint, written = grammar.constraint(), b""
        while True:
            rests = [text.encode()[len(written) :] for text in CHOICE if text.encode().startswith(written)]
            expected = [bool(text) and any(rest.startswith(text) for rest in rests) for text in spelled]
            expected[tokenizer.eot] = b"" in rests
            allowed = constraint.allowed().tolist()
            if len({rest[:1] for rest in rests}) > 1:
                assert allowed == expected, (choice, written)
            else:
                assert any(allowed) and all(a <= b for a, b in zip(allowed, expected, strict=True)), (choice, written)
            assert constraint.complete == (rests == [b""])
            if written == choice.encode():
                break
            token = tokenizer.encode(choice.encode()[len(written) :].decode(errors="ignore"))[0]
            constraint.add(token)
            written += spelled[token]


ACCEPTED: list[tuple[GrammarSpec, list[str], list[str]]] = [
    (GrammarSpec(regex=r"[a-z]{2}\d?"), ["ab", "ab1"], ["a", "abc", "ab12", "xab"]),
    (GrammarSpec(regex=r"(?i)yes|no\.\s"), ["YES", "no. ", "No.\n"], ["yes.", "no."]),
    (GrammarSpec(regex=r"\p{Greek}+"), ["αβγ"], ["abc", ""]),
    (GrammarSpec(lark=TREE), ["7", "(1+(2*3))"], ["()", "(1+2", "1+2", "1234"]),
    (GrammarSpec(lark='start: "a" start | "b"'), ["b", "aab"], ["a", "ba"]),
    (GrammarSpec(lark='start: "<x>" TEXT // no <special>\nTEXT: /%json|[<]/'), ["<x>%json", "<x><"], ["<x>"]),
    (GrammarSpec(json_object=True), ["{}", '{"a":[1,{"b":null}]}'], ["[]", "{ }", "1", '{"a":}']),
]


@pytest.mark.parametrize(("spec", "valid", "invalid"), ACCEPTED, ids=lambda part: str(part)[:40])
def test_a_text_is_accepted_as_a_whole(spec: GrammarSpec, valid: list[str], invalid: list[str]) -> None:
    grammar = compile_grammar(spec, BYTES)
    assert [text for text in valid if not suite.writable(grammar, text)] == []
    assert [text for text in invalid if suite.writable(grammar, text)] == []


REFUSED: list[tuple[GrammarSpec, str]] = [
    (GrammarSpec(), "one of json_schema, json_object, regex, choice, lark says what an answer must obey; found none"),
    (GrammarSpec(regex="a", choice=["b"]), "found regex and choice"),
    (GrammarSpec(regex=""), "regex: a text of 1 to 65,536 bytes"),
    (GrammarSpec(regex="a" * 70_000), "regex: a text of 1 to 65,536 bytes"),
    (GrammarSpec(regex="(?=a)b"), "look-around"),
    (GrammarSpec(regex="(a"), "unclosed group"),
    (GrammarSpec(choice="yes"), "choice: a list of texts, none of them empty"),
    (GrammarSpec(choice=["a", ""]), "choice: a list of texts, none of them empty"),
    (GrammarSpec(choice=["a"] * 1001), "choice: 1,001 texts"),
    (GrammarSpec(lark="start: %json {}"), "lark: %json is not supported: give the whole answer's schema"),
    (GrammarSpec(lark='%llguidance {"allow_invalid_utf8": true}\nstart: /a/'), "lark: %llguidance is not supported"),
    (GrammarSpec(lark="start: <[0]> /a/"), "lark: < is not supported: special tokens"),
    (GrammarSpec(lark="start: a\na[temperature=0.1, lazy]: /a+/"), "lark: the option temperature of a rule"),
    (GrammarSpec(lark="start: a\na[max_tokens=3]: /a+/"), "lark: the option max_tokens of a rule"),
    (GrammarSpec(lark="start: b"), "unknown name"),
]


@pytest.mark.parametrize(("spec", "words"), REFUSED, ids=lambda part: str(part)[:40])
def test_a_grammar_that_is_none_is_refused(spec: GrammarSpec, words: str) -> None:
    with pytest.raises(UserError) as error:
        compile_grammar(spec, BYTES)
    assert words in str(error.value) and len(str(error.value)) < 500


def test_tokens_without_bytes_are_never_allowed_but_the_ends() -> None:
    tokenizer = BYTES.with_chat()
    assert tokenizer.ends == (260,)
    grammar = compile_grammar(GrammarSpec(regex=r"(?s:.*)"), tokenizer)
    allowed = grammar.constraint().allowed()
    assert allowed[260] and not allowed[[0, 257, 258, 259]].any() and int(allowed.sum()) > 150


def test_all_ends_of_a_tokenizer_are_ends() -> None:
    tokenizer = TextTokenizer.byte()
    tokenizer.ends = (0, 66)  # "A" ends a text, too
    constraint = compile_grammar(GrammarSpec(choice=["A", "B", "BA"]), tokenizer).constraint()
    assert not constraint.allowed()[[0, 66]].any()  # nothing whole is written yet: an A would be an empty answer
    constraint.add(67)
    assert constraint.allowed()[[0, 66]].all()


def test_constraints_of_one_grammar_do_not_share_their_place() -> None:
    grammar = compile_grammar(GrammarSpec(regex="ab"), BYTES)
    first, second = grammar.constraint(), grammar.constraint()
    first.add(BYTES.encode("a")[0])
    assert first.allowed().nonzero().flatten().tolist() == BYTES.encode("b")
    assert second.allowed().nonzero().flatten().tolist() == BYTES.encode("a")
    first.add(BYTES.encode("b")[0])
    assert first.complete and not second.complete and first.allowed().nonzero().flatten().tolist() == [BYTES.eot]


def test_a_mask_is_a_function_of_the_text_alone() -> None:
    """Whatever else was written with the grammar before: its tables grow, and say the same."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}}
    text = BYTES.encode('{"a":"né","b":-1.5')

    def masks(grammar: Grammar) -> list[torch.Tensor]:
        constraint, found = grammar.constraint(), []
        for token in text:
            found.append(constraint.allowed())
            constraint.add(token)
        return found

    used = compile_grammar(GrammarSpec(json_schema=schema), BYTES)
    for seed in range(5):
        suite.walk(used, seed, 100)
    fresh = grammars.build(GrammarSpec(json_schema=schema).source(), VOCABULARY)
    assert all(torch.equal(a, b) for a, b in zip(masks(used), masks(fresh), strict=True))


def test_a_token_that_was_not_allowed_is_an_error_of_this_text_alone() -> None:
    grammar = compile_grammar(GrammarSpec(regex="ab"), BYTES)
    constraint, other = grammar.constraint(), grammar.constraint()
    with pytest.raises(UserError, match="the grammar cannot go on"):
        constraint.add(BYTES.encode("x")[0])
    with pytest.raises(UserError, match="the grammar cannot go on"):
        constraint.allowed()
    assert not constraint.complete and int(other.allowed().sum()) == 1


def test_where_no_token_may_follow_is_an_error() -> None:
    few = TextTokenizer("", [b"", b"a", b"c"], None)  # which cannot write "ab"
    few.encode = lambda text: [1]  # type: ignore[method-assign]
    constraint = compile_grammar(GrammarSpec(choice=["ab"]), few).constraint()
    constraint.add(1)
    with pytest.raises(UserError, match="the grammar cannot go on"):
        constraint.allowed()
    grammar = compile_grammar(GrammarSpec(choice=["ab"]), BYTES)
    mute = replace(VOCABULARY, writable=torch.zeros(257, dtype=torch.bool))
    grammar = grammars.Grammar(grammar.start, mute)
    with pytest.raises(UserError, match="no token of the vocabulary may follow"):
        grammar.constraint().allowed()


def test_64_grammars_are_kept_and_a_tokenizer_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_grammar(GrammarSpec(choice=["first"]), BYTES)
    assert compile_grammar(GrammarSpec(choice=["first"]), BYTES) is first
    assert compile_grammar(GrammarSpec(choice=["first"]), TextTokenizer.byte()) is not first
    misses = grammars.vocabulary_of.cache_info().misses
    for i in range(64):
        compile_grammar(GrammarSpec(choice=[f"other {i}"]), BYTES)
    assert grammars.vocabulary_of.cache_info().misses == misses
    assert grammars.compiled.cache_info().currsize == 64
    assert compile_grammar(GrammarSpec(choice=["first"]), BYTES) is not first


def test_a_grammar_that_takes_too_long_or_too_much_ends_the_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """b{1000}{1000} compiles for a minute, to 700 MiB; the next grammar has a process of its own."""
    compile_grammar(GrammarSpec(choice=["before"]), BYTES)
    first = grammar_trial.TRIALS.process
    assert first and first.poll() is None
    monkeypatch.setattr(grammar_trial, "SECONDS", 0.3)
    with pytest.raises(UserError, match=re.escape("more than 0.3 s to compile")):
        compile_grammar(GrammarSpec(regex="b{1000}{1000}"), BYTES)
    monkeypatch.undo()
    assert first.poll() is not None and grammar_trial.TRIALS.process is None
    assert texts_of(compile_grammar(GrammarSpec(choice=["after"]), BYTES), BYTES) == {"after"}
    process = grammar_trial.TRIALS.process
    assert process and process is not first
    process.kill()  # from outside
    process.wait()
    assert texts_of(compile_grammar(GrammarSpec(choice=["again"]), BYTES), BYTES) == {"again"}


def test_a_grammar_that_breaks_its_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a panic, a stack overflow, or for memory: whatever ends the process."""
    monkeypatch.setattr(grammar_trial, "TRIAL", "print('ready', flush=True); input(); import os; os.abort()")
    trial = grammar_trial.Trial()
    with pytest.raises(UserError, match="breaks its compiler"):
        trial.run("start: /a/")
    assert trial.process is None
    monkeypatch.setattr(grammar_trial, "TRIAL", "raise SystemExit")
    with pytest.raises(UserError, match="did not start"):
        trial.run("start: /a/")


HOSTILE: dict[str, GrammarSpec] = {
    "1,000 objects": GrammarSpec(
        json_schema={
            "anyOf": [
                {"type": "object", "properties": {f"k{i}": {"const": i}}, "required": [f"k{i}"]} for i in range(990)
            ]
        }
    ),
    "deep": GrammarSpec(json_schema=json.loads('{"items":' * 31 + "{}" + "}" * 31) | {"type": "array"}),
    "400 patterns": GrammarSpec(
        json_schema={
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "pattern": f"a.*b.*c{i}"} for i in range(400)},
        }
    ),
    "repeated repeats": GrammarSpec(json_schema={"type": "string", "pattern": "((a{1000}){1000}){1000}"}),
    "a pattern of 2^40 states": GrammarSpec(regex="(?s:.*)a(?s:.{1000})b" + "(x|xx)*" * 20),
    "1,000 long choices": GrammarSpec(choice=[f"{i:064d}"[::-1] for i in range(1000)]),
    "ambiguous": GrammarSpec(lark='start: a a a a a a a a\na: "x"* b?\nb: a a "x"? | "x"'),
    "many arrays": GrammarSpec(json_schema={"type": "array", "prefixItems": [{"maxItems": 640}] * 3000}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_costs_little(name: str) -> None:
    """It is refused, or compiled and then stepped, in bounded time; in the other process that is tested above."""
    began = time.process_time()
    try:
        constraint = compile_grammar(HOSTILE[name], BYTES).constraint()
        draw = random.Random(0)
        for _ in range(30):
            if constraint.complete:
                break
            constraint.add(draw.choice(constraint.allowed().nonzero()[:, 0].tolist()))
    except UserError as error:
        assert len(str(error)) < 500
    assert time.process_time() - began < 4


def test_llguidance_is_imported_for_grammars_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    users = [path for path in SOURCES.rglob("*.py") if "llguidance" in path.read_text()]
    assert users
    for path in users:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "llguidance" not in ast.unparse(node), path
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=re.escape("pip install 'gengen[serve]'")):
        compile_grammar(GrammarSpec(choice=["a"]), BYTES)


def test_a_schema_that_is_false_or_true_is_a_schema() -> None:
    anything: Any = True
    assert suite.writable(compile_grammar(GrammarSpec(json_schema=anything), BYTES), '[1,"a"]')
    with pytest.raises(UserError, match="no answer obeys it"):
        compile_grammar(GrammarSpec(json_schema=False), BYTES)  # type: ignore[arg-type]
