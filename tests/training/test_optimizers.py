"""Groups, schedules, and the step that changes nothing."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from gengen.config.train import OptimConfig
from gengen.training.optim.groups import build_optimizer, rate


def test_adamw_by_hand() -> None:
    """Two steps of the fused optimizer against Loshchilov & Hutter's algorithm 2, written out."""
    c = OptimConfig(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.01)
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = build_optimizer(layer, c)
    w, m, v = 2.0, 0.0, 0.0
    for t, g in enumerate([0.5, -1.5], start=1):
        layer.weight.grad = torch.tensor([[g]])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w * (1 - 0.1 * 0.01) - 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.95**t)) + 1e-8)
        assert layer.weight.item() == pytest.approx(w, rel=1e-6)


def test_a_step_found_not_finite_changes_neither_weight_nor_moment() -> None:
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(layer, OptimConfig())
    for found in (0.0, 1.0):
        for p in layer.parameters():
            p.grad = torch.full_like(p, math.nan if found else 1.0)
        optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
        if not found:
            optimizer.step()
            before = [t.clone() for p in layer.parameters() for t in (p.detach(), *optimizer.state[p].values())]
    optimizer.step()
    after = [t for p in layer.parameters() for t in (p.detach(), *optimizer.state[p].values())]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def schedule(name: str, steps: int = 100, **kwargs: float) -> list[float]:
    c = OptimConfig(schedule=name, **kwargs)  # type: ignore[arg-type]
    return [rate(step, steps, c) for step in range(steps)]


def test_warmup_rises_from_above_zero_to_the_peak() -> None:
    for name in ("wsd", "cosine", "constant"):
        r = schedule(name, warmup_ratio=0.1, decay_ratio=0.5)
        assert r[:10] == pytest.approx([0.1 * k for k in range(1, 11)]) and max(r) == 1.0 and min(r) > 0


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    r = schedule("wsd", warmup_ratio=0.1, decay_ratio=0.4, final_lr_ratio=0.05)
    assert r[10:60] == [1.0] * 50
    falls = [a - b for a, b in pairwise(r[60:])]
    assert falls == pytest.approx([0.95 / 40] * len(falls)) and r[-1] == pytest.approx(0.05 + 0.95 / 40)


def test_cosine_by_hand() -> None:
    r = schedule("cosine", warmup_ratio=0.1, final_lr_ratio=0.2)
    assert r[55] == pytest.approx(0.2 + 0.8 * 0.5) and r[10] == 1.0
    assert r[-1] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 89 / 90)) / 2)


def test_a_run_of_one_step_has_a_rate() -> None:
    assert all(rate(0, 1, OptimConfig(schedule=name)) > 0 for name in ("wsd", "cosine", "constant"))
