"""Translate between Lightning's checkpoint dictionary and our checkpoint directories."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import CheckpointIO

import gengen
from gengen.checkpoints.layout import Checkpoint, read
from gengen.checkpoints.saving import Keeping, Save, Saver
from gengen.training.state import RunPart


class SafeCheckpointIO(CheckpointIO):
    """Saves and loads through gengen.checkpoints: safetensors and JSON, verified, atomic.

    The path of a save is the run's checkpoints/. Expects gengen's own part of a checkpoint, a RunPart, under "gengen"
    (see TrainingLoop.on_save_checkpoint).
    """

    def __init__(self, saver: Saver):
        """saver: carries out the saves, and says how they ended. That is not raised here, where other ranks wait."""
        self.saver = saver

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Keeping | None = None
    ) -> None:
        own: RunPart = checkpoint["gengen"]
        whole = Checkpoint(
            step=checkpoint["global_step"],
            config=own.config,
            model=checkpoint["state_dict"],
            optimizer=by_name(checkpoint["optimizer_states"][0]) | ({"extra": own.extra} if own.extra else {}),
            state=own.state | {"loop": checkpoint["loops"]["fit_loop"]},
            tokenizer=own.tokenizer,
            ema=own.ema,
            facts=own.facts | {"versions": versions()},
        )
        self.saver.begin(Save(Path(path), whole, storage_options))

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        reads_all = not dist.is_initialized() or dist.get_rank() == 0  # the others read what they need
        saved = read(Path(path), hashed=reads_all)
        return {
            "epoch": 0,
            "global_step": saved.step,
            "pytorch-lightning_version": saved.facts["versions"]["lightning"],
            "callbacks": {},
            "state_dict": saved.model,
            "optimizer_states": [by_index(saved.optimizer)],
            "lr_schedulers": [],
            "loops": {"fit_loop": saved.state["loop"]},
            "gengen": RunPart(saved.state, saved.ema, saved.optimizer.get("extra", {}), saved.facts),
        }

    def remove_checkpoint(self, path: str | Path) -> None:
        raise AssertionError("checkpoints are pruned by gengen.checkpoints.store")

    def teardown(self) -> None:
        self.saver.close()


def versions() -> dict[str, str]:
    """The versions that a manifest records: bit equality is promised between equal ones."""
    ours = {"gengen": gengen.__version__, "torch": torch.__version__, "lightning": version("lightning")}
    return ours | {"python": platform.python_version(), "cpu": torch.backends.cpu.get_cpu_capability()}


def by_name(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state dict with its parameters called by name instead of by number."""
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer["param_groups"]]
    return {"state": {names[i]: moments for i, moments in optimizer["state"].items()}, "param_groups": groups}


def by_index(saved: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `by_name`, as torch's optimizers load it."""
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    index = {name: i for i, name in enumerate(names)}
    groups = [group | {"params": [index[name] for name in group["param_names"]]} for group in saved["param_groups"]]
    return {"state": {index[name]: moments for name, moments in saved["state"].items()}, "param_groups": groups}
