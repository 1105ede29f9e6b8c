"""What is left in a server after many requests: memory, descriptors, threads.

    python benchmarks/serving_soak.py RUN [requests=10000] [clients=8] [tokens=16] [threads=2]

Requests are of every kind a text run answers: completions whole and streamed, several choices, log-probabilities,
regular expressions, tokens, the next token, and malformed ones. A tenth is left by its client in the middle.
"""

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from turns import arguments

from serving import Server, server

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "saw", "one", "small", "red", "bird", "in", "her")


def body_of(number: int, tokens: int) -> tuple[str, dict[str, Any]]:
    """Return where request `number` goes, and what it asks; each is another."""
    draw = random.Random(number)
    prompt = " ".join(draw.choices(WORDS, k=draw.randint(1, 40)))
    plain: dict[str, Any] = {"prompt": prompt, "max_tokens": draw.randint(1, tokens), "seed": number}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", plain),
        ("/v1/completions", plain | {"n": 3}),
        ("/v1/completions", plain | {"logprobs": 5, "echo": True}),
        ("/v1/completions", plain | {"regex": f"[a-z]{{1,{draw.randint(1, 20)}}}"}),
        ("/v1/completions", plain | {"max_tokens": -number}),
        ("/v1/tokenize", {"prompt": prompt}),
        ("/gengen/v1/next", {"prompt": prompt, "top_k": 5}),
        (f"/v1/models/{number}", {}),
    ]
    return asked[number % len(asked)]


async def one(client: httpx.AsyncClient, model: str, number: int, tokens: int) -> str:
    """Send a request. Returns the status of its answer, or "left" where the client does not wait for its end."""
    path, body = body_of(number, tokens)
    if not number % 10:
        asked = {"model": model, "prompt": "", "max_tokens": 50 * tokens, "stream": True, "overflow": "slide"}
        async with client.stream("POST", "/v1/completions", json=asked) as answer:
            async for _ in answer.aiter_lines():
                return "left"
    if not body:
        return str((await client.get(path)).status_code)
    return str((await client.post(path, json={"model": model, **body})).status_code)


async def send(url: str, model: str, numbers: range, clients: int, tokens: int) -> Counter[str]:
    waiting, said = iter(numbers), Counter[str]()
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def work() -> None:
            for number in waiting:
                said[await one(client, model, number, tokens)] += 1

        await asyncio.gather(*(work() for _ in range(clients)))
    return said


def state(served: Server) -> dict[str, float]:
    """Return what a quiet server holds: MiB that are resident, descriptors, threads."""
    process = Path(f"/proc/{served.pid}")
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    descriptors = len(list((process / "fd").iterdir()))
    return {"MiB": int(lines["VmRSS"].split()[0]) / 1024, "descriptors": descriptors, "threads": int(lines["Threads"])}


async def quiet(url: str) -> None:
    """Wait until the server has noticed that its clients have left."""
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(200):
            lines = (await client.get("/metrics")).text.splitlines()
            if not any(float(line.split()[-1]) for line in lines if line.startswith("gengen_requests_in_progress{")):
                break
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)  # for connections to be closed


def main(run: str, requests: int, clients: int, tokens: int, threads: int) -> None:
    marks = sorted({min(mark, requests) for mark in (requests // 10, requests)})
    with server(run, threads, "exact=true", "prefix_cache=1") as served:  # full before the first mark
        print(f"after      0 requests: {shown(state(served))}", flush=True)
        done, said, found = 0, Counter[str](), []
        for mark in marks:
            said += asyncio.run(send(served.url, Path(run).name, range(done, mark), clients, tokens))
            asyncio.run(quiet(served.url))
            found.append(state(served))
            print(f"after {mark:6,} requests: {shown(found[-1])}", flush=True)
            done = mark
    print("answers: " + ", ".join(f"{status} {count:,}" for status, count in sorted(said.items())))
    print(f"from {marks[0]:,} to {marks[-1]:,} requests: {found[-1]['MiB'] - found[0]['MiB']:+.1f} MiB")


def shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:,.0f} {name}" for name, value in figures.items())


if __name__ == "__main__":
    given, rest = arguments(sys.argv[1:], requests=10_000, clients=8, tokens=16, threads=2)
    main(rest[0], **given)
