"""The networks of GANs: what they begin as, what a logit depends on, second derivatives, and what a config refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gengen.adversarial.losses import LOSSES, gradient_penalty
from gengen.checkpoints.layout import load_weights, unique_state
from gengen.config.model import DCGANConfig, GANConfig
from gengen.errors import UserError
from gengen.models.dcgan import DCGAN
from gengen.models.gan import GAN, PatchDiscriminator, ResidualBlock, activation, conv

CLASSES = ["cat", "dog", "fox"]
SHAPE: dict[str, Any] = {"resolution": 16, "channels": 1, "classes": CLASSES, "latent_size": 8}
FAMILIES = ["gan", "dcgan"]


def fresh(family: str = "gan", **settings: Any) -> GAN | DCGAN:
    """A small GAN of 16 x 16 grey images, as it is at the beginning."""
    torch.manual_seed(0)
    if family == "dcgan":
        return DCGAN(DCGANConfig(**SHAPE | {"widths": [8, 16]} | settings))
    return GAN(GANConfig(**SHAPE | {"widths": [8, 16], "blocks": 1, "patch": 2} | settings))


def model(family: str = "gan", **settings: Any) -> GAN | DCGAN:
    """The same, moved as by training, so that every weight matters."""
    built = fresh(family, **settings)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def images(count: int = 6, channels: int = 1, side: int = 16) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def latents(count: int = 6) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(2))


LABELS = torch.tensor([0, 1, 2, -1, 1, 0])


# --- shapes and beginnings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"channels": 3, "patch": 1, "widths": [8, 8, 16]},
        {"resolution": 32, "channels": 3, "patch": 4},
        {"resolution": 32, "size": "nano", "widths": None, "blocks": None, "patch": None},
        {"resolution": 48, "blocks": 2},
    ],
)
def test_one_network_makes_what_the_other_takes(settings: dict[str, Any]) -> None:
    m, c = fresh(**settings), SHAPE | settings
    made = m.generator(latents(2), LABELS[:2])
    assert made.shape == (2, c["channels"], c["resolution"], c["resolution"])
    assert m.discriminator(made, LABELS[:2]).shape == (2,)
    patches = PatchDiscriminator(m.config)  # type: ignore[arg-type]
    side = c["resolution"] // m.config.patch // 2 ** (len(m.config.widths or []) - 1)  # type: ignore[union-attr]
    assert patches(made).shape == (2, side * side)


@pytest.mark.parametrize("resolution,channels", [(8, 1), (16, 3), (32, 1)])
def test_dcgan_doubles_from_four(resolution: int, channels: int) -> None:
    levels = [4] * {8: 1, 16: 2, 32: 3}[resolution]
    m = fresh("dcgan", resolution=resolution, channels=channels, widths=levels)
    made = m.generator(latents(2), LABELS[:2])
    assert made.shape == (2, channels, resolution, resolution) and made.abs().max() <= 1
    assert m.discriminator(made, LABELS[:2]).shape == (2,)


def test_residual_branches_begin_as_nothing() -> None:
    m = fresh()
    blocks = [(block, block.conv_in.in_channels) for block in m.modules() if isinstance(block, ResidualBlock)]
    assert len(blocks) == 4  # two levels of one block in either network
    for block, channels in blocks:
        x = images(2, channels, 4)
        assert torch.equal(block(x), x)
        block(x).sum().backward()
        assert block.conv_out.weight.grad is not None and block.conv_out.weight.grad.any()  # and yet it can learn
        nn.init.normal_(block.conv_out.weight)
        assert not torch.allclose(block(x), x, atol=0.1)


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_convolution_keeps_the_variance(gain: float) -> None:
    torch.manual_seed(0)
    layer = conv(64, 64, 3, gain)
    out = layer(activation(torch.randn(8, 64, 18, 18)))[:, :, 1:-1, 1:-1]  # at the edge a part of the sum is 0
    assert out.square().mean().item() == pytest.approx(gain**2, rel=0.05)


# --- classes


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_matter_and_a_negative_one_is_the_row_of_no_class(family: str) -> None:
    m = model(family).eval()
    z, x = latents(1), images(1)

    def both(label: int) -> tuple[Tensor, Tensor]:
        return m.generator(z, torch.tensor([label])), m.discriminator(x, torch.tensor([label]))

    results = [both(label) for label in (0, 1, 2, -1)]
    for part in range(2):
        for i in range(4):
            for j in range(i):
                assert (results[i][part] - results[j][part]).abs().max() > 1e-3
    for label in (len(CLASSES), -7):
        assert all(torch.equal(a, b) for a, b in zip(both(label), results[3], strict=True))
    with pytest.raises(IndexError):
        both(len(CLASSES) + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_classes_there_is_one_row(family: str) -> None:
    m = model(family, classes=[])
    none = torch.full((6,), -1)
    made = m.generator(latents(), none)
    logits = m.discriminator(made, none)
    assert made.isfinite().all() and logits.isfinite().all() and len(logits.unique()) == 6
    assert m.generator.classes.weight.shape == (1, 8) and m.discriminator.classes is not None
    assert torch.equal(m.discriminator.classes(none), m.discriminator.classes.weight.expand(6, -1))


# --- the discriminator


def independent(m: GAN | DCGAN) -> bool:
    """Whether an image's logit, and an image's z, come to the same beside others."""
    x, z = images(), latents()
    alone, beside = m.discriminator(x[:2], LABELS[:2]), m.discriminator(x, LABELS)[:2]
    made, made_beside = m.generator(z[:2], LABELS[:2]), m.generator(z, LABELS)[:2]
    return torch.allclose(alone, beside, atol=1e-5) and torch.allclose(made, made_beside, atol=1e-5)


def test_images_do_not_see_each_other_but_through_batch_normalisation() -> None:
    """Why a penalty on the slope is refused where there is batch normalisation: an image then has no slope of its
    own."""
    assert independent(model().train())
    assert not independent(model("dcgan").train())
    assert independent(model("dcgan").eval())

    def others(family: str) -> float:
        """How much the first image's logit moves with the other images."""
        m, x = model(family).train(), images().requires_grad_()
        return torch.autograd.grad(m.discriminator(x, LABELS)[0], x)[0][1:].abs().max().item()

    assert others("gan") == 0 and others("dcgan") > 1e-4


