"""A text in the making: what is certain of it, and what ends it."""

import codecs
from collections.abc import Sequence

from gengen.config.commands import DecodingSettings
from gengen.data.text.tokenizer import TextTokenizer


class Continuation:
    """The continuation of one prompt, token by token. Its text never shrinks: what a later token may change is held
    back.

    That is the bytes of a character not yet complete, which is left out if the text ends there, and characters that
    may begin a stop string. Of several stop strings the one that is complete first counts, wherever the borders of
    tokens lie.

    logprobs: of each token, by `logprobs_of` of the settings. top_logprobs: (token, log-probability) of the likeliest
    in its place, where they were asked for. prompt_logprobs, prompt_top_logprobs: under the model itself, of each
    token of the prompt but the first.
    reused: how many tokens of the prompt were not read, as they had been before.
    allowed: how many tokens a constraint let come next, at each step, that of an ending included.
    finish_reason: as in `Sample`, or "error", of which `error` says what it is; empty until the text has ended.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: list[int], settings: DecodingSettings):
        self.tokenizer, self.stop, self.max_tokens = tokenizer, settings.stop, settings.max_tokens
        self.endings = dict.fromkeys(tokenizer.ends, "end") | dict.fromkeys(settings.stop_ids, "stop")
        self.prompt = prompt
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_top_logprobs: list[list[tuple[int, float]]] = []
        self.text, self.held = "", ""
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.finish_reason, self.error = "", ""
        self.reused = 0
        self.allowed: list[int] = []

    def add(self, token: int, logprob: float, top: Sequence[tuple[int, float]] = ()) -> None:
        """Add the token that was drawn next, and end the text where it says so."""
        if token in self.endings:
            return self.finish(self.endings[token])
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.top_logprobs.append(list(top))
        self.held += self.characters.decode(self.tokenizer.decode_bytes([token]))
        if found := [(at + len(stop), at) for stop in self.stop if (at := self.held.find(stop)) >= 0]:
            _, at = min(found)
            self.held = self.held[:at]
            return self.finish("stop")
        if len(self.tokens) == self.max_tokens:
            return self.finish("length")
        certain = len(self.held) - self.open_stop()
        self.text, self.held = self.text + self.held[:certain], self.held[certain:]

    def open_stop(self) -> int:
        """Return how many of the last characters may begin a stop string."""
        lengths = [n for stop in self.stop for n in range(1, len(stop)) if self.held.endswith(stop[:n])]
        return max(lengths, default=0)

    def finish(self, reason: str) -> None:
        """End the text here, whatever was held back included."""
        self.text, self.held, self.finish_reason = self.text + self.held, "", reason

    def fail(self, error: str) -> None:
        """End the text here, because of an error."""
        self.error = error
        self.finish("error")
