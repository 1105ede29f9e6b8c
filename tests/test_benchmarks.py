"""Every benchmark runs to its end, at the smallest size: what it says is looked at, how fast it was is not."""

import importlib
import json
import re
import runpy
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gengen.cli import main
from gengen.registry import SOURCES
from helpers.captioned_pictures import SETTINGS

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHARED = {"peers", "turns", "gpu/rows"}  # what others import
REHEARSAL = ["device=cpu", "size=tiny", "seconds=900", "out=gpu.jsonl"]
NEEDS = {"serving_peer": "fastapi"}  # packages that are not among the tests' own

ASKED: dict[str, tuple[list[str], str]] = {  # its arguments, with {places} to be filled in; what its last words hold
    "alignment": (
        ["rounds=1", "iterations=1", "threads=1", "only=gengen GRPO,gengen PPO,plain", "trainer.compile=false"],
        r"gengen PPO / plain PPO: \d",
    ),
    "before_after": ([str(FOLDER.parent), "blocks=1", "steps=1", "{text}"], r"this / other \d"),
    "best_of": (["{words}", "n=2", "of=2", "steps=1"], r"the first: (.|\n)*the best of 2: "),
    "busy": (["blocks=1", "steps=1", "{text}"], r"share of its speed \d"),
    "calibration": (["{codec}"], r"blurred by \.8 pixels +\d"),
    "collapse": (["{pictures}"], r"250 different images: coverage \d"),
    "decoding": (
        ["rounds=1", "tokens=4", "threads=1", "layers=1", "only=HF,gengen fp32,gengen bf16,gengen int8"],
        r"32 at once(.|\n)*gengen bf16 / HF bf16: \d",
    ),
    "filters": (["{story}", "n=60"], r"near misses: 0(.|\n)*plain +1.000 of(.|\n)*patterns: \d"),
    "gpu/language": (REHEARSAL, r"gpt / modern loop (.|\n)*17 rows, 0 errors, 0 skipped"),
    "gpu/pictures_and_decoding": (REHEARSAL, r"unet / diffusers, 64 (.|\n)*29 rows, 0 errors, 0 skipped"),
    "gpu/stages": (REHEARSAL, r'resume .*"equal": true(.|\n)*rows_at_once": 1,(.|\n)*17 rows, 0 errors'),
    "guards": (["blocks=1", "steps=4", "threads=1", "{text}"], r"guards take -?\d"),
    "inpainting": (["{words}", "n=4", "steps=1", "resamples=2"], r"bit-equal(.|\n)*filled, 2 rounds +as asked \d"),
    "json_schema_suite": (["{suite}", "walks=2"], r"2 schemas: 1 enforced \(1 exactly.*1 refused by name, 0 weakened"),
    "kernels": (["rounds=1", "threads=1", "layers=1"], r"one row, int8\n.*packed kernel(.|\n)*compiled"),
    "picture_mark": (["{folder}", "n=3", "sizes=32"], r"smooth 32 +PSNR 4\d(.|\n)*smooth 28 grey"),
    "listening": (["{words}", "images=4"], r"words +\d+\.\d{4} [+-]\d"),
    "precision": (["{run}"], r"int8 +\d\.\d{4} bits per byte"),
    "preferences": (
        ["{sft}", "answers=2", "epochs=1", "prompts=2", "threads=1", "questions=4", "held_out=4"],
        r"step 2/2  accuracy \d\.\d+ of",
    ),
    "preparing": (
        ["megabytes=17", "text=1", "vocab=300", "workers=1"],
        r"killed after part 1 of 2(.|\n)*the same files: True\none .txt of 1 MB",
    ),
    "results": (["{codec}"], r"PSNR \d+\.\d+ dB"),
    "ring": (["seconds=0.5", "seeds=1"], r"the plain loss.* of 8 modes"),
    "saving": (
        ["megabytes=8", "rounds=2"],
        r"sync +waited / clone: \d(.|\n)*async +waited / clone: \d",
    ),
    "serving": (
        ["{run}", "clients=1,2", "tokens=4", "rounds=1", "threads=1"],
        r"exact, 1 threads\n +1 clients +\d(.|\n)*tokens arrive: 99 % \d",
    ),
    "serving_fairness": (
        ["{run}", "rows=2", "tokens=4", "rounds=1", "threads=1"],
        r"beside 64 requests, ms +\d(.|\n)*Jain's index of 4 clients +[01]\.\d",
    ),
    "serving_health": (["{run}", "{words}", "streams=2", "tokens=8", "threads=1"], r"2 streams: median \d.* 99 % \d"),
    "serving_peer": (
        ["{run}", "clients=2", "tokens=4", "rounds=1", "threads=1"],
        r"2 clients, tokens a second\n(.|\n)*gengen / transformers: \d",
    ),
    "serving_reuse": (
        ["{run}", "shared=16", "tokens=8", "rounds=1", "threads=1"],
        r"16 tokens known +\d(.|\n)*free, ms a token: plain +\d",
    ),
    "serving_exact": (
        ["{run}", "requests=10", "tokens=12", "clients=1,3", "guess=lookup,draft", "draft=runs/text", "threads=1"],
        r"guess lookup +1 clients +0 of (.|\n)*guess draft +3 clients +0 of [\d,]+ bytes differ, in 0 texts",
    ),
    "serving_soak": (["{run}", "requests=40", "threads=1"], r"after 40  memory [\d,]+(.|\n)*tasks \+0\nanswered: "),
    "startup": (["rounds=1", "{text}"], r"first step, imports left out +-?\d"),
    "step": (["rounds=1", "threads=1", "tokens=64", "vocab=128", "{text}"], r"fetching a batch of .*: \d"),
    "storybook": (["seconds=1", "seeds=0", "tiny=1", "{text}"], r"gengen's recipe +\d"),
    "text": (
        ["rounds=1", "steps=1", "threads=1", "batch=2", "model.size=nano", "trainer.precision=fp32"],
        r"text / classes: \d",
    ),
    "tokenizing": (["rounds=1", "megabytes=1", "vocab=300", "{books}"], r"gengen / datasets.map num_proc=2: \d"),
    "training": (
        ["rounds=1", "steps=1", "threads=1", "layers=1", "only=shipped,uncompiled", "trainer.precision=fp32"],
        r"gengen, same architecture, uncompiled / loop as shipped",
    ),
    "unet": (
        ["rounds=1", "steps=1", "threads=1", "width=32", "batch=2", "images=1", "precision=fp32"],
        r"ours, fp32 against theirs, fp32 channels_last: \d(.|\n)*sampling 1 images(.|\n)*channels_last: \d",
    ),
    "watermark": (
        ["{run}", "n=4", "tokens=12", "keys=2", "batch=4"],
        r"bits a byte: \d(.|\n)*deviation \d(.|\n)*a step of 8 rows",
    ),
}


