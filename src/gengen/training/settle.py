"""What a new run's config leaves open, settled one thing at a time: each function returns a new config."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gengen.checkpoints.layout import identity, read_weights
from gengen.checkpoints.migrate import read_config
from gengen.config.model import GPTConfig, LoRAConfig, ModelConfig
from gengen.config.schema import build
from gengen.config.stage import TuningConfig
from gengen.config.train import TrainConfig
from gengen.data.prepared import PreparedData
from gengen.generation.load import find_checkpoint
from gengen.generation.text.rewards import check_scale
from gengen.hardware import pick_device, pick_precision
from gengen.training.monitor.interruption import Interrupted
from gengen.training.plan import Session
from gengen.training.request import Sources

Say = Callable[[str], None]


def verified(sources: Sources, config: TrainConfig, say: Say) -> Sources:
    """The checkpoints that the sources mean, each verified."""
    runs_dir = Path(config.runs_dir)
    init_from = find_checkpoint(str(sources.init_from), runs_dir, "latest", say) if sources.init_from else None
    rewards = {}
    for name, path in sources.rewards.items():
        rewards[name] = find_checkpoint(str(path), runs_dir, "latest", say)
        check_scale(str(path), read_weights(rewards[name]))
    return Sources(sources.checkpoint, init_from, rewards)


def settle_source(config: TrainConfig, init_from: Path | None) -> TrainConfig:
    """The model is that of the run it starts from, with the adapter that is asked for."""
    if init_from is None:
        return config
    model = with_adapter(build(ModelConfig, read_config(init_from)["model"]), config.model)
    if isinstance(model, GPTConfig) and model.is_adapted:
        lora = replace(model.lora, base=str(init_from), base_sha256=identity(init_from))
        model = replace(model, lora=lora)
    model.check()
    return replace(config, model=model, init_from=str(init_from))


def with_adapter(model: ModelConfig, asked: ModelConfig) -> ModelConfig:
    """Return the model of the run that is started from, with the adapter that the new one's config asks for."""
    if isinstance(model, GPTConfig):
        return replace(model, lora=asked.lora if isinstance(asked, GPTConfig) else LoRAConfig())
    return model


def settle_device(config: TrainConfig) -> TrainConfig:
    """Device and precisions are those of this machine."""
    device = pick_device(config.trainer.device, config.trainer.devices)
    precision = pick_precision(config.trainer.precision, device)
    optim = replace(config.optim, muon_precision=pick_precision(config.optim.muon_precision, device))
    return replace(config, optim=optim, trainer=replace(config.trainer, device=device, precision=precision))


def settle_model(config: TrainConfig) -> TrainConfig:
    """Dimensions are those of the model's size; a stage that compares log-probabilities has no dropout."""
    model = config.model.resolved()
    if not config.stage.allows_dropout and hasattr(model, "dropout"):
        model = replace(model, dropout=0.0)  # type: ignore[call-arg]
    if not config.stage.allows_dropout and isinstance(model, GPTConfig):
        model = replace(model, lora=replace(model.lora, dropout=0.0))
    return replace(config, model=model)


def settle_data(config: TrainConfig, prepared: PreparedData) -> TrainConfig:
    """The data's own config is what they were prepared with, and the model knows what they fix of it."""
    config = replace(config, data=prepared.config, model=config.model.with_data(prepared.model_facts))
    config.model.check()  # now that it knows its data
    return config


def settle_rates(config: TrainConfig) -> TrainConfig:
    """The learning rate is that of the model's width."""
    return replace(config, optim=config.optim.for_model(config.model.largest_width()))


def settle_steps(config: TrainConfig, prepared: PreparedData, session: Session) -> TrainConfig:
    """The number of steps is given, or that of the stage's epochs, or what the budget has room for.

    Raises Interrupted where a stop is asked for while that is measured.
    """
    if config.trainer.max_steps is None and isinstance(config.stage, TuningConfig):
        steps = math.ceil(config.stage.epochs * len(prepared.train) / config.data.batch_size)
        config = replace(config, trainer=replace(config.trainer, max_steps=steps))
    if config.trainer.max_steps is None:
        config = measured_steps(config, prepared, session)
    assert config.trainer.max_steps
    return replace(config, optim=config.optim.for_steps(config.trainer.max_steps))


def measured_steps(config: TrainConfig, prepared: PreparedData, session: Session) -> TrainConfig:
    """Find out by a trial how many steps the budget has room for, and say so."""
    from gengen.training.budget import fitted_to_budget

    say = session.console.say
    with session.interruption:
        config = fitted_to_budget(config, prepared, say, session.interruption)
    if session.interruption():
        raise Interrupted(session.interruption.exit_code)
    c = config.trainer
    say(
        f"steps  {c.max_steps} fit in trainer.budget={c.budget} here; "
        f"trainer.max_steps={c.max_steps} trainer.compile={c.compile} repeats this run"
    )
    return config
