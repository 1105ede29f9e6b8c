"""Every command and every Python snippet in the README and in docs/ runs, scaled down, in the order of its page."""

import importlib
import json
import re
import shlex
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import gengen
from gengen import registry
from gengen.cli import main
from gengen.cli.sweep import jobs
from gengen.config.compose import compose_train, field_settings, read_command_line
from gengen.data.sources import wheels
from gengen.registry import DATA
from helpers.sentence_encoder import write_package
from helpers.served import Process, new_process

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
SMALL = [
    "model.size=nano", "model.layers=1", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.ff=32",
    "model.context=32",
    "model.vocab_size=300", "data.batch_size=4", "trainer.max_steps=6", "trainer.save_every=2", "trainer.eval_every=3",
    "trainer.sample_every=6", "trainer.log_every=2", "trainer.precision=fp32", "trainer.device=cpu",
    "trainer.compile=false",
    "logger=csv",
]  # fmt: skip


SMALL_IMAGES = [
    "data=imagefolder", "data.resolution=16", "data.channels=1", "data.batch_size=12", "trainer.max_steps=6",
    "trainer.save_every=2", "trainer.eval_every=3", "trainer.sample_every=6", "trainer.log_every=2",
    "trainer.precision=fp32",
    "trainer.device=cpu", "trainer.compile=false",
]  # fmt: skip
SHAPES = {"unet": ["model.widths=[32]", "model.blocks=1", "model.attention=[0]", "model.patch=4"]}
SHAPES["ldm"] = SHAPES["unet"][:3]
SHAPES["dit"] = ["model.layers=1", "model.width=32", "model.heads=2", "model.patch=4"]
SHAPES["latent_dit"] = [*SHAPES["dit"][:3], "model.patch=1"]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The ```bash and ```python blocks of a page, in order: language and text."""
    return re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The commands of a ```bash block, comments left out, continued lines joined."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def scaled(argv: list[str], data: Path, pictures: Path, captioned: Path) -> list[str]:
    """The command with a tiny model; what a run already fixes is left as it is."""
    command, rest = argv[0], argv[1:]
    known = {key for key, _ in field_settings(read_command_line(rest))} if command in ("train", "prepare") else set()
    chosen = dict(a.split("=", 1) for a in rest if "=" in a)
    family = chosen.get("model", "gpt") if command == "train" else family_of(rest)
    if family and family not in ("gpt", "gpt2", "llama"):
        if command == "train":
            shape = SHAPES.get(family, ["model.widths=[16,32]", "model.blocks=1", "model.patch=2"])
            shown = captioned if "model.text=true" in argv else pictures
            argv = [a for a in argv if a != "data.holdout=combinations"]  # the stand-in pictures show none
            return [*argv, *SMALL_IMAGES, *shape, f"data.path={shown}", f"data.dir={data}"]
        argv = [
            "labels=cross,circle" if a.startswith("labels=") else a for a in argv
        ]  # classes of the stand-in pictures
        return [
            *argv,
            *(["samples=12"] if command == "evaluate" else []),
            *(["steps=2"] if family in ("unet", "ldm", "dit", "latent_dit") else []),
        ]
    if command == "prepare" and DATA.entries[chosen["data"]].kind == "image":
        return [*argv[:1], "data=imagefolder", f"data.path={pictures}", "data.resolution=16", f"data.dir={data}"]
    if command == "sample":
        return [*argv, *([] if "max_tokens" in " ".join(rest) else ["max_tokens=8"])]
    if command == "prepare":
        return [*argv, f"data.dir={data}", "model.vocab_size=300"]
    if (
        command == "train"
        and "run" in known
        and (Path("runs") / next(a[4:] for a in rest if a.startswith("run="))).exists()
    ):
        return argv
    if command == "train" and not {"--help", "--cfg", "-m"} & set(rest):
        brings_model = any(a.startswith("init_from=") for a in rest)
        small = [s for s in SMALL if not (brings_model and s.startswith("model."))]
        if chosen.get("data") == "storygen":  # a prompt and an answer must fit
            small = ["model.context=80" if s.startswith("model.context") else s for s in small]
        if chosen.get("stage") == "grpo":  # as many answers as a prompt gets
            small = ["data.batch_size=8" if s.startswith("data.batch_size") else s for s in small]
        return [
            *argv,
            *(s for s in small if s.split("=")[0] not in known or s.startswith(("model.", "trainer.max"))),
            f"data.dir={data}",
        ]
    return argv


def family_of(rest: list[str]) -> str | None:
    """The family of the run that a command reads."""
    run = Path(rest[0]) if rest and "=" not in rest[0] else Path()
    return (
        json.loads((run / "config.json").read_text()).get("model", {}).get("name")
        if (run / "config.json").exists()
        else None
    )


def redness(data: Any, say: Any) -> Any:
    """A reward of pictures that needs no judge."""
    return lambda images, prompts: images[:, 0].double().mean((1, 2))


class Scaled:
    """What runs the blocks of a page in the folder at hand, with tiny models and made-up data."""

    def __init__(self, data: Path, pictures: Path, captioned: Path, monkeypatch: pytest.MonkeyPatch):
        self.data, self.pictures, self.captioned, self.monkeypatch = data, pictures, captioned, monkeypatch
        self.names: dict[str, Any] = {"__name__": "snippet"}  # of the page's Python
        self.train = gengen.train
        self.servers = ExitStack()
        self.server: Process | None = None
        monkeypatch.setattr(gengen, "train", self.small_train)
        monkeypatch.setattr("gengen.evaluation.judges.SEEN", 2400)  # images a judge is trained on
        monkeypatch.setitem(registry.IMAGE_REWARDS, "follows_prompt", f"{__name__}:redness")  # no judge is trained
        for names in ("REWARDS", "FILTERS"):  # what a snippet registers ends with its page
            monkeypatch.setattr(registry, names, dict(getattr(registry, names)))

    def small_train(self, *settings: str, **keys: Any) -> Any:
        """gengen.train, with the settings of a tiny run."""
        asked = [*settings, *(f"{key}={value}" for key, value in keys.items())]
        return self.train(*scaled(["train", *asked], self.data, self.pictures, self.captioned)[1:])

    def python(self, text: str) -> None:
        text = text.replace(SERVED, self.served())
        for name, other in {"cat": "cross", "dog": "circle"}.items():  # classes of the stand-in pictures
            text = text.replace(f'"{name}"', f'"{other}"')
        exec(compile(text, "snippet", "exec"), self.names)

    def served(self) -> str:
        """The address of the server that the page has started last."""
        return self.server.url if self.server else SERVED

    def serve(self, argv: list[str]) -> None:
        """Start a server in a process of its own, on a free port; it goes on until the next one or the end."""
        self.servers.close()
        settings = [a for a in argv if not a.startswith("port=")]
        self.server = self.servers.enter_context(new_process(settings, Path("said.txt")))

    def curl(self, words: list[str]) -> None:
        command = [word.replace(SERVED, self.served()) for word in words]
        answer = subprocess.run([*command, "--fail-with-body", "-s"], capture_output=True, text=True)
        assert answer.returncode == 0 and "error" not in answer.stdout, answer

    def shell(self, words: list[str]) -> None:
        if words == ["make", "train"]:  # its recipe, in process
            words = ["python", "scripts/train.py", "model=gpt", "data=tinystories"]
        if words[0] == "curl":
            return self.curl(words)
        if words[:2] == ["python", "scripts/serve.py"] and "--help" not in words:
            return self.serve(words[2:])
        if words[0] != "python":
            assert words[0] in ("make", "git", "cd", "bash", "pip"), words
            assert words[0] != "make" or set(words[1:]) <= TARGETS, words
            return
        assert (ROOT / words[1]).exists(), words
        if words[1].startswith("examples/"):  # a script imports its neighbours
            self.monkeypatch.syspath_prepend((ROOT / words[1]).parent)
            assert importlib.import_module(Path(words[1]).stem).main(words[2:]) == 0, words
            return
        argv = scaled([Path(words[1]).stem, *words[2:]], self.data, self.pictures, self.captioned)
        if "-m" in argv:  # its processes are the slow tests' business; here, that it expands
            assert len(jobs(read_command_line(argv[1:]))) > 1
            return
        assert main(argv) == (2 if "max_step=10" in " ".join(words) else 0), words


SERVED = "http://127.0.0.1:8000"
LONG = {
    "align.md",
    "editing.md",
    "evaluate.md",
    "images.md",
    "lora.md",
    "provenance.md",
    "serve.md",
    "train.md",
}  # over 5 s
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in LONG)) for page in PAGES]
)
def test_every_command_and_snippet_runs(
    page: Path,
    stand_in_archive: Path,
    texts: Path,
    pictures: Path,
    captioned_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "my-texts").symlink_to(texts)
    (work / "my-images").symlink_to(pictures)
    with wheels.PINS.open("a") as pins:
        pins.write(write_package(stand_in_archive))
    (work / "keys.txt").write_text("a key that is long enough\n")
    here = Scaled(stand_in_archive, pictures, captioned_pictures, monkeypatch)
    with here.servers:
        for language, text in blocks(page):
            if language == "python":
                here.python(text)
            else:
                for words in commands(text):
                    here.shell(words)


def test_the_notebook_runs(
    stand_in_archive: Path,
    pictures: Path,
    captioned_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cell by cell, and it is stored without outputs."""
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with wheels.PINS.open("a") as pins:
        pins.write(write_package(stand_in_archive))
    here = Scaled(stand_in_archive, pictures, captioned_pictures, monkeypatch)
    for cell in cells:
        here.python("".join(cell["source"]))
    assert here.names["images"].shape == (8, 1, 16, 16) and len(here.names["axes"]) == 8
    assert here.names["stories"].step == 6 and here.names["figures"]["val/bpb"] > 0


