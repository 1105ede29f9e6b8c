"""Autoencoding: the loss is the ELBO, sums stay sums, every term trains, and a run resumes exactly."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from gengen.checkpoints import store
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.train import TrainConfig
from gengen.models.autoencoder import Autoencoder
from gengen.models.efficientnet import EfficientNetLite0
from gengen.training.loop import TrainingLoop
from gengen.training.objective import Batch
from gengen.training.objectives import autoencoder as autoencoding
from gengen.training.objectives.autoencoder import (
    Autoencoding,
    above_free_bits,
    l1_l2,
    level_nats,
    perceptual_distance,
    perplexity,
    warmed_up,
)

SMALL = ["model.widths=16,32", "model.blocks=1", "model.patch=2", "model.latent_channels=4"]


def config_of(*settings: str, model: str = "vae") -> TrainConfig:
    config = compose_train(
        read_command_line([f"model={model}", "data=animals", *SMALL, "trainer.precision=fp32", *settings])
    )
    return replace(config, model=replace(config.model.resolved(), resolution=16, channels=1))  # type: ignore[call-arg]


def objective_of(*settings: str, model: str = "vae") -> Autoencoding:
    """An objective whose every weight matters."""
    config = config_of(*settings, model=model)
    torch.manual_seed(0)
    network = Autoencoder(config.model)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Autoencoding(config, network, None)


def batch_of(objective: Autoencoding, rows: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = (torch.randn(rows, 1, 16, 16, generator=generator).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
    return {"images": images, "index": torch.arange(rows), **objective.draws(rows, generator)}


def gradients(objective: Autoencoding, loss: Tensor) -> dict[str, Tensor]:
    named = dict(objective.model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def features(images: Tensor) -> list[Tensor]:
    """Stands in for the frozen network: maps of two channels at two scales."""
    x = torch.cat([images, images.roll(1, -1) ** 2 + 0.5], dim=1)
    return [x, nn.functional.avg_pool2d(x, 2)]


# --- formulas


def test_probabilities_of_all_levels_sum_to_one() -> None:
    """Wherever the reconstruction lies, beyond the range too, and however narrow the logistic."""
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)
    for centre in (-1.5, -1.0, 0.3, 1.0, 7.0):
        for scale in (1e-3, 0.02, 1.0):
            nats = level_nats(levels, torch.full_like(levels, centre), torch.tensor(scale, dtype=torch.float64))
            assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-9), (centre, scale)


def test_nats_are_those_of_the_logistic_distribution() -> None:
    x = (torch.randint(1, 255, (3, 1, 4, 4)).double() / 127.5) - 1
    y = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    cdf = lambda at: torch.sigmoid((at - y) / 0.3)  # noqa: E731
    expected = -torch.log(cdf(x + 1 / 255) - cdf(x - 1 / 255)).sum((1, 2, 3))
    torch.testing.assert_close(level_nats(x, y, torch.tensor(0.3, dtype=torch.float64)), expected)


def test_a_far_miss_still_has_a_gradient() -> None:
    """In fp32, where the difference of the two CDFs would be 0, its logarithm infinite."""
    x, y = torch.full((1, 1, 1, 1), 127 / 127.5 - 1), torch.full((1, 1, 1, 1), 2.0, requires_grad=True)
    nats = level_nats(x, y, torch.tensor(0.01))
    nats.sum().backward()
    assert torch.isfinite(nats).all() and y.grad is not None and y.grad.item() == pytest.approx(100, rel=1e-3)
    assert torch.isinf(
        torch.log(torch.sigmoid((x + 1 / 255 - y) / 0.01) - torch.sigmoid((x - 1 / 255 - y) / 0.01))
    ).all()


def test_l1_l2_is_a_sum_of_what_the_file_will_show() -> None:
    """Errors of 0.5 and 2; beyond an end of the range on the right side there is none, on the wrong side there is."""
    x = torch.tensor([0.0, 0.0, 1.0, -1.0, 1.0]).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    y = torch.tensor([0.5, 2.0, 3.0, -1.5, -1.5]).view(5, 1, 1, 1).expand(5, 1, 2, 2).clone().requires_grad_()
    loss = l1_l2(x, y)
    torch.testing.assert_close(loss, torch.tensor([3.0, 24.0, 0.0, 0.0, 35.0]))
    loss.sum().backward()
    assert y.grad is not None and y.grad[:, 0, 0, 0].tolist() == [2, 5, 0, 0, -6]


def test_free_bits_by_hand() -> None:
    """Two channels of two latents with 0.25 nats free: below 0.5 in a channel nothing is gained. Of each image by
    itself.
    """
    kl = torch.tensor([[[[0.1, 0.2]], [[0.6, 0.7]]], [[[0.0, 0.4]], [[0.0, 0.9]]]])
    torch.testing.assert_close(above_free_bits(kl, 0.25), torch.tensor([0.5 + 1.3, 0.5 + 0.9]))
    torch.testing.assert_close(above_free_bits(kl, 0.0), torch.tensor([1.6, 1.3]))
    kl.requires_grad_()
    above_free_bits(kl, 0.25).sum().backward()
    assert kl.grad is not None and kl.grad.flatten().tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_kl_warm_up_is_a_function_of_the_step() -> None:
    assert [warmed_up(step, 100, 0.1) for step in (0, 4, 9, 10, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert warmed_up(0, 100, 0.0) == 1.0 and warmed_up(0, 3, 0.1) == 1.0


def test_perplexity_counts_what_is_used_alike() -> None:
    assert perplexity(torch.tensor([5.0, 5, 0, 5, 5])) == pytest.approx(4)


# --- reductions


@pytest.mark.parametrize(
    "reduction,right", [(lambda kl: kl.sum((1, 2, 3)).mean(), True), (lambda kl: kl.mean(), False)]
)
def test_the_loss_is_the_negative_elbo(reduction: Any, right: bool) -> None:
    """Nats summed over pixels and latents, averaged over the batch; a mean over latents would divide beta by their
    number.
    """
    objective = objective_of("model.beta=1", "model.kl_warmup=0", "model.free_bits=0")
    batch = batch_of(objective)
    mean, std = objective.model.encode(batch["images"])
    reconstructions, scale = objective.model.decode(mean + std * batch["noise"]), objective.model.scale
    cdf = torch.sigmoid(
        (batch["images"] + torch.tensor([[-1.0], [1.0]]).view(2, 1, 1, 1, 1) / 255 - reconstructions) / scale
    )
    cdf[0][batch["images"] == -1], cdf[1][batch["images"] == 1] = 0, 1
    nats = -torch.log(cdf[1] - cdf[0]).sum((1, 2, 3)).mean() + reduction(
        kl_divergence(Normal(mean, std), Normal(0.0, 1.0))
    )
    loss = objective.loss_sum(batch) / objective.loss_count(batch)
    assert (loss.item() == pytest.approx(nats.item(), rel=1e-5)) is right


@pytest.mark.parametrize("model", ["vae", "autoencoder_kl", "vqvae"])
def test_micro_batches_give_the_gradient_of_the_whole(model: str) -> None:
    objective = objective_of(*(["model.free_bits=0.2"] if model == "vae" else []), model=model)
    assert micro_batches_agree(objective)


def test_free_bits_of_a_batch_mean_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: the maximum taken of the mean over whatever is in the micro-batch."""

    def of_the_mean(kl: Tensor, free_bits: float) -> Tensor:
        mean = kl.flatten(2).sum(2).mean(0)
        return mean.clamp(min=free_bits * kl[0, 0].numel()).sum().expand(len(kl))

    monkeypatch.setattr(autoencoding, "above_free_bits", of_the_mean)
    objective = objective_of("model.free_bits=0.2")
    mean, std = objective.model.encode(batch_of(objective)["images"])
    by_channel = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean((0, 2, 3))
    objective.c.free_bits = by_channel.median().item()  # one half of the batch is above it, the other below
    assert not micro_batches_agree(objective)


