"""Answers that obey a grammar: JSON of a schema, a regular expression, one of several texts, a Lark grammar.

llguidance (the extra `serve`) says which tokens may come next; it is imported when the first grammar is compiled.
Where a grammar leaves one way to go on, it allows the tokens that the tokenizer writes that way with.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.constraint import Constraint
from gengen.generation.text.grammar_trial import LIMITS, TRIALS
from gengen.generation.text.json_schema import MAX_ALTERNATIVES, MAX_BYTES, answer_schema

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

MAX_SOURCE = 2**20  # characters of a JSON schema with all its bounds
JSON_FORM: "JsonCompileOptions" = {"whitespace_flexible": False, "json_allowed_escapes": 'nrbtf\\"'}
"""No spaces to loop in, and one spelling for each text: with \\u0061 beside a, a property could be given twice."""
LARK_SKIPPED = re.compile(r'(//|#).*|"(\\.|[^"\\\n])*"|/(\\.|[^/\\\n])+/')  # comments, texts, regular expressions
LARK_OPTIONS = re.compile(r"^\s*[!?]?[\w-]+\s*\[([^\]]*)\]\s*:", re.MULTILINE)


@dataclass(frozen=True)
class GrammarSpec:
    """What an answer must obey, in one of these ways.

    json_schema: a JSON schema, as `answer_schema` reads it. json_object: any JSON object. regex: an expression in
    Rust's syntax that the whole answer matches. choice: the texts to choose from. lark: a grammar in the dialect of
    llguidance.
    """

    json_schema: dict[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    lark: str | None = None

    def check(self) -> None:
        """Raise UserError unless exactly one way is given, of a bounded size."""
        given = [
            name for name, value in vars(self).items() if value is not None and (name, value) != ("json_object", False)
        ]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise UserError(f"one of {', '.join(vars(self))} says what an answer must obey; found {found}")
        for name, text in (("regex", self.regex), ("lark", self.lark)):
            if text is not None and not (isinstance(text, str) and 0 < len(text.encode()) <= MAX_BYTES):
                raise UserError(f"{name}: a text of 1 to {MAX_BYTES:,} bytes")
        if self.choice is not None:
            check_choice(self.choice)
        if self.lark is not None:
            check_lark(self.lark)

    def source(self) -> str:
        """Return the grammar as llguidance reads it. Raises UserError for what is not supported."""
        from llguidance import LLMatcher

        if self.regex is not None:
            return LLMatcher.grammar_from_regex(self.regex)
        if self.choice is not None:
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in self.choice))
        if self.lark is not None:
            return LLMatcher.grammar_from_lark(self.lark)
        schema = answer_schema({"type": "object"} if self.json_object else self.json_schema)
        source = LLMatcher.grammar_from_json_schema(schema, overrides=JSON_FORM)
        if len(source) > MAX_SOURCE:
            raise UserError("json_schema: too much is left open: name the types, and give bounds")
        return source


def check_choice(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise UserError("choice: a list of texts, none of them empty")
    size = sum(len(text.encode(errors="replace")) for text in texts)
    if len(texts) > MAX_ALTERNATIVES or size > MAX_BYTES:
        raise UserError(
            f"choice: {len(texts):,} texts of {size:,} bytes; at most {MAX_ALTERNATIVES:,} of {MAX_BYTES:,} bytes"
        )


def check_lark(text: str) -> None:
    """Refuse what llguidance adds to Lark and is not enforced here, by name."""
    rules = LARK_SKIPPED.sub('""', text)
    for word, why in (
        ("%json", "give the whole answer's schema as json_schema"),
        ("%llguidance", "its options are fixed"),
        ("<", "special tokens stand for no text"),
    ):
        if word in rules:
            raise UserError(f"lark: {word} is not supported: {why}")
    for options in LARK_OPTIONS.findall(rules):
        if others := {option.partition("=")[0].strip() for option in options.split(",")} - {"lazy", "capture", ""}:
            raise UserError(f"lark: the option {', '.join(sorted(others))} of a rule is not supported; lazy is")


class Grammar:
    """A grammar compiled for one tokenizer; each text that obeys it has a constraint of its own."""

    def __init__(self, start: "LLMatcher", vocabulary: "Vocabulary"):
        self.start, self.vocabulary = start, vocabulary

    def constraint(self) -> Constraint:
        return GrammarConstraint(self.vocabulary, self.start.deep_copy())


class GrammarConstraint:
    """A `Constraint`: the state of llguidance's parser within one text."""

    def __init__(self, vocabulary: "Vocabulary", matcher: "LLMatcher"):
        self.vocabulary, self.matcher = vocabulary, matcher

    def allowed(self) -> Tensor:
        biases = bytearray(self.matcher.compute_logit_bias())  # a byte a token, 0 where it may not come next
        self.check()
        allowed = torch.frombuffer(biases, dtype=torch.uint8).bool() & self.vocabulary.writable
        allowed[self.vocabulary.ends] = self.matcher.is_accepting()
        if not allowed.any():
            raise UserError("the grammar came to a place where no token of the vocabulary may follow")
        return allowed

    def add(self, token: int) -> None:
        if token not in self.vocabulary.ends:
            self.matcher.consume_token(token)
            self.check()

    @property
    def complete(self) -> bool:
        return self.matcher.is_stopped() and self.matcher.is_accepting()

    def check(self) -> None:
        if self.matcher.is_error():
            raise UserError(f"the grammar cannot go on: {reason(self.matcher.get_error())}")


