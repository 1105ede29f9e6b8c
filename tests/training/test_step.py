"""One batch in, one step out: the gradient does not depend on how the batch is cut; a bad step changes nothing."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gengen.checkpoints import store
from gengen.checkpoints.metrics_csv import Metrics, read_metrics
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.train import TrainerConfig
from gengen.data.prepared import PrepareRequest
from gengen.data.text.prepare import prepare_for
from gengen.data.text.windows import Steps, TextData
from gengen.generation.text.generator import TextGenerator
from gengen.models.kernels.cross_entropy import IGNORED, linear_cross_entropy
from gengen.training.budget import Costs, fitted_to_budget, steps_within
from gengen.training.build import build_objective
from gengen.training.objectives.language import Pretraining, bits_per_byte


def first_moments(run: Path) -> dict[str, Tensor]:
    """After one step from zero, (1 - beta1) times the gradient."""
    return {
        name: t
        for name, t in load_file(next((run / "checkpoints").glob("step-*")) / "optimizer.safetensors").items()
        if "exp_avg." not in name and name.endswith("exp_avg")
    }


def gradient(tiny: list[str], runs: Path, name: str, *settings: str) -> dict[str, Tensor]:
    argv = [
        *tiny,
        "data.batch_size=16",
        "optim.clip=null",
        "trainer.max_steps=8",
        "stop_at=1",
        f"runs_dir={runs}",
        f"run={name}",
        *settings,
    ]
    assert main(["train", *argv]) == 0
    return {key: moment / 0.1 for key, moment in first_moments(runs / name).items()}


@pytest.fixture
def ragged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in which between none and all of the labels count."""
    whole = Steps.row

    def cut(self: Steps, position: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, labels = whole(self, position)
        labels[(position * 7) % (len(labels) + 1) :] = IGNORED
        return tokens, labels

    monkeypatch.setattr(Steps, "row", cut)


def test_micro_batches_give_the_gradient_of_the_whole(tiny: list[str], tmp_path: Path, ragged: None) -> None:
    whole = gradient(tiny, tmp_path, "whole")
    assert len(whole) == 2 * 8 + 2 and max(g.abs().max().item() for g in whole.values()) > 1e-3
    for size in (4, 1):
        torch.testing.assert_close(
            gradient(tiny, tmp_path, f"by-{size}", f"data.micro_batch_size={size}"), whole, rtol=0, atol=1e-6
        )


def test_a_mean_of_means_would_be_noticed(
    tiny: list[str], tmp_path: Path, ragged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug put back: each micro-batch divided by its own count."""
    whole = gradient(tiny, tmp_path, "whole")
    right = Pretraining.backward_one

    def wrong(self: Pretraining, loss_sum: Any, part: dict[str, Tensor], total: Tensor) -> Tensor:
        return right(self, loss_sum, part, self.loss_count(part).clamp(min=1) * 4)

    monkeypatch.setattr(Pretraining, "backward_one", wrong)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            gradient(tiny, tmp_path, "wrong", "data.micro_batch_size=4"), whole, rtol=0, atol=1e-6
        )


@pytest.mark.fault("F7")
@pytest.mark.slow
def test_two_ranks_give_the_gradient_and_the_curve_of_one(tiny: list[str], tmp_path: Path) -> None:
    one = gradient(tiny, tmp_path, "one")
    two = gradient(tiny, tmp_path, "two", "trainer.devices=2", "data.micro_batch_size=4")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    for name, devices in (("curve-one", 1), ("curve-two", 2)):
        argv = [
            *tiny,
            "data.batch_size=16",
            "trainer.log_every=1",
            "trainer.max_steps=20",
            f"runs_dir={tmp_path}",
            f"run={name}",
        ]
        assert main(["train", *argv, f"trainer.devices={devices}"]) == 0
    curves = [
        [row["train/loss"] for row in read_metrics(tmp_path / name / "metrics.csv")]
        for name in ("curve-one", "curve-two")
    ]
    assert len(curves[0]) == 20 and curves[1] == pytest.approx(curves[0], rel=1e-5)
    bpb = [read_metrics(tmp_path / name / "metrics.csv")[-1]["val/bpb"] for name in ("curve-one", "curve-two")]
    assert bpb[1] == pytest.approx(bpb[0], rel=1e-5)


@pytest.mark.fault("F30")
@pytest.mark.slow
def test_a_compiled_run_has_the_same_gradient_and_the_same_names(tiny: list[str], tmp_path: Path) -> None:
    """Either goes on with what the other saved."""
    eager, compiled = gradient(tiny, tmp_path, "eager"), gradient(tiny, tmp_path, "compiled", "trainer.compile=true")
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)
    assert main(["train", "run=compiled", f"runs_dir={tmp_path}", "trainer.compile=false"]) == 0


def test_without_a_compiler_a_run_goes_on_and_says_so(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["train", *tiny, "trainer.compile=true", "trainer.max_steps=2", f"runs_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("warning: torch.compile finds no C++ compiler") == 1


def test_a_budget_becomes_a_number_of_steps_and_leaves_no_other_trace(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [setting for setting in tiny if not setting.startswith("trainer.max_steps")]
    assert (
        main(["train", *plain, "trainer.budget=0.3s", "model.dropout=0.1", f"runs_dir={tmp_path}", "run=timed"]) == 0
    )
    steps = json.loads((tmp_path / "timed" / "config.json").read_text())["trainer"]["max_steps"]
    assert 16 <= steps < 2000 and f"steps  {steps} fit in trainer.budget=0.3s here" in capsys.readouterr().out
    assert (
        main(
            ["train", *plain, f"trainer.max_steps={steps}", "model.dropout=0.1", f"runs_dir={tmp_path}", "run=counted"]
        )
        == 0
    )
    timed, counted = (tmp_path / run / "checkpoints" / f"step-{steps:09d}" for run in ("timed", "counted"))
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (timed / name).read_bytes() == (counted / name).read_bytes()


def test_how_many_steps_fit_in_a_budget_by_hand() -> None:
    """Of 1 s; an evaluation every 10 takes 3 s, samples every 20 take 5 s, a save every 4, and with each evaluation,
    takes 2 s. The last step has all three. So 20 steps take 20 + 2 * 3 + 5 + (5 + 1) * 2 = 43 s, and one more 11 s."""
    c = TrainerConfig(eval_every=10, sample_every=20, save_every=4)
    assert [steps_within(budget, c, Costs(1, 3, 5, 2)) for budget in (43, 53.9, 54)] == [20, 20, 21]
    assert [steps_within(budget, c, Costs(1, 3, 5, 2)) for budget in (-5, 10.9, 11)] == [-1, 0, 1]
    assert steps_within(43, c, Costs(1)) == 43


def test_evaluations_count_in_a_budget(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times that the trial finds are of this machine; at least it must find what each of the three waits for."""
    waits = {(Pretraining, "evaluate"): 0.05, (Pretraining, "write_samples"): 0.06, (store, "save"): 0.02}

    def slowed(right: Any, wait: float) -> Any:
        return lambda *args: (time.sleep(wait), right(*args))[1]

    for (owner, name), wait in waits.items():
        monkeypatch.setattr(owner, name, slowed(getattr(owner, name), wait))
    own = ["trainer.max_steps=null", "trainer.budget=8s", f"runs_dir={tmp_path}"]
    every = ["trainer.eval_every=1", "trainer.sample_every=2", "trainer.save_every=3"]
    config = compose_train(read_command_line([*tiny, *own, *every]))
    prepared = prepare_for(PrepareRequest(config.data, config.model, print))  # type: ignore[arg-type]
    config.model.vocab_size = 257  # type: ignore[attr-defined]
    steps = fitted_to_budget(config, prepared, print).trainer.max_steps
    assert steps and steps * (0.05 + 0.06 / 2 + 0.02) < 8
    assert list(tmp_path.iterdir()) == []


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    right = Pretraining.loss_sum

    def loss_sum(self: Pretraining, batch: dict[str, Tensor]) -> Tensor:
        return right(self, batch) * (math.nan if self.global_step in steps else 1.0)

    monkeypatch.setattr(Pretraining, "loss_sum", loss_sum)


def test_a_step_that_is_not_finite_changes_no_weight(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned(monkeypatch, range(10, 11))
    argv = [
        *tiny,
        "optim.ema=0.9",
        "trainer.log_every=1",
        "trainer.save_every=1",
        "trainer.keep=50",
        "trainer.max_steps=12",
    ]
    assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r"]) == 0
    before, bad, after = (tmp_path / "r" / "checkpoints" / f"step-{step:09d}" for step in (10, 11, 12))
    for name in ("model", "ema", "optimizer"):
        assert (before / f"{name}.safetensors").read_bytes() == (bad / f"{name}.safetensors").read_bytes()
        assert (after / f"{name}.safetensors").read_bytes() != (bad / f"{name}.safetensors").read_bytes()
    assert "step 11: loss or gradient not finite" in capsys.readouterr().out


@pytest.mark.fault("F20")
def test_too_many_bad_steps_stop_the_run_and_leave_its_checkpoints(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned(monkeypatch, range(12, 100))
    assert (
        main(["train", *tiny, "trainer.log_every=1", "trainer.max_bad_steps=3", f"runs_dir={tmp_path}", "run=r"]) == 1
    )
    assert "step 16: loss or gradient not finite, for 4 steps in a row" in capsys.readouterr().err
    assert store.step_of(store.all_steps(tmp_path / "r" / "checkpoints")[0]) == 10
    monkeypatch.undo()
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0  # the lock is free and the run goes on


def test_not_a_number_is_never_the_best(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it is the first, or lower than all others."""
    values = iter([math.nan, -math.inf, 3.0, 2.0, math.nan])

    def found(self: Pretraining, sums: Tensor) -> dict[str, float]:
        return {"val/loss": 0.0, "val/bpb": next(values)}

    monkeypatch.setattr(Pretraining, "evaluation_metrics", found)
    argv = [*tiny, "trainer.eval_every=1", "trainer.save_every=5", "trainer.sample_every=5", "trainer.max_steps=5"]
    assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r"]) == 0
    assert (tmp_path / "r" / "checkpoints" / "BEST").read_text() == "step-000000004\n"
    state = json.loads((tmp_path / "r" / "checkpoints" / "step-000000005" / "state.json").read_text())
    assert state["best"] == [4, 2.0]


@pytest.mark.fault("F23")
@pytest.mark.parametrize("rows", [3, 0])
def test_where_memory_runs_out_an_evaluation_is_cut(
    rows: int, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of 8 rows, of which 3 at once are enough: the same metrics, said once; no row at all: an error in
    words."""
    argv = ["train", *tiny, "trainer.max_steps=2", "trainer.eval_every=1", f"runs_dir={tmp_path}"]
    assert main([*argv, "run=whole"]) == 0
    sums = Pretraining.evaluation_sums

    def limited(self: Pretraining, batch: dict[str, Tensor]) -> Tensor:
        if len(batch["tokens"]) > rows:
            raise torch.OutOfMemoryError
        return sums(self, batch)

    monkeypatch.setattr(Pretraining, "evaluation_sums", limited)
    assert main([*argv, "run=cut"]) == (0 if rows else 2)
    said = capsys.readouterr()
    if not rows:
        assert "error: out of memory in an evaluation, one row at a time" in said.err
        return
    assert said.out.count("memory ran out; from now on 2 rows are evaluated at once") == 1
    whole, cut = ([row["val/bpb"] for row in read_metrics(tmp_path / r / "metrics.csv")] for r in ("whole", "cut"))
    assert len(cut) == 2 and cut == pytest.approx(whole, rel=1e-6)


@pytest.mark.fault("F23")
def test_a_preview_that_memory_does_not_hold_is_left_out(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENGEN_FAULT", "sample=oom")
    assert main(["train", *tiny, "trainer.max_steps=2", f"runs_dir={tmp_path}", "run=r"]) == 0
    assert "warning: samples: asked for at sample" in capsys.readouterr().out


@pytest.mark.fault("F23")
@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_command_that_memory_does_not_hold_ends_in_words(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Before a resumed run has begun, too, where any other error would be the checkpoint's."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    assert main(["train", *tiny, "trainer.max_steps=2", "stop_at=1", f"runs_dir={tmp_path}", "run=r"]) == 0
    monkeypatch.setattr(Pretraining, "configure_optimizers", full)
    monkeypatch.setattr(TextGenerator, "samples", full)
    assert main([command, "run=r", f"runs_dir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "error: CUDA out of memory. Tried to allocate 20.00 MiB." in error and "damaged" not in error


def test_a_prompt_that_the_context_does_not_hold_is_left_out_of_previews(tiny: list[str], tmp_path: Path) -> None:
    argv = [*tiny, "model.context=8", "trainer.max_steps=2", "data.prompts=Once upon a time", "data.prompts=Once"]
    assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r"]) == 0
    assert (tmp_path / "r" / "samples" / "step-000000002.txt").read_text().startswith("Once")


def test_a_column_that_a_run_no_longer_has_is_left_out_when_it_goes_on(tmp_path: Path) -> None:
    """A curve with a share of the peak in it, by a version that counted too little; the row of the same step is
    merged.
    """
    path = tmp_path / "metrics.csv"
    path.write_text("step,seconds,train/loss,val/loss,mfu\n1,1,0.5,,0.25\n2,2,0.375,,0.25\n")
    metrics = Metrics(path, ["step", "seconds", "train/loss", "val/loss"])
    metrics.start(2)
    metrics.write({"step": 2, "seconds": 3.0, "val/loss": 0.125})
    assert path.read_text() == "step,seconds,train/loss,val/loss\n1,1.0,0.5,\n2,3,0.375,0.125\n"


def test_loss_and_bits_per_byte_by_hand() -> None:
    features, head = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 5.0], [math.log(3.0), -5.0]])
    assert linear_cross_entropy(features, head, torch.tensor([1, IGNORED])).item() == pytest.approx(math.log(4 / 3))
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)


def test_the_loss_is_fp32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        nats = linear_cross_entropy(torch.randn(6, 4), torch.randn(5, 4), torch.zeros(6, dtype=torch.long))
    assert nats.dtype == torch.float32


def test_a_constant_predictor_has_the_bits_per_byte_of_its_entropy(tiny: list[str], tmp_path: Path) -> None:
    """The whole protocol from text to val/bpb: logits of zero cost log2 V bits a token, and a byte is a token."""
    config = compose_train(read_command_line(tiny))
    prepared = prepare_for(PrepareRequest(config.data, config.model, print))  # type: ignore[arg-type]
    config.model.vocab_size = 257  # type: ignore[attr-defined]
    objective = build_objective(config, prepared)
    torch.nn.init.zeros_(objective.model.embedding.weight)  # type: ignore[arg-type, union-attr]
    metrics: Any = objective.evaluate(TextData(prepared.config, prepared, context=48, seed=0).val_batches())
    scored = len(prepared.val) - 1
    assert metrics["val/loss"] == pytest.approx(math.log(257), rel=1e-6)
    assert metrics["val/bpb"] == pytest.approx(scored * math.log2(257) / prepared.val_bytes, rel=1e-6)
