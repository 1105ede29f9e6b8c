"""What a step pays for being guarded: the same training with and without its guards, in turns.

    python benchmarks/guards.py [blocks=10] [steps=40] [threads=2] [train.py's own settings ...]

With: the detector of spikes, the watchdog, the batches that are made anew after a failure, memory that may run out,
and the points where faults can be asked for. Without: none of these; whether a step is finite is checked in both. The
default run's model and data (byte
tokenizer: nothing is learnt of them here), uncompiled. A block is `steps` steps; its figure is steps a second by the
median step.
"""

import sys
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from turns import arguments, ratio, spread, take_turns

from gengen.config.compose import compose_train, read_command_line
from gengen.data.prepared import PrepareRequest
from gengen.data.text.prepare import prepare_for
from gengen.training.budget import StepTimes
from gengen.training.build import build_datamodule, build_objective, build_trainer
from gengen.training.monitor.interruption import Interruption
from gengen.training.monitor.spikes import Spikes
from gengen.training.monitor.watchdog import Watchdog
from gengen.training.objective import Objective


def block(guarded: bool, objective: Any, data: Any, config: Any, steps: int, folder: Path) -> float:
    """Steps a second."""
    times, interruption = StepTimes(), Interruption()
    with ExitStack() as changed:
        objective.spikes = Spikes(6.0) if guarded else None
        if guarded:
            changed.enter_context(Watchdog(1800, lambda: interruption.polls, folder / "stacks.txt"))
        else:
            for module in ("gengen.training.objective", "gengen.data.loader"):
                changed.enter_context(patch(f"{module}.fault", lambda point: False))
            changed.enter_context(
                patch.object(
                    Objective,
                    "backward_with_oom_retry",
                    lambda self, *of, network=None: self.backward_micro_batches(*of, network),
                )
            )
            changed.enter_context(patch.object(type(data), "train_dataloader", lambda self: self.loader(0)))
        build_trainer(config, times, steps).fit(objective, datamodule=data)
    return 1 / median(b - a for a, b in pairwise(times.ends[2:]))


def main(blocks: int, steps: int, threads: int, settings: list[str]) -> None:
    line = [
        "model=gpt",
        "data=storybook",
        "data.tokenizer=byte",
        f"trainer.max_steps={steps}",
        f"trainer.threads={threads}",
        *settings,
    ]
    config = compose_train(read_command_line([*line, "trainer.device=cpu", "trainer.compile=false"]))
    prepared = prepare_for(PrepareRequest(config.data, config.model, lambda line: None))  # type: ignore[arg-type]
    config.data, config.model = prepared.config, config.model.resolved()
    objective, data = build_objective(config, prepared), build_datamodule(config, prepared)
    with TemporaryDirectory() as folder:
        run = partial(block, objective=objective, data=data, config=config, steps=steps, folder=Path(folder))
        figures = take_turns({"guarded": partial(run, True), "bare": partial(run, False)}, blocks)
    for name, values in figures.items():
        print(f"  {name:8}{spread(values, 2)}  steps/s")
    print(ratio(figures, "bare", "guarded"))
    shares = [a / b for a, b in zip(figures["guarded"], figures["bare"], strict=True)]
    print(f"  guards take {100 * (1 - median(shares)):.1f} % of a step")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], blocks=10, steps=40, threads=2)
    main(**asked, settings=rest)
