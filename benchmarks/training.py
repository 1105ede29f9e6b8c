"""Training a 12 M GPT beside the loop as people write it: tokens a second, shares of the matmul peak, seconds of
compiling.

    python benchmarks/training.py [rounds=5] [steps=6] [threads=2] [layers=6] [profile=0] [only=...]
        [gengen's own settings ...]

Layers of 384, context 256, batch 16, vocabulary 4096. The peer is a nanoGPT-style loop (peers.py). Ours runs
through the whole of our machinery (trainer, data module, clipping, finite check), compiled as `auto` does: with our
defaults at that size, which are Muon and dropout, and with the peer's own architecture and AdamW. All read the same
random tokens from a memory map and take turns. only: names of contestants, or parts of them, parted by commas.
profile=1: where the time of our step goes, in place of the contest.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peers import nano_loop
from turns import arguments, measured_peaks, ratio, spread, take_turns

from gengen.config.compose import compose_train, read_command_line
from gengen.config.data import TextConfig
from gengen.config.train import TrainConfig
from gengen.data.text.shards import TokenStream, open_shard, write_shards
from gengen.hardware import pick_precision
from gengen.models.flops import gpt_flops_per_token
from gengen.training.budget import StepTimes
from gengen.training.build import build_datamodule, build_objective, build_trainer, compile_where_it_pays

BATCH, CONTEXT, VOCAB, TOKENS, WARMUP = 16, 256, 4096, 1_000_000, 2
SIZE = [
    "model.width=384",
    "model.heads=6",
    "model.kv_heads=6",
    f"model.context={CONTEXT}",
    f"model.vocab_size={VOCAB}",
]
DEFAULTS = [*SIZE, "model.ff=1024"]
THEIRS = [
    *SIZE, "model.ff=1536", "model.positions=learned", "model.norm=layernorm", "model.mlp=gelu", "model.qk_norm=false",
    "model.bias=false",
    "model.residual_init=scaled", "model.dropout=0", "optim=adamw",
]  # fmt: skip


class RandomText:
    """Prepared data whose training part is random tokens, always the same."""

    config = TextConfig(order=1)

    def __init__(self, folder: Path, vocab: int = VOCAB):
        tokens = torch.randint(vocab, (TOKENS,), generator=torch.Generator().manual_seed(0)).numpy()
        write_shards(folder, "train", [tokens], vocab, "random")
        self.train = TokenStream(folder, "train", "random")
        self.map: np.ndarray = open_shard(folder / "train-00000.bin", "random")
        self.val, self.val_bytes, self.dependencies = self.train, TOKENS, dict[str, Any]()


def config_of(settings: list[str]) -> TrainConfig:
    """What train.py would make of these settings, with `auto` settled."""
    defaults = ["model=gpt", "data=storybook", f"data.batch_size={BATCH}", "trainer.device=cpu"]
    config = compose_train(read_command_line([*defaults, *settings]))
    settled = replace(config.trainer, precision=pick_precision(config.trainer.precision, config.trainer.device))
    return replace(config, trainer=settled, model=config.model.resolved())


class Contestant:
    """Its training takes up where it left off; `first` is the seconds of its very first step, compiling included."""

    precision, compiled, parameters, flops = "fp32", False, 0, 0.0  # flops: of a token, by formula
    first: float | None = None

    def times(self, steps: int) -> list[float]:
        """Train; when it began and when each step ended."""
        raise NotImplementedError

    def __call__(self, steps: int) -> float:
        """Tokens a second, by the median step."""
        times = self.times(steps + WARMUP)
        spent = [b - a for a, b in pairwise(times)]
        self.first = self.first or spent[0]
        return BATCH * CONTEXT / median(spent[WARMUP:])


class Theirs(Contestant):
    def __init__(self, data: RandomText, layers: int, bf16: bool, compiled: bool):
        self.data, self.loop = data, nano_loop(bf16=bf16, compiled=compiled, layers=layers)
        self.precision, self.compiled = "bf16" if bf16 else "fp32", compiled
        self.parameters = sum(p.numel() for p in self.loop.model.parameters())
        model: Any = config_of([*THEIRS, f"model.layers={layers}"]).model
        self.flops = gpt_flops_per_token(model, CONTEXT)

    def times(self, steps: int) -> list[float]:
        return self.loop.run(self.data.map, steps)


class Ours(Contestant):
    def __init__(self, data: RandomText, settings: list[str]):
        self.data, self.config = data, config_of(settings)
        self.objective = build_objective(self.config, data)
        self.precision = self.config.trainer.precision
        self.compiled = compile_where_it_pays(self.objective, self.config, print)
        self.parameters = sum(p.numel() for p in self.objective.model.parameters())
        self.flops = self.objective.flops_per_row() / CONTEXT

    def fit(self, steps: int, callback: StepTimes) -> None:
        build_trainer(self.config, callback, steps).fit(
            self.objective, datamodule=build_datamodule(self.config, self.data)
        )

    def times(self, steps: int) -> list[float]:
        self.fit(steps, times := StepTimes())
        return [times.begun, *times.ends]


class Profile(StepTimes):
    """Records all but the first steps."""

    def __init__(self) -> None:
        super().__init__()
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer: Any, objective: Any, batch: Any, index: int) -> None:
        if index == WARMUP:
            self.profiler.start()

    def on_train_end(self, *_: Any) -> None:
        self.profiler.stop()


KINDS = {  # the first that is part of an operation's name, or else of its caller's, and so on
    "optimizer": ("optimizer", "adam", "clip_grad", "_foreach", "vector_norm"),
    "loss": ("cross_entropy", "crossentropy", "log_softmax", "logsumexp", "nll_loss"),
    "attention": ("scaled_dot_product", "flash_attention", "bmm", "softmax"),
    "matmul": ("::mm", "::addmm", "::matmul", "::linear", "mkldnn", "onednn"),
    "cast": ("::to", "_to_copy", "tocopy"),
    "norm": ("norm",),
}


def lineage(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name.lower()
        event = event.cpu_parent


def kind(event: Any) -> str:
    names = list(lineage(event))
    if any(part in name for name in names for part in KINDS["optimizer"]):  # its matrix products, in Muon, are its own
        return "optimizer"
    return next(
        (kind for name in names for kind, parts in KINDS.items() if any(part in name for part in parts)), "other"
    )


def show_profile(contestant: Ours, steps: int) -> None:
    """Shares of the time that operations take themselves, callees left out."""
    contestant.fit(steps + WARMUP, profile := Profile())
    spent, largest = Counter[str](), dict[str, Counter[str]]()
    for event in profile.profiler.events():
        spent[kind(event)] += event.self_cpu_time_total
        largest.setdefault(kind(event), Counter())[event.name] += event.self_cpu_time_total
    whole = spent.total()
    print(f"  {whole / steps / 1000:.0f} ms a step")
    for name, share in spent.most_common():
        named = ", ".join(f"{operation} {part / whole:.0%}" for operation, part in largest[name].most_common(4))
        print(f"  {name:10} {share / whole:6.1%}   {named}")


def main(rounds: int, steps: int, threads: int, layers: int, profile: int, only: str, settings: list[str]) -> None:
    torch.set_num_threads(threads)
    settings = [f"model.layers={layers}", *settings]
    with tempfile.TemporaryDirectory() as folder:
        data = RandomText(Path(folder))
        makers: dict[str, Any] = {
            "loop as shipped (fp32)": lambda: Theirs(data, layers, bf16=False, compiled=False),
            "loop tuned (bf16, compile)": lambda: Theirs(data, layers, bf16=True, compiled=True),
            "gengen, our defaults": lambda: Ours(data, [*DEFAULTS, *settings]),
            "gengen, AdamW in place of Muon": lambda: Ours(data, [*DEFAULTS, "optim=adamw", *settings]),
            "gengen, same architecture as the loop": lambda: Ours(data, [*THEIRS, *settings]),
            "gengen, same architecture, uncompiled": lambda: Ours(data, [*THEIRS, "trainer.compile=false", *settings]),
        }
        wanted = {name: make for name, make in makers.items() if any(part in name for part in only.split(","))}
        print(f"{threads} threads, torch {torch.__version__}, {BATCH} x {CONTEXT} tokens a step")
        if profile:
            for name, make in wanted.items():
                if isinstance(contestant := make(), Ours):
                    print(f"\n{name}{' (compiled)' * contestant.compiled}, {contestant.precision}")
                    show_profile(contestant, steps)
            return
        contest({name: make() for name, make in wanted.items()}, rounds, steps)


def contest(contestants: dict[str, Contestant], rounds: int, steps: int) -> None:
    before = measured_peaks(c.precision for c in contestants.values())
    figures = take_turns({name: partial(c, steps) for name, c in contestants.items()}, rounds)
    after = measured_peaks(before)
    for precision in before:
        print(
            f"matmul 2048^3 {precision}: {before[precision] / 1e9:.0f} GFLOP/s at the start, "
            f"{after[precision] / 1e9:.0f} at the end"
        )
    print(f"\ntraining, tokens/s (median; least and most of {rounds} rounds of {steps} steps)")
    for name, speeds in figures.items():
        c = contestants[name]
        share = median(speeds) * c.flops / ((before[c.precision] + after[c.precision]) / 2)
        began = (c.first or 0) - BATCH * CONTEXT / median(speeds)
        compiled = f", compiled in {began:.0f} s" if c.compiled else ""
        print(
            f"  {name:47}{spread(speeds)}   {c.parameters / 1e6:.2f} M, "
            f"{share:.0%} of the {c.precision} peak{compiled}"
        )
    for name in figures:
        for peer in (peer for peer in figures if "gengen" in name and "loop " in peer and "gengen" not in peer):
            print(ratio(figures, name, peer))


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], rounds=5, steps=6, threads=2, layers=6, profile=0, only="")
    main(**asked, settings=rest)
