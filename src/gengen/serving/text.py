"""The endpoints of text: completions and chat completions, whole or as server-sent events; tokens and back."""

import asyncio
import json
import secrets
from collections.abc import Iterable, Mapping

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gengen.generation.text.grammar import Grammar
from gengen.generation.text.row import Request
from gengen.serving.answering import JSON, EventStream, Patience, json_response, read_body, whole
from gengen.serving.answers import DONE, encoded, event, joined
from gengen.serving.best_of import answers_of, chosen_of
from gengen.serving.calls import Call
from gengen.serving.constraints import grammar_of
from gengen.serving.jobs import Job
from gengen.serving.pieces import Piece
from gengen.serving.protocol import (
    MAX_DRAWN,
    ChatRequest,
    CompletionRequest,
    TextRequest,
    invalid,
)
from gengen.serving.runs import Served, ServedRun, picked
from gengen.serving.scores import ServedScorer
from gengen.serving.screen import ScreenedJob, ScreenedTexts
from gengen.serving.token_protocol import DetectRequest, DetokenizeRequest, TokenizeRequest
from gengen.serving.wording import ChatWording, CompletionWording, Wording


class TextApi:
    """The endpoints, over the runs that are served."""

    def __init__(self, runs: Mapping[str, Served], patience: Patience):
        self.runs, self.patience = dict(runs), patience

    def run(self, name: str) -> ServedRun:
        return picked(self.runs, name, ServedRun)

    async def completions(self, http: HttpRequest) -> "Response | EventStream[Piece]":
        asked = await read_body(CompletionRequest, http)
        run, max_tokens = self.run(asked.model), asked.max_tokens or (1 if asked.max_tokens == 0 else 16)
        check_logprobs(asked, run)
        for prompt in asked.prompt:
            if not isinstance(prompt, str):
                check_tokens(run, "prompt", prompt)
        asked.prompt = await asyncio.to_thread(run.screen.prompts, asked.prompt, run.generator.tokenizer)
        prompts = await asyncio.to_thread(lambda: [run.prompt_tokens(prompt, "prompt") for prompt in asked.prompt])
        seed = new_seed() if asked.seed is None else asked.seed
        wanted = asked.prompt_logprobs or (asked.echo and asked.logprobs is not None)
        grammar = await asyncio.to_thread(grammar_of, asked, run.generator.tokenizer)
        requests = requests_of(asked, run, prompts, seed, max_tokens, wanted, grammar)
        wording = CompletionWording(asked, run.name, run.fingerprint, run.spelling, seed, prompts)
        texts = [p if isinstance(p, str) else run.generator.tokenizer.decode(p) for p in asked.prompt]
        return await self.answer(http, run, asked, requests, wording, texts)

    async def chat(self, http: HttpRequest) -> "Response | EventStream[Piece]":
        asked = await read_body(ChatRequest, http)
        run = self.run(asked.model)
        check_logprobs(asked, run)
        asked.messages = await asyncio.to_thread(run.screen.messages, asked.messages)
        prompt = await asyncio.to_thread(run.chat_tokens, asked.messages)
        seed = new_seed() if asked.seed is None else asked.seed
        most = min(run.room(prompt), MAX_DRAWN // asked.drawn)
        grammar = await asyncio.to_thread(grammar_of, asked, run.generator.tokenizer)
        if asked.reward:
            most = min(most, self.scorer(asked.reward, run).room(prompt))
        max_tokens = asked.max_tokens or max(most, 1)
        requests = requests_of(asked, run, [prompt], seed, max_tokens, asked.prompt_logprobs, grammar)
        wording = ChatWording(asked, run.name, run.fingerprint, run.spelling, seed, [prompt])
        last = asked.messages[-1]["content"]
        return await self.answer(http, run, asked, requests, wording, [last])

    async def answer(
        self,
        http: HttpRequest,
        run: ServedRun,
        asked: TextRequest,
        requests: list[Request],
        wording: Wording,
        prompts: list[str],
    ) -> "Response | EventStream[Piece]":
        """prompts: as texts, which some filters look at beside what goes on from them."""
        if asked.reward:
            return await self.best(http, run, asked, requests, wording, prompts)
        job = job_of(http.scope["state"]["client"], run, requests, asked.stream, prompts)
        if asked.stream:

            def events(pieces: list[Piece]) -> bytes:
                return b"".join(event(tree) for choice in joined(pieces) for tree in wording.chunks(choice))

            def closing() -> bytes:
                return b"".join(map(event, wording.closing())) + DONE

            return EventStream(job, run.worker, self.patience, events, closing)
        pieces = await whole(job, run.worker, http, self.patience)
        drained = {"x-gengen-drained": "true"} if job.outcome == "drained" else {}
        return Response(encoded(wording.whole(joined(pieces))), headers=JSON | drained)

    def scorer(self, name: str, run: ServedRun) -> ServedScorer:
        """Return a reward run by its name. Raises ApiError where it is none, or reads another run's tokens."""
        scorer = picked(self.runs, name, ServedScorer, "reward")
        if scorer.scorer.tokenizer.hash != run.generator.tokenizer.hash:
            raise invalid(
                "reward", f"{name} was trained with another tokenizer than {run.name}", "wrong_kind_of_model"
            )
        return scorer

    async def best(
        self,
        http: HttpRequest,
        run: ServedRun,
        asked: TextRequest,
        requests: list[Request],
        wording: Wording,
        prompts: list[str],
    ) -> Response:
        """Draw `best_of` texts of each prompt, and answer with the n that a reward run likes best."""
        scorer = self.scorer(str(asked.reward), run)
        for request in requests:
            scorer.check_room(request)
        client = http.scope["state"]["client"]
        drawn = await whole(Job(client, requests), run.worker, http, self.patience)
        drawn.sort(key=lambda piece: piece.choice)
        answers = answers_of(drawn, requests, prompts)
        call = Call(client, lambda progress: scorer.rewards(answers, progress), cost=len(answers))
        rewards = await whole(call, scorer.worker, http, self.patience)
        chosen = chosen_of(drawn, json.loads(rewards[0]), asked.drawn, asked.n)
        wording.not_chosen = sum(piece.drawn for piece in drawn) - sum(piece.drawn for piece in chosen)
        if run.screen.filters:
            texts = screened_texts(run, requests[:: asked.drawn], prompts, asked.n)
            chosen = await asyncio.to_thread(texts.all_shown, chosen)
        return Response(encoded(wording.whole(joined(chosen))), headers=JSON)

    async def detect(self, http: HttpRequest) -> Response:
        """Look for the watermark in a text. Every pair of tokens is counted; no step of a network is made."""
        asked = await read_body(DetectRequest, http)
        run = self.run(asked.model)
        if (watermark := run.watermark) is None:
            message = "this server marks no texts: watermark=KEYFILE on its command line names the key to look for"
            raise invalid(None, message, "no_watermark")
        if asked.tokens:
            check_tokens(run, "tokens", asked.tokens)
        start = await asyncio.to_thread(run.prompt_tokens, asked.prompt, "prompt")
        tokens = asked.tokens or await asyncio.to_thread(run.generator.tokenizer.encode, asked.text or "")
        found = await asyncio.to_thread(watermark.detect, [*start, *tokens], len(start))
        return json_response(
            {
                "model": run.name,
                "tokens": len(tokens),
                "counted": found.counted,
                "matching": found.matching,
                "z": found.z,
                "p_value": found.p_value,
                "verdict": found.verdict,
            }
        )

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
        check_tokens(run, "tokens", asked.tokens)
        spelled = run.generator.tokenizer.decode_bytes(asked.tokens)
        return json_response({"text": spelled.decode(errors="replace"), "bytes": spelled.hex()})


def job_of(client: str, run: ServedRun, requests: list[Request], streamed: bool, prompts: list[str]) -> Job:
    """Return a job of the choices of a request, as many of each prompt."""
    if not run.screen.filters:
        return Job(client, requests, streamed)
    texts = screened_texts(run, requests, prompts, len(requests) // len(prompts))
    return ScreenedJob(client, requests, streamed=True, texts=texts, worker=run.worker)


def screened_texts(run: ServedRun, requests: list[Request], prompts: list[str], n: int) -> ScreenedTexts:
    """Return what a run's filters make of n choices of each prompt."""
    constrained = any(request.constraint for request in requests)
    return ScreenedTexts(run.screen, [prompt for prompt in prompts for _ in range(n)], constrained)


def new_seed() -> int:
    """Return a seed that a client can send back: JavaScript holds integers up to 2^53 exactly."""
    return secrets.randbits(48)


def check_logprobs(asked: TextRequest, run: ServedRun) -> None:
    """Raise ApiError for log-probabilities that would give away what is filtered, or which tokens a mark prefers."""
    run.screen.check(asked)
    if run.watermark and asked.logprobs_of == "drawn":
        message = "logprobs_of=drawn: this server marks its texts, and these would tell how; logprobs_of=model is had"
        raise invalid("logprobs_of", message, "unsupported_parameter")


def check_tokens(run: ServedRun, key: str, tokens: Iterable[int]) -> None:
    """Raise ApiError for a token that the vocabulary does not have."""
    vocabulary = run.generator.tokenizer.vocab_size
    if outside := [token for token in tokens if not 0 <= token < vocabulary]:
        raise invalid(key, f"{key}: there is no token {str(outside[0])[:20]}; the vocabulary has 0..{vocabulary - 1}")


def requests_of(
    asked: TextRequest,
    run: ServedRun,
    prompts: list[list[int]],
    seed: int,
    max_tokens: int,
    prompt_logprobs: bool,
    grammar: Grammar | None = None,
) -> list[Request]:
    """Return what to draw: choice j of prompt p is sample p * n + j, as in `TextGenerator.generate`; of the best of
    several, n is how many are drawn."""
    if max_tokens * asked.drawn * len(prompts) > MAX_DRAWN:
        drawn = f"{len(prompts)} prompts with {asked.drawn} texts each and max_tokens={max_tokens}"
        raise invalid("max_tokens", f"{drawn} may draw more than {MAX_DRAWN} tokens, the most of a request")
    check_tokens(run, "logit_bias", asked.logit_bias)
    check_tokens(run, "stop_ids", asked.stop_ids)
    settings = asked.settings(seed, max_tokens)
    return [
        Request(
            prompt,
            settings,
            index=p * asked.drawn + j,
            processor=run.watermark,
            constraint=grammar.constraint() if grammar else None,
            top_logprobs=asked.top,
            prompt_logprobs=prompt_logprobs,
        )
        for p, prompt in enumerate(prompts)
        for j in range(asked.drawn)
    ]
