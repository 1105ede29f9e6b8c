"""What `evaluate` says of a run of images: how good samples and reconstructions are, beside what real images and noise
score.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.config.commands import DiffusionSettings, EvaluateConfig
from gengen.data.image.prepare import ImageSet, PreparedImages
from gengen.errors import UserError
from gengen.evaluation.features import EfficientNetFeatures, efficientnet
from gengen.evaluation.floor import Floor
from gengen.evaluation.judges import accuracy, judge_for
from gengen.evaluation.metrics import auth_pct, frechet_distance, gaussian, kid, mean_kernel, nearest, prdc, psnr, ssim
from gengen.evaluation.report import in_line
from gengen.generation.image.files import enlarged, grid, write_png
from gengen.io import Say

NEIGHBOURS = 5  # the k of precision, recall, density and coverage
BATCH = 250
SHOWN, COMPARED = 60, 12  # samples in the grid; samples shown beside their nearest training images
LISTED = 12  # classes that are printed, those farthest from their floor first

Features = Callable[[Tensor], Tensor]
"""uint8 (N, C, H, W) -> (N, D)"""


def evaluate_run(
    generator: Any, prepared: PreparedImages, config: EvaluateConfig, folder: Path, say: Say
) -> dict[str, Any]:
    """Every figure that applies to the generator, and in `folder` samples.png and nearest.png.
    A generator has `judged(config)`: a call that draws an image for each label, or None where its draws are not meant
    to be pictures; and `reconstruct`, if it is an autoencoder."""
    result: dict[str, Any] = {}
    if hasattr(generator, "reconstruct"):
        result["reconstruction"] = evaluate_reconstruction(
            generator.reconstruct, prepared, say, max(config.samples, 10), config.seed
        )
        say(in_line("reconstruction", result["reconstruction"]))
    draw: Callable[[Tensor], Tensor] | None = generator.judged(config)
    if draw is None or config.samples == 0:
        return result
    kept: list[Tensor] = []
    asked: list[Tensor] = []
    spent = 0.0

    def generate(labels: Tensor) -> Tensor:
        nonlocal spent
        start = time.perf_counter()
        kept.append(draw(labels))
        spent = time.perf_counter() - start
        asked.append(labels)
        return kept[0]

    features = EfficientNetFeatures(efficientnet(prepared.config.dir, say)) if config.efficientnet else None
    conditional = bool(generator.classes)
    figures = evaluate_images(
        generate, prepared, say, config.samples, config.seed, conditional=conditional, lite0=features
    )
    if hasattr(generator, "settings"):
        result["settings"] = {f.name: asdict(config)[f.name] for f in fields(DiffusionSettings)}
    result |= figures
    result["images_per_second"] = len(kept[0]) / spent
    say(f"drawing        {result['images_per_second']:.0f} images/s")
    for line in in_words(figures):
        say(line)
    folder.mkdir(exist_ok=True)
    rows, columns = shown(asked[0], len(prepared.classes) if conditional else 0)
    write_png(folder / "samples.png", grid(enlarged(kept[0][rows]), columns))
    judge = judge_for(prepared, say)
    nearest_panel(kept[0][:COMPARED], prepared.train, folder / "nearest.png", judge.features if judge else None)
    say(
        f"pictures: {folder}/samples.png, {folder}/nearest.png (each sample, its nearest training images in pixels and in features)"
    )
    return result


def evaluate_images(
    generate: Callable[[Tensor], Tensor], prepared: PreparedImages, say: Say, n: int = 1000, seed: int = 0, *,
    conditional: bool = True, lite0: Features | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Draw n samples with the labels of held-out images, and judge both against all of the training split.

    generate(labels (n,)) -> uint8 (n, C, H, W), as `to_uint8` makes it. conditional=False: it ignores labels, so
    nothing is said by class. lite0: EfficientNetFeatures, for `fd_efflite0`. The same seed draws the same real images.

    Returns the figures of the `samples`, of those `real` held-out images (the floor) and of `noise` (the ceiling: the
    held-out images, each with its pixels shuffled); under `floor` and `by_class` each distance beside its floor and
    that one's spread (`Floor.compare`); and under `facts` the counts and the judge's accuracy. Distances depend on n.
    """
    n = held_out_count(prepared, n, say)
    draw = torch.Generator().manual_seed(seed)
    judge = judge_for(prepared, say)
    train, held_out = prepared.train, torch.randperm(len(prepared.val), generator=draw)[:n]
    real, labels = prepared.val.images[held_out], prepared.val.labels[held_out]
    images = {"samples": checked(generate(labels), real), "real": real, "noise": shuffled(real, draw)}
    result: dict[str, Any] = {name: {} for name in images} | {"floor": {}}
    result["facts"] = {"n": n, "seed": seed, "reference": len(train)}
    result["facts"]["noise"] = "held-out images, the pixels of each shuffled"

    def compare(name: str, network: Features) -> tuple[Floor, dict[str, Tensor]]:
        """Add the distances in the features of a network; return these."""
        features = {which: network(pictures) for which, pictures in images.items()}
        floor = Floor(network(train.images), train.labels, features["real"], labels)
        for which in images:
            result[which][name] = floor.distance(features[which])
        result["floor"][name] = floor.compare(features["samples"], draw)
        return floor, features

    if judge is not None:
        result["facts"]["judge"] = judge.facts
        floor, features = compare("fd_smallcnn", judge.features)
        kernel, some = mean_kernel(floor.train), floor.train[torch.randperm(len(train), generator=draw)[:n]]
        for which, found in features.items():
            result[which]["kid_smallcnn"] = kid(floor.train, found, kernel)
            result[which] |= prdc(some, found, NEIGHBOURS) | {"auth_pct": auth_pct(floor.train, found)}
            if conditional or which == "real":
                result[which]["accuracy"] = accuracy(judge.classify(found), labels)
        if conditional:
            result["by_class"] = {}
            for label, name in enumerate(prepared.classes):
                of, rows = floor.of(label), labels == label
                if min(len(of.train), len(of.held_out)) > 1:  # a covariance of one there is not
                    right = {"accuracy": accuracy(judge.classify(features["samples"][rows]), labels[rows])}
                    result["by_class"][name] = of.compare(features["samples"][rows], draw) | right
    if lite0 is not None:
        compare("fd_efflite0", lite0)
    say(
        "fid: not computed; only features of the TF-Inception network may bear that name, and its weights are not at hand"
    )
    return result


