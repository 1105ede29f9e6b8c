"""Log-probabilities are those of the distribution the decoder draws from, and of the tokens the mask says."""

import math

import pytest
import torch
from torch import Tensor

from gengen.alignment.log_probs import entropy, log_probs, log_softmax
from gengen.alignment.losses import aggregate
from gengen.generation.text.sampling import draw, next_token_probabilities
from helpers.draws import uniforms


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chi_square_p(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    statistic = ((counts - expected).square() / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2).item()


def test_they_are_of_the_distribution_the_decoder_draws_from() -> None:
    """1e5 draws at temperature .7. Log-probabilities that forget the temperature are another distribution's."""
    logits, n = seeded(1, 12) * 2, 100_000
    tokens = draw(next_token_probabilities(logits, 0.7).expand(n, -1), uniforms(0, [0], n)[0])
    counts = tokens.bincount(minlength=12).double()
    every = torch.arange(12)
    assert chi_square_p(counts, log_probs(logits.expand(12, -1), every, 0.7).exp()) > 1e-3
    assert chi_square_p(counts, log_probs(logits.expand(12, -1), every).exp()) < 1e-12


def test_log_probs_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    tokens = torch.tensor([1, 1])
    torch.testing.assert_close(log_probs(logits, tokens), torch.tensor([3 / 4, 1 / 5]).log())
    torch.testing.assert_close(log_probs(logits, tokens, 0.5), torch.tensor([9 / 10, 1 / 17]).log())  # odds squared


def test_bf16_logits_are_read_in_fp32_and_fp64_stays() -> None:
    logits, tokens = seeded(3, 5, 7), torch.zeros(3, 5, dtype=torch.int64)
    coarse = logits.bfloat16()
    assert torch.equal(log_probs(coarse, tokens, 0.7), log_probs(coarse.float(), tokens, 0.7))
    assert (
        torch.equal(log_softmax(coarse, 0.7), log_softmax(coarse.float(), 0.7))
        and log_probs(logits, tokens).dtype == torch.float64
    )


def test_one_places_log_prob_and_entropy_are_no_other_places_business() -> None:
    """Rows and places may be cut, moved and padded: the numbers are the same, bit by bit."""
    logits, tokens = seeded(8, 5, 7).float(), torch.arange(40).view(8, 5) % 7
    whole, order = log_probs(logits, tokens, 0.7), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([log_probs(logits[i : i + 1], tokens[i : i + 1], 0.7) for i in range(8)]), whole)
    assert torch.equal(log_probs(logits[order], tokens[order], 0.7), whole[order])
    padded = log_probs(
        torch.cat([logits, torch.full((8, 7, 7), 1e9)], 1),
        torch.cat([tokens, torch.zeros(8, 7, dtype=torch.int64)], 1),
        0.7,
    )
    assert torch.equal(padded[:, :5], whole)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_entropy_by_hand_and_its_limits(temperature: float) -> None:
    even = torch.zeros(1, 8, dtype=torch.float64)
    torch.testing.assert_close(
        entropy(log_softmax(even, temperature)), torch.tensor([math.log(8)], dtype=torch.float64)
    )
    one = torch.full((1, 8), -math.inf, dtype=torch.float64)
    one[0, 3] = 1.0
    assert entropy(log_softmax(one, temperature)).item() == 0
    p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    spread = entropy(log_softmax(p.log() * temperature, temperature))
    torch.testing.assert_close(spread, torch.tensor(1.5 * math.log(2), dtype=torch.float64))


def test_entropy_has_a_gradient_where_a_token_is_impossible() -> None:
    logits = torch.tensor([[1.0, 0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(entropy(log_softmax(logits)).sum(), logits)
    p = torch.tensor([1.0, 0.0], dtype=torch.float64).softmax(0)
    by_hand = -p * (p.log() - (p * p.log()).sum())  # dH/dlogit_i = -p_i (log p_i + H)
    torch.testing.assert_close(slope[0, :2], by_hand)
    assert slope[0, 2] == 0


# A first-order Markov chain as the model, whose episodes' probabilities are known: q0 q1 q2 | a b <end> | pad pad
TOKENS = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 0]])
IN_RESPONSE = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0.0]])
MASK = IN_RESPONSE[:, 1:]
CHAIN = seeded(6, 6)


def episode_log_probs() -> Tensor:
    return log_probs(CHAIN[TOKENS[:, :-1]], TOKENS[:, 1:])


def test_the_mask_of_the_shifted_axis_takes_the_response_with_its_end_and_nothing_else() -> None:
    p = CHAIN.softmax(-1)
    response = (p[2, 3] * p[3, 4] * p[4, 5]).log()  # a after q2, b after a, the end after b
    torch.testing.assert_close((episode_log_probs() * MASK).sum(), response)
    off_by_one = IN_RESPONSE[:, :-1]  # drops a, takes a pad after the end
    assert not torch.isclose((episode_log_probs() * off_by_one).sum(), response, atol=0.1)


def test_entropy_counts_no_padding() -> None:
    """Pads given some constant log-probability (one of 1 is in print) or their own entropy would move a mean entropy
    with each pad.
    """
    places = entropy(log_softmax(CHAIN[TOKENS[:, :-1]]))
    mean = aggregate(places, MASK, "token", 1).sum() / MASK.sum()
    torch.testing.assert_close(mean, entropy(log_softmax(CHAIN[[2, 3, 4]])).mean())
    padded = torch.cat([places, torch.full((1, 5), torch.nan, dtype=torch.float64)], 1)
    longer = torch.cat([MASK, torch.zeros(1, 5)], 1)
    torch.testing.assert_close(aggregate(padded, longer, "token", 1).sum() / longer.sum(), mean)
    assert abs(places.mean() - mean) > 0.01
