"""Language models in training on a GPU, beside the loops of peers.py: tokens a second, and where a step's time goes.

Arguments and rehearsal: rows.py. All read the same random tokens, 50,257 of them to choose from, in bf16. Ours is
trained by the whole of our machinery; nanoGPT's loop has its own GPT-2, the modern loop Muon, QK-norm, rotary angles
and SwiGLU. The first row of each model is compiled, and its first step says for how long.
"""

import tempfile
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from peers import Loop, modern_loop, nano_loop, windows
from rows import TINY, Asked, Figures, Pace, Rows, Timed, ceilings, loop, read_arguments, train
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gengen.hardware import wait_for
from gengen.training.build import build_datamodule, build_objective, build_trainer, compile_where_it_pays
from gengen.training.monitor.throughput import peak_flops
from training import RandomText, config_of

VOCAB = 50_257
PROFILED = Pace(warmup=8, window=5, windows=1)


class Ours:
    """A model in our trainer, which goes on where it left off."""

    def __init__(self, bench: "Bench", batch: int, settings: list[str]):
        self.bench, device = bench, bench.asked.device
        line = [f"data.batch_size={batch}", f"trainer.device={device}", "trainer.precision=bf16"]
        shape = bench.asked.pick([], ["model.layers=1", "model.width=32", "model.heads=2", "model.kv_heads=2"])
        small = bench.asked.pick([], ["model.ff=32", "model.context=16"])
        self.config = config_of([*line, "model.dropout=0", f"model.vocab_size={VOCAB}", *settings, *shape, *small])
        self.objective = build_objective(self.config, bench.data)
        compile_where_it_pays(self.objective, self.config, print)
        self.context: int = self.config.model.context  # type: ignore[attr-defined]
        self.tokens = batch * self.context

    @cached_property
    def flops(self) -> float:
        """Of a token, by formula."""
        return self.objective.flops_per_row() / self.context  # type: ignore[operator]

    def fit(self, pace: Pace) -> Timed:
        return train(self.config, self.objective, pace, datamodule=build_datamodule(self.config, self.bench.data))

    def figures(self) -> Figures:
        found = self.fit(self.bench.pace).stopwatch.figures("tokens", self.tokens)
        return self.bench.shares(found, self.flops)

    def profile(self) -> Figures:
        pace = self.bench.asked.pick(PROFILED, TINY)
        recorded = Recorded(pace, self.bench.device)
        build_trainer(self.config, recorded, pace.steps).fit(
            self.objective, datamodule=build_datamodule(self.config, self.bench.data)
        )
        return recorded.figures()


class Recorded(L.Callback):
    """Profiles the steps behind the warm-up."""

    def __init__(self, pace: Pace, device: torch.device):
        self.pace, self.device, self.step = pace, device, 0
        on_cuda = [ProfilerActivity.CUDA] * (device.type == "cuda")
        self.profiler = profile(activities=[ProfilerActivity.CPU, *on_cuda])

    def on_train_batch_start(self, *_: Any) -> None:
        if self.step == self.pace.warmup:
            wait_for(self.device)
            self.profiler.start()
            self.begun = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.step += 1
        if self.step == self.pace.steps:
            wait_for(self.device)
            self.wall = time.perf_counter() - self.begun
            self.profiler.stop()

    def figures(self) -> Figures:
        """Return milliseconds a step: the whole, the 15 kernels that take most, and when none ran on the device."""
        cuda = self.device.type == "cuda"
        wanted = DeviceType.CUDA if cuda else DeviceType.CPU
        spent = {
            event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
            for event in self.profiler.key_averages()
            if event.device_type == wanted
        }
        steps = self.pace.steps - self.pace.warmup
        largest = sorted(spent, key=lambda name: -spent[name])[:15]
        wall = 1000 * self.wall / steps
        return {
            "ms_a_step": round(wall, 2),
            "ms_without_a_kernel": round(wall - sum(spent.values()) / 1000 / steps, 2),
            "kernels": {name[:90]: round(spent[name] / 1000 / steps, 3) for name in largest},
        }