def compile_grammar(spec: GrammarSpec, tokenizer: TextTokenizer) -> Grammar:
    """Compile a grammar, or take it from the 64 compiled last. Raises UserError for one that is not supported, too
    large or slow to compile, or that no text obeys."""
    spec.check()
    require_llguidance()
    return compiled(spec.source(), tokenizer)


@lru_cache(maxsize=64)
def compiled(source: str, tokenizer: TextTokenizer) -> Grammar:
    """Return a grammar compiled here, once another process has done so in bounded time and memory."""
    TRIALS.run(source)
    return build(source, vocabulary_of(tokenizer))


def build(source: str, vocabulary: "Vocabulary") -> Grammar:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**LIMITS, verbose_errors=False)  # type: ignore[arg-type]
    matcher = LLMatcher(vocabulary.tokenizer, source, log_level=0, limits=limits)
    if matcher.is_error():
        raise UserError(f"the grammar is not one to write answers by: {reason(matcher.get_error())}")
    if warnings := matcher.get_grammar_warnings():
        raise UserError(f"the grammar cannot be kept exactly: {reason(warnings[0])}")
    grammar = Grammar(matcher, vocabulary)
    grammar.constraint().allowed()  # the first mask fills the lexer's tables
    return grammar


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens as llguidance holds them. writable: which have bytes, (V,); the others are never text."""

    tokenizer: "LLTokenizer"
    writable: Tensor
    ends: list[int]


@lru_cache(maxsize=8)
def vocabulary_of(tokenizer: TextTokenizer) -> Vocabulary:
    from llguidance import LLTokenizer, TokenizerWrapper

    tokens, ends = Tokens(tokenizer), list(tokenizer.ends)
    writable = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
    writable[tokens.special_token_ids] = False
    return Vocabulary(LLTokenizer(TokenizerWrapper(tokens), tokenizer.vocab_size, ends), writable, ends)


class Tokens:
    """A tokenizer as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokenizer: TextTokenizer):
        texts = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
        self.tokenizer, self.eos_token_id = tokenizer, tokenizer.ends[0]
        self.special_token_ids = [i for i, text in enumerate(texts) if not text]
        self.tokens = [text or b"\xff<%d>" % i for i, text in enumerate(texts)]

    def __call__(self, text: str | bytes) -> list[int]:
        return self.tokenizer.encode(text if isinstance(text, str) else text.decode(errors="replace"))


def require_llguidance() -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise UserError(
            "answers that obey a schema need llguidance, which is not installed: pip install 'gengen[serve]'"
        ) from None


def reason(message: str) -> str:
    """Return what a message of llguidance says, in one line: its first, and the one that names the error."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason is given"]
    named = [line for line in lines[1:] if line.startswith("error:")]
    return " ".join([lines[0], *named])[:300]