def micro_batches_agree(objective: Autoencoding) -> bool:
    batch = batch_of(objective)
    whole = gradients(objective, objective.loss_sum(batch) / 8)
    parts: dict[str, Tensor] = {}
    for start in (0, 4):
        part = gradients(objective, objective.loss_sum({name: t[start : start + 4] for name, t in batch.items()}) / 8)
        parts = {name: parts.get(name, 0) + g for name, g in part.items()}
    size = max(g.abs().max().item() for g in whole.values())
    return all(((whole[name] - parts[name]).abs() <= 1e-6 * max(1.0, size)).all() for name in whole)


def test_evaluation_does_not_depend_on_how_it_is_cut() -> None:
    """Noise of an image comes from its index; and the model's generator is left alone."""
    objective = objective_of()
    batch = batch_of(objective)
    before = torch.get_rng_state()

    def cut(size: int) -> list[Batch]:
        return [{name: batch[name][i : i + size] for name in ("images", "index")} for i in range(0, 8, size)]

    whole, parts = objective.evaluate(cut(8)), objective.evaluate(cut(3))
    assert whole is not None and parts == pytest.approx(whole, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), before) and objective.model.training
    assert sorted(whole) == sorted(objective.metrics)


def test_evaluation_weighs_the_kl_in_full() -> None:
    """Whatever training makes of it on the way: val/loss is the negative ELBO, and bits a value are what its nats
    make.
    """
    plain = objective_of("model.kl_warmup=0", "model.free_bits=0")
    eased = objective_of("model.kl_warmup=1", "model.free_bits=3")
    batch = batch_of(plain)
    metrics = plain.evaluate([batch])
    assert metrics is not None and eased.evaluate([batch]) == metrics
    assert metrics["val/bits_per_dim"] == pytest.approx(metrics["val/loss"] / 256 / math.log(2))


