"""`doctor` names what is wrong with a run, says what to do, and changes nothing: for every fault, in every family and
stage.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gengen.checkpoints import store
from gengen.checkpoints.files import sha256, to_json
from gengen.checkpoints.layout import digest
from gengen.checkpoints.migrate import FORMAT
from gengen.checkpoints.run import Run
from gengen.cli import main

NEWEST, OLDER = "step-000000008", "step-000000004"
RHYTHM = [
    "trainer.max_steps=8",
    "trainer.save_every=4",
    "trainer.eval_every=4",
    "trainer.sample_every=8",
    "trainer.log_every=2",
]


@pytest.fixture(scope="module")
def patient(tiny: list[str], texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an average of its weights, in a folder with the text and the data that are its own."""
    home = tmp_path_factory.mktemp("doctor")
    shutil.copytree(texts, home / "texts")
    argv = [
        *tiny,
        *RHYTHM,
        "optim.ema=0.9",
        f"data.path={home / 'texts'}",
        f"data.dir={home / 'data'}",
        f"runs_dir={home}",
        "run=r",
    ]
    assert main(["train", *argv]) == 0
    return home


@pytest.fixture
def run(patient: Path, tmp_path: Path) -> Path:
    """A copy of that run, of its text and of its data."""
    shutil.copytree(patient, tmp_path, dirs_exist_ok=True)
    config = (tmp_path / "r" / "config.json").read_text()
    (tmp_path / "r" / "config.json").write_text(config.replace(str(patient), str(tmp_path)))
    return tmp_path / "r"


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Of each file below a folder what can change."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): ((stat := path.stat()).st_mtime_ns, stat.st_mode, path.read_bytes()) for path in found}


def examined(
    path: Path, capsys: pytest.CaptureFixture[str], home: Path | None = None
) -> tuple[int, dict[str, tuple[str, str]]]:
    """(exit code, thing -> (mark, words)), of a doctor that has changed nothing."""
    home = home or path.parent
    before = everything(home)
    capsys.readouterr()
    code = main(["doctor", str(path)])
    said = capsys.readouterr()
    assert everything(home) == before and "Traceback" not in said.out + said.err, said
    lines = [re.split(r" +", line, maxsplit=2) for line in said.out.splitlines()]
    assert code == any(mark == "wrong" for mark, _, _ in lines)
    return code, {thing: (mark, words) for mark, thing, words in lines}


def test_a_sound_run_and_a_sound_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = examined(run, capsys)
    assert code == 0 and {mark for mark, _ in found.values()} == {"ok"}
    assert list(found) == ["run.lock", "config.json", NEWEST, OLDER, "LATEST", "BEST", "metrics.csv", "data", "disk"]
    assert "builds" in found["config.json"][1] and "ema " in found[NEWEST][1] and found["LATEST"][1] == NEWEST
    size = sum(file.stat().st_size for file in (run / "checkpoints" / NEWEST).iterdir())
    assert found["disk"][1].endswith(f"a checkpoint takes {size:,}") and found["metrics.csv"][1] == "4 rows to step 8"
    code, found = examined(run / "checkpoints" / OLDER, capsys)
    assert code == 0 and list(found) == [OLDER]
    (run / "checkpoints" / OLDER / "manifest.json").unlink()
    code, found = examined(run / "checkpoints" / OLDER, capsys)
    assert code == 1 and list(found) == [OLDER] and "manifest.json is damaged: missing" in found[OLDER][1]


