"""What a server still holds after thousands of requests: memory, files, threads, tasks.

    python benchmarks/serving_soak.py RUN... [requests=10000] [clients=16] [threads=1]

The server is a process of its own with one route more, which counts. The requests are short and mixed: completions
whole and streamed, several choices, schemas, tokens, what is malformed; conversations and images where a RUN knows
them. One in ten is left before its answer. `prefix_cache` is 4 MiB, so that it is full early. Bars: from a tenth of
the requests to all of them memory grows by 10 MiB at most; descriptors and tasks are back where they began.
"""

import asyncio
import ctypes
import gc
import json
import multiprocessing
import os
import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass, fields
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, Router
from turns import arguments

from gengen.config.serve import ServeConfig
from gengen.serving.app import Application
from gengen.serving.guard import Guard
from gengen.serving.load import load_run
from gengen.serving.runs import by_name
from gengen.serving.server import serve

LEFT_RATIO = 0.1
SCHEMAS = 100  # different ones: more than a server keeps compiled
Asked = tuple[str, dict[str, Any] | bytes]  # a path and what is sent there


@dataclass(frozen=True)
class Census:
    """What a process holds. memory: resident, MiB."""

    memory: float
    descriptors: int
    threads: int
    tasks: int

    @classmethod
    def here(cls) -> "Census":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is no leak
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))
        return cls(
            pages * os.sysconf("SC_PAGESIZE") / 2**20, descriptors, threading.active_count(), len(asyncio.all_tasks())
        )


async def census(http: Request) -> JSONResponse:
    return JSONResponse(vars(Census.here()))


def serve_with_census(runs: list[str], address: Connection) -> None:
    """Serve until a signal; the address is sent once it answers."""
    config = ServeConfig(runs=runs, port=0, device="cpu", queue=256, prefix_cache=4)
    loaded = by_name([load_run(run, config, lambda line: None) for run in runs])
    application = Application(loaded, config, [])
    routes = [*application.routes, Route("/census", census)]
    application.asgi = Guard(Router(routes), application.asgi.rules)
    serve(application, config, lambda line: None, address.send)


class Mix:
    """Draws requests for the models that are served."""

    def __init__(self, models: list[dict[str, Any]]):
        self.draw = random.Random(0)
        about = {model["id"]: model["gengen"] for model in models}
        self.texts = [name for name, of in about.items() if "vocabulary" in of]
        self.chats = [name for name in self.texts if about[name]["chat"]]
        self.pictures = [name for name, of in about.items() if of.get("edits")]
        self.kinds = [
            self.completion,
            self.streamed,
            self.choices,
            self.schema,
            self.tokens,
            self.malformed,
            self.long,
        ]
        self.kinds += [self.chat] * bool(self.chats) + [self.image] * bool(self.pictures)

    def next(self) -> tuple[str, Asked]:
        kind = self.draw.choice(self.kinds)
        return kind.__name__, kind()

    def text(self, **settings: Any) -> dict[str, Any]:
        words = ["Once", "the fox", "a bear", "said", "went", "home"]
        prompt = " ".join(self.draw.choices(words, k=self.draw.randrange(1, 12)))
        seed = self.draw.randrange(2**40)
        return {"model": self.draw.choice(self.texts), "prompt": prompt, "max_tokens": 6, "seed": seed, **settings}

    def completion(self) -> Asked:
        return "/v1/completions", self.text(logprobs=self.draw.randrange(5), stop=["\n\n"])

    def streamed(self) -> Asked:
        return "/v1/completions", self.text(stream=True)

    def choices(self) -> Asked:
        return "/v1/completions", self.text(n=3, presence_penalty=0.5, top_p=0.9)

    def long(self) -> Asked:
        """A prompt whose beginning is cached, one of two hundred."""
        return "/v1/completions", self.text(prompt=f"{self.draw.randrange(200)} " + "the old bear went home " * 7)

    def schema(self) -> Asked:
        name = f"key{self.draw.randrange(SCHEMAS)}"
        schema = {"type": "object", "properties": {name: {"enum": [1, 2]}}, "required": [name]}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        return "/v1/completions", self.text(response_format=form, max_tokens=12)

    def regex(self) -> Asked:
        return "/v1/completions", self.text(regex=f"[a-z]{{1,{self.draw.randrange(1, SCHEMAS)}}}")

    def tokens(self) -> Asked:
        return "/v1/tokenize", {k: v for k, v in self.text().items() if k in ("model", "prompt")}

    def malformed(self) -> Asked:
        wrong = [
            b"{", b'{"model": NaN}', b"[" * 100, json.dumps(self.text(temperature=-1)).encode(), b"\xff",
            json.dumps(self.text(max_tokens=10**9)).encode(), json.dumps(self.text(modle="x")).encode(),
            json.dumps(self.text(model="none")).encode(), json.dumps(self.text(prompt="x " * 9999)).encode(),
        ]  # fmt: skip
        return "/v1/completions", self.draw.choice(wrong)

    def chat(self) -> Asked:
        messages = [{"role": "user", "content": self.text()["prompt"]}]
        asked = {"model": self.draw.choice(self.chats), "messages": messages, "max_tokens": 6}
        return "/v1/chat/completions", asked | {"stream": self.draw.random() < 0.5}

    def image(self) -> Asked:
        name = self.draw.choice(self.pictures)
        return "/v1/images/generations", {"model": name, "prompt": "", "size": "auto", "steps": 1}


