"""Muon against singular values, against a step written out, and against torch's AdamW for what is not its own."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gengen.cli import main
from gengen.config.model import GPTConfig
from gengen.config.train import OptimConfig
from gengen.hardware import has_bf16
from gengen.models.gpt import GPT
from gengen.training.optim.groups import build_optimizer, parameter_groups, rate
from gengen.training.optim.muon import Muon, orthogonalized

SMALL = {
    "size": "nano",
    "layers": 2,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "ff": 48,
    "vocab_size": 96,
    "context": 32,
}
MUON = OptimConfig(name="muon", lr=0.01, muon_lr=0.05, momentum=0.9, weight_decay=0.2, muon_weight_decay=0.3, eps=1e-6)

EXACT = replace(MUON, muon_precision="fp32")  # formulas can be compared to more than two digits
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_singular_values(x: Tensor) -> Tensor:
    """What five steps of the iteration make of a matrix: its singular vectors stay, and each value goes through the
    quintic.
    """
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag_embed(s) @ v


# --- the iteration


def spread(rows: int, columns: int, seed: int) -> Tensor:
    """A matrix with singular values from 1 to 1/20."""
    u, _, v = torch.linalg.svd(matrix(rows, columns, seed=seed), full_matrices=False)
    return 300 * u @ torch.diag(torch.logspace(0, -1.3, min(rows, columns))) @ v


@pytest.mark.parametrize(
    "shape", [(96, 24), (24, 96), (40, 40), (1, 30), (30, 1)], ids=["tall", "wide", "square", "a row", "a column"]
)
def test_singular_values_end_near_one(shape: tuple[int, int]) -> None:
    alone = [spread(*shape, seed=seed) for seed in range(3)]
    found = orthogonalized(torch.stack(alone))
    assert found.shape == (3, *shape) and found.dtype == torch.bfloat16
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.6 and values.max() < 1.25
    for one, x in zip(found, alone, strict=True):
        assert torch.equal(orthogonalized(x), one), "a stack is done matrix by matrix"
        exact = by_singular_values(x)
        assert (one - exact).norm() < 0.06 * exact.norm()
    assert not orthogonalized(torch.zeros(shape)).any()


@pytest.mark.parametrize("shape", [(3, 96, 24), (2, 3, 24, 96), (40, 40)])
def test_the_iteration_is_a_quintic_of_the_singular_values(shape: tuple[int, ...]) -> None:
    x = matrix(*shape).double()
    found = orthogonalized(x, dtype=torch.float64)
    torch.testing.assert_close(found, by_singular_values(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(orthogonalized(x, dtype=torch.float32).double(), found, atol=2e-5, rtol=0)
    assert orthogonalized(x).dtype == torch.bfloat16  # by default rounded as its authors do


def test_precision_is_recorded_and_is_what_the_hardware_is_faster_in(tiny: list[str], tmp_path: Path) -> None:
    """A run of optim=muon settles it; its configs of before, without a word of it, are of bf16."""
    assert main(["train", *tiny, "optim=muon", f"runs_dir={tmp_path}", "run=r", "trainer.max_steps=2"]) == 0
    recorded = json.loads((tmp_path / "r" / "config.json").read_text())["optim"]["muon_precision"]
    assert recorded == ("bf16" if has_bf16("cpu") else "fp32") and OptimConfig().muon_precision == "bf16"
    assert built(Maps(), replace(MUON, muon_precision=recorded)).dtype == DTYPES[recorded]


def test_the_norm_is_that_of_each_matrix() -> None:
    """The bug put back: a stack divided by the norm of all, which leaves the small ones short of 1."""
    pair = torch.stack([spread(24, 24, seed=0), 1e-4 * spread(24, 24, seed=0)])
    torch.testing.assert_close(orthogonalized(pair)[1], orthogonalized(pair)[0], atol=0.03, rtol=0)
    assert torch.linalg.svdvals(orthogonalized(pair.view(48, 24)).float()[24:]).max() < 0.1


# --- a step


class Maps(nn.Module):
    """A tall, a wide and a square map inside blocks, two of them of one shape; an embedding and a bias outside."""

    def __init__(self, seed: int = 0):
        super().__init__()
        shapes = {"tall": (48, 12), "also": (48, 12), "wide": (12, 48), "square": (20, 20)}
        self.blocks = nn.ParameterDict(
            {name: nn.Parameter(matrix(*s, seed=seed + i)) for i, (name, s) in enumerate(shapes.items())}
        )
        self.embedding, self.bias = (
            nn.Parameter(matrix(30, 12, seed=seed + 9)),
            nn.Parameter(matrix(12, seed=seed + 10)),
        )


def set_gradients(model: nn.Module, seed: int) -> dict[str, Tensor]:
    gradients = {name: matrix(*p.shape, seed=100 * seed + i) for i, (name, p) in enumerate(model.named_parameters())}
    for name, p in model.named_parameters():
        p.grad = gradients[name].clone()
    return gradients


def built(model: nn.Module, c: OptimConfig = MUON) -> Muon:
    """The optimizer with its groups' rates set as a run sets them."""
    optimizer = build_optimizer(model, c, GPTConfig.hidden_maps)
    assert isinstance(optimizer, Muon)
    for group in optimizer.param_groups:
        group["lr"] = c.muon_lr if group["muon"] else c.peak_lr
    return optimizer


