"""One tiny run of each family, seconds long, with which the fault tests compare runs that were disturbed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gengen.checkpoints import store
from helpers.runs import FREE, curve, same_run

RHYTHM = [
    "trainer.max_steps=12",
    "trainer.save_every=4",
    "trainer.eval_every=4",
    "trainer.sample_every=6",
    "trainer.log_every=1",
]
MACHINE = ["trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1"]
AUTOENCODER = ["model.widths=[8,16]", "model.blocks=1", "model.patch=2", "model.latent_channels=2"]
PICTURES = ["data.flip=true", "data.batch_size=12", "data.micro_batch_size=6", "optim.ema=0.9"]
OWN = {  # what has a state is there: dropout, flips and augmentation, an average of the weights, micro-batches
    "gpt": ["data.batch_size=16", "data.micro_batch_size=8", "model.dropout=0.1", "optim.ema=0.9"],
    "vae": ["model=vae", *PICTURES, *AUTOENCODER],
    "ldm": [
        "model=ldm",
        *PICTURES,
        "model.widths=[32]",
        "model.blocks=1",
        "model.attention=[0]",
        "model.dropout=0.1",
        "model.patch=1",
    ],
    "gan": [
        *(
            "model=gan",
            *PICTURES,
            "model.widths=[8,16]",
            "model.patch=2",
            "model.latent_size=8",
            "model.penalty_every=3",
        ),
        *("model.augment=color,translation,cutout",),
    ],
    "ppo": [
        *(
            "stage=ppo",
            "stage.reward=requested_words",
            "stage.max_tokens=6",
            "stage.minibatches=2",
            "stage.table_every=2",
        ),
        *("data=prompts", "data.validation=0.2", "data.batch_size=8", "data.micro_batch_size=4"),
    ],
}
EPOCH = {"gpt": 11, "vae": 9, "ldm": 9, "gan": 9, "ppo": 4}
"""In how many steps the data, or an iteration's answers, are through."""
SAVES = [
    "begin",
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "config.json",
    "optimizer.json",
    "state.json",
]
SAVES += ["tokenizer.json", "manifest.json", "staged", "renamed", "latest", "prune"]
"""The points of a save, in order; images have no tokenizer, this PPO no average."""


@dataclass
class Family:
    """Settings of a tiny run, and such a run that nothing disturbed."""

    name: str
    settings: list[str]
    straight: Path
    save: str = "sync"

    @property
    def points(self) -> list[str]:
        missing = {"tokenizer.json": ("vae", "ldm", "gan"), "ema.safetensors": ("ppo",)}
        return [f"save:{point}" for point in SAVES if self.name not in missing.get(point, ())]

    def begin(self, runs: Path, *more: str) -> list[str]:
        return ["train", *self.settings, f"trainer.save={self.save}", f"runs_dir={runs}", "run=r", *more]

    def same(self, run: Path, free: set[str] = FREE) -> None:
        same_run(self.straight, run, free)
        assert [row["step"] for row in curve(run)] == list(range(1, 13)) and list(run.glob("samples/*"))


FamilyOf = Callable[[str], Family]


def on(runs: Path, *more: str) -> list[str]:
    """Go on with the run."""
    return ["train", "run=r", f"runs_dir={runs}", *more]


def step(run: Path) -> int:
    """The step of the newest checkpoint that verifies; -1 without one."""
    path = store.newest(run / "checkpoints")
    return -1 if path is None else store.step_of(path)
