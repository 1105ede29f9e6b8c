"""Stages as a user types them: what is refused and why, and that each goes on from a run of the one before it."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import gengen
from gengen.checkpoints import store
from gengen.checkpoints.files import read_json
from gengen.checkpoints.layout import read_weights
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import GPTConfig
from gengen.config.stage import OnlineConfig
from gengen.data.sources.storygen import examples
from gengen.models.flops import gpt_flops_per_token
from gengen.registry import DATA, MODELS, STAGES

PPO = ["stage=ppo", "init_from=runs/SFT", "stage.reward=requested_words"]
GRPO = ["stage=grpo", "init_from=runs/SFT", "stage.reward=requested_words"]


@pytest.mark.parametrize("argv,why", [
    ([*PPO, "stage.kl_estimator=k3"], "in the reward only k1 has the gradient of the KL"),
    ([*PPO, "stage.kl_estimator=k2"], "take stage.kl_estimator=k1"),
    ([*GRPO, "stage.kl_estimator=k1"], "the gradient of its mean is zero, so nothing would hold the policy"),
    ([*PPO, "stage.kl_in=loss"], "take stage.kl_estimator=k2"),
    ([*GRPO, "stage.kl_in=reward"], "in the reward only k1"),
    (["stage=ppo", "init_from=runs/SFT"],
        "needs stage.reward=runs/NAME, a run of stage=reward, or the name of a registered reward"),
    (["stage=grpo", "init_from=runs/SFT"], "stage=grpo needs stage.reward=runs/NAME"),
    (["stage=sft"], "stage=sft goes on from a run: init_from=runs/NAME"),
    (["stage=reward"], "stage=reward goes on from a run: init_from=runs/NAME"),
    (["stage=dpo"], "stage=dpo goes on from a run: init_from=runs/NAME"),
    ([PPO[0], PPO[2]], "stage=ppo goes on from a run: init_from=runs/NAME"),
    ([GRPO[0], GRPO[2]], "stage=grpo goes on from a run: init_from=runs/NAME"),
    ([*PPO, "data=preferences"],
        "stage=ppo is trained on prompts, data=preferences is preferences\n  choose one of data=prompts"),
    (["stage=sft", "init_from=runs/BASE", "data=storygen"],
        "stage=sft is trained on conversations, data=storygen is text"),
    (["stage=dpo", "init_from=runs/BASE", "data=stories"],
        "stage=dpo is trained on preferences, data=stories is conversations"),
    (["data=stories"], "stage=pretrain is trained on text, data=stories is conversations"),
    ([*PPO, "trainer.devices=2"], "stage=ppo runs on one device so far: trainer.devices=1"),
    ([*PPO, "trainer.max_steps=null"], "stage=ppo needs trainer.max_steps"),
    ([*GRPO, "stage.group_size=7"], "= 128 answers are no multiple of stage.group_size=7"),
    ([*GRPO, "stage.group_size=1"], "stage.group_size is int >= 2"),
    ([*PPO, "stage.temperature=0"], "stage.temperature is float > 0"),
    ([*PPO, "stage.group_size=4"], "unknown key stage.group_size=4"),
    ([*GRPO, "stage.critic_lr=1"], "unknown key stage.critic_lr=1"),
    (["stage=rlhf"], "stage=rlhf: no such stage"),
    (["stage=dpo", "init_from=runs/SFT", "stage.smoothing=0.5"], "stage.smoothing is float"),
    (["stage=dpo", "init_from=runs/SFT", "stage.loss=simpo", "stage.reduction=sum"],
        "stage.loss=simpo stage.reduction=sum: without a reference a sum prefers short answers"),
    ([*GRPO, "stage.overlong=100"], "stage.overlong=100: of stage.max_tokens=64 tokens no more can be the last"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(
    argv: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *argv]) == 2
    assert why in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto", "ppo", "grpo"])
def test_a_stage_has_a_recipe(stage: str) -> None:
    """Its own kind of data, its own optimizer's settings; what is typed goes before them."""
    argv = [f"stage={stage}", "init_from=runs/X", *(["stage.reward=requested_words"] * (stage in ("ppo", "grpo")))]
    config = compose_train(read_command_line(argv))
    assert DATA[config.data.name].kind == STAGES[stage].kind and config.optim.name == "adamw"
    assert config.stage.needs_reference == (stage not in ("sft", "reward")) and config.stage.allows_dropout == (
        stage == "sft"
    )
    assert (config.trainer.max_steps is None) == (not isinstance(config.stage, OnlineConfig))
    typed = compose_train(read_command_line([*argv, "optim.lr=0.5", "data.batch_size=64"]))
    assert (typed.optim.lr, typed.data.batch_size) == (0.5, 64)


