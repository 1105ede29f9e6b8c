"""What a run does when a step, the memory, the disk or the process itself goes wrong: F10, F11, F16 to F20, F23,
F25."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gengen.checkpoints.layout import read
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.cli.train import requeue
from gengen.training.monitor.console import Console
from gengen.training.monitor.spikes import WINDOW, Spikes
from gengen.training.objectives.language import Pretraining
from helpers.families import Family, on, step
from helpers.processes import forked
from helpers.runs import FREE

PASSES = {"gpt": 2, "vae": 2, "ldm": 2, "gan": 4, "ppo": 4}  # losses of micro-batches in a step


def poison(family: str, step: int) -> str:
    """All losses of a step."""
    first = (step - 1) * PASSES[family] + 1
    return ",".join(f"loss@{i}=poison" for i in range(first, first + PASSES[family]))


def state(run: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "checkpoints" / f"step-{step:09d}" / "state.json").read_text())
    return found


def weights(run: Path, step: int) -> list[bytes]:
    folder = run / "checkpoints" / f"step-{step:09d}"
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors")) if path.name != "ema.safetensors"]


@pytest.fixture
def gpt(family_of: Callable[[str], Family]) -> Family:
    return family_of("gpt")


# --- the disk


SAVES = pytest.mark.parametrize("save", ["sync", "async"])


@pytest.mark.fault("F10")
@pytest.mark.parametrize("save, every", [("sync", 4), ("async", 1)])
def test_a_full_disk_is_waited_for(gpt: Family, tmp_path: Path, save: str, every: int) -> None:
    """The second save fails twice, at steps 8 and 9 or 2 and 3; what was there stays, the third attempt succeeds, the
    end is the same.
    """
    argv = replace(gpt, save=save).begin(tmp_path, f"trainer.save_every={every}")
    ended = forked(argv, "save:optimizer.safetensors@2=full,save:manifest.json@2=full")
    assert ended.code == 0 and ended.said.count("could not be written") == 2 and "(2 failed in a row)" in ended.said
    gpt.same(tmp_path / "r", FREE | {"trainer.save_every"})
    assert not list((tmp_path / "r" / "checkpoints").glob(".tmp-*"))


@SAVES
@pytest.mark.fault("F10")
def test_a_disk_that_stays_full_ends_the_run(gpt: Family, tmp_path: Path, save: str) -> None:
    """The system itself refuses files beyond 20 kB; a checkpoint of before is as it was."""
    assert forked(replace(gpt, save=save).begin(tmp_path, "stop_at=4")).code == 0
    before = weights(tmp_path / "r", 4)
    argv = on(tmp_path, "trainer.max_failed_saves=2", "trainer.save_every=2")
    ended = forked(argv, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))).clear()
    assert ended.code == 1 and "(2 failed in a row)" in ended.said and "File too large" in ended.said
    assert step(tmp_path / "r") == 4 and weights(tmp_path / "r", 4) == before
    assert forked(on(tmp_path, "trainer.save_every=4")).code == 0
    gpt.same(tmp_path / "r", FREE | {"trainer.max_failed_saves"})


def test_a_log_that_cannot_be_written_is_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.open(tmp_path / "gone" / "log.txt")
    console.say("still here")
    assert capsys.readouterr().out == "still here\n"


@pytest.mark.fault("F11")
def test_too_little_space_is_found_before_training(
    gpt: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    assert main(gpt.begin(tmp_path)) == 1
    said = capsys.readouterr()
    assert "bytes are needed for checkpoints of" in said.err and "100,000 are free" in said.err
    assert "step 1/" not in said.out and not (tmp_path / "r").exists()


@SAVES
@pytest.mark.fault("F11")
def test_too_little_space_for_one_more_is_found_before_it_is_begun(gpt: Family, tmp_path: Path, save: str) -> None:
    free = iter([10**9, 10**9, 100_000, 10**9, 10**9])  # at the start, at steps 4, 8, 9 and 12
    ended = forked(
        replace(gpt, save=save).begin(tmp_path),
        before=lambda: setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free))),
    )
    assert ended.code == 0 and ended.said.count("could not") + ended.said.count("are needed for checkpoints") == 1
    gpt.same(tmp_path / "r")


# --- signals


@pytest.mark.fault("F16")
@pytest.mark.parametrize("name", ["usr1", ""])
def test_a_run_that_is_to_be_requeued(gpt: Family, tmp_path: Path, name: str) -> None:
    """Under SLURM it requeues its job, once; elsewhere the exit code asks for it."""
    calls, scontrol = tmp_path / "calls", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"} if name else {}
    ended = forked(gpt.begin(tmp_path), "step@5=usr1", before=lambda: os.environ.update(slurm))
    assert ended.code == 75 and step(tmp_path / "r") == 5 and "to go on:" in ended.said
    assert (calls.read_text() if name else calls.exists()) == ("requeue 7\n" if name else False)
    assert forked(on(tmp_path)).code == 0
    gpt.same(tmp_path / "r")


@pytest.mark.fault("F16")
@pytest.mark.parametrize(
    "job,asked", [({"SLURM_JOB_ID": "7"}, "7"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3")]
)
@pytest.mark.parametrize("code", [0, 1])
def test_a_task_of_an_array_requeues_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: dict[str, str], asked: str, code: int
) -> None:
    """The last task of an array has the array's own number as SLURM_JOB_ID: to requeue that would requeue them all."""
    calls, scontrol = tmp_path / "calls", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho busy >&2\nexit {code}\n')
    scontrol.chmod(0o755)
    for name, value in ({"SLURM_JOB_ID": "7", "PATH": str(tmp_path)} | job).items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    requeue(said.append)
    assert calls.read_text() == f"requeue {asked}\n"
    assert said == [f"warning: scontrol requeue {asked}: busy" if code else f"requeued as SLURM job {asked}"]


