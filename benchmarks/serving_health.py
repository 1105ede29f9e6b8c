"""How long /health takes while a server has its hands full.

    python benchmarks/serving_health.py RUN IMAGE_RUN [streams=32] [tokens=200] [threads=2]

So many clients stream texts of RUN, one sends schemas that were never compiled before, one asks IMAGE_RUN for
pictures, one after the other, until all streams have ended. Bar: 99 % of the answers within 50 ms.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from turns import arguments

from serving import arrivals, percentile, server

EVERY_S = 0.02  # between two questions
CHOICES = 300  # of a schema, which takes a while to compile


def schema(number: int) -> dict[str, Any]:
    """One that differs from those before it."""
    answers = [{"type": "object", "properties": {f"k{number}-{i}": {"type": "integer"}}} for i in range(CHOICES)]
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": {"anyOf": answers}}}


async def schemas(client: httpx.AsyncClient, model: str) -> None:
    for number in range(10**6):
        asked = {"model": model, "prompt": "", "max_tokens": 1, "response_format": schema(number)}
        (await client.post("/v1/completions", json=asked)).raise_for_status()


async def pictures(client: httpx.AsyncClient, model: str) -> None:
    while True:
        asked = {"model": model, "prompt": "", "n": 4, "size": "auto"}
        (await client.post("/v1/images/generations", json=asked)).raise_for_status()


async def questions(client: httpx.AsyncClient, waited: list[float]) -> None:
    """Ask again and again. waited: takes the seconds of each answer."""
    while True:
        begun = time.perf_counter()
        (await client.get("/health")).raise_for_status()
        waited.append(time.perf_counter() - begun)
        await asyncio.sleep(EVERY_S)


async def measure(url: str, text: str, images: str, streams: int, tokens: int) -> list[float]:
    """Return the seconds of each answer of /health while everything goes on."""
    waited: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        beside = [schemas(client, text), pictures(client, images), questions(client, waited)]
        tasks = [asyncio.create_task(work) for work in beside]
        await asyncio.gather(*(arrivals(client, text, tokens, seed) for seed in range(streams)))
        for task in tasks:
            if task.done():
                task.result()  # one that failed
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return waited


def main(run: str, images: str, streams: int, tokens: int, threads: int) -> None:
    with server(run, threads, images, f"rows={streams + 1}") as served:
        waited = asyncio.run(measure(served.url, Path(run).name, Path(images).name, streams, tokens))
    shares = {"median": 0.5, "95 %": 0.95, "99 %": 0.99, "longest": 1.0}
    figures = ", ".join(f"{name} {percentile(waited, share):.1f} ms" for name, share in shares.items())
    print(f"{len(waited)} answers of /health at {streams} streams: {figures}")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], streams=32, tokens=200, threads=2)
    main(*rest[:2], **asked)
