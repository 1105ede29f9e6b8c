"""A recipe at another size, length or data than it was measured with; and optimizers that a family does not take."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gengen.config.compose import compose_train, read_command_line
from gengen.config.train import OptimConfig, TrainConfig
from gengen.errors import UserError
from gengen.registry import MODELS
from gengen.training.optim.groups import build_optimizer
from gengen.training.optim.muon import Muon, orthogonalized

IMAGES = {"resolution": 16, "channels": 1, "classes": ["a", "b"], "sigma_data": 0.9}


def composed(*argv: str) -> TrainConfig:
    return compose_train(read_command_line(list(argv)))


def peak(*argv: str) -> float:
    config = composed(*argv)
    return config.optim.for_model(config.model.largest_width()).peak_lr


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["model=gpt"], 3e-3),
        (["model=gpt", "model.size=nano"], 3e-3),  # narrower than measured: the rate stays
        (["model=gpt", "model.size=small"], 3e-3 * 256 / 768),
        (["model=gpt", "model.width=1024", "model.heads=8"], 3e-3 / 4),
        (["model=gpt", "model.size=small", "optim.lr=0.02"], 0.02),  # what is typed is what trains
        (["model=gpt2"], 6e-4),
        (["model=unet", "data=animals"], 1.5e-3),
        (["model=unet", "data=animals", "model.size=base"], 1.5e-3 / 6),
        (["model=ldm", "data=animals", "model.size=small"], 1.5e-3 / 2),
        (["model=dit", "data=animals", "model.size=base"], 1.5e-3 / 6),
        (["model=vae", "data=animals"], 2e-3),
        (["model=autoencoder_kl", "data=animals", "model.size=base"], 2e-3 / 8),
        (["model=gan", "data=animals", "model.size=base"], 1e-3 / 4),
        (["model=dcgan", "data=animals"], 2e-4),
        (["model=gpt", "stage=dpo", "init_from=runs/x", "model.size=small"], 3e-4 / 8),
    ],
)
def test_the_rate_falls_as_one_over_the_width(argv: list[str], wanted: float) -> None:
    assert peak(*argv) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("model", ["unet", "ldm", "dit", "latent_dit", "gan", "vae", "autoencoder_kl", "vqvae"])
def test_an_average_is_a_share_of_the_run(model: str) -> None:
    """With one decay for all, it was 200 steps long in a run of 300 and in one of 100,000."""
    c = composed(f"model={model}", "data=animals").optim
    assert c.ema is None and c.ema_ratio
    for steps in (1_000, 100_000):
        decay = c.for_steps(steps).ema
        assert decay is not None and 1 / (1 - decay) == pytest.approx(c.ema_ratio * steps, rel=1e-6)
    assert replace(c, ema=0.5).for_steps(1000).ema == 0.5
    assert OptimConfig().for_steps(1000).ema is None
    short = c.for_steps(1).ema
    assert short is not None and 0 < short < 1


def test_the_root_mean_square_of_the_data_counts_where_none_is_given() -> None:
    """sigma_data=0.5 scaled the network's input for data whose root mean square is .95."""
    unet, ldm, gan = (composed(f"model={name}", "data=animals").model for name in ("unet", "ldm", "gan"))
    assert unet.with_data(IMAGES).sigma_data == 0.9  # type: ignore[attr-defined]
    assert ldm.with_data(IMAGES | {"sigma_data": 1.0}).sigma_data == 1.0  # type: ignore[attr-defined]
    stated = composed("model=unet", "data=animals", "model.sigma_data=0.7").model.with_data(IMAGES)
    assert (stated.sigma_data, stated.resolution) == (0.7, 16)  # type: ignore[attr-defined]
    assert gan.with_data(IMAGES).resolution == 16  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", ["gan", "dcgan"])
def test_a_family_without_hidden_maps_refuses_muon(model: str) -> None:
    with pytest.raises(UserError, match=f"optim=muon: model={model} has no weights that Muon is for.*\n.*unet"):
        composed(f"model={model}", "data=animals", "optim=muon")


