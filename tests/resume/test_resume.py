"""Stopped and resumed equals never stopped, whatever stops it."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gengen.checkpoints import store
from gengen.cli import main
from gengen.generation.text.generator import TextGenerator
from gengen.training.objective import Objective
from gengen.training.objectives.language import Pretraining
from helpers.runs import FREE, last_checkpoint, same_checkpoint, same_curve, signals_itself


@pytest.fixture(scope="session")
def tiny_ema(tiny: list[str]) -> list[str]:
    """With everything that has a state: dropout, an average of the weights, micro-batches."""
    return [*tiny, "model.dropout=0.1", "optim.ema=0.9", "data.micro_batch_size=4"]


@pytest.fixture(scope="session")
def straight(tiny_ema: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps, almost two epochs, that was never stopped."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *tiny_ema, f"runs_dir={runs}", "run=straight"]) == 0
    return runs / "straight"


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.fault("F6")
def test_stops_within_and_across_epochs_with_other_workers(
    straight: Path, tiny_ema: list[str], tmp_path: Path
) -> None:
    assert main(["train", *tiny_ema, f"runs_dir={tmp_path}", "run=r", "stop_at=17"]) == 0
    for stop, workers in ((23, 2), (31, 1)):  # the epoch ends in step 22
        assert main(["train", "run=r", f"runs_dir={tmp_path}", f"stop_at={stop}", f"data.num_workers={workers}"]) == 0
        assert last_checkpoint(tmp_path / "r").name == f"step-{stop:09d}"
    assert main(["train", "run=r", f"runs_dir={tmp_path}", "data.num_workers=0"]) == 0
    same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"))
    same_curve(straight, tmp_path / "r")


@pytest.mark.fault("F4")
@pytest.mark.parametrize("stop", [1, 10, 39])
def test_stops_at_the_edges(straight: Path, tiny_ema: list[str], tmp_path: Path, stop: int) -> None:
    assert main(["train", *tiny_ema, f"runs_dir={tmp_path}", "run=r", f"stop_at={stop}"]) == 0
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"))
    same_curve(straight, tmp_path / "r")


@pytest.mark.fault("F1")
def test_a_forgotten_generator_would_be_noticed(
    straight: Path, tiny_ema: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug put back: without the restored generators, dropout differs after a resume."""
    assert main(["train", *tiny_ema, f"runs_dir={tmp_path}", "run=r", "stop_at=17"]) == 0
    monkeypatch.setattr("gengen.training.state.set_rng", lambda state: None)
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    with pytest.raises(AssertionError):
        same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"))


