"""What `evaluate` measures of a run of images: how good samples and reconstructions are, beside what real images and
noise score.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gengen.config.commands import EvaluateConfig
from gengen.data.image.prepare import ImageSet, PreparedImages
from gengen.errors import UserError
from gengen.evaluation.features import EfficientNetFeatures, efficientnet
from gengen.evaluation.floor import Floor
from gengen.evaluation.html import in_line
from gengen.evaluation.judges import ImageClassifierJudge, accuracy, judge_for
from gengen.evaluation.metrics import auth_pct, frechet_distance, gaussian, kid, mean_kernel, nearest, prdc, psnr, ssim
from gengen.evaluation.prompts import evaluate_prompts, prompts_in_words
from gengen.generation.base import GeneratesImages, Generator, ImageSampler, Reconstructs, Wanted
from gengen.generation.image.files import enlarged, grid, write_png
from gengen.io import Say

NEIGHBOURS = 5  # the k of precision, recall, density and coverage
BATCH = 250
SHOWN, COMPARED = 60, 12  # samples in the grid; samples shown beside their nearest training images
NOISE = "held-out images, the pixels of each shuffled"
LISTED = 12  # classes that are printed, those farthest from their floor first

Features = Callable[[Tensor], Tensor]
"""uint8 (N, C, H, W) -> (N, D)"""
Figures = dict[str, Any]
"""A JSON tree of numbers by their names."""


class TimedDraws:
    """Draws by a sampler; keeps the images (N, C, H, W), what was asked of each and the seconds that drawing took."""

    images: Tensor
    asked: Wanted

    def __init__(self, draw: ImageSampler):
        self.draw, self.seconds = draw, 0.0

    def __call__(self, asked: Wanted) -> Tensor:
        start = time.perf_counter()
        self.images, self.asked = self.draw(asked), asked
        self.seconds = time.perf_counter() - start
        return self.images


def evaluate_run(
    generator: Generator, prepared: PreparedImages, config: EvaluateConfig, folder: Path, say: Say
) -> Figures:
    """Return every figure that applies to the generator, and write samples.png and nearest.png in `folder`."""
    if not isinstance(generator, GeneratesImages):
        raise UserError(f"{config.run} draws no images, so none can be measured")
    result: Figures = {}
    # 1. an autoencoder's reconstructions
    if isinstance(generator, Reconstructs):
        n = max(config.samples, 10)
        result["reconstruction"] = evaluate_reconstruction(generator.reconstruct, prepared, say, n, config.seed)
        say(in_line("reconstruction", result["reconstruction"]))
    draw = generator.image_sampler(config)
    # 2. samples of the labels, or of the captions, of held-out images
    if draw is not None and config.samples > 0:
        result |= evaluate_samples(draw, bool(generator.classes), prepared, config, folder, say)
    # 3. whether captions are obeyed
    if draw is not None and draw.captions and config.prompts > 1:
        result["prompts"] = evaluate_words(draw, prepared, config, folder, say)
    return result


def evaluate_samples(
    draw: ImageSampler, labelled: bool, prepared: PreparedImages, config: EvaluateConfig, folder: Path, say: Say
) -> Figures:
    """Measure config.samples images, and write samples.png and nearest.png in `folder`. labelled: the model knows
    classes.
    """
    drawn, conditional = TimedDraws(draw), labelled or draw.captions
    lite0 = EfficientNetFeatures(efficientnet(prepared.config.dir, say)) if config.efficientnet else None
    figures = evaluate_images(
        drawn, prepared, say, config.samples, config.seed,
        conditional=conditional, captions=draw.captions, lite0=lite0,
    )  # fmt: skip
    result: Figures = ({"settings": dict(draw.settings)} if draw.settings else {}) | figures
    result["images_per_second"] = len(drawn.images) / drawn.seconds
    say(f"drawing        {result['images_per_second']:.0f} images/s")
    for line in in_words(figures):
        say(line)
    folder.mkdir(exist_ok=True)
    by_class = isinstance(drawn.asked, Tensor) and conditional
    rows, columns = shown(cast(Tensor, drawn.asked), len(prepared.classes)) if by_class else in_order(drawn.images)
    write_png(folder / "samples.png", grid(enlarged(drawn.images[rows]), columns))
    judge = judge_for(prepared, say)
    nearest_panel(drawn.images[:COMPARED], prepared.train, folder / "nearest.png", judge.features if judge else None)
    say(
        f"pictures: {folder}/samples.png, {folder}/nearest.png "
        "(each sample, its nearest training images in pixels and in features)"
    )
    return result


def evaluate_words(
    draw: ImageSampler, prepared: PreparedImages, config: EvaluateConfig, folder: Path, say: Say
) -> Figures:
    """Return what `evaluate_prompts` finds, said in lines; write prompts.png, of those images."""
    figures, images = evaluate_prompts(draw, prepared, say, config.prompts, config.seed)
    counts = " and ".join(f"{count} {part}" for part, count in figures["n"].items())
    say(f"prompts: {counts} captions")
    for line in prompts_in_words(figures):
        say(line)
    each = max(len(images) // SHOWN, 1)
    folder.mkdir(exist_ok=True)
    write_png(folder / "prompts.png", grid(enlarged(images[::each][:SHOWN]), 10))
    return figures


def evaluate_images(
    generate: Callable[[Wanted], Tensor], prepared: PreparedImages, say: Say, n: int = 1000, seed: int = 0, *,
    conditional: bool = True, captions: bool = False, lite0: Features | None = None,
) -> Figures:  # fmt: skip
    """Draw n samples with the labels of held-out images, or their captions, and measure both against all of the
    training split.

    generate(labels (n,), or n captions) -> uint8 (n, C, H, W), as `to_uint8` makes it. conditional=False: what it is
    asked says nothing of classes, so nothing is said by class. lite0: EfficientNetFeatures, for `fd_efflite0`. The
    same seed draws the same real images.

    Returns the figures of the `samples`, of those `real` held-out images (the floor) and of `noise` (the ceiling: the
    held-out images, each with its pixels shuffled); under `floor` and `by_class` each distance beside its floor and
    that one's spread (`Floor.compare`); and under `facts` the counts and the judge's accuracy. Distances depend on n.
    """
    n = held_out_count(prepared, n, say)
    judge = judge_for(prepared, say)
    comparison = Comparison.of(generate, prepared, n, seed, captions)
    if judge is not None:
        comparison.result["facts"]["judge"] = judge.facts
        floor, features = comparison.add_distances("fd_smallcnn", judge.features)
        comparison.add_neighbours(floor, features)
        comparison.add_accuracy(judge, features, conditional)
        if conditional:
            comparison.add_classes(judge, floor, features["samples"], prepared.classes)
    if lite0 is not None:
        comparison.add_distances("fd_efflite0", lite0)
    say(
        "fid: not computed; only features of the TF-Inception network may bear that name, "
        "and its weights are not at hand"
    )
    return comparison.result


@dataclass
class Comparison:
    """Samples beside as many held-out images and noise, all measured against the training split.

    images: name -> uint8 (n, C, H, W); labels: (n,), those of the held-out images and so of the samples; draw: what
    all random choices are drawn from, in the order of the calls; result: all that was found so far.
    """

    train: ImageSet
    images: dict[str, Tensor]
    labels: Tensor
    draw: torch.Generator
    result: Figures

    @classmethod
    def of(
        cls, generate: Callable[[Wanted], Tensor], prepared: PreparedImages, n: int, seed: int, captions: bool
    ) -> "Comparison":
        """Choose n held-out images, and draw a sample of the label, or the caption, of each."""
        draw = torch.Generator().manual_seed(seed)
        held_out = torch.randperm(len(prepared.val), generator=draw)[:n]
        real, labels = prepared.val.images[held_out], prepared.val.labels[held_out]
        asked: Wanted = [prepared.val.descriptions[i].caption for i in held_out.tolist()] if captions else labels
        images = {"samples": checked(generate(asked), real), "real": real, "noise": shuffled(real, draw)}
        facts = {"n": n, "seed": seed, "reference": len(prepared.train)} | {"noise": NOISE}
        result: Figures = {name: {} for name in images} | {"floor": {}, "facts": facts}
        return cls(prepared.train, images, labels, draw, result)

    def add_distances(self, name: str, network: Features) -> tuple[Floor, dict[str, Tensor]]:
        """Add the Fréchet distances in the features of a network. Returns the floor, and the features of each set."""
        features = {which: network(pictures) for which, pictures in self.images.items()}
        floor = Floor(network(self.train.images), self.train.labels, features["real"], self.labels)
        for which in self.images:
            self.result[which][name] = floor.distance(features[which])
        self.result["floor"][name] = floor.compare(features["samples"], self.draw)
        return floor, features

    def add_neighbours(self, floor: Floor, features: dict[str, Tensor]) -> None:
        """Add KID, precision, recall, density, coverage and authenticity."""
        kernel = mean_kernel(floor.train)
        some = floor.train[torch.randperm(len(self.train), generator=self.draw)[: len(self.labels)]]
        for which, found in features.items():
            self.result[which]["kid_smallcnn"] = kid(floor.train, found, kernel)
            self.result[which] |= prdc(some, found, NEIGHBOURS) | {"auth_pct": auth_pct(floor.train, found)}

    def add_accuracy(self, judge: ImageClassifierJudge, features: dict[str, Tensor], conditional: bool) -> None:
        """Add how often the judge sees the class that was asked for."""
        for which in features if conditional else ["real"]:
            self.result[which]["accuracy"] = accuracy(judge.classify(features[which]), self.labels)

    def add_classes(self, judge: ImageClassifierJudge, floor: Floor, samples: Tensor, classes: Sequence[str]) -> None:
        """Add the distance and the accuracy of each class, by the features of the samples."""
        self.result["by_class"] = {}
        for label, name in enumerate(classes):
            of, rows = floor.of(label), self.labels == label
            if min(len(of.train), len(of.held_out)) > 1:  # of fewer there is no covariance
                right = {"accuracy": accuracy(judge.classify(samples[rows]), self.labels[rows])}
                self.result["by_class"][name] = of.compare(samples[rows], self.draw) | right


def in_words(figures: Figures) -> Iterator[str]:
    """Yield lines that say what `evaluate_images` found."""
    for name in ("samples", "real", "noise"):
        yield in_line(name, figures[name])
    for name, row in figures["floor"].items():
        yield f"{name}: {beside_floor(row)}"
        if row["few"]:
            yield f"{name}: {row['n']:,} images are few for a covariance of its features, which is mostly noise"
        if abs(row["real"] - row["mean"]) > 3 * row["std"]:
            yield f"{name}: held-out images differ from training images by more than chance"
    rows = sorted(figures.get("by_class", {}).items(), key=lambda row: -(row[1]["times_floor"] or 0))
    for name, row in rows[:LISTED]:
        yield f"  {name:<13} accuracy {row['accuracy']:.3f}  fd_smallcnn {beside_floor(row)}"
    if len(rows) > LISTED:
        yield f"  {len(rows) - LISTED} more classes are nearer to their floor"
    if few := [row["n"] for _, row in rows if row["few"]]:
        yield f"by class: {min(few)} to {max(few)} images are few for a covariance of the features: mostly noise"


def beside_floor(row: Figures) -> str:
    """Return a distance, its floor and that one's spread, in one line."""
    times = f", {row['times_floor']:.3g} times" if row["times_floor"] else ", against"
    return (
        f"{row['samples']:.4g}{times} the floor of {row['real']:.4g} (real images drawn anew: {row['mean']:.4g} +- "
        f"{row['std']:.2g}; {row['n']:,} images)"
    )


