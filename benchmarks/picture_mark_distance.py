"""Whether the mark of pictures moves their Fréchet distance from the training pictures by more than chance does.

    python benchmarks/picture_mark_distance.py RUN [n=500] [train=2000]

The data of RUN: `n` held-out pictures as they are and marked, measured against `train` pictures of
its training split in the features of EfficientNet-Lite0, and real pictures that are drawn anew, whose distances tell
how far chance moves them. Real ones, as they are nearest to the training pictures: nowhere would the mark show more.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from turns import arguments

from gengen.checkpoints.migrate import read_config
from gengen.config.data import DataConfig
from gengen.config.schema import build
from gengen.data.image.prepare import PreparedImages, prepare_for
from gengen.data.prepared import PrepareRequest
from gengen.evaluation.features import EfficientNetFeatures, efficientnet
from gengen.evaluation.floor import Floor
from gengen.generation.image.mark import marked
from gengen.generation.load import find_checkpoint, generator_of

KEY = b"benchmark of marks of pictures.."


def pictures(run: str) -> tuple[PreparedImages, str]:
    """Return the data of a run, and the folder of its archives."""
    directory = find_checkpoint(run, Path(run).parent, "latest", print)
    config = build(DataConfig, read_config(directory)["data"])
    prepared = prepare_for(PrepareRequest(config, generator_of(directory).config, print))  # type: ignore[arg-type, attr-defined]
    assert isinstance(prepared, PreparedImages)
    return prepared, config.dir


def main(run: str, n: int, train: int) -> None:
    prepared, folder = pictures(run)
    draw = torch.Generator().manual_seed(0)
    some = torch.randperm(len(prepared.train), generator=draw)[:train]
    held_out = torch.randperm(len(prepared.val), generator=draw)[:n]
    network = EfficientNetFeatures(efficientnet(folder, print))
    plain: Tensor = prepared.val.images[held_out]
    with_mark = torch.stack([torch.from_numpy(marked(image.numpy(), KEY)) for image in plain])
    labels = prepared.val.labels[held_out]
    floor = Floor(network(prepared.train.images[some]), prepared.train.labels[some], network(plain), labels)
    found = floor.compare(network(with_mark), draw)
    print(f"{len(plain)} held-out pictures against {len(some)} of training: distance {found['real']:.2f}")
    print(f"marked: {found['samples']:.2f}, {found['samples'] - found['real']:+.2f}")
    print(f"real pictures drawn anew: {found['mean']:.2f} +- {found['std']:.2f}")
    inside = abs(found["samples"] - found["real"]) <= 2 * found["std"]
    print(f"the mark moves it by {'less' if inside else 'more'} than two deviations")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], n=500, train=2000)
    main(rest[0], **asked)
