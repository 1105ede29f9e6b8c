"""What `evaluate` says of a run of images: reconstructions, samples, and their nearest training images."""

import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.config.sample import DiffusionSettings, EvaluateConfig
from gengen.evaluation.features import EfficientNetFeatures, efficientnet
from gengen.evaluation.images import evaluate_images, evaluate_reconstruction, nearest_panel
from gengen.evaluation.judges import PreparedImages, Say, judge_for
from gengen.generation.pictures import enlarged, grid, write_png

SHOWN, COMPARED = 60, 12  # samples in the grid; samples shown beside their nearest training images


def evaluate_run(generator: Any, prepared: PreparedImages, config: EvaluateConfig, folder: Path, say: Say) -> dict[str, Any]:
    """Every figure that applies to the generator, and in `folder` samples.png and nearest.png.

    A generator has `judged(config)`: a call that draws an image for each label, or None where its draws are not meant to be
    pictures; and `reconstruct`, if it is an autoencoder.
    """
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
    conditional = bool(getattr(generator, "classes", []))
    figures = evaluate_images(generate, prepared, say, config.samples, config.seed, conditional=conditional, efficientnet=features)
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


def in_line(name: str, figures: dict[str, Any]) -> str:
    return f"{name:<15}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float))