def test_make_train_is_the_command_the_docs_name() -> None:
    assert "$(BIN)/python scripts/train.py model=gpt data=tinystories\n" in (ROOT / "Makefile").read_text()


def test_links_and_files_that_docs_name_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_size_table_of_the_docs_is_the_one_of_the_code() -> None:
    from gengen.config.model import GPT_SIZES

    text = (ROOT / "docs" / "train.md").read_text()
    for name, s in GPT_SIZES.items():
        shape = f"{s['layers']} x {s['width']} | {s['heads']} / {s['kv_heads']} | {s['ff']}"
        assert f"| {name} | {shape} | {s['vocab_size']} | {s['context']} |" in text, name


def test_the_unet_sizes_of_the_docs_are_those_of_the_code() -> None:
    from gengen.config.model import UNET_SIZES

    text = (ROOT / "docs" / "images.md").read_text()
    for name, s in UNET_SIZES.items():
        widths, levels = (", ".join(map(str, s[key])) for key in ("widths", "attention"))
        assert f"| {name} | {widths} | {s['blocks']} | {levels} | {s['patch']} |" in text, name


def test_the_dit_sizes_of_the_docs_are_those_of_the_code() -> None:
    from gengen.config.model import DIT_SIZES

    text = (ROOT / "docs" / "images.md").read_text()
    for name, s in DIT_SIZES.items():
        assert f"| {name} | {s['layers']} x {s['width']} | {s['heads']} | {s['patch']} |" in text, name


def test_the_gan_sizes_of_the_docs_are_those_of_the_code() -> None:
    from gengen.config.model import GAN_SIZES

    text = (ROOT / "docs" / "images.md").read_text()
    for name, s in GAN_SIZES.items():
        assert f"| {name} | {', '.join(map(str, s['widths']))} | {s['blocks']} | {s['patch']} |" in text, name


def test_the_defaults_that_docs_quote() -> None:
    config = compose_train(read_command_line([]))
    quoted = json.loads(re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "results.md").read_text(), re.DOTALL)[0])
    from gengen.config.schema import get, plain

    assert {key: get(plain(config), key) for key in quoted} == quoted
