"""Autoencoders: the KL is that of the distributions, quantizers round as they say, images do not see each other."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from gengen.config.model import AutoencoderConfig
from gengen.errors import UserError
from gengen.models import autoencoder, quantizers
from gengen.models.autoencoder import Autoencoder, Gaussian, kl_to_standard_normal
from gengen.models.quantizers import FiniteScalarQuantizer, VectorQuantizer, squared_distances


def model(**settings: Any) -> Autoencoder:
    """A small autoencoder of 16 x 16 grey images whose every weight matters."""
    torch.manual_seed(0)
    built = Autoencoder(
        AutoencoderConfig(resolution=16, channels=1, **{"widths": [16, 32], "blocks": 1, "patch": 2} | settings)
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


# --- the Gaussian posterior


def test_kl_is_that_of_torch_distributions() -> None:
    mean, logvar = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar), expected)


def wild(bottleneck: Gaussian) -> tuple[bool, bool]:
    """Whether value and gradient are finite where the encoder says a log-variance of +-1000."""
    x = torch.zeros(1, 4, 1, 2)
    x[:, 2:] = torch.tensor([1000.0, -1000.0])
    latents, kl = bottleneck(x.requires_grad_(), torch.ones(1, 2, 1, 2))
    (latents.sum() + kl.sum()).backward()
    assert x.grad is not None
    return bool(torch.isfinite(kl).all() and torch.isfinite(latents).all()), bool(torch.isfinite(x.grad).all())


def test_a_wild_log_variance_is_clamped() -> None:
    assert wild(Gaussian(2)) == (True, True)


def test_without_the_clamp_it_would_not_be_finite() -> None:
    class Unclamped(Gaussian):
        def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.chunk(2, dim=1)  # type: ignore[return-value]

    assert wild(Unclamped(2)) == (False, False)


def test_kl_is_taken_in_fp32_from_what_a_bf16_encoder_says() -> None:
    """At mean 0 the KL of a log-variance of 0.01 is 2.5e-5; bf16 has only 1.0078 for its exponential, and says 0 or
    worse.
    """
    x = torch.zeros(1, 2, 1, 1, dtype=torch.bfloat16)
    x[:, 1] = 0.01
    said = x[0, 1].item()
    expected = (math.exp(said) - 1 - said) / 2
    _, kl = Gaussian(1)(x)
    assert kl.item() == pytest.approx(expected, rel=1e-2)
    assert kl_to_standard_normal(*x.chunk(2, dim=1)).item() != pytest.approx(expected, rel=0.5)


def test_encode_says_the_posterior_that_forward_draws_from() -> None:
    m, x = model(), images()
    mean, std = m.encode(x)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    reconstructions, kl = m(x, noise)
    torch.testing.assert_close(reconstructions, m.decode(mean + std * noise))
    torch.testing.assert_close(kl, kl_divergence(Normal(mean, std), Normal(0.0, 1.0)))
    torch.testing.assert_close(m(x)[0], m.decode(mean))


# --- quantizers


def nearest_in_bf16(quantizer: VectorQuantizer, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return quantizer.encode(x)


def test_distances_are_fp32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(512, 4, 0.25)
    x = torch.randn(4, 4, 8, 8) + 3  # away from 0, where |x|^2 - 2 x y + |y|^2 cancels
    rows = x.movedim(1, -1).flatten(0, 2)
    exact = torch.cdist(rows.double(), quantizer.codebook.double()).square()
    assert (squared_distances(rows, quantizer.codebook) - exact).abs().max() < 1e-4
    expected = exact.argmin(1).view(4, 8, 8)
    assert torch.equal(nearest_in_bf16(quantizer, x), expected)

    def half(x: Tensor, y: Tensor) -> Tensor:
        return x.square().sum(1, keepdim=True) - 2 * x @ y.T + y.square().sum(1)

    monkeypatch.setattr(quantizers, "squared_distances", half)
    assert not torch.equal(nearest_in_bf16(quantizer, x), expected)


def test_vector_quantizer_by_hand() -> None:
    """Codes (0, 0) and (4, 4); of the points, (1, 0) is nearer to the first, (3, 2) to the second."""
    quantizer = VectorQuantizer(2, 2, commitment=0.25)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]], requires_grad=True)  # (1, 2, 1, 2): the points (1, 0) and (3, 2)
    latents, penalty = quantizer(x)
    assert quantizer.encode(x).tolist() == [[[0, 1]]]
    assert latents.tolist() == [[[[0.0, 4.0]], [[0.0, 4.0]]]]
    assert penalty.tolist() == [[[[1.25, 1.25]], [[0.0, 5.0]]]]  # 1 + 1/4 of the squared distances 1 and 1, 0 and 4
    latents.sum().backward(retain_graph=True)
    assert (
        x.grad is not None and torch.equal(x.grad, torch.ones_like(x)) and quantizer.codebook.grad is None
    )  # straight through
    x.grad = None
    penalty.sum().backward()
    assert x.grad.tolist() == [[[[0.5, -0.5]], [[0.0, -1.0]]]]  # commitment * 2 (x - e)
    assert quantizer.codebook.grad is not None and quantizer.codebook.grad.tolist() == [
        [-2.0, 0.0],
        [2.0, 4.0],
    ]  # 2 (e - x)


def reaches(quantizer: VectorQuantizer | FiniteScalarQuantizer) -> bool:
    """Whether a loss on the latents moves the encoder."""
    x = torch.randn(1, quantizer.inputs, 2, 2).requires_grad_()
    latents, _ = quantizer(x)
    gradient = torch.autograd.grad(latents.sum(), x, allow_unused=True)[0] if latents.requires_grad else None
    return gradient is not None and bool((gradient != 0).all())


@pytest.mark.parametrize("quantizer", [VectorQuantizer(16, 3, 0.25), FiniteScalarQuantizer([4, 5, 3])])
def test_gradients_go_straight_through(quantizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reaches(quantizer)
    monkeypatch.setattr(quantizers, "straight_through", lambda x, quantized: quantized)
    assert not reaches(quantizer)


def test_finite_scalar_codes_are_a_bijection() -> None:
    """Each of 4 * 5 * 3 codes has latents of its own, evenly spaced in [-1, 1], that are encoded as that code."""
    quantizer = FiniteScalarQuantizer([4, 5, 3])
    codes = torch.arange(60).view(3, 4, 5)
    latents = quantizer.lookup(codes)
    assert len({tuple(row) for row in latents.movedim(1, -1).flatten(0, 2).tolist()}) == 60
    assert torch.equal(quantizer.encode(torch.atanh(latents * 0.999)), codes)
    torch.testing.assert_close(latents[:, 0].unique(), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    torch.testing.assert_close(latents[:, 1].unique(), torch.tensor([-1, -0.5, 0, 0.5, 1]))
    torch.testing.assert_close(quantizer(torch.atanh(latents * 0.999))[0], latents)

    quantizer.places = quantizer.levels.cumprod(1)  # the bug: places that begin at L_1 instead of 1
    assert not torch.equal(quantizer.encode(torch.atanh(latents * 0.999)), codes)


def test_gradient_of_finite_scalars_is_that_of_tanh() -> None:
    x = torch.randn(1, 2, 3, 3, dtype=torch.float32).requires_grad_()
    FiniteScalarQuantizer([8, 5])(x)[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 1 - x.detach().tanh().square())


@pytest.mark.parametrize("settings", [{"quantizer": "vq"}, {"quantizer": "fsq", "levels": [4, 3, 3, 2]}])
def test_codes_are_all_that_a_quantized_image_keeps(settings: dict[str, Any]) -> None:
    m, x = model(loss="l1_l2", **settings), images()
    codes = m.codes(x)
    assert (
        codes.dtype == torch.int64
        and codes.min() >= 0
        and codes.max() < m.bottleneck.codes
        and len(codes.unique()) > 2
    )
    torch.testing.assert_close(m.decode(m.quantizer.lookup(codes)), m(x)[0])
    mean, std = m.encode(x)
    torch.testing.assert_close(m.decode(mean), m(x)[0])
    assert not std.any()


# --- the network


def independent(m: Autoencoder) -> bool:
    """Whether in training an image's outputs are the same beside other images."""
    x = images(6)
    return torch.allclose(m.train()(x)[0][:2], m(x[:2])[0], atol=1e-5)


