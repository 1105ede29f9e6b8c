"""The endpoints of the page of preferences: a pair to look at, a vote, its undoing, and what the votes say so far.

The server draws the texts itself and keeps them until they are voted on: what is written is what was drawn, and a page
does not know which run wrote which text before the vote.
"""

import asyncio
import shlex
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gengen.config.commands import DecodingSettings
from gengen.config.fields import choice, option
from gengen.generation.text.row import Request
from gengen.serving.answering import Patience, json_response, read_body, whole
from gengen.serving.answers import joined
from gengen.serving.preferences import OUTCOMES, SIDES, Pair, Preferences, Text, Vote, figures, repeated, swapped
from gengen.serving.protocol import MISSING, ApiError, check_model, invalid
from gengen.serving.runs import Served, ServedRun, picked
from gengen.serving.text import job_of

Tree = dict[str, Any]

MAX_TOKENS, MAX_PROMPT = 512, 8000  # tokens of a text; characters
MAX_NAME = 40  # characters of an annotator's
MAX_NUMBER = 2**31 - 1
WAITING = 1000  # pairs that are kept until they are voted on
TRIES = 4  # seeds that are tried for two different texts


def check_annotator(name: str) -> None:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise invalid("annotator", f"annotator is missing: a name of 1 to {MAX_NAME} printable characters", MISSING)


@dataclass
class PairRequest:
    """The body of POST /gengen/v1/preference/pair: two samples to choose between."""

    annotator: str = option("", "who looks")
    number: int = option(1, "which of the annotator's pairs", low=1, high=MAX_NUMBER)
    model: str = option("", "the run, by its name")
    other: str = option("", "the run of the second sample; empty = the same")
    prompt: str = option("", "what both answer or go on from")
    seed: int = option(0, "pair k is drawn from seed + k", low=0, high=2**48)
    temperature: float = option(1.0, "divides the logits", low=0, high=2)
    max_tokens: int = option(100, "tokens of each", low=1, high=MAX_TOKENS)

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)
        check_annotator(self.annotator)
        if len(self.prompt) > MAX_PROMPT:
            raise invalid("prompt", f"prompt has more than {MAX_PROMPT:,} characters")

    def settings(self, seed: int) -> DecodingSettings:
        return DecodingSettings(seed=seed, temperature=self.temperature, max_tokens=self.max_tokens, overflow="end")


@dataclass
class VoteRequest:
    """The body of POST /gengen/v1/preference: a vote on a pair that was shown."""

    id: str = option("", "the pair's")
    vote: str = choice("", ["", *OUTCOMES], "which is better; tie, bad = neither is worth choosing, skip")
    seconds: float = option(0.0, "how long it took", low=0, high=86_400)

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        if not self.id or not self.vote:
            raise invalid("vote", f"give id, a pair's, and vote, one of {', '.join(OUTCOMES)}", MISSING)


@dataclass
class UndoRequest:
    """The body of POST /gengen/v1/preference/undo."""

    id: str = option("", "of the vote")

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        if not self.id:
            raise invalid("id", "id is missing: that of a vote", MISSING)


