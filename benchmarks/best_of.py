"""What choosing is worth: how often unseen combinations are drawn as asked, by the first picture of each caption and
by the one of several that `follows_prompt` likes best.

    python benchmarks/best_of.py runs/WORDS [n=60] [of=8] [guidance=3] [steps=20]

The run is one of captions on data whose things can be judged. The judge that counts is another than the one that
chooses, trained from another seed; both were trained on the same pictures, so the gain is an upper estimate.
"""

import sys
from pathlib import Path

from turns import arguments

from gengen.checkpoints.migrate import read_config
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.data.image.prepare import prepare
from gengen.evaluation.best_of import best_of, follows_prompt
from gengen.evaluation.prompt_judges import prompt_judge_for, trusted
from gengen.evaluation.prompts import choose, tally
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.load import find_checkpoint, generator_of


def main(run: Path, n: int, of: int, guidance: float, steps: int) -> None:
    directory = find_checkpoint(str(run), run.parent, "latest", print)
    config: TrainConfig = build(TrainConfig, read_config(directory))
    prepared = prepare(config.data, print)  # type: ignore[arg-type]
    generator, judge = generator_of(directory), prompt_judge_for(prepared, print)
    assert isinstance(generator, ImageGenerator) and judge is not None
    unseen = choose(prepared, trusted(judge), n, seed=0)["unseen"]
    images = generator.generate(of, prompts=unseen.captions, sampler="dpmpp_2m", guidance=guidance, steps=steps)
    asked = [caption for caption in unseen.captions for _ in range(of)]
    best, _ = best_of(images, asked, follows_prompt(lambda: prepared, print), of)
    first = range(0, len(images), of)
    print(f"{n} unseen captions, {of} pictures of each, guidance {guidance:g}")
    for name, rows in (("the first", list(first)), (f"the best of {of}", best.tolist())):
        figures = tally(judge, unseen.descriptions, judge.read(images[rows]))
        said = ", ".join(f"{what} {sum(right) / len(right):.3f} of {len(right)}" for what, right in figures.items())
        print(f"  {name}: {said}")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], n=60, of=8, guidance=3.0, steps=20)
    main(Path(rest[0]), **asked)