class Bench:
    """The contestants and what they share."""

    def __init__(self, asked: Asked, rows: Rows, folder: Path):
        self.asked, self.rows, self.device = asked, rows, torch.device(asked.device)
        self.data, self.pace = RandomText(folder, VOCAB), asked.pick(Pace(), TINY)

    def shares(self, figures: Figures, flops: float) -> Figures:
        """Add the shares of the data sheet's FLOP/s, where the device is known, and of what was measured."""
        reached = figures["median"] * flops
        sheet = peak_flops("cuda", "bf16") if self.asked.device == "cuda" else None
        measured = 1e12 * self.rows.found.get("ceilings", {}).get("tflops", 0)
        for name, peak in {"of_data_sheet": sheet, "of_measured": measured}.items():
            if peak:
                figures[name] = round(reached / peak, 4)
        return figures

    def peer(self, peer: Loop, batch: int, context: int, flops: float) -> Figures:
        draws, done = torch.Generator().manual_seed(0), 0

        def step() -> None:
            nonlocal done
            drawn = (x.pin_memory() if self.device.type == "cuda" else x for x in self.windows(batch, context, draws))
            tokens, labels = (x.to(self.device, non_blocking=True) for x in drawn)
            peer.step(tokens, labels, done, self.pace.steps)
            done += 1

        return self.shares(loop(step, self.pace, self.device).figures("tokens", batch * context), flops)

    def windows(self, batch: int, context: int, draws: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return windows(self.data.map, batch, context, draws)

    def on_device(self, make: Callable[..., Loop], **sizes: Any) -> Loop:
        with self.device:
            return make(bf16=True, compiled=self.asked.compiled, **sizes)


def main(asked: Asked, folder: Path) -> None:
    rows = Rows(asked)
    bench = Bench(asked, rows, folder)
    rows.measure("ceilings", lambda: ceilings(bench.device, *asked.pick((8192, 4096), (128, 1))))
    batch, context = asked.pick((64, 1024), (2, 16))
    shape: dict[str, Any] = asked.pick(
        {"layers": 12, "width": 768, "heads": 12}, {"layers": 1, "width": 32, "heads": 2}
    ) | {"context": context, "vocab": VOCAB + 47}  # a multiple of 64, as such loops have it
    modern = shape | {"kv_heads": shape["heads"] // 2, "ff": asked.pick(2048, 32), "dropout": 0.0}
    gpt2, compiled = ["model=gpt2", "optim=adamw"], f"trainer.compile={str(asked.compiled).lower()}"

    ours = cache(lambda: Ours(bench, batch, [*gpt2, compiled]))
    nano = cache(lambda: bench.on_device(nano_loop, fused=True, **shape))
    for again in ("", ", once more"):
        rows.measure(f"gpt2 124M{again}", lambda: ours().figures())
        rows.measure(f"nanoGPT loop{again}", lambda: bench.peer(nano(), batch, context, ours().flops))
        rows.ratio(f"gpt2 124M / nanoGPT loop{again}", f"gpt2 124M{again}", f"nanoGPT loop{again}")
    rows.measure("profile of gpt2 124M", lambda: ours().profile())
    for contestant in (ours, nano):  # memory for those to come
        contestant.cache_clear()

    rows.measure("gpt2 124M, Muon", lambda: Ours(bench, batch, ["model=gpt2", "optim=muon", compiled]).figures())
    rows.ratio("Muon / AdamW", "gpt2 124M, Muon", "gpt2 124M")
    alike = [f"model.{key}={modern[key]}" for key in ("layers", "width", "heads", "kv_heads", "ff", "context")]
    recipe = cache(lambda: Ours(bench, batch, ["model=gpt", *asked.pick(alike, []), "optim=muon", compiled]))
    rows.measure("gpt, the modern loop's shape", lambda: recipe().figures())
    peer = cache(lambda: bench.on_device(modern_loop, **modern))
    rows.measure("modern loop", lambda: bench.peer(peer(), batch, context, recipe().flops))
    rows.ratio("gpt / modern loop", "gpt, the modern loop's shape", "modern loop")
    for contestant in (recipe, peer):
        contestant.cache_clear()

    for size, at_once in {"medium": 32, "large": 16}.items():
        line = [f"model.size={size}", f"data.micro_batch_size={asked.pick(at_once, 1)}", "optim=adamw", compiled]
        rows.measure(f"gpt {size}", lambda line=line: Ours(bench, asked.pick(32, 2), ["model=gpt", *line]).figures())
    rows.measure("gpt2 124M, eager", lambda: Ours(bench, batch, [*gpt2, "trainer.compile=false"]).figures())
    rows.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(read_arguments(), Path(folder))
