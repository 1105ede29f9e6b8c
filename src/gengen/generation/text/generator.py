"""From a language model to text: prompts of any lengths in one batch, a KV cache, stop strings, streaming.

Read `generate` and `samples` first, then scheduler.py (the loop), drawing.py (from logits to tokens), sampling.py (the
formulas), engine.py (the network).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from gengen.checkpoints.layout import read_tokenizer
from gengen.config.commands import DecodingSettings
from gengen.config.schema import build
from gengen.data.dialogue.template import prompt_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.base import Sample
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.engine import Engine
from gengen.generation.text.exactness import build_engine
from gengen.generation.text.grammar import Grammar, GrammarSpec, compile_grammar
from gengen.generation.text.processor import Processor
from gengen.generation.text.row import Request
from gengen.generation.text.scheduler import Scheduler
from gengen.models.gpt import GPT

Prompt = str | Sequence[int]
"""Text, or token ids, which are taken as they are."""


def never() -> bool:
    return False


class PromptTooLong(UserError):
    """A prompt has more tokens than the model's context."""


class TextGenerator:
    """Continues text with a language model; what `gengen.load` returns for one.

    precision, compile: see `Engine`. batch_size: samples drawn at once. exact: in fp32 neither the batch nor what else
    is in it changes a bit of a sample, where the machine allows it (`engine.exact` says whether it does); without it a
    few texts are drawn faster.
    """

    command_hint = 'to sample: python scripts/sample.py {run} prompt="Once upon a time"'

    def __init__(
        self,
        model: GPT,
        tokenizer: TextTokenizer,
        precision: str = "fp32",
        compile: bool = False,
        batch_size: int = 64,
        exact: bool = True,
    ):
        if tokenizer.vocab_size > model.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {model.vocab_size}: "
                "they are not of one run"
            )
        assert model.config.context
        self.model, self.tokenizer, self.batch_size, self.context = model, tokenizer, batch_size, model.config.context
        self.precision, self.compile, self.exact = precision, compile, exact

    @cached_property
    def engine(self) -> Engine:
        return build_engine(self.model, self.precision, self.compile, self.exact)

    @classmethod
    def from_checkpoint(cls, model: GPT, directory: Path) -> Self:
        if (tokenizer := read_tokenizer(directory)) is None:
            raise UserError(f"{directory} has no tokenizer.json")
        return cls(model, TextTokenizer.from_json(tokenizer))

    def use(self, precision: str, compile: bool, exact: bool) -> None:
        """Draw in this way from now on."""
        if (precision, compile, exact) != (self.precision, self.compile, self.exact):
            self.precision, self.compile, self.exact = precision, compile, exact
            self.__dict__.pop("engine", None)

    # --- with a keyword for each setting

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        *,
        n: int = 1,
        seed: int = 0,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | Sequence[str] = (),
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        overflow: str = "slide",
        logprobs_of: str = "model",
        grammar: GrammarSpec | None = None,
        processor: Processor | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> list[Sample]:
        """Return n continuations of each prompt, those of one prompt side by side; an empty prompt starts a text.

        Sample i, its place in the list, draws from (seed, i) alone. `DecodingSettings` explains the settings. A stop
        string or id ends a sample and is left out. A text that fills the model's context goes on from the last half
        of it, unless overflow="end". grammar: what each sample obeys, before temperature and what comes after it.
        `interrupted` is polled before each token; once true, all samples end as they are.
        """
        settings = decoding_settings(
            seed, max_tokens, temperature, top_k, top_p, min_p,
            repetition_penalty, presence_penalty, frequency_penalty, logit_bias, stop, stop_ids, overflow, logprobs_of,
        )  # fmt: skip
        return list(
            self.samples(prompts, settings, n=n, grammar=grammar, processor=processor, interrupted=interrupted)
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        seed: int = 0,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | Sequence[str] = (),
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        overflow: str = "slide",
        grammar: GrammarSpec | None = None,
        processor: Processor | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Iterator[str]:
        """Yield the text of `generate(prompt, ...)[0]` in pieces as it comes; never half a character or part of a stop
        string."""
        settings = decoding_settings(
            seed, max_tokens, temperature, top_k, top_p, min_p,
            repetition_penalty, presence_penalty, frequency_penalty, logit_bias, stop, stop_ids, overflow,
        )  # fmt: skip
        return self.pieces(prompt, settings, grammar=grammar, processor=processor, interrupted=interrupted)

    # --- with settings that were checked already, such as a command's

    def samples(
        self,
        prompts: str | Sequence[Prompt],
        settings: DecodingSettings,
        *,
        n: int = 1,
        grammar: GrammarSpec | None = None,
        processor: Processor | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Iterator[Sample]:
        """Yield what `generate` returns; a batch is drawn when the first sample of it is asked for."""
        if n < 1:
            raise UserError(f"n={n} does not fit: at least one sample of each prompt is drawn")
        listed: list[Prompt] = [prompts] if isinstance(prompts, str) else list(prompts)
        starts = [self.prompt_tokens(prompt) for prompt in listed]
        texts = [prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt) for prompt in listed]
        return self._samples(starts, texts, settings, n, self.compiled(grammar), processor, interrupted)

    def _samples(
        self,
        starts: list[list[int]],
        texts: list[str],
        settings: DecodingSettings,
        n: int,
        grammar: Grammar | None,
        processor: Processor | None,
        interrupted: Callable[[], bool],
    ) -> Iterator[Sample]:
        total = n * len(starts)
        longest = max(map(len, starts), default=0) + settings.max_tokens
        scheduler = self.scheduler(min(self.batch_size, total), longest)
        unseen = deque[tuple[int, Continuation]]()
        for i in range(total):
            request = Request(starts[i // n], settings, i, processor, grammar.constraint() if grammar else None)
            unseen.append((i, scheduler.admit(request)))
            while len(unseen) >= 2 * self.batch_size or (i == total - 1 and unseen):
                while not unseen[0][1].finish_reason:
                    advance(scheduler, interrupted)
                while unseen and unseen[0][1].finish_reason:
                    j, text = unseen.popleft()
                    yield Sample(
                        texts[j // n], text.text, text.tokens, text.finish_reason, j, settings.seed, text.logprobs
                    )

    def pieces(
        self,
        prompt: Prompt,
        settings: DecodingSettings,
        *,
        grammar: GrammarSpec | None = None,
        processor: Processor | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Iterator[str]:
        """Yield what `stream` yields."""
        tokens, found = self.prompt_tokens(prompt), self.compiled(grammar)
        scheduler = self.scheduler(1, len(tokens) + settings.max_tokens)
        row = scheduler.admit(Request(tokens, settings, 0, processor, found.constraint() if found else None))

        def grown() -> Iterator[str]:
            shown = 0
            while not row.finish_reason:
                advance(scheduler, interrupted)
                if len(row.text) > shown:
                    yield row.text[shown:]
                    shown = len(row.text)

        return grown()

    def scheduler(self, rows: int, slots: int | None = None) -> Scheduler:
        """Return what draws `rows` texts at once, of at most `slots` tokens with their prompts."""
        return Scheduler(self.engine, self.tokenizer, self.context, rows, slots)

    def compiled(self, grammar: GrammarSpec | None) -> Grammar | None:
        return None if grammar is None else compile_grammar(grammar, self.tokenizer)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Return a prompt as tokens. Text follows a token that begins one, as documents do in training; for a model of
        conversations it is a user's message. Raises UserError for what does not fit the model."""
        if not isinstance(prompt, str):
            tokens = self._checked_tokens(prompt)
        elif self.tokenizer.chat:
            tokens = prompt_tokens(self.tokenizer, [{"role": "user", "content": prompt}])
        else:
            tokens = [self.tokenizer.start, *self.tokenizer.encode(prompt)]
        if len(tokens) > self.context:
            raise PromptTooLong(
                f"the prompt has {len(tokens) - 1} tokens, the model's context is {self.context}: "
                f"at most {self.context - 1}\n  it begins: {str(prompt)[:60]!r}"
            )
        return tokens

    def _checked_tokens(self, prompt: Sequence[int]) -> list[int]:
        tokens, most = list(prompt), self.tokenizer.vocab_size
        if not tokens or not all(0 <= token < most for token in tokens):
            raise UserError(f"a prompt of tokens needs one at least, each of 0..{most - 1}; found {tokens[:8]}")
        return tokens


def advance(scheduler: Scheduler, interrupted: Callable[[], bool]) -> None:
    """Make a step, or end all texts if interrupted. Raises UserError for a text that ends with an error."""
    if interrupted():
        scheduler.cancel_all()
    elif failed := [text.error for text in scheduler.step() if text.error]:
        raise UserError(failed[0])


def decoding_settings(
    seed: int,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    logit_bias: Mapping[int, float] | Sequence[str],
    stop: str | Sequence[str],
    stop_ids: Sequence[int],
    overflow: str,
    logprobs_of: str = "model",
) -> DecodingSettings:
    """Return the settings, each held to its field of DecodingSettings. Raises UserError for one that is out of range.

    logit_bias: {token: number}, or texts "TOKEN:NUMBER"; stop: one text or several.
    """
    if isinstance(logit_bias, Mapping):
        logit_bias = [f"{token}:{number}" for token, number in logit_bias.items()]
    settings: DecodingSettings = build(DecodingSettings, {
        "seed": seed, "max_tokens": max_tokens, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty, "logit_bias": list(logit_bias),
        "stop": [stop] if isinstance(stop, str) else list(stop), "stop_ids": list(stop_ids),
        "overflow": overflow, "logprobs_of": logprobs_of,
    })  # fmt: skip
    return settings