class PreferenceApi:
    """The endpoints, over the runs that are served and a file; file=None: no vote is taken."""

    def __init__(self, runs: Mapping[str, Served], file: Preferences | None, patience: Patience):
        self.runs, self.patience, self.kept = dict(runs), patience, file
        self.waiting: OrderedDict[str, Pair] = OrderedDict()

    @property
    def file(self) -> Preferences:
        if self.kept is None:
            raise ApiError(404, "no votes are taken: start with preferences=FILE.jsonl", "not_found")
        return self.kept

    async def pair(self, http: HttpRequest) -> Response:
        """Return a pair, and what was voted on it where that is known."""
        asked, file = await read_body(PairRequest, http), self.file
        screen = picked(self.runs, asked.model, ServedRun).screen  # that of the server: of all runs
        asked.prompt = await asyncio.to_thread(screen.prompt, "prompt", asked.prompt)
        if vote := file.vote_on(asked.annotator, asked.number):
            return json_response(shown(vote.pair) | {"voted": reveal(vote)})
        id = file.id_of(asked.annotator, asked.number)
        before = repeated(asked.annotator, asked.number, file.votes.values())
        if id in self.waiting and self.asks_for(asked, self.waiting[id]):
            pair = self.waiting[id]
        elif before:
            then = before.pair
            pair = replace(then, id=id, number=asked.number, left=then.right, right=then.left, again=then.id)
        else:
            pair = await self.drawn(asked, id, http)
        self.waiting[id] = pair
        while len(self.waiting) > WAITING:
            self.waiting.popitem(last=False)
        return json_response(shown(pair) | {"voted": None})

    def asks_for(self, asked: PairRequest, pair: Pair) -> bool:
        """Return whether a pair that waits is what is asked for, and not one of other settings."""
        names = {pair.left.run["name"], pair.right.run["name"]}
        how = (pair.settings["temperature"], pair.settings["max_tokens"], pair.settings["seed"])
        wanted = (asked.temperature, asked.max_tokens, asked.seed)
        same = pair.prompt == messages(asked.prompt) and how == wanted
        return bool(pair.again) or (same and names == {asked.model, asked.other or asked.model})

    async def drawn(self, asked: PairRequest, id: str, http: HttpRequest) -> Pair:
        """Draw sample 0 of the first run and sample 1 of the second, of a seed for which they differ."""
        first, second = (picked(self.runs, name, ServedRun) for name in (asked.model, asked.other or asked.model))
        for attempt in range(TRIES):
            seed = asked.seed + asked.number + attempt * 2**50
            if first is second:
                texts = await self.samples(first, asked, seed, (0, 1), http)
            else:
                texts = [(await self.samples(run, asked, seed, (i,), http))[0] for i, run in ((0, first), (1, second))]
            if texts[0].text != texts[1].text:
                break
        else:
            raise ApiError(409, "both samples are the same text: try another prompt or temperature", "same_text")
        left, right = texts[::-1] if swapped(asked.annotator, asked.number) else texts
        settings = {"temperature": asked.temperature, "max_tokens": asked.max_tokens, "seed": asked.seed}
        return Pair(id, asked.annotator, asked.number, messages(asked.prompt), left, right, seed, settings)

    async def samples(
        self, run: ServedRun, asked: PairRequest, seed: int, indices: tuple[int, ...], http: HttpRequest
    ) -> list[Text]:
        if run.generator.tokenizer.chat:
            prompt = await asyncio.to_thread(run.chat_tokens, messages(asked.prompt))
        else:
            prompt = await asyncio.to_thread(run.prompt_tokens, asked.prompt, "prompt")
        requests = [Request(prompt, asked.settings(seed), index=i, processor=run.watermark) for i in indices]
        job = job_of(http.scope["state"]["client"], run, requests, False, [asked.prompt])
        about = run.facts["gengen"]
        of = {"name": run.name, "step": about["step"], "sha256": about["sha256"], "chat": about["chat"]}
        choices = joined(await whole(job, run.worker, http, self.patience))
        if job.outcome != "done":
            raise ApiError(503, "the server is stopping", "shutting_down")
        return [
            Text(choice.text, choice.finish_reason in ("end", "stop"), of, i)
            for i, choice in zip(indices, choices, strict=True)
        ]

    async def vote(self, http: HttpRequest) -> Response:
        """Write a vote. The same one again changes nothing, so that a page may ask again where it had no answer."""
        asked, file = await read_body(VoteRequest, http), self.file
        if (there := file.votes.get(asked.id)) is None:
            if asked.id not in self.waiting:
                raise ApiError(404, "this pair is not known any more: ask for it again", "unknown_pair")
            time = datetime.now(UTC).isoformat(timespec="seconds")
            vote = Vote(self.waiting[asked.id], asked.vote, asked.seconds, time)
            there = await asyncio.to_thread(written, file, vote)
            self.waiting.pop(asked.id, None)
        if there.outcome != asked.vote:
            raise ApiError(409, f"{there.outcome} was voted on this pair already: undo it first", "already_voted")
        return json_response(reveal(there))

    async def undo(self, http: HttpRequest) -> Response:
        asked, file = await read_body(UndoRequest, http), self.file
        if not await asyncio.to_thread(retracted, file, asked.id):
            raise ApiError(404, "there is no such vote", "not_found")
        return json_response({"id": asked.id, "retracted": True})

    async def summary(self, http: HttpRequest) -> Response:
        """Return what an annotator's votes say, her next number, and how a reward model learns from all of them."""
        annotator, file = http.query_params.get("annotator", ""), self.file
        check_annotator(annotator)
        own = [vote for vote in file.votes.values() if vote.pair.annotator == annotator]
        following = 1 + max((vote.pair.number for vote in own), default=0)
        tree = {"file": str(file.path), "next": following, "all_pairs": len(file.pairs.votes)} | figures(own)
        return json_response(tree | {"train": self.command(file)})

    def command(self, file: Preferences) -> str:
        """Return the command that trains a reward model on the file."""
        texts = [run for run in self.runs.values() if isinstance(run, ServedRun)]
        chats = [run.name for run in texts if run.facts["gengen"]["chat"]] or [run.name for run in texts] or ["NAME"]
        words = [
            "run=reward",
            "stage=reward",
            f"init_from=runs/{chats[0]}",
            "data=preferences",
            f"data.path={file.path}",
        ]
        return "python scripts/train.py " + " ".join(map(shlex.quote, words))


def messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def shown(pair: Pair) -> Tree:
    """Return what an annotator may see before the vote: nothing of the runs, nor whether the pair was there before."""
    texts = {side: getattr(pair, side).text for side in SIDES}
    return {"id": pair.id, "number": pair.number, "prompt": pair.prompt[-1]["content"]} | texts


def reveal(vote: Vote) -> Tree:
    """Return where the texts of a pair came from."""
    pair = vote.pair
    sides = {side: getattr(pair, side).run | {"index": getattr(pair, side).index} for side in SIDES}
    about = {"id": pair.id, "number": pair.number, "prompt": pair.prompt[-1]["content"], "again": bool(pair.again)}
    said = {"vote": vote.outcome, "teaches": vote.teaches, "seed": pair.seed, "settings": pair.settings}
    return about | said | sides


def written(file: Preferences, vote: Vote) -> Vote:
    """Write a vote. Raises ApiError where the disk does not take it."""
    try:
        return file.add(vote)
    except OSError as error:
        raise unwritten(error) from None


def retracted(file: Preferences, id: str) -> bool:
    try:
        return file.retract(id)
    except OSError as error:
        raise unwritten(error) from None


def unwritten(error: OSError) -> ApiError:
    return ApiError(507, f"the vote could not be written: {error.strerror or error}", "not_written")
