"""Training for inpainting: which masks, and what the network is told."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gengen.config.compose import compose_train, read_command_line
from gengen.diffusion.masks import masks
from gengen.models.unet import UNet
from gengen.training.objectives.diffusion import Diffusion

FACTS: dict[str, Any] = {"resolution": 8, "channels": 1, "classes": ["a", "b", "c"], "sigma_data": 0.5}
SETTINGS = [
    "model=unet", "data=animals", "trainer.precision=fp32", "model.widths=[32]", "model.blocks=1",
    "model.attention=[]", "model.patch=2",
]  # fmt: skip


def objective(*settings: str, dependencies: dict[str, Any] | None = None) -> Diffusion:
    config = compose_train(read_command_line([*SETTINGS, *settings]))
    config = replace(config, model=replace(config.model.resolved(), **FACTS))
    torch.manual_seed(0)
    prepared: Any = SimpleNamespace(dependencies=dependencies or {})
    return Diffusion(config, UNet(config.model), prepared)  # type: ignore[arg-type]


def batch(rows: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(rows, 1, 8, 8, generator=generator) * 2 - 1
    return {"images": images, "labels": torch.arange(rows) % 3, "index": torch.arange(rows)}


def told(o: Diffusion) -> list[Tensor]:
    """What the network is told from now on."""
    heard: list[Tensor] = []

    def network(x: Tensor, level: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        heard.append(known)
        return x

    o._network, o.model.forward = (network,), network  # type: ignore[method-assign, assignment]
    return heard


def test_each_row_is_told_what_its_own_mask_leaves_of_its_clean_image() -> None:
    o = objective("model.inpaint=true")
    heard, rows = told(o), batch() | o.draws(8, torch.Generator().manual_seed(5))
    o.loss_sum(rows)
    known = ~masks(rows["mask"], 8)
    assert torch.equal(heard[0][:, :1], known.float())
    assert torch.equal(heard[0][:, 1:], torch.where(known, rows["images"], 0.0))
    assert len({tuple(row.flatten().tolist()) for row in known}) > 4


def test_of_latents_it_is_the_same_draw_that_is_hidden_in_noise() -> None:
    o = objective("model.inpaint=true", dependencies={"codec": "somewhere"})
    heard, generator = told(o), torch.Generator().manual_seed(0)
    latents = {"mean": torch.randn(8, 1, 8, 8), "std": torch.rand(8, 1, 8, 8), "labels": torch.zeros(8).long()}
    rows = latents | o.draws(8, generator)
    o.loss_sum(rows)
    assert torch.equal(heard[0][:, 1:], torch.where(~masks(rows["mask"], 8), o.data(rows), 0.0))


def test_masks_are_a_function_of_the_step_and_in_evaluation_of_the_index() -> None:
    o = objective("model.inpaint=true")
    a, b, c = (o.draws(64, torch.Generator().manual_seed(seed))["mask"] for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    heard = told(o)
    whole = o.evaluation_sums(batch())
    parts = sum(o.evaluation_sums({k: v[i : i + 2] for k, v in batch().items()}) for i in range(0, 8, 2))
    torch.testing.assert_close(whole, parts)
    assert torch.equal(torch.cat(heard[1:]), heard[0]) and len({tuple(m.flatten().tolist()) for m in heard[0]}) > 4
    o.evaluation_sums(batch())
    assert torch.equal(heard[-1], heard[0])


def test_without_it_nothing_is_drawn_and_nothing_told() -> None:
    """Draws of other runs stay what they were: a golden curve would move."""
    plain, inpainting = objective(), objective("model.inpaint=true")
    a, b = (o.draws(8, torch.Generator().manual_seed(0)) for o in (plain, inpainting))
    assert b.keys() - a.keys() == {"mask"} and all(torch.equal(a[name], b[name]) for name in a)
    assert plain.known(batch()) == {}
    with pytest.raises(TypeError, match="known"):
        told(plain)
        plain.loss_sum(batch() | a)


def test_what_is_known_lowers_the_loss_of_who_listens() -> None:
    """A network that copies what it is told is right where it is known: the loss counts it."""
    o = objective("model.inpaint=true", "model.prediction=x0")
    rows = batch(64) | o.draws(64, torch.Generator().manual_seed(0))

    def copies(x: Tensor, level: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        return known[:, 1:]

    conditions = o.conditions(rows)
    errors = o.errors(copies, rows, conditions)  # type: ignore[arg-type]
    is_open = masks(rows["mask"], 8)
    wanted = torch.where(is_open, rows["images"].square(), 0.0).mean((1, 2, 3))
    torch.testing.assert_close(errors, wanted)
