"""Pictures changed from the command line, by a model trained for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gengen
from gengen.cli import main

SMALL = [
    "model=unet", "model.inpaint=true", "model.widths=[32]", "model.blocks=1", "model.attention=[0]",
    "model.patch=4", "data.batch_size=12", "trainer.max_steps=4", "trainer.save_every=4", "trainer.eval_every=4",
    "trainer.sample_every=4", "trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(picture_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("editing-runs")
    assert main(["train", *picture_data, *SMALL, f"runs_dir={runs}", "run=r"]) == 0
    return runs / "r"


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def test_a_picture_is_changed_behind_a_mask_and_nowhere_else(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pictures / "circle" / "00.png"
    argv = [
        "sample",
        str(run),
        "what=edit",
        f"image={image}",
        "mask=right",
        "labels=cross",
        "n=2",
        "steps=2",
        "seed=3",
    ]
    assert main(argv) == 0
    folder = run / "samples" / "edit-3"
    drawn, original = pixels(folder / "00001.png"), pixels(image)
    assert torch.equal(drawn[:, :8], original[:, :8]) and not torch.equal(drawn, original)
    assert "edit-3/grid.png" in capsys.readouterr().out
    assert [fact["class"] for fact in json.loads((folder / "samples.json").read_text())] == ["cross", "cross"]
    again = gengen.load(str(run)).edit(str(image), "right", n=2, labels=["cross"], steps=2, seed=3)
    assert torch.equal(again[1, 0], drawn)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["what=edit"], "image=FILE"),
        (["what=edti"], "edit"),
        (["what=edit", "image=nosuch.png", "mask=left"], "image=nosuch.png"),
        (["what=edit", "image=CIRCLE", "mask=0,0,99,4"], "0 <= x0 < x1 <= 16"),
        (["what=edit", "image=CIRCLE", "mask=left", "strength=0"], "strength"),
        (["what=edit", "image=CIRCLE", "mask=left", "strength=nan"], "strength"),
        (["what=edit", "image=CIRCLE", "mask=left", "resamples=0"], "resamples"),
        (["what=edit", "image=CIRCLE", "mask=left", "prompt=a cat"], "no texts"),
        (["what=outpaint", "image=CIRCLE"], "how many pixels"),
        (["what=variations", "image=CIRCLE", "strength=1.5"], "strength"),
    ],
)
def test_a_mistake_is_one_message(
    run: Path, pictures: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    circle = str(pictures / "circle" / "00.png")
    assert main(["sample", str(run), "steps=2", *(a.replace("CIRCLE", circle) for a in argv)]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error, error
