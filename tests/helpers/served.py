"""Runs to be served, and servers of them: in this process, or in one of its own."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gengen.checkpoints import store
from gengen.checkpoints.layout import Checkpoint, unique_state
from gengen.config.model import AutoencoderConfig, GANConfig, GPTConfig, ModelConfig, UNetConfig
from gengen.config.schema import plain
from gengen.config.serve import ServeConfig
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.watermark import Watermark
from gengen.models.autoencoder import Autoencoder
from gengen.models.gan import GAN
from gengen.models.gpt import GPT
from gengen.models.reward import RewardModel
from gengen.models.unet import UNet
from gengen.serving.app import Application
from gengen.serving.load import load_run
from gengen.serving.own_data import OpenData, no_data
from gengen.serving.preferences import Preferences
from gengen.serving.runs import by_name
from helpers.processes import start, waited
from helpers.trained_on import TrainedOn

M = TypeVar("M", bound=nn.Module)
Post = Callable[..., Awaitable[httpx.Response]]
Test = Callable[[Post, Application], Awaitable[None]]
"""A test of an application that runs, and of what posts to it."""
IMAGE_RUNS = ("unet", "gan", "vae", "reward", "text", "story", "chat")
SHAPE = {"size": "nano", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ff": 48, "context": 256}
ENDLESS = {"logit_bias": {"0": -100}, "overflow": "slide", "max_tokens": 4000}
"""Of a request that goes on until it is ended."""


def write_run(folder: Path, tokenizer: TextTokenizer, data: TrainedOn | None = None) -> Path:
    """A run whose next token depends much on all before it: random weights, none of them zero."""
    config = GPTConfig(name="gpt", **SHAPE, vocab_size=tokenizer.vocab_size)
    model, draw = GPT(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            scale = 0.2 if p.dim() < 2 else 1.5 * p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=draw) * scale + (p.dim() < 2))
    return save_run(folder, config, model, tokenizer=tokenizer.to_json(), data=data)


def save_run(
    folder: Path,
    config: ModelConfig,
    model: nn.Module,
    stage: str = "pretrain",
    tokenizer: str = "",
    data: TrainedOn | None = None,
) -> Path:
    """A run of a model as it is."""
    tree = {"model": plain(config), "stage": {"name": stage}} | (data.config if data else {})
    facts = {"data": data.fingerprint} if data else {}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tree))
    store.save(
        folder / "checkpoints", Checkpoint(7, tree, unique_state(model), tokenizer=tokenizer or None, facts=facts)
    )
    return folder


def awake(model: M) -> M:
    """A network of random weights, none of them zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


IMAGES: dict[str, Any] = {"resolution": 8, "channels": 1, "classes": ["cat", "dog", "fox"], "widths": [32], "patch": 2}


def write_image_runs(folder: Path, data: TrainedOn | None = None) -> None:
    """The runs `unet` and `gan`, of three classes and 8 x 8 pixels, `vae`, without classes, and `reward`. data: what
    `gan` names as its own."""
    torch.manual_seed(0)
    unet = UNetConfig(name="unet", **IMAGES, blocks=1, attention=[0], sigma_data=0.5).resolved()
    save_run(folder / "unet", unet, awake(UNet(unet)))
    gan = GANConfig(name="gan", **IMAGES | {"widths": [8, 16]}, latent_size=8, blocks=1)
    save_run(folder / "gan", gan, awake(GAN(gan)), data=data)
    shape = IMAGES | {"classes": [], "widths": [8, 16]}
    vae = AutoencoderConfig(name="vae", **shape, blocks=1, latent_channels=2)
    save_run(folder / "vae", vae, awake(Autoencoder(vae)))
    write_reward(folder / "reward")


def write_reward(folder: Path) -> None:
    """A run of stage=reward that reads the tokens of `chat`."""
    tokenizer = TextTokenizer.byte().with_chat()
    config = GPTConfig(name="gpt", **SHAPE, vocab_size=tokenizer.vocab_size)
    reward = RewardModel(config)
    reward.gain.fill_(2.0)
    reward.bias.fill_(0.5)
    save_run(folder, config, reward, "reward", tokenizer.to_json())


