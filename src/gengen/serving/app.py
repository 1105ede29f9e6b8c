"""The routes of the server, behind the guard."""

import time
from pathlib import Path

import torch
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from gengen import __version__
from gengen.config.serve import ServeConfig
from gengen.serving.answering import json_response
from gengen.serving.calls import CallWorker
from gengen.serving.families import FamilyApi
from gengen.serving.guard import LOCAL_NAMES, Guard, Rules
from gengen.serving.images import ImageApi
from gengen.serving.metrics import CONTENT_TYPE, Exposition
from gengen.serving.own_data import OpenData, OwnDataApi, no_data
from gengen.serving.playground import Pages
from gengen.serving.preference_api import PreferenceApi
from gengen.serving.preferences import Preferences
from gengen.serving.run_files import RunFilesApi
from gengen.serving.runs import Served, named
from gengen.serving.text import TextApi
from gengen.serving.worker import Worker


class Application:
    """All that is served: `asgi` is the application, `runs` what it draws from. preferences: takes votes; open_data:
    opens what a run was trained on. Only the playground uses these two."""

    def __init__(
        self,
        runs: dict[str, Served],
        config: ServeConfig,
        keys: list[str],
        preferences: Preferences | None = None,
        open_data: OpenData = no_data,
    ):
        self.runs = runs
        text, images, families = TextApi(runs, config), ImageApi(runs, config), FamilyApi(runs, config)
        self.routes = [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name}", self.model, methods=["GET"]),
            Route("/v1/completions", text.completions, methods=["POST"]),
            Route("/v1/chat/completions", text.chat, methods=["POST"]),
            Route("/v1/tokenize", text.tokenize, methods=["POST"]),
            Route("/v1/detokenize", text.detokenize, methods=["POST"]),
            Route("/gengen/v1/watermark/detect", text.detect, methods=["POST"]),
            Route("/v1/images/generations", images.generations, methods=["POST"]),
            Route("/gengen/v1/images/edits", images.edits, methods=["POST"]),
            Route("/gengen/v1/next", families.next, methods=["POST"]),
            Route("/gengen/v1/denoise", families.denoise, methods=["POST"]),
            Route("/gengen/v1/remix", families.remix, methods=["POST"]),
            Route("/gengen/v1/latent", families.latent, methods=["POST"]),
            Route("/gengen/v1/latent/path", families.path, methods=["POST"]),
            Route("/gengen/v1/latent/plane", families.plane, methods=["POST"]),
            Route("/gengen/v1/reconstruct", families.reconstruct, methods=["POST"]),
            Route("/gengen/v1/gan", families.gan, methods=["POST"]),
            Route("/gengen/v1/score", families.score, methods=["POST"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            *(playground_routes(runs, config, preferences, open_data) if config.playground else ()),
        ]
        self.asgi = Guard(Router(self.routes, redirect_slashes=False), rules_of(config, keys))

    async def models(self, http: Request) -> Response:
        return json_response({"object": "list", "data": [run.facts for run in self.runs.values()]})

    async def model(self, http: Request) -> Response:
        return json_response(named(self.runs, http.path_params["name"]).facts)

    # --- how the server is; none of these waits for an engine

    async def health(self, http: Request) -> Response:
        """Answer 200 while every engine's thread lives and moves, else 503."""
        now = time.monotonic()
        ages = {name: round(now - run.worker.beat, 3) for name, run in self.runs.items()}
        well = all(run.worker.alive for run in self.runs.values())
        answer = json_response({"status": "ok" if well else "an engine hangs", "seconds_since_beat": ages})
        answer.status_code = 200 if well else 503
        return answer

    async def ready(self, http: Request) -> Response:
        """Answer 200 while new requests are taken, else 503."""
        draining = any(run.worker.draining for run in self.runs.values())
        answer = json_response({"status": "draining" if draining else "ready"})
        answer.status_code = 503 if draining else 200
        return answer

    async def version(self, http: Request) -> Response:
        return json_response({"gengen": __version__, "torch": str(torch.__version__)})

    async def metrics(self, http: Request) -> Response:
        return Response(exposition(self.runs), headers={"content-type": CONTENT_TYPE})

    # --- the life of the engines

    def start(self) -> None:
        for run in self.runs.values():
            run.worker.start()

    def drain(self) -> None:
        """Take no new request from now on."""
        for run in self.runs.values():
            run.worker.draining = True

    @property
    def jobs(self) -> int:
        """Return how many requests are in progress."""
        return sum(len(run.worker.jobs) for run in self.runs.values())

    def cut(self) -> None:
        for run in self.runs.values():
            run.worker.cut()

    def stop(self) -> None:
        for run in self.runs.values():
            run.worker.stop()


def playground_routes(
    runs: dict[str, Served], config: ServeConfig, preferences: Preferences | None, open_data: OpenData
) -> list[Route]:
    """Return the routes of the pages, of what they show of the disk, and of votes."""
    files, votes = RunFilesApi(Path(config.runs_dir)), PreferenceApi(runs, preferences, config)
    data = OwnDataApi(runs, open_data, config)
    return [
        *Pages().routes,
        Route("/gengen/v1/runs", files.runs, methods=["GET"]),
        Route("/gengen/v1/runs/{name}/metrics", files.metrics, methods=["GET"]),
        Route("/gengen/v1/runs/{name}/samples", files.samples, methods=["GET"]),
        Route("/gengen/v1/runs/{name}/samples/{file}", files.sample, methods=["GET"]),
        Route("/gengen/v1/real", data.real, methods=["POST"]),
        Route("/gengen/v1/gan/game", data.game, methods=["POST"]),
        Route("/gengen/v1/copied", data.copied, methods=["POST"]),
        Route("/gengen/v1/prompts", data.prompts, methods=["POST"]),
        Route("/gengen/v1/preference", votes.summary, methods=["GET"]),
        Route("/gengen/v1/preference", votes.vote, methods=["POST"]),
        Route("/gengen/v1/preference/pair", votes.pair, methods=["POST"]),
        Route("/gengen/v1/preference/undo", votes.undo, methods=["POST"]),
    ]


def rules_of(config: ServeConfig, keys: list[str]) -> Rules:
    own = {f"[{config.host}]" if ":" in config.host else config.host} - {"0.0.0.0", "[::]"}
    hosts = LOCAL_NAMES | {host.lower() for host in own | set(config.allowed_hosts)}
    origins = frozenset(origin.lower() for origin in config.allow_origins)
    return Rules(frozenset(hosts), origins, tuple(keys), config.body_s, config.max_requests)


def exposition(runs: dict[str, Served]) -> str:
    """Return the figures of all runs in Prometheus' format. Accepted = in progress + ended, always."""
    page, workers = Exposition(), [({"model": name}, run.worker) for name, run in runs.items()]
    page.family(
        "gengen_requests_accepted_total", "counter", "Requests accepted.", [(m, w.accepted) for m, w in workers]
    )
    outcomes = [({**m, "outcome": outcome}, n) for m, w in workers for outcome, n in w.outcomes.items()]
    page.family("gengen_requests_ended_total", "counter", "Requests by how they ended, each once.", outcomes)
    page.family(
        "gengen_requests_in_progress", "gauge", "Without an outcome yet.", [(m, len(w.jobs)) for m, w in workers]
    )
    page.family("gengen_requests_waiting", "gauge", "Not begun yet.", [(m, len(w.unbegun)) for m, w in workers])
    page.family("gengen_rows_running", "gauge", "Texts or calls in work now.", [(m, w.running) for m, w in workers])
    texts = [(m, worker) for m, worker in workers if isinstance(worker, Worker)]
    finishes = [({**m, "reason": reason}, n) for m, w in texts for reason, n in sorted(w.finishes.items())]
    page.family("gengen_choices_total", "counter", "Choices by why they ended.", finishes)
    drawn = [
        ({**m, "kind": kind}, n)
        for m, w in texts
        for kind, n in (("prompt", w.prompt_tokens), ("drawn", w.drawn_tokens))
    ]
    page.family("gengen_tokens_total", "counter", "Tokens read and drawn.", drawn)
    guessed = [({**m, "kind": kind}, n) for m, w in texts for kind, n in w.guesses.items()]
    page.family("gengen_guesses_total", "counter", "Tokens guessed, and those of them that were right.", guessed)
    hits = [(m, w.prefix_hits) for m, w in texts]
    page.family("gengen_prefix_hits_total", "counter", "Choices whose prompt's beginning was known.", hits)
    reused = [(m, w.reused_tokens) for m, w in texts]
    page.family("gengen_prefix_tokens_total", "counter", "Tokens of prompts that were not read again.", reused)
    page.histogram(
        "gengen_first_text_seconds", "From acceptance to the first text.", [(m, w.first_text_s) for m, w in texts]
    )
    calls = [(m, worker.seconds) for m, worker in workers if isinstance(worker, CallWorker)]
    page.histogram("gengen_call_seconds", "Calls that were done: images, scores.", calls)
    return page.text()