def in_words(figures: dict[str, Any]) -> Iterator[str]:
    """What `evaluate_images` found, for people."""
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


def beside_floor(row: dict[str, Any]) -> str:
    """A distance, its floor and that one's spread, in one line."""
    times = f", {row['times_floor']:.3g} times" if row["times_floor"] else ", against"
    return (
        f"{row['samples']:.4g}{times} the floor of {row['real']:.4g} (real images drawn anew: {row['mean']:.4g} +- "
        f"{row['std']:.2g}; {row['n']:,} images)"
    )


def shown(labels: Tensor, classes: int) -> tuple[Tensor, int]:
    """Which samples a grid shows, row by row, and its columns: one a class, where there are few classes, each full."""
    of = [rows for label in range(classes) if len(rows := (labels == label).nonzero()[:, 0])]
    if not 1 < len(of) <= 12:
        return torch.arange(min(len(labels), SHOWN)), 10
    depth = min(SHOWN // len(of), *map(len, of))
    return torch.stack([rows[:depth] for rows in of], dim=1).flatten(), len(of)


def evaluate_reconstruction(
    reconstruct: Callable[[Tensor], Tensor], prepared: PreparedImages, say: Say, n: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """How well held-out images survive `reconstruct`: uint8 (B, C, H, W) -> uint8 of that shape.

    psnr: dB, mean over images, an exact copy counted as 100; ssim: mean over images; rfd_smallcnn: Fréchet distance in
    the judge's features between the images and their reconstructions, 0 for copies.
    """
    n = held_out_count(prepared, n, say)
    rows = torch.randperm(len(prepared.val), generator=torch.Generator().manual_seed(seed))[:n]
    real = prepared.val.images[rows]
    rebuilt = checked(torch.cat([reconstruct(part) for part in real.split(BATCH)]), real)
    result: dict[str, Any] = {
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
    """n, or as many held-out images as there are, which is said."""
    if n > len(prepared.val):
        say(f"evaluate: {len(prepared.val):,} images are held out; everything is measured on as many, not on {n:,}")
        n = len(prepared.val)
    if n < 2 * NEIGHBOURS or len(prepared.train) < n:
        raise UserError(
            f"evaluate: {n} images against {len(prepared.train)}: at least {2 * NEIGHBOURS} are needed, and no fewer to train on"
        )
    return n


def checked(images: Tensor, like: Tensor) -> Tensor:
    """The images on the CPU; raises ValueError unless they are of the kind and shape of the real ones."""
    if images.dtype != torch.uint8 or images.shape != like.shape:
        raise ValueError(
            f"expected uint8 {tuple(like.shape)} as to_uint8 makes them, got {images.dtype} {tuple(images.shape)}"
        )
    return images.cpu()


def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with its pixels in an order of its own: the same colours, no shape."""
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
