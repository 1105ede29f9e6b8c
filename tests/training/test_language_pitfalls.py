"""Faults that other language model code has had, put back: what we check would notice each of them. (Others: see
`would_be_noticed`.)
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.checkpoints.layout import unique_state
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import GPTConfig
from gengen.config.train import OptimConfig
from gengen.data.prepared import PrepareRequest
from gengen.data.text import windows as text_data
from gengen.data.text.prepare import prepare_for
from gengen.data.text.tokenizer import TextTokenizer
from gengen.data.text.windows import Steps, TextData
from gengen.generation.text import row
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.generator import TextGenerator
from gengen.models import gpt
from gengen.models.gpt import GPT
from gengen.models.kernels.cross_entropy import IGNORED
from gengen.models.kv_cache import Cache
from gengen.training import objective as objectives
from gengen.training.build import build_objective
from gengen.training.objectives.language import Pretraining, bits_per_byte
from gengen.training.optim.groups import build_optimizer, rate

BYTES = TextTokenizer.byte()
SIZE = {
    "size": "nano",
    "layers": 2,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "ff": 48,
    "vocab_size": 257,
    "context": 48,
}


def lively(model: GPT) -> GPT:
    """The model with weights as they might be after training."""
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=numbers) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2)
            )
    return model.eval()


class Scripted(GPT):
    """Continues the empty prompt with given bytes, then ends the text."""

    def __init__(self, script: str):
        super().__init__(GPTConfig(**(SIZE | {"layers": 1, "width": 8, "ff": 8})))
        self.script = torch.tensor([*BYTES.encode(script), 0])

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        assert cache is not None
        at = cache.lengths.clamp(max=len(self.script) - 1)
        return F.one_hot(self.script[at], self.vocab_size)[:, None] * 1e4


# --- the loss that is reported


@pytest.fixture(scope="module")
def pretraining(tiny: list[str]) -> Any:
    config: Any = compose_train(read_command_line(tiny))
    prepared = prepare_for(PrepareRequest(config.data, config.model, print))
    config.model.vocab_size = 257
    objective = build_objective(config, prepared)
    lively(objective.model)  # type: ignore[arg-type]
    return objective


def val_loss(objective: Any, micro_batch_size: int | None) -> float:
    objective.config.data.micro_batch_size = micro_batch_size
    data = TextData(objective.config.data, objective.prepared, context=48, seed=0)
    metrics = objective.evaluate(data.val_batches())
    objective.model.eval()
    return metrics["val/loss"]


def val_loss_by_hand(objective: Any) -> float:
    """Every token of the validation part but the first, given those before it in its window of 48; all logits at
    once."""
    stream, nats = objective.prepared.val, 0.0
    tokens = torch.from_numpy(stream.read(0, len(stream))).long()
    for start in range(0, len(stream) - 1, 48):
        span = tokens[start : start + 49]
        with torch.no_grad():
            nats += F.cross_entropy(objective.model(span[None, :-1])[0].double(), span[1:], reduction="sum").item()
    return nats / (len(stream) - 1)


def test_validation_does_not_know_of_micro_batches(pretraining: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: validation divided by the number of micro-batches, as the training loss is
    (torchtitan#1758)."""
    expected = val_loss_by_hand(pretraining)
    for size in (None, 3, 1):
        assert val_loss(pretraining, size) == pytest.approx(expected, rel=1e-6)
    right = Pretraining.evaluation_sums

    def divided(self: Any, batch: dict[str, Tensor]) -> Tensor:
        return right(self, batch) / torch.tensor([self.config.data.batch_size / self.config.data.micro_batch_size, 1])

    monkeypatch.setattr(Pretraining, "evaluation_sums", divided)
    assert val_loss(pretraining, 2) != pytest.approx(expected, rel=0.1)


