"""Two networks in one step: the gradients of a whole batch, one count of steps, penalties in fp32, and a collapse that
is noticed.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gengen.checkpoints import store
from gengen.checkpoints.layout import read_weights
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.train import TrainConfig
from gengen.models.gan import GAN
from gengen.training.objective import Batch, Objective
from gengen.training.objectives import gan as adversarial
from gengen.training.objectives.gan import Adversarial
from gengen.training.optim.groups import rate

SMALL = ["model.widths=[8,16]", "model.patch=4", "model.blocks=1", "model.latent_size=8", "data.batch_size=64"]
MACHINE = [
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.threads=1",
    "trainer.log_every=1",
    "trainer.sample_every=50",
]


def train(picture_data: list[str], runs: Path, name: str, *settings: str, model: str = "gan") -> Path:
    """A run of 50 steps, if it is not told otherwise."""
    shape = SMALL if model == "gan" else ["model.widths=[8,16]", "model.latent_size=8", "data.batch_size=64"]
    argv = [
        f"model={model}",
        *picture_data,
        *shape,
        *MACHINE,
        "trainer.max_steps=50",
        "trainer.eval_every=50",
        *settings,
    ]
    assert main(["train", *argv, f"runs_dir={runs}", f"run={name}"]) == 0
    return runs / name


def moments(run: Path, which: str) -> dict[str, Tensor]:
    """The optimizer's tensors that are called `which`, of both networks, by name."""
    newest = store.all_steps(run / "checkpoints")[0]
    return {name: t for name, t in load_file(newest / "optimizer.safetensors").items() if name.endswith(f".{which}")}


def objective_of(*settings: str, max_steps: int = 100, step: int = 0) -> Adversarial:
    """An objective at some step, without a trainer, of images 16 x 16."""
    eager = ["model.penalty_every=1", "model.final_gamma=1", f"trainer.max_steps={max_steps}"]
    line = ["model=gan", "data=animals", *SMALL, *MACHINE, *eager, *settings]
    config: TrainConfig = compose_train(read_command_line(line))
    images_are = {"resolution": 16, "channels": 1, "classes": ["a", "b"]}
    config = replace(config, model=replace(config.model.resolved(), **images_are))
    torch.manual_seed(0)
    images = torch.rand(256, 1, 16, 16) * 2 - 1

    def batch(split: str, index: Tensor, flipped: Tensor | None = None) -> Batch:
        return {"images": images[index], "labels": (index % 8 == 7).long()}

    made = SimpleNamespace(train=range(256), val=range(128), batch=batch)
    objective = Adversarial(config, GAN(config.model), made)  # type: ignore[arg-type]
    trainer = SimpleNamespace(max_steps=max_steps, global_step=step, world_size=1)
    objective._trainer = trainer  # type: ignore[assignment]
    return objective


def batch_of(objective: Adversarial, rows: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images, index = torch.rand(rows, 1, 16, 16, generator=generator) * 2 - 1, torch.arange(rows)
    return {"images": images, "labels": index % 2, "index": index, **objective.draws(rows, generator)}


# --- a step


@pytest.mark.parametrize(
    "settings", [[], ["model.loss=hinge"], ["model.penalty_every=2"], ["model.augment=color,translation,cutout"]]
)
def test_micro_batches_give_the_gradients_of_the_whole(
    settings: list[str], picture_data: list[str], tmp_path: Path
) -> None:
    """2 x 32 against 1 x 64, for both networks. The first moments of one step without momentum are its gradients; the
    rate is so small that the discriminator, by which the generator's is taken, does not move."""
    still = ["stop_at=1", "optim.lr=1e-12", *settings]
    whole = moments(train(picture_data, tmp_path, "whole", *still), "exp_avg")
    halves = moments(train(picture_data, tmp_path, "halves", *still, "data.micro_batch_size=32"), "exp_avg")
    assert any("discriminator" in name for name in whole) and any("discriminator" not in name for name in whole)
    assert (
        min(max(t.abs().max() for n, t in whole.items() if ("discriminator" in n) == d) for d in (True, False)) > 1e-3
    )
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-6)


