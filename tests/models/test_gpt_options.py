"""Every architecture option of the language model, against the same model written a second time without any of its
means.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention.flex_attention import BlockMask

from gengen.config.model import GPTConfig
from gengen.errors import UserError
from gengen.models import gpt
from gengen.models.gpt import GPT, rotary_frequencies
from gengen.models.kernels import attention as kernels
from gengen.models.kernels.attention import attend_bf16_cpu, attend_decode_cpu, packed_mask

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
LLAMA3 = {
    "rope_scaling": "llama3",
    "rope_context": 64,
    "rope_factor": 8.0,
}  # of a head of 8, wavelengths 6, 63, 628 and 6283


def lively(**config: Any) -> GPT:
    """A small model in evaluation mode in which no weight is zero or one, as it might be after training."""
    model, draw = GPT(GPTConfig(**(SMALL | config))).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2)
            )
    return model


def some_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, 96, shape, generator=torch.Generator().manual_seed(seed))


def stretched(frequency: float, c: GPTConfig) -> float:
    """A frequency as rope_scaling changes it; llama3 by cases, as in the Llama 3.1 release."""
    if c.rope_scaling is None:
        return frequency
    if c.rope_scaling == "linear":
        return frequency / c.rope_factor
    wavelength = 2 * math.pi / frequency
    if wavelength < c.rope_context / c.rope_high:
        return frequency
    if wavelength > c.rope_context / c.rope_low:
        return frequency / c.rope_factor
    smooth = (c.rope_context / wavelength - c.rope_low) / (c.rope_high - c.rope_low)
    return (1 - smooth) * frequency / c.rope_factor + smooth * frequency


def naive_logits(model: GPT, tokens: list[int]) -> Tensor:
    """One text, fp64, a loop over layers, positions and heads; rotations as complex numbers; several documents one by
    one.
    """
    c, w = model.config, {name: weight.double() for name, weight in model.state_dict().items()}
    if c.document_token is not None and c.document_token in tokens[1:]:
        cut = tokens.index(c.document_token, 1)
        return torch.cat([naive_logits(model, tokens[:cut]), naive_logits(model, tokens[cut:])])
    H, KV, D = c.heads or 0, c.kv_heads or 0, c.head_size or 0

    def linear(name: str, x: Tensor) -> Tensor:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", torch.zeros(()))

    def norm(name: str, x: Tensor) -> Tensor:
        if c.norm == "layernorm" and x.numel() == c.width:
            x = x - x.sum() / len(x)
        return w[f"{name}.weight"] * x / torch.sqrt((x * x).sum() / len(x) + c.norm_eps) + w.get(
            f"{name}.bias", torch.zeros(())
        )

    def turned(x: Tensor, position: int) -> Tensor:
        if c.positions == "learned":
            return x
        angles = [position * stretched(c.rope_theta ** (-2 * i / D), c) for i in range(D // 2)]
        z = torch.complex(x[: D // 2], x[D // 2 :]) * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))
        return torch.cat([z.real, z.imag])

    def hidden(name: str, x: Tensor) -> Tensor:
        if c.mlp == "swiglu":
            gate, up = linear(f"{name}.gate_up", x).split(c.ff or 0)
            return gate / (1 + torch.exp(-gate)) * up
        x = linear(f"{name}.up", x)
        if c.mlp == "relu2":
            return torch.where(x > 0, x * x, 0.0)
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    stream = [w["embedding.weight"][token] for token in tokens]
    if c.positions == "learned":
        stream = [x + w["positions.weight"][t] for t, x in enumerate(stream)]
    for layer in range(c.layers or 0):
        b = f"blocks.{layer}"
        window = c.window if c.window and c.window_pattern[layer % len(c.window_pattern)] == "S" else len(tokens)
        qkv = [linear(f"{b}.attention.qkv", norm(f"{b}.attention_norm", x)).view(-1, D) for x in stream]
        for t in range(len(stream)):
            heads = []
            for h in range(H):
                g = H + h // (H // KV)
                query, keys = qkv[t][h], [qkv[s][g] for s in range(t + 1)]
                if c.qk_norm:
                    query, keys = (
                        norm(f"{b}.attention.query_norm", query),
                        [norm(f"{b}.attention.key_norm", key) for key in keys],
                    )
                seen = range(max(0, t - window + 1), t + 1)
                scores = torch.stack([turned(query, t) @ turned(keys[s], s) / math.sqrt(D) for s in seen])
                heads.append(
                    sum(
                        weight * qkv[s][g + KV]
                        for weight, s in zip(scores.exp() / scores.exp().sum(), seen, strict=True)
                    )
                )
            x = stream[t] + linear(f"{b}.attention.out", torch.cat(heads))  # type: ignore[arg-type]
            stream[t] = x + linear(f"{b}.mlp.out", hidden(f"{b}.mlp", norm(f"{b}.mlp_norm", x)))
    logits = torch.stack([linear("head", norm("norm", x)) for x in stream])[:, : c.vocab_size]
    return logits if c.logit_softcap is None else c.logit_softcap * torch.tanh(logits / c.logit_softcap)


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learned": {"positions": "learned"},
    "layernorm": {"norm": "layernorm", "norm_eps": 0.1},
    "rmsnorm": {"norm_eps": 0.1},
    "biases": {"bias": True},
    "layernorm and biases": {"norm": "layernorm", "bias": True},
    "gelu": {"mlp": "gelu", "bias": True},
    "relu2": {"mlp": "relu2"},
    "no qk_norm": {"qk_norm": False},
    "wide heads": {"head_size": 12},
    "odd heads": {"head_size": 5, "positions": "learned"},
    "softcap": {"logit_softcap": 0.7},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "llama3": LLAMA3,
    "window": {"window": 3, "window_pattern": "SL"},
    "documents": {"document_token": 0},
    "learned documents": {"document_token": 0, "positions": "learned", "window": 2, "window_pattern": "LS"},
    "gpt2": {
        "positions": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "qk_norm": False, "kv_heads": 4,
    },
    "all at once": {
        "norm": "layernorm", "bias": True, "mlp": "relu2", "qk_norm": False, "head_size": 10, "kv_heads": 1,
        "logit_softcap": 2.0,
        "window": 2, "rope_theta": 300.0, "document_token": 0,
        "tied": False, "vocab_size": 91, **LLAMA3,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_equals_a_naive_model(name: str) -> None:
    model, tokens = lively(**OPTIONS[name]), some_tokens(11).clamp(max=90)
    tokens[[0, 6, 8]] = 0
    with torch.no_grad():
        found = model(tokens[None])[0].double()
    torch.testing.assert_close(found, naive_logits(model, tokens.tolist()), atol=2e-5, rtol=1e-5)
    if name != "defaults":
        plain = lively(**{key: value for key, value in OPTIONS[name].items() if key in ("tied", "vocab_size")})
        assert (model(tokens[None]) - plain(tokens[None])).abs().max() > 0.05, "the option makes no difference here"


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
def test_stretched_frequencies(scaling: str) -> None:
    """Of Llama 3.1 8B; llama3 with all three of its cases."""
    c = GPTConfig(width=4096, heads=32, rope_theta=500_000.0, rope_scaling=scaling).resolved()
    found = rotary_frequencies(c, torch.device("cpu")).double()
    plain = [500_000.0 ** (-i / 64) for i in range(64)]
    expected = torch.tensor([stretched(f, c) for f in plain], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0, rtol=2e-6)
    kept, divided = (
        [f == s for f, s in zip(plain, expected, strict=True)],
        [s == f / 8 for f, s in zip(plain, expected, strict=True)],
    )
    assert (sum(kept), sum(divided)) == ((29, 29) if scaling == "llama3" else (0, 64))


# --- who sees whom


def seen_by_layer(model: GPT, tokens: Tensor) -> list[list[list[bool]]]:
    """By gradient: layer -> query -> whether each key reaches its attention; of the first row."""
    caught: list[Any] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: caught.append((module.attention, *args)))
    model(tokens)
    found = []
    for attention, x, rotary, visible, _ in caught:
        x = x.detach().requires_grad_()
        y = attention(x, rotary, visible)[0]
        found.append(
            [
                (torch.autograd.grad(at.square().sum(), x, retain_graph=True)[0][0].abs().sum(-1) > 0).tolist()
                for at in y
            ]
        )
    return found


def test_a_window_of_w_is_w_keys_itself_included() -> None:
    for w in (1, 2, 4):
        sliding, whole = seen_by_layer(lively(window=w, window_pattern="SL"), some_tokens(1, 9))
        assert sliding == [[t - w < s <= t for s in range(9)] for t in range(9)] and sum(sliding[-1]) == w
        assert whole == [[s <= t for s in range(9)] for t in range(9)]


def test_a_window_off_by_one_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: FlashAttention's left=w, which keeps w + 1."""
    monkeypatch.setattr(kernels, "is_visible", lambda query, key, w: (key <= query) & (query - key <= (w or 99)))
    assert sum(seen_by_layer(lively(window=4), some_tokens(1, 9))[0][-1]) == 5
    model, tokens = lively(window=3), some_tokens(9)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            model(tokens[None])[0].double(), naive_logits(model, tokens.tolist()), atol=2e-5, rtol=1e-5
        )