def test_a_mean_of_batch_means_would_be_noticed(pretraining: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back in validation: its last window, which is short, would count as much as a whole one."""
    expected, right = val_loss_by_hand(pretraining), Pretraining.evaluation_sums

    def mean(self: Any, batch: dict[str, Tensor]) -> Tensor:
        nats, tokens = right(self, batch)
        return torch.stack([nats / tokens, tokens / tokens])

    monkeypatch.setattr(Pretraining, "evaluation_sums", mean)
    assert val_loss(pretraining, 1) != pytest.approx(expected, rel=1e-4)


def test_bits_per_byte_count_the_bytes_of_the_text(tmp_path: Path) -> None:
    """The bug put back: bytes of what tokens decode to one by one, where half a character is a U+FFFD of three bytes
    (nanochat#693).
    """
    text = "naïve → 日本 🎈é " * 200
    (tmp_path / "t.txt").write_text(text)
    argv = ["model=gpt", "data=text", f"data.path={tmp_path / 't.txt'}", f"data.dir={tmp_path}", "data.tokenizer=byte"]
    config: Any = compose_train(read_command_line(argv))
    prepared = prepare_for(PrepareRequest(config.data, config.model, print))
    held_out = prepared.val.read(0, len(prepared.val)).tolist()
    raw = BYTES.decode_bytes(held_out)
    assert prepared.val_bytes == len(raw) == len(held_out) - 1 and text.encode().endswith(raw)
    assert bits_per_byte(8 * math.log(2) * len(raw), prepared.val_bytes) == pytest.approx(8)
    assert sum(len(BYTES.decode([token]).encode()) for token in held_out) > 1.5 * prepared.val_bytes


# --- labels


def pairs(steps: Steps, count: int) -> list[tuple[int, int]]:
    """Each label with the token ahead of it, of the first `count` windows."""
    rows = [steps.row(position) for position in range(count)]
    return sorted(
        (int(a), int(b)) for tokens, labels in rows for a, b in zip(tokens, labels, strict=True) if b != IGNORED
    )


def test_a_shift_inside_windows_would_be_noticed(pretraining: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: text cut into windows first and shifted then, so the last label of each is its own first token
    or none.
    """
    stream = pretraining.prepared.train
    steps, count = Steps(stream, 48, 0, 8, 0, 1), -(-len(stream) // 48)
    around = stream.read(-1, len(stream) + 1).tolist()
    expected = sorted(pairwise(around))
    assert pairs(steps, count) == expected

    def rolled(span: np.ndarray, counted: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.roll(span[:-1], -1)
        labels[counted:] = IGNORED
        return span[:-1], labels

    def cut(span: np.ndarray, counted: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, labels = rolled(span, counted)
        labels[-1] = IGNORED
        return tokens, labels

    for wrong in (rolled, cut):
        monkeypatch.setattr(text_data, "shifted", wrong)
        assert pairs(steps, count) != expected


# --- the optimizer


def rates(argv: list[str], run: Path) -> list[float]:
    """Of each step of a run of 12 that is stopped after 5."""
    steps = [
        "trainer.max_steps=12",
        "trainer.log_every=1",
        "trainer.eval_every=99",
        "trainer.sample_every=99",
        "optim.warmup_ratio=0.25",
    ]
    assert main(["train", *argv, *steps, f"runs_dir={run.parent}", f"run={run.name}", "stop_at=5"]) == 0
    assert main(["train", f"run={run.name}", f"runs_dir={run.parent}"]) == 0
    return [row["lr"] for row in read_metrics(run / "metrics.csv")]


RATES = [OptimConfig().peak_lr * rate(step, 12, OptimConfig(warmup_ratio=0.25)) for step in range(12)]


def test_the_rate_is_never_zero_and_goes_on_where_it_was(tiny: list[str], tmp_path: Path) -> None:
    assert min(RATES) > 0 and rates(tiny, tmp_path / "r") == pytest.approx(RATES)


def test_a_first_step_at_rate_zero_would_be_noticed(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug put back (nanoGPT#578, litgpt's get_lr)."""
    monkeypatch.setattr(objectives, "rate", lambda step, steps, c: rate(step - 1, steps, c))
    found = rates(tiny, tmp_path / "r")
    assert found[0] == 0 and found != pytest.approx(RATES)


def test_a_schedule_that_begins_anew_on_resume_would_be_noticed(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug put back (nanotron#245)."""
    monkeypatch.setattr(objectives, "rate", lambda step, steps, c: rate(step if step < 5 else step - 5, steps, c))
    found = rates(tiny, tmp_path / "r")
    assert found[:5] == pytest.approx(RATES[:5]) and found != pytest.approx(RATES)


def decays(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What a step without any gradient leaves of each parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return {name: (p.detach().norm() / before[name].norm()).item() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_of_vectors_would_be_noticed(name: str) -> None:
    """The bug put back: model.parameters() as one group, so that norms and biases decay. A tied matrix decays once."""
    model = lively(GPT(GPTConfig(**SIZE, bias=True)))
    c = OptimConfig(name=name, lr=0.1, weight_decay=0.5, muon_weight_decay=0.5)
    expected = {key: 0.95 if p.dim() >= 2 else 1.0 for key, p in model.named_parameters()}
    found = decays(model, build_optimizer(model, c, GPTConfig.hidden_maps))
    assert found == pytest.approx(expected, rel=1e-5) and "embedding.weight" in found and "head.weight" not in found
    naive = decays(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
    assert naive["norm.weight"] == pytest.approx(0.95) and naive != pytest.approx(expected, rel=1e-5)


def test_tied_weights_counted_or_saved_twice_would_be_noticed() -> None:
    """The bug put back: the plain state dict, which holds the matrix under both names (torchtitan#3225,
    litgpt#1727)."""
    for tied in (True, False):
        model = GPT(GPTConfig(**SIZE, tied=tied))
        parameters = sum(p.numel() for p in model.parameters())
        assert sum(t.numel() for t in unique_state(model).values()) == parameters
        assert sum(t.numel() for t in model.state_dict().values()) == parameters + tied * 320 * 32


# --- the model


def distance_error() -> float:
    """How much the scores of a query and a key 5 apart differ between positions 300 and 2000."""
    q, k = torch.randn(2, 1, 64, 1, 32, generator=torch.Generator().manual_seed(0))
    frequencies = gpt.rotary_frequencies(GPTConfig(width=32, heads=1).resolved(), torch.device("cpu"))

    def scores(at: int) -> Tensor:
        return (
            gpt.rotate(q, gpt.rotary_table(torch.tensor([at]), frequencies))
            * gpt.rotate(k, gpt.rotary_table(torch.tensor([at - 5]), frequencies))
        ).sum(-1)

    return (scores(300) - scores(2000)).abs().max().item()


@pytest.mark.parametrize("rounded", ["positions", "angles"])
def test_rotary_positions_in_bf16_would_be_noticed(rounded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bugs put back: positions, beyond 256 no longer whole, or angles in bf16 (transformers#25681, #29285,
    candle#3520).
    """
    assert distance_error() < 2e-2

    def table(positions: Tensor, frequencies: Tensor) -> Tensor:
        if rounded == "positions":
            positions = positions.bfloat16().float()
        angles = positions[..., None] * frequencies
        angles = angles.bfloat16().float() if rounded == "angles" else angles
        return torch.stack([angles.cos(), angles.sin()])

    monkeypatch.setattr(gpt, "rotary_table", table)
    assert distance_error() > 0.5


def test_rows_that_pad_the_vocabulary_are_neither_drawn_nor_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: all rows of the head, of which the tokenizer knows some only (build-nanogpt#81)."""
    model = lively(GPT(GPTConfig(**SIZE, tied=False)))
    tokens = torch.randint(257, (2, 20), generator=torch.Generator().manual_seed(0))
    loss, samples = model(tokens, labels=tokens), TextGenerator(model, BYTES).generate("a", n=8, max_tokens=20)
    with torch.no_grad():
        model.head.weight[257:] *= 100
    assert (
        torch.equal(model(tokens, labels=tokens), loss)
        and TextGenerator(model, BYTES).generate("a", n=8, max_tokens=20) == samples
    )
    model.vocab_size = 320
    assert model(tokens, labels=tokens) > 2 * loss
    monkeypatch.setattr(TextTokenizer, "vocab_size", 320)
    with pytest.raises(IndexError):
        TextGenerator(model, BYTES).generate("a", n=8, max_tokens=20)


# --- sampling


def test_a_first_token_for_all_samples_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: the token after the one pass over the prompt drawn once (nanochat 8f979a8)."""
    generator, right = TextGenerator(lively(GPT(GPTConfig(**SIZE))), BYTES), row.stream

    def first_tokens() -> set[int]:
        return {s.tokens[0] for s in generator.generate("a", n=16, max_tokens=3, temperature=1.5) if s.tokens}

    assert len(first_tokens()) > 8

    monkeypatch.setattr(row, "stream", lambda seed, index: right(seed, 0))
    assert len(first_tokens()) == 1


def test_stop_matching_that_starts_over_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back, litgpt's: at a mismatch the match starts over behind it, so 12 is missed in 112."""

    class StartsOver(Continuation):
        matched = 0

        def add(self, token: int, logprob: float, top: Any = ()) -> None:
            (stop,) = self.stop
            text, self.stop = self.text, []
            super().add(token, logprob, top)
            self.stop = [stop]
            new = self.text[len(text) :]
            self.matched = self.matched + 1 if new == stop[self.matched] else 0
            if self.matched == len(stop):
                self.text = self.text[: -len(stop)]
                self.finish("stop")

    generator = TextGenerator(Scripted("1123"), BYTES)
    assert generator.generate("", stop="12")[0].text == "1"
    monkeypatch.setattr(row, "Continuation", StartsOver)
    assert generator.generate("", stop="23")[0].text == "11", "it works but for the bug"
    assert generator.generate("", stop="12")[0].text == "1123"


def test_characters_decoded_token_by_token_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: each token's bytes shown as they come (nanochat 4c3590c, litgpt#1559)."""

    class Hasty(Continuation):
        def __init__(self, *args: Any):
            super().__init__(*args)
            self.characters = self  # type: ignore[assignment]

        def decode(self, raw: bytes) -> str:
            return raw.decode(errors="replace")

    generator = TextGenerator(Scripted("é→🎈"), BYTES)
    assert list(generator.stream("")) == ["é", "→", "🎈"]
    monkeypatch.setattr(row, "Continuation", Hasty)
    assert "".join(generator.stream("")) == "\ufffd" * 9