def test_a_mean_of_means_would_be_noticed(
    picture_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug put back: each micro-batch divided by its own count, as a mean would be."""
    still, right = ["stop_at=1", "optim.lr=1e-12"], Adversarial.backward_one
    whole = moments(train(picture_data, tmp_path, "whole", *still), "exp_avg")

    def wrong(self: Adversarial, loss_sum: Callable[[Batch], Tensor], part: Batch, total: Tensor) -> Tensor:
        return right(self, loss_sum, part, self.loss_count(part))

    monkeypatch.setattr(Adversarial, "backward_one", wrong)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            moments(train(picture_data, tmp_path, "wrong", *still, "data.micro_batch_size=32"), "exp_avg"),
            whole,
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize("model", ["gan", "dcgan"])
def test_fifty_steps_are_fifty_updates_of_either_network(model: str, picture_data: list[str], tmp_path: Path) -> None:
    """Lightning counts the steps of every optimizer that it knows: of two it would say 100, and stop at 25."""
    run = train(picture_data, tmp_path, "r", "trainer.save_every=25", "data.micro_batch_size=32", model=model)
    steps = moments(run, "step")
    assert {t.item() for t in steps.values()} == {50.0}
    assert any("discriminator" in name for name in steps) and any("discriminator" not in name for name in steps)
    assert [store.step_of(path) for path in store.all_steps(run / "checkpoints")] == [50, 25]
    newest = store.all_steps(run / "checkpoints")[0]
    assert (
        json.loads((newest / "state.json").read_text())["step"]
        == json.loads((newest / "manifest.json").read_text())["step"]
        == 50
    )
    rows = read_metrics(run / "metrics.csv")
    config = compose_train(read_command_line([f"model={model}", "data=animals"])).optim
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert rows[-1]["lr"] == pytest.approx(config.peak_lr * rate(49, 50, config), rel=1e-5)  # the schedule's end
    assert all(
        row[name] is not None
        for row in rows
        for name in ("d_loss", "d_grad_norm", "d_real_minus_fake", "r1", "r2", "train/loss")
    )


def test_neither_update_moves_the_other_network(
    monkeypatch: pytest.MonkeyPatch, picture_data: list[str], tmp_path: Path
) -> None:
    """And the generator's leaves no gradient in the discriminator, which the next step would add to its own."""
    seen: list[tuple[bool, bool]] = []
    right = Adversarial.apply_gradients

    def watched(self: Adversarial, network: Any, optimizer: Any, loss: Tensor) -> Any:
        other = self.model.discriminator if network is self.model.generator else self.model.generator
        untouched = [p.grad is None for p in other.parameters()]
        before = [p.detach().clone() for p in other.parameters()]
        result = right(self, network, optimizer, loss)
        seen.append((all(untouched), all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))))
        return result

    monkeypatch.setattr(Adversarial, "apply_gradients", watched)
    train(picture_data, tmp_path, "r", "stop_at=3")
    assert seen == [(True, True)] * 6


