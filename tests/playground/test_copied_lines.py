"""Every line that a page offers under "Repeat this elsewhere" makes what the page shows: Python by exec, requests by
curl in a shell, commands by gengen's own main.

The pages offer no command for what goes on from single tokens (text), for more than one message or an answer of a
given form (chat), for a latent moved by hand or a map (autoencoder): the command has no words for them, and the line
says so.
"""

import json
import re
import shlex
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Page
from test_run_files import write_files
from torch import Tensor

from helpers.image_stand_ins import png
from helpers.page_pictures import copied, drawn, file_of, outcome, picture_of, run_command
from helpers.pages import Visit
from helpers.served import Process, pixels

pytestmark = pytest.mark.slow
Results = Sequence[str | Tensor]
"""Texts, and pictures as uint8 (C, H, W), in the order of the page."""


def texts(selector: str) -> Callable[[Page], Results]:
    return lambda page: page.locator(selector).all_text_contents()


def pictures(selector: str) -> Callable[[Page], Results]:
    return lambda page: [picture_of(image) for image in page.locator(selector).all()]


def calls_of_tools(page: Page) -> Results:
    """Calls of tools, which the page writes as name(arguments), as the model does."""
    written = texts(".answer")(page)
    return [re.sub(r"^(\w+)\((.*)\)$", r'{"name":"\1","arguments":\2}', str(text)) for text in written]


def of_each_family(page: Page) -> Results:
    """What the page of ideas draws, but for what it draws to show how families fail."""
    text = page.locator("blockquote").text_content() or ""
    diffusion, autoencoder, gan = ([*page.locator("section").nth(i).locator("img").all()] for i in (1, 2, 3))
    return [text.removeprefix("Once upon a time"), *map(picture_of, [diffusion[1], autoencoder[0], *gan])]


@dataclass(frozen=True)
class Offer:
    """where: the page by its hash. shown: what it then shows. commands: whether it offers one."""

    where: str
    shown: Callable[[Page], Results]
    commands: bool = True


TEXTS, RESULTS = texts("[role=listbox]"), pictures("img.result")
LITTLE = "max_tokens=9&seed=2&shown=1"
PICTURE = urlsafe_b64encode(png(np.arange(90, 154, dtype=np.uint8).reshape(8, 8))).decode()
OFFERS = {
    "text": Offer(
        f"text?run=story&prompt=Say+%22hi%22,+it%27s%0Ame&n=2&seeds=2&top_k=50&b_temperature=0.5&{LITTLE}", TEXTS
    ),
    "text from tokens": Offer(f"text?run=story&from=0,79,110,99&n=2&{LITTLE}", TEXTS, commands=False),
    "chat": Offer(f"chat?run=chat&say=Hi,+%24HOME&n=2&min_p=0.01&{LITTLE}", texts(".answer")),
    "chat, further": Offer(
        "chat?run=chat&say=Hi&system=Be+kind&messages=%5B%7B%22role%22:%22user%22,%22content%22:%22So%22%7D%5D&"
        f"{LITTLE}",
        texts(".answer"), commands=False,
    ),
    "chat, schema": Offer(
        "chat?run=chat&say=Hi&form=schema&n=2&max_tokens=60&seed=2&shown=1", texts(".answer"), commands=False
    ),
    "chat, tool": Offer(
        "chat?run=chat&say=Hi&form=tool&max_tokens=60&seed=2&shown=1", calls_of_tools, commands=False
    ),
    "stages": Offer(f"stages?run=chat&prompt=It%27s+%5C&{LITTLE}", texts(".columns [role=listbox]")),
    "diffusion": Offer("diffusion?run=text&prompt=it%27s+red&steps=3&guidance=2.5&negative=blue&drawn=1", RESULTS),
    "diffusion, table": Offer(
        "diffusion?run=unet&view=guidance&prompts=dog%0Afox&guidances=1,3&steps=3&drawn=1", pictures("td img")
    ),
    "edit, a part": Offer("edit?run=unet&mask=left&prompt=dog&steps=3&resamples=2&drawn=1", RESULTS),
    "edit, painted": Offer("edit?run=unet&mask=AQIECBAgQIA=&prompt=dog&steps=3&resamples=2&n=1&drawn=1", RESULTS),
    "edit, all of it": Offer(f"edit?run=unet&way=vary&steps=3&picture={PICTURE}&drawn=1", RESULTS),
    "edit, beyond": Offer("edit?run=unet&way=outpaint&right=4&top=2&steps=3&resamples=2&drawn=1", RESULTS),
    "edit, mix": Offer("edit?run=text&way=remix&to=it%27s+blue&pictures=3&steps=3&drawn=1", RESULTS),
    "autoencoder": Offer("autoencoder?first=2&seed=5", pictures("img.large")),
    "autoencoder, moved": Offer("autoencoder?first=2&seed=5&c1=2.5", pictures("img.large"), commands=False),
    "autoencoder, path": Offer("autoencoder?view=path&first=1&seed=4&steps=3", pictures(".strip img")),
    "autoencoder, map": Offer("autoencoder?view=plane&first=1&seed=4", pictures("td img"), commands=False),
    "autoencoder, copy": Offer(
        f"autoencoder?view=reconstruct&picture={PICTURE}", lambda page: pictures("img.large")(page)[1:]
    ),
    "gan": Offer("gan?n=20&seed=3&truncation=0.5", pictures(".grid img")),
    "gan, a class": Offer("gan?n=2&seed=3&prompt=dog", pictures(".grid img")),
    "gan, walk": Offer("gan?view=walk&first=1&seed=3&steps=4&prompt=dog&truncation=0.7", pictures(".strip img")),
    "ideas": Offer("ideas?drawn=1", of_each_family),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFERS)
