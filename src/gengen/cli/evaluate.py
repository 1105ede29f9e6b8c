"""`evaluate`: the validation metrics of a run's saved weights."""

import json
from dataclasses import replace
from pathlib import Path

from gengen.checkpoints.files import read_json, replace_text, to_json
from gengen.checkpoints.run import find
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.errors import UserError
from gengen.config.help import flat_help
from gengen.config.sample import EvaluateConfig


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        print(flat_help("evaluate", EvaluateConfig))
        return 0
    asked: EvaluateConfig = compose_flat(EvaluateConfig, line)
    if asked.run is None:
        raise UserError("which run? python scripts/evaluate.py runs/NAME")
    run = find(asked.run, Path(asked.runs_dir))
    from gengen.checkpoints.format import load_weights, read_weights
    from gengen.cli.train import brought_tokenizer, prepare_data
    from gengen.config.schema import build
    from gengen.config.train import TrainConfig
    from gengen.generation.load import find_checkpoint
    from gengen.hardware import pick_device
    from gengen.training.build import build_datamodule, build_objective
    from gengen.training.console import Console

    directory = find_checkpoint(str(run), Path(asked.runs_dir), asked.checkpoint, print)
    run = directory.parent.parent
    config: TrainConfig = build(TrainConfig, read_json(directory / "config.json"))
    prepared = prepare_data(config, Console(), brought_tokenizer(run), directory)
    objective = build_objective(config, prepared)
    load_weights(objective.model, read_weights(directory, asked.weights), directory)
    objective.to(pick_device(asked.device))
    metrics = objective.evaluate(build_datamodule(replace(config, trainer=replace(config.trainer, devices=1)), prepared).val_batches())
    result = {"checkpoint": directory.name, "weights": asked.weights} | (metrics or {})
    replace_text(run / "evaluation.json", to_json(result))
    print(json.dumps(result))
    return 0