def test_imported_weights_are_a_model_without_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "to=hf", f"out={run.parent / 'hf'}"]) == 0
    assert main(["import_weights", str(run.parent / "hf"), "run=i", f"runs_dir={run.parent}"]) == 0
    code, found = examined(run.parent / "i", capsys)
    assert (
        code == 0
        and found["config.json"] == ("note", "of imported weights: a model without data")
        and "data" not in found
    )


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def rewritten(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Tensors of the newest checkpoint changed by one who hashes them anew."""

    def fault(run: Path) -> None:
        path = run / "checkpoints" / NEWEST / file
        change(tensors := load_file(path))
        save_file(tensors, path)
        manifest = json.loads((path.parent / "manifest.json").read_text())
        del manifest["sha256"]
        manifest["files"][file] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        (path.parent / "manifest.json").write_text(to_json(manifest | {"sha256": digest(manifest)}))

    return fault


def nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def fault(run: Path) -> None:
        path = run / "metrics.csv"
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return fault


def configured(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    def fault(run: Path) -> None:
        change(tree := json.loads((run / "config.json").read_text()))
        (run / "config.json").write_text(json.dumps(tree))

    return fault


def prepared(run: Path) -> Path:
    return next((run.parent / "data" / "prepared").glob("text-*"))


def killed_in_a_save(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / OLDER, run / "checkpoints" / f".tmp-{NEWEST}-17")


def at(run: Path) -> Path:
    return run / "checkpoints"


# the fault; then thing, mark and words of the one line that tells
FAULTS: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "a flipped bit": (lambda r: flip(at(r) / OLDER / "ema.safetensors"), OLDER, "wrong",
        "sha256 does not match; the next train"),
    "a file gone": (lambda r: (at(r) / OLDER / "state.json").unlink(), OLDER, "wrong",
        "state.json is damaged: missing"),
    "no manifest": (lambda r: (at(r) / OLDER / "manifest.json").unlink(), OLDER, "wrong",
        "manifest.json is damaged: missing"),
    "nan": (rewritten("model.safetensors", nan), NEWEST, "wrong", "model.safetensors: .* is not finite; resume="),
    "nan in the average": (rewritten("ema.safetensors", nan), NEWEST, "wrong", "ema.safetensors: .* is not finite"),
    "nan in a moment": (rewritten("optimizer.safetensors", nan), NEWEST, "wrong",
        "optimizer.safetensors: .* is not finite"),
    "a weight too few": (rewritten("model.safetensors", lambda t: t.pop("norm.weight")), NEWEST, "wrong",
        "norm.weight is missing"),
    "a weight too many": (rewritten("ema.safetensors", lambda t: t.update(x=torch.ones(1))), NEWEST, "wrong",
        "x is not a weight"),
    "LATEST elsewhere": (lambda r: (at(r) / "LATEST").write_text("../../x\n"), "LATEST", "wrong",
        "nothing; the next train mends"),
    "LATEST gone": (lambda r: (at(r) / "LATEST").unlink(), "LATEST", "wrong", "names nothing"),
    "LATEST stale": (lambda r: (at(r) / "LATEST").write_text(OLDER), "LATEST", "wrong",
        f"{OLDER}, not the newest that is sound"),
    "BEST nowhere": (lambda r: (at(r) / "BEST").write_text("step-000000099"), "BEST", "wrong",
        "nothing; checkpoint=latest"),
    "killed in a save": (killed_in_a_save, f".tmp-{NEWEST}-17", "note", "left by a crash"),
    "set aside": (lambda r: (at(r) / f"damaged-{OLDER}").mkdir(), f"damaged-{OLDER}", "note", "set aside"),
    "superseded": (lambda r: (at(r) / "superseded-step-000000009").mkdir(), "superseded-step-000000009", "note",
        "set aside"),
    "a stale lock": (lambda r: (r / "run.lock").write_text('{"pid": 1, "host": "h"}'), "run.lock", "note",
        "left by pid 1 on h,"),
    "a lock of letters": (lambda r: (r / "run.lock").write_text("{"), "run.lock", "wrong", "JSONDecodeError"),
    "no config": (lambda r: (r / "config.json").unlink(), "config.json", "wrong",
        "missing; each checkpoint has a copy of it"),
    "no JSON": (lambda r: (r / "config.json").write_text("{"), "config.json", "wrong",
        "not JSON .*; each checkpoint has a copy of it"),
    "an unknown key": (configured(lambda t: t["model"].update(depth=3)), "config.json", "wrong",
        "unknown key (model.)?depth=3"),
    "a wrong value": (configured(lambda t: t["optim"].update(lr=-1)), "config.json", "wrong", "lr=-1.* does not fit"),
    "an older config": (configured(lambda t: t["optim"].pop("clip")), "config.json", "ok",
        "at their defaults: optim.clip$"),
    "another rate since": (configured(lambda t: t["optim"].update(lr=0.5)), NEWEST, "ok",
        "since: .*optim.lr 0.003 -> 0.5"),
    "rows lost": (lines(lambda found: found[:3]), "metrics.csv", "wrong",
        "ends at step 4, the newest checkpoint is of 8; resume="),
    "no rows": (lambda r: (r / "metrics.csv").unlink(), "metrics.csv", "wrong",
        "ends at step 0, the newest checkpoint is of 8"),
    "rows twice": (lines(lambda found: [*found, found[-2]]), "metrics.csv", "wrong", "step 6 does not come after"),
    "rows of letters": (lines(lambda found: [*found[:2], "x", *found[2:]]), "metrics.csv", "wrong",
        "line 3 of 6 cannot be read"),
    "rows of bytes": (lambda r: (r / "metrics.csv").write_bytes(b"step,\xff\x00\n1,2\n"), "metrics.csv", "wrong",
        "cannot be read"),
    "rows beyond": (lines(lambda found: [*found, "10,1"]), "metrics.csv", "ok",
        "5 rows to step 10; those after 8 are written anew"),
    "shards damaged": (lambda r: os.truncate(next(prepared(r).glob("train-*.bin")), 2000), "data", "wrong",
        "2,000 bytes, expected"),
    "shards gone": (lambda r: shutil.rmtree(prepared(r)), "data", "note",
        "is not there; the next train prepares it again"),
    "another text": (lambda r: (r.parent / "texts" / "story-00.txt").write_text("x"), "data", "wrong",
        "source is not what the run"),
    "no text": (lambda r: shutil.rmtree(r.parent / "texts"), "data", "wrong", "texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_with_what_to_do(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """One line tells it, and no other line than that and what follows from it is touched."""
    fault, thing, mark, words = FAULTS[name]
    fault(run)
    _, found = examined(run, capsys)
    assert found[thing][0] == mark and re.search(words, found[thing][1]), found
    follows = {NEWEST: {"LATEST", "BEST", "metrics.csv"}, OLDER: {"BEST"}}.get(thing, set())
    assert {other for other, (said, _) in found.items() if said != "ok"} - follows <= {thing}, found


def test_a_held_lock_is_named_and_not_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready, done = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        holder = Run(run)
        holder.lock()  # as long as it lives
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        code, found = examined(run, capsys)
        assert (
            code == 0
            and found["run.lock"][0] == "note"
            and f"held by pid {child} on {os.uname().nodename}" in found["run.lock"][1]
        )
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)


def test_a_disk_without_room(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(file.stat().st_size for file in (run / "checkpoints" / NEWEST).iterdir())
    for free, mark in ((size - 1, "wrong"), (size, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(0, 0, free))
        code, found = examined(run, capsys)
        assert (
            (code, found["disk"][0]) == (mark == "wrong", mark)
            and f"{size:,}" in found["disk"][1]
            and f"{free:,}" in found["disk"][1]
        )


def test_a_newer_format_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / NEWEST / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": FORMAT + 1}
    del manifest["sha256"]
    path.write_text(to_json(manifest | {"sha256": digest(manifest)}))
    assert "a newer gengen wrote it" in examined(run, capsys)[1][NEWEST][1]


def test_a_run_that_has_hardly_begun(patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r").mkdir()
    shutil.copy(patient / "r" / "config.json", tmp_path / "r")
    code, found = examined(tmp_path / "r", capsys)
    assert code == 0 and found["checkpoints"] == ("note", "none yet") and found["data"][0] == "ok"


def test_after_the_doctor_a_resume_mends_what_it_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / "checkpoints" / NEWEST / "model.safetensors")
    killed_in_a_save(run)
    code, found = examined(run, capsys)
    assert code == 1 and found["LATEST"][1].startswith(f"names {NEWEST}, damaged; the next train mends it")
    assert main(["train", "run=r", f"runs_dir={run.parent}"]) == 0
    code, found = examined(run, capsys)
    assert code == 0 and {thing for thing, (mark, _) in found.items() if mark == "note"} == {f"damaged-{NEWEST}"}


def test_mistakes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in [
        ([], "which run"),
        ([str(run) + "r"], "no run"),
        ([str(run.parent)], "no run"),
        ([str(run), "run_dir=x"], "did you mean runs_dir"),
    ]:
        assert main(["doctor", *argv]) == 2
        assert words in capsys.readouterr().err


# --- what runs stand on

PICTURES = [
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.threads=1",
    "data.batch_size=12",
    "data.flip=true",
]
FAMILIES = {
    "vae": ["model.widths=[8,16]", "model.blocks=1", "model.patch=2", "model.latent_channels=2", "optim.ema=0.9"],
    "gan": ["model.widths=[8,16]", "model.patch=2", "model.latent_size=8"],
    "ldm": ["model.widths=[32]", "model.blocks=1", "model.attention=[0]", "model.patch=1", "optim.ema=0.9"],
}


@pytest.fixture(scope="module")
def families(picture_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each family of images, with data of their own."""
    runs = tmp_path_factory.mktemp("families")
    for family, own in FAMILIES.items():
        codec = [f"model.codec={runs / 'vae'}"] if family == "ldm" else []
        argv = [f"model={family}", *picture_data, f"data.dir={runs / 'data'}", *own, *codec, *PICTURES, *RHYTHM]
        assert main(["train", *argv, f"runs_dir={runs}", f"run={family}"]) == 0
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_images(
    families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    code, found = examined(families / family, capsys)
    assert code == 0 and {mark for mark, _ in found.values()} == {"ok"} and ("codec" in found) == (family == "ldm")
    run = Path(shutil.copytree(families / family, tmp_path / family))
    flip(run / "checkpoints" / NEWEST / "model.safetensors")
    if family == "ldm":
        flip(run / "codec" / "model.safetensors")
    code, found = examined(run, capsys)
    assert code == 1 and found[NEWEST][0] == "wrong"
    assert family != "ldm" or "bring the folder back" in found["codec"][1]


@pytest.mark.slow
def test_latents_that_are_damaged_or_gone(families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Path(shutil.copytree(families, tmp_path / "families"))
    config = home / "ldm" / "config.json"
    config.write_text(config.read_text().replace(str(families / "data"), str(home / "data")))
    latents = next((home / "data" / "prepared").glob("[!.]*latents*"))
    shard = next(latents.glob("train-*.safetensors"))
    os.truncate(shard, 100)
    assert "damaged" in examined(home / "ldm", capsys, home)[1]["data"][1]
    shutil.rmtree(latents)
    code, found = examined(home / "ldm", capsys, home)
    assert code == 0 and found["data"][0] == "note" and "prepares it again" in found["data"][1]
    shutil.rmtree(home / "data")
    assert examined(home / "ldm", capsys, home)[1]["data"][0] == "note"


@pytest.mark.slow
def test_every_stage(
    base: Path, tiny_alignment: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = f"init_from={tmp_path / 'sft'}"
    stages = {
        "sft": [f"init_from={base}", "data=stories"],
        "reward": [sft, "data=preferences"],
        "dpo": [sft, "data=preferences"],
        "ppo": [
            sft,
            "data=prompts",
            f"stage.reward={tmp_path / 'reward'}",
            "stage.max_tokens=6",
            "stage.minibatches=2",
        ],
        "grpo": [
            sft,
            "data=prompts",
            "stage.reward=requested_words",
            "stage.max_tokens=6",
            "stage.minibatches=2",
            "stage.group_size=4",
        ],
    }
    kept = {"dpo": ["reference"], "ppo": ["reference", "reward-0"], "grpo": ["reference"]}
    few = ["data.max_examples=60", "data.batch_size=8", *RHYTHM, f"runs_dir={tmp_path}"]
    for stage, own in stages.items():
        assert main(["train", f"stage={stage}", *own, *few, *tiny_alignment, f"run={stage}"]) == 0
        code, found = examined(tmp_path / stage, capsys)
        assert code == 0 and [mark for mark, _ in found.values() if mark != "ok"] == [], found
        assert [thing for thing in found if thing in ("reference", "reward-0")] == kept.get(stage, [])
    shutil.rmtree(tmp_path / "ppo" / "reward-0")
    flip(tmp_path / "ppo" / "reference" / "model.safetensors")
    code, found = examined(tmp_path / "ppo", capsys)
    assert code == 1 and "missing; bring the folder back" in found["reward-0"][1] and "sha256" in found["reference"][1]
    assert store.newest(tmp_path / "ppo" / "checkpoints") is not None
