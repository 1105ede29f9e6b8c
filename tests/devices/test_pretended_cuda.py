"""The contract of every family and stage with a GPU, on one that is pretended: it is built, trained, evaluated, saved,
loaded, resumed and sampled, and nothing of it stands on a device that is not the run's. What it leaves is evaluated on
a machine without."""

import json
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gengen.checkpoints import store
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.train import TrainConfig
from gengen.evaluation import images, report, text
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.text.generator import TextGenerator
from gengen.hardware import pick_device
from gengen.models.gpt import GPT
from gengen.registry import MODELS, STAGES, register_reward
from gengen.training import budget, evaluate, run
from gengen.training.data import prepare_data
from gengen.training.objective import Objective
from gengen.training.objectives import preference
from gengen.training.objectives.online_rl import OnlineRL
from gengen.training.optim.muon import Muon
from gengen.training.vote import LateVote
from helpers.pretended import CPU, OWN, pretended


@register_reward("how_long")
def how_long(prompt: str, response: str, ended: bool) -> float:
    return float(len(response))


pytestmark = pytest.mark.filterwarnings("error:.*fork_rng without explicitly specifying.*")  # it sets up every device
PARTS = [(name, *part.split(":")) for name in MODELS for part in MODELS[name].builds]
TRAINED = [(name, *stage) for name, part, *stage in PARTS if part == "objective"]
OTHERWISE = [
    ("gpt", ["positions=learned", "norm=layernorm", "bias=true", "mlp=gelu", "z_loss=0.1", "dropout=0.1"]),
    ("unet", ["path=edm", "prediction=edm", "times=lognormal", "weighting=edm"]),
    ("unet", ["path=cosine", "prediction=v", "times=uniform", "weighting=min_snr", "dropout=0.1"]),
    ("dit", ["activation_checkpointing=true", "drop_condition=0"]),  # recomputed dropout would find itself on the CPU
    ("dit", ["dropout=0.1"]),
    ("vqvae", ["quantizer=fsq", "levels=[3,4]"]),
    ("gan", ["loss=hinge", "spectral_norm=true"]),
]
"""Settings of a model by which it computes in another way."""
Settings = dict[str, list[str]]
"""Of the data of each kind."""
SMALL = {
    "layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "ff": 16, "context": 48,
    "widths": [16], "blocks": 1, "patch": 4, "attention": [0], "head_size": 8, "latent_channels": 2, "codebook": 8,
    "latent_size": 8, "augment": "color,translation,cutout",
}  # fmt: skip
"""Fields of a model's config, where it has them: of any family, so that a new one is small, too."""
OWN_SETTINGS = {
    "autoencoder_kl": ["model.adversarial=1", "model.adversarial_from=0"],
    "dcgan": ["model.widths=[8,16]"],
    "ppo": ["stage.minibatches=2", "stage.max_tokens=4"],
    "grpo": ["stage.minibatches=2", "stage.max_tokens=4", "stage.group_size=2"],
}
CAPTIONS = ["text=true", "text_width=16", "text_layers=1", "text_heads=2"]
DATA = {"conversations": "instructions", "preferences": "preferences", "ratings": "ratings", "prompts": "prompts"}
RHYTHM = [
    "save=sync",
    "save_every=1",
    "eval_every=2",
    "sample_every=2",
    "log_every=1",
    "compile=false",
    "precision=fp32",
]
WAYS = ("what", "sampler", "precision")
"""Settings of how something is drawn, each of whose choices is tried."""
TRAINER = [f"trainer.{setting}" for setting in ("max_steps=2", "threads=1", *RHYTHM)]
STEPS = ["data.batch_size=8", "data.micro_batch_size=4", *TRAINER]


