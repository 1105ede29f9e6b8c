"""What fewer bits in the weights cost: bits-per-byte of a run of text in fp32, bf16 and int8, by the protocol of
training.

python benchmarks/precision.py RUN
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from storybook import score
from torch import Tensor, nn

import gengen
from gengen.checkpoints.files import read_json
from gengen.config.data import DataConfig
from gengen.config.schema import build
from gengen.data.prepared import PrepareRequest
from gengen.data.text.prepare import prepare_for
from gengen.generation.text.engine import Engine


def in_fp32(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's logits as a function of tokens."""
    return lambda tokens: model(tokens).float()


def main(run: str) -> None:
    generator, config = gengen.load(run), read_json(Path(run) / "config.json")
    prepared = prepare_for(
        PrepareRequest(build(DataConfig, config["data"]), generator.model.config, lambda line: None)
    )  # type: ignore[arg-type]
    exact = 0.0
    for precision in ("fp32", "bf16", "int8"):
        model = Engine(generator.model, precision).model
        with torch.no_grad():
            bits = score(in_fp32(model), prepared, generator.context)
        exact = exact or bits
        print(f"{precision:5} {bits:.4f} bits per byte  {bits / exact - 1:+.3%}")


if __name__ == "__main__":
    main(sys.argv[1])
