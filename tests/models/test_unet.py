"""The UNet: what it is told, what it is not, and what does not change what it says."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.config.model import UNetConfig
from gengen.errors import UserError
from gengen.models.layers import NO_CLASS, attend, fourier
from gengen.models.unet import UNet

SMALL = UNetConfig(
    resolution=16,
    channels=1,
    classes=["a", "b", "c"],
    widths=[32, 64],
    blocks=1,
    attention=[1],
    patch=2,
    sigma_data=0.5,
)


def awake(config: UNetConfig = SMALL) -> UNet:
    """A network whose zero-initialised layers say something."""
    torch.manual_seed(0)
    net = UNet(config.resolved())
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return net


def inputs(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(rows, 1, 16, 16, generator=generator),
        torch.rand(rows, generator=generator),
        torch.arange(rows) % 3,
    )


def test_it_begins_as_zero_with_a_gradient_for_its_last_layer() -> None:
    net = UNet(SMALL.resolved())
    out = net(*inputs())
    assert out.abs().max() == 0
    (out - 1).square().sum().backward()
    assert net.conv_out.weight.grad is not None and net.conv_out.weight.grad.abs().max() > 0


def test_every_parameter_has_a_gradient() -> None:
    net = awake()
    net(*inputs(8)).square().sum().backward()
    labels = torch.tensor([NO_CLASS])
    net(inputs(1)[0], inputs(1)[1], labels).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_rows_do_not_see_each_other() -> None:
    net = awake().eval()
    x, level, labels = inputs(4)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, level, labels), alone, atol=1e-5, rtol=1e-5)


def test_level_and_class_are_heard_and_no_class_is_one_of_its_own() -> None:
    net = awake().eval()
    x, level, labels = inputs(4)
    said = net(x, level, labels)
    assert (said - net(x, level + 0.1, labels)).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    assert (said - net(x, level, (labels + 1) % 3)).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    assert torch.equal(net(x, level, torch.full((4,), NO_CLASS)), net(x, level, None))
    assert (said - net(x, level, None)).abs().max() > 1e-4


def test_near_levels_stay_apart_and_would_not_in_bf16() -> None:
    """A level rounded to bf16 (8 bits) beside 1 moves in steps of 1/256: levels between would be told as one."""
    a, b = torch.tensor([0.8975]), torch.tensor([0.8995])
    assert (fourier(a, 64) - fourier(b, 64)).abs().max() > 0.3
    assert torch.equal(fourier(a.bfloat16(), 64), fourier(b.bfloat16(), 64))  # the bug: what a cast before would do
    with torch.autocast("cpu", torch.bfloat16):
        assert fourier(a, 64).dtype == torch.float32


def test_recomputed_activations_change_neither_outputs_nor_gradients() -> None:
    plain, recomputing = (
        awake(replace(SMALL, dropout=0.3, activation_checkpointing=on)).train() for on in (False, True)
    )
    for net in (plain, recomputing):
        torch.manual_seed(5)  # dropout
        net(*inputs()).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_dropout_is_off_in_evaluation() -> None:
    net = awake(replace(SMALL, dropout=0.5))
    assert not torch.equal(net.train()(*inputs()), net(*inputs()))
    assert torch.equal(net.eval()(*inputs()), net(*inputs()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_softmax_of_scaled_products(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    expected = torch.softmax(q.double() @ k.double().transpose(2, 3) / 8**0.5, dim=-1) @ v.double()
    torch.testing.assert_close(
        attend(q, k, v).double(), expected, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=1e-2
    )
    assert attend(q, k, v).dtype == dtype


@pytest.mark.parametrize("widths", [[56], [8, 40], [24, 56], [32, 64]])
def test_whatever_fits_the_heads_can_be_normalised(widths: list[int]) -> None:
    """56 channels, or 8 and 40 side by side, made groups of 16 that do not divide them, and a traceback."""
    config = replace(SMALL, widths=widths, head_size=8, attention=[0])
    config.check()
    assert awake(config)(*inputs()).shape == (4, 1, 16, 16)
    groups = {m.num_channels: m.num_groups for m in awake(config).modules() if isinstance(m, torch.nn.GroupNorm)}
    assert all(channels % n == 0 and n <= max(1, channels // 16) for channels, n in groups.items())
    assert groups.get(32, 2) == 2 and groups.get(64, 4) == 4 and groups.get(56, 2) == 2 and groups.get(48, 3) == 3


def test_bf16_stays_near_fp32() -> None:
    net = awake().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = net(*inputs())
    exact = net(*inputs())
    assert rough.dtype == torch.float32 and F.mse_loss(rough, exact) < 1e-3 * exact.var()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(SMALL, attention=[2]), ["attention", "levels 0 to 1"]),
        (replace(SMALL, widths=[32, 40]), ["widths", "40", "head_size"]),
        (replace(SMALL, resolution=30), ["resolution 30", "multiple of 4"]),
        (replace(SMALL, prediction="eps"), ["eps", "velocity"]),
    ],
)
def test_what_does_not_fit_is_said(config: UNetConfig, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config.check()
    assert all(word in str(caught.value) for word in words), caught.value
