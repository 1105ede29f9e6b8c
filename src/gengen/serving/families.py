"""The endpoints that show how a family works: the next token, noise on its way to an image, a latent, a GAN's own
judgement, a score."""

import asyncio
import base64
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from torch import Tensor, nn

from gengen.config.commands import DecodingSettings
from gengen.generation.diffusion import path_of
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.files import labels_of, named, to_uint8
from gengen.generation.image.gan import GANGenerator
from gengen.generation.noise import slerp
from gengen.generation.text.row import Request, Row
from gengen.generation.text.stages import stages
from gengen.serving.answering import EventStream, Patience, called, json_response, read_body, whole
from gengen.serving.answers import encoded, named_event
from gengen.serving.calls import Progress
from gengen.serving.family_protocol import (
    DenoiseRequest,
    GanRequest,
    LatentRequest,
    NextRequest,
    PathRequest,
    PlaneRequest,
    ReconstructRequest,
    ScoreRequest,
)
from gengen.serving.image_protocol import RemixRequest
from gengen.serving.image_runs import ServedImages, base64_png, refusing
from gengen.serving.images import STEPS, partial_steps
from gengen.serving.jobs import Job
from gengen.serving.latents import on_a_plane, on_the_way, reconstructed
from gengen.serving.protocol import Asked, invalid
from gengen.serving.runs import Served, ServedRun, picked
from gengen.serving.scores import ServedScorer
from gengen.serving.text import check_tokens, new_seed

Tree = dict[str, Any]
Answer = Response | EventStream[bytes]
IS_NOT = {
    ImageGenerator: "no diffusion model: it has no steps to show",
    AutoencoderGenerator: "no autoencoder",
    GANGenerator: "no GAN",
}
"""What is said of a run whose generator is of another kind."""


class OfARun(Asked, Protocol):
    """A request that names a run."""

    model: str


G = TypeVar("G")
Q = TypeVar("Q", bound=OfARun)


