"""What the config of every data set has."""

from dataclasses import dataclass
from typing import Any, ClassVar

from gengen.config.fields import option, positive
from gengen.errors import UserError


@dataclass
class DataConfig:
    """What every data set has."""

    name: str = option("", "registered name of the data set")
    dir: str = option("data", "folder of downloaded archives and prepared data", on_resume="free")
    batch_size: int = positive(8, "sequences or images a step, over all ranks and micro-batches")
    micro_batch_size: int | None = positive(
        None, "sequences or images a forward pass takes on one rank; null = all of its share", on_resume="free"
    )
    num_workers: int = option(0, "processes that read ahead; changes no result", low=0, on_resume="free")
    worker_timeout: int = option(
        600, "seconds a worker may take for a batch; then it is started anew, once", low=1, on_resume="free"
    )
    max_bad: float = option(
        0.001, "share of unreadable records that is skipped; above it preparing fails", low=0, high=1
    )

    eval_batch_size: ClassVar[int | None] = None  # rows of a validation batch; null = as in training

    def facts(self) -> dict[str, Any]:
        """What this config alone fixes of the model, before any data is read."""
        return {}

    def check(self) -> None:
        """Raise UserError where fields do not go together."""
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"data.micro_batch_size={self.micro_batch_size} does not divide data.batch_size={self.batch_size}"
            )