def test_codes_are_counted_over_the_whole_evaluation() -> None:
    objective = objective_of(model="vqvae")
    batch = batch_of(objective)
    codes = objective.model.codes(batch["images"]).flatten()
    metrics = objective.evaluate(
        [{name: batch[name][i : i + 2] for name in ("images", "index")} for i in range(0, 8, 2)]
    )
    assert metrics is not None and metrics["val/perplexity"] == pytest.approx(
        perplexity(torch.bincount(codes).double())
    )


# --- what trains


def changed_by(term: str, objective: Autoencoding) -> bool:
    """Whether the gradient is another one with this term's weight tripled."""
    batch = batch_of(objective)
    before = gradients(objective, objective.loss_sum(batch))
    setattr(objective.c, term, 3 * getattr(objective.c, term))
    after = gradients(objective, objective.loss_sum(batch))
    return any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "model,term", [("vae", "beta"), ("autoencoder_kl", "beta"), ("autoencoder_kl", "perceptual"), ("vqvae", "beta")]
)
def test_every_term_of_the_loss_changes_the_gradient(model: str, term: str) -> None:
    objective = objective_of(*(["model.perceptual=0.5"] if term == "perceptual" else []), model=model)
    objective.features = features  # type: ignore[misc]
    assert changed_by(term, objective)


def test_a_perceptual_loss_without_gradient_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoding, "perceptual_distance", torch.no_grad()(perceptual_distance))
    objective = objective_of("model.perceptual=0.5", model="autoencoder_kl")
    objective.features = features  # type: ignore[misc]
    assert not changed_by("perceptual", objective)


def test_perceptual_distance_by_hand() -> None:
    """Directions (1, 0) and (0, 1) in one half of the positions, equal in the other: (2 + 0) / 2. Length does not
    count.
    """
    a = torch.tensor([[[[1.0, 5.0]], [[0.0, 5.0]]]])
    b = torch.tensor([[[[0.0, 0.1]], [[9.0, 0.1]]]])
    torch.testing.assert_close(perceptual_distance(a, b, lambda x: [x]), torch.tensor([1.0]))


def owners(objective: Autoencoding) -> list[int]:
    """In how many places of the optimizer's groups each trainable parameter is."""
    placed = [id(p) for group in objective.configure_optimizers().param_groups for p in group["params"]]
    return [placed.count(id(p)) for p in objective.parameters() if p.requires_grad]


def test_every_trainable_parameter_is_in_one_group() -> None:
    objective = objective_of()
    assert set(owners(objective)) == {1}
    objective.log_scale = nn.Parameter(torch.zeros(()))  # the bug: the likelihood's scale beside the model
    assert 0 in owners(objective)


def test_the_frozen_network_belongs_to_nobody() -> None:
    """It is in no optimizer, no state and no EMA."""
    objective = objective_of("model.perceptual=0.5", "optim.ema=0.9", model="autoencoder_kl")
    before = set(objective.state_dict())
    frozen = nn.Conv2d(1, 2, 3)
    objective.features = lambda x: [frozen(x)]  # type: ignore[misc]
    objective.loss_sum(batch_of(objective)).backward()
    assert set(objective.state_dict()) == before == set(objective.ema or {})
    assert not {id(p) for p in frozen.parameters()} & {id(p) for p in objective.parameters()}