def test_three_steps_by_hand() -> None:
    """w <- (1 - lr wd) w - lr sqrt(max(1, m / n)) O(g + b (v - g)), v <- b v + (1 - b) g, in fp64 and by singular
    values.
    """
    model = Maps()
    optimizer, w = built(model, EXACT), {name: p.detach().double() for name, p in model.blocks.items()}
    v = {name: torch.zeros_like(x) for name, x in w.items()}
    factor = {"tall": 2.0, "also": 2.0, "wide": 1.0, "square": 1.0}
    for step in range(3):
        gradients = set_gradients(model, step)
        optimizer.step()
        for name, x in w.items():
            g = gradients[f"blocks.{name}"].double()
            v[name] = 0.9 * v[name] + 0.1 * g
            ahead = g + 0.9 * (v[name] - g)
            w[name] = x * (1 - 0.05 * 0.3) - 0.05 * factor[name] * by_singular_values(ahead)
            torch.testing.assert_close(model.blocks[name].detach().double(), w[name], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                optimizer.state[model.blocks[name]]["momentum"].double(), v[name], atol=1e-6, rtol=1e-5
            )


def test_decay_is_decoupled() -> None:
    """A gradient of zero decays by lr wd and moves nowhere; and the rate of the decay does not know the shape."""
    model = Maps()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    built(model).step()
    kept = {name: 1 - 0.05 * 0.3 for name in before} | {"embedding": 1 - 0.01 * 0.2, "bias": 1.0}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * kept[name], atol=1e-7, rtol=1e-6)


def test_a_parameter_without_a_gradient_stays() -> None:
    model = Maps()
    set_gradients(model, 0)
    model.blocks["tall"].grad = model.embedding.grad = None
    before = [model.blocks["tall"].detach().clone(), model.embedding.detach().clone()]
    built(model).step()
    assert torch.equal(model.blocks["tall"], before[0]) and torch.equal(model.embedding, before[1])


def stacked_update(parts: list[int] | None) -> tuple[Tensor, list[Tensor]]:
    """How a (32, 16) matrix moves by a gradient whose second part is the smaller by far; and how its parts move as
    matrices.
    """
    gradient = torch.cat([matrix(16, 16, seed=1), 1e-3 * matrix(8, 16, seed=2), matrix(8, 16, seed=3)])
    c = OptimConfig(name="muon", muon_weight_decay=0.0, muon_lr=1.0)

    def moved(rows: Tensor, parts: list[int] | None) -> Tensor:
        model = nn.Module()
        model.blocks = nn.ParameterList([torch.zeros(rows.shape)])
        (p,) = model.parameters()
        if parts:
            setattr(p, "stacked_rows", parts)
        p.grad = rows.clone()
        built(model, c).step()
        return -p.detach()

    return moved(gradient, parts), [moved(rows, None) for rows in gradient.split([16, 8, 8])]


def test_parts_are_orthogonalised_by_themselves() -> None:
    together, alone = stacked_update([16, 8, 8])
    assert torch.equal(together, torch.cat(alone))
    assert all(torch.linalg.svdvals(rows).min() > 0.6 for rows in together.split([16, 8, 8]))


def test_a_stack_taken_for_one_map_would_be_noticed() -> None:
    """The bug put back: the small part hardly moves beside the large ones, and the factor is that of the whole."""
    together, alone = stacked_update(None)
    assert torch.linalg.svdvals(together[16:24]).max() < 0.1 < torch.linalg.svdvals(alone[1]).min()
    assert not torch.allclose(together, torch.cat(alone), atol=0.1)