def shown(labels: Tensor, classes: int) -> tuple[Tensor, int]:
    """Return which samples a grid shows, row by row, and its columns: one a class, each full, where there are few."""
    of = [rows for label in range(classes) if len(rows := (labels == label).nonzero()[:, 0])]
    if not 1 < len(of) <= 12:
        return in_order(labels)
    depth = min(SHOWN // len(of), *map(len, of))
    return torch.stack([rows[:depth] for rows in of], dim=1).flatten(), len(of)


def in_order(images: Tensor) -> tuple[Tensor, int]:
    """Return the first samples, for a grid of ten columns."""
    return torch.arange(min(len(images), SHOWN)), 10


def evaluate_reconstruction(
    reconstruct: Callable[[Tensor], Tensor], prepared: PreparedImages, say: Say, n: int = 1000, seed: int = 0
) -> Figures:
    """Measure how well held-out images survive `reconstruct`: uint8 (B, C, H, W) -> uint8 of that shape.

    psnr: dB, mean over images, an exact copy counted as 100; ssim: mean over images; rfd_smallcnn: Fréchet distance in
    the judge's features between the images and their reconstructions, 0 for copies.
    """
    n = held_out_count(prepared, n, say)
    rows = torch.randperm(len(prepared.val), generator=torch.Generator().manual_seed(seed))[:n]
    real = prepared.val.images[rows]
    rebuilt = checked(torch.cat([reconstruct(part) for part in real.split(BATCH)]), real)
    result: Figures = {
        "psnr": psnr(real, rebuilt).clamp(max=100).mean().item(),
        "ssim": ssim(real, rebuilt).mean().item(),
        "facts": {"n": n, "seed": seed},
    }
    judge = judge_for(prepared, say)
    if judge is not None:
        result["facts"]["judge"] = judge.facts
        result["rfd_smallcnn"] = frechet_distance(*gaussian(judge.features(real)), *gaussian(judge.features(rebuilt)))
    return result


def held_out_count(prepared: PreparedImages, n: int, say: Say) -> int:
    """Return n, or as many held-out images as there are, with a line that says so."""
    if n > len(prepared.val):
        say(f"evaluate: {len(prepared.val):,} images are held out; everything is measured on as many, not on {n:,}")
        n = len(prepared.val)
    if n < 2 * NEIGHBOURS or len(prepared.train) < n:
        raise UserError(
            f"evaluate: {n} images against {len(prepared.train)}: at least {2 * NEIGHBOURS} are needed, "
            "and no fewer to train on"
        )
    return n


def checked(images: Tensor, like: Tensor) -> Tensor:
    """Return the images on the CPU; raises ValueError unless they are of the kind and shape of the real ones."""
    if images.dtype != torch.uint8 or images.shape != like.shape:
        raise ValueError(
            f"expected uint8 {tuple(like.shape)} as to_uint8 makes them, got {images.dtype} {tuple(images.shape)}"
        )
    return images.cpu()


def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return each image with its pixels in an order of its own: the same colours, no shape."""
    order = torch.rand(len(images), 1, images[0, 0].numel(), generator=generator).argsort(-1)
    return images.flatten(2).gather(2, order.expand(-1, images.shape[1], -1)).view(images.shape)


def nearest_panel(samples: Tensor, train: ImageSet, path: Path, features: Features | None = None, k: int = 3) -> None:
    """Write a PNG with a row a sample: it, its k nearest training images in pixels, then its k nearest in `features`.

    samples: uint8 (N, C, H, W), a few dozen; features: for one, the judge's.
    """
    columns = [samples[:, None].cpu(), train.images[nearest(train.images, samples.cpu(), k)]]
    if features is not None:
        columns.append(train.images[nearest(features(train.images), features(samples), k)])
    pictures = torch.cat(columns, 1)  # (N, 1 + k or 1 + 2 k, C, H, W)
    write_png(path, grid(pictures.flatten(0, 1), pictures.shape[1]))
