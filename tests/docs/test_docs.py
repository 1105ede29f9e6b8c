"""Every command in the README and in docs/ runs, scaled down, in the order of its page."""

import json
import re
import shlex
from pathlib import Path

import pytest

from gengen.cli import main
from gengen.config.compose import compose_train, field_settings, read_command_line
from gengen.registry import DATA

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SMALL = [
    "model.size=nano", "model.layers=1", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.ff=32", "model.context=32",
    "model.vocab_size=300", "data.batch_size=4", "trainer.max_steps=6", "trainer.save_every=2", "trainer.eval_every=3",
    "trainer.sample_every=6", "trainer.log_every=2", "trainer.precision=fp32", "trainer.device=cpu", "trainer.compile=false",
    "logger=csv",
]  # fmt: skip


SMALL_IMAGES = [
    "data=imagefolder", "data.resolution=16", "data.channels=1", "data.batch_size=12", "trainer.max_steps=6",
    "trainer.save_every=2", "trainer.eval_every=3", "trainer.sample_every=6", "trainer.log_every=2", "trainer.precision=fp32",
    "trainer.device=cpu", "trainer.compile=false",
]  # fmt: skip
SHAPES = {"unet": ["model.widths=[32]", "model.blocks=1", "model.attention=[0]", "model.patch=4"]}
SHAPES["ldm"] = SHAPES["unet"][:3]
SHAPES["dit"] = ["model.layers=1", "model.width=32", "model.heads=2", "model.patch=4"]
SHAPES["latent_dit"] = [*SHAPES["dit"][:3], "model.patch=1"]


def commands(page: Path) -> list[list[str]]:
    """The shell commands of a page's ```bash blocks, comments left out, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [
        shlex.split(line, comments=True)
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def scaled(argv: list[str], data: Path, pictures: Path) -> list[str]:
    """The command with a tiny model; what a run already fixes is left as it is."""
    command, rest = argv[0], argv[1:]
    known = {key for key, _ in field_settings(read_command_line(rest))} if command in ("train", "prepare") else set()
    chosen = dict(a.split("=", 1) for a in rest if "=" in a)
    family = chosen.get("model", "gpt") if command == "train" else family_of(rest)
    if family and family not in ("gpt", "gpt2", "llama"):
        if command == "train":
            shape = SHAPES.get(family, ["model.widths=[16,32]", "model.blocks=1", "model.patch=2"])
            return [*argv, *SMALL_IMAGES, *shape, f"data.path={pictures}", f"data.dir={data}"]
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


LONG = {"align.md", "images.md", "train.md"}  # over 5 s


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in LONG)) for page in PAGES]
)
def test_every_command_runs(
    page: Path,
    stand_in_archive: Path,
    texts: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "my-texts").symlink_to(texts)
    (work / "my-images").symlink_to(pictures)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
            if words == ["make", "train"]:  # its recipe, in process
                words = ["python", "scripts/train.py", "model=gpt", "data=tinystories"]
        if words[0] != "python":
            assert words[0] in ("make", "git", "cd", "bash", "pip"), f"{page.name}: {words}"
            continue
        assert (ROOT / words[1]).exists(), words
        argv = scaled([Path(words[1]).stem, *words[2:]], stand_in_archive, pictures)
        if "-m" in argv:  # its processes are the slow tests' business; here, that it expands
            from gengen.cli.sweep import jobs

            assert len(jobs(read_command_line(argv[1:]))) > 1
            continue
        code = main(argv)
        expected = 2 if "max_step=10" in " ".join(words) else 0
        assert code == expected, (page.name, words, capsys.readouterr())


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
        row = f"| {name} | {s['layers']} x {s['width']} | {s['heads']} / {s['kv_heads']} | {s['ff']} | {s['vocab_size']} | {s['context']} |"
        assert row in text, row


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