# --- from run to run


@pytest.fixture
def few(tmp_path: Path, tiny_alignment: list[str]) -> Any:
    """few("prompts", n): settings of a run of few steps on the first n examples of a kind, in a file."""

    def of(kind: str, n: int = 20) -> list[str]:
        file = tmp_path / f"{kind}.jsonl"
        rows = "preferences" if kind == "ratings" else kind
        file.write_text("".join(json.dumps(row) + "\n" for row in islice(examples(rows, "train"), n)))
        name = "stories" if kind == "conversations" else kind
        data = [
            f"data={name}",
            f"data.path={file}",
            "data.validation=0.2",
            "data.batch_size=4",
            f"runs_dir={tmp_path}",
        ]
        return [*data, *tiny_alignment, "trainer.sample_every=99"]

    return of


DRAWN = ["stage.reward=requested_words", "stage.max_tokens=4", "stage.minibatches=1"]


@pytest.mark.parametrize("stage,kind,more", [
    ("dpo", "preferences", []), ("grpo", "prompts", [*DRAWN, "stage.group_size=2"]), ("ppo", "prompts", DRAWN),
])  # fmt: skip
def test_a_base_without_a_chat_can_be_gone_on_from(
    base: Path, few: Any, tmp_path: Path, stage: str, kind: str, more: list[str]
) -> None:
    """Policy and reference have the roles' tokens alike: at first there is no KL, and DPO's loss is ln 2. How much
    they compute beside a pass of the policy has no formula, so no share of the machine's peak is claimed."""
    argv = [
        f"stage={stage}",
        f"init_from={base}",
        *few(kind),
        *more,
        "trainer.max_steps=2",
        "trainer.log_every=1",
        "run=r",
    ]
    assert main(["train", *argv]) == 0
    first, _ = read_metrics(tmp_path / "r" / "metrics.csv")
    assert first["kl"] == 0 if kind == "prompts" else first["train/loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert "mfu" not in first


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "kto", "ppo", "grpo"])
def test_flops_are_counted_where_rows_are_windows(
    base: Path, few: Any, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of texts, and of conversations that are packed into rows as wide as the context."""
    if stage == "pretrain":
        argv = ["model=gpt", "data=storygen"]
    else:
        kind = STAGES[stage].kind
        argv = [f"stage={stage}", f"init_from={base}", *few(kind), *(DRAWN if kind == "prompts" else [])]
        argv += ["stage.group_size=2"] if stage == "grpo" else []
    assert main(["train", *argv, "trainer.max_steps=8", "dry_run=true"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    counted = re.fullmatch(r"[0-9.e+]+ FLOPs a step; [0-9.e+]+ in 8 steps", last)
    assert counted if stage in ("pretrain", "sft") else last == f"FLOPs are not counted for stage={stage}"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto"])
def test_a_cpu_compiles_by_the_same_estimate_in_every_stage(stage: str) -> None:
    """Of a window of the context, as ever: a run that goes on decides as when it began."""
    config = compose_train(read_command_line([f"stage={stage}", "init_from=runs/X"]))
    config.model = model_config = GPTConfig(size="nano").resolved()
    with torch.device("meta"):
        entry = MODELS["gpt"]
        model = entry.load_for("model", stage)(model_config)
        work = entry.load(f"objective:{stage}")(config, model, None).work_per_row()
    assert work == 128 * gpt_flops_per_token(model_config, 128)


def test_new_tokens_of_a_run_start_as_the_mean(base: Path, few: Any, tmp_path: Path) -> None:
    """The roles' four, in a run that learns nothing yet; the old ones are the base's, and the vocabulary is
    recorded."""
    argv = ["stage=sft", f"init_from={base}", *few("conversations"), "optim.lr=1e-30", "stop_at=1", "run=sft"]
    assert main(["train", *argv]) == 0
    checkpoint = store.newest(tmp_path / "sft" / "checkpoints")
    assert checkpoint is not None
    size = read_json(base / "config.json")["model"]["vocab_size"]
    model = read_json(checkpoint / "config.json")["model"]
    assert model["vocab_size"] == size + 4 and model["document_token"] == 0
    before, after = (
        read_weights(path)["embedding.weight"] for path in (store.choose(base / "checkpoints", "latest"), checkpoint)
    )
    torch.testing.assert_close(after[:size], before[:size], rtol=0, atol=0)
    torch.testing.assert_close(after[size : size + 4], before[:size].mean(0).expand(4, -1))


def test_epochs_stand_for_steps_and_a_run_keeps_what_it_needs(
    base: Path, few: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward run, and a policy whose reward and reference outlive the runs they came from."""
    assert main(["train", "stage=reward", f"init_from={base}", *few("preferences"), "stage.epochs=1.5", "run=rm"]) == 0
    pairs = int(capsys.readouterr().out.split(" for training")[0].split()[-1])
    assert store.step_of(store.choose(tmp_path / "rm" / "checkpoints", "latest")) == -(-3 * pairs // 8)
    argv = [
        "stage=ppo",
        f"init_from={base}",
        *few("prompts"),
        "stage.reward=0.5*rm",
        "stage.max_tokens=4",
        "trainer.max_steps=16",
    ]
    assert main(["train", *argv, "run=ppo", "stop_at=4"]) == 0
    kept = gengen.load(str(tmp_path / "ppo" / "reward-0"))
    reward = gengen.load(str(tmp_path / "rm"))
    asked, said = ["write a story about a bear with a cup"], ["One day Tom was happy."]
    assert torch.equal(kept.score(asked, said), reward.score(asked, said)) and kept.score(asked, said) != kept.raw(
        asked, said
    )
    (tmp_path / "rm").rename(tmp_path / "gone")
    assert main(["train", "run=ppo", f"runs_dir={tmp_path}", "stop_at=8"]) == 0
    generator = gengen.load(str(tmp_path / "ppo"))
    assert [sample.prompt for sample in generator.generate("hello", n=2, max_tokens=3)] == ["hello", "hello"]


@pytest.mark.parametrize("argv,why", [
    (["stage=ppo", "stage.reward=nowhere"], "registered rewards are requested_words"),
    (["stage=ppo", "stage.reward=BASE"], "stage=reward trains a reward model"),
    (["stage=ppo", "stage.reward=half*requested_words"], "write NAME or WEIGHT*NAME"),
    ([PPO[0], PPO[2], "stage.max_tokens=110"], "is more than the model's context of 112: at most stage.max_tokens="),
    ([GRPO[0], GRPO[2], "model.width=64"], "brings its model along, a gpt; leave out model.width=64"),
])  # fmt: skip
def test_what_only_the_runs_can_tell_is_refused(
    base: Path, few: Any, argv: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "train",
                *(word.replace("BASE", str(base)) for word in argv),
                f"init_from={base}",
                *few("prompts"),
                "run=r",
            ]
        )
        == 2
    )
    assert why in capsys.readouterr().err and not (tmp_path / "r").exists()  # the mended command may have its name