def built(name: str, *argv: str) -> tuple[nn.Module, Muon]:
    config = composed(f"model={name}", "optim=muon", *argv)
    facts = IMAGES if name != "gpt" else {"vocab_size": 64}
    model: nn.Module = MODELS[name].load("model")(config.model.resolved().with_data(facts))
    optimizer = build_optimizer(model, config.optim, config.model.hidden_maps)
    assert isinstance(optimizer, Muon)
    return model, optimizer


FAMILIES: dict[str, list[str]] = {
    "gpt": ["data=storybook", "model.size=nano"],
    "unet": ["data=animals", "model.size=nano", "model.widths=32,64", "model.attention=[1]"],
    "ldm": ["data=animals", "model.size=nano"],
    "dit": ["data=animals", "model.size=nano"],
    "latent_dit": ["data=animals", "model.size=nano"],
    "vae": ["data=animals", "model.size=nano", "model.widths=16,32", "model.latent_channels=4", "model.patch=2"],
    "autoencoder_kl": ["data=animals", "model.size=nano"],
    "vqvae": ["data=animals", "model.size=nano"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_muon_has_the_maps_between_features_and_nothing_else(name: str) -> None:
    """It asked for 2-D weights with ".blocks." in the name: of all image families none, so it was AdamW without a
    word.
    """
    model, optimizer = built(name, *FAMILIES[name])
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for group in optimizer.param_groups:
        names[group["muon"]] |= set(group["param_names"])
    assert (
        names[True] | names[False] == {key for key, _ in model.named_parameters()} and not names[True] & names[False]
    )
    count = {muon: sum(model.get_parameter(key).numel() for key in names[muon]) for muon in names}
    assert count[True] > (0.3 if name == "gpt" else 1.5) * count[False]
    assert all(model.get_parameter(key).dim() >= 2 for key in names[True])
    ends = (
        "embed",
        "classes",
        "level.",
        "conv_in.weight",
        "conv_out.weight",
        "norm_out",
        "modulation_out",
        "out",
        "log_scale",
        "bottleneck",
    )
    assert not [key for key in names[True] if key.startswith(ends)]


def test_every_registered_family_names_its_maps_or_refuses() -> None:
    able = {name for name in MODELS if getattr(MODELS[name].config, "hidden_maps", "")}
    assert able >= set(FAMILIES) and {"gan", "dcgan"}.isdisjoint(able)


def test_a_convolution_moves_as_the_matrix_it_is() -> None:
    """One step: w - lr sqrt(max(1, m / n)) O(g (2 - b) ...) with the weight (out, in, 3, 3) as (out, 9 in); parts by
    themselves.
    """
    model, optimizer = built("unet", *FAMILIES["unet"], "optim.muon_precision=fp32")
    for group in optimizer.param_groups:
        group.update(lr=0.1, weight_decay=0.0)
    weights = dict(model.named_parameters())
    before = {key: p.detach().clone() for key, p in weights.items()}
    generator = torch.Generator().manual_seed(0)
    for p in weights.values():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()

    def moved(key: str, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        gradient: Any = weights[key].grad
        g = gradient[rows].flatten(1)
        first = g.lerp((1 - 0.95) * g, 0.95)  # Nesterov's direction after one gradient
        rate = 0.1 * max(1.0, g.shape[0] / g.shape[1]) ** 0.5
        wanted = rate * orthogonalized(first, dtype=torch.float32)
        return (before[key] - weights[key].detach())[rows].flatten(1), wanted

    torch.testing.assert_close(*moved("down.1.0.block.conv_in.weight"), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*moved("up.0.0.block.skip.weight"), atol=1e-5, rtol=1e-4)
    for third in range(3):
        torch.testing.assert_close(
            *moved("middle.0.attention.qkv.weight", slice(64 * third, 64 * third + 64)), atol=1e-5, rtol=1e-4
        )
    for half in range(2):
        torch.testing.assert_close(
            *moved("down.1.0.block.film.weight", slice(64 * half, 64 * half + 64)), atol=1e-5, rtol=1e-4
        )
