"""Whether one client that asks for much holds up another, and whether equal clients get equal shares.

    python benchmarks/serving_fairness.py RUN [rows=32] [tokens=100] [rounds=5] [threads=2]

A client is a key. First one asks for 64 texts at once, and another, a moment later, for one: its first token should
be there within twice the time it takes alone, and the time until a row is free, which is that of a text at most. Then
four clients ask for as many texts each as there are rows: Jain's index of their tokens a second, bar .95.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
from turns import arguments, spread

from serving import arrivals, complete, server

MANY, EQUAL = 64, 4  # texts of the one, clients that are equal
KEYS = [f"key-of-client-{i}" for i in range(EQUAL)]


def client(url: str, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=600, limits=limits, headers={"authorization": f"Bearer {key}"})


async def first_token(url: str, model: str, seed: int) -> float:
    """Return the seconds that the first token of a lone client takes."""
    async with client(url, KEYS[1]) as one:
        times = await arrivals(one, model, 2, seed)
        return times[1] - times[0]


async def beside_many(url: str, model: str, tokens: int, seed: int) -> tuple[float, float]:
    """Return the seconds to a first token beside a client with many requests, and that one of its texts takes."""
    async with client(url, KEYS[0]) as busy:
        many = [asyncio.create_task(arrivals(busy, model, tokens, i)) for i in range(MANY)]
        while not await rows_running(busy):
            await asyncio.sleep(0.01)
        waited = await first_token(url, model, seed)
        streams = await asyncio.gather(*many)
    return waited, median(times[-1] - times[1] for times in streams)


async def rows_running(one: httpx.AsyncClient) -> float:
    lines = (await one.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("gengen_rows_running{"))


async def shares(url: str, model: str, tokens: int, rows: int) -> list[float]:
    """Return tokens a second of each of the equal clients."""

    async def one(number: int) -> float:
        async with client(url, KEYS[number]) as own:
            begun = time.perf_counter()
            drawn = await asyncio.gather(*(complete(own, model, tokens, rows * number + i) for i in range(rows)))
            return sum(drawn) / (time.perf_counter() - begun)

    return await asyncio.gather(*(one(number) for number in range(EQUAL)))


def jain(values: list[float]) -> float:
    """Return the fairness index of Jain, Chiu and Hawe (1984): 1 where all are equal, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def main(run: str, rows: int, tokens: int, rounds: int, threads: int) -> None:
    model = Path(run).name
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.txt"
        keys.write_text("\n".join(KEYS))
        with server(run, threads, f"rows={rows}", f"api_key_file={keys}") as served:
            alone = [asyncio.run(first_token(served.url, model, seed)) for seed in range(rounds + 1)][1:]
            beside = [asyncio.run(beside_many(served.url, model, tokens, seed)) for seed in range(rounds)]
            indices = [jain(asyncio.run(shares(served.url, model, tokens, rows))) for _ in range(rounds)]
    print(f"first token alone, ms            {spread([1000 * s for s in alone])}")
    print(f"beside {MANY} requests, ms           {spread([1000 * waited for waited, _ in beside])}")
    bound = [2 * median(alone) + text for _, text in beside]
    print(f"twice that and a row's wait, ms  {spread([1000 * s for s in bound])}")
    print(f"Jain's index of {EQUAL} clients      {spread(indices, 4)}")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], rows=32, tokens=100, rounds=5, threads=2)
    main(rest[0], **asked)
