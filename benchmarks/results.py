"""Write the section on images of docs/results.md, and its pictures, from runs that were evaluated.

    python benchmarks/results.py codec=runs/codec pixels=runs/pixels latents=runs/latents vae=runs/vae gan=runs/gan ...

Every figure comes from the runs' evaluation.json, config.json and metrics.csv. The pictures are the models' own samples.
"""

import re
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from gengen.checkpoints.files import read_json
from gengen.training.metrics import read_metrics

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- written by benchmarks/results.py -->", "<!-- end -->"
SHOWN = {"pixels": "diffusion on pixels", "latents": "latent diffusion", "vae": "VAE, prior samples", "gan": "GAN", "dcgan": "DCGAN"}
TITLES = SHOWN | {"gan-1": "GAN, seed 1", "gan-2": "GAN, seed 2"}


class Evaluated:
    """A run and what was measured of it."""

    def __init__(self, path: Path):
        self.evaluation: dict[str, Any] = read_json(path / "evaluation.json")
        self.config: dict[str, Any] = read_json(path / "config.json")
        rows = read_metrics(path / "metrics.csv")
        self.seconds, self.step = rows[-1]["seconds"], rows[-1]["step"]
        self.speed = median(row["images_per_second"] for row in rows if row.get("images_per_second"))
        self.picture = path / "evaluation" / "samples.png"

    def trained(self) -> str:
        return f"{self.seconds:.0f} s, {self.step:,} steps of {self.config['data']['batch_size']}, {self.speed:.0f} images/s"


def figures(title: str, found: dict[str, float], real: dict[str, float], trained: str = "", drawn: str = "") -> str:
    floor = f"{found['fd_smallcnn']:.3f} ({found['fd_smallcnn'] / real['fd_smallcnn']:.2f}x)"
    accuracy = f"{100 * found['accuracy']:.1f} %" if "accuracy" in found else ""
    coverage = f"{found['coverage']:.3f} ({found['coverage'] / real['coverage']:.2f})"
    rest = f"{found['precision']:.3f} | {found['recall']:.3f} | {found['density']:.3f} | {coverage} | {found['auth_pct']:.1f} %"
    return f"| {title} | {trained} | {accuracy} | {floor} | {found['kid_smallcnn']:.4f} | {rest} | {drawn} |"


def section(runs: dict[str, Evaluated]) -> str:
    first = next(runs[name] for name in TITLES if name in runs)
    facts, real = first.evaluation["facts"], first.evaluation["real"]
    lines = [
        f"{facts['n']:,} class-balanced samples each, judged in the features of a classifier that is right on "
        f"{100 * real['accuracy']:.1f} % of as many held-out images; distances to {facts['reference']:,} training images. In brackets: "
        "times the distance of real held-out images, and share of their coverage.",
        "",
        "| | training | accuracy | fd_smallcnn | kid | precision | recall | density | coverage | auth_pct | drawing |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        figures("real, held out (the floor)", real, real),
        *(
            figures(title, run.evaluation["samples"], real, run.trained(), f"{run.evaluation['images_per_second']:.0f} images/s")
            for name, title in TITLES.items()
            if (run := runs.get(name))
        ),
        figures("noise (the ceiling)", first.evaluation["noise"], real),
        "",
    ]
    for name in ("codec", "vae"):
        if name in runs and "reconstruction" in (run := runs[name]).evaluation:
            r = run.evaluation["reconstruction"]
            z = f"{run.config['model']['name']}, {run.trained()}"
            lines += [
                f"Held-out images through the {z}: PSNR {r['psnr']:.2f} dB, SSIM {r['ssim']:.4f}, "
                f"distance of reconstructions {r['rfd_smallcnn']:.3f}.",
                "",
            ]
    for name, title in SHOWN.items():
        if name in runs:
            settings = runs[name].evaluation.get("settings")
            how = f": {settings['sampler']}, {settings['steps']} steps, guidance {settings['guidance']:g}" if settings else ""
            lines += [f"{title[0].upper()}{title[1:]}{how}", "", f"![{title}](pictures/{name}.png)", ""]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    runs = {name: Evaluated(Path(path)) for name, path in (argument.split("=", 1) for argument in arguments)}
    page = DOCS / "results.md"
    text = page.read_text()
    (DOCS / "pictures").mkdir(exist_ok=True)
    for name in SHOWN:
        if name in runs:
            shutil.copy(runs[name].picture, DOCS / "pictures" / f"{name}.png")
    page.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{section(runs)}\n{END}", text, flags=re.DOTALL))


if __name__ == "__main__":
    main(sys.argv[1:])
