"""A language model read at the tokens of answers, and what it becomes: a reward model, or one of more tokens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from gengen.alignment.log_probs import entropy, log_softmax, of_tokens
from gengen.checkpoints.layout import load_weights, unique_state
from gengen.config.model import GPTConfig
from gengen.models import completions as answers
from gengen.models.completions import answer_log_probs, at_last_token, right_padded, token_values
from gengen.models.gpt import GPT, padded
from gengen.models.reward import RewardModel

SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ff": 48, "vocab_size": 100, "context": 48}
KINDS = {
    "rotary": {},
    "of conversations": {"document_token": 0},
    "learned positions": {"positions": "learned"},
    "a window": {"window": 5, "window_pattern": "SL"},
    "untied and capped": {"tied": False, "logit_softcap": 10.0},
}
AnyGPT = TypeVar("AnyGPT", bound=GPT)


def lively(model: AnyGPT) -> AnyGPT:
    """The model with weights as they might be after training."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2)
            )
    return model.eval()


def rows() -> list[tuple[list[int], list[int]]]:
    """Eight prompts, each of which begins a document, with answers of one to fifteen tokens."""
    draw = torch.Generator().manual_seed(1)
    lengths = [(3, 1), (5, 15), (2, 7), (9, 4), (4, 4), (12, 2), (1, 11), (6, 9)]
    return [
        (
            [0, *torch.randint(1, 100, (p,), generator=draw).tolist()],
            torch.randint(1, 100, (a,), generator=draw).tolist(),
        )
        for p, a in lengths
    ]


def test_right_padded_by_hand() -> None:
    tokens, mask = right_padded([([5, 6, 7], [8, 9]), ([5], [6])])
    assert tokens.tolist() == [[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 0, 0, 0]]


