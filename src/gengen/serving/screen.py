"""What a run's filters make of a request: of its prompts before they are read, of its texts before they are shown."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.filters.base import Action, Filter, FilteredText, judge
from gengen.serving.jobs import Job
from gengen.serving.pieces import Piece
from gengen.serving.protocol import TextRequest, invalid
from gengen.serving.worker import Worker

FOUND = "content_filter"


@dataclass(frozen=True)
class Screen:
    """The filters of a server, by the names that its command line gives them, and what is done where one finds
    something. Filters may take long: none of this is called on the event loop."""

    filters: dict[str, Filter] = field(default_factory=dict)
    action: Action = "redact"

    def check(self, asked: TextRequest) -> None:
        """Raise ApiError for a request whose answer would spell what is filtered, token by token."""
        if self.filters and (key := asked.logprobs_key):
            message = f"{key}: this server filters texts, and their tokens would tell what is left out"
            raise invalid(key, message, "unsupported_parameter")

    def prompt(self, key: str, text: str) -> str:
        """Return a prompt as the model may read it. Raises ApiError, naming parameter and filter, if it is refused."""
        readers = {name: each for name, each in self.filters.items() if each.reads_prompts}
        if self.action == "redact":
            return judge([*readers.values()], text, "redact").text
        for name, each in readers.items():
            if found := judge([each], text, "refuse").findings:
                where = f"{found[0].kind} at characters {found[0].start} to {found[0].end - 1}"
                raise invalid(key, f"{key}: filter {shown_name(name)} refuses it: {where}", FOUND)
        return text

    def prompts(self, prompts: Sequence[str | list[int]], tokenizer: TextTokenizer) -> list[str | list[int]]:
        """Return the prompts of a completion, likewise; tokens are never redacted, but refused."""
        found: list[str | list[int]] = []
        for prompt in prompts:
            text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
            allowed = self.prompt("prompt", text)
            if allowed != text and not isinstance(prompt, str):
                raise invalid("prompt", "prompt: a filter would redact these tokens, which only a text can be", FOUND)
            found.append(allowed if isinstance(prompt, str) else prompt)
        return found

    def messages(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the messages of a conversation, likewise."""
        return [
            message | {"content": self.prompt(f"messages[{i}].content", message["content"])}
            for i, message in enumerate(messages)
        ]


def shown_name(name: str) -> str:
    """Return what clients are told of a filter's name: no path."""
    return name.partition(":")[0] if ":" in name else Path(name).name


class ScreenedTexts:
    """The choices of a request, as far as they may be shown.

    prompts: of each choice, as a text. A text that must obey something is never redacted but refused, as it would not
    obey any more.
    """

    def __init__(self, screen: Screen, prompts: Sequence[str], constrained: bool):
        action: Action = "refuse" if constrained else screen.action
        self.texts = [FilteredText([*screen.filters.values()], action, prompt) for prompt in prompts]

    def shown(self, piece: Piece) -> Piece | None:
        """Return what may be shown by now, None if that is nothing. It never has tokens: they would spell the rest."""
        text = self.texts[piece.choice]
        shown = text.add(piece.text)
        if not piece.finish_reason:
            return replace(piece, text=shown, tokens=[]) if shown else None
        shown += text.finish()
        if text.refused is None or piece.finish_reason == "error":
            return replace(piece, text=shown, tokens=[])
        return replace(piece, text=shown, tokens=[], finish_reason="filtered", found=text.refused.kind)

    def all_shown(self, pieces: list[Piece]) -> list[Piece]:
        return [shown for piece in pieces if (shown := self.shown(piece)) is not None]

    def refused(self, choice: int) -> bool:
        return self.texts[choice].refused is not None


@dataclass(eq=False)
class ScreenedJob(Job):
    """A job whose choices are shown as far as its filters allow. A choice that is refused gives its row back."""

    texts: ScreenedTexts = field(kw_only=True)
    worker: Worker = field(kw_only=True)

    async def stream(self, heartbeat_s: float) -> AsyncIterator[list[Piece]]:
        last = time.monotonic()
        async for pieces in super().stream(heartbeat_s):
            shown = await asyncio.to_thread(self.texts.all_shown, pieces)
            for choice in {piece.choice for piece in pieces if not piece.finish_reason}:
                if self.texts.refused(choice):
                    self.worker.end_choice(self, choice)
            if shown or time.monotonic() - last >= heartbeat_s:
                last = time.monotonic()
                yield shown