def test_an_update_that_is_not_finite_changes_nothing_of_its_network(
    picture_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 3's discriminator: its weights and moments stay as they were at 2, and the step is named."""
    right = Adversarial.discriminator_loss_sum

    def wrong(self: Adversarial, batch: Batch) -> Tensor:
        return right(self, batch) * (math.nan if self.global_step == 2 else 1.0)

    monkeypatch.setattr(Adversarial, "discriminator_loss_sum", wrong)
    run = train(picture_data, tmp_path, "r", "stop_at=3", "trainer.save_every=1")
    assert "warning: step 3: loss or gradient not finite" in capsys.readouterr().out
    two, three = (load_file(run / "checkpoints" / f"step-{n:09d}" / "model.safetensors") for n in (2, 3))
    same = {name: torch.equal(two[name], three[name]) for name in two}
    assert all(same[name] for name in same if name.startswith("discriminator.")) and all(
        t.isfinite().all() for t in three.values()
    )
    assert {t.item() for name, t in moments(run, "step").items() if "discriminator" in name} == {2.0}


# --- penalties


@pytest.mark.slow  # where the CPU has no bf16 units
def test_penalties_are_fp32_where_training_is_bf16(
    picture_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1 of the first step is that of a run in fp32; put under autocast it would be off in the third digit."""
    one = ["stop_at=1"]
    exact = read_metrics(train(picture_data, tmp_path, "fp32", *one) / "metrics.csv")[0]["r1"]
    assert (
        read_metrics(train(picture_data, tmp_path, "bf16", *one, "trainer.precision=bf16") / "metrics.csv")[0]["r1"]
        == exact
    )
    monkeypatch.setattr(
        adversarial, "lazy_penalty_weight", lambda step, every: 0.0
    )  # what leaves autocast on, and the penalties out
    assert read_metrics(train(picture_data, tmp_path, "none", *one) / "metrics.csv")[0]["r1"] == 0
    objective = objective_of()
    batch = batch_of(objective)
    slopes = []
    for enabled in (False, True):
        images = batch["images"].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = objective.logits(images, batch["labels"], batch["u"][:, 0, 0])
        slopes.append(adversarial.gradient_penalty(logits, images).sum().item())
    assert abs(slopes[1] / slopes[0] - 1) > 1e-5  # the comparison above would see it


def test_lazy_penalties_come_every_kth_step_with_k_times_the_weight(picture_data: list[str], tmp_path: Path) -> None:
    rows = read_metrics(train(picture_data, tmp_path, "lazy", "stop_at=6", "model.penalty_every=3") / "metrics.csv")
    r1 = [row["r1"] for row in rows]
    assert (
        r1[0] == r1[1] == r1[2] != r1[3] == r1[4] == r1[5] and min(r1) > 0
    )  # what is logged are those of the last such step
    eager, lazy = objective_of(), objective_of("model.penalty_every=3")
    losses = []
    for objective in (eager, lazy, objective_of("model.gamma=0")):
        objective.running_sums = torch.zeros(3)
        losses.append(objective.discriminator_loss_sum(batch_of(objective)).item())
    assert losses[1] - losses[2] == pytest.approx(3 * (losses[0] - losses[2]), rel=1e-4)


def test_without_penalties_images_need_no_gradient() -> None:
    objective = objective_of("model.gamma=0")
    objective.running_sums = torch.zeros(3)
    batch = batch_of(objective)
    objective.discriminator_loss_sum(batch)
    assert (
        not batch["images"].requires_grad and objective.running_sums[1:].eq(0).all() and objective.running_sums[0] != 0
    )


# --- schedules and the average


def test_schedules_go_from_their_first_to_their_last_values() -> None:
    settings = [
        "model.gamma=2",
        "model.final_gamma=0.1",
        "model.first_beta2=0.9",
        "optim.beta2=0.99",
        "optim.ema=0.99",
        "model.burn_in=0.5",
    ]
    for step, gamma, beta2, half_life in (
        (0, 2.0, 0.9, 0.0),
        (25, 1.1, 0.945, 34.483),
        (50, 0.2, 0.99, 68.967),
        (99, 0.2, 0.99, 68.967),
    ):
        objective = objective_of(*settings, step=step)
        optimizer = objective.configure_optimizers()
        objective.schedule(optimizer)
        assert objective.gamma() == pytest.approx(gamma)
        assert [group["betas"] for group in optimizer.param_groups] == [(0.0, pytest.approx(beta2))] * len(
            optimizer.param_groups
        )
        assert objective.ema_decay() == pytest.approx(0.5 ** (1 / half_life) if half_life else 0.0, rel=1e-4)


def test_the_average_is_the_generators_alone_and_is_what_is_sampled(picture_data: list[str], tmp_path: Path) -> None:
    run = train(picture_data, tmp_path, "r", "stop_at=5", "optim.ema=0.9", model="dcgan")
    newest = store.all_steps(run / "checkpoints")[0]
    ema, raw = load_file(newest / "ema.safetensors"), load_file(newest / "model.safetensors")
    assert set(ema) == {name for name in raw if name.startswith("generator.")} and any(
        "running_mean" in name for name in ema
    )
    assert any(not torch.equal(ema[name], raw[name]) for name in ema if "running_mean" in name)
    chosen = read_weights(newest)
    assert all(torch.equal(chosen[name], (ema | {n: t for n, t in raw.items() if n not in ema})[name]) for name in raw)
    assert all(torch.equal(t, raw[name]) for name, t in read_weights(newest, "raw").items())


# --- evaluation


def evaluated(objective: Adversarial, fakes: Tensor) -> dict[str, float]:
    """The metrics where these images, in turn, are what the generator draws: once for the loss, once to compare."""
    held_out = objective.prepared.batch("val", torch.arange(128), None)["images"]
    at = iter([*fakes.split(64)] * 2)
    objective.model.generator.forward = lambda z, labels: next(at)  # type: ignore[method-assign,assignment]
    batches = [{"images": held_out[rows], "labels": rows % 2, "index": rows} for rows in torch.arange(128).split(64)]
    metrics = objective.evaluate(batches)
    assert metrics is not None
    return metrics


def test_a_collapse_is_measured_and_warned_of() -> None:
    """Four images, drawn again and again, are a collapse; as many as there are in the data are none."""
    objective = objective_of(step=50)
    images = objective.prepared.batch("train", torch.arange(128, 256), None)["images"]
    good, bad = evaluated(objective, images), evaluated(objective, images[:4].repeat(32, 1, 1, 1))
    assert good["val/coverage"] == pytest.approx(1, abs=0.35) and bad["val/coverage"] < 0.2
    assert abs(good["val/kid"]) < bad["val/kid"] / 3
    assert objective.warning(good) is None
    warning = objective.warning(bad)
    assert warning is not None and "model.gamma" in warning and "\n" not in warning
    assert objective_of(step=10).warning(bad) is None  # the beginning of every run looks like that


def test_samples_are_compared_with_held_out_images_of_their_classes() -> None:
    """One held-out image in eight is of class b."""
    objective, asked = objective_of(), list[Tensor]()
    objective.model.generator.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[1]))
    objective.evaluation_metrics(torch.tensor([1.0, 1.0]))
    assert torch.cat(asked).tolist() == [0, 0, 0, 0, 0, 0, 0, 1] * 16


def test_metrics_do_not_depend_on_how_the_evaluation_is_cut() -> None:
    objective = objective_of()
    held_out = objective.prepared.batch("val", torch.arange(128), None)["images"]
    whole, parts = (
        objective.evaluate(
            [{"images": held_out[rows], "labels": rows % 2, "index": rows} for rows in torch.arange(128).split(size)]
        )
        for size in (128, 5)
    )
    assert (
        whole is not None
        and parts == pytest.approx(whole, rel=1e-5)
        and all(math.isfinite(value) for value in whole.values())
    )


def test_too_few_held_out_images_are_refused_before_anything_is_trained(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [
        "data=imagefolder",
        f"data.path={pictures}",
        f"data.dir={tmp_path / 'data'}",
        "data.resolution=16",
        "data.channels=1",
    ]
    assert (
        main(["train", "model=gan", *data, *SMALL, *MACHINE, "data.validation=0.02", f"runs_dir={tmp_path}", "run=r"])
        == 2
    )
    assert "data.validation" in capsys.readouterr().err


def test_a_budget_counts_steps_with_and_without_penalties_by_their_share() -> None:
    """By a median of all steps those with a penalty, a quarter of them, would cost nothing."""
    trial = [9.0, 1, 1, 1] + [3.0, 1, 1, 1] * 3
    assert objective_of("model.penalty_every=4").seconds_a_step(trial) == 1.5
    assert objective_of("model.penalty_every=1").seconds_a_step(trial) == 1.0
    assert objective_of("model.penalty_every=32").seconds_a_step([9.0] + [1.0] * 15) == (9 + 31) / 32


@pytest.mark.parametrize("settings", [[], ["model.gamma=0"], ["model.loss=hinge"]])
def test_flops_are_those_of_a_step(settings: list[str]) -> None:
    objective = objective_of(
        *settings, "model.augment=cutout"
    )  # the counter cannot follow a leaf that a module is given
    objective.running_sums = torch.zeros(3)
    batch = batch_of(objective, 4)
    with FlopCounterMode(display=False) as counter:
        objective.discriminator_loss_sum(batch).backward()
        objective.model.discriminator.requires_grad_(False)
        objective.loss_sum(batch).backward()
    assert objective.flops_per_row() * 4 == pytest.approx(counter.get_total_flops(), rel=0.15)


@pytest.mark.slow
def test_two_ranks_give_the_gradients_of_one(picture_data: list[str], tmp_path: Path) -> None:
    still = ["stop_at=3", "optim.lr=1e-12", "data.micro_batch_size=16"]
    one = moments(train(picture_data, tmp_path, "one", *still), "exp_avg")
    two = moments(train(picture_data, tmp_path, "two", *still, "trainer.devices=2"), "exp_avg")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


def test_the_base_class_has_nothing_extra_to_save() -> None:
    assert Objective.extra_state(objective_of()) == {} and set(objective_with_optimizers().extra_state()) == {
        "discriminator",
        "penalties",
    }


def objective_with_optimizers() -> Adversarial:
    objective = objective_of()
    objective.configure_optimizers()
    return objective