class FamilyApi:
    """The endpoints, over the runs that are served."""

    def __init__(self, runs: Mapping[str, Served], patience: Patience):
        self.runs, self.patience = dict(runs), patience

    async def next(self, http: HttpRequest) -> Response:
        """The step of the network is one of the run's scheduler, beside the texts that it draws."""
        asked = await read_body(NextRequest, http)
        run = picked(self.runs, asked.model, ServedRun)
        if run.screen.filters:
            message = "this server filters texts, and a text could be had here token by token"
            raise invalid("model", message, "unsupported_parameter")
        check_tokens(run, "logit_bias", asked.logit_bias)
        if asked.messages:
            prompt = await asyncio.to_thread(run.chat_tokens, asked.messages)
        else:
            prompt = await asyncio.to_thread(run.prompt_tokens, asked.prompt[0], "prompt")
        if asked.drawn:
            prompt = run.prompt_tokens(prompt + asked.drawn, "drawn")
        kept: list[Tensor] = []

        def keep(logits: Tensor, tokens: list[list[int]]) -> Tensor:
            kept.append(logits[0].clone())
            return logits

        plain = DecodingSettings(max_tokens=1, temperature=1.0)  # so that the logits are the model's own
        job = Job(http.scope["state"]["client"], [Request(prompt, plain, processor=keep)])
        await whole(job, run.worker, http, self.patience)
        settings = DecodingSettings(max_tokens=1, **asked.controls())
        found = await asyncio.to_thread(next_tokens, run, Request(prompt, settings), kept[0], asked.top)
        return json_response(found | ({"logits": base64_fp32(kept[0])} if asked.logits else {}))

    async def denoise(self, http: HttpRequest) -> Answer:
        asked = await read_body(DenoiseRequest, http)
        run = picked(self.runs, asked.model, ServedImages)
        generator = of_family(run, ImageGenerator)
        seed = new_seed() if asked.seed is None else asked.seed

        def work(progress: Progress) -> bytes:
            return denoised(run, generator, asked, seed, progress)

        return await called(http, run.worker, self.patience, work, asked.steps or STEPS, asked.stream)

    async def remix(self, http: HttpRequest) -> Answer:
        asked = await read_body(RemixRequest, http)
        run = picked(self.runs, asked.model, ServedImages)
        seed = new_seed() if asked.seed is None else asked.seed

        def work(progress: Progress) -> bytes:
            images, said = run.remix(asked, seed, lambda i, t, x, x0: progress.check())
            rows = zip(images, said, strict=True)
            return encoded({"data": [{"b64_json": base64_png(run, *row), "gengen": row[1]} for row in rows]})

        return await called(http, run.worker, self.patience, work, asked.pictures * (asked.steps or STEPS))

    async def latent(self, http: HttpRequest) -> Answer:
        return await self.shown(http, LatentRequest, AutoencoderGenerator, decoded)

    async def path(self, http: HttpRequest) -> Answer:
        return await self.shown(http, PathRequest, AutoencoderGenerator, on_the_way, lambda asked: asked.steps)

    async def plane(self, http: HttpRequest) -> Answer:
        return await self.shown(http, PlaneRequest, AutoencoderGenerator, on_a_plane, lambda asked: asked.steps**2)

    async def reconstruct(self, http: HttpRequest) -> Answer:
        return await self.shown(http, ReconstructRequest, AutoencoderGenerator, reconstructed)

    async def gan(self, http: HttpRequest) -> Answer:
        return await self.shown(http, GanRequest, GANGenerator, judged, lambda asked: asked.n)

    async def shown(
        self,
        http: HttpRequest,
        request: type[Q],
        kind: type[G],
        work: Callable[[ServedImages, G, Q], bytes],
        cost: Callable[[Q], int] = lambda asked: 1,
    ) -> Answer:
        """Return what a run's generator, which must be of a kind, makes of a request of a kind."""
        asked = await read_body(request, http)
        run = picked(self.runs, asked.model, ServedImages)
        generator = of_family(run, kind)
        return await called(http, run.worker, self.patience, lambda progress: work(run, generator, asked), cost(asked))

    async def score(self, http: HttpRequest) -> Answer:
        asked = await read_body(ScoreRequest, http)
        run = picked(self.runs, asked.model, ServedScorer)
        return await called(
            http, run.worker, self.patience, lambda progress: run.score(asked, progress), len(asked.responses)
        )


def of_family(run: ServedImages, kind: type[G]) -> G:
    """Return a run's generator, which must be of a kind. Raises ApiError where it is not."""
    if not isinstance(run.generator, kind):
        raise invalid("model", f"{run.name} is {IS_NOT[kind]}", "wrong_kind_of_model")
    return run.generator


# --- the next token


def next_tokens(run: ServedRun, request: Request, logits: Tensor, top: int) -> Tree:
    """Return the likeliest tokens under the model and under what is drawn from, with the probability of each after
    each control; and of each of these distributions the entropy in nats and how many tokens are possible."""
    row = Row(request, run.generator.tokenizer, logits.device)
    found = {name: p.double() for name, p in stages(row, logits).items()}
    first, last = found["model"], [*found.values()][-1]
    likeliest = torch.cat([p.topk(min(top, len(p))).indices for p in (last, first)]).tolist()
    tokens = list(dict.fromkeys(likeliest))
    after = [
        {"control": name, "entropy": float(torch.special.entr(p).sum()), "possible": int((p > 0).sum())}
        for name, p in found.items()
    ]
    entries = [
        run.spelling.described(token) | {"probability": {name: float(p[token]) for name, p in found.items()}}
        for token in tokens
    ]
    asked = {"model": run.name, "prompt": request.prompt, "prompt_tokens": len(request.prompt)}
    return asked | {"controls": after, "tokens": entries}


def base64_fp32(numbers: Tensor) -> str:
    """Return numbers in base64, bit for bit: fp32, the low byte first."""
    return base64.b64encode(numbers.float().cpu().numpy().astype("<f4").tobytes()).decode()


# --- images


