"""Bits-per-byte after the same wall-clock on storybook: two plain loops (peers.py) and our recipe.

    python benchmarks/storybook.py [seconds=300] [seeds=0,1,2] [tiny=0] [only=...] [train.py's own settings ...]

The loop tuned by hand: a nanoGPT-style model of 12.3 M parameters, vocabulary 4096, bf16 and compiled. The modern
loop: 3.5 M, vocabulary 2048, Muon, bf16 and compiled; neither's compiling counts. Ours: `train.py model=gpt
data=storybook trainer.budget=...` in a process of its own; its clock has the final evaluation and all of its
compiling in it, if it compiles. Each finds by a trial how many steps fit, and then trains that many. All are scored
here by one function, in fp32. `only`: names of contestants, or parts of them, parted by commas; settings after it
go to our recipe, those of data to all. tiny=1, to see that it runs: loops of one small layer, plain.
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from peers import Loop, modern_loop, nano_loop
from torch import Tensor
from turns import arguments

import gengen
from gengen.checkpoints.files import read_json
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.config.compose import compose_train, read_command_line
from gengen.config.data import DataConfig
from gengen.config.model import ModelConfig
from gengen.config.schema import build
from gengen.data.prepared import PrepareRequest
from gengen.data.text.prepare import PreparedText, prepare_for

TRAIN = str(Path(__file__).parents[1] / "scripts" / "train.py")


class Trained(NamedTuple):
    bits_per_byte: float
    steps: int
    tokens: int
    seconds: float
    parameters: int


def whole(stream: Any) -> np.ndarray:
    return stream.read(0, len(stream)).astype(np.uint16)  # type: ignore[no-any-return]


@torch.no_grad()
def score(model: Callable[[Tensor], Tensor], prepared: PreparedText, context: int) -> float:
    """Bits-per-byte of the validation part in windows that do not overlap: total nats / ln 2 / raw UTF-8 bytes. Every
    token is scored once, given those before it in its window; but the first of all, which nothing precedes."""
    val, nats = torch.from_numpy(whole(prepared.val).astype(np.int64)), 0.0
    for start in range(0, len(val) - 1, context):
        span = val[start : start + context + 1]
        logits = model(span[None, :-1])[0]
        nats += F.cross_entropy(logits.double(), span[1:], reduction="sum").item()
    return nats / math.log(2) / prepared.val_bytes


TINY = {"layers": 1, "width": 32, "heads": 2, "bf16": False, "compiled": False}


def loop(
    make: Callable[..., Loop],
    vocab: int,
    seconds: float,
    seed: int,
    how: dict[str, Any],
    settings: list[str],
) -> Trained:
    own = [setting for setting in settings if setting.startswith("data")]
    line = ["model=gpt", "data=storybook", f"model.vocab_size={vocab}", *own]
    config = compose_train(read_command_line(line))
    prepared = prepare_for(PrepareRequest(config.data, config.model, print))  # type: ignore[arg-type]
    made = make(seed=seed, vocab=prepared.tokenizer.vocab_size, **{"bf16": True, "compiled": True} | how)
    steps, spent = made.run_for(seconds, whole(prepared.train), seed)
    parameters = sum(p.numel() for p in made.model.parameters())
    return Trained(score(made.model.eval(), prepared, 256), steps, steps * 16 * 256, spent, parameters)


def recipe(seconds: float, seed: int, settings: list[str]) -> Trained:
    rare = [f"trainer.{what}_every=1000000000" for what in ("eval", "save", "sample")]
    with tempfile.TemporaryDirectory() as folder:
        own = [f"trainer.budget={seconds}s", f"seed={seed}", f"runs_dir={folder}", "run=ours", *rare]
        done = subprocess.run(
            [sys.executable, TRAIN, "model=gpt", "data=storybook", *settings, *own],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        run = Path(folder) / "ours"
        config, last = read_json(run / "config.json"), read_metrics(run / "metrics.csv")[-1]
        model = gengen.load(run, device="cpu").model
        prepared = prepare_for(
            PrepareRequest(build(DataConfig, config["data"]), build(ModelConfig, config["model"]), print)
        )
    context = config["model"]["context"]
    found = score(model, prepared, context)
    print(f"  our own evaluation says {last['val/bpb']:.4f} bits-per-byte, the function used here {found:.4f}")
    tokens = last["step"] * config["data"]["batch_size"] * context
    return Trained(found, last["step"], tokens, last["seconds"], sum(p.numel() for p in model.parameters()))


def main(seconds: float, seeds: str, tiny: int, only: str, settings: list[str]) -> None:
    how = TINY if tiny else {}
    contestants: dict[str, Callable[[int], Trained]] = {
        "loop tuned by hand": lambda seed: loop(nano_loop, 4096, seconds, seed, how, settings),
        "modern loop": lambda seed: loop(modern_loop, 2048, seconds, seed, how, settings),
        "gengen's recipe": lambda seed: recipe(seconds, seed, settings),
    }
    wanted = {name: train for name, train in contestants.items() if any(part in name for part in only.split(","))}
    found: dict[str, list[Trained]] = {name: [] for name in wanted}
    for seed in map(int, seeds.split(",")):
        for name, train in wanted.items():
            found[name].append(one := train(seed))
            print(
                f"{name}, seed {seed}: {one.bits_per_byte:.4f} bits-per-byte, "
                f"{one.steps} steps in {one.seconds:.0f} s",
                flush=True,
            )
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}; figures are those of seeds {seeds}")
    print(f"{'':22}{'M':>6}  {'steps':17}{'M tokens':20}{'seconds':18}{'bits-per-byte':24} mean")
    for name, all_of_it in found.items():
        steps = " ".join(f"{one.steps}" for one in all_of_it)
        tokens = " ".join(f"{one.tokens / 1e6:.2f}" for one in all_of_it)
        spent = " ".join(f"{one.seconds:.0f}" for one in all_of_it)
        scores = " ".join(f"{one.bits_per_byte:.4f}" for one in all_of_it)
        average = mean(one.bits_per_byte for one in all_of_it)
        print(
            f"{name:22}{all_of_it[0].parameters / 1e6:6.2f}  {steps:17}{tokens:20}{spent:18}{scores:24} {average:.4f}"
        )


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], seconds=300.0, seeds="0,1,2", tiny=0, only="")
    main(**asked, settings=rest)
