"""How good generated or reconstructed images are, beside what real images and noise score at the same count."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.config.errors import UserError
from gengen.evaluation.judges import ImageSet, PreparedImages, Say, accuracy, judge_for
from gengen.evaluation.metrics import auth_pct, frechet_distance, gaussian, kid, nearest, prdc, psnr, ssim

REFERENCE = 5_000  # training images at most that Fréchet distance and KID compare with
NEIGHBOURS = 5  # the k of precision, recall, density and coverage
BATCH = 250

Features = Callable[[Tensor], Tensor]
"""uint8 (N, C, H, W) -> (N, D)"""


@dataclass(frozen=True)
class Reference:
    """The judge's features of the training split, and of the images drawn from it to compare with."""

    everything: Tensor  # (N, 128)
    drawn: Tensor  # (R, 128)

    def figures(self, features: Tensor) -> dict[str, float]:
        """All figures in the judge's features. Precision to coverage compare with as many training images as there are samples."""
        return {
            "fd_smallcnn": frechet_distance(*gaussian(self.drawn), *gaussian(features)),
            "kid_smallcnn": kid(self.drawn, features),
            **prdc(self.drawn[: len(features)], features, NEIGHBOURS),
            "auth_pct": auth_pct(self.everything, features),
        }


def evaluate_images(
    generate: Callable[[Tensor], Tensor],
    prepared: PreparedImages,
    say: Say,
    n: int = 1000,
    seed: int = 0,
    *,
    conditional: bool = True,
    efficientnet: Features | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Draw n class-balanced samples and judge them against the training split.

    generate(labels (n,)) -> uint8 (n, C, H, W), as `to_uint8` makes it. conditional=False: it ignores labels, so no class accuracy.
    efficientnet: EfficientNetFeatures, for `fd_efflite0`. The same seed draws the same real images.

    Returns the figures of the `samples`, of as many `real` held-out images (the floor) and of `noise` (the ceiling: those held-out
    images, each with its pixels shuffled), and under `facts` the counts and the judge's own accuracy. Fréchet distances depend on n.
    """
    n = held_out_count(prepared, n, say)
    draw = torch.Generator().manual_seed(seed)
    judge = judge_for(prepared, say, device)
    rows = torch.randperm(len(prepared.train), generator=draw)[: max(REFERENCE, n)]
    held_out = torch.randperm(len(prepared.val), generator=draw)[:n]
    real, real_labels = prepared.val.images[held_out], prepared.val.labels[held_out]
    labels = torch.arange(n) % max(len(prepared.classes), 1)
    samples = checked(generate(labels), real)
    images = {"samples": (samples, labels), "real": (real, real_labels), "noise": (shuffled(real, draw), real_labels)}
    result: dict[str, Any] = {name: {} for name in images}
    result["facts"] = {
        "n": n,
        "seed": seed,
        "reference": len(rows),
        "train": len(prepared.train),
        "noise": "held-out images, the pixels of each shuffled",
    }
    if judge is not None:
        result["facts"]["judge"] = judge.facts
        _warn_if_unbalanced(prepared, say)
        everything = judge.features(prepared.train.images)
        reference = Reference(everything, everything[rows])
        for name, (pictures, wanted) in images.items():
            features = judge.features(pictures)
            result[name] |= reference.figures(features)
            if conditional or name == "real":
                result[name]["accuracy"] = accuracy(judge.classify(features), wanted)
    if efficientnet is not None:
        target = gaussian(efficientnet(prepared.train.images[rows]))
        for name, (pictures, _) in images.items():
            result[name]["fd_efflite0"] = frechet_distance(*target, *gaussian(efficientnet(pictures)))
    say("fid: not computed; only features of the TF-Inception network may bear that name, and its weights are not at hand")
    return result


def evaluate_reconstruction(
    reconstruct: Callable[[Tensor], Tensor], prepared: PreparedImages, say: Say, n: int = 1000, seed: int = 0, *, device: str = "cpu"
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
    judge = judge_for(prepared, say, device)
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


def _warn_if_unbalanced(prepared: PreparedImages, say: Say) -> None:
    labels = prepared.train.labels
    counts = labels[labels >= 0].bincount(minlength=len(prepared.classes)).double()
    if counts.max() > 2 * counts.mean():
        say("evaluate: the classes differ much in size; balanced samples differ from the data in that too, and every distance includes it")


def nearest_panel(samples: Tensor, train: ImageSet, path: Path, features: Features | None = None, k: int = 3) -> None:
    """Write a PNG with a row a sample: it, its k nearest training images in pixels, then its k nearest in `features`.

    samples: uint8 (N, C, H, W), a few dozen; features: for one, the judge's.
    """
    from torchvision.utils import make_grid, save_image

    columns = [samples[:, None].cpu(), train.images[nearest(train.images, samples.cpu(), k)]]
    if features is not None:
        columns.append(train.images[nearest(features(train.images), features(samples), k)])
    pictures = torch.cat(columns, 1)  # (N, 1 + k or 1 + 2 k, C, H, W)
    grid = make_grid(pictures.flatten(0, 1).float() / 255, nrow=pictures.shape[1], padding=2, pad_value=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid, path)
