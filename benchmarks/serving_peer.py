"""Tokens a second of a server of ours and of `transformers serve`, with the same weights in fp32 on CPU.

    python benchmarks/serving_peer.py RUN [python=PATH] [clients=8,32] [tokens=100] [rounds=3] [threads=2]

python: an interpreter that has `transformers[serving]`, which need not be this one. RUN is exported for it; it serves
with continuous batching, its cache as large as the longest texts of all clients need. Each client asks for two
completions, one after the other, at temperature 1, and none ends early. The two take turns.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from turns import arguments, ratio, spread, take_turns

from gengen.cli import main as gengen
from serving import server, throughput

BEGIN = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
BLOCK = 16  # tokens of a block of its cache
PATIENCE_S = 300.0  # to load a model


@contextmanager
def transformers_serve(python: str, folder: Path, threads: int, clients: int, context: int) -> Iterator[str]:
    """Serve an exported model by transformers; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = ["--cb-block-size", f"{BLOCK}", "--cb-num-blocks", f"{clients * context // BLOCK}"]
    command = [python, "-c", BEGIN, "serve", str(folder), "--continuous-batching", "--device", "cpu", *cache]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with (folder / "said.txt").open("w+") as said:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=said, stderr=said, env=environment)
        try:
            wait_for(f"http://127.0.0.1:{port}", process, folder / "said.txt")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]", said: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"transformers serve did not begin:\n{said.read_text()[-2000:]}")


def main(run: str, python: str, clients: str, tokens: int, rounds: int, threads: int) -> None:
    counts, model = [int(count) for count in clients.split(",")], Path(run).name
    endless = {"generation_config": json.dumps({"do_sample": True, "max_new_tokens": tokens})}  # without an end token
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "exported"
        if gengen(["export", run, "to=hf", f"out={folder}"]):
            raise SystemExit(1)
        context = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
        with (
            server(run, threads, f"rows={max(counts)}") as ours,
            transformers_serve(python, folder, threads, max(counts), context) as theirs,
        ):
            for count in counts:
                contestants = {
                    "gengen": lambda n=count: asyncio.run(throughput(ours.url, model, n, tokens)),
                    "transformers": lambda n=count: asyncio.run(throughput(theirs, str(folder), n, tokens, endless)),
                }
                for contestant in contestants.values():  # a first answer takes longer
                    contestant()
                figures = take_turns(contestants, rounds)
                print(f"{count} clients, tokens a second")
                for name, values in figures.items():
                    print(f"  {name:14} {spread(values)}")
                print(ratio(figures, "gengen", "transformers"), flush=True)


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], python=sys.executable, clients="8,32", tokens=100, rounds=3, threads=2)
    main(rest[0], **asked)