def shape(name: str) -> list[str]:
    return [f"model.{f.name}={SMALL[f.name]}" for f in fields(MODELS[name].config) if f.name in SMALL]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a few records for each kind of data that a later stage is trained on."""
    folder = tmp_path_factory.mktemp("examples")
    asked, said = ([[{"role": role, "content": word}] for word in "abcdefghijkl"] for role in ("user", "assistant"))
    records = {
        "conversations": [{"messages": [*q, *a]} for q, a in zip(asked, said, strict=True)],
        "preferences": [{"prompt": q, "chosen": a, "rejected": said[0]} for q, a in zip(asked, said, strict=True)],
        "ratings": [{"prompt": q, "answer": a, "good": a != said[0]} for q, a in zip(asked, said, strict=True)],
        "prompts": [{"prompt": q} for q in asked],
    }
    for kind, lines in records.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def text_data(texts: Path) -> list[str]:
    return ["data=text", f"data.path={texts}", "data.tokenizer=byte", "data.max_documents=4"]


@pytest.fixture(scope="module")
def others(
    text_data: list[str], picture_data: list[str], examples: Path, shared_data: Path, brief: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The runs that others start from or stand on, of a machine without a GPU: text, reward, codec."""
    runs = tmp_path_factory.mktemp("others")
    on_cpu = [*STEPS, "trainer.max_steps=1", "trainer.device=cpu", f"data.dir={shared_data}", f"runs_dir={runs}"]
    preferences = ["data=preferences", f"data.path={examples}/preferences.jsonl", "data.validation=0.2"]
    assert main(["train", "model=gpt", *shape("gpt"), *text_data, *on_cpu, "run=text"]) == 0
    assert main(["train", "stage=reward", f"init_from={runs}/text", *preferences, *on_cpu, "run=reward"]) == 0
    assert main(["train", "model=vae", *shape("vae"), *picture_data, *on_cpu, "run=codec"]) == 0
    return runs


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Whatever does not depend on a device is left out, or short."""
    monkeypatch = pytest.MonkeyPatch()
    text_, image = TextGenerator.generate, ImageGenerator.generate
    monkeypatch.setattr(TextGenerator, "generate", lambda *args, **more: text_(*args, **more | {"max_tokens": 3}))
    monkeypatch.setattr(ImageGenerator, "generate", lambda *args, **more: image(*args, **more | {"steps": 2}))
    monkeypatch.setattr(report, "write_report", lambda *_: "none")
    monkeypatch.setattr(images, "judge_for", lambda *_: None)
    monkeypatch.setattr(text, "TIMED", 1)
    yield
    monkeypatch.undo()


class Life:
    """A run on the pretended device."""

    def __init__(
        self, name: str, stage: str, folder: Path, others: Path, data: Settings, monkeypatch: pytest.MonkeyPatch
    ):  # fmt: skip
        self.entry, self.stage, self.path, self.others = MODELS[name], stage, folder / "r", others
        self.monkeypatch = monkeypatch
        kind = STAGES[stage].kind
        model = [f"init_from={others}/text"] if kind else [f"model={name}", *shape(name)]
        model += [f"model.{f.name}={others}/codec" for f in fields(self.entry.config) if f.metadata.get("run")]
        rewards = [f"stage.reward=0.5*{others}/reward", "stage.reward=how_long"] if kind == "prompts" else []
        own = [*OWN_SETTINGS.get(name, []), *OWN_SETTINGS.get(stage, [])]
        muon = ["optim=muon"] if self.entry.kind == "text" else []
        self.settings = [f"stage={stage}", *model, *rewards, *data[kind or self.entry.kind], *STEPS, *muon, *own]

    def on_cuda(self, *argv: str) -> set[torch.device]:
        """A command on the pretended machine; the devices it put something on since its data was prepared."""
        prepare = prepare_data
        with pretended(self.monkeypatch) as machine, self.monkeypatch.context() as patched:

            def prepared(*args: Any, **more: Any) -> Any:
                found = prepare(*args, **more)
                machine.used.clear()
                return found

            for user in (run, evaluate):
                patched.setattr(user, "prepare_data", prepared)
            assert main([*argv]) == 0
        return machine.used

    def begin(self) -> None:
        new = ["trainer.device=cuda", "stop_at=1", "run=r", f"runs_dir={self.path.parent}"]
        assert self.on_cuda("train", *self.settings, *new) == {OWN, CPU}

    def go_on(self) -> None:
        assert self.on_cuda("train", "run=r", f"runs_dir={self.path.parent}") == {OWN, CPU}
        assert [store.step_of(path) for path in store.all_steps(self.path / "checkpoints")] == [2, 1]

    def evaluate(self, device: str) -> dict[str, Any]:
        """With samples where the family has some, on the pretended device or without any."""
        argv = ["evaluate", str(self.path), f"device={device}", "samples=12"]
        argv += ["steps=2"] if self.entry.kind == "image" else []
        if device == "cuda":
            self.on_cuda(*argv)
        else:
            assert main(argv) == 0
        return json.loads((self.path / "evaluation.json").read_text())

    def sample(self) -> None:
        """In every way that the family's command names."""
        known = {f.name: f.metadata for f in fields(self.entry.sampling)}
        few = ["device=cuda", *(f"{name}=2" for name in ("n", "steps") if name in known)]
        picture = next(self.path.glob("samples/*.png"), None)
        own = {
            "what=reconstruction": [f"images={picture}"],
            "what=edit": [f"image={picture}", "mask=left", "resamples=2"],
            "what=outpaint": [f"image={picture}", "right=4", "resamples=2"],
            "what=variations": [f"image={picture}"],
            "what=remix": ["prompt=a red circle", "prompt=a blue square", "pictures=3"],
        }
        choices = [[f"{name}={way}" for way in known[name]["choices"]] for name in WAYS if name in known]
        for ways in zip_longest(*choices):
            if "what=remix" not in ways or "model.text=true" in self.settings:
                given = [setting for way in ways for setting in own.get(way, [])]
                self.on_cuda("sample", str(self.path), *few, *filter(None, ways), *given)
        if STAGES[self.stage].kind:
            self.on_cuda("sample", str(self.path), *few, "best_of=2", f"reward={self.others}/reward")


