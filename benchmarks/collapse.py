"""What val/coverage says of a generator that makes only so many different images: the scale of the collapse warning.

    python benchmarks/collapse.py [data.dir=data]

Stands in for the generator: that many training images of the animals, drawn again and again, four choices each.
"""

import sys

import torch

from gengen.config.compose import compose_train, read_command_line
from gengen.config.data import ImageConfig
from gengen.data.image.prepare import prepare
from gengen.evaluation.coverage import COMPARED, NEIGHBOURS, coarse
from gengen.evaluation.metrics import prdc


def main(arguments: list[str]) -> None:
    config = compose_train(read_command_line(["model=gan", "data=animals", *arguments])).data
    assert isinstance(config, ImageConfig)
    data = prepare(config, print)

    def images(split: str, rows: torch.Tensor) -> torch.Tensor:
        return coarse(data.batch(split, rows, torch.zeros(len(rows), dtype=torch.bool))["images"])

    count = min(COMPARED, len(data.val))
    spread, draw = torch.arange(count), torch.Generator().manual_seed(0)
    real = images("val", spread * len(data.val) // count)
    possible = prdc(real, images("train", spread * len(data.train) // count), NEIGHBOURS)["coverage"]
    for different in (1, 2, 4, 8, 16, 32, 64, 128, 250):
        choices = [torch.randint(len(data.train), (different,), generator=draw) for _ in range(4)]
        found = [
            prdc(real, images("train", rows[spread % different]), NEIGHBOURS)["coverage"] / possible
            for rows in choices
        ]
        print(f"{different:4} different images: coverage {min(found):.3f} to {max(found):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
