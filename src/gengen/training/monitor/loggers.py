"""Where metrics go beside metrics.csv: wandb or TensorBoard, neither of which ever stops a run."""

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

from gengen.checkpoints.files import replace_text
from gengen.checkpoints.metrics_csv import Logger
from gengen.checkpoints.run import Run
from gengen.config.redact import redact
from gengen.config.resume import stored
from gengen.config.train import TrainConfig

Say = Callable[[str], None]


def build_loggers(config: TrainConfig, run: Run, say: Say) -> list[Logger]:
    """wandb or TensorBoard where chosen; one that cannot start is a warning."""
    c = config.logger
    try:
        if c.name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            logger = WandbLogger(
                name=run.name,
                id=wandb_id(run),
                project=c.project,
                save_dir=str(run.path),
                offline=c.mode == "offline",
                resume="allow",
                config=json.loads(redact(json.dumps(stored(config)))),
            )
            _ = logger.experiment  # starts it here, where a failure is caught
            return [logger]
        if c.name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return [TensorBoardLogger(str(run.path), name="", version="tensorboard")]
    except Exception as error:
        say(f"warning: logger={c.name} cannot start, metrics.csv goes on: {error}")
    return []


def wandb_id(run: Run) -> str:
    """Return what wandb knows a run by: chosen once for its directory, so that runs of one name are never one.

    A run that wandb has known by its name keeps that.
    """
    path = run.path / "wandb-id.txt"
    if not path.exists():
        replace_text(path, run.name if (run.path / "wandb").exists() else f"{run.name}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf8")


class Loggers:
    """Several loggers as one; a logger that fails is dropped with a warning."""

    def __init__(self, loggers: Sequence[Logger], say: Say):
        self.loggers, self.say = list(loggers), say

    def log(self, row: dict[str, float], step: int) -> None:
        """Hand a row of metrics.csv to each."""
        for logger in list(self.loggers):
            try:
                logger.log_metrics(row, step)
            except Exception as error:
                self.loggers.remove(logger)
                self.say(f"warning: {type(logger).__name__} failed and is left out from now on: {error}")

    def close(self) -> None:
        for logger in self.loggers:
            with suppress(Exception):
                getattr(logger, "finalize", lambda status: None)("finished")