# --- steps that are not finite


@pytest.mark.slow
@pytest.mark.fault("F17")
def test_a_bad_step_is_skipped_or_ends_the_run(family: Family, tmp_path: Path) -> None:
    every = ["trainer.save_every=1", "trainer.keep=50"]
    ended = forked(family.begin(tmp_path / "skip", *every), poison(family.name, 7))
    run = tmp_path / "skip" / "r"
    assert (
        ended.code == 0
        and "step 7: loss or gradient not finite; such a step changes no weight (1 in a row, 1 in all)" in ended.said
    )
    assert weights(run, 6)[0] == weights(run, 7)[0] != weights(run, 8)[0]
    was, now = (read(run / "checkpoints" / f"step-{at:09d}").optimizer["state"] for at in (6, 7))
    for name, moments in was.items():
        assert all(torch.equal(value, now[name][key]) for key, value in moments.items() if key != "step"), name
    assert (state(run, 7)["bad_steps"], state(run, 12)["bad_steps"], state(run, 12)["all_bad_steps"]) == (1, 0, 1)

    ended = forked(family.begin(tmp_path / "stop", "trainer.on_bad_step=stop", *every), poison(family.name, 7)).clear()
    assert ended.code == 1 and "trainer.on_bad_step=stop" in ended.said and step(tmp_path / "stop" / "r") == 6


@pytest.mark.slow
@pytest.mark.fault("F17")
@pytest.mark.parametrize(
    "name, save", [("gpt", "sync"), ("gpt", "async"), *((n, "sync") for n in ("vae", "ldm", "gan"))]
)
def test_a_bad_step_is_rolled_back(family_of: Callable[[str], Family], name: str, save: str, tmp_path: Path) -> None:
    """From step 7 back to the checkpoint of step 4, and on without the data of the three steps; a later stop changes
    nothing of that.
    """
    family = replace(family_of(name), save=save)
    settings = ["trainer.on_bad_step=rollback"]
    ended = forked(family.begin(tmp_path / "a", *settings), poison(name, 7))
    assert ended.code == 0 and "going on from step-000000004, without the data of the 3 steps since" in ended.said
    run = tmp_path / "a" / "r"
    assert state(run, 12)["passed_over"] == 3 and weights(run, 12) != weights(family.straight, 12)
    assert forked(family.begin(tmp_path / "b", *settings, "stop_at=9"), poison(name, 7)).code == 0
    assert forked(on(tmp_path / "b", "data.num_workers=1")).code == 0
    assert weights(tmp_path / "b" / "r", 12) == weights(run, 12)
    rows = [
        {row["step"]: row["train/loss"] for row in read_metrics(of / "metrics.csv")} for of in (run, family.straight)
    ]
    assert list(rows[0]) == list(range(1, 13)) and [rows[0][i] == rows[1][i] for i in (4, 5)] == [True, False]


@pytest.mark.fault("F17")
def test_what_was_left_out_stays_out_in_a_second_roll_back(gpt: Family, tmp_path: Path) -> None:
    """Batch 7 is bad, so steps 5 and 6 take 8 and 9; 9 is bad, too, so step 5 takes 10."""
    second = ",".join(
        f"loss@{i}=poison" for i in (17, 18)
    )  # passes 15 and 16 are those of the first step after the roll-back
    ended = forked(gpt.begin(tmp_path, "trainer.on_bad_step=rollback"), f"{poison('gpt', 7)},{second}")
    assert ended.code == 0 and ended.said.count("going on from step-000000004") == 2
    assert state(tmp_path / "r", 12)["passed_over"] == 5


@pytest.mark.fault("F17")
def test_what_cannot_be_rolled_back_is_said(gpt: Family, tmp_path: Path) -> None:
    """No checkpoint yet; and data that are bad wherever one goes on."""
    ended = forked(gpt.begin(tmp_path / "a", "trainer.on_bad_step=rollback"), poison("gpt", 2)).clear()
    assert ended.code == 1 and "rolled back 0 times" in ended.said
    assert forked(gpt.begin(tmp_path / "b", "stop_at=4")).code == 0
    ended = forked(on(tmp_path / "b", "trainer.on_bad_step=rollback"), "loss=poison").clear()
    assert ended.code == 1 and "rolled back 3 times" in ended.said and step(tmp_path / "b" / "r") == 4


