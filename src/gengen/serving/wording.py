"""How the two endpoints of text put choices into words: chunks of a stream, or a whole answer."""

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from gengen.generation.text.tools import tool_call
from gengen.serving.answers import FINISH, Choice, Spelling, finite, usage
from gengen.serving.constraints import calls_tool
from gengen.serving.pieces import Token
from gengen.serving.protocol import ChatRequest, CompletionRequest

Tree = dict[str, Any]


class Wording(Protocol):
    """What an answer needs of them."""

    not_chosen: int

    def chunks(self, choice: Choice) -> Iterator[Tree]:
        """Yield the chunks that tell what a choice has gained."""
        ...

    def closing(self) -> Iterator[Tree]:
        """Yield the chunks after the last choice."""
        ...

    def whole(self, choices: list[Choice]) -> Tree:
        """Return the answer that is not streamed."""
        ...


A = TypeVar("A", CompletionRequest, ChatRequest)


class _Envelope(Generic[A]):
    """What both have in common: one id, the usage, and what is ours, under `gengen`."""

    prefix, whole_object, chunk_object = "", "", ""

    def __init__(
        self,
        asked: A,
        model: str,
        fingerprint: str,
        spelling: Spelling,
        seed: int,
        prompts: list[list[int]],
    ):
        self.asked: A = asked
        self.spelling, self.prompts = spelling, prompts
        self.head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self.tail = {"system_fingerprint": fingerprint, "gengen": {"seed": seed}}
        self.drawn, self.reused = Counter[int](), Counter[int]()
        self.begun: set[int] = set()
        self.not_chosen = 0  # tokens of texts that are drawn and not shown

    def chunk(self, choices: list[Tree]) -> Tree:
        null_usage = {"usage": None} if self.asked.include_usage else {}
        return {**self.head, "object": self.chunk_object, "choices": choices, **self.tail, **null_usage}

    def closing(self) -> Iterator[Tree]:
        if self.asked.include_usage:
            yield {**self.chunk([]), "usage": self.usage()}

    def count(self, choice: Choice, drawn: int) -> None:
        self.drawn[choice.index], self.reused[choice.index] = drawn, choice.reused

    def usage(self) -> Tree:
        first_choices = range(
            0, len(self.prompts) * self.asked.n, self.asked.n
        )  # those after may reuse what these read
        reused = sum(self.reused[choice] for choice in first_choices)
        return usage(sum(map(len, self.prompts)), reused, self.drawn.total() + self.not_chosen)

    def enveloped(self, choices: list[Tree]) -> Tree:
        return {**self.head, "object": self.whole_object, "choices": choices, "usage": self.usage(), **self.tail}

    def ending(self, choice: Choice) -> Tree:
        """Return why a choice has ended, in OpenAI's words and in ours."""
        if not choice.finish_reason:
            return {"finish_reason": None}
        ours = {"finish_reason": choice.finish_reason, **choice.facts}
        if choice.allowed and self.tells_tokens:
            ours["allowed"] = choice.allowed
        return {"finish_reason": FINISH[choice.finish_reason], "gengen": ours}

    @property
    def tells_tokens(self) -> bool:
        """Return whether log-probabilities were asked for: what is told of each step comes with them."""
        return self.asked.logprobs is not None and self.asked.logprobs is not False

    def prompt_logprobs(self, choice: Choice) -> Tree:
        if not (self.asked.prompt_logprobs and choice.prompt):
            return {}
        return {"prompt_logprobs": [finite(token.logprob) for token in choice.prompt]}

    def begins(self, choice: Choice) -> bool:
        """Return whether this is the first that is told of a choice."""
        first = choice.index not in self.begun
        self.begun.add(choice.index)
        return first