def test_the_pattern_repeats_over_the_layers() -> None:
    assert GPTConfig(layers=6, window=8, window_pattern="SSL").windows() == [8, 8, None, 8, 8, None]
    assert GPTConfig(layers=3, window=8).windows() == [8, 8, 8]
    assert GPTConfig(layers=3, window_pattern="SL").windows() == [None, None, None]


DOCUMENTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned": {"positions": "learned"},
    "rotary, window": {"window": 3, "window_pattern": "SL"},
    "learned, window": {"positions": "learned", "window": 3},
}
BEGINS = [[0, 4, 5, 15], [3, 19], [7, 8, 9]]  # where documents begin in three windows of 20 tokens


def packed() -> tuple[Tensor, list[list[Tensor]]]:
    """Three windows of ragged documents, the first of which may have begun before; and the documents by themselves."""
    tokens = some_tokens(3, 20)
    for row, begins in zip(tokens, BEGINS, strict=True):
        row[begins] = 0
    alone = []
    for row, begins in zip(tokens, BEGINS, strict=True):
        cuts = sorted({0, *begins, 20})
        alone.append([row[a:b] for a, b in pairwise(cuts)])
    return tokens, alone


def is_as_alone(model: GPT) -> bool:
    tokens, alone = packed()
    with torch.no_grad():
        together, apart = model(tokens), torch.stack([torch.cat([model(d[None])[0] for d in row]) for row in alone])
    return torch.allclose(together, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_packed_documents_are_as_alone(name: str) -> None:
    assert is_as_alone(lively(document_token=0, **DOCUMENTS[name]))
    assert not is_as_alone(lively(**DOCUMENTS[name])), "packed without a mask, which this must notice"


def test_positions_that_run_on_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: documents masked, but their positions counted from the start of the window. Rotary ones, which
    are relative inside a document, are the same then; learned ones are not."""
    monkeypatch.setattr(
        torch.Tensor, "cummax", lambda self, dim: torch.return_types.cummax((torch.zeros_like(self), self))
    )
    assert not is_as_alone(lively(document_token=0, positions="learned"))
    assert is_as_alone(lively(document_token=0))


def test_positions_restart_with_each_document() -> None:
    model, looked_up = lively(document_token=0, positions="learned"), []
    model.get_submodule("positions").register_forward_pre_hook(lambda module, args: looked_up.append(args[0]))
    model(packed()[0])
    for row, begins in zip(looked_up[0].tolist(), BEGINS, strict=True):
        assert row == [t - max((b for b in begins if b <= t), default=0) for t in range(20)]


# --- the cache

CACHED: dict[str, dict[str, Any]] = {
    "window": {"window": 3},
    "window, one key head": {"window": 4, "window_pattern": "SL", "kv_heads": 1},
    "learned": {"positions": "learned"},
    "softcap, four key heads": {"logit_softcap": 0.7, "kv_heads": 4},
    "llama3": LLAMA3,
    "biases": {
        "bias": True,
        "norm": "layernorm",
        "mlp": "gelu",
        "qk_norm": False,
        "positions": "learned",
        "window": 5,
    },
}
COUNTS = [
    [5, 9, 1],
    [7, 2, 4],
    *[[1, 1, 1]] * 8,
]  # tokens that each of three rows gets in each pass: longer than the windows, ragged


def is_as_uncached(model: GPT) -> bool:
    tokens, cache, at, same = some_tokens(3, 24), model.empty_cache(3, 24), torch.zeros(3, dtype=torch.long), True
    with torch.no_grad():
        exact = model(tokens)
        for counts in torch.tensor(COUNTS):
            chunk = torch.full((3, int(counts.max())), 95)
            for row, (start, count) in enumerate(zip(at, counts, strict=True)):
                chunk[row, :count] = tokens[row, start : start + count]
            logits = model(chunk, cache.batch(cache.lengths, int(at.max()) + chunk.shape[1]))
            for row, (start, count) in enumerate(zip(at, counts, strict=True)):
                same &= torch.allclose(logits[row, :count], exact[row, start : start + count], atol=1e-4, rtol=0)
            cache.lengths += counts
            at += counts
    return same


@pytest.mark.parametrize("name", CACHED)
def test_cached_decoding_equals_uncached(name: str) -> None:
    assert is_as_uncached(lively(**CACHED[name]))


@pytest.mark.parametrize("name", ["window", "learned"])
def test_a_causal_mask_aligned_at_the_top_left_would_be_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: torch's is_causal, by which query 0 sees key 0 alone, also where the cache holds tokens before
    it.
    """
    right = gpt.attend
    monkeypatch.setattr(
        gpt, "attend", lambda q, k, v, visible: right(q, k, v, None if q.shape[2] != k.shape[2] else visible)
    )
    assert not is_as_uncached(lively(**CACHED[name]))


def test_a_mask_that_takes_all_slots_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: a chunk longer than the window sees what is ahead of it."""
    monkeypatch.setattr(kernels, "is_visible", lambda query, key, w: (query - key < (w or 99)) & (key >= 0))
    assert not is_as_uncached(lively(window=3))


# --- the kernels

MASKS: dict[str, Callable[[Tensor], Any]] = {
    "causal": lambda tokens: None,
    "window": lambda tokens: packed_mask(tokens, None, 5),
    "documents": lambda tokens: packed_mask(tokens, (tokens == 0).cumsum(1), None),
    "both": lambda tokens: packed_mask(tokens, (tokens == 0).cumsum(1), 4),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", MASKS)
def test_short_attention_equals_the_fused_kernel(name: str, kv_heads: int) -> None:
    """Both in bf16, values and gradients: no farther from fp64 than the fused kernel may be, and as near to each
    other.
    """
    draw, visible = torch.Generator().manual_seed(0), MASKS[name](packed()[0])
    shapes = [(3, 4, 20, 16), (3, kv_heads, 20, 16), (3, kv_heads, 20, 16), (3, 4, 20, 16)]
    q, k, v, weight = (torch.randn(shape, generator=draw).bfloat16() for shape in shapes)

    def fused(q: Tensor, k: Tensor, v: Tensor, visible: Any) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None, enable_gqa=True)

    def both_ways(kernel: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        y = kernel(*inputs, visible)
        return [y.detach(), *torch.autograd.grad((y * weight.to(dtype)).sum(), inputs)]

    ways = [(fused, torch.float64), (attend_bf16_cpu, torch.bfloat16), (fused, torch.bfloat16)]
    for exact, short, other in zip(*(both_ways(kernel, dtype) for kernel, dtype in ways), strict=True):
        assert short.dtype == torch.bfloat16 and short.shape == other.shape
        assert (short - exact).norm() < 0.01 * exact.norm() and (other - exact).norm() < 0.01 * exact.norm()
        torch.testing.assert_close(short, other, atol=0.03 * float(exact.abs().max()), rtol=0.03)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_of_one_query_equals_the_fused_kernel(kv_heads: int, dtype: torch.dtype, tolerance: float) -> None:
    """Three rows of a cache of 20 slots, filled up to different ones, one of them with a window."""
    draw, slots = torch.Generator().manual_seed(0), torch.arange(20)
    visible = ((slots < torch.tensor([1, 7, 20])[:, None]) & (slots >= torch.tensor([0, 4, 0])[:, None]))[
        :, None, None
    ]
    q, k, v = (
        torch.randn(shape, generator=draw).to(dtype)
        for shape in [(3, 4, 1, 16), (3, kv_heads, 20, 16), (3, kv_heads, 20, 16)]
    )
    found = attend_decode_cpu(q, k, v, visible)
    assert found.dtype == dtype
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), visible, enable_gqa=True)
    torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)
    k[0, :, 1:], v[1, :, 7:] = 1e30, -1e30  # whatever padding holds, as long as it is a number
    torch.testing.assert_close(attend_decode_cpu(q, k, v, visible), found, atol=0, rtol=0)


def test_short_attention_is_taken_in_bf16_training_of_short_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(
        kernels,
        "attend_bf16_cpu",
        lambda q, k, v, visible: taken.append(q.shape[2]) or attend_bf16_cpu(q, k, v, visible),
    )
    monkeypatch.setattr(kernels, "BF16_CPU_KEYS", 16)
    model = lively(layers=1)
    with torch.autocast("cpu", torch.bfloat16):
        model(some_tokens(1, 16))
        model(some_tokens(1, 17))
        with torch.no_grad():
            model(some_tokens(1, 8))
    model(some_tokens(1, 9))
    assert taken == [16]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rotary, window", "learned", "plain window", "one key head"])
def test_flex_attention_sees_what_the_mask_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"plain window": {"window": 6, "document_token": None}, "one key head": {"kv_heads": 1, "window": 2}}.get(
        name
    ) or DOCUMENTS[name]
    model, (tokens, _) = lively(**({"document_token": 0} | config)), packed()
    monkeypatch.setattr(kernels, "compiled", lambda function: function)  # slow, and a test's own subject below
    with torch.no_grad():
        masked = model(tokens)
        monkeypatch.setattr(GPT, "uses_flex_attention", lambda self, device: True)
        assert not isinstance(packed_mask(tokens, None, 6, blocks=True), Tensor)
        try:
            blocks = model(tokens)
        except NotImplementedError as error:
            pytest.skip(f"FlexAttention does not run on this CPU: {error}")
    torch.testing.assert_close(blocks, masked, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_are_those_of_each_batch_and_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder that kept the documents of its first batch would be noticed."""
    batches = [(torch.arange(512) >= 128 * torch.tensor([[i], [3]])).long() for i in (1, 2, 3)]
    tokens = torch.zeros(2, 512, dtype=torch.long)

    def dense(documents: Tensor) -> Tensor:
        made = packed_mask(tokens, documents, 40, blocks=True)
        assert isinstance(made, BlockMask)
        return made.to_dense()

    torch._dynamo.utils.counters.clear()
    found = [dense(documents) for documents in batches]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    monkeypatch.setattr(kernels, "compiled", lambda function: function)
    assert all(torch.equal(a, dense(documents)) for a, documents in zip(found, batches, strict=True))
    assert not torch.equal(found[0], found[1]), "these batches would show nothing"


# --- initial values, checkpointing, compilation, refusals


def test_scaled_residual_weights_have_the_spread_of_gpt2() -> None:
    torch.manual_seed(0)
    c = GPTConfig(**(SMALL | {"layers": 8, "width": 64, "bias": True, "residual_init": "scaled"}))
    for name, p in GPT(c).named_parameters():
        if name.endswith("out.weight"):
            assert p.std().item() == pytest.approx(0.02 / 4, rel=0.05) and abs(p.mean().item()) < 5e-4
        elif name.endswith("bias"):
            assert not p.any()
    for name, p in GPT(GPTConfig(**SMALL)).named_parameters():
        assert p.any() != name.endswith("out.weight")


def loss_gradients_and_saved(model: GPT, tokens: Tensor) -> tuple[Tensor, list[Tensor], int]:
    """The third: numbers that are kept from the forward pass, those of weights aside."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    torch.manual_seed(0)
    with saved_tensors_hooks(pack, lambda x: x):
        loss = model(tokens, labels=tokens.roll(-1, 1))
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters()))), sum(kept.values())


@pytest.mark.parametrize("config", [{}, {"dropout": 0.3}, {"window": 3, "document_token": 0, "positions": "learned"}])
def test_activation_checkpointing_keeps_less_and_changes_nothing(config: dict[str, Any]) -> None:
    tokens, kept = packed()[0], []
    for recomputed in (False, True):
        model = lively(activation_checkpointing=recomputed, layers=4, **config).train()
        kept.append(loss_gradients_and_saved(model, tokens))
    (loss, gradients, many), (same_loss, same_gradients, few) = kept
    torch.testing.assert_close((same_loss, same_gradients), (loss, gradients), atol=0, rtol=0)
    assert few < many / 3


@pytest.mark.fault("F30")
def test_a_compiled_model_is_the_same_weights() -> None:
    """Nothing is compiled before the first call, so this costs no time."""
    model = lively()
    names, twin = list(model.state_dict()), model.compiled()
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    assert twin.head.weight is twin.embedding.weight is model.embedding.weight
    assert list(model.state_dict()) == names and not any("_orig_mod" in name for name in names)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same_and_follows_its_weights() -> None:
    model, tokens = lively(), some_tokens(2, 16)
    twin = model.compiled()
    for _ in range(2):
        torch.testing.assert_close(twin(tokens), model(tokens), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            model.get_parameter("blocks.1.mlp.out.weight").mul_(2)
    gradients = [torch.autograd.grad(m(tokens, labels=tokens), list(model.parameters())) for m in (twin, model)]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config,said",
    [
        ({"width": 30}, "model.width=30 does not fit model.heads=4"),
        ({"head_size": 5}, "model.head_size=5: rotary positions turn pairs"),
        ({"width": 12}, "model.head_size=3: rotary positions turn pairs"),
        ({"kv_heads": 3}, "model.heads=4 does not fit model.kv_heads=3"),
        ({"window_pattern": "SX"}, "model.window_pattern=SX: write a letter S or L"),
        ({"window_pattern": ""}, "model.window_pattern=: write a letter S or L"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        GPTConfig(**(SMALL | config)).check()


def test_shapes_that_fit_are_not() -> None:
    for config in (
        {"width": 30, "head_size": 8},
        {"head_size": 5, "positions": "learned"},
        {"window_pattern": "SSSL"},
        {"kv_heads": 1},
    ):
        GPTConfig(**(SMALL | config)).check()  # type: ignore[arg-type]