def served_here(
    runs: Path,
    keys: tuple[str, ...] = (),
    names: Sequence[str] = ("story", "chat"),
    watermark: Watermark | None = None,
    preferences_file: Preferences | None = None,
    open_data: OpenData = no_data,
    **settings: Any,
) -> Application:
    """The application over some runs, in this process; its engines are still to be started."""
    config = ServeConfig(runs=[str(runs / name) for name in names], device="cpu", **settings)
    config.check()
    shared = len(keys) < 2
    loaded = by_name([load_run(run, config, lambda line: None, shared, watermark=watermark) for run in config.runs])
    return Application(loaded, config, list(keys), preferences_file, open_data)


def in_process(application: Application) -> httpx.AsyncClient:
    """A client of the application itself. It buffers: what streams or disconnects is tested on a real process."""
    transport = httpx.ASGITransport(application.asgi)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def during(application: Application, test: Test) -> None:
    """Run a test with a function that posts, while the engines of an application run."""

    async def inside() -> None:
        application.start()
        try:
            async with in_process(application) as client, asyncio.timeout(60):
                await test(lambda path, **tree: client.post(path, json=tree), application)
        finally:
            application.stop()

    asyncio.run(inside())


def pixels(text: str) -> Tensor:
    """A PNG in base64 -> uint8 (C, H, W)."""
    array = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each of which says its name twice."""
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.text
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def both(runs: Path, *settings: str) -> list[str]:
    """The arguments that serve both runs."""
    return [str(runs / "story"), str(runs / "chat"), *settings]


@dataclass
class Process:
    """A server in a process of its own."""

    pid: int
    url: str
    said: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20)

    def post(self, path: str, **tree: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", json=tree, timeout=60)

    def figures(self) -> dict[str, float]:
        """The metrics: the whole name with its labels -> value."""
        lines = [line for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def figure(self, name: str, model: str = "story") -> float:
        """A metric of one run, over all its other labels."""
        return sum(v for k, v in self.figures().items() if k.startswith(f'{name}{{model="{model}"'))

    def outcomes(self, model: str = "story") -> dict[str, int]:
        found = re.compile(rf'gengen_requests_ended_total{{model="{model}",outcome="(\w+)"}}')
        return {match[1]: int(v) for k, v in self.figures().items() if (match := found.fullmatch(k))}

    def until(self, holds: Callable[[], bool], seconds: float = 10) -> None:
        """Wait for something to hold."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"not within {seconds} s: {self.figures()}"
            time.sleep(0.02)

    def ended(self) -> int:
        """Wait for its end; its exit code."""
        code = waited(self.pid, 30)
        assert code is not None, self.said.read_text()
        return code

    def quiet(self) -> bool:
        return not any(self.figure(f"gengen_{name}") for name in ("rows_running", "requests_in_progress"))


@contextmanager
def process(
    settings: list[str], said: Path, before: Callable[[], object] = lambda: None, command: str = "serve"
) -> Iterator[Process]:
    """A server on a free port, killed in the end; `before` may change things in its process."""
    argv = [command, *settings, "port=0", "device=cpu"]
    pid = start(argv, said, before=before)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r" at (http\S+)/v1", said.read_text() if said.exists() else "")):
            assert time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0), said.read_text()
            time.sleep(0.02)
        yield Process(pid, found[1], said)
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            waited(pid, 10)
        except (ProcessLookupError, ChildProcessError):
            pass


@contextmanager
def new_process(settings: list[str], said: Path) -> Iterator[Process]:
    """The same in a process of its own from the start, which takes seconds more: one that is forked from a process in
    which a grammar was compiled would wait for threads of llguidance's that it does not have."""
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "scripts/serve.py"), *settings, "port=0", "device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    with said.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as server:
        try:
            while not (found := re.search(r"serving at (\S+)/v1", said.read_text())):
                assert server.poll() is None, said.read_text()
                time.sleep(0.05)
            yield Process(server.pid, found[1], said)
        finally:
            server.kill()


def request(path: str, tree: dict[str, Any], length: int | None = None) -> bytes:
    """The bytes of a POST, which may claim another length than it has."""
    body = json.dumps(tree).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@contextmanager
def connection(server: Process, sent: bytes = b"", buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(sent)
        yield sock