def test_what_is_stacked_in_the_model_has_parts() -> None:
    model = GPT(GPTConfig(**SMALL))
    parts = {name: getattr(p, "stacked_rows") for name, p in model.named_parameters() if hasattr(p, "stacked_rows")}
    assert parts == {
        f"blocks.{layer}.{name}.weight": rows
        for layer in range(2)
        for name, rows in {"attention.qkv": [32, 16, 16], "mlp.gate_up": [48, 48]}.items()
    }


# --- groups


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize(
    "config",
    [{"tied": True}, {"tied": False, "bias": True, "norm": "layernorm", "positions": "learned", "mlp": "gelu"}],
)
def test_every_parameter_is_in_exactly_one_group(name: str, config: dict[str, Any]) -> None:
    model = GPT(GPTConfig(**(SMALL | config)))
    c = OptimConfig(name=name, weight_decay=0.2, muon_weight_decay=0.3)
    groups: Any = parameter_groups(model, c, GPTConfig.hidden_maps)
    named = [(key, p) for group in groups for key, p in group["params"]]
    assert sorted(key for key, _ in named) == sorted(key for key, _ in model.named_parameters())
    assert len({id(p) for _, p in named}) == len(named) == len(list(model.parameters()))
    for group in groups:
        for key, p in group["params"]:
            outside = not key.startswith("blocks") or name == "adamw"
            wanted = (False, 0.0) if p.dim() < 2 else (False, 0.2) if outside else (True, 0.3)
            assert (group.get("muon", False), group["weight_decay"]) == wanted
    outer = {key for key, p in named if p.dim() == 2 and not key.startswith("blocks")}
    assert outer == (
        {"embedding.weight"} if config["tied"] else {"embedding.weight", "head.weight", "positions.weight"}
    )


def test_what_is_not_muons_moves_bitwise_as_torchs_fused_adamw_moves_it() -> None:
    torch.manual_seed(0)
    one, other = GPT(GPTConfig(**SMALL)), GPT(GPTConfig(**SMALL))
    other.load_state_dict(one.state_dict())
    ours, theirs = built(one), build_optimizer(other, OptimConfig(**(vars(MUON) | {"name": "adamw"})))
    assert isinstance(theirs, torch.optim.AdamW)
    for step in range(3):
        for model, optimizer in ((one, ours), (other, theirs)):
            set_gradients(model, step)
            optimizer.step()
    twins = dict(other.named_parameters())
    for name, p in one.named_parameters():
        muons = name.startswith("blocks") and p.dim() == 2
        assert torch.equal(p, twins[name]) != muons
        if muons:
            assert set(ours.state[p]) == {"momentum"}
        else:
            mine, torchs = ours.state[p], theirs.state[twins[name]]
            assert mine.keys() == torchs.keys() and all(torch.equal(mine[key], torchs[key]) for key in mine)
            assert mine["step"].item() == 3


# --- state


def everything(model: nn.Module, optimizer: Muon) -> list[Tensor]:
    return [t.clone() for p in model.parameters() for t in (p.detach(), *optimizer.state[p].values())]


def test_a_saved_state_goes_on_bitwise() -> None:
    model = Maps()
    optimizer = built(model)
    for step in range(2):
        set_gradients(model, step)
        optimizer.step()
    twin = Maps(seed=50)
    twin.load_state_dict(model.state_dict())
    again = built(twin, OptimConfig(name="muon", lr=9.0, momentum=0.1))
    again.load_state_dict(json_and_tensors(optimizer.state_dict()))
    for step in range(2, 4):
        for m, o in ((model, optimizer), (twin, again)):
            set_gradients(m, step)
            o.step()
    torch.testing.assert_close(everything(twin, again), everything(model, optimizer), atol=0, rtol=0)


