"""Train the runs that the pictures of docs/playground.md show, a minute or two each, on drawings and stories that are
made up from a seed. `make screenshots` calls it; a run that is there stays.

python tests/playground/pictured_runs.py FOLDER
"""

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from gengen.cli import main

SIDE, FINE = 16, 16  # pixels; drawn so many times larger, and averaged
COLOURS = {
    "red": (214, 40, 46),
    "orange": (240, 140, 30),
    "green": (46, 150, 66),
    "blue": (40, 90, 210),
    "purple": (130, 60, 170),
}
SHAPES = {  # corners, within a circle of radius 1 about the middle; a circle has none
    "circle": [],
    "square": [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)],
    "triangle": [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)],
    "heart": [(0, 0.95), (-0.9, 0), (-0.9, -0.5), (-0.5, -0.8), (0, -0.4), (0.5, -0.8), (0.9, -0.5), (0.9, 0)],
}
EACH = 100  # drawings of a shape in a colour
RUNS = {  # in this order: later ones begin with earlier ones
    "story": "model=gpt model.size=nano model.context=112 data=storygen data.batch_size=16 trainer.max_steps=300",
    "chat": "stage=sft init_from={folder}/story data=stories data.batch_size=16 trainer.max_steps=120",
    "reward": "stage=reward init_from={folder}/chat data=preferences data.batch_size=16 trainer.max_steps=60",
    "text": "model=unet model.size=micro model.patch=2 model.text=true {drawings} trainer.max_steps=600",
    "vae": "model=vae model.widths=[32,64,64] model.patch=2 model.beta=0.3 {drawings} trainer.max_steps=600",
    "gan": "model=gan model.size=nano model.patch=2 {drawings} trainer.max_steps=1000",
}


def drawing(shape: str, colour: str, draw: random.Random) -> Image.Image:
    """One shape in one colour on white, a little to the side, a little larger or smaller."""
    large = Image.new("RGB", (SIDE * FINE, SIDE * FINE), "white")
    x, y = (FINE * (SIDE / 2 + draw.uniform(-1.5, 1.5)) for _ in "xy")
    radius = FINE * draw.uniform(4.5, 6.5)
    pen = ImageDraw.Draw(large)
    if corners := SHAPES[shape]:
        pen.polygon([(x + radius * right, y + radius * down) for right, down in corners], fill=COLOURS[colour])
    else:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


def write_drawings(folder: Path) -> None:
    """A folder for each shape, and a caption for each drawing."""
    rows = []
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for colour in COLOURS:
            for i in range(EACH):
                name = f"{shape}/{colour}-{i:03}.png"
                drawing(shape, colour, random.Random(name)).save(folder / name)
                rows.append({"file_name": name, "text": f"a {colour} {shape}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def train(folder: Path) -> None:
    """Train the runs that are missing in a folder."""
    shown = folder / "drawings"
    if not shown.exists():
        write_drawings(shown)
    drawings = f"data=imagefolder data.path={shown} data.resolution={SIDE} data.batch_size=32"
    for name, settings in RUNS.items():
        if not (folder / name).exists():
            words = settings.format(folder=folder, drawings=drawings).split()
            common = [f"run={name}", f"runs_dir={folder}", f"data.dir={folder}/prepared", "trainer.precision=fp32"]
            common += ["trainer.save_every=100", "trainer.sample_every=100"]
            assert main(["train", *words, *common]) == 0, name


if __name__ == "__main__":
    train(Path(sys.argv[1]).absolute())
