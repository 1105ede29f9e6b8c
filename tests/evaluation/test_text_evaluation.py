"""Figures of language models, against hand-computed ones and against predictors whose faults are known."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.config.commands import DecodingSettings
from gengen.data.text.shards import TokenStream, write_shards
from gengen.data.text.tokenizer import TextTokenizer
from gengen.evaluation import text as evaluation
from gengen.evaluation.text import (
    calibration,
    copies,
    distinct,
    latency,
    loss_by_place,
    predictions,
    real_passages,
    repeated,
    text_figures,
)


def stream(folder: Path, split: str, tokens: list[int]) -> TokenStream:
    write_shards(folder, split, [tokens], 300, "t")
    return TokenStream(folder, split, "t")


# --- predictions


class Bigrams(nn.Module):
    """Logits that depend on the last token and on its place in the window; it remembers its largest batch."""

    def __init__(self, vocab_size: int, context: int):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(2 * torch.randn(vocab_size, vocab_size, generator=draw))
        self.sharper = 1 + torch.arange(context)[:, None] / context
        self.largest = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.largest = max(self.largest, len(tokens))
        return self.table[tokens] * self.sharper


def test_every_token_but_the_first_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(0, 11, (103,), generator=torch.Generator().manual_seed(1)).tolist()
    model, held_out = Bigrams(11, 8), stream(tmp_path, "val", tokens)
    nats, confidence, correct, place = predictions(model, held_out, 8, 11)
    assert place.tolist() == [i % 8 for i in range(102)]
    for i in range(102):
        p = (model.table[tokens[i]] * (1 + (i % 8) / 8)).double().softmax(0)
        assert nats[i].item() == pytest.approx(-p[tokens[i + 1]].log().item(), abs=1e-5)
        assert confidence[i].item() == pytest.approx(p.max().item(), abs=1e-5)
        assert correct[i].item() == (p.argmax().item() == tokens[i + 1])
    monkeypatch.setattr(evaluation, "LOGITS", 3 * 8 * 11)
    model.largest = 0
    assert torch.equal(predictions(model, held_out, 8, 11)[0], nats) and model.largest == 3


def test_a_long_validation_part_is_looked_at_in_windows_all_over_it(tmp_path: Path) -> None:
    tokens = [i // 8 % 250 for i in range(1601)]  # window w holds 8 times w, and w + 1 as its last label
    model = Bigrams(250, 8)
    nats, *_ = predictions(model, stream(tmp_path, "val", tokens), 8, 250, limit=500)
    every = [w for w in range(0, 200, 4)]
    assert len(nats) == 8 * len(every) <= 500
    expected = [-(model.table[w] * (1 + 7 / 8)).log_softmax(0)[(w + 1) % 250].item() for w in every]
    torch.testing.assert_close(nats[7::8], torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


def test_calibration_by_hand() -> None:
    confidence = torch.tensor([0.91, 0.91, 0.91, 0.91, 0.5, 0.5, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, True, True, False, True, True, False])
    found = calibration(confidence, correct)
    assert found["accuracy"] == 5 / 7
    assert found["ece"] == pytest.approx((4 * 0.16 + 2 * 0.5 + 1 * 1.0) / 7)
    assert found["reliability"] == [
        {"confidence": 0.5, "accuracy": 1.0, "tokens": 2},
        {"confidence": pytest.approx(0.91), "accuracy": 0.75, "tokens": 4},
        {"confidence": 1.0, "accuracy": 0.0, "tokens": 1},
    ]


@pytest.mark.parametrize("gap", [0.0, 0.2, -0.1])
def test_the_calibration_error_is_the_gap_between_confidence_and_truth(gap: float) -> None:
    draw = torch.Generator().manual_seed(0)
    confidence = 0.25 + 0.6 * torch.rand(200_000, generator=draw, dtype=torch.float64)
    correct = torch.rand(200_000, generator=draw, dtype=torch.float64) < confidence - gap
    assert calibration(confidence, correct)["ece"] == pytest.approx(abs(gap), abs=5e-3)


def test_loss_by_place_by_hand() -> None:
    place = torch.arange(16).repeat(3)
    found = loss_by_place(place.double() + torch.tensor([0.0, 1.0, 5.0]).repeat_interleave(16), place, 16)
    assert found == [{"from": 2 * b, "to": 2 * b + 1, "loss": 2 * b + 2.5} for b in range(8)]
    assert loss_by_place(torch.ones(4), torch.tensor([0, 1, 2, 0]), 3) == [
        {"from": i, "to": i, "loss": 1.0} for i in range(3)
    ]


# --- samples beside real text


def test_distinct_and_repeated_by_hand() -> None:
    texts = [[1, 2, 1, 2], [1, 2], []]
    assert [distinct(texts, n) for n in (1, 2, 3, 5)] == [2 / 6, 2 / 4, 2 / 2, None]
    assert repeated([[1, 2, 1, 2, 1, 2], [1, 2, 3], [1]], 2) == pytest.approx((3 / 5 + 0) / 2)
    assert repeated([[1]], 2) is None


class Spelling:
    """Token i spells i letters."""

    def decode_bytes(self, tokens: list[int]) -> bytes:
        return b"x" * sum(tokens)

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def test_the_longest_copy_in_tokens_and_in_bytes() -> None:
    texts = [[1, 1, 1, 9, 8], [2, 7], []]
    matching = [np.array([3, 2, 1, 2, 1]), np.array([0, 1]), np.array([], int)]  # 1 1 1 and 9 8; 7
    found = copies(texts, matching, Spelling())  # type: ignore[arg-type]
    assert found["longest_copies"] == [(3, 17), (1, 7), (0, 0)]
    assert (found["longest_copy"], found["longest_copy_bytes"], found["mean_longest_copy"]) == (
        3,
        17,
        pytest.approx(4 / 3),
    )
    assert found["longest_passage"] == "1 1 1" and found["copied_4"] == 0 and found["copied_8"] is None


def test_real_passages_begin_as_samples_do(tmp_path: Path) -> None:
    documents = [[0, *range(10 * i + 1, 10 * i + 1 + size)] for i, size in enumerate([5, 2, 6, 5, 9, 5])]
    val = stream(tmp_path, "val", [token for document in documents for token in document])
    passages = real_passages(val, [3, 5, 4], eot=0)  # documents of at least 5, evenly chosen
    assert passages == [[1, 2, 3], [21, 22, 23, 24, 25], [41, 42, 43, 44]]
    tokens = val.read(0, len(val)).tolist()
    assert real_passages(val, [9, 9], eot=0) == [
        tokens[:9],
        tokens[14:23],
    ]  # one document is that long: 38 - 9 places, halved


def test_copies_of_training_text_are_found_and_real_text_is_the_scale(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    train, val = (torch.randint(1, 257, (5000,), generator=draw).tolist() for _ in range(2))
    prepared = SimpleNamespace(
        train=stream(tmp_path, "train", train), val=stream(tmp_path, "val", val), tokenizer=TextTokenizer.byte()
    )
    samples = [SimpleNamespace(tokens=train[i : i + 50], finish_reason="length") for i in (0, 2000, 4950)]
    samples.append(SimpleNamespace(tokens=val[100:150], finish_reason="end"))
    found = text_figures(samples, prepared)  # type: ignore[arg-type]
    drawn, real = found["samples"], found["real"]
    assert drawn["copied_4"] == drawn["copied_16"] == 0.75 and real["copied_4"] == 0
    assert drawn["longest_copy"] == 50 and drawn["longest_copies"][1] == (50, 50) and real["longest_copy"] <= 3
    assert drawn["longest_passage"] == TextTokenizer.byte().decode(train[:50])
    assert drawn["mean_tokens"] == real["mean_tokens"] == 50 and drawn["finish_reasons"] == {"length": 3, "end": 1}


def test_latency_by_a_clock_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the prompt takes 20 ms, a token 5 ms; the first draw of a process takes longer and is not counted."""
    now = 0.0
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: now)

    class Generator:
        def samples(self, prompt: str, settings: DecodingSettings, *, interrupted: Callable[[], bool]) -> list[Any]:
            nonlocal now
            assert settings.temperature == 0.5
            now += 0.02 + (settings.seed == 0)
            for _ in range(settings.max_tokens if settings.seed != 2 else 1):  # one text ends with its first token
                assert not interrupted()
                now += 0.005
            return []

    asked = DecodingSettings(max_tokens=200, seed=7, temperature=0.5)
    found = latency(Generator(), "text", asked)  # type: ignore[arg-type]
    assert found == {"first_token_ms": pytest.approx(25), "next_token_ms": pytest.approx(5)}


