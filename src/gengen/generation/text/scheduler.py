"""Texts in the making, any number of them: each gets a row of the engine's memory as one becomes free, and all that
have one advance together. There is no HTTP and no thread in here: who admits texts also makes the steps.
"""

from collections import deque
from collections.abc import Sequence

from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.drawing import add_prompt_logprobs, add_tokens
from gengen.generation.text.engine import CHUNK, Engine, chunk_of
from gengen.generation.text.prefixes import PrefixCache
from gengen.generation.text.row import Request, Row
from gengen.generation.text.speculation import GUESSES, Speculation

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
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        context: int,
        rows: int = 32,
        slots: int | None = None,
        prefixes: PrefixCache | None = None,
        speculation: Speculation | None = None,
    ):
        """slots: what the longest text takes of the memory; None = the model's context."""
        self.engine, self.tokenizer, self.context, self.rows = engine, tokenizer, context, rows
        self.prefixes, self.speculation = prefixes, speculation
        self.memory = engine.memory(rows, min(slots or context, context))
        self.room = min(context, self.memory.slots)  # tokens of a row, padding of a chunk included
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
        self.drop_finished()

    def step(self) -> list[Continuation]:
        """Advance the texts that have a row. Returns those that changed or ended, which may be none: while no text has
        begun, prompts are read until all have been."""
        with self.engine.decoding():
            while self.queue and len(self.active) < self.rows:
                self.give_row(self.queue.popleft())
            filled = self.make_room()
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
        return filled + changed

    def going(self) -> list[Row]:
        return [row for row in self.active if not row.text.finish_reason]

    # --- reading

    def give_row(self, row: Row) -> None:
        self.active.append(row)
        if self.prefixes is not None and not row.request.prompt_logprobs:
            row.cached = row.text.reused = self.prefixes.load(row.tokens, self.memory, len(self.active) - 1)

    def make_room(self) -> list[Continuation]:
        """Where a text fills the model's context: let it go on from its last half, which is read again, or end it. The
        ended ones are returned and leave at once: a step of the others would write beyond their slots."""
        full = [row for row in self.active if row.cached >= self.context]
        for row in full:
            if row.request.settings.overflow == "end":
                row.text.finish("length")
            else:
                row.begin, row.cached = len(row.tokens) - max(self.context // 2, 1), 0
        self.drop_finished()
        return [row.text for row in full if row.text.finish_reason]

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
        T = chunk_of(longest.unread, self.room - longest.cached)
        fits = [i for i in candidates if self.active[i].cached + T <= self.room][: max(1, budget // T)]
        parts = [self.active[i].next_part(T) for i in fits]
        padded = [[*part, *[0] * (T - len(part))] for part in parts]
        features = self.engine.read(padded, fits, [self.active[i].cached for i in fits], self.memory)
        for place, (i, part) in enumerate(zip(fits, parts, strict=True)):
            row = self.active[i]
            if row.request.prompt_logprobs and row.in_prompt:
                logits = self.engine.logits(features)[place, : len(part), : self.tokenizer.vocab_size]
                add_prompt_logprobs(logits, row)
            row.cached += len(part)
            if not row.unread and row.in_prompt:
                self.share(i)
                if self.prefixes is not None:
                    self.prefixes.store(row.tokens, self.memory, i)

    def share(self, source: int) -> None:
        """Give what a row has read to those that begin with the same prompt."""
        prompt, row = self.prompt_of(source), self.active[source]
        for i, other in enumerate(self.active):
            if other.unread and self.prompt_of(i) == prompt:
                self.memory.copy_row(source, i, row.cached)
                other.cached = row.cached

    # --- drawing

    def advance(self, ready: list[int]) -> None:
        """Draw a token for the ready rows, or several where they can be guessed."""
        rows = [self.active[i] for i in ready]
        roomy = all(row.cached + GUESSES + 1 <= self.room for row in rows)
        if self.speculation is not None and roomy and (guesses := self.speculation.guess(rows)):
            self.check(ready, guesses)
        else:
            self.make_step(ready)

    def check(self, ready: list[int], guesses: list[list[int]]) -> None:
        """Read the guesses of the ready rows in one pass, and draw as long as what is drawn is what was guessed."""
        rows = [self.active[i] for i in ready]
        parts = [[row.tokens[-1], *guess] for row, guess in zip(rows, guesses, strict=True)]
        padded = [[*part, *[0] * (GUESSES + 1 - len(part))] for part in parts]
        features = self.engine.read(padded, ready, [row.cached for row in rows], self.memory)
        logits = self.engine.logits(features)[:, :, : self.tokenizer.vocab_size]
        going, accepted = list(range(len(rows))), 0
        for t in range(GUESSES + 1):
            for place in going:
                rows[place].cached += 1
            add_tokens(logits[going, t], [rows[place] for place in going])
            going = [
                place for place in going
                if not rows[place].text.finish_reason and parts[place][t + 1 : t + 2] == rows[place].tokens[-1:]
            ]  # fmt: skip
            accepted += len(going)
            if not going:
                break
        assert self.speculation is not None
        self.speculation.count(accepted)

    def make_step(self, ready: list[int]) -> None:
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
                if self.speculation is not None:
                    self.speculation.guesser.forget(self.active[i])
                last = self.active.pop()
                if i < len(self.active):
                    self.memory.copy_row(len(self.active), i, last.cached)
                    self.active[i] = last
