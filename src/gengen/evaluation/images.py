"""What `evaluate` says of a run of images: how good samples and reconstructions are, beside what real images and noise score."""

import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.config.errors import UserError
from gengen.config.sample import DiffusionSettings, EvaluateConfig
from gengen.data.image_prepare import ImageSet, PreparedImages
from gengen.data.sources import Say
from gengen.evaluation.features import EfficientNetFeatures, efficientnet
from gengen.evaluation.judges import accuracy, judge_for
from gengen.evaluation.metrics import auth_pct, frechet_distance, gaussian, kid, nearest, prdc, psnr, ssim
from gengen.evaluation.report import in_line
from gengen.generation.pictures import enlarged, grid, write_png

REFERENCE = 5_000  # training images at most that Fréchet distance and KID compare with
NEIGHBOURS = 5  # the k of precision, recall, density and coverage
BATCH = 250
SHOWN, COMPARED = 60, 12  # samples in the grid; samples shown beside their nearest training images

Features = Callable[[Tensor], Tensor]
"""uint8 (N, C, H, W) -> (N, D)"""


def evaluate_run(generator: Any, prepared: PreparedImages, config: EvaluateConfig, folder: Path, say: Say) -> dict[str, Any]:
    """Every figure that applies to the generator, and in `folder` samples.png and nearest.png.
    A generator has `judged(config)`: a call that draws an image for each label, or None where its draws are not meant to be
    pictures; and `reconstruct`, if it is an autoencoder."""
    result: dict[str, Any] = {}
    if hasattr(generator, "reconstruct"):
        result["reconstruction"] = evaluate_reconstruction(generator.reconstruct, prepared, say, max(config.samples, 10), config.seed)
        say(in_line("reconstruction", result["reconstruction"]))
    draw: Callable[[Tensor], Tensor] | None = generator.judged(config)
    if draw is None or config.samples == 0:
        return result
    kept: list[Tensor] = []
    spent = 0.0

    def generate(labels: Tensor) -> Tensor:
        nonlocal spent
        start = time.perf_counter()
        kept.append(draw(labels))
        spent = time.perf_counter() - start
        return kept[0]

    features = EfficientNetFeatures(efficientnet(prepared.config.dir, say)) if config.efficientnet else None
    conditional = bool(generator.classes)
    figures = evaluate_images(generate, prepared, say, config.samples, config.seed, conditional=conditional, lite0=features)
    if hasattr(generator, "settings"):
        result["settings"] = {f.name: asdict(config)[f.name] for f in fields(DiffusionSettings)}
    result |= figures
    result["images_per_second"] = len(kept[0]) / spent
    say(f"drawing        {result['images_per_second']:.0f} images/s")
    for name in ("samples", "real", "noise"):
        say(in_line(name, figures[name]))
    folder.mkdir(exist_ok=True)
    columns = len(prepared.classes) if 1 < len(prepared.classes) <= 12 else 10
    write_png(folder / "samples.png", grid(enlarged(kept[0][: SHOWN // columns * columns]), columns))
    judge = judge_for(prepared, say)
    nearest_panel(kept[0][torch.arange(COMPARED)], prepared.train, folder / "nearest.png", judge.features if judge else None)
    say(f"pictures: {folder}/samples.png, {folder}/nearest.png (each sample, its nearest training images in pixels and in features)")
    return result


def evaluate_images(
    generate: Callable[[Tensor], Tensor], prepared: PreparedImages, say: Say, n: int = 1000, seed: int = 0, *,
    conditional: bool = True, lite0: Features | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Draw n class-balanced samples and judge them against the training split.

    generate(labels (n,)) -> uint8 (n, C, H, W), as `to_uint8` makes it. conditional=False: it ignores labels, so no class accuracy.
    lite0: EfficientNetFeatures, for `fd_efflite0`. The same seed draws the same real images.

    Returns the figures of the `samples`, of as many `real` held-out images (the floor) and of `noise` (the ceiling: those held-out
    images, each with its pixels shuffled), and under `facts` the counts and the judge's own accuracy. Fréchet distances depend on n."""
    n = held_out_count(prepared, n, say)
    draw = torch.Generator().manual_seed(seed)
    judge = judge_for(prepared, say)
    rows = torch.randperm(len(prepared.train), generator=draw)[: max(REFERENCE, n)]
    held_out = torch.randperm(len(prepared.val), generator=draw)[:n]
    real, real_labels = prepared.val.images[held_out], prepared.val.labels[held_out]
    labels = torch.arange(n) % max(len(prepared.classes), 1)
    samples = checked(generate(labels), real)
    images = {"samples": (samples, labels), "real": (real, real_labels), "noise": (shuffled(real, draw), real_labels)}
    result: dict[str, Any] = {name: {} for name in images}
    result["facts"] = {"n": n, "seed": seed, "reference": len(rows), "train": len(prepared.train)}
    result["facts"]["noise"] = "held-out images, the pixels of each shuffled"
    if judge is not None:
        result["facts"]["judge"] = judge.facts
        counts = prepared.train.labels[prepared.train.labels >= 0].bincount(minlength=len(prepared.classes)).double()
        if counts.max() > 2 * counts.mean():
            say("evaluate: the classes differ much in size; balanced samples differ from the data in that too, as does every distance")
        everything = judge.features(prepared.train.images)  # (N, 128)
        drawn = everything[rows]
        for name, (pictures, wanted) in images.items():
            features = judge.features(pictures)
            result[name]["fd_smallcnn"] = frechet_distance(*gaussian(drawn), *gaussian(features))
            result[name]["kid_smallcnn"] = kid(drawn, features)
            result[name] |= prdc(drawn[:n], features, NEIGHBOURS) | {"auth_pct": auth_pct(everything, features)}
            if conditional or name == "real":
                result[name]["accuracy"] = accuracy(judge.classify(features), wanted)
    if lite0 is not None:
        target = gaussian(lite0(prepared.train.images[rows]))
        for name, (pictures, _) in images.items():
            result[name]["fd_efflite0"] = frechet_distance(*target, *gaussian(lite0(pictures)))
    say("fid: not computed; only features of the TF-Inception network may bear that name, and its weights are not at hand")
    return result


def evaluate_reconstruction(
    reconstruct: Callable[[Tensor], Tensor], prepared: PreparedImages, say: Say, n: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """How well held-out images survive `reconstruct`: uint8 (B, C, H, W) -> uint8 of that shape.

    psnr: dB, mean over images, an exact copy counted as 100; ssim: mean over images; rfd_smallcnn: Fréchet distance in the judge's
    features between the images and their reconstructions, 0 for copies.
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
        raise ValueError(f"expected uint8 {tuple(like.shape)} as to_uint8 makes them, got {images.dtype} {tuple(images.shape)}")
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
