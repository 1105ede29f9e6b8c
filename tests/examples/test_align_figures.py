"""What the alignment demonstration measures of made-up policies, its gates and its page."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from align_figures import GATES, Drawn, evaluate_policies, gates
from align_page import write_report
from torch import Tensor

from gengen.data.sources.storygen import LABEL_SCALE, examples


class Coin(torch.nn.Module):
    """A language model that knows no context: each next token has the same probabilities."""

    def __init__(self, probabilities: list[float]):
        super().__init__()
        self.embedding = torch.nn.Embedding(1, 1)
        self.log_p = torch.tensor(probabilities).log()

    def features(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, 1)

    def logits(self, features: Tensor) -> Tensor:
        return self.log_p.expand(*features.shape[:-1], -1) + 3  # logits have no normaliser


class Tokenizer:
    """A token a character; 0 begins, 1 ends."""

    start, eot = 0, 1

    def encode(self, text: str) -> list[int]:
        return [2 + ord(letter) % 90 for letter in text]


class Storyteller:
    """A policy that answers with one of its texts, and ends; or, told to, does not."""

    def __init__(self, tell: Any, ends: float = 1.0, weights: float = 0.0):
        self.tell, self.ends, self.tokenizer = tell, ends, Tokenizer()
        self.model: Any = Coin([math.exp(weights * (i == 1)) for i in range(92)])

    def prompt_tokens(self, prompt: str) -> list[int]:
        self.prompts = [*getattr(self, "prompts", []), prompt]
        return [0, *self.tokenizer.encode(prompt)]

    def generate(
        self, prompts: list[list[int]], *, n: int, seed: int, temperature: float, max_tokens: int
    ) -> list[Any]:
        assert temperature == 1
        draws, told = np.random.default_rng(seed), []
        for i in range(len(prompts) * n):
            text = self.tell(self.prompts[i // n], draws)
            ended = draws.random() < self.ends
            told.append(
                SimpleNamespace(
                    prompt="",
                    text=text,
                    tokens=self.tokenizer.encode(text),
                    finish_reason="end" if ended else "length",
                )
            )
        return told


def teller(happy: float, asked: float) -> Any:
    """Stories that are happy, and that have the requested words, as often as is said."""

    def tell(prompt: str, draws: np.random.Generator) -> str:
        from gengen.data.sources.storygen import requested

        words = " and ".join(word for word in requested(prompt) if draws.random() < asked)
        return (
            f"Here is {words} number {draws.integers(10**6)}. They were {'glad' if draws.random() < happy else 'sad'}."
        )

    return tell


class Judge:
    """A reward model that knows gold, but for noise; normalised at will."""

    def __init__(self) -> None:
        self.noise = np.random.default_rng(1)

    def outputs(self, answers: Any) -> Tensor:
        heads = [a.text.split(" number")[0].removeprefix("Here is ") for a in answers]
        told = [
            2.0 * ("glad" in a.text) + len(head.split(" and ")) / 2 * bool(head)
            for a, head in zip(answers, heads, strict=True)
        ]
        return LABEL_SCALE * torch.tensor(told) + 0.3 * torch.from_numpy(self.noise.standard_normal(len(told)))

    def __call__(self, answers: Any) -> Tensor:
        return self.outputs(answers) / 2


def judgement(seed: int, ppo: float = 0.9) -> dict[str, Any]:
    told = [record["messages"] for record in examples("conversations", "val")][:60]
    policies: Any = {
        "base": Storyteller(teller(0.3, 0.1), ends=0.5),
        "sft": Storyteller(teller(0.5, 0.7)),
        "ppo": Storyteller(teller(ppo, 0.8), weights=3.0),
        "dpo": Storyteller(teller(0.8, 0.7)),
        "grpo": Storyteller(teller(0.5, 1.0)),
    }
    judges: Any = Judge()
    found = evaluate_policies(policies, judges, [(m[0]["content"], m[1]["content"]) for m in told], seed, 56)
    return {"seed": seed, "seconds": {"sft": 20.5, "ppo": 118.0}} | found


@pytest.fixture(scope="module")
def judgements() -> list[dict[str, Any]]:
    return [judgement(0), judgement(1), judgement(2, ppo=0.5)]


def test_what_was_cut_off_does_not_pass() -> None:
    drawn = Drawn([], 1, np.array([[True, True, False]]), np.zeros((1, 3)), np.array([[1.0, 0.5, 1.0]]))
    assert drawn.passed.tolist() == [[True, False, False]]


def test_made_up_policies_are_judged_by_what_they_do(judgements: list[dict[str, Any]]) -> None:
    f = judgements[0]["figures"]
    assert f["sft"]["coverage_gain"] == pytest.approx(0.6, abs=0.05)
    assert f["sft"]["ended"] == 1 and f["sft"]["coverage_before"] == pytest.approx(0.1, abs=0.05)
    assert f["sft"]["nll"] == pytest.approx(f["sft"]["nll_before"])  # one model told all these stories
    assert f["ppo"]["gold_gain"] == pytest.approx(0.8 + 0.1, abs=0.15)
    assert f["ppo"]["gold_gain_low"] < f["ppo"]["gold_gain"] < f["ppo"]["gold_gain_high"]
    assert 0.6 < f["ppo"]["win_rate"] < 0.8 and f["ppo"]["score_gain"] > 0
    assert f["dpo"]["distinct_2_kept"] == pytest.approx(1, abs=0.05)  # of as many answers of either
    assert f["grpo"]["passed_before"] == pytest.approx(0.49, abs=0.06) and f["grpo"]["passed"] == 1
    assert f["grpo"]["pass_at_8"] == 1 and f["grpo"]["pass_at_8_gain_high"] >= 0
    assert f["reward"]["pairs"] == 60 * 8 and abs(f["reward"]["below_ceiling"]) < 0.06
    assert f["reward"]["ece"] < 0.06 and 0.6 < f["reward"]["spearman"] < f["reward"]["spearman_ceiling"] < 1
    bests = [f[f"best_of_{n}"] for n in (1, 2, 4, 8, 16)]
    assert bests[0]["gold_gain"] == 0 and [b["gold"] for b in bests] == sorted(b["gold"] for b in bests)
    assert [b["kl"] for b in bests] == pytest.approx([0, 0.1931, 0.6363, 1.2044, 1.8351], abs=1e-4)
    assert f["dpo"]["kl"] == f["grpo"]["kl"] == 0 and f["dpo"]["accuracy"] == 0.5  # the same weights as SFT's
    normalizer = math.log((math.e**3 + 91) / 92)
    assert f["ppo"]["kl"] == pytest.approx(
        3 - (f["ppo"]["tokens"] + 1) * normalizer, abs=1e-3
    )  # it ends e^3 times as readily


def test_gates_are_met_or_not_by_each_seed(judgements: list[dict[str, Any]]) -> None:
    found = {(g["stage"], g["figure"], g["sign"]): g["met"] for g in gates([j["figures"] for j in judgements])}
    assert len(found) == len(GATES)
    assert found["ppo", "gold_gain", ">="] == found["ppo", "win_rate", ">="] == [True, True, False]
    assert found["sft", "coverage_gain", ">="] == found["sft", "ended", ">="] == [True] * 3
    assert (
        found["sft", "nll_saved", ">="]
        == found["ppo", "kl", ">="]
        == found["dpo", "below_reward", "<="]
        == [False] * 3
    )
    assert found["grpo", "passed_gain", ">="] == [True] * 3


def test_a_gate_stands_where_the_table_says() -> None:
    figures: Any = {stage: {name: threshold for s, name, _, threshold in GATES if s == stage} for stage, *_ in GATES}
    at = {
        (g["figure"], g["sign"], g["stage"]): g["met"][0]
        for g in gates([figures | {"ppo": figures["ppo"] | {"kl": 12.0}}])
    }
    assert (
        not at["gold_gain_low", ">", "ppo"] and not at["score_gain", ">", "ppo"]
    )  # an interval above 0, not from 0 on
    assert (
        at["kl", "<=", "ppo"] and at["kl", ">=", "ppo"] and at["win_rate", ">=", "ppo"] and at["ece", "<=", "reward"]
    )
    assert not gates([figures | {"ppo": figures["ppo"] | {"kl": 12.1}}])[9]["met"][0]


def test_the_report_holds_all(judgements: list[dict[str, Any]], tmp_path: Path) -> None:
    report = write_report("toy", "test", judgements, tmp_path)
    assert json.loads((tmp_path / "alignment_report.json").read_text()) == json.loads(json.dumps(report))
    rows = {(row["stage"], row["seed"]): row for row in report["stages"]}
    assert len(rows) == 18
    f = judgements[1]["figures"]["ppo"]
    assert rows["ppo", 1] == {
        "stage": "ppo", "seed": 1, "metric": "gold", "before": f["gold_before"], "after": f["gold"],
        "gain": f["gold_gain"], "interval": [f["gold_gain_low"], f["gold_gain_high"]], "kl": f["kl"], "seconds": 118.0,
    }  # fmt: skip
    page = (tmp_path / "alignment_report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "http" not in page
    assert "2 of 3" in page and "3 of 3" in page and "best_of_16" in page
    for sample in judgements[0]["samples"]:
        assert (
            sample["prompt"] in page
            and sample["ppo"] in page
            and set(sample) == {"prompt", "base", "sft", "ppo", "dpo", "grpo"}
        )
