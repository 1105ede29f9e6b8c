"""Decoding a batch: a token for each unfinished text, step by step."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gengen.config.commands import DecodingSettings
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.engine import Engine
from gengen.generation.text.processor import Processor, name_of, processed
from gengen.generation.text.sampling import Controls, draw, next_token_probabilities, uniforms

AHEAD = 1024  # tokens that random numbers are drawn for at once


class Decoding:
    """A batch of texts as they are drawn.

    1. prefill: the prompts are read into the cache, each distinct one once
    2. refill: a text that fills the model's context goes on from the last half of it
    3. next_logits: one step of the network for all rows
    4. draw: controls, processor, the distribution, a token of each row by its own random number
    5. add: each text takes its token, which may end it
    6. drop_finished: rows that have ended leave the batch, unless the compiled network keeps its shape
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        context: int,
        rows: list[Continuation],
        first_index: int,
        settings: DecodingSettings,
        processor: Processor | None = None,
    ):
        """rows: samples number `first_index` and the next ones."""
        self.engine, self.tokenizer, self.context = engine, tokenizer, context
        self.rows, self.indices = rows, list(range(first_index, first_index + len(rows)))
        self.settings, self.processor = settings, processor
        self.slots = min(context, max(len(row.prompt) for row in rows) + settings.max_tokens)

    def steps(self, interrupted: Callable[[], bool]) -> Iterator[None]:
        """Add a token to each unfinished row, then yield, until all are finished. `interrupted` is polled before each
        token; once true, all rows end as they are. Between yields no mode is left switched."""
        with self.engine.decoding():
            self.prefill()
        for step in range(self.settings.max_tokens):
            if interrupted():
                self.finish_all("interrupted")
                yield
                return
            numbers = self.next_numbers(step)
            with self.engine.decoding():
                self.refill()
                tokens, logprobs = self.draw(self.next_logits(), numbers)
            self.add(tokens, logprobs)
            yield
            if not self.unfinished():
                return
            self.drop_finished()

    def unfinished(self) -> list[int]:
        """Return the places of the rows that go on."""
        return [i for i, row in enumerate(self.rows) if not row.finish_reason]

    def finish_all(self, reason: str) -> None:
        for i in self.unfinished():
            self.rows[i].finish(reason)

    def prefill(self) -> None:
        """Read all of each prompt but its last token, which the first step takes."""
        prompts = list({tuple(row.prompt): None for row in self.rows})  # each once, however many samples it has
        cache = self.engine.prefill([prompt[:-1] for prompt in prompts], self.slots)
        self.cache = cache.rows([prompts.index(tuple(row.prompt)) for row in self.rows])
        start = self.tokenizer.start
        prompted = [row.prompt[row.prompt[0] == start :] for row in self.rows]  # without what begins a text
        self.controls = Controls(self.settings, prompted, self.tokenizer.vocab_size, self.engine.device)
        for row in self.rows:
            row.cached = len(row.prompt) - 1

    def next_numbers(self, step: int) -> Tensor:
        """Return a number in [0, 1) for each row, (B,): number `step` of its own stream."""
        if step % AHEAD == 0:
            count = min(AHEAD, self.settings.max_tokens - step)
            self.numbers = uniforms(self.settings.seed, self.indices, count, step).to(self.engine.device)
        return self.numbers[:, step % AHEAD]

    def refill(self) -> None:
        """Give each row whose cache is full a new one that holds the last half of its text."""
        full = [i for i in self.unfinished() if self.rows[i].cached == self.context]
        if not full:
            return
        kept = max(self.context // 2, 1)
        texts = [self.rows[i].prompt + self.rows[i].tokens for i in full]
        self.cache.replace(full, self.engine.prefill([text[-kept:-1] for text in texts], self.slots))
        for i in full:
            self.rows[i].cached = kept - 1

    def next_logits(self) -> Tensor:
        """Return the logits of each row's next token, (B, V) fp32, V the tokenizer's tokens."""
        newest = torch.tensor([[(row.tokens or row.prompt)[-1]] for row in self.rows], device=self.engine.device)
        used = max(self.rows[i].cached for i in self.unfinished()) + 1
        return self.engine.step(newest, self.cache, used)[:, : self.tokenizer.vocab_size]

    def draw(self, logits: Tensor, numbers: Tensor) -> tuple[list[int], list[float]]:
        """Return a token for each row, by its logits (B, V) and number (B,), and its log-probability; those of
        finished rows mean nothing."""
        going, c = self.unfinished(), self.settings
        wanted = self.controls.applied(logits)
        if self.processor is not None:
            wanted = wanted.clone()
            texts = [self.rows[i].prompt + self.rows[i].tokens for i in going]
            wanted[going] = processed(self.processor, wanted[going], texts)
        drawn = draw(next_token_probabilities(wanted, c.temperature, c.top_k, c.top_p, c.min_p), numbers)
        if int(drawn[going].max()) >= logits.shape[-1]:
            raise UserError(f"the logits are not finite, or no token is allowed: {self.why_none(logits[going])}")
        drawn = drawn.clamp(max=logits.shape[-1] - 1)
        self.controls.add(drawn)
        return drawn.tolist(), logits.log_softmax(dim=-1).gather(1, drawn[:, None])[:, 0].tolist()

    def why_none(self, logits: Tensor) -> str:
        """Return why no token can be drawn, by the logits (n, V) of the unfinished rows."""
        own = next_token_probabilities(self.controls.rows(self.unfinished()).applied(logits))
        if self.processor is not None and bool(own.isfinite().all()):
            return f"processor {name_of(self.processor)} forbids everything, or made them so"
        return "the training diverged, the weights are damaged, or logit_bias forbids everything"

    def add(self, tokens: list[int], logprobs: list[float]) -> None:
        for i in self.unfinished():
            self.rows[i].cached += 1
            self.rows[i].add(tokens[i], logprobs[i])

    def drop_finished(self) -> None:
        """Go on with the unfinished rows alone. In a compiled batch the others stay, and what they draw is not looked
        at."""
        left = self.unfinished()
        if len(left) == len(self.rows):
            return
        if self.engine.compiled:
            self.cache.lengths[[i for i in range(len(self.rows)) if i not in left]] = 0
            return
        self.rows, self.indices = [self.rows[i] for i in left], [self.indices[i] for i in left]
        self.cache, self.numbers, self.controls = self.cache.rows(left), self.numbers[left], self.controls.rows(left)
