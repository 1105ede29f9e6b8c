"""Head and cross-entropy in one: equal to torch's of all logits, and without ever holding them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gengen.models.kernels import cross_entropy
from gengen.models.kernels.cross_entropy import IGNORED, linear_cross_entropy

N, C, V = 50, 8, 23


def drawn(n: int = N, c: int = C, v: int = V) -> tuple[Tensor, Tensor, Tensor]:
    """Features, head and labels; every third label does not count."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(v, (n,), generator=draw)
    labels[::3] = IGNORED
    return torch.randn(n, c, generator=draw), torch.randn(v, c, generator=draw), labels


def whole(
    x: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The nats and what is differentiated, by all logits at once in fp64."""
    logits = x @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return nats, nats + z_loss * (logits.logsumexp(-1).square() * (labels != IGNORED)).sum()


def gradients(value: Tensor, *of: Tensor) -> list[Tensor]:
    return [g.double() for g in torch.autograd.grad(value, of)]


@pytest.mark.parametrize("elements", [1, 7 * V, 16 * V, 2**21], ids=["a row", "7 rows", "16 rows", "all"])
@pytest.mark.parametrize("softcap,z_loss", [(None, 0.0), (2.0, 0.0), (None, 0.1), (2.0, 0.1)])
def test_value_and_gradients_equal_those_of_all_logits(
    elements: int, softcap: float | None, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "ROWS", 1)
    monkeypatch.setitem(cross_entropy.ELEMENTS, "cpu", elements)
    x, weight, labels = drawn()
    x64, w64 = x.double().requires_grad_(), weight.double().requires_grad_()
    nats, objective = whole(x64, w64, labels, softcap, z_loss)
    x.requires_grad_(), weight.requires_grad_()
    found = linear_cross_entropy(x, weight, labels, softcap, z_loss)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(nats.item(), rel=1e-5)
    torch.testing.assert_close(
        gradients(3 * found, x, weight), gradients(3 * objective, x64, w64), rtol=1e-5, atol=2e-5
    )
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, labels, softcap, z_loss) == found


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("softcap,z_loss", [(None, 0.0), (2.0, 0.1)])
def test_padding_rows_have_no_part_in_it(softcap: float | None, z_loss: float, compile: bool) -> None:
    """As CUDA takes it, compiled where the model is: whole vectors of rows, of which the last are no tokens."""
    x, weight, labels = drawn()
    padded = torch.cat([weight, torch.full((9, C), 50.0)]).requires_grad_()  # that would outdo all tokens
    x.requires_grad_(), weight.requires_grad_()
    expected = linear_cross_entropy(x, weight, labels, softcap, z_loss)
    found = linear_cross_entropy(x, padded, labels, softcap, z_loss, V, compile)
    torch.testing.assert_close(found, expected)
    x_grad, w_grad = torch.autograd.grad(found, (x, padded))
    torch.testing.assert_close([x_grad, w_grad[:V]], list(torch.autograd.grad(expected, (x, weight))))
    assert not w_grad[V:].any()


def test_a_z_loss_inside_the_value_would_be_noticed() -> None:
    x, weight, labels = drawn()
    nats, objective = (value.item() for value in whole(x.double(), weight.double(), labels, None, 1e-2))
    assert linear_cross_entropy(x, weight, labels, None, 1e-2).item() == pytest.approx(nats, rel=1e-5)
    assert objective != pytest.approx(nats, rel=1e-2)


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, weight, labels = drawn()
    both = gradients(linear_cross_entropy(x.requires_grad_(), weight.requires_grad_(), labels), x, weight)
    assert torch.equal(gradients(linear_cross_entropy(x, weight.detach(), labels), x)[0], both[0])
    assert torch.equal(gradients(linear_cross_entropy(x.detach(), weight, labels), weight)[0], both[1])


@pytest.mark.parametrize("elements", [V, 2**21])
def test_no_label_at_all_is_a_loss_and_a_gradient_of_zero(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a mean over labels, and so a mean of means, would be NaN."""
    monkeypatch.setattr(cross_entropy, "ROWS", 1)
    monkeypatch.setitem(cross_entropy.ELEMENTS, "cpu", elements)
    x, weight, _ = drawn()
    labels = torch.full((N,), IGNORED)
    found = linear_cross_entropy(x.requires_grad_(), weight.requires_grad_(), labels, 5.0, 1e-4)
    assert found.item() == 0 and not any(g.any() for g in gradients(found, x, weight))
    assert math.isnan(F.cross_entropy(x @ weight.T, labels, ignore_index=IGNORED).item())


def test_large_logits_and_ignored_rows_stay_finite() -> None:
    x, weight, labels = drawn()
    x = (1e4 * x).requires_grad_()
    found = linear_cross_entropy(x, weight.requires_grad_(), labels, None, 1e-4)
    assert found.isfinite() and all(g.isfinite().all() for g in gradients(found, x, weight))
    assert not gradients(linear_cross_entropy(x, weight, labels), x)[0][::3].any()


# --- bf16


def bf16_case() -> tuple[Tensor, Tensor, Tensor]:
    """Many chunks whose shares of the head's gradient point the same way: sums grow far beyond a share."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 16, generator=draw) + 1
    return x, torch.randn(64, 16, generator=draw) / 4, torch.randint(8, (2048,), generator=draw)


def error_of_head_gradient(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(cross_entropy, "ROWS", 1)
    monkeypatch.setitem(cross_entropy.ELEMENTS, "cpu", 4 * 64)  # 512 chunks
    x, weight, labels = bf16_case()
    x64, w64 = x.bfloat16().double(), weight.bfloat16().double().requires_grad_()
    (exact,) = gradients(whole(x64, w64, labels)[0], w64)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(x, weight.requires_grad_(), labels)
    assert found.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found, weight)
    assert gradient.dtype == torch.float32
    return ((gradient - exact).norm() / exact.norm()).item()


def test_the_head_gradient_is_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of_head_gradient(monkeypatch) < 2e-3


def test_a_sum_in_bf16_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: the running sum rounded to bf16 after each chunk."""
    right = Tensor.add_
    monkeypatch.setattr(Tensor, "add_", lambda self, share: self.copy_(right(self, share).bfloat16()))
    assert error_of_head_gradient(monkeypatch) > 2e-2


def test_accuracy_under_autocast() -> None:
    """Against fp64 of the same rounded inputs. In bf16 alone the loss would be off by up to 2^-9 of a logit a
    token."""
    x, weight, labels = bf16_case()
    x.requires_grad_(), weight.requires_grad_()
    x64, w64 = x.detach().bfloat16().double().requires_grad_(), weight.detach().bfloat16().double().requires_grad_()
    nats = whole(x64, w64, labels, 15.0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(x, weight, labels, 15.0)
    assert found.item() == pytest.approx(nats.item(), rel=1e-3)
    for gradient, exact in zip(gradients(found, x, weight), gradients(nats, x64, w64), strict=True):
        assert (gradient - exact).norm() < 0.01 * exact.norm()


# --- memory


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor))])
        return found


def largest(loss: Any, *inputs: Tensor) -> tuple[int, int]:
    """Numbers in the largest tensor ever made, and in the largest one kept for the backward pass."""
    saved = [0]

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with Largest() as mode, saved_tensors_hooks(pack, lambda x: x):
        loss(*inputs).backward()
    return mode.numel, max(saved)


def test_logits_of_all_rows_are_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    n, c, v, rows = 512, 8, 256, 8
    monkeypatch.setattr(cross_entropy, "ROWS", 1)
    monkeypatch.setitem(cross_entropy.ELEMENTS, "cpu", rows * v)
    x, weight, labels = drawn(n, c, v)
    x.requires_grad_(), weight.requires_grad_()
    made, saved = largest(lambda *inputs: linear_cross_entropy(*inputs, 20.0, 1e-4), x, weight, labels)
    assert made <= max(n * c, v * c, rows * v) < n * v / 16 and saved <= max(n * c, v * c)
    made, saved = largest(
        lambda x, w, y: F.cross_entropy(x @ w.T, y, ignore_index=IGNORED, reduction="sum"), x, weight, labels
    )
    assert made == saved == n * v, "what this must notice"
