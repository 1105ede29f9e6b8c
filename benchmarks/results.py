"""Write the section on images of docs/results.md, and its pictures, from runs that were evaluated.

    python benchmarks/results.py codec=runs/codec pixels=runs/pixels latents=runs/latents vae=runs/vae gan=runs/gan ...

Every figure comes from the runs' evaluation.json, config.json and metrics.csv. The pictures are the models' own
samples.
"""

import re
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from gengen.checkpoints.files import read_json
from gengen.checkpoints.metrics_csv import read_metrics

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- written by benchmarks/results.py -->", "<!-- end -->"
SHOWN = {
    "pixels": "diffusion on pixels",
    "latents": "latent diffusion",
    "dit": "diffusion transformer on pixels",
    "latent_dit": "diffusion transformer on latents",
    "vae": "VAE, prior samples",
    "gan": "GAN",
    "dcgan": "DCGAN",
}
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
        batch = self.config["data"]["batch_size"]
        return f"{self.seconds:.0f} s, {self.step:,} steps of {batch}, {self.speed:.0f} images/s"


COLUMNS = ["training", "accuracy", "fd_smallcnn", "times the floor", "kid", "precision", "recall", "density"]
COLUMNS += ["coverage", "auth_pct", "drawing"]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def figures(title: str, measured: dict[str, Any], which: str, trained: str = "", drawn: str = "") -> str:
    """A row of the table: of an evaluation, the figures of its samples, of real images, or of noise."""
    found, real, floor = measured[which], measured["real"], measured["floor"]["fd_smallcnn"]
    accuracy = f"{100 * found['accuracy']:.1f} %" if "accuracy" in found else ""
    distance, times = found["fd_smallcnn"], found["fd_smallcnn"] / floor["real"]
    floors = f"{times:.2f} ± {times * floor['std'] / floor['real']:.2f}"
    rest = [f"{found[name]:.3f}" for name in ("precision", "recall", "density")]
    rest += [f"{found['coverage']:.3f} ({found['coverage'] / real['coverage']:.2f})", f"{found['auth_pct']:.1f} %"]
    return row(title, trained, accuracy, f"{distance:.3f}", floors, f"{found['kid_smallcnn']:.4f}", *rest, drawn)


def comparable(runs: dict[str, Evaluated]) -> dict[str, Any]:
    """One of the evaluations, if all were measured on the same images by the same judge; else ends and says so."""
    measured = {name: run.evaluation for name, run in runs.items() if name in TITLES}
    name, first = next(iter(measured.items()))
    for other, found in measured.items():
        if "floor" not in found:
            raise SystemExit(f"{other}: evaluated without its floor; evaluate it anew")
        if found["facts"] != first["facts"]:
            raise SystemExit(f"{other}: not measured on the images, or by the judge, of {name}; evaluate both alike")
    return first


def by_class(runs: dict[str, Evaluated]) -> list[str]:
    """A table of each class: its floor, and how many times that floor the families are."""
    found = {name: run.evaluation.get("by_class") for name, run in runs.items() if name in SHOWN}
    conditional = {SHOWN[name]: classes for name, classes in found.items() if classes}
    if not conditional:
        return []
    first = next(iter(conditional.values()))
    few = "; of so few images it is mostly noise" if any(of["few"] for of in first.values()) else ""
    floors = [f"{of['real']:.2f}, {of['mean']:.2f} ± {of['std']:.2f}" for of in first.values()]
    times = {title: [f"{of['times_floor']:.2f}" for of in classes.values()] for title, classes in conditional.items()}
    return [
        f"By class, fd_smallcnn as times the floor of the class{few}:",
        "",
        row("", *first),
        row(*["---"] * (len(first) + 1)),
        row("images", *(str(of["n"]) for of in first.values())),
        row("the floor; real images drawn anew", *floors),
        *(row(title, *of_classes) for title, of_classes in times.items()),
        "",
    ]


def section(runs: dict[str, Evaluated]) -> str:
    first = comparable(runs)
    facts, real, floor = first["facts"], first["real"], first["floor"]["fd_smallcnn"]
    lines = [
        f"{facts['n']:,} samples each, with the labels of as many held-out images, judged in features of a classifier "
        f"that is right on {100 * real['accuracy']:.1f} % of those; distances to all {facts['reference']:,} training "
        "images. The floor is what the held-out images score. As many real images of the same labels, drawn anew "
        f"{floor['redraws']} times from all real ones, score {floor['mean']:.3f} ± {floor['std']:.3f}; times the "
        "floor has this spread. In brackets: share of the coverage of held-out images.",
        "",
        row("", *COLUMNS),
        row(*["---"] * (len(COLUMNS) + 1)),
        figures("real, held out (the floor)", first, "real"),
        *(
            figures(TITLES[name], e, "samples", runs[name].trained(), f"{e['images_per_second']:.0f} images/s")
            for name in TITLES
            if name in runs and (e := runs[name].evaluation)
        ),
        figures("noise (the ceiling)", first, "noise"),
        "",
        *by_class(runs),
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
            how = (
                f": {settings['sampler']}, {settings['steps']} steps, guidance {settings['guidance']:g}"
                if settings
                else ""
            )
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
