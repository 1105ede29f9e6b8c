"""Linear maps in int8: how far off a weight may be, two kernels that agree, and a model that stays as it was."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gengen.config.model import GPTConfig
from gengen.models.gpt import GPT
from gengen.models.kernels import linear as quantize
from gengen.models.kernels.linear import DECODE_ROWS, Int8Linear, Linear, quantized


def linear(inputs: int = 48, outputs: int = 33, bias: bool = False) -> nn.Linear:
    """Rows of very different sizes, among them one of zeros."""
    draw, layer = torch.Generator().manual_seed(0), nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        sizes = torch.logspace(-4, 3, outputs)[:, None]
        sizes[5] = 0
        layer.weight.copy_(torch.randn(outputs, inputs, generator=draw) * sizes)
        if bias:
            layer.bias.copy_(torch.randn(outputs, generator=draw))
    return layer


def restored(layer: Int8Linear) -> Tensor:
    return layer.weight.double() * layer.scales.double()[:, None]


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    layer = linear()
    small = Int8Linear(layer)
    assert small.weight.dtype == torch.int8 and small.scales.dtype == torch.bfloat16
    error, step = (restored(small) - layer.weight.double()).abs(), small.scales.double()[:, None]
    assert (error <= step / 2 * (1 + 1e-5)).all()
    assert (error.amax(dim=1) > step[:, 0] / 3)[[i for i in range(33) if i != 5]].all(), (
        "and each row uses its own steps"
    )
    assert not small.weight[5].any() and small.scales.isfinite().all()


def test_the_largest_weight_never_overflows() -> None:
    """A scale rounded down to bf16 leaves up to 127.25 steps: 127, with the error still below half a step."""
    sizes = torch.linspace(1.0, 2.0, 400)  # of every fraction of a bf16 step
    layer = nn.Linear(2, 400, bias=False)
    layer.weight.data = torch.stack([sizes, -sizes], dim=1)
    small = Int8Linear(layer)
    assert (sizes / small.scales.float() > 127).any()
    assert set(small.weight[:, 0].tolist()) <= {127, 126} and torch.equal(small.weight[:, 0], -small.weight[:, 1])
    assert ((restored(small) - layer.weight.double()).abs() <= small.scales.double()[:, None] / 2).all()


def test_scales_kept_finer_than_they_are_used_would_be_noticed() -> None:
    """The bug put back: rows rounded by fp32 scales, but multiplied by bf16 ones, are off by more than half a step."""
    layer = linear()
    small, rows = Int8Linear(layer), layer.weight.detach().float()
    exact = (rows.abs().amax(dim=1) / 127).clamp(min=1e-12)
    small.weight = (rows / exact[:, None]).round().to(torch.int8)
    assert ((restored(small) - layer.weight.double()).abs() > 0.6 * small.scales.double()[:, None]).any()


def test_weights_that_int8_holds_are_held_exactly() -> None:
    layer, draw = nn.Linear(64, 24, bias=False), torch.Generator().manual_seed(0)
    steps = torch.randint(-127, 128, (24, 64), generator=draw)
    steps[:, 7] = 127
    scales = 2.0 ** torch.randint(-6, 3, (24, 1), generator=draw)
    layer.weight.data = steps * scales
    small = Int8Linear(layer)
    assert torch.equal(small.weight, steps.to(torch.int8)) and torch.equal(small.scales[:, None].float(), scales)
    for rows in (torch.eye(64)[:DECODE_ROWS], torch.eye(64)):  # either kernel
        assert torch.equal(small(rows).float(), (rows @ layer.weight.T).detach())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 40])
def test_both_kernels_agree_with_fp64(rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear(bias=bias)
    small, x = Int8Linear(layer), torch.randn(rows, 48, generator=torch.Generator().manual_seed(1))
    exact = x.bfloat16().double() @ restored(small).T + (
        0 if layer.bias is None else layer.bias.detach().bfloat16().double()
    )
    packed: list[int] = []
    right = torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda x, *weight: packed.append(len(x)) or right(x, *weight))
    found = []
    for few in (DECODE_ROWS, 0, 1000):
        monkeypatch.setattr(quantize, "DECODE_ROWS", few)
        with torch.no_grad():
            found.append(small(x))
    assert packed == [rows] * (2 if rows <= DECODE_ROWS else 1)
    magnitude = x.double().norm(dim=1)[:, None] * restored(small).norm(dim=1) + 1e-9
    for y in found:
        assert y.dtype == torch.bfloat16 and y.shape == (rows, 33)
        assert ((y - exact).abs() <= 2**-7 * (magnitude + 1)).all()


def test_leading_dimensions_stay() -> None:
    small, x = Int8Linear(linear(bias=True)), torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(small(x), small(x.flatten(0, 1)).view(2, 3, 33), atol=0, rtol=0)


@pytest.mark.parametrize(
    "config", [{"tied": True}, {"tied": False, "bias": True, "norm": "layernorm", "positions": "learned"}]
)
def test_the_model_stays_as_it_was_and_only_linear_maps_are_int8(config: dict[str, Any]) -> None:
    size = {
        "size": "nano",
        "layers": 2,
        "width": 32,
        "heads": 4,
        "kv_heads": 2,
        "ff": 48,
        "vocab_size": 96,
        "context": 32,
    }
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(size | {"residual_init": "scaled"} | config))).eval()
    before = copy.deepcopy(model.state_dict())
    small = quantized(model)
    assert all(torch.equal(t, before[name]) and t.dtype == torch.float32 for name, t in model.state_dict().items())
    assert (model.head.weight is model.embedding.weight) == config["tied"]
    kinds = {name: type(module) for name, module in small.named_modules() if hasattr(module, "weight")}
    assert nn.Linear not in kinds.values() and kinds["head"] is Int8Linear and kinds["embedding"] is nn.Embedding
    assert sum(kind is Int8Linear for kind in kinds.values()) == 2 * 4 + 1
    assert torch.equal(small.embedding.weight, model.embedding.weight.bfloat16())
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in small.buffers()} == {torch.int8, torch.bfloat16}
    head: Any = small.head
    error = (restored(head) - model.head.weight.double()).abs()
    assert (error <= head.scales.double()[:, None]).all(), "half a step, and as much for bf16 on the way"


def test_a_compiled_map_of_few_rows_is_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in bf16; and only where no gradient is wanted, few rows are given and there is no bias."""
    kernels: list[str] = []
    sums = quantize.product_sums
    monkeypatch.setattr(quantize, "product_sums", lambda *args: kernels.append("sums") or sums(*args))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.manual_seed(0)
    layer, x = Linear(48, 33, bias=False), torch.randn(2, 1, 48, generator=torch.Generator().manual_seed(1))
    for model, given, tolerance in ((layer, x, 1e-6), (copy.deepcopy(layer).bfloat16(), x.bfloat16(), 2**-7)):
        with torch.no_grad():
            found = model(given)
        assert found.dtype == given.dtype
        torch.testing.assert_close(
            found.double(), given.double() @ model.weight.detach().double().T, atol=tolerance, rtol=tolerance
        )
    assert kernels == ["sums", "sums"]
    layer(x)
    with torch.no_grad():
        layer(x.expand(-1, DECODE_ROWS, -1))
        Linear(48, 33)(x)
    assert kernels == ["sums", "sums"]
