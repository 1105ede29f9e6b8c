"""`evaluate`: the validation metrics of a run's saved weights."""

import json
from dataclasses import replace
from pathlib import Path

from gengen.checkpoints.files import read_json, replace_text, to_json
from gengen.cli.saved import asked
from gengen.config.sample import EvaluateConfig


def main(argv: list[str]) -> int:
    wanted: EvaluateConfig | None = asked("evaluate", EvaluateConfig, argv)
    if wanted is None:
        return 0
    from gengen.checkpoints.format import load_weights, read_weights
    from gengen.cli.train import brought_tokenizer, prepare_data
    from gengen.config.schema import build
    from gengen.config.train import TrainConfig
    from gengen.generation.load import find_checkpoint
    from gengen.hardware import pick_device
    from gengen.training.build import build_datamodule, build_objective
    from gengen.training.console import Console

    directory = find_checkpoint(str(wanted.run), Path(wanted.runs_dir), wanted.checkpoint, print)
    run = directory.parent.parent
    config: TrainConfig = build(TrainConfig, read_json(directory / "config.json"))
    prepared = prepare_data(config, Console(), brought_tokenizer(run), directory)
    objective = build_objective(config, prepared)
    load_weights(objective.model, read_weights(directory, wanted.weights), directory)
    objective.to(pick_device(wanted.device))
    metrics = objective.evaluate(build_datamodule(replace(config, trainer=replace(config.trainer, devices=1)), prepared).val_batches())
    result = {"checkpoint": directory.name, "weights": wanted.weights} | (metrics or {})
    replace_text(run / "evaluation.json", to_json(result))
    print(json.dumps(result))
    return 0
