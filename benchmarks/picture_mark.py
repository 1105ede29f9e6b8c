"""How well the mark of pictures is found, clean and changed, beside chance.

    python benchmarks/picture_mark.py FOLDER... [n=200] [sizes=64,32] [seed=0]

FOLDER: pictures (PNG, JPEG, WebP) of any size, of which squares are cut and scaled. A row is a folder, or "smooth",
gradients that no file holds, at a size; 28 is grey. Found: the share with p <= 1e-3. q90, q75: JPEG. resized: to half
and back. cropped: 8 pixels less at the left and above. noise: of deviation 4. false: found without the mark.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from turns import arguments

from gengen.generation.image.mark import detect, marked

KEY = b"benchmark of marks of pictures.."


def from_folder(folder: Path, n: int, side: int, seed: int) -> list[np.ndarray]:
    draw, files = np.random.default_rng(seed), sorted(p for p in folder.rglob("*") if p.is_file())
    found = []
    for i in range(n):
        file = files[i % len(files)] if len(files) < n else files[draw.integers(len(files))]
        with Image.open(file) as opened:
            image = opened.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        least = min(image.size)
        cut = least if least < 2 * side else int(draw.uniform(max(side, least / 4), least))
        x, y = (int(draw.integers(length - cut + 1)) for length in image.size)
        square = image.crop((x, y, x + cut, y + cut)).resize((side, side), Image.Resampling.LANCZOS)
        found.append(np.asarray(square).transpose(2, 0, 1))
    return found


def smooth(n: int, side: int, seed: int) -> list[np.ndarray]:
    """Sums of four slow waves a channel."""
    draw, (y, x) = np.random.default_rng(seed), np.mgrid[:side, :side] / side
    waves = draw.uniform(0, 3, (n, 3, 4, 3, 1, 1))
    phases = waves[..., 0, :, :] * x + waves[..., 1, :, :] * y + waves[..., 2, :, :]
    return list((128 + 50 * np.cos(np.pi * phases).sum(2)).clip(0, 255).astype(np.uint8))


def through(image: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    changed = np.asarray(change(Image.fromarray(image.transpose(1, 2, 0) if len(image) == 3 else image[0])))
    return changed.transpose(2, 0, 1) if changed.ndim == 3 else changed[None]


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "jpeg", quality=quality)
        return Image.open(file)

    return change


def noisy(image: np.ndarray, deviation: float = 4.0) -> np.ndarray:
    noise = np.random.default_rng(int(image.sum())).normal(0, deviation, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def resized(image: Image.Image) -> Image.Image:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    return half.resize(image.size, Image.Resampling.BICUBIC)


def row(name: str, images: list[np.ndarray]) -> None:
    drawn = [marked(image, KEY) for image in images]
    error = np.array([((a.astype(float) - b) ** 2).mean() for a, b in zip(images, drawn, strict=True)])
    psnr = 10 * np.log10(255**2 / error)
    changed = {
        "clean": drawn,
        "q90": [through(image, jpeg(90)) for image in drawn],
        "q75": [through(image, jpeg(75)) for image in drawn],
        "resized": [through(image, resized) for image in drawn],
        "cropped": [image[:, 8:, 8:] for image in drawn],
        "noise": [noisy(image) for image in drawn],
        "false": images,
    }
    found = {k: np.mean([detect(image, KEY).p_value <= 1e-3 for image in pictures]) for k, pictures in changed.items()}
    z = np.array([detect(image, KEY).z for image in drawn])
    print(f"{name:20} PSNR {psnr.mean():.1f} dB, least {psnr.min():.1f}   z median {np.median(z):.1f}   found "
          + "  ".join(f"{k} {share:.3f}" for k, share in found.items()))  # fmt: skip


def main(folders: list[str], n: int, sizes: str, seed: int) -> None:
    sources: dict[str, Callable[[int], list[np.ndarray]]] = {
        Path(name).name: lambda side, name=name: from_folder(Path(name), n, side, seed) for name in folders
    }
    sources["smooth"] = lambda side: smooth(n, side, seed)
    for name, source in sources.items():
        for side in map(int, sizes.split(",")):
            row(f"{name} {side}", source(side))
        grey = [image.mean(0, keepdims=True).astype(np.uint8) for image in source(28)]
        row(f"{name} 28 grey", grey)


if __name__ == "__main__":
    asked, folders = arguments(sys.argv[1:], n=200, sizes="64,32", seed=0)
    main(folders, **asked)