def test_the_last_token_by_hand() -> None:
    values = torch.arange(10.0).view(2, 5)
    assert at_last_token(values, torch.tensor([[0, 0, 1, 1], [1.0, 0, 0, 0]])).tolist() == [4, 6]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_entropy_are_those_of_the_whole_model(kind: str, temperature: float) -> None:
    model = lively(GPT(GPTConfig(**SHAPE | KINDS[kind])))  # type: ignore[arg-type]
    for prompt, answer in rows():
        tokens, mask = right_padded([(prompt, answer)])
        found = answer_log_probs(model, tokens, mask, temperature)
        (spread,) = token_values(
            model, tokens, mask, lambda logits, drawn: (entropy(log_softmax(logits, temperature)),)
        )
        p = (model(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 : -1].double() / temperature).softmax(-1)
        torch.testing.assert_close(
            found[0, len(prompt) - 1 :].exp(), p[range(len(answer)), answer].float(), atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(spread[0, len(prompt) - 1 :], -(p * p.log()).sum(-1).float(), atol=1e-5, rtol=1e-5)
        assert not found[0, : len(prompt) - 1].any() and not spread[0, : len(prompt) - 1].any()


@pytest.mark.parametrize("half,tolerance", [(False, 1e-5), (True, 2e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_company_nor_order_matters(kind: str, half: bool, tolerance: float) -> None:
    """Log-probabilities, entropies, values and scores, of a batch of eight against seven more tokens of padding, other
    padding, batches of one, and rows in another order."""
    config = GPTConfig(**SHAPE | KINDS[kind])  # type: ignore[arg-type]
    model, critic = lively(GPT(config)), lively(RewardModel(config))

    def all_of(tokens: Tensor, mask: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.no_grad():
            (spread,) = token_values(model, tokens, mask, lambda logits, drawn: (entropy(log_softmax(logits)),))
            values = critic(tokens)[:, :-1] * mask
            return [answer_log_probs(model, tokens, mask), spread, values, critic.raw_scores(tokens, mask)[:, None]]

    def same(found: list[Tensor], which: list[int]) -> None:
        for one, two in zip(whole, found, strict=True):
            width = min(one.shape[1], two.shape[1])
            torch.testing.assert_close(
                one[which, :width], two[:, :width], atol=tolerance, rtol=tolerance if half else 0
            )
            assert not two[:, width:].any()

    tokens, mask = right_padded(rows())
    whole, everyone = all_of(tokens, mask), list(range(8))
    assert whole[3].std() > 0.1 and whole[0].min() < -3
    more = torch.cat([tokens, tokens.new_zeros(8, 7)], 1), torch.cat([mask, mask.new_zeros(8, 7)], 1)
    same(all_of(*more), everyone)
    behind = torch.cat([mask.new_zeros(8, 1), mask], 1).flip(1).cumsum(1).flip(1) == 0  # nothing is left from here on
    same(all_of(tokens.where(~behind, 77), mask), everyone)
    for row in everyone:
        same(all_of(*right_padded(rows()[row : row + 1])), [row])
    other = [3, 1, 7, 0, 5, 2, 6, 4]
    same(all_of(tokens[other], mask[other]), other)


def saved_bytes(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """What a computation keeps for its backward pass, each storage once; and its result."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(kept.values()), result


@pytest.mark.parametrize("more", [{}, {"tied": False, "logit_softcap": 10.0}], ids=["", "untied and capped"])
@pytest.mark.parametrize("spread", [False, True], ids=["", "entropy"])
def test_logits_are_not_kept_for_the_backward_pass(monkeypatch: Any, more: dict[str, Any], spread: bool) -> None:
    """1,024 places and a vocabulary of 2,048, read 128 at a time: less is kept than the logits of one time. Values and
    gradients are those of reading all at once."""
    model = lively(GPT(GPTConfig(**SHAPE | {"vocab_size": 2048, "context": 129} | more)))  # type: ignore[arg-type]
    tokens = torch.randint(2048, (8, 129), generator=torch.Generator().manual_seed(0))
    features = model.features(tokens[:, :-1]).detach().requires_grad_()
    monkeypatch.setattr(model, "features", lambda tokens: features)

    def of(logits: Tensor, drawn: Tensor) -> tuple[Tensor, ...]:
        log_p = log_softmax(logits, 0.7)
        return of_tokens(log_p, drawn), entropy(log_p)

    def told() -> Tensor:
        values, entropies = token_values(model, tokens, torch.ones(8, 128), of)
        return torch.stack([values, entropies * spread])

    def found(rows: int) -> tuple[int, Tensor, tuple[Tensor, ...]]:
        monkeypatch.setattr(answers, "rows_at_once", lambda weight: rows)
        kept, result = saved_bytes(told)
        weights = torch.rand(result.shape, generator=torch.Generator().manual_seed(1)) - 0.5
        return kept, result, torch.autograd.grad((result * weights).sum(), [features, model.head.weight])

    (most, whole, slopes), (least, parts, cut_slopes) = found(1024), found(128)
    logits = 1024 * 2048 * 4
    assert most > logits and least < logits / 8
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert all(slope.any() for slope in slopes)
    torch.testing.assert_close(cut_slopes, slopes, atol=1e-5, rtol=1e-4)


# --- a reward model


def test_a_reward_model_is_a_trunk_under_a_head_of_its_own() -> None:
    """Its head is drawn anew from N(0, 1 / (d + 1)); what another reward model learnt goes on."""
    width = 1024
    config = GPTConfig(**SHAPE | {"width": width, "layers": 1, "ff": 8})  # type: ignore[arg-type]
    source, model = GPT(config), RewardModel(config)
    assert (
        model.value.weight.std().item() == pytest.approx((width + 1) ** -0.5, rel=0.1) and not model.value.bias.any()
    )
    before = model.value.weight.clone()
    load_weights(model, model.adapt_weights(unique_state(source), source.vocab_size), None)  # type: ignore[arg-type]
    assert torch.equal(model.value.weight, before) and torch.equal(model.embedding.weight, source.embedding.weight)
    model.normalize(torch.tensor([1.0, 5.0]))
    again = RewardModel(config)
    load_weights(again, again.adapt_weights(unique_state(model), model.vocab_size), None)  # type: ignore[arg-type]
    assert torch.equal(again.value.weight, before) and (again.gain, again.bias) == (0.5, -1.5)
    assert not any(name.startswith("head") for name in unique_state(again))


def test_normalized_scores_have_mean_0_and_variance_1() -> None:
    """On answers that were not looked at, too."""
    model = lively(RewardModel(GPTConfig(**SHAPE)))  # type: ignore[arg-type]
    outputs = torch.randn(8192, generator=torch.Generator().manual_seed(0)) * 3 + 7
    model.normalize(outputs[:4096])
    scores = model.normalized(outputs[4096:])
    assert abs(scores.mean()) < 0.05 and scores.std().item() == pytest.approx(1, abs=0.05)
    model.normalize(torch.full((9,), 2.0))  # of equal ones nothing is divided by 0
    assert model.normalized(torch.tensor(2.0)) == 0


def test_outputs_are_fp32_under_autocast() -> None:
    model = lively(RewardModel(GPTConfig(**SHAPE)))  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.tensor([[0, 3, 4]])).dtype == torch.float32


# --- a larger vocabulary


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [100, 124, 128], ids=["fits the padded rows", "fits them exactly", "does not"])
def test_new_tokens_start_as_the_mean_and_nothing_else_changes(size: int, tied: bool) -> None:
    """Rows of weights come in blocks of 64: 104 and 128 tokens still fit the 128 of before, 132 do not."""
    config = GPTConfig(**SHAPE | {"vocab_size": size, "tied": tied})  # type: ignore[arg-type]
    source, grown = GPT(config), GPT(replace(config, vocab_size=size + 4))
    lively(source)
    weights = {name: tensor.clone() for name, tensor in unique_state(source).items()}
    load_weights(grown, grown.adapt_weights(weights, size), None)  # type: ignore[arg-type]
    assert grown.embedding.weight.shape[0] == padded(size + 4) == (128 if size < 128 else 192)
    for old, new in ((source.embedding, grown.embedding), (source.head, grown.head)):
        assert torch.equal(new.weight[:size], old.weight[:size])
        torch.testing.assert_close(new.weight[size:], old.weight[:size].mean(0).expand(padded(size + 4) - size, -1))
    for name, tensor in weights.items():
        assert torch.equal(unique_state(source)[name], tensor), name
    tokens = torch.tensor([[0, 5, 99, 42]])
    before, after = source(tokens), grown.eval()(tokens)
    torch.testing.assert_close(after[..., :size], before)
    torch.testing.assert_close(
        after[..., size:], before.mean(-1, keepdim=True).expand(-1, -1, 4), atol=1e-5, rtol=1e-5
    )


def test_the_same_vocabulary_is_taken_as_it_is() -> None:
    """Rows beyond the vocabulary included."""
    source = lively(GPT(GPTConfig(**SHAPE)))  # type: ignore[arg-type]
    weights = unique_state(source)
    assert source.adapt_weights(weights, 100) is weights
