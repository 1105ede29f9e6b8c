"""Stopped and resumed equals never stopped, for every stage after pretraining: inside an epoch, inside an iteration,
inside a rollout.
"""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from gengen.checkpoints import store
from gengen.checkpoints.files import to_json
from gengen.checkpoints.layout import read, write
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.data.sources.storygen import examples
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.load import load_generator
from gengen.generation.text.rewards import load_reward
from gengen.generation.text.scheduler import Scheduler
from gengen.registry import register_reward
from gengen.training.objectives import online_rl
from gengen.training.objectives.online_rl import OnlineRL
from gengen.training.objectives.rollout import Rollout
from helpers.processes import forked, forked_ranks
from helpers.runs import curve, last_checkpoint, same_checkpoint, same_run, signals_itself

RHYTHM = [
    "trainer.max_steps=12",
    "trainer.eval_every=6",
    "trainer.save_every=8",
    "trainer.log_every=1",
    "trainer.sample_every=12",
]
DRAWN = ["stage.max_tokens=6", "stage.minibatches=2", "stage.table_every=2", "data.micro_batch_size=4"]
ADAPTED = ["model.lora.rank=4"]
STAGES: dict[
    str, tuple[str, list[str]]
] = {  # the kind of its data, and settings; an iteration of PPO is 4 steps, of GRPO 2
    "sft": ("conversations", ["data=stories", "optim.ema=0.9"]),
    "reward": ("preferences", ["data=preferences"]),
    "dpo": ("preferences", ["data=preferences"]),
    "ppo": ("prompts", ["data=prompts", *DRAWN, "stage.kl_target=0.01", "stage.kl_horizon=100"]),
    "grpo": ("prompts", ["data=prompts", *DRAWN, "stage.group_size=4"]),
    "dpo by simpo": ("preferences", ["data=preferences", "stage.loss=simpo", "stage.beta=2"]),
    "dpo by orpo": ("preferences", ["data=preferences", "stage.loss=orpo"]),
    "kto": ("preferences", ["data=ratings", "stage.good=1.5"]),
    "grpo of answers": ("prompts", ["data=prompts", *DRAWN, "stage.group_size=4", "stage.overlong=3",
        "stage.importance=sequence", "stage.aggregate=sequence"]),
    "sft by lora": ("conversations", ["data=stories", *ADAPTED, "model.lora.dropout=0.1", "optim.ema=0.9"]),
    "reward by lora": ("preferences", ["data=preferences", *ADAPTED]),
    "dpo by lora": ("preferences", ["data=preferences", *ADAPTED]),
    "kto by lora": ("preferences", ["data=ratings", *ADAPTED]),
    "ppo by lora": ("prompts", ["data=prompts", *DRAWN, *ADAPTED]),
    "grpo by lora": ("prompts", ["data=prompts", *DRAWN, "stage.group_size=4", *ADAPTED]),
}  # fmt: skip
Made = Callable[[str], tuple[list[str], Path]]