@pytest.mark.slow
@pytest.mark.fault("F18")
def test_a_bad_gradient_on_one_of_two_ranks(tiny: list[str], tmp_path: Path) -> None:
    """Rank 0 alone is poisoned; both skip the step, and their weights are still the same in the next."""
    settings = [
        "trainer.devices=2",
        "trainer.max_steps=6",
        "trainer.save_every=1",
        "trainer.keep=9",
        "trainer.log_every=1",
    ]
    ended = forked(["train", *tiny, *settings, f"runs_dir={tmp_path}", "run=r"], "loss@4=poison")
    run = tmp_path / "r"
    assert ended.code == 0 and "step 4: loss or gradient not finite" in ended.said
    assert weights(run, 3)[0] == weights(run, 4)[0] != weights(run, 5)[0] and state(run, 6)["all_bad_steps"] == 1


# --- spikes


def test_spikes_by_hand() -> None:
    """Six deviations above the mean, of loss or of norm; NaN is no part of the window, low values are no spikes."""
    spikes, draw = Spikes(6.0), torch.Generator().manual_seed(0)
    ordinary = torch.randn(WINDOW // 2, 2, generator=draw) + 10
    assert not any(spikes.beyond("a", *pair) for pair in ordinary)
    mean, deviation = ordinary.double().mean(0), ordinary.double().std(0, correction=0)
    for at, want in ((5.9, False), (6.1, True)):
        fresh = Spikes(6.0)
        fresh.windows = dict(spikes.windows)
        assert bool(fresh.beyond("a", mean[0] + at * deviation[0], mean[1])) == want
        fresh.windows = dict(spikes.windows)
        assert bool(fresh.beyond("a", mean[0], mean[1] + at * deviation[1])) == want
    assert not spikes.beyond("a", torch.tensor(-1e9), mean[1]) and not spikes.beyond("b", torch.tensor(1e9), mean[1])
    window = spikes.windows["a"].clone()
    assert not spikes.beyond("a", torch.tensor(torch.nan), mean[1])
    torch.testing.assert_close(spikes.windows["a"], window, equal_nan=True)


@pytest.mark.slow
@pytest.mark.fault("F19")
def test_a_spike_is_skipped_and_the_detector_is_resumed(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, high = Pretraining.loss_sum, {70: 1e3}

    def loss_sum(self: Pretraining, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return right(self, batch) * high.get(self.global_step + 1, 1.0)

    monkeypatch.setattr(Pretraining, "loss_sum", loss_sum)
    settings = [
        "trainer.max_steps=72",
        "trainer.spike=6",
        "trainer.save_every=1",
        "trainer.keep=90",
        "trainer.log_every=1",
    ]
    argv = ["train", *tiny, *settings, "trainer.eval_every=72", "trainer.sample_every=72"]
    assert main([*argv, f"runs_dir={tmp_path}", "run=a"]) == 0
    assert weights(tmp_path / "a", 69)[0] == weights(tmp_path / "a", 70)[0] != weights(tmp_path / "a", 71)[0]
    assert state(tmp_path / "a", 72)["all_bad_steps"] == 1
    assert main([*argv, f"runs_dir={tmp_path}", "run=b", "stop_at=66"]) == 0
    assert main(["train", f"runs_dir={tmp_path}", "run=b"]) == 0
    assert weights(tmp_path / "b", 72) == weights(tmp_path / "a", 72)


# --- memory, and time


@pytest.mark.fault("F23")
def test_where_memory_runs_out_the_micro_batch_is_halved(gpt: Family, tmp_path: Path) -> None:
    """The same steps but for rounding, said once, and kept by a resume; a single row that is too much is an error."""
    assert forked(gpt.begin(tmp_path / "a", "model.dropout=0")).code == 0
    ended = forked(
        gpt.begin(tmp_path / "b", "model.dropout=0", "stop_at=8"), "loss@6=oom"
    )  # the second half of step 3
    assert (
        ended.code == 0
        and ended.said.count("memory ran out; from now on data.micro_batch_size=4, and the same steps") == 1
    )
    ended = forked(on(tmp_path / "b"))
    assert ended.code == 0 and "memory ran out" not in ended.said and state(tmp_path / "b" / "r", 12)["halved"] == 4
    one, two = (read(tmp_path / name / "r" / "checkpoints" / "step-000000012").model for name in "ab")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
    ended = forked(gpt.begin(tmp_path / "c", "data.micro_batch_size=1"), "loss@3=oom").clear()
    assert ended.code == 2 and "out of memory with micro-batches of 1 rows" in ended.said


@pytest.mark.fault("F25")
@pytest.mark.parametrize("point", ["step@5", "evaluate@1", "sample@1"])
def test_a_run_that_is_stuck_ends_with_its_stacks(gpt: Family, tmp_path: Path, point: str) -> None:
    ended = forked(gpt.begin(tmp_path, "trainer.watchdog=3s"), f"{point}=hang")
    assert ended.code == 70 and "nothing has moved for 3 s" in ended.said
    assert "in act" in (tmp_path / "r" / "stacks.txt").read_text()
    assert forked(on(tmp_path, "trainer.watchdog=30m")).code == 0
    gpt.same(tmp_path / "r", FREE | {"trainer.watchdog"})
