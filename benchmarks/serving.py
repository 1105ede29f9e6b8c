"""What a server gives its clients: tokens a second by how many ask at once, and how long each waits.

    python benchmarks/serving.py RUN [clients=1,8,16,32] [tokens=200] [rounds=3] [threads=2] [modes=fast,exact]

RUN is served by a process of its own, in fp32, once as `exact=false` and once as `exact=true`. Throughput: each client
asks for one completion after another, none ends early; the ratio is to one client of the fast server, within a round.
Waiting, at 8 clients that stream: to the first token, between tokens, and between tokens while prompts as long as the
context arrive.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from turns import arguments

SERVE = Path(__file__).parent.parent / "scripts" / "serve.py"
PROMPT = "Once upon a time there was"
NEVER_ENDS: dict[str, Any] = {"logit_bias": {"0": -100}, "overflow": "slide", "temperature": 1.0}


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    url: str
    pid: int


@contextmanager
def server(run: str, threads: int, *settings: str) -> Iterator[Server]:
    """Serve a run in another process, whose log is not kept. settings: more runs, then key=value."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(SERVE), run, *settings, "port=0", "queue=256"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://[\w.]+:\d+", line):
                yield Server(found[0], process.pid)
                return
        raise SystemExit("the server did not begin")
    finally:
        process.terminate()
        process.wait()


async def complete(
    client: httpx.AsyncClient, model: str, tokens: int, seed: int, endless: Mapping[str, Any] = NEVER_ENDS
) -> int:
    """Ask for one completion. Returns its tokens. endless: by which a server lets no text end early."""
    asked = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "seed": seed, **endless}
    answer = await client.post("/v1/completions", json=asked)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


async def throughput(
    url: str, model: str, clients: int, tokens: int, endless: Mapping[str, Any] = NEVER_ENDS
) -> float:
    """Return tokens a second of so many clients together, each with two completions."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(number: int) -> int:
            return sum([await complete(client, model, tokens, 2 * number + i, endless) for i in range(2)])

        start = time.perf_counter()
        drawn = await asyncio.gather(*(one(number) for number in range(clients)))
        return sum(drawn) / (time.perf_counter() - start)


async def arrivals(client: httpx.AsyncClient, model: str, tokens: int, seed: int, prompt: str = PROMPT) -> list[float]:
    """Stream a completion. Returns when it was asked for, and when each piece came."""
    asked: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": tokens, "seed": seed, "stream": True}
    times = [time.perf_counter()]
    async with client.stream("POST", "/v1/completions", json=asked | NEVER_ENDS) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["text"]:
                times.append(time.perf_counter())
    return times


async def waiting(url: str, model: str, tokens: int, long_prompt: str = "") -> tuple[list[float], list[float]]:
    """Return seconds to the first piece, and between pieces, of 8 clients; with a long prompt, while four others with
    that arrive one after the other."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def long() -> None:
            for seed in range(4 if long_prompt else 0):
                await arrivals(client, model, 1, seed, long_prompt)

        asked = [arrivals(client, model, tokens, seed) for seed in range(8)]
        *streams, _ = await asyncio.gather(*asked, long())
    first = [times[1] - times[0] for times in streams]
    return first, [b - a for times in streams for a, b in pairwise(times[1:])]


def percentile(values: list[float], share: float) -> float:
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def long_text(url: str, model: str, context: int) -> str:
    """A prompt that nearly fills the context."""
    words = "the quick brown fox jumps over a lazy dog and "
    count = len(httpx.post(url + "/v1/tokenize", json={"model": model, "prompt": words * 20}).json()["tokens"])
    return words * max(1, int(0.9 * context / (count / 20)))


def show_waiting(url: str, model: str, tokens: int) -> None:
    """Print how long 8 clients wait."""
    context = int(httpx.get(f"{url}/v1/models/{model}").json()["gengen"]["context"])
    first, between = asyncio.run(waiting(url, model, tokens))
    p50, p95 = (percentile(between, share) for share in (0.5, 0.95))
    print(f"  first token: median {percentile(first, 0.5):.0f} ms, 95 % {percentile(first, 0.95):.0f} ms")
    print(f"  between tokens: median {p50:.1f} ms, 95 % {p95:.1f} ms, {p95 / p50:.1f} times the median")
    _, held = asyncio.run(waiting(url, model, tokens, long_text(url, model, context)))
    p99 = percentile(held, 0.99)
    arriving = f"while prompts of {int(0.9 * context)} tokens arrive"
    print(f"  {arriving}: 99 % {p99:.1f} ms, {p99 / p50:.1f} times the median")


def main(run: str, clients: str, tokens: int, rounds: int, threads: int, modes: str) -> None:
    model, counts = Path(run).name, [int(count) for count in clients.split(",")]
    alone = 0.0
    for mode in modes.split(","):
        with server(run, threads, f"exact={str(mode == 'exact').lower()}", f"rows={max(counts)}") as served:
            url = served.url
            asyncio.run(throughput(url, model, max(counts), 20))
            print(f"{mode}, {threads} threads")
            for count in counts:
                figures = [asyncio.run(throughput(url, model, count, tokens)) for _ in range(rounds)]
                alone = alone or median(figures)
                print(f"  {count:3} clients {median(figures):8,.0f} tokens/s  {median(figures) / alone:.2f}x")
            show_waiting(url, model, tokens)


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], clients="1,8,16,32", tokens=200, rounds=3, threads=2, modes="fast,exact")
    main(rest[0], **asked)
