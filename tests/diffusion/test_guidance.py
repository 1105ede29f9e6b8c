"""Guidance: what a scale means, when the reference is called, and what rescaling does to flat images."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gengen.diffusion.guidance import Denoiser, guide, rescaled

X = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def conditional(x: Tensor, t: float) -> Tensor:
    return 2 * x + t


def reference(x: Tensor, t: float) -> Tensor:
    return x - t


def never(x: Tensor, t: float) -> Tensor:
    raise AssertionError("the reference was called")


Guide = Callable[[Denoiser, Denoiser, float], Denoiser]


def imagen_convention(conditional: Denoiser, reference: Denoiser, scale: float) -> Denoiser:
    """The bug: conditional + scale (conditional - reference), where 0 is off."""
    return lambda x, t: conditional(x, t) + scale * (conditional(x, t) - reference(x, t))


def first_channels_only(conditional: Denoiser, reference: Denoiser, scale: float) -> Denoiser:
    """The bug: three channels of four are guided."""

    def denoise(x: Tensor, t: float) -> Tensor:
        guided = conditional(x, t)
        guided[:, :3] = reference(x, t)[:, :3].lerp(guided[:, :3], scale)
        return guided

    return denoise


def test_pitfall_fifteen_a_scale_of_one_is_off_and_every_channel_is_guided() -> None:
    """Pitfall fifteen: 1 is the conditional model, 0 the reference, and w is reference + w (conditional - reference)
    everywhere.
    """

    def holds(guide: Guide) -> None:
        torch.testing.assert_close(guide(conditional, reference, 1.0)(X, 0.5), conditional(X, 0.5))
        torch.testing.assert_close(guide(conditional, reference, 0.0)(X, 0.5), reference(X, 0.5))
        torch.testing.assert_close(guide(conditional, reference, 3.0)(X, 0.5), X - 0.5 + 3.0 * (X + 1.0))

    holds(guide)
    for bug in (imagen_convention, first_channels_only):
        with pytest.raises(AssertionError):
            holds(bug)


def test_the_reference_is_not_called_where_it_does_not_count() -> None:
    assert torch.equal(guide(conditional, never, 1.0)(X, 0.5), conditional(X, 0.5))
    between = guide(conditional, never, 3.0, interval=(0.2, 0.8))
    for t in (0.1, 0.9):
        assert torch.equal(between(X, t), conditional(X, t))
    with pytest.raises(AssertionError, match="was called"):
        between(X, 0.5)


def test_guidance_acts_from_end_to_end_of_its_interval() -> None:
    always, between = guide(conditional, reference, 3.0), guide(conditional, reference, 3.0, interval=(0.2, 0.8))
    for t in (0.2, 0.5, 0.8):
        assert torch.equal(between(X, t), always(X, t))
    assert not torch.equal(always(X, 80.0), conditional(X, 80.0))  # unless told, at every time, EDM's too


def test_a_full_rescale_gives_each_sample_the_deviation_of_its_conditional() -> None:
    guided, wanted = guide(conditional, reference, 5.0)(X, 0.5), conditional(X, 0.5)
    out = guide(conditional, reference, 5.0, rescale=1.0)(X, 0.5)
    dims = (1, 2, 3)
    torch.testing.assert_close(out.std(dims), wanted.std(dims))
    torch.testing.assert_close(guide(conditional, reference, 5.0, rescale=0.7)(X, 0.5), 0.7 * out + 0.3 * guided)


def unsafe(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """The bug: the deviation of a flat image divides."""
    dims = tuple(range(1, guided.dim()))
    return guided.lerp(guided * conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True), share)


def test_pitfall_ten_a_flat_image_is_not_rescaled_into_nan() -> None:
    """Pitfall ten: the first estimates of a flat image have no deviation."""
    flat = torch.full((2, 4, 3, 3), 0.3)
    flat[1] = X[1]

    def holds(rescaled: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        out = rescaled(flat, flat, 0.7)
        torch.testing.assert_close(out, flat)
        torch.testing.assert_close(rescaled(torch.zeros(1, 2), torch.zeros(1, 2), 0.7), torch.zeros(1, 2))

    holds(rescaled)
    with pytest.raises(AssertionError):
        holds(unsafe)
