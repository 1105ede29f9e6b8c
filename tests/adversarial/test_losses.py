"""What a GAN plays for: losses by hand, the slope penalty by the critics whose slope is known, and the schedules."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gengen.adversarial.augment import DRAWS, augment
from gengen.adversarial.losses import LOSSES, cosine, gradient_penalty, lazy_penalty_weight

GAMMA = 0.7


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- losses

SOFTPLUS = {-3: 0.048587351573742, -2: 0.126928011042973, -1: 0.313261687518223, 0: 0.693147180559945}  # ln(1 + e^x)
SOFTPLUS |= {-x: y - x for x, y in SOFTPLUS.items()}  # softplus(-x) = softplus(x) - x

GOLDEN = {  # of the pairs (real, fake) = (2, -1), (-1, 2), (0, 0)
    "relativistic": ([SOFTPLUS[-3], SOFTPLUS[3], SOFTPLUS[0]], [SOFTPLUS[3], SOFTPLUS[-3], SOFTPLUS[0]]),
    "nonsaturating": (
        [SOFTPLUS[-2] + SOFTPLUS[-1], SOFTPLUS[1] + SOFTPLUS[2], 2 * SOFTPLUS[0]],
        [SOFTPLUS[1], SOFTPLUS[-2], SOFTPLUS[0]],
    ),
    "hinge": ([0.0, 5.0, 2.0], [1.0, -2.0, 0.0]),
}
REAL, FAKE = torch.tensor([[2.0, -1, 0], [-1, 2, 0]], dtype=torch.float64)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_by_hand(name: str) -> None:
    discriminator, generator = GOLDEN[name]
    torch.testing.assert_close(
        LOSSES[name].discriminator(REAL, FAKE), torch.tensor(discriminator, dtype=torch.float64)
    )
    torch.testing.assert_close(LOSSES[name].generator(REAL, FAKE), torch.tensor(generator, dtype=torch.float64))


def test_the_relativistic_loss_is_of_the_difference_alone_and_the_generator_plays_the_other_side() -> None:
    discriminator, generator, paired = LOSSES["relativistic"]
    real, fake = seeded(2, 50)
    torch.testing.assert_close(discriminator(real, real), torch.full_like(real, math.log(2)))  # nothing to tell apart
    torch.testing.assert_close(discriminator(real + 5, fake + 5), discriminator(real, fake))
    assert torch.equal(generator(real, fake), discriminator(fake, real)) and paired
    plain = LOSSES["nonsaturating"].discriminator
    assert not torch.allclose(plain(real + 5, fake + 5), plain(real, fake), atol=0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_each_player_pulls_its_own_way(name: str) -> None:
    """A descending discriminator raises real logits and lowers fake ones, a generator raises fake ones; and only a
    loss that says so looks at the real image there."""
    loss, real, fake = LOSSES[name], torch.tensor(0.3, requires_grad=True), torch.tensor(-0.4, requires_grad=True)
    of_real, of_fake = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    assert of_real < 0 < of_fake
    of_real, of_fake = torch.autograd.grad(loss.generator(real, fake), (real, fake), allow_unused=True)
    assert of_fake < 0 and (of_real is not None and bool(of_real > 0)) == loss.paired


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_large_logits_are_finite(name: str) -> None:
    """ln(1 + e^x) as it is written is infinite from 89 on."""
    large = torch.tensor([200.0, -200.0])
    assert (
        LOSSES[name].discriminator(large, -large).isfinite().all()
        and LOSSES[name].generator(large, -large).isfinite().all()
    )


# --- the slope

SHAPE = (3, 2, 4, 4)
SIZE = 32  # numbers in an image
Slope = Callable[[Tensor, Tensor], Tensor]


def images(seed: int = 1) -> Tensor:
    return seeded(*SHAPE, seed=seed).requires_grad_()


class Quadratic:
    """D(x) = x'Ax / 2 + b'x with A symmetric, whose slope is Ax + b."""

    def __init__(self) -> None:
        half = seeded(SIZE, SIZE, seed=2)
        self.a, self.b = (half + half.T).requires_grad_(), seeded(SIZE, seed=3).requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.einsum("bi,ij,bj->b", x, self.a, x) / 2 + x @ self.b

    def slope(self, x: Tensor) -> Tensor:  # (B, SIZE)
        return (x.flatten(1) @ self.a + self.b).detach()


def test_the_slope_of_a_linear_critic_is_its_weight() -> None:
    x, w = images(), seeded(SIZE)
    penalty = gradient_penalty(x.flatten(1) @ w + 3, x)
    torch.testing.assert_close(penalty, w.square().sum().expand(3), rtol=0, atol=1e-10)


def test_the_slope_of_a_quadratic_critic_is_each_images_own() -> None:
    critic, x = Quadratic(), images()
    torch.testing.assert_close(gradient_penalty(critic(x), x), critic.slope(x).square().sum(1), rtol=0, atol=1e-10)
    assert len(set(gradient_penalty(critic(x), x).tolist())) == 3


def penalty_moves_the_weights_as_it_should(slope: Slope) -> None:
    """d/dw gamma/2 |w|^2 = gamma w; of |s|^2 / 2 with s = (A + A')x/2 + b, s for b and (s x' + x s') / 2 for A; summed
    over images.
    """
    x, w = images(), seeded(SIZE).requires_grad_()
    (moved,) = torch.autograd.grad(GAMMA / 2 * slope(x.flatten(1) @ w, x).sum(), w)
    torch.testing.assert_close(moved, 3 * GAMMA * w.detach(), rtol=0, atol=1e-10)
    critic = Quadratic()
    of_a, of_b = torch.autograd.grad(GAMMA / 2 * slope(critic(x), x).sum(), (critic.a, critic.b))
    s, flat = critic.slope(x), x.detach().flatten(1)
    torch.testing.assert_close(of_b, GAMMA * s.sum(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(of_a, GAMMA * (s.T @ flat + flat.T @ s) / 2, rtol=0, atol=1e-10)


def test_the_penalty_moves_the_weights() -> None:
    penalty_moves_the_weights_as_it_should(gradient_penalty)


def test_a_detached_slope_would_be_noticed() -> None:
    """The bug put back: without create_graph the penalty has the right value and moves nothing."""

    def detached(logits: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(logits.sum(), x, retain_graph=True)[0].square().flatten(1).sum(1)

    critic, x = Quadratic(), images()
    torch.testing.assert_close(detached(critic(x), x), gradient_penalty(critic(x), x).detach())
    assert not detached(critic(x), x).requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        penalty_moves_the_weights_as_it_should(detached)


def test_the_slope_is_that_of_the_image_before_it_is_augmented() -> None:
    """For D(x) = w . T(x) with a linear T the slope is T* w, the adjoint: undo the cut, the shift, then the colours,
    in that order.
    """
    side, w = 8, seeded(2, 8, 8)
    x = seeded(1, 2, side, side, seed=1).requires_grad_()
    u = torch.full((1, DRAWS), 0.5, dtype=torch.float64)
    u[0, :5] = torch.tensor(
        [0.9, 0.2, 0.8, 0.99, 0.01], dtype=torch.float64
    )  # shifted by (1, -1): what is at (i, j) was at (i + 1, j - 1)
    seen = w.clone()
    seen[:, 2:6, 2:6] = 0  # where cutout lets nothing through
    back = torch.zeros_like(w)
    back[:, 1:, : side - 1] = seen[:, : side - 1, 1:]
    contrast, saturation = 0.8 + 0.5, 2 * 0.2
    adjoint = contrast * back + (1 - contrast) * back.mean()
    adjoint = saturation * adjoint + (1 - saturation) * adjoint.mean(0)
    shown = augment(x, u, ["color", "translation", "cutout"])
    logits = (shown * w).sum((1, 2, 3))
    torch.testing.assert_close(gradient_penalty(logits, x), adjoint.square().sum()[None], rtol=0, atol=1e-10)
    assert not torch.isclose(
        gradient_penalty(logits, shown), adjoint.square().sum(), rtol=0.1
    )  # the bug: that of what is shown


def test_logits_of_patches_count_by_their_mean() -> None:
    x, rows = images(), seeded(5, SIZE)
    slope = gradient_penalty(x.flatten(1) @ rows.T, x)
    torch.testing.assert_close(slope, rows.mean(0).square().sum().expand(3), rtol=0, atol=1e-10)
    one = gradient_penalty(x.flatten(1) @ rows[:1].T, x)
    torch.testing.assert_close(one, gradient_penalty(x.flatten(1) @ rows[0], x))


def test_the_sum_does_not_depend_on_how_the_batch_is_cut() -> None:
    critic, x = Quadratic(), images().detach()

    def total(cuts: list[int]) -> tuple[Tensor, Tensor]:
        critic.a.grad = None
        whole = torch.zeros((), dtype=torch.float64)
        for part in x.split(cuts):
            part = part.clone().requires_grad_()
            loss = gradient_penalty(critic(part), part).sum()
            loss.backward()
            whole += loss.detach()
        assert critic.a.grad is not None
        return whole, critic.a.grad.clone()

    expected = total([3])
    for cuts in ([1, 2], [1, 1, 1]):
        torch.testing.assert_close(total(cuts), expected, rtol=1e-12, atol=0)


def test_autocast_must_be_off_around_the_slope_and_not_only_around_the_logits() -> None:
    """Autocast holds for what autograd.grad runs, too: logits made in fp32 do not make the slope so."""
    x, w, v = seeded(4, 1, 4, 4).float().requires_grad_(), seeded(16, 16, seed=4).float(), seeded(16, seed=5).float()

    def slope(off_there: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.autocast("cpu", enabled=False):
                logits = torch.tanh(x.flatten(1) @ w) @ v
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not off_there):
                return gradient_penalty(logits, x)

    expected = gradient_penalty(torch.tanh(x.flatten(1) @ w) @ v, x)
    torch.testing.assert_close(slope(off_there=True), expected, rtol=1e-5, atol=0)
    assert not torch.allclose(slope(off_there=False), expected, rtol=1e-3)  # the bug


# --- schedules


def test_a_lazy_penalty_weighs_as_much_as_one_in_each_step() -> None:
    assert [lazy_penalty_weight(step, 1) for step in range(5)] == [1.0] * 5
    assert [lazy_penalty_weight(step, 4) for step in range(6)] == [4, 0, 0, 0, 4, 0]
    for every in (2, 3, 16):
        for start in range(2 * every):
            assert sum(lazy_penalty_weight(step, every) for step in range(start, start + every)) == every


def test_easing_goes_along_half_a_cosine_and_stays() -> None:
    assert [cosine(p, 1.0, 0.1) for p in (0, 0.5, 1, 1.5, 100)] == pytest.approx([1, 0.55, 0.1, 0.1, 0.1], abs=1e-12)
    assert cosine(0.25, 1.0, 0.1) == pytest.approx(0.1 + 0.9 * (2 + math.sqrt(2)) / 4)
    for start, end in ((1.0, 0.1), (0.0, 500.0)):
        values = [cosine(i / 50, start, end) for i in range(51)]
        assert all((b - a) * (end - start) > 0 for a, b in pairwise(values))
    assert cosine(0.3, 2.0, 2.0) == 2.0
