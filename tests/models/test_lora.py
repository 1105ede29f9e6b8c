"""Low-rank adapters: equal to a plain implementation of ten lines, to their base at the start and without them, and
merged.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.checkpoints.layout import unique_state
from gengen.config.model import GPTConfig, LoRAConfig
from gengen.config.model.lora import linear_maps
from gengen.errors import UserError
from gengen.models.gpt import GPT
from gengen.models.kernels.linear import Int8Linear
from gengen.models.lora import LowRank, adapted_maps, add_adapters, merge_adapters, without_adapters
from gengen.models.reward import RewardModel

SHAPE: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ff": 48, "vocab_size": 100}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"qk_norm": False},
    "gpt2": {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "kv_heads": 4},
    "untied": {"tied": False},
}
TOKENS = torch.randint(100, (2, 24), generator=torch.Generator().manual_seed(1))


def network(kind: str = "llama", network: type[GPT] = GPT) -> GPT:
    """A network with no weight zero or one, as it might be after training."""
    torch.manual_seed(0)
    model = network(GPTConfig(context=32, **SHAPE | KINDS[kind]))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2 if p.dim() < 2 else p.shape[-1] ** -0.5)
    return model


def adapted(c: LoRAConfig, kind: str = "llama", b: float = 0.0) -> GPT:
    """Such a network with adapters, whose B are random where b is not 0."""
    model = network(kind)
    add_adapters(model, c)
    for _, _, linear in adapted_maps(model):
        for adapter in linear.adapters.values():
            assert isinstance(adapter, LowRank)
            nn.init.normal_(adapter.B, std=b) if b else None
    return model


class PlainLoRA(nn.Module):
    """x W^T + b + (alpha / r) x A^T B^T of one map, for each of the maps that lie in W row below row."""

    def __init__(self, linear: nn.Linear, pairs: list[tuple[Tensor, Tensor] | None], rows: list[int], scale: float):
        super().__init__()
        self.linear, self.pairs, self.rows, self.scale = linear, pairs, rows, scale

    def forward(self, x: Tensor) -> Tensor:
        y, first = F.linear(x, self.linear.weight, self.linear.bias), 0
        for pair, rows in zip(self.pairs, self.rows, strict=True):
            if pair is not None:
                update = self.scale * (x @ pair[0].T) @ pair[1].T
                y = y + F.pad(update, (first, y.shape[-1] - first - rows))
            first += rows
        return y


def pair_of(adapter: LowRank) -> tuple[Tensor, Tensor]:
    return adapter.A.detach().clone().requires_grad_(), adapter.B.detach().clone().requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stabilized", [False, True])
def test_it_computes_what_a_plain_implementation_does_and_so_do_its_gradients(kind: str, stabilized: bool) -> None:
    c = LoRAConfig(rank=4, alpha=6.0, rank_stabilized=stabilized, targets="q,v,mlp.out,up")
    model, plain = adapted(c, kind, b=0.3), network(kind)
    scale, pairs = 6 / 2 if stabilized else 6 / 4, {}
    q = 32
    kv = 32 if kind == "gpt2" else 16
    inner = ("up", [None, "up"], [48, 48]) if kind != "gpt2" else ("up", ["up"], [48])
    for i, (block, ours) in enumerate(zip(plain.blocks, model.blocks, strict=True)):
        for part, name, maps, rows in [
            ("attention", "qkv", ["q", None, "v"], [q, kv, kv]),
            ("mlp", "gate_up" if kind != "gpt2" else "up", *inner[1:]),
            ("mlp", "out", ["out"], [32]),
        ]:
            own = getattr(getattr(ours, part), name).adapters
            assert sorted(own) == sorted(one for one in maps if one)
            taken = [pair_of(own[one]) if one else None for one in maps]
            pairs |= {(i, f"{part}.{name}", one): pair for one, pair in zip(maps, taken, strict=True) if one}
            setattr(getattr(block, part), name, PlainLoRA(getattr(getattr(block, part), name), taken, rows, scale))
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), atol=1e-5, rtol=0)
    for one in (model, plain):
        one(TOKENS, labels=TOKENS.roll(-1, 1)).backward()
    for (i, module, one), (A, B) in pairs.items():
        own = model.blocks[i].get_submodule(module).adapters[one]  # type: ignore[union-attr, index]
        for ours_grad, theirs in ((own.A.grad, A.grad), (own.B.grad, B.grad)):  # type: ignore[union-attr]
            torch.testing.assert_close(ours_grad, theirs, atol=1e-6, rtol=1e-5)
            assert theirs.abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_its_base_bit_for_bit(kind: str) -> None:
    model, base = adapted(LoRAConfig(rank=4), kind), network(kind)
    assert torch.equal(model(TOKENS), base(TOKENS))
    assert all(adapter.A.std() > 0.05 for _, _, m in adapted_maps(model) for adapter in m.adapters.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_without_its_adapters_it_is_its_base_and_shares_every_weight(precision: str) -> None:
    c = LoRAConfig(rank=4, base_precision=precision)
    untouched, model = adapted(c), adapted(c, b=0.3)
    base = without_adapters(model)
    assert not torch.equal(base(TOKENS), model(TOKENS))
    assert torch.equal(base(TOKENS), untouched(TOKENS))
    if precision == "fp32":
        assert torch.equal(base(TOKENS), network()(TOKENS))
    storages = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert all(tensor.data_ptr() in storages for tensor in base.state_dict().values())
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_computes_the_same(kind: str) -> None:
    model, merged = adapted(LoRAConfig(rank=4), kind, b=0.1), adapted(LoRAConfig(rank=4), kind, b=0.1)
    merged.load_state_dict(model.state_dict())
    merge_adapters(merged)
    assert unique_state(merged).keys() == unique_state(network(kind)).keys()
    torch.testing.assert_close(merged.double()(TOKENS), model.double()(TOKENS), atol=1e-6, rtol=0)


def test_merging_an_int8_base_keeps_what_the_adapter_was_trained_on() -> None:
    """Of the base as it was rounded: that of the checkpoint would be another function."""
    model = adapted(LoRAConfig(rank=4, base_precision="int8"), b=0.1)
    assert isinstance(model.blocks[0].attention.qkv.base, Int8Linear)  # type: ignore[union-attr]
    expected = model(TOKENS).float()
    merge_adapters(model)
    rounded = (model(TOKENS) - expected).norm() / expected.norm()
    assert rounded < 0.02  # activations are bf16 in one and fp32 in the other
    assert model.embedding.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_only_what_targets_name_is_trained_and_moves(precision: str) -> None:
    model = adapted(LoRAConfig(rank=2, targets="v,gate", base_precision=precision))
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    names = {f"blocks.{i}.{m}.{p}" for i in (0, 1) for m in ("attention.qkv.adapters.v", "mlp.gate_up.adapters.gate")
             for p in "AB"}  # fmt: skip
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names == unique_state(model).keys()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first moves B alone, as A has no gradient while B is 0
        model(TOKENS, labels=TOKENS.roll(-1, 1)).div(48).backward()
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == names


def test_a_reward_model_trains_its_head_beside_the_adapter() -> None:
    model = network("llama", RewardModel)
    add_adapters(model, LoRAConfig(rank=2, targets="q", base_precision="bf16"))
    own = {name for name in unique_state(model) if "adapters" not in name}
    assert own == {"value.weight", "value.bias", "gain", "bias"}
    assert (
        model.get_parameter("value.weight").requires_grad
        and model.get_parameter("value.weight").dtype == torch.float32
    )


def test_dropout_is_of_the_adapter_and_in_training_alone() -> None:
    model = adapted(LoRAConfig(rank=4, dropout=0.5), b=0.3)
    assert not torch.equal(model(TOKENS), model(TOKENS))
    assert torch.equal(model.eval()(TOKENS), adapted(LoRAConfig(rank=4), b=0.3)(TOKENS))
    started = adapted(LoRAConfig(rank=4, dropout=0.5))
    assert torch.equal(started(TOKENS), network()(TOKENS))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all", linear_maps("swiglu")),
        ("out", {"attention.out": ["out"], "mlp.out": ["out"]}),
        ("mlp.out, k", {"attention.qkv": ["k"], "mlp.out": ["out"]}),
        ("gate_up,attention.q", {"attention.qkv": ["q"], "mlp.gate_up": ["gate", "up"]}),
    ],
)  # fmt: skip
def test_targets_name_maps_or_what_they_are_part_of(targets: str, expected: dict[str, list[str]]) -> None:
    assert LoRAConfig(rank=1, targets=targets).adapted("swiglu") == expected


def test_unknown_targets_are_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"targets=q,o_proj,gate: o_proj, gate is no map .* it has all, q, qkv.* up"):
        LoRAConfig(rank=1, targets="q,o_proj,gate").adapted("gelu")
    with pytest.raises(UserError, match="nothing is no map"):
        LoRAConfig(rank=1, targets=" ,").adapted("gelu")