class CompletionWording(_Envelope[CompletionRequest]):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def chunks(self, choice: Choice) -> Iterator[Tree]:
        told = self.choice(choice)
        if told["text"] or told["finish_reason"] or (told["logprobs"] and told["logprobs"]["tokens"]):
            yield self.chunk([told])

    def whole(self, choices: list[Choice]) -> Tree:
        return self.enveloped([self.choice(choice) for choice in choices])

    def choice(self, choice: Choice) -> Tree:
        """Return a choice, or what of it is new; echo comes with the first of it."""
        asked, echoed = self.asked, ""
        text, tokens, drawn = choice.text, choice.tokens, choice.drawn
        if asked.max_tokens == 0:  # one token was drawn, because an engine draws one at least
            text, tokens, drawn = "", [], 0
        prompt = self.prompts[choice.index // self.asked.n]
        if asked.echo:
            echoed = self.spelling.tokenizer.decode(prompt)
            tokens = [Token(t.id, t.logprob, t.top, t.offset + len(echoed)) for t in tokens]
            tokens += self.end_token(choice, len(echoed) + len(choice.text))
        first = self.begins(choice)
        if asked.echo and first:
            tokens = [*self.without_start(choice.prompt, choice.index), *tokens]
        if choice.finish_reason:
            self.count(choice, drawn)
        logprobs = None if asked.logprobs is None else self.spelling.legacy_logprobs(tokens, asked.logprobs)
        text = echoed + text if first else text
        ending, of_prompt = self.ending(choice), self.prompt_logprobs(choice)
        return {"index": choice.index, "text": text, "logprobs": logprobs, **ending, **of_prompt}

    def without_start(self, tokens: list[Token], index: int) -> list[Token]:
        """Leave out the token that begins a text, which a prompt of text does not have itself."""
        is_text = isinstance(self.asked.prompt[index // self.asked.n], str)
        start = self.spelling.tokenizer.start
        return tokens[1:] if is_text and tokens and tokens[0].id == start else tokens

    def end_token(self, choice: Choice, offset: int) -> list[Token]:
        """Return the token that ended a text by itself, so that an echo has every token that was drawn."""
        drawn = choice.finish_reason == "end" and self.asked.max_tokens != 0
        return [Token(self.spelling.tokenizer.eot, None, [], offset)] if drawn else []


class ChatWording(_Envelope[ChatRequest]):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: ChatRequest, *rest: Any):
        super().__init__(asked, *rest)
        self.calls = calls_tool(asked)
        self.call_texts: dict[int, str] = {}

    def chunks(self, choice: Choice) -> Iterator[Tree]:
        if self.begins(choice):
            role = {"index": choice.index, "delta": {"role": "assistant", "content": None if self.calls else ""}}
            yield self.chunk([{**role, "logprobs": None, "finish_reason": None, **self.prompt_logprobs(choice)}])
        delta = self.call_delta(choice) if self.calls else {"content": choice.text}
        if delta and (choice.text or choice.tokens or self.calls):
            content = {"index": choice.index, "delta": delta}
            yield self.chunk([{**content, "logprobs": self.logprobs(choice), "finish_reason": None}])
        if choice.finish_reason:
            self.count(choice, choice.drawn)
            yield self.chunk([{"index": choice.index, "delta": {}, "logprobs": None, **self.ending(choice)}])

    def call_delta(self, choice: Choice) -> Tree:
        """Return a call once it is whole, as one delta; one that was cut off is shown as the text it is."""
        text = self.call_texts[choice.index] = self.call_texts.get(choice.index, "") + choice.text
        if not choice.finish_reason:
            return {}
        return self.message(text, choice.finish_reason)

    def message(self, text: str, finish_reason: str) -> Tree:
        """Return what a message holds: a text, or a call of a tool."""
        if not self.calls or finish_reason not in ("end", "stop"):
            return {"content": text}
        name, arguments = tool_call(text)
        call = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
        return {"tool_calls": [{"index": 0, **call, "function": {"name": name, "arguments": arguments}}]}

    def ending(self, choice: Choice) -> Tree:
        called = self.calls and choice.finish_reason in ("end", "stop")
        return super().ending(choice) | ({"finish_reason": "tool_calls"} if called else {})

    def whole(self, choices: list[Choice]) -> Tree:
        return self.enveloped([self.choice(choice) for choice in choices])

    def choice(self, choice: Choice) -> Tree:
        self.count(choice, choice.drawn)
        held = self.message(choice.text, choice.finish_reason)
        message = {"role": "assistant", "content": None, "refusal": None, **held}
        ending, of_prompt = self.ending(choice), self.prompt_logprobs(choice)
        return {"index": choice.index, "message": message, "logprobs": self.logprobs(choice), **ending, **of_prompt}

    def logprobs(self, choice: Choice) -> Tree | None:
        return self.spelling.chat_logprobs(choice.tokens) if self.asked.logprobs else None