@pytest.mark.fault("F15")
@pytest.mark.parametrize(
    "owner,method,call,number,code,step",
    [
        (Objective, "training_step", 13, signal.SIGTERM, 143, 13),
        (Objective, "training_step", 20, signal.SIGINT, 130, 20),
        (Pretraining, "evaluation_sums", 6, signal.SIGTERM, 143, 20),
        (TextGenerator, "generate", 1, signal.SIGTERM, 143, 20),
    ],
    ids=["in a step", "in a step that evaluates", "in evaluation", "in a preview"],
)
def test_a_signal_leaves_a_checkpoint(
    straight: Path,
    tiny_ema: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    call: int,
    number: int,
    code: int,
    step: int,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signals_itself(patch, owner, method, call, number)
        assert main(["train", *tiny_ema, f"runs_dir={tmp_path}", "run=r"]) == code
    assert signal.getsignal(signal.SIGTERM) == before
    assert store.step_of(last_checkpoint(tmp_path / "r")) == step
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"))
    same_curve(straight, tmp_path / "r")


@pytest.mark.fault("F15")
def test_a_second_signal_exits_at_once(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: Any, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(Objective, "training_step", twice)
        main(["train", *tiny, f"runs_dir={tmp_path}", "run=r"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert not (tmp_path / "r" / "checkpoints").exists()


def run_and_kill(argv: list[str], delay: float) -> int:
    """Train in a forked process, killed -9 after `delay` seconds if it has not ended; returns its exit code."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = main(argv)
        finally:
            os._exit(code)
    until = time.monotonic() + delay
    while time.monotonic() < until:
        if (done := os.waitpid(child, os.WNOHANG)) != (0, 0):
            return os.waitstatus_to_exitcode(done[1])
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_until_done(argv: list[str], again: list[str], seed: int, kills: int) -> int:
    """Kill a run at random times until it has been killed `kills` times, then let it end. Returns how often it was
    killed.
    """
    draw, code, killed = random.Random(seed), -9, 0
    while code != 0:
        code = run_and_kill(argv, draw.uniform(0.1, 0.8) if killed < kills else 120)
        assert code in (0, -9)
        killed += code == -9
        argv = again if (Path(again[-1].split("=", 1)[1]) / "r" / "config.json").exists() else argv
    return killed


@pytest.mark.fault("F9")
@pytest.mark.slow
def test_kill_at_random_times_with_a_save_every_step(straight: Path, tiny_ema: list[str], tmp_path: Path) -> None:
    argv = ["train", *tiny_ema, "trainer.save_every=1", "run=r", f"runs_dir={tmp_path}"]
    assert killed_until_done(argv, ["train", "run=r", f"runs_dir={tmp_path}"], seed=0, kills=20) >= 5
    same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"), FREE | {"trainer.save_every"})
    same_curve(straight, tmp_path / "r")


@pytest.mark.fault("F8")
@pytest.mark.parametrize(
    "point",
    ["save:optimizer.safetensors@2", "save:manifest.json@2", "save:staged@2", "save:renamed@2", "save:prune@2"],
)
def test_kill_inside_the_save_of_a_run(
    straight: Path, tiny_ema: list[str], tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GENGEN_FAULT", point)
        assert run_and_kill(["train", *tiny_ema, f"runs_dir={tmp_path}", "run=r"], 120) == -9
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"))
    same_curve(straight, tmp_path / "r")


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to / run.name)
    return to / run.name


@pytest.mark.fault("F12")
def test_damage_falls_back_and_must_without_any_is_exit_4(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(straight, tmp_path)
    (run / "checkpoints" / "step-000000040" / "model.safetensors").write_bytes(b"")
    assert main(["train", "run=straight", f"runs_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors is damaged: 0 bytes" in said and "resume step-000000030, verified" in said
    same_checkpoint(last_checkpoint(straight), last_checkpoint(run))
    for path in store.all_steps(run / "checkpoints"):
        (path / "state.json").unlink()
    assert main(["train", "run=straight", f"runs_dir={tmp_path}", "resume=must"]) == 4
    assert "no checkpoint that verifies" in capsys.readouterr().err


def test_going_back_to_an_earlier_checkpoint(straight: Path, tmp_path: Path) -> None:
    run = copied(straight, tmp_path)
    assert (
        main(["train", "run=straight", f"runs_dir={tmp_path}", f"resume={run / 'checkpoints' / 'step-000000030'}"])
        == 0
    )
    assert (run / "checkpoints" / "superseded-step-000000040").exists()
    same_checkpoint(last_checkpoint(straight), last_checkpoint(run))
    same_curve(straight, run)


def test_a_finished_run_says_so(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("checkpoints/*/*")}
    assert main(["train", "run=straight", f"runs_dir={straight.parent}"]) == 0
    assert "is finished: step 40 of 40" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("checkpoints/*/*")} == before


@pytest.mark.fault("F27")
def test_more_steps_are_a_stated_change(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(straight, tmp_path)
    assert main(["train", "run=straight", f"runs_dir={tmp_path}", "trainer.max_steps=44"]) == 0
    assert "changed on resume: trainer.max_steps: 40 -> 44" in capsys.readouterr().out
    assert store.step_of(last_checkpoint(run)) == 44
    assert main(["train", "run=straight", f"runs_dir={tmp_path}", "model.width=64"]) == 2
    assert "model.width: 32 -> 64" in capsys.readouterr().err


@pytest.mark.fault("F22")
def test_changed_data_are_refused(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text("once upon a time there was a bear. " * 200)
    argv = [*tiny, f"data.path={text}", f"data.dir={tmp_path}", f"runs_dir={tmp_path}", "run=r"]
    assert main(["train", *argv, "stop_at=2"]) == 0
    text.write_text("twice upon a time there was a fox. " * 200)
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 2
    assert "the data is not what" in capsys.readouterr().err


def test_max_time_stops_each_command_with_a_checkpoint(tiny: list[str], tmp_path: Path) -> None:
    assert main(["train", *tiny, f"runs_dir={tmp_path}", "run=r", "max_time=0.05s"]) == 0
    first = store.step_of(last_checkpoint(tmp_path / "r"))
    assert 1 <= first < 40
    assert main(["train", "run=r", f"runs_dir={tmp_path}", "max_time=0.05s"]) == 0
    assert store.step_of(last_checkpoint(tmp_path / "r")) > first


def test_the_best_is_kept_wherever_it_was_evaluated(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best evaluation at step 10, between saves: it is saved, marked, and outlives later ones."""
    values = iter([2.0, 5.0, 4.0, 3.0])
    monkeypatch.setattr(
        Pretraining, "evaluation_metrics", lambda self, sums: {"val/loss": 1.0, "val/bpb": next(values)}
    )
    assert main(["train", *tiny, "trainer.save_every=20", "trainer.keep=1", f"runs_dir={tmp_path}", "run=r"]) == 0
    checkpoints = tmp_path / "r" / "checkpoints"
    assert store.step_of(store.choose(checkpoints, "best")) == 10
    assert [store.step_of(path) for path in store.all_steps(checkpoints)] == [40, 10]


def test_a_run_is_found_by_name_by_path_and_by_position(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(straight, tmp_path)
    for argv in (
        [str(run)],
        [f"run={run}"],
        ["straight", f"runs_dir={tmp_path}"],
        [str(run), "trainer.device=auto", "stop_at=50"],
    ):
        assert main(["train", *argv]) == 0
        assert f"{run} is finished" in capsys.readouterr().out
    assert main(["train", str(run), "--cfg", "job"]) == 0
    assert "max_steps: 40" in capsys.readouterr().out
    assert main(["train", "run=straigt", f"runs_dir={tmp_path}", "stop_at=50"]) == 2
    assert "did you mean straight?" in capsys.readouterr().err


def test_evaluation_and_previews_leave_every_generator_alone(
    straight: Path, tiny_ema: list[str], tmp_path: Path
) -> None:
    quiet = ["trainer.eval_every=40", "trainer.sample_every=40"]
    assert main(["train", *tiny_ema, *quiet, f"runs_dir={tmp_path}", "run=r"]) == 0
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (last_checkpoint(straight) / name).read_bytes() == (last_checkpoint(tmp_path / "r") / name).read_bytes()
    assert torch.initial_seed() == 0
