"""How long /health takes while a server has its hands full.

    python benchmarks/serving_health.py RUN IMAGE_RUN [streams=32] [tokens=200] [threads=2]

So many clients stream texts of RUN, one sends schemas that were never compiled before, one asks IMAGE_RUN for
pictures, one after the other, until all streams have ended. The questions come from a process of their own, whose
clock does not wait until 32 streams were read. Bar: 99 % of the answers within 50 ms.
"""

import asyncio
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
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


def questions(url: str, ended: Event, waited: Connection) -> None:
    """Ask again and again until `ended`, then send the seconds of each answer."""
    found: list[float] = []
    waited.send(found)  # it has begun
    with httpx.Client(base_url=url, timeout=600) as client:
        while not ended.is_set():
            begun = time.perf_counter()
            client.get("/health").raise_for_status()
            found.append(time.perf_counter() - begun)
            time.sleep(EVERY_S)
    waited.send(found)


async def load(url: str, text: str, images: str, streams: int, tokens: int) -> None:
    """Give the server all it has to do, until the streams have ended."""
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        tasks = [asyncio.create_task(work) for work in (schemas(client, text), pictures(client, images))]
        await asyncio.gather(*(arrivals(client, text, tokens, seed) for seed in range(streams)))
        for task in tasks:
            if task.done():
                task.result()  # one that failed
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def measure(url: str, *asked: Any) -> list[float]:
    """Return the seconds of each answer of /health while everything goes on."""
    new = multiprocessing.get_context("spawn")
    ended, (here, there) = new.Event(), new.Pipe()
    process = new.Process(target=questions, args=(url, ended, there))
    process.start()
    here.recv()
    asyncio.run(load(url, *asked))
    ended.set()
    waited: list[float] = here.recv()
    process.join()
    return waited


def main(run: str, images: str, streams: int, tokens: int, threads: int) -> None:
    with server(run, threads, images, f"rows={streams + 1}") as served:
        waited = measure(served.url, Path(run).name, Path(images).name, streams, tokens)
    shares = {"median": 0.5, "95 %": 0.95, "99 %": 0.99, "longest": 1.0}
    figures = ", ".join(f"{name} {percentile(waited, share):.1f} ms" for name, share in shares.items())
    print(f"{len(waited)} answers of /health at {streams} streams: {figures}")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], streams=32, tokens=200, threads=2)
    main(*rest[:2], **asked)
