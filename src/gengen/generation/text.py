"""From a language model to text: prompts of any lengths in one batch, a KV cache, stop strings, streaming."""

import codecs
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from gengen.checkpoints.files import replace_text
from gengen.checkpoints.format import read_tokenizer
from gengen.config.errors import UserError
from gengen.config.sample import TextSampling
from gengen.config.schema import build
from gengen.data.tokenizer import TextTokenizer
from gengen.generation.decoding import draw, next_token_probabilities, uniforms
from gengen.models.gpt import GPT, Cache


@dataclass
class Sample:
    """One continuation of a prompt.

    finish_reason: "end" (the model ended its text), "stop" (a stop string came), "length" (max_tokens) or "interrupted".
    tokens: all that were drawn but the end of text; they spell the text and, after "stop", the stop string too.
    """

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: str
    index: int
    seed: int


class Continuation:
    """A sample in the making. Its text never shrinks: what a later token may change is held back.

    That is the bytes of a character not yet complete, which is left out if the sample ends there, and characters that may
    begin a stop string. Of several stop strings the one that is complete first counts, wherever the borders of tokens lie.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: list[int], stop: Sequence[str], max_tokens: int):
        self.tokenizer, self.stop, self.max_tokens = tokenizer, stop, max_tokens
        self.prompt, self.tokens = prompt, list[int]()
        self.cached = 0  # tokens whose keys and values are in the cache
        self.text, self.held = "", ""
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.finish_reason = ""

    def add(self, token: int) -> None:
        if token == self.tokenizer.eot:
            return self.finish("end")
        self.tokens.append(token)
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

    autocast: the dtype of matrix products, null = that of the weights. batch_size: samples drawn at once. Neither the
    batch nor what else is in it changes a sample drawn in fp32.
    """

    command_hint = 'prompt="Once upon a time"'

    def __init__(self, model: GPT, tokenizer: TextTokenizer, autocast: torch.dtype | None = None, batch_size: int = 64):
        if tokenizer.vocab_size > model.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows {model.vocab_size}: they are not of one run")
        assert model.config.context
        self.model, self.tokenizer, self.autocast, self.batch_size = model, tokenizer, autocast, batch_size
        self.context, self.device = model.config.context, model.embedding.weight.device

    @classmethod
    def from_checkpoint(cls, model: GPT, directory: Path) -> Self:
        if (tokenizer := read_tokenizer(directory)) is None:
            raise UserError(f"{directory} has no tokenizer.json")
        return cls(model, TextTokenizer.from_json(tokenizer))

    def generate(
        self, prompts: str | Sequence[str], *, n: int = 1, max_tokens: int = 200, temperature: float = 0.8, top_k: int | None = None,
        top_p: float | None = None, stop: str | Sequence[str] = (), seed: int = 0, interrupted: Callable[[], bool] | None = None,
    ) -> list[Sample]:  # fmt: skip
        """n continuations of each prompt, those of one prompt side by side; an empty prompt starts a text.

        Sample i, its place in the list, draws from (seed, i) alone. temperature, top_k, top_p: see
        `next_token_probabilities`. A stop string ends a sample and is left out. A text that fills the model's context
        goes on from the last half of it. `interrupted` is polled before each token; once true, all samples end as they are.
        """
        settings = checked(n, max_tokens, temperature, top_k, top_p, stop, seed)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = [row for prompt in prompts for row in self._continuations(prompt, settings)]
        with self._sampling():
            for start in range(0, len(rows), self.batch_size):
                for _ in self._decode(rows[start : start + self.batch_size], start, settings, interrupted or never):
                    pass
        return [Sample(prompts[i // n], row.text, row.tokens, row.finish_reason, i, seed) for i, row in enumerate(rows)]

    def command(self, config: TextSampling, say: Callable[[str], None]) -> str:
        """What `sample` does: draw, show, and write to `out`. Returns a line that sums it up; none of a stream."""
        settings: dict[str, Any] = {
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "stop": config.stop,
            "seed": config.seed,
        }
        prompts = config.prompt or [""]
        if config.stream:
            print(prompts[0], end="", flush=True)
            for piece in self.stream(prompts[0], **settings):
                print(piece, end="", flush=True)
            print()
            return ""
        start = time.perf_counter()
        samples = self.generate(prompts, n=config.n, **settings)
        spent = time.perf_counter() - start
        for sample in samples:
            say(f"--- {sample.index} ({sample.finish_reason})\n{sample.prompt}{sample.text}")
        tokens = sum(len(sample.tokens) for sample in samples)
        if config.out:
            replace_text(Path(config.out), "".join(json.dumps(vars(sample), ensure_ascii=False) + "\n" for sample in samples))
        return f"---\n{tokens} tokens, {tokens / spent:.0f} tokens/s"

    def stream(
        self, prompt: str, *, max_tokens: int = 200, temperature: float = 0.8, top_k: int | None = None, top_p: float | None = None,
        stop: str | Sequence[str] = (), seed: int = 0, interrupted: Callable[[], bool] | None = None,
    ) -> Iterator[str]:  # fmt: skip
        """The text of `generate(prompt, ...)[0]` in pieces as it comes; never half a character or part of a stop string."""
        settings = checked(1, max_tokens, temperature, top_k, top_p, stop, seed)
        (row,) = self._continuations(prompt, settings)

        def pieces() -> Iterator[str]:
            shown = 0
            for _ in self._decode([row], 0, settings, interrupted or never):
                if len(row.text) > shown:
                    yield row.text[shown:]
                    shown = len(row.text)

        return pieces()

    def _continuations(self, prompt: str, settings: TextSampling) -> list[Continuation]:
        """n samples yet to be drawn of a prompt, which follows an end of text, as documents do in training."""
        tokens = [self.tokenizer.eot, *self.tokenizer.encode(prompt)]
        if len(tokens) > self.context:
            found = f"the prompt has {len(tokens) - 1} tokens, the model's context is {self.context}: at most {self.context - 1}"
            raise UserError(f"{found}\n  it begins: {prompt[:60]!r}")
        return [Continuation(self.tokenizer, tokens, settings.stop, settings.max_tokens) for _ in range(settings.n)]

    def _decode(
        self, rows: list[Continuation], first_index: int, settings: TextSampling, interrupted: Callable[[], bool]
    ) -> Iterator[None]:
        """Add a token to each unfinished row, then yield, until all are finished. Between yields no mode is left switched."""
        longest = max(len(row.prompt) for row in rows)
        slots = min(self.context, longest + settings.max_tokens)
        numbers = uniforms(settings.seed, range(first_index, first_index + len(rows)), settings.max_tokens).to(self.device)
        with self._sampling():
            prompts = list({tuple(row.prompt): None for row in rows})  # each is read once, however many samples it has
            cache = self._prefill([prompt[:-1] for prompt in prompts], slots).rows([prompts.index(tuple(row.prompt)) for row in rows])
        for row in rows:
            row.cached = len(row.prompt) - 1

        for step in range(settings.max_tokens):
            if interrupted():
                for row in rows:
                    row.finish("interrupted")
                yield
                return
            with self._sampling():
                if full := [i for i, row in enumerate(rows) if row.cached == self.context]:
                    kept = max(self.context // 2, 1)
                    cache.replace(full, self._prefill([(rows[i].prompt + rows[i].tokens)[-kept:-1] for i in full], slots))
                    for i in full:
                        rows[i].cached = kept - 1
                newest = torch.tensor([[(row.tokens or row.prompt)[-1]] for row in rows], device=self.device)
                logits = self.model(newest, cache.first(max(row.cached for row in rows) + 1))[:, -1, : self.tokenizer.vocab_size]
                cache.lengths += 1
                probabilities = next_token_probabilities(logits, settings.temperature, settings.top_k, settings.top_p)
                tokens = draw(probabilities, numbers[:, step]).tolist()
            if max(tokens) >= self.tokenizer.vocab_size:
                raise UserError("the model's logits are not finite: its training diverged, or its weights are damaged")
            for row, token in zip(rows, tokens, strict=True):
                row.cached += 1
                row.add(token)
            yield
            if any(row.finish_reason for row in rows):  # finished rows leave the batch
                left = [i for i, row in enumerate(rows) if not row.finish_reason]
                if not left:
                    return
                rows, cache, numbers = [rows[i] for i in left], cache.rows(left), numbers[left]

    def _prefill(self, prompts: Sequence[Sequence[int]], slots: int) -> Cache:
        """A cache that has seen these tokens: one pass over all, padded on the right."""
        cache = Cache.empty(self.model, len(prompts), slots, self.autocast)
        longest = max(len(prompt) for prompt in prompts)
        if longest:
            padded = [[*prompt, *[self.tokenizer.eot] * (longest - len(prompt))] for prompt in prompts]
            self.model.features(torch.tensor(padded, device=self.device), cache.first(longest))
            cache.lengths += torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        return cache

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients, under our own autocast; afterwards all as it was."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                yield
        finally:
            if training:
                self.model.train()


def never() -> bool:
    return False


def checked(
    n: int, max_tokens: int, temperature: float, top_k: int | None, top_p: float | None, stop: str | Sequence[str], seed: int
) -> TextSampling:
    """The settings, each held to its field of TextSampling."""
    stop = [stop] if isinstance(stop, str) else list(stop)
    if "" in stop:
        raise UserError("stop: every text holds the empty string")
    tree = dict(n=n, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, seed=seed)
    config: TextSampling = build(TextSampling, tree)
    return config