async def ask(client: httpx.AsyncClient, path: str, sent: dict[str, Any] | bytes, patience_s: float | None) -> str:
    """Send a request. Returns its status, or that its client left."""
    body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    try:
        async with asyncio.timeout(patience_s):
            answer = await client.post(path, content=body, headers={"content-type": "application/json"})
            return str(answer.status_code)
    except TimeoutError:
        return "left"


async def soak(url: str, requests: int, clients: int) -> None:
    """Send the requests, and show what the server holds on the way."""
    counted: Counter[str] = Counter()
    mix = Mix(httpx.get(url + "/v1/models").json()["data"])
    marks = sorted({max(1, round(share * requests)) for share in (0.01, 0.1, 0.25, 0.5, 0.75, 1.0)})
    found = {0: await rest(url)}
    show("at the start", found[0])
    for before, mark in pairwise([0, *marks]):
        await send(url, mix, mark - before, clients, counted)
        found[mark] = await rest(url)
        show(f"after {mark:,}", found[mark])
    begun, tenth, end = found[0], found[max(1, round(0.1 * requests))], found[requests]
    print(f"memory since a tenth of them: {end.memory - tenth.memory:+.1f} MiB (bar 10)")
    print(f"since the start: descriptors {end.descriptors - begun.descriptors:+}, tasks {end.tasks - begun.tasks:+}")
    print("answered: " + ", ".join(f"{what} {count}" for what, count in sorted(counted.items())))
    if wrong := {what for what in counted if what.rpartition(" ")[2].startswith("5")}:
        raise SystemExit(f"the server failed: {wrong}")


async def send(url: str, mix: Mix, count: int, clients: int, counted: Counter[str]) -> None:
    """Send so many requests, and close all connections. counted: takes each kind and status."""
    waiting = iter(range(count))
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one() -> None:
            for _ in waiting:
                name, (path, sent) = mix.next()
                leaves = mix.draw.random() < LEFT_RATIO
                status = await ask(client, path, sent, mix.draw.random() * 0.2 if leaves else None)
                counted[f"{name} {status}"] += 1

        await asyncio.gather(*(one() for _ in range(clients)))


async def rest(url: str) -> Census:
    """Wait until the server does nothing, and ask it what it holds, over a connection that is closed then."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while any(busy(line) for line in (await client.get("/metrics")).text.splitlines()):
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        return Census(**(await client.get("/census")).json())


def busy(line: str) -> bool:
    return line.startswith(("gengen_requests_in_progress", "gengen_rows_running")) and not line.endswith(" 0")


def show(when: str, census: Census) -> None:
    print(f"{when:>16}  " + "  ".join(f"{f.name} {getattr(census, f.name):,.5g}" for f in fields(census)), flush=True)


def main(runs: list[str], requests: int, clients: int, threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_with_census, args=(runs, there))
    process.start()
    try:
        asyncio.run(soak(here.recv(), requests, clients))
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    asked, runs = arguments(sys.argv[1:], requests=10_000, clients=16, threads=1)
    main(runs, **asked)
