"""From a language model to text: prompts of any lengths in one batch, a KV cache, stop strings, streaming."""

import codecs
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gengen.checkpoints.layout import read_tokenizer
from gengen.config.commands import DecodingSettings, TextSampling
from gengen.config.schema import build
from gengen.data.dialogue.template import prompt_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError, did_you_mean, raised
from gengen.generation.text.engine import Engine
from gengen.generation.text.sampling import Controls, draw, next_token_probabilities, uniforms
from gengen.models.gpt import GPT

Processor = Callable[[Tensor, list[list[int]]], Tensor]
"""(logits (B, V) fp32, the tokens of each row, prompt included) -> logits: a grammar, a watermark, whatever a text
must obey.
"""


AHEAD = 1024  # tokens that random numbers are drawn for at once


@dataclass
class Sample:
    """One continuation of a prompt.

    finish_reason: "end" (the model ended its text), "stop" (a stop string came), "length" (max_tokens) or
    "interrupted".
    tokens: all that were drawn but what ended the text; they spell the text and, after "stop", the stop string too.
    logprobs: log-probability of each of them under the model itself, before any control.
    """

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: str
    index: int
    seed: int
    logprobs: list[float] = field(default_factory=list, compare=False)  # whose last bits depend on the batch


class Continuation:
    """A sample in the making. Its text never shrinks: what a later token may change is held back.

    That is the bytes of a character not yet complete, which is left out if the sample ends there, and characters that
    may begin a stop string. Of several stop strings the one that is complete first counts, wherever the borders of
    tokens lie.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: list[int], settings: DecodingSettings):
        self.tokenizer, self.stop, self.max_tokens = tokenizer, settings.stop, settings.max_tokens
        self.endings = dict.fromkeys(tokenizer.ends, "end") | dict.fromkeys(settings.stop_ids, "stop")
        self.prompt, self.tokens, self.logprobs = prompt, list[int](), list[float]()
        self.cached = 0  # tokens whose keys and values are in the cache
        self.text, self.held = "", ""
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.finish_reason = ""

    def add(self, token: int, logprob: float) -> None:
        if token in self.endings:
            return self.finish(self.endings[token])
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.held += self.characters.decode(self.tokenizer.decode_bytes([token]))
        if found := [(at + len(s), at) for s in self.stop if (at := self.held.find(s)) >= 0]:
            _, at = min(found)
            self.held = self.held[:at]
            return self.finish("stop")
        if len(self.tokens) == self.max_tokens:
            return self.finish("length")
        open_stop = max((n for s in self.stop for n in range(1, len(s)) if self.held.endswith(s[:n])), default=0)
        certain = len(self.held) - open_stop
        self.text, self.held = self.text + self.held[:certain], self.held[certain:]

    def finish(self, reason: str) -> None:
        self.text, self.held, self.finish_reason = self.text + self.held, "", reason


class TextGenerator:
    """Continues text with a language model; what `gengen.load` returns for one.

    precision, compile: see `Engine`. batch_size: samples drawn at once. Neither the batch nor what else is in it
    changes a sample drawn in fp32.
    """

    command_hint = 'to sample: python scripts/sample.py {run} prompt="Once upon a time"'

    def __init__(
        self,
        model: GPT,
        tokenizer: TextTokenizer,
        precision: str = "fp32",
        compile: bool = False,
        batch_size: int = 64,
    ):
        if tokenizer.vocab_size > model.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {model.vocab_size}: they are not of one run"
            )
        assert model.config.context
        self.model, self.tokenizer, self.batch_size, self.context = model, tokenizer, batch_size, model.config.context
        self.engine = Engine(model, precision, compile)

    @classmethod
    def from_checkpoint(cls, model: GPT, directory: Path) -> Self:
        if (tokenizer := read_tokenizer(directory)) is None:
            raise UserError(f"{directory} has no tokenizer.json")
        return cls(model, TextTokenizer.from_json(tokenizer))

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        *,
        n: int = 1,
        processor: Processor | None = None,
        interrupted: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> list[Sample]:
        """n continuations of each prompt, those of one prompt side by side; an empty prompt starts a text, token ids
        are taken as they are.

        Sample i, its place in the list, draws from (seed, i) alone. `settings` are seed and the fields of
        DecodingSettings: temperature, top_k, stop and so on; logit_bias also as {token: number}. A stop string or id
        ends a sample and is left out. A text that fills the model's context goes on from the last half of it.
        `interrupted` is polled before each token; once true, all samples end as they are.
        """
        return list(self.samples(prompts, n=n, processor=processor, interrupted=interrupted, **settings))

    def samples(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        *,
        n: int = 1,
        processor: Processor | None = None,
        interrupted: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> Iterator[Sample]:
        """Those that `generate` returns, a batch of them drawn when the first of it is asked for."""
        config = checked(n=n, **settings)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        starts = [self.prompt_tokens(prompt) for prompt in prompts]
        texts = [prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt) for prompt in prompts]

        def drawn() -> Iterator[Sample]:
            for first in range(0, n * len(prompts), self.batch_size):
                numbers = range(first, min(first + self.batch_size, n * len(prompts)))
                rows = [Continuation(self.tokenizer, starts[i // n], config) for i in numbers]
                with self.engine.decoding():
                    for _ in self._decode(rows, first, config, processor, interrupted or never):
                        pass
                for i, row in zip(numbers, rows, strict=True):
                    yield Sample(texts[i // n], row.text, row.tokens, row.finish_reason, i, config.seed, row.logprobs)

        return drawn()

    def command(self, config: TextSampling, say: Callable[[str], None]) -> str:
        """What `sample` does: draw, write to `out` and show, a batch at a time. Returns a line that sums it up; none
        of a stream."""
        if (config.precision, config.compile) != (self.engine.precision, self.engine.compiled):
            self.engine = Engine(self.model, config.precision, config.compile)
        settings = {"seed": config.seed} | {f.name: getattr(config, f.name) for f in fields(DecodingSettings)}
        prompts = config.prompt or [""]
        if config.stream:
            print(prompts[0], end="", flush=True)
            for piece in self.stream(prompts[0], **settings):
                print(piece, end="", flush=True)
            print()
            return ""
        start = time.perf_counter()
        if config.reward:
            from gengen.generation.text.rewards import best_of, load_reward

            reward = load_reward(config.reward, Path(config.runs_dir), self.tokenizer, str(self.engine.device))
            drawn = self.samples(prompts, n=config.n * config.best_of, **settings)
            asked = [self.prompt_tokens(prompt) for prompt in prompts]
            samples = best_of(drawn, asked, config.n, config.best_of, reward)
        else:
            samples = self.samples(prompts, n=config.n, **settings)
        between = "\n" if self.tokenizer.chat else ""  # an answer does not go on with its prompt
        tokens = 0
        with written(config.out) as write:
            for sample in samples:
                write(json.dumps(vars(sample), ensure_ascii=False) + "\n")
                say(f"--- {sample.index} ({sample.finish_reason})\n{sample.prompt}{between}{sample.text}")
                tokens += len(sample.tokens)
        return f"---\n{tokens} tokens, {tokens / (time.perf_counter() - start):.0f} tokens/s"

    def stream(
        self,
        prompt: str,
        *,
        processor: Processor | None = None,
        interrupted: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """The text of `generate(prompt, ...)[0]` in pieces as it comes; never half a character or part of a stop
        string.
        """
        config = checked(n=1, **settings)
        row = Continuation(self.tokenizer, self.prompt_tokens(prompt), config)

        def pieces() -> Iterator[str]:
            shown = 0
            for _ in self._decode([row], 0, config, processor, interrupted or never):
                if len(row.text) > shown:
                    yield row.text[shown:]
                    shown = len(row.text)

        return pieces()

    def prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """A prompt as tokens. Text follows a token that begins one, as documents do in training; for a model of
        conversations it is a user's message. Raises UserError for what does not fit the model."""
        tokens = (
            list(prompt) if not isinstance(prompt, str) else [self.tokenizer.start, *self.tokenizer.encode(prompt)]
        )
        if isinstance(prompt, str) and self.tokenizer.chat:
            tokens = prompt_tokens(self.tokenizer, [{"role": "user", "content": prompt}])
        if not isinstance(prompt, str) and not (
            tokens and all(0 <= token < self.tokenizer.vocab_size for token in tokens)
        ):
            raise UserError(
                f"a prompt of tokens needs one at least, each of 0..{self.tokenizer.vocab_size - 1}; found {tokens[:8]}"
            )
        if len(tokens) > self.context:
            found = f"the prompt has {len(tokens) - 1} tokens, the model's context is {self.context}: at most {self.context - 1}"
            raise UserError(f"{found}\n  it begins: {str(prompt)[:60]!r}")
        return tokens

    def _decode(
        self,
        rows: list[Continuation],
        first_index: int,
        c: TextSampling,
        processor: Processor | None,
        interrupted: Callable[[], bool],
    ) -> Iterator[None]:
        """Add a token to each unfinished row, then yield, until all are finished. Between yields no mode is left
        switched.
        """
        engine, device = self.engine, self.engine.device
        slots = min(self.context, max(len(row.prompt) for row in rows) + c.max_tokens)
        indices = list(range(first_index, first_index + len(rows)))
        with engine.decoding():
            prompts = list({tuple(row.prompt): None for row in rows})  # each is read once, however many samples it has
            cache = engine.prefill([prompt[:-1] for prompt in prompts], slots).rows(
                [prompts.index(tuple(row.prompt)) for row in rows]
            )
            controls = Controls(
                c,
                [row.prompt[row.prompt[0] == self.tokenizer.start :] for row in rows],
                self.tokenizer.vocab_size,
                device,
            )
        for row in rows:
            row.cached = len(row.prompt) - 1

        for step in range(c.max_tokens):
            going = [i for i, row in enumerate(rows) if not row.finish_reason]
            if interrupted():
                for i in going:
                    rows[i].finish("interrupted")
                yield
                return
            if step % AHEAD == 0:
                numbers = uniforms(c.seed, indices, min(AHEAD, c.max_tokens - step), step).to(device)
            with engine.decoding():
                if full := [i for i in going if rows[i].cached == self.context]:
                    kept = max(self.context // 2, 1)
                    cache.replace(
                        full, engine.prefill([(rows[i].prompt + rows[i].tokens)[-kept:-1] for i in full], slots)
                    )
                    for i in full:
                        rows[i].cached = kept - 1
                newest = torch.tensor([[(row.tokens or row.prompt)[-1]] for row in rows], device=device)
                logits = engine.step(newest, cache, max(rows[i].cached for i in going) + 1)[
                    :, : self.tokenizer.vocab_size
                ]
                tokens, logprobs = self._draw(logits, numbers[:, step % AHEAD], rows, going, controls, c, processor)
            for i in going:
                rows[i].cached += 1
                rows[i].add(tokens[i], logprobs[i])
            yield
            if ended := [i for i, row in enumerate(rows) if row.finish_reason]:
                left = [i for i in range(len(rows)) if i not in ended]
                if not left:
                    return
                if engine.compiled:  # they stay, and what they draw is not looked at
                    cache.lengths[ended] = 0
                else:
                    rows, indices = [rows[i] for i in left], [indices[i] for i in left]
                    cache, numbers, controls = cache.rows(left), numbers[left], controls.rows(left)

    def _draw(
        self, logits: Tensor, numbers: Tensor, rows: list[Continuation], going: list[int], controls: Controls, c: TextSampling,
        processor: Processor | None,
    ) -> tuple[list[int], list[float]]:  # fmt: skip
        """A token for each row, by its logits (B, V) and number in [0, 1), and its log-probability; those not `going`
        mean nothing.
        """
        wanted = controls.applied(logits)
        if processor is not None:
            wanted = wanted.clone()
            wanted[going] = processed(processor, wanted[going], [rows[i].prompt + rows[i].tokens for i in going])
        drawn = draw(next_token_probabilities(wanted, c.temperature, c.top_k, c.top_p, c.min_p), numbers)
        if int(drawn[going].max()) >= logits.shape[-1]:
            own = next_token_probabilities(controls.applied(logits)[going])
            why = "the training diverged, the weights are damaged, or logit_bias forbids everything"
            if processor is not None and bool(own.isfinite().all()):
                why = f"processor {name_of(processor)} forbids everything, or made them so"
            raise UserError(f"the logits are not finite, or no token is allowed: {why}")
        drawn = drawn.clamp(max=logits.shape[-1] - 1)
        controls.add(drawn)
        return drawn.tolist(), logits.log_softmax(dim=-1).gather(1, drawn[:, None])[:, 0].tolist()


@contextmanager
def written(path: str | None) -> Iterator[Callable[[str], None]]:
    """A function that appends text to a file, new with the first text, where it can be read at once; without a path it
    does nothing."""
    if path is None:
        yield lambda text: None
        return
    with ExitStack() as stack:
        file: Any = None

        def write(text: str) -> None:
            nonlocal file
            if file is None:  # what was there stays until there is something else
                file = stack.enter_context(open(path, "w", encoding="utf8", errors="replace"))
            file.write(text)
            file.flush()

        yield write


def processed(processor: Processor, logits: Tensor, tokens: list[list[int]]) -> Tensor:
    """What a processor makes of logits (B, V). Raises UserError, which names it, where that is nothing of the kind."""
    name = name_of(processor)
    try:
        found: Any = processor(logits, tokens)
    except Exception as error:
        raise UserError(f"processor {name} raised {raised(error, [processor.__module__.split('.')[0]])}") from error
    if not isinstance(found, Tensor) or found.shape != logits.shape or not found.is_floating_point():
        kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)[:60]
        raise UserError(f"processor {name} returned {kind}, not logits: floats {tuple(logits.shape)}")
    return found.to(logits)


def name_of(processor: Processor) -> str:
    return getattr(processor, "__qualname__", type(processor).__qualname__)


def never() -> bool:
    return False


def checked(**settings: Any) -> TextSampling:
    """The settings, each held to its field of TextSampling; logit_bias may be a mapping, stop a single text."""
    known = ["n", "seed", *(f.name for f in fields(DecodingSettings))]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"{unknown[0]} is no setting of how a text is drawn" + did_you_mean(unknown[0], known))
    if isinstance(bias := settings.get("logit_bias"), dict):
        settings["logit_bias"] = [f"{token}:{number}" for token, number in bias.items()]
    if isinstance(stop := settings.get("stop"), str):
        settings["stop"] = [stop]
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    config: TextSampling = build(TextSampling, given)
    config.check()
    return config
