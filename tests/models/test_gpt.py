"""The language model against formulas, against a second implementation, and with its cache against itself without."""

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gengen.config.model import GPT_SIZES, GPTConfig
from gengen.models.flops import gpt_flops_per_token
from gengen.models.gpt import GPT, RMSNorm, rotary_frequencies, rotary_table, rotate


def lively(seed: int = 0, **config: Any) -> GPT:
    """A nano model in evaluation mode in which no weight is zero or one, as it might be after training."""
    model = GPT(GPTConfig(**{"size": "nano", "context": 64, **config})).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2)
            )
    return model


def some_tokens(*shape: int, vocab_size: int = 512, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def frequencies(head_size: int) -> Tensor:
    return rotary_frequencies(GPTConfig(width=head_size, heads=1).resolved(), torch.device("cpu"))


def naive_logits(weights: dict[str, Tensor], c: GPTConfig, tokens: list[int]) -> Tensor:
    """The same model written a second time: one text, fp64, a loop over heads and positions, rotations as complex
    numbers.
    """
    w = {name: weight.double() for name, weight in weights.items()}
    assert c.layers and c.width and c.heads and c.kv_heads and c.ff and c.vocab_size
    D = c.width // c.heads

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / torch.sqrt((x**2).mean() + 1e-6)

    def turned(x: Tensor, position: int) -> Tensor:
        z = torch.complex(x[: D // 2], x[D // 2 :])
        frequencies = torch.tensor([c.rope_theta ** (-2 * i / D) for i in range(D // 2)], dtype=torch.float64)
        z = z * torch.exp(1j * position * frequencies)
        return torch.cat([z.real, z.imag])

    stream = [w["embedding.weight"][token] for token in tokens]
    for layer in range(c.layers):
        b = {name.removeprefix(f"blocks.{layer}."): weight for name, weight in w.items()}
        qkv = [(b["attention.qkv.weight"] @ norm(x, b["attention_norm.weight"])).view(-1, D) for x in stream]
        keys = [
            [turned(norm(x[c.heads + g], b["attention.key_norm.weight"]), t) for g in range(c.kv_heads)]
            for t, x in enumerate(qkv)
        ]
        for t in range(len(stream)):
            heads = []
            for h in range(c.heads):
                g = h // (c.heads // c.kv_heads)
                query = turned(norm(qkv[t][h], b["attention.query_norm.weight"]), t)
                scores = torch.stack([query @ keys[s][g] / math.sqrt(D) for s in range(t + 1)])
                weight = scores.exp() / scores.exp().sum()
                heads.append(sum(weight[s] * qkv[s][c.heads + c.kv_heads + g] for s in range(t + 1)))
            x = stream[t] + b["attention.out.weight"] @ torch.cat(heads)  # type: ignore[arg-type]
            gate, up = (b["mlp.gate_up.weight"] @ norm(x, b["mlp_norm.weight"])).split(c.ff)
            stream[t] = x + b["mlp.out.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
    return torch.stack([w["head.weight"] @ norm(x, w["norm.weight"]) for x in stream])[:, : c.vocab_size]


@pytest.mark.parametrize(
    "config", [{}, {"kv_heads": 4}, {"kv_heads": 1, "tied": False, "rope_theta": 500.0, "vocab_size": 500}]
)
def test_whole_model_equals_a_naive_one(config: dict[str, Any]) -> None:
    model, tokens = lively(layers=2, **config), some_tokens(2, 9, vocab_size=500)
    expected = torch.stack([naive_logits(model.state_dict(), model.config, row.tolist()) for row in tokens])
    torch.testing.assert_close(model(tokens).double(), expected, atol=2e-5, rtol=1e-5)


def test_attention_equals_an_explicit_softmax_over_repeated_heads() -> None:
    attention: Any = lively().get_submodule("blocks.0.attention")
    x = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(0))
    no_turn = torch.stack([torch.ones(7, 16), torch.zeros(7, 16)])
    q, k, v = attention.qkv(x).view(2, 7, 8, 32).transpose(1, 2).split([4, 2, 2], dim=1)
    q, k = attention.query_norm(q), attention.key_norm(k).repeat_interleave(2, dim=1)
    scores = (q @ k.mT / 32**0.5).masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf"))
    mixed = (scores.softmax(-1) @ v.repeat_interleave(2, dim=1)).transpose(1, 2).reshape(2, 7, 128)
    torch.testing.assert_close(attention(x, no_turn, None), attention.out(mixed), atol=1e-5, rtol=1e-5)


def test_rotation_equals_multiplication_by_complex_units() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 7, 300, 2047])
    frequencies = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    z = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(
        torch.ones(5, 4).double(), positions[:, None] * frequencies
    )
    turned = rotate(x, rotary_table(positions, frequencies.float())).double()
    torch.testing.assert_close(
        turned, torch.cat([z.real, z.imag], dim=-1), atol=2e-4, rtol=0
    )  # fp32 at an angle of 2047


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0))

    def turned(x: Tensor, at: int) -> Tensor:
        return rotate(x, rotary_table(torch.tensor([at]), frequencies(32)))

    def score(at: int, before: int) -> float:
        return float((turned(q, at) * turned(k, before)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_angles_stay_fp32_when_the_model_is_cast() -> None:
    model, seen = lively().bfloat16(), []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    model(some_tokens(1, 64))
    assert seen[0].dtype == torch.float32
    exact = torch.arange(64, dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
    torch.testing.assert_close(seen[0].double(), torch.stack([exact.cos(), exact.sin()]), atol=1e-5, rtol=0)
    assert not list(model.buffers()), "a buffer would be cast with the weights"


def test_norm_is_computed_in_fp32_and_returned_in_the_dtype_of_its_input() -> None:
    norm = RMSNorm(64)
    norm.weight.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    x = (300 * torch.randn(5, 64, generator=torch.Generator().manual_seed(1))).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), exact.bfloat16(), atol=0, rtol=0)
    torch.testing.assert_close(norm(x.float()).double(), exact, atol=1e-6, rtol=1e-6)


def test_a_step_in_bf16_autocast_warns_of_nothing_and_is_near_fp32() -> None:
    model, tokens = lively(), some_tokens(2, 32)
    exact = model(tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(tokens)
        F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).std() < 0.03 * exact.std()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )


def test_the_loss_starts_at_that_of_a_guess() -> None:
    torch.manual_seed(0)
    model, tokens, targets = GPT(GPTConfig(size="nano")), some_tokens(8, 128), some_tokens(8, 128, seed=2)
    loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


def test_blocks_start_as_the_identity() -> None:
    model, tokens = GPT(GPTConfig(size="nano")), some_tokens(2, 16)
    torch.testing.assert_close(model.features(tokens), model.norm(model.embedding(tokens)), atol=0, rtol=0)


def test_a_token_sees_itself_and_those_before_it_alone() -> None:
    model, embedded = lively(), []
    model.embedding.register_forward_hook(
        lambda module, args, out: embedded.append(out.requires_grad_().retain_grad() or out)
    )
    for t in (0, 5, 11):
        model(some_tokens(1, 12))[0, t].square().sum().backward()
        reached = embedded.pop().grad.abs().sum(-1)[0] > 0
        assert reached.tolist() == [s <= t for s in range(12)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_cached_logits_equal_uncached_ones(kv_heads: int) -> None:
    """Three texts of different lengths: a prefill, a second prefill behind it, then one token at a time."""
    model, tokens = lively(kv_heads=kv_heads), some_tokens(3, 30)
    chunks = torch.tensor([[5, 9, 1], [7, 2, 4], *[[1, 1, 1]] * 10])  # how many tokens each row gets in each pass
    cache, at = model.empty_cache(3, 30), torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        exact = model(tokens)
        for counts in chunks:
            padded = torch.full((3, int(counts.max())), 511)
            for row, (start, count) in enumerate(zip(at, counts, strict=True)):
                padded[row, :count] = tokens[row, start : start + count]
            logits = model(padded, cache.batch(cache.lengths, int(at.max()) + padded.shape[1]))
            for row, (start, count) in enumerate(zip(at, counts, strict=True)):
                torch.testing.assert_close(logits[row, :count], exact[row, start : start + count], atol=1e-4, rtol=0)
            cache.lengths += counts
            at += counts
    assert cache.lengths.tolist() == [22, 21, 15]


def test_rows_of_a_cache_go_on_on_their_own() -> None:
    """Some rows of a memory, in any order, and a row copied to another's place, continue as if they had been there
    from the start; rows of the memory that are not in the batch stay as they are."""
    model, tokens = lively(), some_tokens(2, 8)
    cache, five = model.empty_cache(4, 8), torch.tensor([5, 5])
    with torch.no_grad():
        exact = model(tokens)[:, 5]
        model(tokens[:, :5], cache.batch(torch.tensor([0, 0]), 5, torch.tensor([3, 1])))
        assert all(not part[[0, 2]].any() for part in cache.keys + cache.values)
        picked = cache.batch(five, 6, torch.tensor([1, 3]))
        torch.testing.assert_close(model(tokens[[1, 0], 5:6], picked)[:, 0], exact[[1, 0]], atol=1e-4, rtol=0)
        cache.copy_row(1, 0, 5)
        cache.copy_row(3, 1, 5)
        first_two = cache.batch(five, 6)
        torch.testing.assert_close(model(tokens[[1, 0], 5:6], first_two)[:, 0], exact[[1, 0]], atol=1e-4, rtol=0)


def test_tied_weights_are_one_tensor_also_after_loading() -> None:
    model = lively(seed=1)
    model.load_state_dict({name: weight.clone() for name, weight in lively(seed=2).state_dict().items()})
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, lively(seed=2).head.weight)
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    untied = lively(tied=False)
    assert untied.head.weight.data_ptr() != untied.embedding.weight.data_ptr()


def test_rows_that_pad_the_vocabulary_get_no_logit_and_no_gradient() -> None:
    model = lively(vocab_size=500, tied=False)
    assert model.embedding.weight.shape == model.head.weight.shape == (512, 128)
    logits = model(some_tokens(2, 8, vocab_size=500))
    assert logits.shape == (2, 8, 500)
    logits.square().sum().backward()
    assert model.head.weight.grad is not None
    assert [bool(row.any()) for row in model.head.weight.grad] == [i < 500 for i in range(512)]


PARAMETERS = {  # by hand: V C [+ V C] + L (C (H + 2 KV) D + C C + 3 C F + 2 C + 2 D) + C
    "nano": 853_376, "micro": 3_476_224, "tiny": 11_015_808, "mini": 27_796_992,
    "small": 110_122_752, "medium": 312_007_680, "large": 704_724_480,
}  # fmt: skip


def test_gpt2_has_the_parameters_of_the_published_one() -> None:
    from gengen.config.compose import compose_train, read_command_line

    config: Any = compose_train(read_command_line(["model=gpt2", "data=storybook"])).model
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808 + 47 * 768  # the rows beyond the vocabulary


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes_have_the_parameters_of_the_formula(size: str) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(size=size))
    d = GPT_SIZES[size]
    C, H, KV, D = d["width"], d["heads"], d["kv_heads"], d["width"] // d["heads"]
    block = C * (H + 2 * KV) * D + C * C + 3 * C * d["ff"] + 2 * C + 2 * D
    formula = d["vocab_size"] * C * (1 if d["tied"] else 2) + d["layers"] * block + C
    assert sum(p.numel() for p in model.parameters()) == formula == PARAMETERS[size]


def test_dropout_acts_in_training_alone() -> None:
    model, tokens = lively(dropout=0.5), some_tokens(1, 16)
    assert torch.equal(model(tokens), lively(dropout=0.0)(tokens))
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(model(tokens), model(tokens), atol=0.1)


@pytest.mark.parametrize("config", [{}, {"kv_heads": 4, "vocab_size": 500, "tied": False}])
def test_flops_are_those_torch_counts(config: dict[str, Any]) -> None:
    """The counter sees attention's whole square; of it, a causal kernel does half."""
    model, (B, T) = GPT(GPTConfig(size="nano", **config)), (2, 96)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        tokens = some_tokens(B, T, vocab_size=500)
        model(tokens, labels=tokens).backward()
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counts.keys() == {"aten.mm", "aten.bmm"}
    assert gpt_flops_per_token(model.config, T) * B * T == pytest.approx(
        counts["aten.mm"] + counts["aten.bmm"] / 2, rel=1e-6
    )
