"""What a checkpoint holds of a run beside weights, moments and Lightning's own loop, and how it comes back."""

import time
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
from torch import Tensor

from gengen.config.resume import stored
from gengen.training.objective import Objective
from gengen.training.plan import Plan, RunData
from gengen.training.rng import get_rng, set_rng
from gengen.training.sharding import sharded_like

JSON = dict[str, Any]


@dataclass
class RunPart:
    """The part of a checkpoint that is gengen's own, under "gengen" in Lightning's dictionary."""

    state: JSON = field(default_factory=dict)
    """state.json, but for Lightning's loop."""
    ema: dict[str, Tensor] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """What the objective's next step depends on: a tree of tensors and JSON, kept beside the optimizer."""
    facts: JSON = field(default_factory=dict)
    """What the manifest records: data fingerprint and clocks."""
    config: JSON = field(default_factory=dict)
    tokenizer: str | None = None


@dataclass
class Evaluated:
    """What the loop remembers of its evaluations."""

    step: int | None = None
    """The last step that was evaluated."""
    best: tuple[int, float] | None = None
    """Step and value of the best evaluation so far."""
    latest: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation in this process."""


def collect(trainer: L.Trainer, objective: Objective, evaluated: Evaluated, plan: Plan, seconds: float) -> RunPart:
    """Collect what `restore` puts back. seconds: of training so far."""
    tokenizer = getattr(plan.prepared, "tokenizer", None)
    rows, extra = objective.micro_batch_size, objective.extra_state()
    if objective.spikes:
        extra |= {"spikes": objective.spikes.windows}
    state = {
        "step": trainer.global_step,
        "evaluated": evaluated.step,
        "best": evaluated.best,
        "bad_steps": int(objective.bad_steps),
        "all_bad_steps": int(objective.all_bad_steps),
        "halved": None if rows == plan.config.data.micro_batch_size else rows,
        "passed_over": run_data(trainer).skipped_batches,
        "rng": get_rng(),
    }
    return RunPart(
        state=state,
        ema=None if objective.ema is None else objective.whole(objective.ema),
        extra=extra if trainer.is_global_zero else {},
        facts={"data": plan.prepared.fingerprint, "clocks": {"seconds": seconds, "saved": time.time()}},
        config=stored(plan.config),
        tokenizer=tokenizer.to_json() if tokenizer else None,
    )


def restore(part: RunPart, objective: Objective, evaluated: Evaluated) -> float:
    """Put back what `collect` collected; returns the seconds of training so far.

    Anyone may have written it: what does not fit raises a LookupError, TypeError, ValueError, AttributeError or
    RuntimeError. The random generators come last, so that nothing of the setting up has drawn from them.
    """
    state, extra = part.state, part.extra
    evaluated.step, evaluated.best = state["evaluated"], state["best"] and tuple(state["best"])
    objective.bad_steps.fill_(state["bad_steps"])
    objective.all_bad_steps.fill_(state.get("all_bad_steps", 0))
    if rows := state.get("halved"):
        objective.micro_batch_size = min(rows, objective.micro_batch_size or rows)
    if part.ema is not None and objective.ema is not None:
        if shapes_and_dtypes(part.ema) != shapes_and_dtypes(objective.ema):
            raise ValueError("an average that is not one of the weights")
        objective.ema = {name: sharded_like(part.ema[name], own) for name, own in objective.ema.items()}
    windows = extra.pop("spikes", None)
    if objective.spikes and windows:
        objective.spikes.windows = windows
    objective.load_extra_state(extra)
    set_rng(state["rng"])
    return float(part.facts["clocks"]["seconds"])


def shapes_and_dtypes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def run_data(trainer: L.Trainer) -> RunData:
    """The run's datamodule."""
    data: RunData = trainer.datamodule  # type: ignore[attr-defined]
    return data
