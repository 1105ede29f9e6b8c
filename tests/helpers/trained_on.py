"""What a run is trained on, as tests make it: prepared data, and tokens in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gengen.config.compose import compose_train, read_command_line
from gengen.config.schema import plain
from gengen.data.prepared import PreparedData
from gengen.data.text.shards import TokenStream
from gengen.training.data import prepare_data


class Tokens(TokenStream):
    """A training text in memory."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens = np.array(tokens, np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.tokens.take(np.arange(start, start + count), mode="wrap")


@dataclass(frozen=True)
class TrainedOn:
    """Prepared data, and what a run records of them: the groups of its config, the fingerprint."""

    prepared: PreparedData
    config: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.prepared.fingerprint


def trained_on(settings: list[str]) -> TrainedOn:
    """Prepare the data that settings of `train` name."""
    config = compose_train(read_command_line(settings))
    groups = {"data": plain(config.data), "stage": plain(config.stage), "init_from": config.init_from}
    return TrainedOn(prepare_data(config, lambda line: None, None, None, None), groups)
