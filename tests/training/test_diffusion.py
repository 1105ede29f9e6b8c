"""The diffusion objective: which draws, which loss, for whom the class is told."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gengen.config.compose import compose_train, read_command_line
from gengen.models.layers import NO_CLASS
from gengen.models.unet import UNet
from gengen.training.objectives.diffusion import Diffusion

FACTS: dict[str, Any] = {"resolution": 8, "channels": 1, "classes": ["a", "b", "c"], "sigma_data": 0.5}


PIXELS, LATENTS = SimpleNamespace(dependencies={}), SimpleNamespace(dependencies={"codec": "somewhere"})


def objective(*settings: str, prepared: Any = PIXELS) -> Diffusion:
    argv = [
        "model=unet",
        "data=animals",
        "trainer.precision=fp32",
        "model.widths=[32]",
        "model.blocks=1",
        "model.attention=[]",
        *settings,
    ]
    config = compose_train(read_command_line(["model.patch=2", *argv]))
    config = replace(config, model=replace(config.model.resolved(), **FACTS))
    torch.manual_seed(0)
    net = UNet(config.model)  # type: ignore[arg-type]
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return Diffusion(config, net, prepared)


def batch(rows: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "images": torch.rand(rows, 1, 8, 8, generator=generator) * 2 - 1,
        "labels": torch.arange(rows) % 3,
        "index": torch.arange(rows),
    }


def drawn(o: Diffusion, rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    return batch(rows) | o.draws(rows, torch.Generator().manual_seed(seed))


def gradients(o: Diffusion) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in o.model.named_parameters() if p.grad is not None}
    o.zero_grad()
    return found


def test_a_class_only_loss_is_what_it_was_before_there_was_text() -> None:
    """Golden: computed by the last version without text (948c841)."""
    o = objective()
    rows = drawn(o)
    assert o.loss_sum(rows).item() == pytest.approx(13.121018409729004, rel=1e-5)
    assert o.evaluation_sums(rows)[0].item() == pytest.approx(11.812005758285522, rel=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole() -> None:
    o = objective()
    whole = drawn(o)
    (o.loss_sum(whole) / 8).backward()
    once = gradients(o)
    for size in (4, 1):
        for start in range(0, 8, size):
            (o.loss_sum({k: v[start : start + size] for k, v in whole.items()}) / 8).backward()
        torch.testing.assert_close(gradients(o), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["velocity", "v", "x0", "edm"])
def test_the_loss_is_zero_for_who_knows_the_answer(prediction: str) -> None:
    o = objective(f"model.prediction={prediction}")
    rows = drawn(o)
    from gengen.diffusion.parameterizations import target
    from gengen.diffusion.times import TIME_SAMPLERS

    t = TIME_SAMPLERS["logit_normal"](rows["u"], o.path).float()
    answer = target(prediction, rows["images"], rows["eps"], t, o.path, 0.5)
    labels = {"labels": rows["labels"]}
    assert o.errors(lambda x, level, labels: answer, rows, labels).abs().max() < 1e-10
    assert o.errors(lambda x, level, labels: answer + 0.1, rows, labels).mean().item() == pytest.approx(0.01, rel=1e-4)


def test_the_class_is_dropped_image_by_image_in_training_and_never_in_evaluation() -> None:
    o, heard = objective("model.drop_condition=0.3"), list[Tensor]()

    def network(x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        heard.append(labels)
        return x

    o._network, o.model.forward = (network,), network  # type: ignore[method-assign, assignment]
    rows = drawn(o, 2000)
    o.loss_sum(rows)
    dropped = heard[0] == NO_CLASS
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(heard[0][~dropped], rows["labels"][~dropped])
    together = (
        (dropped[::2] == dropped[1::2]).float().mean().item()
    )  # the bug of one coin for a batch would make this 1
    assert together == pytest.approx(0.3**2 + 0.7**2, abs=0.05)
    o.evaluation_sums(batch())
    assert torch.equal(heard[1], batch()["labels"])


def test_draws_are_a_function_of_the_step_and_cover_the_times_evenly() -> None:
    o = objective()
    a, b, c = (o.draws(64, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a[name], b[name]) for name in a) and not torch.equal(a["eps"], c["eps"])
    assert (a["u"] * 64).long().sort().values.tolist() == list(range(64))  # one in each cell: not independent draws
    independent = torch.rand(64, generator=torch.Generator().manual_seed(5))
    assert (independent * 64).long().unique().numel() < 64


def test_evaluation_does_not_depend_on_how_it_is_cut() -> None:
    o = objective()
    whole = o.evaluation_sums(batch())
    parts = sum(o.evaluation_sums({k: v[i : i + 1] for k, v in batch().items()}) for i in range(8))
    torch.testing.assert_close(whole, parts)
    assert whole[1] == 8


@pytest.mark.parametrize("weighting", ["none", "edm", "min_snr"])
@pytest.mark.parametrize("prediction", ["velocity", "x0", "edm"])
@pytest.mark.parametrize("times", ["logit_normal", "lognormal"])
def test_every_index_has_a_finite_evaluation_loss(prediction: str, weighting: str, times: str) -> None:
    o = objective(f"model.prediction={prediction}", f"model.weighting={weighting}", f"model.times={times}")
    o.model.forward = lambda x, level, labels: x  # type: ignore[method-assign, assignment]
    for index in (4674, 7258, 8855):
        assert o.evaluation_sums(batch(1) | {"index": torch.tensor([index])}).isfinite().all()


def test_latents_are_drawn_anew_from_their_posterior() -> None:
    o = objective(prepared=LATENTS)
    mean, std = torch.randn(8, 1, 8, 8), torch.rand(8, 1, 8, 8)
    latents = {"mean": mean, "std": std, "labels": torch.zeros(8).long(), "index": torch.arange(8)}
    one, two = (latents | o.draws(8, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(o.data(one), o.data(two))
    torch.testing.assert_close((o.data(one) - mean) / std, one["posterior"], atol=1e-4, rtol=1e-3)
    assert torch.equal(o.data(one | {"std": torch.zeros_like(std)}), mean)
    assert not torch.equal(one["posterior"], one["eps"])


def test_bf16_does_not_reach_path_and_target() -> None:
    """Under autocast the loss of a network that answers in fp32 is the same; times in bf16 would be noticed."""
    o = objective()
    rows = drawn(o)
    labels = {"labels": rows["labels"]}
    exact = o.errors(lambda x, level, labels: x, rows, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(o.errors(lambda x, level, labels: x, rows, labels), exact)
    rough = o.errors(lambda x, level, labels: x, rows | {"u": rows["u"].bfloat16().double()}, labels)
    assert (rough - exact).abs().max() > 1e-4


def test_the_average_is_what_is_evaluated_and_holds_buffers_too() -> None:
    o = objective("optim.ema=0.999")
    o.model.register_buffer("seen", torch.zeros(3))
    assert isinstance(o.ema, dict)
    o.ema["seen"] = torch.zeros(3)
    o._trainer = type("T", (), {"world_size": 1, "global_step": 4})()  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in o.ema.items()}
    with torch.no_grad():
        for tensor in (*o.model.parameters(), *o.model.buffers()):
            tensor.add_(1.0)
    o.update_ema(torch.tensor(True))
    decay = (1 + 4) / (10 + 4)  # warming up: far below 0.999, or early noise would stay for thousands of steps
    for name, tensor in o.ema.items():
        torch.testing.assert_close(tensor, before[name] + (1 - decay), msg=name)
    raw = {name: tensor.clone() for name, tensor in o.model.state_dict().items()}
    with o.ema_weights():
        assert all(torch.equal(tensor, o.ema[name]) for name, tensor in o.model.state_dict().items())
    assert all(torch.equal(tensor, raw[name]) for name, tensor in o.model.state_dict().items())


def test_an_evaluation_calls_the_network_that_evaluations_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the compiled one on CUDA (test_evaluated.py)."""
    o, calls = objective(), list[torch.Size]()
    plain = o.evaluation_sums(batch())

    class Twin(torch.nn.Module):
        def forward(self, x: Tensor, *args: Tensor, **conditions: Tensor) -> Tensor:
            calls.append(x.shape)
            return o.model(x, *args, **conditions)

    monkeypatch.setattr(Diffusion, "evaluated", Twin())
    assert torch.equal(o.evaluation_sums(batch()), plain)
    assert len(calls) == 1


def test_what_a_step_costs_is_counted() -> None:
    """One convolution counted by hand: conv_in has 4 x 32 channels, 3 x 3, at 4 x 4 positions."""
    from gengen.models.flops import forward_flops

    o = objective()
    assert forward_flops(o.model.conv_in, torch.zeros(1, 4, 4, 4)) == 2 * 4 * 32 * 9 * 16
    attention = (
        2 * 2 * 16 * 16 * 32
    )  # two products of 16 positions with 16, in 32 channels; not counted where a CPU computes it
    assert o.flops_per_row() == 3 * (forward_flops(o.model, torch.zeros(1, 1, 8, 8), torch.zeros(1)) + attention)


@pytest.mark.slow
def test_compiled_it_is_the_same_step() -> None:
    o = objective()
    rows = drawn(o)
    eager = o.loss_sum(rows)
    eager.backward()
    wanted = gradients(o)
    o.use_compiled()
    compiled = o.loss_sum(rows)
    compiled.backward()
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(o), wanted, rtol=1e-3, atol=1e-5)