@pytest.fixture
def life(
    others: Path, examples: Path, text_data: list[str], picture_data: list[str], shared_data: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> Any:  # fmt: skip
    home = f"data.dir={shared_data}"
    data = {"text": [*text_data, home], "image": [*picture_data, home]}
    for kind, name in DATA.items():
        data[kind] = [f"data={name}", f"data.path={examples}/{kind}.jsonl", "data.validation=0.2", home]
    return partial(Life, folder=tmp_path, others=others, data=data, monkeypatch=monkeypatch)


@pytest.mark.parametrize(("name", "stage"), TRAINED)
def test_a_run_lives_on_its_device(life: Any, name: str, stage: str) -> None:
    run = life(name, stage)
    run.begin()
    run.go_on()
    there, here = ({name: x for name, x in run.evaluate(at).items() if "val/" in name} for at in ("cuda", "cpu"))
    assert there == pytest.approx(here)
    if stage != "reward":  # it scores, and draws nothing
        run.sample()


def test_a_run_of_captions_lives_on_its_device(life: Any, captioned_data: list[str]) -> None:
    run = life("unet", "pretrain")
    run.settings += [*captioned_data, *(f"model.{setting}" for setting in CAPTIONS)]
    run.begin()
    run.go_on()
    there, here = ({name: x for name, x in run.evaluate(at).items() if "val/" in name} for at in ("cuda", "cpu"))
    assert there == pytest.approx(here)
    run.sample()
    run.on_cuda("sample", str(run.path), "n=2", "steps=2", "prompt=a red circle", "negative=blue", "device=cuda")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), OTHERWISE)
def test_so_does_a_model_that_computes_in_another_way(life: Any, name: str, settings: list[str]) -> None:
    run = life(name, "pretrain")
    run.settings += [f"model.{setting}" for setting in settings] + ["trainer.spike=6", "optim.ema=0.9"]
    run.begin()
    run.go_on()


