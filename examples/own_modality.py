"""A modality of your own, one-dimensional signals: data, a network, an objective, a generator; no file of gengen.

    python scripts/train.py model=signals data=waves plugins=[examples.own_modality] --config-dir=examples/configs
    python scripts/sample.py runs/NAME n=8 labels=square plugins=[examples.own_modality]
    python scripts/evaluate.py runs/NAME plugins=[examples.own_modality]

The four parts are below in this order. Order, loader, steps, checkpoints, paths and samplers are gengen's; a kind of
data is a word ("signal"), by which a model and a data set find each other.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.checkpoints.files import replace_text, to_json
from gengen.config.commands import DiffusionSettings, SampleConfig
from gengen.config.data import DataConfig
from gengen.config.fields import option, positive
from gengen.config.model import DiffusionProcess
from gengen.data.prepared import PrepareRequest
from gengen.generation import diffusion
from gengen.generation.base import Labels
from gengen.generation.image.files import labels_of
from gengen.models.layers import NO_CLASS, ClassEmbedding, LevelEmbedding, zeroed
from gengen.registry import register_data, register_model
from gengen.training.objective import Batch
from gengen.training.objectives.diffusion import Diffusion

CLASSES = ["sine", "square"]

# --- data: a config, and what is made of it


@register_data("waves", kind="signal", prepare=f"{__name__}:prepare", datamodule="gengen.data.loader:datamodule_for")
@dataclass
class WavesConfig(DataConfig):
    """Sine and square waves of random frequency, phase and height."""

    length: int = positive(64, "numbers in a signal")
    count: int = positive(2000, "signals to train on; a tenth as many are held out")

    def facts(self) -> dict[str, Any]:
        return {"length": self.length, "classes": CLASSES}


class Part:
    """Signals (N, 1, length) in [-1, 1] with labels (N,), a function of the seed."""

    def __init__(self, count: int, length: int, seed: int):
        draw = torch.Generator().manual_seed(seed)
        frequency, phase, height = (torch.rand(3, count, 1, 1, generator=draw) + 0.5).unbind()
        angle = 2 * torch.pi * (2 * frequency * torch.arange(length) / length + phase)
        self.labels = torch.arange(count) % len(CLASSES)
        wave = torch.where(self.labels[:, None, None] == CLASSES.index("sine"), angle.sin(), angle.sin().sign())
        self.signals = wave * height / 1.5

    def __len__(self) -> int:
        return len(self.labels)


class PreparedWaves:
    """Prepared data as a run uses them."""

    def __init__(self, config: WavesConfig):
        self.config = config
        self.train, self.val = Part(config.count, config.length, 0), Part(max(config.count // 10, 2), config.length, 1)
        facts = {"format": 1, "length": config.length, "count": config.count}
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self.dependencies: dict[str, Path] = {}  # no other run is needed

    @property
    def model_facts(self) -> dict[str, Any]:
        """What the data fixes of the model, and what it measures for it."""
        return self.config.facts() | {"sigma_data": round(self.train.signals.square().mean().sqrt().item(), 4)}

    def describe(self) -> list[str]:
        return [f"signals      {len(self.train):,} for training, {len(self.val):,} for validation"]

    def batch(self, split: str, index: Tensor) -> Batch:
        """Return these signals. split: train or val; index: (B,) int64."""
        part = self.train if split == "train" else self.val
        return {"signals": part.signals[index], "labels": part.labels[index], "index": index}


def prepare(request: PrepareRequest[WavesConfig]) -> PreparedWaves:
    """Make the data. What takes long is made once, with `gengen.data.prepared.build_once`; waves take no time."""
    return PreparedWaves(request.config)


# --- network: a config, and a module built from it


@dataclass
class SignalSampling(DiffusionSettings, SampleConfig):
    """What to draw from a diffusion model of signals."""

    n: int = positive(8, "signals to draw")
    labels: list[str] = option([], "classes to draw, in turn; none = all in turn")
    out: str | None = option(None, "folder for signals.csv and samples.json; null = samples/sample-SEED of the run")


@register_model(
    "signals",
    kind="signal",
    model=f"{__name__}:SignalNetwork",
    objectives={"pretrain": f"{__name__}:SignalDiffusion"},
    generator=f"{__name__}:SignalGenerator",
    command=f"{__name__}:sample",
    sampling=SignalSampling,
)
@dataclass
class SignalConfig(DiffusionProcess):
    """Diffusion of signals by dilated convolutions (van den Oord et al. 2016)."""

    name: str = option("signals", "registered name of the model family")
    length: int | None = positive(None, "numbers in a signal; a run records what its data has")
    width: int = positive(32, "channels")
    layers: int = positive(6, "residual blocks; each looks twice as far as the one before")

    hidden_maps: ClassVar[str] = r"^blocks\."

    def sample_shape(self) -> tuple[int, ...]:
        assert self.length, "the data says it"
        return 1, self.length

    def largest_width(self) -> int:
        return self.width


class SignalNetwork(nn.Module):
    """A `gengen.models.diffusion_network.DiffusionNetwork` on (B, 1, length)."""

    def __init__(self, config: SignalConfig):
        super().__init__()
        self.config = config
        self.level, self.classes = LevelEmbedding(64, config.width), ClassEmbedding(len(config.classes), config.width)
        self.embed = nn.Conv1d(1, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(config.width, 2**i) for i in range(config.layers))
        self.out = zeroed(nn.Conv1d(config.width, 1, 1))

    def forward(self, x: Tensor, level: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            labels = torch.full((len(x),), NO_CLASS, device=x.device)
        condition, h = self.level(level) + self.classes(labels), self.embed(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.out(F.silu(h)).float()


class Block(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.look = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.condition, self.mix = nn.Linear(width, width), zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (B, D, L), (B, D) -> (B, D, L)
        return x + self.mix(F.silu(self.look(F.silu(x)) + self.condition(F.silu(condition))[:, :, None]))


# --- objective: diffusion's, on another key of the batch, with other samples


class SignalDiffusion(Diffusion):
    unit = "signals"

    def data(self, batch: Batch) -> Tensor:
        return batch["signals"]

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """Write eight signals, always of the same seed, to stem.csv."""
        signals = SignalGenerator(self.model).generate(8, seed=self.config.seed, sampler="dpmpp_2m")
        if interrupted():
            return None
        write_csv(path := stem.with_suffix(".csv"), signals)
        return str(path)


# --- generator: from saved weights to samples, and to files


class SignalGenerator:
    """Draws signals; what `gengen.load` returns for a run of model=signals."""

    command_hint = "to sample: python scripts/sample.py {run} n=8"

    def __init__(self, model: nn.Module):
        self.model: Any = model

    @classmethod
    def from_checkpoint(cls, model: nn.Module, directory: Path) -> Self:
        return cls(model)

    def generate(
        self,
        n: int = 8,
        labels: Labels = (),
        *,
        seed: int = 0,
        sampler: str = "heun",
        steps: int = 20,
        guidance: float | None = None,
    ) -> Tensor:
        """Return n signals, (n, length) fp32; signal i is a function of (seed, i, its label)."""
        device = next(self.model.parameters()).device
        settings = DiffusionSettings(sampler=sampler, steps=steps, guidance=guidance)
        wanted = labels_of(labels, self.model.config.classes, n).to(device)
        return diffusion.draw(self.model, diffusion.Condition(wanted), range(n), seed, settings)[:, 0].cpu()


def sample(generator: SignalGenerator, config: SignalSampling, say: Callable[[str], None]) -> str:
    """Do what the command `sample` does: draw, and write signals.csv and samples.json. Returns a line that sums it
    up."""
    folder = Path(config.out or Path(str(config.run)) / "samples" / f"sample-{config.seed}")
    folder.mkdir(parents=True, exist_ok=True)
    c = generator.model.config
    guidance = diffusion.guidance_scale(c, config.guidance, has_guide=False)
    signals = generator.generate(
        config.n, config.labels, seed=config.seed, sampler=config.sampler, steps=config.steps, guidance=guidance
    )
    write_csv(folder / "signals.csv", signals)
    how = {"seed": config.seed, "sampler": config.sampler, "steps": config.steps, "guidance": guidance}
    labels = labels_of(config.labels, c.classes, config.n).tolist()
    rows = [{"index": i, "class": CLASSES[label]} | how for i, label in enumerate(labels)]
    replace_text(folder / "samples.json", to_json(rows))
    say(f"{folder}/signals.csv")
    return f"{config.n} signals"


def write_csv(path: Path, signals: Tensor) -> None:
    """Write signals (n, length), a row each."""
    text = io.StringIO()
    csv.writer(text).writerows([f"{number:.4f}" for number in signal] for signal in signals.tolist())
    replace_text(path, text.getvalue())