def test_a_patch_sees_what_is_near_it() -> None:
    """Of 8 x 8 positions of a 32 x 32 image, row by row: a pixel at the lower right moves the last logit, not the
    first.
    """
    torch.manual_seed(0)
    d, x = (
        PatchDiscriminator(GANConfig(**SHAPE | {"resolution": 32, "widths": [8, 16], "blocks": 1, "patch": 2})),
        images(1, 1, 32),
    )
    with torch.no_grad():
        for parameter in d.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for place, near, far in (((31, 31), 63, 0), ((0, 31), 7, 56), ((31, 0), 56, 7)):
        changed = x.clone()
        changed[0, 0, place[0], place[1]] += 1
        change = (d(changed) - d(x)).abs()[0]
        assert change[near] > 1e-3 and change[far] == 0


def test_the_penalty_can_be_differentiated() -> None:
    """The slope is linear in the first weights, in the last ones, and in the logit's and the classes' together, so its
    square s has w . ds/dw = 2 s (Euler); it does not depend on the biases but for where activations bend."""
    m = model()
    d = m.discriminator
    x = images().requires_grad_()
    slope = gradient_penalty(d(x, LABELS), x).sum()
    slope.backward()

    def euler(*layers: nn.Module) -> float:
        weights = [weight for layer in layers for name, weight in layer.named_parameters() if name == "weight"]
        return sum((weight * weight.grad).sum().item() for weight in weights if weight.grad is not None)

    for layers in ((d.trunk.first,), (d.last,), (d.logit, d.classes)):
        assert euler(*layers) == pytest.approx(2 * slope.item(), rel=1e-4)
    assert [n for n, p in d.named_parameters() if n.endswith("weight") and (p.grad is None or not p.grad.any())] == []
    assert not any(p.grad is not None and p.grad.any() for n, p in d.named_parameters() if n.endswith("bias"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_gradient(family: str) -> None:
    m, loss = model(family), LOSSES["nonsaturating"]  # of a relativistic one, the last bias has none
    fake = m.discriminator(m.generator(latents(), LABELS), LABELS)
    loss.generator(fake, fake).sum().backward()
    assert [name for name, p in m.generator.named_parameters() if p.grad is None or not p.grad.any()] == []
    m.discriminator.zero_grad()
    with torch.no_grad():
        made = m.generator(latents(), LABELS)
    loss.discriminator(m.discriminator(images(), LABELS), m.discriminator(made, LABELS)).sum().backward()
    assert [name for name, p in m.discriminator.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- spectral normalisation


def largest(network: nn.Module) -> list[float]:
    """The largest singular value of each convolution, linear map and table of class vectors."""
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding))]
    return [torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() for layer in layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_discriminator_with_spectral_norm_has_logits(family: str) -> None:
    """Weights that begin as 0 have no largest singular value to divide by."""
    assert fresh(family, spectral_norm=True).discriminator(images(), LABELS).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_spectral_norm_limits_every_layer_to_one(family: str) -> None:
    m = model(family, spectral_norm=True).train()
    for _ in range(60):
        m.discriminator(images(2), LABELS[:2])
    assert largest(m.discriminator.eval()) == pytest.approx([1] * len(largest(m.discriminator)), rel=0.02)
    free = largest(model(family).discriminator)
    assert len(free) == len(largest(m.discriminator)) >= 3 and any(abs(value - 1) > 0.2 for value in free)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
def test_weights_come_back(family: str, limited: bool) -> None:
    first = model(family, spectral_norm=limited).train()
    for _ in range(3):  # so that statistics and singular vectors have moved, too
        first.discriminator(images(), LABELS)
        first.generator(latents(), LABELS)
    saved = {name: tensor.detach().clone() for name, tensor in unique_state(first).items()}
    torch.manual_seed(1)
    second = type(first)(first.config)  # type: ignore[arg-type]
    first.eval(), second.eval()
    assert not torch.equal(second.discriminator(images(), LABELS), first.discriminator(images(), LABELS))
    load_weights(second, saved, Path("saved"))
    assert torch.equal(second.discriminator(images(), LABELS), first.discriminator(images(), LABELS))
    assert torch.equal(second.generator(latents(), LABELS), first.generator(latents(), LABELS))


# --- configs


@pytest.mark.parametrize(
    "resolution,widths", [(8, [64]), (16, [64, 128]), (32, [64, 128, 256]), (64, [64, 128, 256, 512])]
)
def test_widths_of_dcgan_follow_the_resolution(resolution: int, widths: list[int]) -> None:
    config = DCGANConfig(resolution=resolution)
    config.check()
    assert config.resolved().widths == widths
    assert DCGANConfig(resolution=32, widths=[4, 5, 6]).resolved().widths == [4, 5, 6]
    assert DCGANConfig().resolved().widths is None  # until the data has said its resolution


@pytest.mark.parametrize(
    "config,named",
    [
        (DCGANConfig(resolution=28), "resolution 28 is not 4 doubled"),
        (DCGANConfig(resolution=32, widths=[8, 8]), "resolution 32 is not 4 doubled len(model.widths) = 2 times"),
        (DCGANConfig(resolution=32, gamma=0.5), "batch normalisation"),
        (DCGANConfig(augment="flip"), "'flip' is none of color, translation, cutout"),
        (
            GANConfig(augment="cutout,colour"),
            "model.augment=cutout,colour: 'colour' is none of color, translation, cutout",
        ),
        (
            GANConfig(resolution=20, patch=2, widths=[16, 16, 16]),
            "resolution 20 is no multiple of 8: model.patch=2, halved 2 times",
        ),
        (
            GANConfig(resolution=18, patch=1, widths=[16, 16, 16]),
            "resolution 18 is no multiple of 4: model.patch=1, halved 2 times",
        ),
        (GANConfig(widths=[]), "model.widths=[]"),
        (GANConfig(widths=[16, 0]), "model.widths=[16, 0]"),
    ],
)
def test_what_does_not_go_together_is_answered(config: GANConfig | DCGANConfig, named: str) -> None:
    with pytest.raises(UserError) as error:
        config.check()
    assert named in str(error.value)


def test_what_goes_together_is_taken() -> None:
    for config in (
        GANConfig(resolution=24, patch=2, widths=[16, 16, 16]),
        GANConfig(augment="translation, cutout,color", gamma=1.0),
        GANConfig(size="small", resolution=32),
        GANConfig(),
        DCGANConfig(),
        DCGANConfig(resolution=32, widths=[8, 8, 8], spectral_norm=True),
    ):
        config.check()
