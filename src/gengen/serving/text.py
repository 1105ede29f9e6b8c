"""The endpoints of text: completions and chat completions, whole or as server-sent events; tokens and back."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gengen.generation.text.grammar import Grammar
from gengen.generation.text.row import Request
from gengen.serving.answers import DONE, HEARTBEAT, encoded, event, joined
from gengen.serving.constraints import grammar_of
from gengen.serving.guard import ClientGone, Message, Receive, Send
from gengen.serving.jobs import Job
from gengen.serving.pieces import Piece
from gengen.serving.protocol import (
    MAX_DRAWN,
    ApiError,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    R,
    TextRequest,
    TokenizeRequest,
    invalid,
    parse_body,
    read_request,
)
from gengen.serving.runs import ServedRun, model_not_found
from gengen.serving.wording import ChatWording, CompletionWording, Wording
from gengen.serving.worker import Worker

HEARTBEAT_S = 15.0
FLUSH_S, FEW_STREAMS = 0.025, 8  # above so many rows a stream is sent at most so often
SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}


class Patience(Protocol):
    """How long clients are waited for."""

    stall_s: float
    deadline_s: float


class TextApi:
    """The endpoints, over the runs that are served."""

    def __init__(self, runs: Mapping[str, ServedRun], patience: Patience):
        self.runs, self.patience = dict(runs), patience

    def run(self, name: str) -> ServedRun:
        if name not in self.runs:
            raise model_not_found(name, self.runs)
        return self.runs[name]

    async def completions(self, http: HttpRequest) -> "Response | EventStream":
        asked = await read_body(CompletionRequest, http)
        run, max_tokens = self.run(asked.model), asked.max_tokens or (1 if asked.max_tokens == 0 else 16)
        prompts = await asyncio.to_thread(lambda: [run.prompt_tokens(prompt, "prompt") for prompt in asked.prompt])
        seed = new_seed() if asked.seed is None else asked.seed
        wanted = asked.prompt_logprobs or (asked.echo and asked.logprobs is not None)
        grammar = await asyncio.to_thread(grammar_of, asked, run.generator.tokenizer)
        requests = requests_of(asked, run, prompts, seed, max_tokens, wanted, grammar)
        wording = CompletionWording(asked, run.name, run.fingerprint, run.spelling, seed, prompts)
        return await self.answer(http, run, asked, requests, wording)

    async def chat(self, http: HttpRequest) -> "Response | EventStream":
        asked = await read_body(ChatRequest, http)
        run = self.run(asked.model)
        prompt = await asyncio.to_thread(run.chat_tokens, asked.messages)
        seed = new_seed() if asked.seed is None else asked.seed
        most = min(run.room(prompt), MAX_DRAWN // asked.n)
        grammar = await asyncio.to_thread(grammar_of, asked, run.generator.tokenizer)
        max_tokens = asked.max_tokens or most
        requests = requests_of(asked, run, [prompt], seed, max_tokens, asked.prompt_logprobs, grammar)
        wording = ChatWording(asked, run.name, run.fingerprint, run.spelling, seed, [prompt])
        return await self.answer(http, run, asked, requests, wording)

    async def answer(
        self, http: HttpRequest, run: ServedRun, asked: TextRequest, requests: list[Request], wording: Wording
    ) -> "Response | EventStream":
        job = Job(http.scope["state"]["client"], requests, asked.stream)
        if asked.stream:
            return EventStream(job, run.worker, wording, self.patience)
        pieces: list[Piece] = []
        async with running(job, run.worker, http.receive, self.patience.deadline_s):
            async for some in job.stream(HEARTBEAT_S):
                pieces += some
        if job.outcome == "cancelled":
            raise ClientGone
        headers = {"content-type": "application/json"}
        if job.outcome == "drained":
            headers["x-gengen-drained"] = "true"
        return Response(encoded(wording.whole(joined(pieces))), headers=headers)

    async def tokenize(self, http: HttpRequest) -> Response:
        asked = await read_body(TokenizeRequest, http)
        run = self.run(asked.model)
        if asked.messages:
            tokens = await asyncio.to_thread(run.chat_tokens, asked.messages)
        else:
            tokens = await asyncio.to_thread(run.generator.tokenizer.encode, asked.prompt or "")
        pieces = [run.spelling.described(token) for token in tokens]
        return json_response(
            {"tokens": tokens, "count": len(tokens), "context": run.generator.context, "pieces": pieces}
        )

    async def detokenize(self, http: HttpRequest) -> Response:
        asked = await read_body(DetokenizeRequest, http)
        run = self.run(asked.model)
        vocabulary = run.generator.tokenizer.vocab_size
        if outside := [token for token in asked.tokens if not 0 <= token < vocabulary]:
            message = f"tokens: there is no token {str(outside[0])[:20]}; the vocabulary has 0..{vocabulary - 1}"
            raise invalid("tokens", message)
        spelled = run.generator.tokenizer.decode_bytes(asked.tokens)
        return json_response({"text": spelled.decode(errors="replace"), "bytes": spelled.hex()})

    async def models(self, http: HttpRequest) -> Response:
        return json_response({"object": "list", "data": [run.facts for run in self.runs.values()]})

    async def model(self, http: HttpRequest) -> Response:
        return json_response(self.run(http.path_params["name"]).facts)


def json_response(tree: dict[str, Any]) -> Response:
    return Response(encoded(tree), headers={"content-type": "application/json"})


async def read_body(cls: type[R], http: HttpRequest) -> R:
    return read_request(cls, parse_body(await http.body()))


def new_seed() -> int:
    """Return a seed that a client can send back: JavaScript holds integers up to 2^53 exactly."""
    return secrets.randbits(48)


def requests_of(
    asked: TextRequest,
    run: ServedRun,
    prompts: list[list[int]],
    seed: int,
    max_tokens: int,
    prompt_logprobs: bool,
    grammar: Grammar | None = None,
) -> list[Request]:
    """Return what to draw: choice j of prompt p is sample p * n + j, as in `TextGenerator.generate`."""
    if max_tokens * asked.n * len(prompts) > MAX_DRAWN:
        drawn = f"{len(prompts)} prompts with n={asked.n} and max_tokens={max_tokens}"
        raise invalid("max_tokens", f"{drawn} may draw more than {MAX_DRAWN} tokens, the most of a request")
    vocabulary = run.generator.tokenizer.vocab_size
    for key, ids in (("logit_bias", [*asked.logit_bias]), ("stop_ids", asked.stop_ids)):
        if outside := [token for token in ids if not 0 <= token < vocabulary]:
            raise invalid(
                key, f"{key}: there is no token {str(outside[0])[:20]}; the vocabulary has 0..{vocabulary - 1}"
            )
    settings = asked.settings(seed, max_tokens)
    return [
        Request(
            prompt,
            settings,
            index=p * asked.n + j,
            constraint=grammar.constraint() if grammar else None,
            top_logprobs=asked.top,
            prompt_logprobs=prompt_logprobs,
        )
        for p, prompt in enumerate(prompts)
        for j in range(asked.n)
    ]


@asynccontextmanager
async def running(job: Job, worker: Worker, receive: Receive, deadline_s: float) -> AsyncIterator[None]:
    """Inside, a job is accepted; it ends when the client leaves, when its time is over, and in any case here."""
    worker.submit(job)
    late = ApiError(408, f"the request took over {deadline_s:g} s", "request_timeout")
    timer = asyncio.get_running_loop().call_later(deadline_s, worker.end, job, "deadline", late)
    watch = asyncio.create_task(end_when_gone(job, worker, receive))
    try:
        yield
    finally:
        timer.cancel()
        watch.cancel()
        worker.end(job, "cancelled")  # where it has no outcome: this task was ended


async def end_when_gone(job: Job, worker: Worker, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    worker.end(job, "cancelled")


class EventStream:
    """A streamed answer. The status is sent with the first event, so that what is refused before has its own."""

    def __init__(self, job: Job, worker: Worker, wording: Wording, patience: Patience):
        self.job, self.worker, self.wording, self.patience = job, worker, wording, patience
        self.began, self.stalled = False, False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        job = self.job
        async with running(job, self.worker, receive, self.patience.deadline_s):
            try:
                async for pieces in job.stream(HEARTBEAT_S):
                    await self.send(send, b"".join(self.events(pieces)) if pieces else HEARTBEAT)
                    if self.stalled:
                        break
                    if self.worker.running > FEW_STREAMS:
                        await asyncio.sleep(FLUSH_S)
            except ApiError as error:
                if not self.began:
                    raise
                await self.send(send, event(error.body()), last=True)
                return
        if job.outcome in ("done", "drained"):
            await self.send(send, b"".join(event(tree) for tree in self.wording.closing()) + DONE, last=True)
        if self.stalled:
            scope["state"].get("abort", lambda: None)()  # what waits to be sent goes with the connection
        if self.stalled or job.outcome == "cancelled":
            raise ClientGone

    def events(self, pieces: list[Piece]) -> Iterator[bytes]:
        for choice in joined(pieces):
            yield from (event(tree) for tree in self.wording.chunks(choice))

    async def send(self, send: Send, body: bytes, last: bool = False) -> None:
        """Send some events. A client that does not read them for too long ends its job."""
        try:
            async with asyncio.timeout(self.patience.stall_s):
                if not self.began:
                    self.began = True
                    headers = [(name.encode(), value.encode()) for name, value in SSE.items()]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": not last})
        except TimeoutError:
            self.stalled = True
            self.worker.end(self.job, "stalled")
