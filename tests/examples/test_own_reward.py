"""examples/own_reward.py, as its first lines say it is used."""

import importlib
import json
import shutil
import sys
from itertools import islice
from pathlib import Path

import pytest

from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.data.sources.storygen import examples
from gengen.registry import PLUGINS, REWARDS

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = ["trainer.max_steps=4", "trainer.eval_every=4", "trainer.save_every=4", "trainer.sample_every=4"]
ONLINE = ["stage.max_tokens=12", "stage.minibatches=2", "stage.missing_end=null", "trainer.log_every=1"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has a copy of the example. What it registers is forgotten afterwards."""
    shutil.copy(EXAMPLES / "own_reward.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("brief", "on_topic"):
        monkeypatch.delitem(REWARDS, name, raising=False)
    monkeypatch.delitem(sys.modules, "own_reward", raising=False)
    PLUGINS.discard("own_reward")
    return tmp_path


def test_what_the_rewards_say(work: Path) -> None:
    own = importlib.import_module("own_reward")
    assert [own.brief("", "word " * n, True) for n in (0, 20, 30, 60)] == [1, 1, 0.5, 0]
    assert own.on_topic("Write about frogs", "frogs write poems", True) == 2 / 3
    assert own.on_topic("a cat", "a cat", True) is None


@pytest.mark.parametrize("stage,own", [
    ("ppo", ["stage.reward=on_topic"]),
    ("grpo", ["stage.reward=brief", "stage.reward=0.5*on_topic", "stage.group_size=4"]),
])  # fmt: skip
def test_it_is_trained_on(
    base: Path, tiny_alignment: list[str], work: Path, monkeypatch: pytest.MonkeyPatch, stage: str, own: list[str]
) -> None:
    """Four steps: the score of each iteration is the mean that the functions give the answers in its table."""
    monkeypatch.setattr("gengen.evaluation.report.write_report", lambda *_: "none")
    prompts = Path("prompts.jsonl")
    prompts.write_text("".join(json.dumps(row) + "\n" for row in islice(examples("prompts", "train"), 40)))
    data = ["data=prompts", f"data.path={prompts}", "data.validation=0.2", "data.batch_size=8"]
    argv = [f"stage={stage}", f"init_from={base}", *data, *own, "plugins=[own_reward]", *ONLINE, *STEPS]
    assert main(["train", *argv, *tiny_alignment, "stage.table_every=1", "run=r"]) == 0
    rewards = importlib.import_module("own_reward")
    table = [json.loads(line) for line in Path("runs/r/samples/step-000000000-answers.jsonl").read_text().splitlines()]
    asked = [(row["prompt"], row["answer"], row["ended"]) for row in table]
    worth = [rewards.on_topic(*one) for one in asked]
    if stage == "grpo":
        worth = [rewards.brief(*one) + 0.5 * topic for one, topic in zip(asked, worth, strict=True)]
    assert [row["score"] for row in table] == pytest.approx(worth, abs=1e-4)
    rows = read_metrics(Path("runs/r/metrics.csv"))
    assert len(rows) == 4 and rows[0]["score"] == pytest.approx(sum(worth) / len(worth), abs=1e-4)
