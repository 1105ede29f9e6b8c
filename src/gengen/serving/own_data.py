"""The endpoints over what a run was trained on, where this machine still has it: real pictures beside drawn ones, and
what of a text was copied. Only the playground has them. Data is opened as it was prepared for the run, the first time
that it is asked for; nothing is made or fetched, and no request names a path.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gengen.data.dialogue.prepare import PreparedExamples, opening
from gengen.data.image.prepare import PreparedImages
from gengen.data.prepared import PreparedData
from gengen.data.text.prepare import PreparedText
from gengen.errors import UserError
from gengen.generation.filters.copies import LEAST, CopyIndex
from gengen.generation.image.files import named, to_float, turn_of
from gengen.generation.image.gan import GANGenerator
from gengen.serving.answering import EventStream, Patience, called, json_response, read_body
from gengen.serving.answers import encoded
from gengen.serving.calls import Progress
from gengen.serving.families import of_family
from gengen.serving.gan_game import game
from gengen.serving.image_runs import ServedImages, base64_png, refusing
from gengen.serving.own_data_protocol import CopiedRequest, GameRequest, PromptsRequest, RealRequest
from gengen.serving.preference_api import MAX_PROMPT
from gengen.serving.protocol import ApiError
from gengen.serving.runs import Served, ServedRun, picked

MAX_INDEXED = 50_000_000  # tokens of a training text that is searched; 12 bytes each in memory
WINDOWS = 8  # of the held-out text, which are searched for likewise
MAX_LOOKED_AT = 2_000_000  # tokens of the held-out text in which prompts are looked for
FIRST_WORDS, BEGINNING = 8, 128  # of a document that make a prompt; tokens that they are looked for in

Tree = dict[str, Any]
OpenData = Callable[[Path], PreparedData]
"""Opens what the run of a checkpoint was trained on. Raises UserError where that is not here."""
D = TypeVar("D", bound=PreparedData)


def no_data(directory: Path) -> PreparedData:
    raise UserError(f"what {directory} was trained on is not at hand here")


class OwnDataApi:
    """The endpoints, over the runs that are served."""

    def __init__(self, runs: Mapping[str, Served], open_data: OpenData, patience: Patience):
        self.runs, self.open_data, self.patience = dict(runs), open_data, patience
        self.opened: dict[str, PreparedData] = {}
        self.indices: dict[str, CopyIndex] = {}
        self.held_out: dict[str, list[str]] = {}
        self.opening = asyncio.Lock()

    async def data_of(self, run: ServedRun | ServedImages, kind: type[D], what: str) -> D:
        """Return what a run was trained on, of a kind. Raises ApiError where it is another, or not here."""
        data = await self.data(run)
        if not isinstance(data, kind):
            raise ApiError(404, f"{run.name} was not trained on {what}", "no_data", "model")
        return data

    async def data(self, run: ServedRun | ServedImages) -> PreparedData:
        async with self.opening:
            if run.name not in self.opened:
                try:
                    self.opened[run.name] = await asyncio.to_thread(self.open_data, run.directory)
                except UserError as error:
                    message = f"what {run.name} was trained on is not where the run found it: {error}"
                    raise ApiError(404, message[:500], "no_data", "model") from None
        return self.opened[run.name]

    async def real(self, http: HttpRequest) -> "Response | EventStream[bytes]":
        asked = await read_body(RealRequest, http)
        run = picked(self.runs, asked.model, ServedImages)
        generator = of_family(run, GANGenerator)
        data = await self.data_of(run, PreparedImages, "pictures")
        return await called(
            http, run.worker, self.patience, lambda progress: real_images(run, generator, data, asked), asked.n
        )

    async def game(self, http: HttpRequest) -> "Response | EventStream[bytes]":
        asked = await read_body(GameRequest, http)
        run = picked(self.runs, asked.model, ServedImages)
        generator = of_family(run, GANGenerator)
        data = await self.data_of(run, PreparedImages, "pictures")

        def work(progress: Progress) -> bytes:
            return encoded(game(generator, run.directory, data, asked, progress))

        return await called(http, run.worker, self.patience, work, asked.n)

    async def copied(self, http: HttpRequest) -> Response:
        asked = await read_body(CopiedRequest, http)
        run = picked(self.runs, asked.model, ServedRun)
        data = await self.data_of(run, PreparedText, "a text that could be copied")
        if len(data.train) > MAX_INDEXED:
            message = f"{run.name} was trained on {len(data.train):,} tokens; {MAX_INDEXED:,} at most are searched"
            raise ApiError(404, message, "no_data", "model")
        async with self.opening:
            if run.name not in self.indices:
                self.indices[run.name] = await asyncio.to_thread(CopyIndex, data.train, LEAST)
        return json_response(await asyncio.to_thread(longest_copy, data, self.indices[run.name], asked.text))

    async def prompts(self, http: HttpRequest) -> Response:
        asked = await read_body(PromptsRequest, http)
        run = picked(self.runs, asked.model, ServedRun)
        data = await self.data(run)
        if run.name not in self.held_out:
            self.held_out[run.name] = await asyncio.to_thread(held_out_prompts, data)
        if not (found := self.held_out[run.name]):
            raise ApiError(404, f"nothing that was held out from {run.name} begins with a prompt", "no_data", "model")
        return json_response({"of": len(found), "prompts": found[asked.first : asked.first + asked.n]})


def held_out_prompts(data: PreparedData) -> list[str]:
    """Return prompts of the held-out part, each once: the user's message of a conversation that begins with one alone,
    or the first words of a document. Those too long for a request are left out."""
    if isinstance(data, PreparedExamples):
        openings = [opening(record) for record in data.val.records]
        found = [messages[0]["content"] for messages in openings if [m["role"] for m in messages] == ["user"]]
    elif isinstance(data, PreparedText):
        found = [" ".join(text.split()[:FIRST_WORDS]) for text in beginnings(data)]
    else:
        found = []
    return [prompt for prompt in dict.fromkeys(found) if prompt and len(prompt) <= MAX_PROMPT]


def beginnings(data: PreparedText) -> list[str]:
    """Return how each document of the held-out text begins, of its first `MAX_LOOKED_AT` tokens."""
    tokens = data.val.read(0, min(len(data.val), MAX_LOOKED_AT))
    ends = np.flatnonzero(tokens == data.tokenizer.eot)
    starts, stops = [0, *(ends + 1).tolist()], [*ends.tolist(), len(tokens)]
    return [
        data.tokenizer.decode(tokens[start : min(stop, start + BEGINNING)].tolist())
        for start, stop in zip(starts, stops, strict=True)
    ]


def real_images(run: ServedImages, generator: GANGenerator, data: PreparedImages, asked: RealRequest) -> bytes:
    """Return pictures of a part of the data, evenly over those of the classes wanted, and the discriminator's logit of
    each, judged as `families.judged` does it for drawn ones."""
    part = data.train if asked.part == "train" else data.val
    places = torch.arange(len(part))
    if asked.prompt:
        with refusing():
            wanted = turn_of([asked.prompt], generator.classes)
        places = places[torch.isin(part.labels, torch.tensor(wanted))]
    count = min(asked.n, len(places))
    chosen = places[torch.arange(count) * len(places) // max(count, 1)]
    images, labels = part.images[chosen], part.labels[chosen]
    rows = []
    if count:
        with generator.sampling():
            seen = to_float(images).to(generator.device)
            logits = generator.model.discriminator(seen, labels.to(generator.device)).tolist()
        for place, image, label, logit in zip(chosen.tolist(), images, labels.tolist(), logits, strict=True):
            said = {"real": asked.part, "index": place} | named(label, generator.classes)
            rows.append({"b64_json": base64_png(run, image, said), "logit": logit, "gengen": said})
    return encoded({"of": len(places), "data": rows})


def longest_copy(data: PreparedText, index: CopyIndex, text: str) -> Tree:
    """Return the longest passage of a text, in tokens, that stands so in the training text, with what is before and
    after it; and the longest in `WINDOWS` pieces of the held-out text that are as long, which nobody copied."""
    tokens = np.array(data.tokenizer.encode(text), np.int64)
    at, longest = index.longest(tokens)
    raw = data.tokenizer.decode_bytes(tokens.tolist())
    begin, end = (len(data.tokenizer.decode_bytes(tokens[:i].tolist())) for i in (at, at + longest))
    while begin < end and within_character(raw, begin):
        begin += 1
    while begin < end and within_character(raw, end):
        end -= 1
    pieces = [part.decode(errors="replace") for part in (raw[:begin], raw[begin:end], raw[end:])]
    starts = [i * len(data.val) // WINDOWS for i in range(WINDOWS)]
    held_out = max(index.longest(data.val.read(start, len(tokens)))[1] for start in starts)
    facts = {"longest": longest, "tokens": len(tokens), "least": index.length, "held_out": held_out}
    return {"pieces": pieces, "training_tokens": len(data.train)} | facts


def within_character(raw: bytes, at: int) -> bool:
    """Return whether the character before this byte of UTF-8 goes on in it."""
    return at < len(raw) and raw[at] & 0xC0 == 0x80
