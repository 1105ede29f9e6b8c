"""A run's data: prepared, encoded where its family asks for that, and batched."""

from collections.abc import Callable
from pathlib import Path

from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.registry import DATA, MODELS
from gengen.training.plan import PreparedData


def prepare_data(
    config: TrainConfig, say: Callable[[str], None], tokenizer: str | None, checkpoint: Path | None, run: Path | None
) -> PreparedData:
    """Prepare a run's data, and encode them where its family is trained on what another model makes of them.

    tokenizer: the JSON of one that the run brings along; checkpoint: what the run goes on from; run: the run that
    holds the other model already. Raises UserError where the checkpoint was trained on other data.
    """
    from gengen.checkpoints.layout import verify
    from gengen.data.prepared import TRAINED_ON

    was = verify(checkpoint)["data"] if checkpoint else ""
    token = TRAINED_ON.set(was)
    try:
        prepared: PreparedData = DATA[config.data.name].load("prepare")(config.data, config.model, say, tokenizer)
    finally:
        TRAINED_ON.reset(token)
    if "encode" in (entry := MODELS[config.model.name]).builds:
        prepared = entry.load("encode")(prepared, config.model, Path(config.runs_dir), run, say)
    if checkpoint and was != prepared.fingerprint:
        raise UserError(
            f"the data is not what {checkpoint} was trained on: "
            f"its fingerprint was {was[:16]}, now {prepared.fingerprint[:16]}"
        )
    return prepared


def brought_tokenizer(run: Path) -> str | None:
    """The tokenizer of the run that this one was started from, if any: kept beside the run's config."""
    from gengen.checkpoints.layout import read_tokenizer

    return read_tokenizer(run)