def test_a_vote_is_read_on_the_host_only_behind_its_event(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A step later, when the device has long been past it."""
    told: list[str] = []

    class Event:
        def record(self) -> None:
            told.append("recorded")

        def synchronize(self) -> None:
            told.append("waited for")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pretended(monkeypatch):
            vote = LateVote()
            assert [vote(step == 1, OWN) for step in range(4)] == [False, False, True, False]
    finally:
        dist.destroy_process_group()
    assert told == ["recorded"] + 3 * ["recorded", "waited for"]


# --- the faults that this was written for, put back


def test_a_count_of_steps_that_stays_on_the_cpu_is_noticed(life: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon's AdamW groups after a resume: torch moves `step` for its own fused optimizers alone."""
    monkeypatch.setattr(Muon, "__setstate__", torch.optim.Optimizer.__setstate__)
    run = life("gpt", "sft")
    run.begin()
    with pytest.raises(RuntimeError, match=r"_fused_adamw_: expected all tensors .*, found cuda:1 and cpu"):
        run.go_on()


def test_sums_made_on_the_cpu_are_noticed(life: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = OnlineRL.evaluation_sums
    monkeypatch.setattr(OnlineRL, "evaluation_sums", lambda *args: sums(*args).cpu())
    run = life("gpt", "grpo")
    run.begin()
    with pytest.raises(RuntimeError, match=r"add_: expected all tensors .*, found cuda:1 and cpu"):
        run.go_on()


def test_a_reference_built_on_the_device_of_the_config_is_noticed(
    life: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every rank it would be built on the first device, and by `evaluate` on one that this machine lacks."""
    reference, run = preference.reference, life("gpt", "dpo")
    run.begin()

    def there(config: TrainConfig, model: GPT) -> GPT:
        return reference(config, model).to(pick_device(config.trainer.device))

    monkeypatch.setattr(preference, "reference", there)
    with pytest.raises(AssertionError, match="index=0"):
        run.go_on()
    with pytest.raises(AssertionError):
        run.evaluate("cpu")
    assert "torch sees no CUDA device" in capsys.readouterr().err


# --- what CUDA does later than it is told, and with memory of its own


class Clock:
    """Of a device that takes a second for each step it was told to do, which passes when it is waited for."""

    def __init__(self) -> None:
        self.now, self.told = 0.0, 0

    def wait(self, device: Any = None) -> None:
        self.now, self.told = self.now + self.told, 0


def test_a_budget_is_of_the_devices_time_and_the_trial_gives_its_memory_back(
    text_data: list[str], shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting, the steps of the trial take no time at all."""
    argv = ["model=gpt", *shape("gpt"), "optim=muon", *text_data, f"data.dir={shared_data}", *STEPS]
    config = compose_train(read_command_line([*argv, "trainer.device=cuda", "trainer.budget=50s"]))
    config.trainer.max_steps = None
    prepared = prepare_data(config, print, None, None, None)
    config = replace(config, data=prepared.config, model=replace(config.model.resolved(), **prepared.model_facts))
    clock, alive, step, build_one = Clock(), list[bool](), Objective.training_step, budget.build_objective
    built: list[weakref.ref[Objective]] = []

    def told(self: Objective, *batch: Any) -> None:
        step(self, *batch)
        clock.told += 1

    def remembered(*args: Any) -> Objective:
        objective = build_one(*args)
        built.append(weakref.ref(objective))
        return objective

    def give_back() -> None:
        alive.append(built[0]() is not None)

    monkeypatch.setattr(Objective, "training_step", told)
    monkeypatch.setattr(budget, "build_objective", remembered)
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    with pretended(monkeypatch, synchronize=clock.wait, empty_cache=give_back):
        fitted = budget.fitted_to_budget(config, prepared, lambda line: None)
    assert fitted.trainer.max_steps == 34  # a second each: 50 less the 16 of the trial, which is part of the budget
    assert not alive[-1]  # the objective was gone when memory was last given back
