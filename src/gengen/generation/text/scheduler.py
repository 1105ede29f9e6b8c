"""Texts in the making, any number of them: each gets a row of the engine's memory as one becomes free, and all that
have one advance together. There is no HTTP and no thread in here: who admits texts also makes the steps.
"""

from collections import deque
from collections.abc import Sequence

from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.drawing import add_prompt_logprobs, add_tokens
from gengen.generation.text.engine import CHUNK, Engine, chunk_of
from gengen.generation.text.row import Request, Row

READ_AT_ONCE = 512  # tokens of prompts in one pass, of all rows together


class Scheduler:
    """Draws texts, `rows` at a time. A step:

    1. waiting texts take free rows
    2. rows with unread tokens read a chunk of them; of equal prompts one is read, and copied
    3. one step of the network for all rows that have read theirs
    4. a token for each: controls, processor, constraint, the distribution, the row's own random number
    5. texts that have ended leave; the last row moves to the free place, so that rows stay side by side
    """

    def __init__(
        self, engine: Engine, tokenizer: TextTokenizer, context: int, rows: int = 32, slots: int | None = None
    ):
        """slots: what the longest text takes of the memory; None = the model's context."""
        self.engine, self.tokenizer, self.context, self.rows = engine, tokenizer, context, rows
        self.memory = engine.memory(rows, min(slots or context, context))
        self.queue: deque[Row] = deque()
        self.active: list[Row] = []  # row i of the memory belongs to active[i]

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def running(self) -> int:
        return len(self.active)

    @property
    def idle(self) -> bool:
        return not self.queue and not self.active

    def admit(self, request: Request) -> Continuation:
        """Queue a text. Raises UserError where its settings do not fit the vocabulary."""
        row = Row(request, self.tokenizer, self.engine.device)
        self.queue.append(row)
        return row.text

    def cancel(self, text: Continuation, reason: str = "interrupted") -> None:
        """End a text as it is; its row is free before the next step."""
        for row in [*self.queue, *self.active]:
            if row.text is text:
                text.finish(reason)
        self.queue = deque(row for row in self.queue if not row.text.finish_reason)
        self.drop_finished()

    def cancel_all(self, reason: str = "interrupted") -> None:
        for row in [*self.queue, *self.active]:
            row.text.finish(reason)
        self.queue.clear()
        self.active.clear()

    def step(self) -> list[Continuation]:
        """Advance the texts that have a row. Returns those that changed or ended, which may be none: while no text has
        begun, prompts are read until all have been."""
        while self.queue and len(self.active) < self.rows:
            self.active.append(self.queue.popleft())
        with self.engine.decoding():
            self.make_room()
            streaming = any(row.text.tokens and not row.unread for row in self.going())
            if unread := [i for i, row in enumerate(self.active) if row.unread and not row.text.finish_reason]:
                self.read(self.leaders(unread), CHUNK if streaming else READ_AT_ONCE)
            ready = [i for i, row in enumerate(self.active) if not row.unread and not row.text.finish_reason]
            if ready and (streaming or len(ready) == len(self.going())):
                self.advance(ready)
            else:
                ready = []
        changed = [row.text for i, row in enumerate(self.active) if row.text.finish_reason or i in ready]
        self.drop_finished()
        return changed

    def going(self) -> list[Row]:
        return [row for row in self.active if not row.text.finish_reason]

    # --- reading

    def make_room(self) -> None:
        """Where a text fills the model's context: end it, or let it go on from its last half, which is read again."""
        for row in self.active:
            if row.cached < self.context:
                continue
            if row.request.settings.overflow == "end":
                row.text.finish("length")
                continue
            row.begin, row.cached = len(row.tokens) - max(self.context // 2, 1), 0

    def leaders(self, unread: Sequence[int]) -> list[int]:
        """Of rows that begin with the same prompt return the first alone."""
        first: dict[tuple[int, ...], int] = {}
        for i in unread:
            first.setdefault(self.prompt_of(i), i)
        return list(first.values())

    def prompt_of(self, i: int) -> tuple[int, ...]:
        """Return what tells row i from those that read the same: all its tokens, or its place, which no other has."""
        row = self.active[i]
        shares = row.in_prompt and not row.request.prompt_logprobs
        return tuple(row.tokens) if shares else (-1, i)

    def read(self, candidates: list[int], budget: int) -> None:
        """Read a chunk of as many rows as one pass takes, `budget` tokens in all."""
        longest = max((self.active[i] for i in candidates), key=lambda row: row.unread)
        T = chunk_of(longest.unread, self.context - longest.cached)
        fits = [i for i in candidates if self.active[i].cached + T <= self.context][: max(1, budget // T)]
        parts = [self.active[i].next_part(T) for i in fits]
        padded = [[*part, *[0] * (T - len(part))] for part in parts]
        features = self.engine.read(padded, fits, [self.active[i].cached for i in fits], self.memory)
        for place, (i, part) in enumerate(zip(fits, parts, strict=True)):
            row = self.active[i]
            if row.request.prompt_logprobs and row.in_prompt:
                logits = self.engine.logits(features)[place, : len(part), : self.tokenizer.vocab_size]
                add_prompt_logprobs(logits, row)
            row.cached += len(part)
            if not row.unread:
                self.share(i)

    def share(self, source: int) -> None:
        """Give what a row has read to those that begin with the same prompt."""
        prompt, row = self.prompt_of(source), self.active[source]
        for i, other in enumerate(self.active):
            if other.unread and self.prompt_of(i) == prompt:
                self.memory.copy_row(source, i, row.cached)
                other.cached = row.cached

    # --- drawing

    def advance(self, ready: list[int]) -> None:
        """Make one step of the network for all rows, and draw a token for the ready ones; what the others get is not
        looked at: their next chunk writes over it."""
        newest = [row.tokens[row.begin + row.cached] for row in self.active]
        logits = self.engine.step(newest, [row.cached for row in self.active], self.memory)
        rows = [self.active[i] for i in ready]
        for row in rows:
            row.cached += 1
        logits = logits[:, : self.tokenizer.vocab_size]
        add_tokens(logits if len(ready) == len(logits) else logits[ready], rows)

    def drop_finished(self) -> None:
        """Let texts that have ended leave: the last row takes the place of each."""
        for i in reversed(range(len(self.active))):
            if self.active[i].text.finish_reason:
                last = self.active.pop()
                if i < len(self.active):
                    self.memory.copy_row(len(self.active), i, last.cached)
                    self.active[i] = last