# --- the command


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("text-runs")
    assert main(["train", *tiny, "trainer.max_steps=10", f"runs_dir={runs}", "run=t"]) == 0
    return runs / "t"


def test_evaluate_reports_all_of_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "samples=3", "max_tokens=60", "temperature=1", "top_k=20"]) == 0
    found = json.loads((trained / "evaluation.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    logged = read_metrics(trained / "metrics.csv")[-1]
    assert (found["val/bpb"], found["val/loss"]) == pytest.approx((logged["val/bpb"], logged["val/loss"]), rel=1e-6)
    text = found["validation"]
    assert text["perplexity"] == pytest.approx(math.exp(found["val/loss"]))
    assert found["val/bpb"] == pytest.approx(found["val/loss"] * text["tokens"] / math.log(2) / text["bytes"])
    curve, blocks = found["calibration"]["reliability"], found["loss_by_place"]
    assert sum(point["tokens"] for point in curve) == text["tokens"]  # few enough to look at each
    assert [block["from"] for block in blocks] == list(range(0, 48, 6))
    places = np.bincount(np.arange(text["tokens"]) % 48 // 6)  # tokens in each block: the last window is shorter
    assert np.average([block["loss"] for block in blocks], weights=places) == pytest.approx(
        found["val/loss"], rel=1e-6
    )
    assert set(found["samples"]) == {*found["real"], "finish_reasons"} and found["samples"]["mean_tokens"] == 60
    assert (
        found["settings"].items()
        >= {"max_tokens": 60, "temperature": 1.0, "top_k": 20, "top_p": None, "seed": 0}.items()
    )
    assert all(
        found["speed"][key] > 0
        for key in ("parameters", "tokens_per_second", "first_token_ms", "next_token_ms", "peak_memory_mb")
    )
    page = (trained / "evaluation" / "evaluation.html").read_text()
    assert (
        page.count("<h3>") == 4 and "data:image/png;base64," in page and not re.search(r"https?:|src='(?!data:)", page)
    )


def test_without_samples_only_the_model_is_judged(trained: Path) -> None:
    assert main(["evaluate", str(trained), "samples=0"]) == 0
    found = json.loads((trained / "evaluation.json").read_text())
    assert "samples" not in found and "tokens_per_second" not in found["speed"] and found["calibration"]["ece"] < 1


def test_each_kind_of_run_has_its_own_keys(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "sampler=heun"]) == 2
    assert "unknown key sampler" in capsys.readouterr().err
    assert main(["evaluate", str(trained), "--help"]) == 0
    assert "temperature" in (shown := capsys.readouterr().out) and "sampler" not in shown
    assert main(["evaluate", "--help"]) == 0
    assert "temperature" in (shown := capsys.readouterr().out) and "sampler" in shown


def test_a_page_shows_text_as_text() -> None:
    figures = {
        "checkpoint": "step-1",
        "validation": {},
        "speed": {},
        "loss_by_place": loss_by_place(torch.ones(3), torch.arange(3), 3),
    }
    figures["calibration"] = calibration(torch.tensor([0.5, 0.9]).double(), torch.tensor([True, False]))
    column = {
        "longest_copies": [(1, 1)],
        "longest_passage": "<b>",
        "distinct_1": 0.123456,
        "longest_copy": 1234,
        "copied_16": 0.5,
    }
    figures |= {"samples": column, "real": column | {"copied_16": None}}
    sample = SimpleNamespace(index=0, finish_reason="end", text="<script>alert(1)</script>")
    page = evaluation.page(figures, [sample])  # type: ignore[list-item]
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>" not in page
    assert "<td>1,234</td>" in page and "<td>0.1235</td>" in page and "<td>0.5</td><td></td>" in page
