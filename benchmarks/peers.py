"""Language models and training loops as people write them, to measure ours beside: no framework, everything by hand.

`nano_loop` is the small GPT-2 of countless repositories, `modern_loop` what speed runs have made of it since.
"""

import math
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Optimizers = list[torch.optim.Optimizer]

TRIAL = 16  # steps of a copy that is thrown away, to see how long a step takes: as many as gengen's own budget takes


class NanoAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, bias: bool):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, bias: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attention = NanoAttention(width, heads, dropout, bias)
        self.up, self.out = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.out(F.gelu(self.up(self.norm2(x)))))


class NanoGPT(nn.Module):
    """GPT-2 in small: learned positions, layer norms, GELU, tied head, the initial weights of GPT-2."""

    def __init__(
        self, layers: int = 6, width: int = 384, heads: int = 6, context: int = 256, vocab: int = 4096,
        dropout: float = 0.0,
        bias: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(NanoBlock(width, heads, dropout, bias) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, bias=bias), nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if name.endswith("out.weight") else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); with labels, their mean cross-entropy."""
        x = self.dropout(self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class ModernBlock(nn.Module):
    """Grouped-query attention with QK-norm and rotary angles, then SwiGLU; both branches begin at zero."""

    def __init__(self, width: int, heads: int, kv_heads: int, ff: int, dropout: float):
        super().__init__()
        self.size = width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, h * self.size, bias=False) for h in (heads, kv_heads, kv_heads))
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up, self.down = (
            nn.Linear(*shape, bias=False) for shape in ((width, ff), (width, ff), (ff, width))
        )
        self.dropout = nn.Dropout(dropout)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for project in (self.q, self.k, self.v))
        q, k = (turn(F.rms_norm(part, (self.size,)), cos, sin) for part in (q, k))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cos, sin))
        h = self.norm2(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class Modern(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(
        self, layers: int = 4, width: int = 256, heads: int = 4, kv_heads: int = 2, ff: int = 704, context: int = 256,
        vocab: int = 2048,
        dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(ModernBlock(width, heads, kv_heads, ff, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        half = width // heads // 2
        angles = torch.arange(context)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 if name.startswith("tokens") else parameter.shape[1] ** -0.5)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); with labels, their mean cross-entropy."""
        x, T = self.tokens(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T])
        logits = F.linear(self.norm(x), self.tokens.weight)
        return logits if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class PlainMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), a matrix at a time."""

    def __init__(
        self, matrices: list[nn.Parameter], lr: float = 0.02, weight_decay: float = 0.05, momentum: float = 0.95
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = newton_schulz(p.grad.lerp(average, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    x = (g / (g.norm() + 1e-7)).bfloat16()
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if g.shape[0] > g.shape[1] else x).to(g.dtype)


class Loop:
    """A model, its optimizers and the step that everybody writes. `rate`: (step, steps) -> share of the peak learning
    rate.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Callable[[nn.Module], Optimizers],
        rate: Callable[[int, int], float],
        bf16: bool,
        compiled: bool,
    ):
        self.model, self.build, self.rate, self.bf16 = model, optimizers, rate, bf16
        self.network = torch.compile(model) if compiled else model
        self.initial = deepcopy(model.state_dict())
        self.restart()

    def restart(self) -> None:
        """Back to the first step; what is compiled stays."""
        self.model.load_state_dict(self.initial)
        self.optimizers = self.build(self.model)
        self.peaks = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, tokens: Tensor, labels: Tensor, step: int, steps: int) -> Tensor:
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * self.rate(step, steps)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.bf16):
            loss: Tensor = self.network(tokens, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run(self, data: np.ndarray, steps: int, seed: int = 0, horizon: int | None = None) -> list[float]:
        """Train on 16 windows of 256 a step, drawn at random with replacement. Returns when it began and when each
        step ended.
        """
        draws, times = torch.Generator().manual_seed(seed), [time.perf_counter()]
        for step in range(steps):
            self.step(*windows(data, 16, 256, draws), step, horizon or steps)
            times.append(time.perf_counter())
        return times

    def run_for(self, seconds: float, data: np.ndarray, seed: int = 0) -> tuple[int, float]:
        """Train for so much wall-clock; returns steps and seconds. Compiling comes before and counts nothing. How many
        steps will fit, the horizon of the schedule, is told by a trial whose weights are thrown away."""
        self.run(data, 2, seed)
        self.restart()
        spent = median([b - a for a, b in pairwise(self.run(data, TRIAL, seed, horizon=10_000))][TRIAL // 4 :])
        self.restart()
        times = self.run(data, max(TRIAL, int(seconds / spent)), seed)
        return len(times) - 1, times[-1] - times[0]


def windows(data: np.ndarray, rows: int, context: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and labels, (rows, context) int64 each, of windows that begin anywhere."""
    starts = torch.randint(len(data) - context, (rows,), generator=draws).tolist()
    spans = torch.from_numpy(np.stack([data[start : start + context + 1] for start in starts]).astype(np.int64))
    return spans[:, :-1].contiguous(), spans[:, 1:].contiguous()


def cosine(step: int, steps: int) -> float:
    """A warmup over the first twentieth, then half a cosine to a tenth."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def falling(step: int, steps: int) -> float:
    """A warmup over the first fiftieth; linearly to 0 over the second half."""
    return min(1.0, (step + 1) / max(1, steps // 50), 2 * (steps - step) / steps)


def adamw(parameters: Iterable[nn.Parameter], lr: float, fused: bool) -> torch.optim.Optimizer:
    """In two groups: matrices decay, vectors do not."""
    parameters = list(parameters)
    matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused)


def nano_loop(
    bf16: bool = False, compiled: bool = False, seed: int = 0, lr: float = 1e-3, fused: bool = False, **sizes: float
) -> Loop:
    """fused: that project fuses AdamW on CUDA alone."""
    torch.manual_seed(seed)
    network = NanoGPT(**sizes)  # type: ignore[arg-type]
    return Loop(network, lambda model: [adamw(model.parameters(), lr, fused)], cosine, bf16, compiled)


def modern_loop(bf16: bool = True, compiled: bool = True, seed: int = 0, lr: float = 3e-3, **sizes: float) -> Loop:
    def optimizers(model: nn.Module) -> Optimizers:
        hidden = {name: p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks")}
        rest = [p for name, p in model.named_parameters() if name not in hidden]
        return [PlainMuon(list(hidden.values())), adamw(rest, lr, fused=True)]

    torch.manual_seed(seed)
    return Loop(Modern(**sizes), optimizers, falling, bf16, compiled)  # type: ignore[arg-type]


class PlainPPO:
    """PPO on a causal language model of transformers, as it is written by hand (Ziegler et al. 2019): `generate`
    draws, passes over whole texts read their log-probabilities and values, then 2 epochs of 4 minibatches. Prompts are
    padded on the left.

    critic: a transformer without its head. scores: tokens of answers (B, length) -> rewards (B,).
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        critic: Any,
        length: int,
        scores: Callable[[Tensor], Tensor],
        bf16: bool = False,
    ):
        self.policy, self.reference, self.length, self.scores, self.bf16 = (
            policy,
            reference.requires_grad_(False),
            length,
            scores,
            bf16,
        )
        self.critic, self.value = critic, nn.Linear(critic.config.hidden_size, 1)
        self.critic_parameters = [*self.critic.parameters(), *self.value.parameters()]
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-4, eps=1e-5, weight_decay=0.0, fused=True)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic_parameters, lr=5e-4, eps=1e-5, weight_decay=0.0, fused=True
        )

    def log_probs(self, model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """Of each token of the answers, (B, length)."""
        places = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            found = model(
                tokens, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=self.length + 1
            )
        chosen: Tensor = (
            found.logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, -self.length :, None])[..., 0]
        )
        return chosen

    def values(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Of the state before each token of the answers, (B, length)."""
        places = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            features = self.critic(tokens, attention_mask=mask, position_ids=places, use_cache=False).last_hidden_state
        values: Tensor = self.value(features[:, -self.length - 1 : -1].float())[..., 0]
        return values

    def iteration(self, prompts: Tensor, mask: Tensor, beta: float = 0.05, lam: float = 0.95) -> None:
        with torch.no_grad():
            tokens = self.policy.generate(
                prompts,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=self.length,
                eos_token_id=None,
            )
            mask = torch.cat([mask, mask.new_ones(len(mask), self.length)], 1)
            old, reference = (self.log_probs(model, tokens, mask) for model in (self.policy, self.reference))
            values = self.values(tokens, mask)
            rewards = beta * (reference - old)
            rewards[:, -1] += self.scores(tokens[:, -self.length :])
            advantages, advantage, after = torch.zeros_like(values), torch.zeros(len(values)), torch.zeros(len(values))
            for t in reversed(range(self.length)):
                advantage = rewards[:, t] + after - values[:, t] + lam * advantage
                advantages[:, t], after = advantage, values[:, t]
            returns = advantages + values
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(2):
            for rows in torch.randperm(len(tokens)).chunk(4):
                self.update(tokens[rows], mask[rows], old[rows], values[rows], advantages[rows], returns[rows])

    def update(
        self,
        tokens: Tensor,
        mask: Tensor,
        old: Tensor,
        was: Tensor,
        advantages: Tensor,
        returns: Tensor,
        clip: float = 0.2,
    ) -> None:
        ratio = (self.log_probs(self.policy, tokens, mask) - old).exp()
        loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
        values = self.values(tokens, mask)
        kept = was + (values - was).clamp(-clip, clip)
        value_loss = torch.max((values - returns).square(), (kept - returns).square()).mean() / 2
        for term, optimizer, parameters in (
            (loss, self.optimizer, list(self.policy.parameters())),
            (value_loss, self.critic_optimizer, self.critic_parameters),
        ):
            optimizer.zero_grad()
            term.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
