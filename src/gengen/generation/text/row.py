"""A text that is drawn, and all that its next token depends on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gengen.config.commands import DecodingSettings
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.noise import stream
from gengen.generation.text.constraint import Constraint
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.processor import Processor

AHEAD = 64  # random numbers that are made at once


@dataclass
class Request:
    """A text to draw: sample number `index` of its settings' seed, after a prompt of tokens.

    top_logprobs: of how many of the likeliest tokens the log-probability is kept with each token that is drawn.
    prompt_logprobs: whether that of each token of the prompt is.
    """

    prompt: list[int]
    settings: DecodingSettings
    index: int = 0
    processor: Processor | None = None
    constraint: Constraint | None = None
    top_logprobs: int = 0
    prompt_logprobs: bool = False


class Row:
    """A text with its place in a memory, which holds `cached` of its tokens, from number `begin` on.

    tokens: those of prompt and text. bias: what is added to the logits, (V,). prompted, counts: whether a token is in
    the prompt, and how often it was drawn, (V,) each, where there are penalties. alike: rows of which this is equal
    are drawn from by the same controls. allowed: what its constraint lets come next, (V,).
    """

    def __init__(self, request: Request, tokenizer: TextTokenizer, device: torch.device):
        self.request, self.text = request, Continuation(tokenizer, request.prompt, request.settings)
        self.tokens, self.begin, self.cached = list(request.prompt), 0, 0
        self.allowed: Tensor | None = None
        self.stream, self.ahead = stream(request.settings.seed, request.index), list[float]()
        c, vocabulary = request.settings, tokenizer.vocab_size
        penalties = (c.repetition_penalty, c.presence_penalty, c.frequency_penalty)
        distribution = (c.temperature, c.top_k, c.top_p, c.min_p)
        self.alike = (*distribution, *penalties, tuple(c.logit_bias), id(request.processor))
        self.bias = bias_of(c, vocabulary, device)
        self.prompted = self.counts = None
        if penalties != (1, 0, 0):
            without_start = request.prompt[request.prompt[0] == tokenizer.start :]
            self.prompted = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self.prompted[[token for token in without_start if token < vocabulary]] = True
            self.counts = torch.zeros(vocabulary, device=device)

    @property
    def unread(self) -> int:
        """Return how many tokens are still to be read before the last one, which the next step takes."""
        return len(self.tokens) - 1 - self.begin - self.cached

    @property
    def in_prompt(self) -> bool:
        """Return whether what is read now is the prompt, for the first time."""
        return self.begin == 0 and len(self.tokens) == len(self.request.prompt)

    def next_part(self, count: int) -> list[int]:
        """Return the next tokens to read, `count` at most, without the last one of the text."""
        at = self.begin + self.cached
        return self.tokens[at : min(at + count, len(self.tokens) - 1)]

    def next_number(self) -> float:
        """Return the next number in [0, 1) of the text's own stream."""
        if not self.ahead:
            self.ahead = self.stream.random(AHEAD)[::-1].tolist()
        return self.ahead.pop()

    def next_numbers(self, count: int) -> list[float]:
        """Return the next `count` of them, without taking them."""
        if len(self.ahead) < count:
            self.ahead = self.stream.random(AHEAD)[::-1].tolist() + self.ahead
        return self.ahead[: -count - 1 : -1]

    def add(self, token: int, logprob: float, top: list[tuple[int, float]]) -> None:
        """Add the token that was drawn next."""
        if self.counts is not None:
            self.counts[token] += 1
        self.tokens.append(token)
        self.text.add(token, logprob, top)
        constraint = self.request.constraint
        if constraint is None or self.text.finish_reason not in ("", "length"):
            return
        try:
            constraint.add(token)
        except UserError as error:
            return self.text.fail(str(error))
        if constraint.complete:  # with the last of max_tokens, too
            self.text.finish("stop")

    def look_up_allowed(self) -> None:
        """Ask the constraint what may come next; where it cannot say, the text ends with an error."""
        if self.request.constraint is not None:
            try:
                self.allowed = self.request.constraint.allowed()
                self.text.allowed.append(int(self.allowed.sum()))
            except UserError as error:
                self.text.fail(str(error))


def bias_of(c: DecodingSettings, vocab_size: int, device: torch.device) -> Tensor | None:
    """Return logit_bias as a tensor (V,), None where there is none. Raises UserError for a token that is none."""
    if not (bias := c.bias()):
        return None
    if outside := [token for token in bias if not 0 <= token < vocab_size]:
        raise UserError(f"logit_bias: there is no token {outside[0]}; the vocabulary has 0..{vocab_size - 1}")
    added = torch.zeros(vocab_size, device=device)
    added[list(bias)] = torch.tensor(list(bias.values()), device=device)
    return added