def test_each_line_makes_what_the_page_shows(
    visit: Visit, play: Process, served_runs: Path, tmp_path: Path, name: str
) -> None:
    offer = OFFERS[name]
    with visit(offer.where) as page:
        shown = offer.shown(drawn(page))
        python, requests, commands = (copied(page, way) for way in ("Python", "curl", "command"))
    assert shown
    (tmp_path / "runs").symlink_to(served_runs)
    with chdir(tmp_path):
        assert_same(by_python(python, shown), shown)
        assert_same(by_curl(requests), shown)
        if offer.commands:
            assert_same(by_commands(commands)[-len(shown) :], shown)
        else:
            assert commands.startswith("# "), "a line that is no command says so"


def assert_same(found: Results, shown: Results) -> None:
    assert len(found) == len(shown)
    for one, other in zip(found, shown, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            assert torch.equal(one, other)
        else:
            assert one == other


def by_python(program: str, shown: Results) -> Results:
    """What a program prints, if it prints; else the samples that it leaves."""
    names, printed = outcome(program)
    if printed:
        whole = "".join(f"{text}\n" for text in shown)
        return shown if printed == whole else [printed]
    made = [value for name, value in names.items() if name in ("images", "text", "diffusion", "autoencoder", "gan")]
    return [*flat(made)]


def flat(made: Any) -> Iterator[str | Tensor]:
    """Texts and single pictures out of samples and tensors of them, however deep."""
    if isinstance(made, Tensor):
        yield from made.flatten(0, -4) if made.dim() > 3 else [made]
    elif isinstance(made, list):
        for part in made:
            yield from flat(part)
    else:
        yield made.text


def by_curl(lines: str) -> Results:
    """What the server answers to the lines, which a shell runs as they are."""
    said = subprocess.run(["bash", "-ec", lines], capture_output=True, text=True, check=True).stdout
    decoder, found, at = json.JSONDecoder(), list[str | Tensor](), 0
    while at < len(said):
        answer, at = decoder.raw_decode(said, at)
        found += samples_of(answer)
    return found


def samples_of(answer: dict[str, Any]) -> Results:
    match answer:
        case {"choices": choices}:
            return [text_of(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]
        case {"rows": rows}:
            return [pixels(picture) for row in rows for picture in row]
        case {"data": rows}:
            return [pixels(row["b64_json"]) for row in rows]
        case {"b64_json": picture}:
            return [pixels(picture)]
    raise AssertionError(answer)


def text_of(choice: dict[str, Any]) -> str:
    """The text of a choice; a call of a tool as the model writes it."""
    if "text" in choice:
        return str(choice["text"])
    if calls := choice["message"].get("tool_calls"):
        return f'{{"name":"{calls[0]["function"]["name"]}","arguments":{calls[0]["function"]["arguments"]}}}'
    return str(choice["message"]["content"])


def by_commands(lines: str) -> Results:
    """The files that the commands write, but for pictures that a later one begins with, and the texts."""
    found: list[str | Tensor] = []
    for words in words_of(lines):
        folder = next((word.removeprefix("out=") for word in words if word.startswith("out=")), None)
        if folder is None and words[0] == "python":
            run_command([*words, "out=texts.jsonl"])
            found += [json.loads(line)["text"] for line in Path("texts.jsonl").read_text().splitlines()]
            continue
        run_command(words)
        if folder and f"image={folder}/" not in lines:
            found += [file_of(path) for path in sorted(Path(folder).glob("0*.png"))]
    return found


def words_of(lines: str) -> Iterator[list[str]]:
    """The words of each line as a shell reads them; a text in quotes may have lines of its own."""
    begun = ""
    for line in lines.splitlines():
        try:
            yield shlex.split(begun + line, comments=True)
            begun = ""
        except ValueError:  # a quote is still open
            begun += f"{line}\n"
    assert not begun


def test_both_texts_of_a_vote(visit: Visit, served_runs: Path, tmp_path: Path) -> None:
    """Requests and commands draw as many samples as the pair was drawn from; Python says which of them it has."""
    with visit("prefer?prompts=It%27s&max_tokens=12&run=story&other=chat&annotator=copier") as page:
        page.keyboard.press("Control+Enter")
        page.get_by_role("heading", name="Pair 1").wait_for()
        shown = page.locator(".columns .tokens").all_text_contents()
        page.keyboard.press("1")
        page.get_by_role("heading", name="Pair 2").wait_for()
        python, requests, commands = (copied(page, way) for way in ("Python", "curl", "command"))
    (tmp_path / "runs").symlink_to(served_runs)
    left, right = map(int, re.findall(r"\)\[(\d)\]\.text", python))
    with chdir(tmp_path):
        assert_same(by_python(python, shown), shown)
        for samples in (by_curl(requests), by_commands(commands)):
            assert_same([samples[left], samples[2 + right]], shown)


def test_the_last_row_of_a_run(visit: Visit, served_runs: Path, tmp_path: Path) -> None:
    write_files(served_runs / "it's", rows=3)
    with visit("run?runs=it%27s") as page:
        row = page.get_by_role("row", name="it's")
        step, loss = (row.get_by_role("cell").nth(i).inner_text() for i in (2, 3))
        python, requests, tail = (copied(page, way) for way in ("Python", "curl", "command"))
    (tmp_path / "runs").symlink_to(served_runs)
    with chdir(tmp_path):
        _, printed = outcome(python)
        answer, line = (
            subprocess.run(["bash", "-ec", lines], capture_output=True, text=True, check=True).stdout
            for lines in (requests, tail)
        )
    columns = json.loads(answer)["columns"]
    head = (served_runs / "it's/metrics.csv").read_text().splitlines()[0].split(",")
    for last in (eval(printed), {k: v[-1] for k, v in columns.items()}, dict(zip(head, line.split(","), strict=True))):
        assert f"{float(last['step']):g} of 500" == step and float(f"{float(last['train/loss']):.3g}") == float(loss)
