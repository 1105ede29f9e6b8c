"""A run's data: prepared, encoded where its family asks for that, and batched."""

from collections.abc import Callable
from pathlib import Path

from gengen.config.train import TrainConfig
from gengen.data.prepared import PreparedData
from gengen.errors import UserError
from gengen.registry import MODELS


def prepare_data(
    config: TrainConfig,
    say: Callable[[str], None],
    tokenizer: str | None,
    checkpoint: Path | None,
    run: Path | None,
    allow_build: bool = True,
) -> "PreparedData":
    """Prepare a run's data, and encode them where its family is trained on what another model makes of them.

    tokenizer: the JSON of one that the run brings along; checkpoint: what the run goes on from; run: the run that
    holds the other model already. Raises UserError where the checkpoint was trained on other data, NotPrepared where
    something is missing and `allow_build` is off.
    """
    from gengen.checkpoints.layout import verify
    from gengen.data import prepared as data

    was = verify(checkpoint).get("data", "") if checkpoint else ""
    request = data.PrepareRequest(config.data, config.model, say, tokenizer, was, allow_build)
    prepared: PreparedData = data.prepare_data(request)
    entry = MODELS[config.model.name]
    if "encode" in entry.builds:
        encode = entry.load("encode")
        prepared = encode(prepared, config.model, Path(config.runs_dir), run, say, allow_build=allow_build)
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