def json_and_tensors(state: dict[str, Any]) -> Any:
    """As it comes back from a checkpoint."""
    from gengen.checkpoints.layout import pack, unpack

    tensors: dict[str, Tensor] = {}
    tree = unpack(json.loads(json.dumps(pack(state, tensors))), {name: t.clone() for name, t in tensors.items()})
    return tree | {"state": {int(key): value for key, value in tree["state"].items()}}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_found_not_finite_changes_nothing(bad: float) -> None:
    model = Maps()
    optimizer = built(model)
    set_gradients(model, 0)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    before = everything(model, optimizer)
    for everywhere in (True, False):
        set_gradients(model, 1)
        for p in model.parameters():
            assert p.grad is not None
            p.grad.view(-1)[slice(None) if everywhere else slice(3, 4)] = bad
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        torch.testing.assert_close(everything(model, optimizer), before, atol=0, rtol=0)
    set_gradients(model, 1)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    after = everything(model, optimizer)
    assert all(t.isfinite().all() and not torch.equal(t, old) for t, old in zip(after, before, strict=True))


def test_a_bad_first_step_leaves_no_trace() -> None:
    model, twin = Maps(), Maps()
    optimizer, good = built(model), built(twin)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for m, o in ((model, optimizer), (twin, good)):
        set_gradients(m, 0)
        o.found_inf = torch.tensor(0.0)
        o.step()
    torch.testing.assert_close(everything(model, optimizer), everything(twin, good), atol=0, rtol=0)


# --- a run


@pytest.fixture(scope="module")
def settings(tiny: list[str]) -> list[str]:
    steps = [
        "trainer.max_steps=12",
        "trainer.save_every=50",
        "trainer.eval_every=50",
        "trainer.sample_every=50",
        "trainer.log_every=1",
    ]
    return [*tiny, "optim=muon", "optim.muon_lr=0.03", "model.dropout=0.1", *steps]


@pytest.fixture(scope="module")
def straight(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *settings, f"runs_dir={runs}", "run=straight"]) == 0
    return runs / "straight"


def files(run: Path, step: int) -> list[bytes]:
    return [
        (run / "checkpoints" / f"step-{step:09d}" / f"{name}.safetensors").read_bytes()
        for name in ("model", "optimizer")
    ]


def test_stopped_and_resumed_equals_never_stopped(settings: list[str], straight: Path, tmp_path: Path) -> None:
    assert main(["train", *settings, f"runs_dir={tmp_path}", "run=r", "stop_at=7"]) == 0
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    assert files(tmp_path / "r", 12) == files(straight, 12) != files(tmp_path / "r", 7)
    moments = load_file(tmp_path / "r" / "checkpoints" / "step-000000012" / "optimizer.safetensors")
    assert sum(name.endswith("momentum") for name in moments) == 2 * 4  # of each layer's four matrices
    assert {t.item() for name, t in moments.items() if name.endswith("step")} == {12.0}


def test_a_forgotten_momentum_would_be_noticed(
    settings: list[str], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug put back: Muon's state is not restored."""
    assert main(["train", *settings, f"runs_dir={tmp_path}", "run=r", "stop_at=7"]) == 0
    right = Muon.load_state_dict

    def forgetful(self: Muon, state: Any) -> None:
        right(self, state)
        for kept in self.state.values():
            if "momentum" in kept:
                kept["momentum"].zero_()

    monkeypatch.setattr(Muon, "load_state_dict", forgetful)
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    assert files(tmp_path / "r", 12) != files(straight, 12)


def test_both_rates_follow_one_schedule(settings: list[str], tmp_path: Path) -> None:
    assert main(["train", *settings, f"runs_dir={tmp_path}", "run=r", "stop_at=9"]) == 0
    groups = json.loads((tmp_path / "r" / "checkpoints" / "step-000000009" / "optimizer.json").read_text())[
        "param_groups"
    ]
    share = rate(8, 12, OptimConfig())
    assert 0 < share < 1
    assert [group["lr"] for group in groups] == pytest.approx([3e-3 * share, 3e-3 * share, 0.03 * share])
    assert [group["muon"] for group in groups] == [False, False, True]


def test_on_cuda_averages_move_in_grouped_calls_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, found = [(8, 4), (8, 4), (3, 5)], []
    for cuda in (False, True):
        draws = torch.Generator().manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(shape, generator=draws)) for shape in shapes]
        optimizer = Muon([{"params": matrices, "muon": True, "weight_decay": 0.1}], lr=0.1, dtype=torch.float32)
        monkeypatch.setattr("gengen.training.optim.muon.are_grouped", lambda averages, cuda=cuda: cuda)
        for bad in (0.0, 1.0, 0.0):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=draws) / (1 - bad)
            optimizer.found_inf = torch.tensor(bad)
            optimizer.step()
        found.append([matrix.detach() for matrix in matrices])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
