"""What is said: the JSON of OpenAI's answers, made of pieces. Pure functions; what JSON cannot hold never gets in."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gengen.data.text.tokenizer import TextTokenizer
from gengen.serving.pieces import Piece, Token

NEVER = -9999.0
"""What OpenAI writes for a log-probability of -inf, which is no JSON."""
FINISH = {
    **{"": None, "end": "stop", "stop": "stop", "length": "length", "interrupted": "length"},
    **{"filtered": "content_filter", "error": "error"},
}
"""OpenAI's word for each of ours. A text is interrupted only when the server is stopped."""


def encoded(tree: dict[str, Any]) -> bytes:
    """Return a tree as JSON. Raises ValueError for NaN and infinities: none may leave the server."""
    return json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def event(tree: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + encoded(tree) + b"\n\n"


def named_event(name: str, tree: dict[str, Any]) -> bytes:
    """Return a server-sent event that says its name twice, as those of OpenAI's image API do."""
    return f"event: {name}\n".encode() + event({"type": name} | tree)


HEARTBEAT = b": still drawing\n\n"
DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """A choice as far as it has come: its pieces joined."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""
    drawn: int = 0
    prompt: list[Token] = field(default_factory=list)
    reused: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # of its ending, under `gengen`
    allowed: list[int] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish_reason, self.drawn = piece.finish_reason, piece.drawn
        self.prompt, self.reused, self.allowed = piece.prompt or self.prompt, piece.reused, piece.allowed
        told = {"found": piece.found or None, "reward": piece.reward, "sample": piece.sample}
        self.facts = {name: value for name, value in told.items() if value is not None}


def joined(pieces: Iterable[Piece]) -> list[Choice]:
    """Return what pieces say of each choice, in order of the choices."""
    found: dict[int, Choice] = {}
    for piece in pieces:
        found.setdefault(piece.choice, Choice(piece.choice)).add(piece)
    return [found[index] for index in sorted(found)]


def usage(prompt_tokens: int, reused: int, drawn: int) -> dict[str, Any]:
    """prompt_tokens: of all prompts, each once; reused: those of them that were not read again; drawn: over all
    choices, what ended a text included."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": drawn,
        "total_tokens": prompt_tokens + drawn,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


# --- tokens and their log-probabilities


class Spelling:
    """Names the tokens of a run in JSON."""

    def __init__(self, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer
        self.markers = {i: f"<|{name}|>" for name, i in tokenizer.chat.items()}
        for i in dict.fromkeys((tokenizer.start, *tokenizer.ends)):
            self.markers.setdefault(i, "<|endoftext|>")

    def bytes_of(self, token: int) -> bytes:
        return self.tokenizer.decode_bytes([token])

    def name(self, token: int) -> str:
        """Return a text that tells a token from the others: half a character as its bytes, a marker by its name."""
        spelled = self.bytes_of(token)
        try:
            return spelled.decode() or self.markers.get(token, f"<|{token}|>")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def described(self, token: int) -> dict[str, Any]:
        """Return a token's id, its bytes in hex, its text, and its name if it is a marker."""
        spelled = self.bytes_of(token)
        marker = None if spelled else self.name(token)
        return {"id": token, "bytes": spelled.hex(), "text": spelled.decode(errors="replace"), "special": marker}

    def chat_entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        """Return a token as chat completions tell it: `bytes` is the truth, `token` may be half a character."""
        spelled = self.bytes_of(token)
        text = spelled.decode(errors="replace") or self.name(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(spelled)}

    def chat_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        content = [
            self.chat_entry(token.id, token.logprob)
            | {"top_logprobs": [self.chat_entry(other, logprob) for other, logprob in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def legacy_logprobs(self, tokens: Sequence[Token], top: int) -> dict[str, Any]:
        """Return log-probabilities as completions tell them. The first token of a prompt follows nothing: null."""
        return {
            "tokens": [self.name(token.id) for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) if token.top or not top else None for token in tokens],
            "token_ids": [token.id for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }

    def _top(self, token: Token) -> dict[str, Any]:
        """Return the likeliest tokens and the one that is there, as OpenAI does."""
        found = {self.name(other): finite(logprob) for other, logprob in token.top}
        return found if token.logprob is None else found | {self.name(token.id): finite(token.logprob)}


def finite(logprob: float | None) -> float | None:
    return logprob if logprob is None or math.isfinite(logprob) else NEVER