@pytest.fixture(scope="module")
def after_base(base: Path, tiny_alignment: list[str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """stage -> the settings of a run of it, and such a run that was never stopped. The data are few."""
    runs, made = tmp_path_factory.mktemp("runs"), dict[str, tuple[list[str], Path]]()

    def of(stage: str) -> tuple[list[str], Path]:
        if stage not in made:
            kind, own = STAGES[stage]
            name = stage.replace(" ", "-")
            few = tmp_path_factory.mktemp(name) / f"{kind}.jsonl"
            few.write_text("".join(json.dumps(row) + "\n" for row in islice(examples(kind, "train"), 60)))
            source = base if stage.startswith("sft") else of("sft by lora" if "lora" in stage else "sft")[1]
            settings = [
                f"stage={stage.split()[0]}",
                f"init_from={source}",
                *own,
                f"data.path={few}",
                "data.validation=0.2",
                "data.batch_size=8",
            ]
            settings += [f"stage.reward={of('reward')[1]}"] if kind == "prompts" else []
            made[stage] = [*settings, *RHYTHM, *tiny_alignment], runs / name
            assert main(["train", *made[stage][0], f"runs_dir={runs}", f"run={name}"]) == 0
        return made[stage]

    return of


@pytest.mark.fault("F1")
@pytest.mark.fault("F5")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_resumes_exactly(after_base: Made, tmp_path: Path, stage: str) -> None:
    """Stopped after the first step, in the middle, and before the last."""
    settings, straight = after_base(stage)
    for argv in ([*settings, "stop_at=1"], ["stop_at=6"], ["stop_at=11"], []):
        assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r"]) == 0
    same_run(straight, tmp_path / "r")
    assert len(curve(straight)) == 12


@pytest.mark.slow
def test_two_ranks_share_the_baseline_of_kto(after_base: Made, tmp_path: Path) -> None:
    """It is that of the step's whole batch, so the curve is that of one rank."""
    settings, straight = after_base("kto")
    argv = ["train", *settings, "trainer.devices=2", f"runs_dir={tmp_path}", "run=r"]
    ended = forked(argv, before=forked_ranks())
    assert ended.code == 0, ended.said
    one, two = ([row["train/loss"] for row in curve(run)] for run in (straight, tmp_path / "r"))
    assert len(two) == 12 and two == pytest.approx(one, rel=1e-5)


def test_every_checkpoint_of_a_reward_model_has_the_scale_of_its_weights(after_base: Made) -> None:
    """Also one that is not the last: a run that was stopped early is as good a reward."""
    settings, straight = after_base("reward")
    kept = [store.step_of(path) for path in store.all_steps(straight / "checkpoints")]
    assert kept[0] == 12 and 8 in kept
    pairs = [json.loads(line) for line in Path(settings[3].removeprefix("data.path=")).read_text().splitlines()]
    for step in kept:
        scorer = load_generator(str(straight / "checkpoints" / f"step-{step:09d}"), device="cpu")
        asked = [pair["prompt"] for pair in pairs for _ in range(2)]
        said = [pair[side] for pair in pairs for side in ("chosen", "rejected")]
        ended = [pair[f"{side}_ended"] for pair in pairs for side in ("chosen", "rejected")]
        scores = scorer.score(asked, said, ended)  # of 60 pairs, 48 of which the scale is of
        assert abs(scores.mean()) < 0.3 and abs(scores.std() - 1) < 0.3, step


def test_a_reward_model_without_a_scale_is_refused(after_base: Made, tmp_path: Path, capsys: Any) -> None:
    """One that an older gengen stopped early: its gain is 1 and its bias 0. The run that wanted it leaves nothing."""
    settings, _ = after_base("ppo")
    saved = read(last_checkpoint(after_base("reward")[1]))
    saved.model |= {"gain": torch.ones(()), "bias": torch.zeros(())}
    (unscaled := tmp_path / "rm" / "checkpoints" / "step-000000012").mkdir(parents=True)
    write(unscaled, saved)
    (tmp_path / "rm" / "config.json").write_text(to_json(saved.config))
    argv = [setting for setting in settings if not setting.startswith("stage.reward=")]
    assert main(["train", *argv, f"stage.reward={tmp_path / 'rm'}", f"runs_dir={tmp_path}", "run=r"]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path / 'rm'} was stopped before its scores were given mean 0 and variance 1" in message
    assert not (tmp_path / "r").exists()
    tokenizer = TextTokenizer.from_json(saved.tokenizer or "")
    with pytest.raises(UserError, match="was stopped before its scores were given mean 0 and variance 1"):
        load_reward([str(tmp_path / "rm")], tmp_path, tokenizer, "cpu")
    load_reward([str(unscaled)], tmp_path, tokenizer, "cpu", frozen=True)  # a run that began with it goes on


@register_reward("of_even_prompts")
def of_even_prompts(prompt: str, response: str, ended: bool) -> float | None:
    return 1.0 if int(prompt.split()[-1]) % 2 == 0 else None


def test_pairs_without_a_reward_are_left_out(after_base: Made, tmp_path: Path, capsys: Any) -> None:
    """Such a pair was labelled all the same: the second answer was the chosen one."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {i}"}) + "\n" for i in range(6)))
    ask = [
        "pairs",
        str(after_base("sft")[1]),
        f"prompts={prompts}",
        f"out={out}",
        "reward=of_even_prompts",
        "max_tokens=4",
    ]
    assert main(ask) == 0
    assert "left out 3 pairs, as there is no reward for one of their answers" in capsys.readouterr().out
    asked = [json.loads(line)["prompt"][0]["content"] for line in out.read_text().splitlines()]
    assert asked == ["what is 0", "what is 2", "what is 4"]
    out.unlink()
    prompts.write_text(json.dumps({"prompt": "what is 1"}) + "\n")
    assert main(ask) == 2 and not out.exists()
    assert "none of the 1 pairs has a reward for both of its answers" in capsys.readouterr().err


def signalled_in_rollout(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have a rollout send this process a signal when it is to draw its third tokens."""
    collect, calls = OnlineRL.collect, iter(range(1, 10**6))

    def drawn(self: OnlineRL, interrupted: Callable[[], bool]) -> Any:
        if next(calls) == number:
            signals_itself(monkeypatch, Scheduler, "make_step", 3, signal.SIGTERM)
        return collect(self, interrupted)

    monkeypatch.setattr(OnlineRL, "collect", drawn)


@pytest.mark.fault("F15")
@pytest.mark.parametrize("stage,steps", [("ppo", 4), ("grpo", 2)])
def test_a_signal_inside_a_rollout(
    after_base: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, steps: int
) -> None:
    """The iteration begins anew; of the answers that were drawn nothing is left. In the first rollout, also of a run
    that was stopped in it before; in one before which no checkpoint is due, and in one before which there is one."""
    settings, straight = after_base(stage)
    for argv, begun, step in ((settings, 0, 0), ([], 0, 0), ([], 0, 4), ([], 4, 8)):
        with monkeypatch.context() as patch:
            signalled_in_rollout(patch, (step - begun) // steps + 1)
            assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r"]) == 143
        assert store.step_of(last_checkpoint(tmp_path / "r")) == step
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    same_run(straight, tmp_path / "r")


def test_not_a_number_stops_no_save(after_base: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an iteration found belongs to the checkpoint, NaN and infinity, too; so does the table of its answers."""
    score_rollout, table = OnlineRL.score_rollout, online_rl.table

    def scored(self: OnlineRL, answers: list[Any], interrupted: Callable[[], bool]) -> bool:
        done = score_rollout(self, answers, interrupted)
        self.figures |= {"explained_variance": math.nan, "return": -math.inf}
        return done

    def drawn(rollout: Rollout, answers: list[Any]) -> str:
        ref_log_probs = rollout.ref_log_probs.clone()
        ref_log_probs[0][rollout.mask[0] > 0] = -math.inf
        ref_log_probs[1][rollout.mask[1] > 0] = math.nan
        return table(replace(rollout, ref_log_probs=ref_log_probs), answers)

    monkeypatch.setattr(OnlineRL, "score_rollout", scored)
    monkeypatch.setattr(online_rl, "table", drawn)
    settings, _ = after_base("ppo")
    argv = [*settings, "trainer.eval_every=3", f"runs_dir={tmp_path}"]
    assert main(["train", *argv, "run=a", "stop_at=3"]) == 0
    assert main(["train", *argv, "run=b", "stop_at=2"]) == 0
    assert main(["train", f"runs_dir={tmp_path}", "run=b", "stop_at=3"]) == 0
    same_checkpoint(last_checkpoint(tmp_path / "a"), last_checkpoint(tmp_path / "b"))
    for run in "ab":
        rows = read_metrics(tmp_path / run / "metrics.csv")
        assert [(str(row["explained_variance"]), row["return"]) for row in rows] == [("nan", -math.inf)] * 3
    table = (tmp_path / "a" / "samples" / "step-000000000-answers.jsonl").read_text().splitlines()
    kl = [json.loads(line, parse_constant=pytest.fail)["kl"] for line in table]
    assert kl[:2] == [{"float": "inf"}, {"float": "nan"}] and all(math.isfinite(nats) for nats in kl[2:])


def test_the_kl_controller_is_in_the_checkpoint(after_base: Made) -> None:
    """What verl and OpenRLHF leave out: beta has moved, and is that of the last row."""
    _, straight = after_base("ppo")
    extra = json.loads((last_checkpoint(straight) / "optimizer.json").read_text())["extra"]
    betas = [row["beta"] for row in read_metrics(straight / "metrics.csv")]
    assert betas[0] == pytest.approx(0.05) and len(set(betas)) == 3
    assert extra["beta"] not in betas and extra["iteration"] == 3 and extra["cursor"] == 0 and not extra["buffer"]


@pytest.mark.fault("F5")
@pytest.mark.parametrize(
    "forgotten", [{"buffer": {}}, {"beta": 0.05}, {"iteration": 0}], ids=["answers", "beta", "iteration"]
)
def test_a_forgotten_state_would_be_noticed(
    after_base: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: dict[str, Any]
) -> None:
    """The bug put back: a checkpoint inside an iteration without a part of what the iteration is."""
    settings, straight = after_base("ppo")
    assert main(["train", *settings, f"runs_dir={tmp_path}", "run=r", "stop_at=6"]) == 0
    original = OnlineRL.load_extra_state
    monkeypatch.setattr(OnlineRL, "load_extra_state", lambda self, state: original(self, state | forgotten))
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    with pytest.raises(AssertionError):
        same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"))
