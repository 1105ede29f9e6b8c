"""Measure a run's saved weights, on held-out data and by what they generate. Importing this imports no torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gengen.checkpoints.files import replace_text, to_json
from gengen.checkpoints.migrate import read_config
from gengen.config.commands import EvaluateConfig, RunConfig, TextEvaluation
from gengen.config.redact import redact
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.registry import MODELS, Entry
from gengen.training.data import brought_tokenizer, prepare_data

if TYPE_CHECKING:
    from gengen.data.image.prepare import PreparedImages
    from gengen.data.prepared import PreparedData
    from gengen.data.text.prepare import PreparedText
    from gengen.data.text.shards import TokenStream

EVALUATIONS: dict[str, type[RunConfig]] = {"text": TextEvaluation, "image": EvaluateConfig}
"""kind of data -> the config of `evaluate` for models of it; of another kind, the objective's own metrics are all"""


def evaluation_config(family: Entry) -> type[RunConfig]:
    return EVALUATIONS.get(family.kind, RunConfig)


def images_of(wanted: RunConfig, say: Callable[[str], None]) -> "PreparedImages":
    """Open the images that a run was trained on."""
    return pixels_of(prepared_of(wanted, say))


def training_text_of(wanted: RunConfig, say: Callable[[str], None]) -> "TokenStream":
    """Open the tokens that a run was trained on. Raises UserError where those are no text."""
    from gengen.data.text.prepare import PreparedText

    prepared = prepared_of(wanted, say)
    if not isinstance(prepared, PreparedText):
        raise UserError(f"{wanted.run} was trained on no text that a copy could be of, but on conversations")
    return prepared.train


def prepared_of(wanted: RunConfig, say: Callable[[str], None], allow_build: bool = True) -> "PreparedData":
    """Open what a run was trained on; prepare anew what of it is missing, or raise NotPrepared where `allow_build` is
    off."""
    from gengen.generation.load import find_checkpoint

    directory = find_checkpoint(str(wanted.run), Path(wanted.runs_dir), wanted.checkpoint, say)
    run = directory.parent.parent
    config: TrainConfig = build(TrainConfig, read_config(directory))
    config = replace(config, run=run.name, runs_dir=str(run.parent))  # wherever it is by now
    return prepare_data(config, say, brought_tokenizer(run), directory, run, allow_build)


def pixels_of(prepared: "PreparedData") -> "PreparedImages":
    """Return prepared images, or those that prepared latents were made of."""
    return cast("PreparedImages", getattr(prepared, "pixels", prepared))


def evaluate_run(wanted: RunConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate the checkpoint that a config of EVALUATIONS names; returns what evaluation.json then holds.

    It is {"checkpoint": name, "weights": ema, raw or None, metric: number, ...}, with a dict for each further group.
    """
    from gengen.checkpoints.layout import load_weights, read_weights
    from gengen.generation.load import find_checkpoint, load_generator
    from gengen.hardware import pick_device
    from gengen.training.build import build_datamodule, build_objective

    directory = find_checkpoint(str(wanted.run), Path(wanted.runs_dir), wanted.checkpoint, say)
    run = directory.parent.parent
    config: TrainConfig = build(TrainConfig, read_config(directory))
    config = replace(config, run=run.name, runs_dir=str(run.parent))  # wherever it is by now
    prepared = prepare_data(config, say, brought_tokenizer(run), directory, run)
    objective = build_objective(config, prepared)
    objective.say = say
    objective.ema = None  # the weights that are asked for are the ones to evaluate
    load_weights(objective.model, read_weights(directory, wanted.weights), directory)
    objective.to(pick_device(wanted.device))
    alone = replace(config, trainer=replace(config.trainer, devices=1, nodes=None))
    metrics = objective.evaluate(build_datamodule(alone, prepared).val_batches())
    assert metrics is not None  # nothing interrupts it
    result: dict[str, Any] = {"checkpoint": directory.name, "weights": wanted.weights} | metrics
    say(f"{directory.name}  " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    kind = MODELS[config.model.name].kind
    if kind == "image":
        from gengen.evaluation.images import evaluate_run as evaluate_images

        generator = load_generator(str(directory), weights=wanted.weights, device=wanted.device)
        images_wanted = cast(EvaluateConfig, wanted)
        result |= evaluate_images(generator, pixels_of(prepared), images_wanted, run / "evaluation", say)
    elif kind == "text" and config.stage.name == "pretrain":  # a later stage has its own metrics
        from gengen.evaluation.text import evaluate_text

        generator = MODELS[config.model.name].load("generator").from_checkpoint(objective.model, directory)
        text, precision = cast("PreparedText", prepared), objective.autocast()
        text_wanted = cast(TextEvaluation, wanted)
        result |= evaluate_text(generator, text, result, text_wanted, run / "evaluation", say, precision)
    replace_text(run / "evaluation.json", redact(to_json(result)))
    return result
