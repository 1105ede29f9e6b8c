"""`evaluate`: the metrics of a run's saved weights, on held-out data and of what they generate."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gengen.checkpoints.files import replace_text, to_json, without_special_floats
from gengen.checkpoints.migrate import read_config
from gengen.cli.run_command import parse_run_command
from gengen.config.commands import EvaluateConfig, TextEvaluation
from gengen.config.redact import redact
from gengen.registry import MODELS


def main(argv: list[str]) -> int:
    configs: dict[str, type] = {"text": TextEvaluation, "image": EvaluateConfig}
    wanted: Any = parse_run_command("evaluate", lambda entry: configs[entry.kind], argv)
    if wanted is None:
        return 0
    from gengen.checkpoints.layout import load_weights, read_weights
    from gengen.cli.train import brought_tokenizer, prepare_data
    from gengen.config.schema import build
    from gengen.config.train import TrainConfig
    from gengen.generation.load import find_checkpoint, load_generator
    from gengen.hardware import pick_device
    from gengen.training.build import build_datamodule, build_objective
    from gengen.training.monitor.console import Console

    directory = find_checkpoint(str(wanted.run), Path(wanted.runs_dir), wanted.checkpoint, print)
    run = directory.parent.parent
    config: TrainConfig = build(TrainConfig, read_config(directory))
    config = replace(config, run=run.name, runs_dir=str(run.parent))  # wherever it is by now
    prepared = prepare_data(config, Console(), brought_tokenizer(run), directory, run)
    objective = build_objective(config, prepared)
    objective.ema = None  # the weights that are asked for are the ones to evaluate
    load_weights(objective.model, read_weights(directory, wanted.weights), directory)
    objective.to(pick_device(wanted.device))
    metrics = objective.evaluate(
        build_datamodule(replace(config, trainer=replace(config.trainer, devices=1)), prepared).val_batches()
    )
    assert metrics is not None  # nothing interrupts it
    result: dict[str, Any] = {"checkpoint": directory.name, "weights": wanted.weights} | metrics
    print(f"{directory.name}  " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    if MODELS[config.model.name].kind == "image":
        from gengen.evaluation.images import evaluate_run

        generator = load_generator(str(directory), weights=wanted.weights, device=wanted.device)
        result |= evaluate_run(generator, getattr(prepared, "pixels", prepared), wanted, run / "evaluation", print)
    elif config.stage.name == "pretrain":  # a later stage has its own metrics, and `align` for the rest
        from gengen.evaluation.text import evaluate_text

        generator = MODELS[config.model.name].load("generator").from_checkpoint(objective.model, directory)
        autocast = objective.autocast()
        result |= evaluate_text(generator, prepared, result, wanted, run / "evaluation", print, autocast)
    replace_text(run / "evaluation.json", redact(to_json(result)))
    print(json.dumps(without_special_floats(result)))
    return 0
