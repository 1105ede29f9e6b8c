"""examples/align and `pairs` as a user types them."""

import json
from pathlib import Path
from typing import Any

import align
import pytest
from align_figures import GATES

from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line


@pytest.mark.parametrize("command,argv,words", [
    (align.main, ["profile=huge"], "profile is str one of toy, smoke"),
    (align.main, ["seed=1"], "did you mean seeds"),
    (main, ["pairs", "out=pairs.jsonl"], "which run?"),
    (main, ["pairs", "runs/none", "out=pairs.jsonl"], "no run 'runs/none'"),
])  # fmt: skip
def test_user_errors(
    command: Any,
    argv: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(argv) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert align.main(["--help"]) == main(["pairs", "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples/align/align.py [key=value" in out and "seeds" in out
    assert "scripts/pairs.py RUN" in out and "max_prompts" in out


@pytest.mark.parametrize("profile", ["toy", "smoke"])
def test_every_stage_of_a_profile_composes(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stage that failed is the last."""
    typed: list[list[str]] = []
    monkeypatch.setattr(align, "gengen", lambda argv: typed.append(argv) or 0)
    assert align.train(profile, tmp_path, 3) == 0
    assert [argv[0] for argv in typed] == ["train", "train", "pairs", "train", "train", "train", "train"]
    for argv in typed:
        if argv[0] == "train":
            config = compose_train(read_command_line(argv[1:]))
            assert config.seed == 3 and config.trainer.precision == "fp32" and config.runs_dir == str(tmp_path)
    monkeypatch.setattr(align, "gengen", lambda argv: 143 * (argv[1] == "run=sft"))
    assert align.train(profile, tmp_path, 3) == 143


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the smoke profile has run."""
    work = tmp_path_factory.mktemp("align")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        assert align.main(["profile=smoke"]) == 0
    return work


@pytest.mark.slow
def test_the_whole_pipeline(finished: Path) -> None:
    folder = finished / "runs" / "align-smoke"
    report = json.loads((folder / "alignment_report.json").read_text())
    assert [row["stage"] for row in report["stages"]] == ["sft", "reward", "ppo", "dpo", "grpo", "best_of_16"]
    assert all(row["interval"][0] <= row["gain"] <= row["interval"][1] for row in report["stages"])
    assert all(row["seconds"] > 0 for row in report["stages"] if row["stage"] != "best_of_16")
    assert len(report["gates"]) == len(GATES) and all(len(gate["met"]) == 1 for gate in report["gates"])
    assert (
        abs(report["seeds"][0]["figures"]["ppo"]["kl"]) < 5
        and report["seeds"][0]["figures"]["reward"]["pairs"] == 8 * 8
    )
    assert "<img" in (folder / "alignment_report.html").read_text()


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    folder = Path("runs/align-smoke")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("seed-0/*/checkpoints/*/model.safetensors")}
    before[folder / "seed-0/pairs.jsonl"] = (folder / "seed-0/pairs.jsonl").stat().st_mtime_ns
    report = json.loads((folder / "alignment_report.json").read_text())
    assert align.main(["profile=smoke"]) == 0
    assert capsys.readouterr().out.count("is finished: step") == 6
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) > 6
    assert (
        json.loads((folder / "alignment_report.json").read_text()) == report
    )  # a judgement is a function of the runs


@pytest.mark.slow
def test_pairs_are_a_function_of_the_seed_and_labels_follow_the_reward(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    sft, prompts = "runs/align-smoke/seed-0/sft", Path("mine.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": f"what is {i}?"}) + "\n" for i in range(30)))
    Path("length.py").write_text(
        "from gengen.registry import register_reward\n@register_reward('longer')\n"
        "def longer(prompt, response, ended): return 50.0 * len(response) * prompt.startswith('what')\n"
    )
    asked = ["pairs", sft, "prompts=mine.jsonl", "max_tokens=8", "n=4", "plugins=[length]", "reward=longer"]
    assert (
        main([*asked, "out=a.jsonl"]) == main([*asked, "out=b.jsonl"]) == main([*asked, "out=c.jsonl", "seed=1"]) == 0
    )
    a, b, c = (Path(f"{name}.jsonl").read_text() for name in "abc")
    assert a == b != c
    pairs = [json.loads(line) for line in a.splitlines()]
    assert len(pairs) == 60 and [p["prompt"][0]["content"] for p in pairs[:3]] == [
        "what is 0?",
        "what is 0?",
        "what is 1?",
    ]
    assert all(len(p["chosen"]) >= len(p["rejected"]) for p in pairs)  # fifty nats a letter: hardly any noise is left
    assert any(len(p["chosen"]) > len(p["rejected"]) for p in pairs) and not any(
        p["chosen_ended"] and len(p["chosen"]) > 99 for p in pairs
    )
    for wrong, words in (
        (["runs/align-smoke/seed-0/base"], "answers no prompts"),
        (["runs/align-smoke/seed-0/reward"], "answers no prompts"),
        ([sft, "prompts=mine.jsonl"], "prompts of your own need reward="),
        ([sft, "n=3"], "two by two"),
    ):
        assert main(["pairs", *wrong, "out=d.jsonl"]) == 2
        assert words in capsys.readouterr().err and not Path("d.jsonl").exists()
