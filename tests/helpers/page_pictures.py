"""Pictures on a page of the playground as tensors, and what "repeat this elsewhere" says of a result, repeated."""

import base64
import io
import re
from contextlib import chdir, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from torch import Tensor

from gengen.cli import main
from helpers.served import pixels

DRAWN = re.compile(r" in [0-9.]+ s$")


def drawn(page: Page) -> Page:
    """The page once its main act is done."""
    expect(page.locator(".act [role=status]")).to_have_text(DRAWN, timeout=20_000)
    return page


def picture_of(image: Locator) -> Tensor:
    """The picture of an <img>: uint8 (C, H, W)."""
    source = image.get_attribute("src") or ""
    assert source.startswith("data:image/png;base64,"), source[:80]
    return pixels(source.partition(",")[2])


def pictures_of(images: Locator) -> Tensor:
    return torch.stack([picture_of(image) for image in images.all()])


def file_of(path: Path) -> Tensor:
    array = np.array(Image.open(path))
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def copied(page: Page, name: str) -> str:
    """What is copied by a button of "repeat this elsewhere"."""
    if page.locator("details.copy").get_attribute("open") is None:
        page.locator("details.copy > summary").click()
    page.locator("details.copy").get_by_role("button", name=name).click()
    return page.locator("details.copy pre").inner_text()


def outcome(python: str) -> tuple[dict[str, Any], str]:
    """The names that a copied program leaves, and what it prints."""
    names: dict[str, Any] = {}
    said = io.StringIO()
    with redirect_stdout(said):
        exec(python, names)
    return names, said.getvalue()


def executed(python: str, runs: Path) -> dict[str, Any]:
    """The names that a copied program leaves, run beside a folder `runs`."""
    with TemporaryDirectory() as folder, chdir(folder):
        Path("runs").symlink_to(runs)
        return outcome(python)[0]


def run_command(words: list[str]) -> None:
    """Run the words of a line in this process: a command of gengen, or one that writes what it holds."""
    if words[0] == "echo":
        Path(words[-1]).write_bytes(base64.b64decode(words[1]))
        return
    assert words[:2] == ["python", "scripts/sample.py"], words
    assert main(["sample", *words[2:]]) == 0, words