def test_images_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert independent(model())
    monkeypatch.setattr(autoencoder, "GroupNorm", nn.BatchNorm2d)
    assert not independent(model())


@pytest.mark.parametrize("settings", [{}, {"loss": "l1_l2", "quantizer": "vq"}, {"loss": "l1_l2", "quantizer": "fsq"}])
def test_every_parameter_has_a_gradient(settings: dict[str, Any]) -> None:
    m, x = model(**settings), images()
    reconstructions, cost = m(x, torch.ones(4, *m.latent_shape))
    loss = F.mse_loss(reconstructions, x) + cost.sum()
    (loss / m.scale if m.log_scale is not None else loss).backward()
    assert [name for name, p in m.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_whitening_is_undone_exactly() -> None:
    m, x = model(), images()
    m.latent_mean.copy_(torch.tensor([3.0, -1, 0.5, 0]))
    m.latent_std.copy_(torch.tensor([0.1, 5, 1, 2]))
    latents, _ = m.encode(x)
    torch.testing.assert_close(m.decode(m.unwhitened(m.whitened(latents))), m.decode(latents))
    assert not torch.allclose(
        m.decode(m.whitened(latents)), m.decode(latents), atol=1e-2
    )  # the bug: scaled and never unscaled


@pytest.mark.parametrize(
    "settings,named",
    [
        ({"resolution": 20, "patch": 2, "widths": [16, 16, 16]}, "model.patch=2, halved 2 times"),
        ({"widths": []}, "model.widths"),
        ({"quantizer": "fsq", "loss": "l1_l2", "levels": [5, 5]}, "model.levels=[5, 5]"),
        ({"quantizer": "vq"}, "model.loss=l1_l2"),
        ({"perceptual": 0.1}, "model.perceptual=0.1"),
    ],
)
def test_what_does_not_go_together_is_answered(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as error:
        AutoencoderConfig(**settings).check()
    assert named in str(error.value)
