"""Every figure against a hand computation, a direct loop or a closed form."""

import math

import numpy as np
import pytest
import torch

from gengen.evaluation.metrics import (
    CHUNK,
    auth_pct,
    frechet_distance,
    gaussian,
    kid,
    nearest,
    nearest_distances,
    prdc,
    psnr,
    ssim,
)
from gengen.generation.image.files import to_uint8


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_images(seed: int, n: int = 3, channels: int = 2, side: int = 17) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, channels, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


# --- uint8


def comes_back(quantise) -> bool:
    values = torch.arange(256, dtype=torch.uint8)
    return torch.equal(quantise(values.float() / 127.5 - 1), values)


def test_every_pixel_value_survives_the_round_trip() -> None:
    assert comes_back(to_uint8)


def test_flooring_would_be_noticed() -> None:
    assert not comes_back(lambda x: ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8))


def test_to_uint8_rounds_to_the_nearest_and_clips() -> None:
    x = torch.tensor([-7.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 1.01, 9.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_to_uint8_of_bf16_is_computed_in_fp32() -> None:
    x = torch.linspace(-1, 1, 300).bfloat16()
    assert torch.equal(to_uint8(x), to_uint8(x.float()))
    assert not torch.equal(to_uint8(x), ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))


# --- pairs of images


def test_psnr_by_hand() -> None:
    a = torch.zeros(3, 1, 2, 2)
    b = torch.zeros(3, 1, 2, 2)
    b[0], b[1, 0, 0, 0] = 0.1, 1.0
    assert psnr(a, b).tolist() == pytest.approx([20.0, 10 * math.log10(4), math.inf])  # mse .01, 1/4, 0


def test_psnr_of_uint8_is_that_of_the_same_images_in_unit_range() -> None:
    a, b = some_images(0), some_images(1)
    torch.testing.assert_close(psnr(a, b), psnr(a.double() / 255, b.double() / 255))
    difference = (a[0].double() - b[0].double()).square().mean().item()
    assert psnr(a, b)[0].item() == pytest.approx(10 * math.log10(255**2 / difference))


def ssim_loop(a: np.ndarray, b: np.ndarray, sigma: float = 1.5) -> float:
    """One channel in [0, 1], window by window, each moment about its own mean."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            p_mean, q_mean = (weights * p).sum(), (weights * q).sum()
            p_var, q_var = (weights * (p - p_mean) ** 2).sum(), (weights * (q - q_mean) ** 2).sum()
            cov = (weights * (p - p_mean) * (q - q_mean)).sum()
            luminance = (2 * p_mean * q_mean + 1e-4) / (p_mean**2 + q_mean**2 + 1e-4)
            values.append(luminance * (2 * cov + 9e-4) / (p_var + q_var + 9e-4))
    return float(np.mean(values))


def test_ssim_equals_a_direct_loop() -> None:
    a, b = some_images(0), some_images(1)
    b = ((a.double() * 3 + b.double()) / 4).to(torch.uint8)  # related, so that the covariance counts
    expected = [
        np.mean([ssim_loop(x.numpy() / 255, y.numpy() / 255) for x, y in zip(p, q, strict=True)])
        for p, q in zip(a, b, strict=True)
    ]
    assert 0.2 < expected[0] < 0.99
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    wider = ssim_loop(a[0, 0].numpy() / 255, b[0, 0].numpy() / 255, sigma=2.0)
    assert (
        abs(wider - ssim_loop(a[0, 0].numpy() / 255, b[0, 0].numpy() / 255)) > 1e-4
    )  # another window would be noticed


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    assert ssim(a, b).item() == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rel=1e-6)
    assert ssim(a, a).item() == pytest.approx(1)


# --- Fréchet distance


def test_frechet_distance_of_diagonal_gaussians() -> None:
    s1, s2 = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 4.0, 1.0])
    expected = 14 + ((s1.sqrt() - s2.sqrt()) ** 2).sum().item()  # |m|^2 + sum (sigma1 - sigma2)^2
    assert frechet_distance(torch.zeros(3), s1.diag(), torch.tensor([1.0, 2.0, 3.0]), s2.diag()) == pytest.approx(
        expected
    )


def test_frechet_distance_turns_with_the_axes_and_is_symmetric() -> None:
    turn = torch.linalg.qr(normal(6, 6))[0]
    x, y = normal(50, 6), 2 * normal(60, 6, seed=1) + 1
    there = frechet_distance(*gaussian(x), *gaussian(y))
    assert frechet_distance(*gaussian(y), *gaussian(x)) == pytest.approx(there)
    assert frechet_distance(*gaussian(x @ turn), *gaussian(y @ turn)) == pytest.approx(there)
    assert there > 6


def test_frechet_distance_equals_the_trace_of_a_root_of_the_product() -> None:
    (m1, c1), (m2, c2) = gaussian(normal(50, 6)), gaussian(normal(60, 6, seed=1) @ normal(6, 6, seed=2))
    roots = torch.linalg.eigvals(c1 @ c2).sqrt().sum().real  # of C1 C2 itself, which is not symmetric
    expected = (m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * roots
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_distance_of_singular_gaussians() -> None:
    zero = torch.zeros(3)
    one, other = torch.diag(torch.tensor([4.0, 0, 0])), torch.diag(torch.tensor([0, 9.0, 0]))
    assert frechet_distance(zero, one, zero, other) == pytest.approx(13)  # no common direction
    assert frechet_distance(zero, one, zero, one) == pytest.approx(0, abs=1e-9)
    few = normal(5, 40)  # fewer samples than dimensions
    assert frechet_distance(*gaussian(few), *gaussian(few)) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(*gaussian(few), *gaussian(few + 1)) == pytest.approx(40, abs=1e-4)


def test_gaussian_is_numpys_and_keeps_small_spreads_on_a_large_mean() -> None:
    x = (normal(30, 4) * 1e-3 + 1e4).float()
    mean, cov = gaussian(x)
    np.testing.assert_allclose(cov.numpy(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(mean.numpy(), x.double().numpy().mean(0), rtol=1e-12)


# --- KID


def kid_loop(x: torch.Tensor, y: torch.Tensor, biased: bool = False) -> float:
    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a @ b).item() / len(a) + 1) ** 3

    def within(z: torch.Tensor) -> float:
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if biased or i != j]
        return sum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kid_equals_a_double_loop() -> None:
    x, y = normal(7, 3), normal(9, 3, seed=1) + 0.5
    assert kid(x, y) == pytest.approx(kid_loop(x, y), rel=1e-12)


def test_kid_is_the_same_in_chunks(monkeypatch) -> None:
    x, y = normal(7, 3), normal(9, 3, seed=1)
    whole = kid(x, y)
    monkeypatch.setattr("gengen.evaluation.metrics.CHUNK", 2)
    assert kid(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("estimate", "unbiased"), [(kid, True), (lambda x, y: kid_loop(x, y, biased=True), False)])
def test_kid_of_equal_distributions_is_zero_on_average(estimate, unbiased: bool) -> None:
    values = torch.tensor([estimate(normal(12, 4, seed=2 * i), normal(12, 4, seed=2 * i + 1)) for i in range(60)])
    off = values.mean().abs() / (values.std() / len(values) ** 0.5)  # in standard errors
    assert bool(off < 3) is unbiased


# --- neighbours


def test_nearest_equals_sorting_all_distances(monkeypatch) -> None:
    train, queries = normal(23, 2, 3), normal(9, 2, 3, seed=1)
    apart = (queries.flatten(1)[:, None] - train.flatten(1)[None]).square().sum(-1).sqrt()
    for chunk in (CHUNK, 4):
        monkeypatch.setattr("gengen.evaluation.metrics.CHUNK", chunk)
        distances, indices = nearest_distances(train, queries, 5)
        assert torch.equal(indices, apart.argsort(dim=1)[:, :5])
        torch.testing.assert_close(distances, apart.sort(dim=1)[0][:, :5])
        assert torch.equal(nearest(train, queries, 5), indices)


def test_a_copy_is_at_exactly_zero_and_of_equals_the_first_wins() -> None:
    train = torch.rand(300, 128, generator=torch.Generator().manual_seed(0))
    train[30] = train[3]
    distances, indices = nearest_distances(train, train.clone(), 2)
    assert (distances[:, 0] == 0).all()
    assert indices[30].tolist() == [3, 30] and indices[3].tolist() == [3, 30]
    by_product = torch.cdist(train.double(), train.double().clone(), compute_mode="use_mm_for_euclid_dist")
    assert by_product.diagonal().max() > 1e-8  # what is not good enough


def test_nearest_takes_images() -> None:
    images = some_images(0, n=6)
    assert nearest(images, images[[4, 1]])[:, 0].tolist() == [4, 1]


# --- precision, recall, density, coverage


def test_prdc_by_hand() -> None:
    real, fake = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[0.5], [2.9], [20.0]])
    # k = 1. Radii of the reals: 1, 1, 2, 7; of the fakes: 2.4, 2.4, 17.1.
    # 0.5 is in the balls of 0 and 1; 2.9 in those of 3 and (|2.9 - 10| = 7.1 > 7) no other; 20 in none.
    # 0 and 1 are in the ball of 0.5; 1 and 3 in that of 2.9; 3 (17) and 10 (10) in that of 20.
    figures = prdc(real, fake, k=1)
    assert figures == pytest.approx({"precision": 2 / 3, "recall": 1.0, "density": 3 / 3, "coverage": 3 / 4})


def test_prdc_radii_leave_the_point_itself_out() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert (
        prdc(real, real + 0.25, k=1)["coverage"] == 1
    )  # radii 1; with the point itself they would be 0 and nothing covered


def test_a_collapsed_generator_is_precise_and_covers_nothing() -> None:
    real = normal(200, 2)
    figures = prdc(real, real[:1] + 1e-3 * normal(200, 2, seed=1))
    assert figures["precision"] == 1
    assert figures["coverage"] < 0.1 and figures["recall"] < 0.1


def test_the_same_distribution_at_equal_counts_is_covered() -> None:
    figures = prdc(normal(300, 2), normal(300, 2, seed=1))
    assert figures["coverage"] == pytest.approx(
        1 - 0.5**5, abs=0.03
    )  # a real ball holds no fake with probability 1 / 2^k
    assert figures["density"] == pytest.approx(1, abs=0.1)


# --- authenticity


def test_copies_are_not_authentic_and_far_noise_is() -> None:
    train = normal(50, 3)
    assert auth_pct(train, train[:20]) == 0
    assert auth_pct(train, train[:20] + 1e-6) == 0
    assert auth_pct(train, 100 + normal(20, 3, seed=1)) == 100


def test_authenticity_by_hand() -> None:
    train = torch.tensor([[0.0], [1.0], [5.0]])  # their own nearest are at 1, 1, 4
    generated = torch.tensor([[-0.9], [-1.1], [2.1], [8.0], [9.1]])  # .9 of 1; 1.1 of 1; 1.1 of 1; 3 of 4; 4.1 of 4
    assert auth_pct(train, generated) == pytest.approx(60)
    assert auth_pct(train, torch.cat([generated, generated])) == pytest.approx(60)


def test_copies_of_a_doubled_training_point_are_not_authentic() -> None:
    train = torch.cat([normal(10, 3), normal(10, 3)])
    assert auth_pct(train, train) == 0