def suite_archive(folder: Path) -> Path:
    """Return an archive with two schemas, laid out as that of jsonschema."""
    tests = [{"description": "one", "data": 1, "valid": True}, {"description": "text", "data": "1", "valid": False}]
    groups = [{"description": str(s), "schema": s, "tests": tests} for s in ({"type": "integer"}, {"not": {}})]
    name = "jsonschema-0/json/tests/draft2020-12/type.json"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(json.dumps(groups))
    with tarfile.open(folder / "jsonschema-0.tar.gz", "w:gz") as tar:
        tar.add(folder / name, arcname=name)
    return folder / "jsonschema-0.tar.gz"


def test_every_benchmark_is_run() -> None:
    found = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.py")}
    assert found == set(ASKED) | SHARED


@pytest.fixture
def places(
    tiny: list[str], texts: Path, shared_data: Path, picture_data: list[str], pictures: Path, stand_in_archive: Path,
    base: Path, tiny_alignment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], list[str]]:  # fmt: skip
    """What a {place} stands for; runs are made when they are asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gengen.evaluation.judges.SEEN", 2400)
    monkeypatch.setattr("gengen.evaluation.attribute_judge.AttributeJudge.SEEN", 600)
    monkeypatch.setattr("gengen.evaluation.prompt_judges.why_refused", lambda judge: "")
    monkeypatch.setitem(SOURCES["image"], "made-up-shapes", "helpers.captioned_pictures:Shapes")
    few = ["data.max_examples=40"]
    small = ["trainer.device=cpu", "trainer.precision=fp32", "trainer.threads=1", "trainer.max_steps=4"]

    def run(name: str, *settings: str) -> list[str]:
        assert main(["train", *settings, *small, f"run={name}"]) == 0
        return [f"runs/{name}"]

    return lambda place: {
        "text": lambda: tiny,
        "suite": lambda: [f"archive={suite_archive(tmp_path)}"],
        "books": lambda: [f"data.dir={stand_in_archive}"],
        "pictures": lambda: picture_data,
        "story": lambda: [str(texts / "story-00.txt")],
        "folder": lambda: [str(pictures)],
        "run": lambda: run("text", *tiny),
        "sft": lambda: run("sft", "stage=sft", f"init_from={base}", "data=stories", *few, *tiny_alignment),
        "words": lambda: run("words", *SETTINGS, f"data.dir={tmp_path}"),
        "codec": lambda: run("codec", "model=vae", "model.size=nano", "data.batch_size=8", *picture_data),
    }[place]()


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_a_benchmark_runs_to_its_end(
    name: str,
    places: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed: benchmarks/{name}.py is not tried")
    asked, words = ASKED[name]
    argv = [arg for text in asked for arg in (places(text[1:-1]) if text.startswith("{") else [text])]
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(FOLDER / "gpu")
    capsys.readouterr()
    if name == "results":  # it writes a page of the docs
        assert main(["evaluate", *argv, "samples=12"]) == 0
        (tmp_path / "results.md").write_text("<!-- written by benchmarks/results.py -->\n<!-- end -->\n")
        results = importlib.import_module("results")
        monkeypatch.setattr(results, "DOCS", tmp_path)
        results.main([f"vae={argv[0]}"])
        said = (tmp_path / "results.md").read_text()
    else:
        monkeypatch.setattr(sys, "argv", [name, *argv])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        said = capsys.readouterr().out
    assert re.search(words, said), said