def test_the_frozen_networks_download_is_told_by_the_runs_console(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, said = objective_of("model.perceptual=0.5", model="autoencoder_kl"), list[str]()
    run = SimpleNamespace(console=SimpleNamespace(say=said.append))
    TrainingLoop.on_fit_start(run, SimpleNamespace(is_global_zero=False), objective)  # type: ignore[arg-type]

    def downloaded(folder: str, say: Callable[[str], None]) -> EfficientNetLite0:
        say(f"downloaded into {folder}")
        return EfficientNetLite0()

    monkeypatch.setattr(autoencoding, "efficientnet", downloaded)
    assert objective.features and said == [f"downloaded into {objective.config.data.dir}"]


def test_flops_are_those_of_a_real_step() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    objective = objective_of()
    batch = batch_of(objective, rows=2)
    with FlopCounterMode(display=False) as counter:
        objective.loss_sum(batch).backward()
    assert objective.flops_per_row() == pytest.approx(counter.get_total_flops() / 2, rel=0.1)


# --- runs


@pytest.fixture(scope="session")
def tiny_pictures(picture_data: list[str]) -> list[str]:
    return [
        *picture_data,
        *SMALL,
        "data.flip=true",
        "data.batch_size=8",
        "data.micro_batch_size=4",
        "optim.ema=0.9",
        "trainer.precision=fp32",
        "trainer.device=cpu",
        "trainer.threads=1",
        "trainer.max_steps=20",
        "trainer.save_every=10",
        "trainer.eval_every=10",
        "trainer.sample_every=20",
        "trainer.log_every=5",
    ]


def test_noise_from_the_global_generator_would_be_noticed(
    tiny_pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise is a function of the step: draws that came from the global generator would differ after a resume."""
    settings = [*tiny_pictures, "model=vae", f"runs_dir={tmp_path}", "trainer.max_steps=8"]

    def forgetful(self: Autoencoding, rows: int, generator: torch.Generator) -> Batch:
        return {"noise": torch.randn(rows, *self.model.latent_shape)}

    monkeypatch.setattr(Autoencoding, "draws", forgetful)
    monkeypatch.setattr("gengen.training.state.set_rng", lambda state: None)
    assert main(["train", *settings, "run=straight"]) == 0
    assert main(["train", *settings, "run=r", "stop_at=3"]) == 0
    assert main(["train", f"runs_dir={tmp_path}", "run=r"]) == 0
    one, two = (store.newest(tmp_path / run / "checkpoints") for run in ("straight", "r"))
    assert one and two and (one / "model.safetensors").read_bytes() != (two / "model.safetensors").read_bytes()


@pytest.mark.parametrize("model", ["vae", "autoencoder_kl", "vqvae"])
def test_the_recipe_composes_and_says_what_it_costs(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"model={model}", "data=animals", "dry_run=true"]) == 0
    assert "FLOPs a step" in capsys.readouterr().out


@pytest.mark.parametrize("ema", [[], ["optim.ema=0.9"]], ids=["raw", "ema"])
@pytest.mark.parametrize("model", ["autoencoder_kl", "vqvae"])
def test_what_latents_are_like_is_kept_with_the_weights_at_an_evaluation(model: str, ema: list[str]) -> None:
    """Draws and traversals of a first stage were scaled as if its latents were N(0, 1)."""
    o = objective_of("optim.ema_ratio=null", *ema, model=model)
    m = o.model
    assert m.latent_mean.eq(0).all() and m.latent_std.eq(1).all()
    batches = [{key: t[i : i + 4] for key, t in batch_of(o).items() if key != "noise"} for i in (0, 4)]
    o.evaluate(batches)
    mean, std = m.eval().encode(torch.cat([b["images"] for b in batches]))
    square = (mean.double().square() + std.double().square()).mean((0, 2, 3))
    wanted = (square - mean.double().mean((0, 2, 3)).square()).sqrt()
    torch.testing.assert_close(m.latent_mean.double(), mean.double().mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(m.latent_std.double(), wanted, atol=1e-5, rtol=1e-5)
    if o.ema is not None:
        assert torch.equal(o.ema["latent_std"], m.latent_std) and torch.equal(o.ema["latent_mean"], m.latent_mean)
        o.update_ema(torch.tensor(True))
        assert torch.equal(o.ema["latent_std"], m.latent_std)  # the average of a constant


def test_a_vaes_latents_are_drawn_from_its_prior() -> None:
    o = objective_of()
    o.evaluate([{key: t for key, t in batch_of(o).items() if key != "noise"}])
    assert o.model.latent_mean.eq(0).all() and o.model.latent_std.eq(1).all()
