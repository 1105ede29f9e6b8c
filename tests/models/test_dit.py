"""The diffusion transformer: it begins as zero, hears level and class, and its block is the paper's formula."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import DiTConfig, LatentDiTConfig, UNetConfig
from gengen.errors import UserError
from gengen.models.dit import Attention, Block, DiT, from_patches, sines_2d, to_patches
from gengen.models.flops import forward_flops
from gengen.models.layers import NO_CLASS
from gengen.models.unet import UNet
from gengen.training.optim.groups import build_optimizer

SMALL = DiTConfig(
    resolution=16, channels=2, classes=["a", "b", "c"], layers=2, width=32, heads=4, patch=4, sigma_data=0.5
)


def awake(config: DiTConfig = SMALL) -> DiT:
    """A network whose zero-initialised layers say something."""
    torch.manual_seed(0)
    net = DiT(config.resolved())
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return net


def inputs(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, level = torch.randn(rows, 2, 16, 16, generator=generator), torch.rand(rows, generator=generator)
    return x, level, torch.arange(rows) % 3


def test_it_begins_as_zero_and_its_blocks_as_the_identity() -> None:
    net = DiT(SMALL.resolved())
    out = net(*inputs())
    assert out.shape == (4, 2, 16, 16) and out.abs().max() == 0
    tokens, condition = torch.randn(3, 16, 32), torch.randn(3, 32)
    for block in net.blocks:
        assert torch.equal(block(tokens, condition, None), tokens)
    (out - 1).square().sum().backward()
    assert net.out.weight.grad is not None and net.out.weight.grad.abs().max() > 0


def test_a_step_makes_level_and_class_heard() -> None:
    """Of a new network the answer depends on neither; after some steps on a target that does, it depends on both."""
    torch.manual_seed(0)
    net = DiT(SMALL.resolved())
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    x, level, labels = inputs(6)
    wanted = x * (level + labels).view(-1, 1, 1, 1)
    for _ in range(3):  # the last layer wakes first, then the gates, then what is behind them
        optimizer.zero_grad()
        (net(x, level, labels) - wanted).square().mean().backward()
        optimizer.step()
    net.eval()
    said = net(x, level, labels)
    for other in (net(x, level + 0.1, labels), net(x, level, (labels + 1) % 3), net(x, level, None)):
        assert (said - other).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    assert torch.equal(net(x, level, None), net(x, level, torch.full((6,), NO_CLASS)))


def test_every_parameter_has_a_gradient_and_is_in_one_group() -> None:
    net = awake()
    net(*inputs(8)).square().sum().backward()
    net(*inputs(1)[:2], torch.tensor([NO_CLASS])).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    for optim in ("adamw", "muon"):
        config = compose_train(read_command_line(["model=dit", "data=animals", f"optim={optim}"]))
        optimizer = build_optimizer(net, config.optim, config.model.hidden_maps)
        grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in net.parameters())
        by_muon = {id(p) for group in optimizer.param_groups if group.get("muon") for p in group["params"]}
        assert by_muon == ({id(p) for p in net.blocks.parameters() if p.dim() == 2} if optim == "muon" else set())


def plain_block(block: Block, x: Tensor, condition: Tensor, heads: int) -> Tensor:
    """A block of Peebles & Xie (2023, fig. 3) with adaLN-zero for one sample, (T, D) and (D,), written out in fp64."""
    w = {name: p.detach().double() for name, p in block.named_parameters()}
    six = w["modulation.weight"] @ condition + w["modulation.bias"]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = six.view(6, -1)

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()

    h = norm(x) * (1 + scale_a) + shift_a
    q, k, v = (h @ w["attention.qkv.weight"].T + w["attention.qkv.bias"]).chunk(3, dim=1)
    size, mixed = x.shape[1] // heads, []
    for i in range(heads):
        mine = slice(i * size, (i + 1) * size)
        mixed.append(torch.softmax(q[:, mine] @ k[:, mine].T / size**0.5, dim=1) @ v[:, mine])
    x = x + gate_a * (torch.cat(mixed, dim=1) @ w["attention.out.weight"].T + w["attention.out.bias"])
    h = (norm(x) * (1 + scale_m) + shift_m) @ w["mlp.0.weight"].T + w["mlp.0.bias"]
    h = h / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (h + 0.044715 * h**3)))
    return x + gate_m * (h @ w["mlp.2.weight"].T + w["mlp.2.bias"])


def test_a_block_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    block, x, condition = Block(32, 4, 0.0, None), torch.randn(2, 9, 32), torch.randn(2, 32)
    expected = [plain_block(block, *row, heads=4) for row in zip(x.double(), condition.double(), strict=True)]
    torch.testing.assert_close(block(x, condition, None).double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_patches_are_squares_of_the_image_and_come_back() -> None:
    x = torch.randn(2, 3, 12, 12)
    tokens = to_patches(x, 4)
    assert tokens.shape == (2, 9, 48)
    assert torch.equal(tokens[1, 5].view(3, 4, 4), x[1, :, 4:8, 8:12])  # the second row's third
    assert torch.equal(from_patches(tokens, 3, 4), x)


def test_positions_tell_places_apart_and_nothing_else_does() -> None:
    """Without them a permutation of the patches permutes the answer; with them it does not."""
    table = sines_2d(4, 32)
    assert table.shape == (16, 32) and torch.cdist(table, table).fill_diagonal_(9).min() > 0.5
    torch.testing.assert_close(table[6, :16], table[4, :16])  # the same row
    torch.testing.assert_close(table[6, 16:], table[2, 16:])  # the same column
    net, order = awake().eval(), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    x, level, labels = inputs(2)
    moved = from_patches(to_patches(x, 4)[:, order], 4, 4)

    def answers() -> tuple[Tensor, Tensor]:
        return to_patches(net(x, level, labels), 4)[:, order], to_patches(net(moved, level, labels), 4)

    assert (answers()[0] - answers()[1]).abs().max() > 1e-3
    net.positions.zero_()
    torch.testing.assert_close(*answers(), atol=1e-5, rtol=1e-5)


def test_rows_do_not_see_each_other() -> None:
    net = awake().eval()
    x, level, labels = inputs(4)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, level, labels), alone, atol=1e-5, rtol=1e-5)


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
    assert not torch.equal(plain(*inputs()), plain(*inputs()))
    assert torch.equal(plain.eval()(*inputs()), plain(*inputs()))


def test_bf16_stays_near_fp32_and_answers_in_it() -> None:
    net = awake().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = net(*inputs())
    exact = net(*inputs())
    assert rough.dtype == torch.float32 and F.mse_loss(rough, exact) < 1e-3 * exact.var()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(SMALL, resolution=18), ["resolution 18", "multiple of model.patch=4", "whole patches"]),
        (replace(SMALL, heads=5), ["model.width=32", "model.heads=5"]),
        (replace(SMALL, width=18, heads=3), ["model.width=18", "of 4"]),
        (replace(SMALL, prediction="eps"), ["eps", "velocity"]),
    ],
)
def test_what_does_not_fit_is_said(config: DiTConfig, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config.check()
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_default_costs_what_the_unets_does() -> None:
    """FLOPs of an image at 32 x 32, by which equal times are compared; on latents of 8 x 8 it is the same network."""
    facts = {"resolution": 32, "channels": 3, "classes": ["a"], "sigma_data": 0.5}
    dit, unet = replace(DiTConfig(), **facts).resolved(), replace(UNetConfig(), **facts).resolved()
    with torch.device("meta"):
        x, level = torch.empty(1, 3, 32, 32), torch.empty(1)
        assert forward_flops(DiT(dit), x, level) == pytest.approx(forward_flops(UNet(unet), x, level), rel=0.1)
    on_latents = LatentDiTConfig(resolution=8, channels=4, codec="runs/vae").resolved()
    assert (on_latents.width, on_latents.layers) == (dit.width, dit.layers) and on_latents.patch == 1
    assert on_latents.needs_codec() and not dit.needs_codec()


def test_attention_looks_everywhere() -> None:
    torch.manual_seed(0)
    attention, x = Attention(16, 2), torch.randn(1, 6, 16)
    moved = x.clone()
    moved[0, 5] += 1
    assert (attention(x) - attention(moved)).abs().amax(dim=2).min() > 1e-5
