"""Whether a text depends on what a server does beside it: requests from many clients at once, whose answers are
compared with the library's, byte for byte.

    python benchmarks/serving_exact.py RUN [requests=1000] [tokens=200] [clients=1,8,32] [guess=off,lookup] [threads=2]
        [draft=OTHER_RUN]

Requests come in another order for each number of clients, every other one streamed. Their prompts begin alike, so that
a part of them is found in the server's memory, and every tenth request has a neighbour whose client leaves in the
middle of its text. guess=draft: next tokens are guessed by `draft`, a smaller run with the same tokenizer.
"""

import asyncio
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
from turns import arguments

from gengen.config.commands import DecodingSettings
from gengen.generation.load import load_as
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.row import Request
from gengen.generation.text.scheduler import Scheduler
from serving import server

BEGINNINGS = (
    "Once upon a time there was a little girl who lived in a small house near the forest. One day she went out to "
    "play, and in the garden she saw a ",
    "Tom and his dog liked to run in the park when the sun was shining. They ran until Tom was tired, then he ate ",
)
WORDS = ("cat", "big red ball", "bird with a blue hat", "tree", "frog that could talk", "boat", "cake", "cloud")


@dataclass(frozen=True)
class Case:
    prompt: list[int]
    seed: int


def cases(generator: TextGenerator, count: int) -> list[Case]:
    """Requests whose prompts share their beginnings, in lengths that differ, half of the context at most."""
    draw, most = random.Random(0), generator.context // 2
    texts = [draw.choice(BEGINNINGS) + " and a ".join(draw.sample(WORDS, draw.randint(0, 4))) for _ in range(count)]
    tokenizer = generator.tokenizer
    return [Case([tokenizer.start, *tokenizer.encode(text)][:most], seed) for seed, text in enumerate(texts)]


def expected(generator: TextGenerator, asked: list[Case], tokens: int, alone: int = 20) -> list[str]:
    """Return the library's text of each. `alone` of them are drawn one by one, too, which must make no difference."""
    scheduler = Scheduler(generator.engine, generator.tokenizer, generator.context)
    made = [scheduler.admit(Request(case.prompt, DecodingSettings(**settings(case, tokens)))) for case in asked]
    while not scheduler.idle:
        scheduler.step()
    texts = [text.text for text in made]
    for i in range(0, len(asked), max(1, len(asked) // alone)):
        sample = generator.generate([asked[i].prompt], **settings(asked[i], tokens))[0]
        assert sample.text == texts[i], f"the library itself differs at {asked[i]}"
    return texts


def settings(case: Case, tokens: int) -> dict[str, object]:
    return {"seed": case.seed, "max_tokens": tokens, "temperature": 1.0, "overflow": "end"}


async def answers(url: str, model: str, asked: list[Case], tokens: int, clients: int) -> list[str]:
    """Ask for all, by so many clients, in an order of its own. Returns the texts in the order of `asked`."""
    order, texts = list(range(len(asked))), [""] * len(asked)
    random.Random(clients).shuffle(order)
    limits = httpx.Limits(max_connections=2 * clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def work() -> None:
            while order:
                i = order.pop()
                body = {"model": model, "prompt": asked[i].prompt, **settings(asked[i], tokens)}
                if i % 10 == 0:
                    await asyncio.gather(cut(client, body | {"seed": i + 1}, tokens // 4), one(i, body))
                else:
                    await one(i, body)

        async def one(i: int, body: dict[str, object]) -> None:
            texts[i] = await (streamed if i % 2 else whole)(client, body)

        await asyncio.gather(*(work() for _ in range(clients)))
    return texts


async def whole(client: httpx.AsyncClient, body: dict[str, object]) -> str:
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


async def streamed(client: httpx.AsyncClient, body: dict[str, object]) -> str:
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        lines = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
    return "".join(json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines)


async def cut(client: httpx.AsyncClient, body: dict[str, object], pieces: int) -> None:
    """Stream an answer, and leave after some pieces of it."""
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            pieces -= line.startswith("data: ")
            if pieces <= 0:
                return


def different(found: str, wanted: str) -> int:
    """Return how many bytes of two texts differ, and by how many one is longer."""
    a, b = found.encode(), wanted.encode()
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))


def reused(url: str) -> str:
    """Return what the server says of prompts that it need not read, in tokens."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return "  ".join(line for line in lines if line.startswith("gengen_tokens_total"))


def main(run: str, requests: int, tokens: int, clients: str, guess: str, threads: int, draft: str) -> None:
    generator = load_as(TextGenerator, run, device="cpu")
    asked = cases(generator, requests)
    wanted = expected(generator, asked, tokens)
    print(f"{requests} requests of {tokens} tokens at temperature 1, {len(set(wanted))} different texts", flush=True)
    counts = [int(count) for count in clients.split(",")]
    for way in guess.split(","):
        guessing = {"off": [], "lookup": ["guess=lookup"], "draft": [f"draft={draft}"]}[way]
        with server(run, threads, "exact=true", f"rows={max(counts)}", *guessing) as served:
            for count in counts:
                found = asyncio.run(answers(served.url, Path(run).name, asked, tokens, count))
                worse = [different(a, b) for a, b in zip(found, wanted, strict=True)]
                texts, total = sum(map(bool, worse)), sum(len(text.encode()) for text in wanted)
                print(
                    f"guess {way:6} {count:3} clients  {sum(worse)} of {total:,} bytes differ, in {texts} texts",
                    flush=True,
                )
            print(f"  {reused(served.url)}", flush=True)


if __name__ == "__main__":
    given, rest = arguments(
        sys.argv[1:], requests=1000, tokens=200, clients="1,8,32", guess="off,lookup", threads=2, draft=""
    )
    main(rest[0], **given)
