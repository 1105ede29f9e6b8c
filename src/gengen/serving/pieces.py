"""What a choice has gained since it was last looked at: the unit in which drawn text leaves the engine's thread."""

import codecs
from dataclasses import dataclass, field

from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.row import Request

LOGPROB = 64  # bytes that a log-probability takes with its token, about


@dataclass(frozen=True)
class Token:
    """A token with its log-probability, by `logprobs_of` of the request; None where nothing was computed.

    top: the likeliest tokens in its place, each with its own. offset: characters of the text before it.
    """

    id: int
    logprob: float | None
    top: list[tuple[int, float]] = field(default_factory=list)
    offset: int = 0


@dataclass(frozen=True)
class Piece:
    """What choice number `choice` has gained: certain text, and the tokens that begin in it.

    drawn: tokens drawn so far, the one that ended the text included. finish_reason: as in `Sample`, or "error" with
    its words, or "filtered" with the kind of what was found; empty while the text goes on. prompt: the tokens of the
    prompt, in the first piece if they were asked for.
    """

    choice: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""
    drawn: int = 0
    error: str = ""
    prompt: list[Token] = field(default_factory=list)
    reused: int = 0  # tokens of the prompt that were not read, as they had been before
    found: str = ""
    ids: list[int] = field(default_factory=list)  # at the end: all tokens of the text, those of a stop string included
    reward: float | None = None  # of one that was chosen among several, and which sample it is
    sample: int | None = None
    allowed: list[int] = field(default_factory=list)  # at the end: `Continuation.allowed`

    def __len__(self) -> int:
        """Return about how many bytes it takes: those of its text, and `LOGPROB` a log-probability."""
        known = sum(1 + len(token.top) for token in (*self.tokens, *self.prompt))
        return len(self.text.encode()) + LOGPROB * known


class Gains:
    """Turns a continuation that grows into pieces. Pieces joined are the same whenever they were taken."""

    def __init__(self, tokenizer: TextTokenizer, choice: int, request: Request, continuation: Continuation):
        self.tokenizer, self.choice, self.request, self.continuation = tokenizer, choice, request, continuation
        self.shown, self.told = 0, 0  # characters and tokens that were in a piece already
        self.prompt_told = False
        self.offset, self.characters = 0, codecs.getincrementaldecoder("utf-8")("replace")

    def piece(self) -> Piece:
        """Return what was gained since the last call."""
        row = self.continuation
        text, self.shown = row.text[self.shown :], len(row.text)
        return Piece(
            self.choice,
            text,
            self._tokens(),
            row.finish_reason,
            len(row.tokens) + int(self._ended_by_token()),
            row.error,
            self._prompt(),
            row.reused,
            ids=row.tokens if row.finish_reason else [],
            allowed=row.allowed if row.finish_reason else [],
        )

    def _ended_by_token(self) -> bool:
        """Return whether a token ended the text, which is not among its tokens: not a stop string, no constraint."""
        row, constraint = self.continuation, self.request.constraint
        if row.finish_reason != "stop":
            return row.finish_reason == "end"
        after = self.tokenizer.decode(row.tokens)[len(row.text) :]
        return not any(stop in after for stop in row.stop) and not (constraint and constraint.complete)

    def _tokens(self) -> list[Token]:
        """Return the tokens that begin in the certain text; at the end all, but those of a stop string."""
        row, found = self.continuation, []
        all_of_them = row.finish_reason not in ("", "stop")
        while self.told < len(row.tokens) and (all_of_them or self.offset < len(row.text)):
            i = self.told
            top = row.top_logprobs[i] if i < len(row.top_logprobs) else []
            found.append(Token(row.tokens[i], row.logprobs[i], top, self.offset))
            self.offset += len(self.characters.decode(self.tokenizer.decode_bytes([row.tokens[i]])))
            self.told += 1
        return found

    def _prompt(self) -> list[Token]:
        """Return the tokens of the prompt, once; the first follows nothing, and so has no log-probability."""
        row, first = self.continuation, not self.prompt_told
        if not (first and self.request.prompt_logprobs) or len(row.prompt_logprobs) < len(row.prompt) - 1:
            return []
        self.prompt_told = True
        found, offset, characters = list[Token](), 0, codecs.getincrementaldecoder("utf-8")("replace")
        known = zip(row.prompt, [None, *row.prompt_logprobs], [[], *row.prompt_top_logprobs], strict=True)
        for token, logprob, top in known:
            found.append(Token(token, logprob, top, offset))
            offset += len(characters.decode(self.tokenizer.decode_bytes([token])))
        return found