def denoised(
    run: ServedImages, generator: ImageGenerator, asked: DenoiseRequest, seed: int, progress: Progress
) -> bytes:
    """Draw a sample, and show its state and the estimate of it in some of the steps: the answer, or its last event,
    which says what it cost: calls of the network, and seconds, in which what is shown was written too."""
    path, steps = path_of(generator.config), asked.steps or STEPS
    shown = [0, *partial_steps(steps, min(asked.frames, steps) - 1)]
    strip: list[Tree] = []

    def watch(i: int, t: float, x: Tensor, x0: Tensor) -> None:
        progress.check()
        if i not in shown:
            return
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        state = generator.pixels(x / math.hypot(alpha, sigma))[0]  # as wide as data, whatever the path makes of it
        estimate = generator.pixels(x0)[0]
        frame: Tree = {"step": i, "t": t, "alpha": alpha, "sigma": sigma}
        frame |= {"x_t": base64_png(run, state, frame), "x_0": base64_png(run, estimate, frame)}
        if asked.stream:
            progress.tell(named_event("denoise.step", frame))
        else:
            strip.append(frame)

    began = time.perf_counter()
    with counted_calls(generator.model) as calls:
        images, said = run.generate(asked, 1, seed, watch)
    cost = {"calls": len(calls), "seconds": time.perf_counter() - began}
    answer = {"b64_json": base64_png(run, images[0], said[0]), "gengen": said[0]} | cost
    return named_event("denoise.completed", answer) if asked.stream else encoded({"steps": strip} | answer)


@contextmanager
def counted_calls(network: nn.Module) -> Iterator[list[None]]:
    """Yield a list that grows by one with each call of a network."""
    calls: list[None] = []
    hook = network.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


def decoded(run: ServedImages, generator: AutoencoderGenerator, asked: LatentRequest) -> bytes:
    """Return what is decoded from a draw of the prior, some of whose channels or numbers lie elsewhere."""
    latents = generator.prior([asked.first], asked.seed)
    with refusing("deviations"):
        moved = generator.moved(latents, asked.deviations) if asked.deviations else latents
    with torch.no_grad():
        deviations = generator.model.whitened(moved)[0].flatten().tolist()
    said = {"seed": asked.seed, "index": asked.first}
    answer: Tree = {"b64_json": base64_png(run, to_uint8(generator.decode(moved))[0].cpu(), said)}
    answer |= {"shape": list(moved.shape[1:]), "deviations": deviations, "gengen": said}
    if asked.channels:
        answer["channels"] = generator.traverse(latents[0], 2, asked.channels)[1]
    return encoded(answer)


def judged(run: ServedImages, generator: GANGenerator, asked: GanRequest) -> bytes:
    """Return images and the discriminator's logit of each, which says how real it looks: see `GANGenerator.compares`.
    The generator's weights may be averaged; the discriminator's are those of the last step."""
    samples, wanted = range(asked.first, asked.first + asked.n), [asked.prompt] if asked.prompt else []
    with refusing():
        labels = labels_of(wanted, generator.classes, asked.n).to(generator.device)
        if asked.to is not None:  # a path is one of a class
            labels = labels[:1].expand(asked.n)
    z = asked.truncation * generator.latents(samples if asked.to is None else [asked.first, asked.to], asked.seed)
    if asked.to is not None:
        z = slerp(z[0], z[1], torch.linspace(0, 1, asked.n, device=z.device))
    with generator.sampling():
        images = generator.model.generator(z, labels)
        logits = generator.model.discriminator(images, labels).tolist()
    how: Tree = {"seed": asked.seed, "truncation": asked.truncation}
    rows = []
    for j, (label, image, logit) in enumerate(zip(labels.tolist(), to_uint8(images).cpu(), logits, strict=True)):
        which = {"index": asked.first + j} if asked.to is None else {"from": asked.first, "to": asked.to}
        at = {} if asked.to is None else {"at": j / (asked.n - 1)}
        said = which | how | named(label, generator.classes) | at
        rows.append({"b64_json": base64_png(run, image, said), "logit": logit, "gengen": said})
    return encoded({"data": rows})
