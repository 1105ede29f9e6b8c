"""Do halves that are drawn anew fit the other half, and do they show what was asked for?

    python benchmarks/inpainting.py runs/WORDS [n=64] [guidance=2] [steps=20] [resamples=10] [mask=left]

The run is one of captions on data whose things can be judged (emoji, scenes). Real held-out pictures are masked and
drawn anew with their captions. Prints, for them, for the same captions drawn from nothing and for the real pictures,
the share that the judge finds as asked, all of it right; and the mean difference of neighbouring pixels across the
border, and its ratio to that of real pictures at the same place.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from gengen.checkpoints.migrate import read_config
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.data.image.captions import Description
from gengen.data.image.prepare import prepare
from gengen.evaluation.prompt_judges import PromptJudge, prompt_judge_for
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.masks import read_mask
from gengen.generation.load import find_checkpoint, generator_of


def obeyed(judge: PromptJudge, asked: list[Description], images: Tensor) -> float:
    """Return the share of images, uint8 (N, C, H, W), that show all that is asked for."""
    found = judge.read(images)
    return sum(all(judge.verdicts(*pair).values()) for pair in zip(asked, found, strict=True)) / len(asked)


def border_gradient(images: Tensor, is_open: Tensor) -> float:
    """Return the mean absolute difference, in levels of 255, of neighbours of which one is open: images (N, C, H, W),
    is_open (H, W) bool.
    """
    total, count = 0.0, 0
    for dim in (-1, -2):
        last = images.shape[dim] - 1
        across = is_open.narrow(dim, 1, last) ^ is_open.narrow(dim, 0, last)
        steps = (images.float().narrow(dim, 1, last) - images.float().narrow(dim, 0, last)).abs()[..., across]
        total, count = total + steps.sum().item(), count + steps.numel()
    return total / count


def main(run: Path, n: int, mask: str, steps: int, guidance: float, resamples: int) -> None:
    directory = find_checkpoint(str(run), run.parent, "latest", print)
    config: TrainConfig = build(TrainConfig, read_config(directory))
    prepared = prepare(config.data, print)  # type: ignore[arg-type]
    generator = generator_of(directory)
    judge = prompt_judge_for(prepared, print)
    assert isinstance(generator, ImageGenerator) and judge is not None
    judged = [i for i, row in enumerate(prepared.val.descriptions) if judge.judges(row)]
    rows = [judged[i * len(judged) // min(n, len(judged))] for i in range(min(n, len(judged)))]
    asked, real = [prepared.val.descriptions[i] for i in rows], prepared.val.images[rows]
    is_open = read_mask(mask, (real.shape[-1], real.shape[-2]), real.shape[-1])

    how = {"steps": steps, "guidance": guidance, "sampler": "ddim"}
    new = torch.cat(
        [generator.generate(1, prompts=row.caption, first=i, **how) for i, row in enumerate(asked)]  # type: ignore
    )
    filled = torch.cat(
        [
            generator.edit(image, mask, n=1, prompts=row.caption, first=i, resamples=resamples, **how)  # type: ignore
            for i, (image, row) in enumerate(zip(real, asked, strict=True))
        ]
    )
    kept = (filled == real)[..., ~is_open].all()
    print(f"{len(rows)} held-out pictures, mask={mask}; outside of it {'bit-equal' if kept else 'CHANGED'}")
    wanted, least = obeyed(judge, asked, new), border_gradient(real, is_open)
    for name, images in {"real": real, "drawn from nothing": new, f"filled, {resamples} rounds": filled}.items():
        found, gradient = obeyed(judge, asked, images), border_gradient(images, is_open)
        of = f" = {found / wanted:.2f} of drawn from nothing" if wanted else ""
        print(f"{name:22} as asked {found:.3f}{of}  border {gradient:6.2f} = {gradient / least:.2f} of real")


if __name__ == "__main__":
    chosen = dict(argument.split("=") for argument in sys.argv[2:])
    main(
        Path(sys.argv[1]), int(chosen.get("n", 64)), chosen.get("mask", "left"), int(chosen.get("steps", 20)),
        float(chosen.get("guidance", 2)), int(chosen.get("resamples", 10)),
    )  # fmt: skip
