"""Code of a user's own that raises, returns nonsense or never ends: one message, and the run's name is free."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gengen import faults
from gengen.checkpoints import store
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.registry import CALLBACKS, DATA, MODELS, PLUGINS, PROFILERS, REWARDS, STAGES

HEAD = """
from dataclasses import dataclass, fields
from gengen.config.model import GPTConfig, ModelConfig
from gengen.models.gpt import GPT
from gengen.registry import MODELS, register_model, register_reward
from gengen.training.objectives.language import Pretraining
gpt = MODELS["gpt"]

def family(config=None, objective="plugin_x:Own", model=gpt.builds["model"]):
    @dataclass
    class Config(GPTConfig):
        name: str = "own"
    builds = {"model": model, "objectives": {"pretrain": objective}, "generator": gpt.builds["generator"]}
    register = register_model("own", kind="text", sampling=gpt.sampling, **builds)
    register(Config if config is None else config)
    return Config

class Own(Pretraining):
    pass
"""

BROKEN = "family(model='plugin_x:Broken')"
PLUGINS_GONE_WRONG: dict[str, tuple[str, list[str]]] = {  # what the module holds, and what the message says
    "raises": ("1 / 0", ["plugins=[plugin_x]: ZeroDivisionError: division by zero", "plugin_x.py, line 20"]),
    "no Python": ("def", ["plugins=[plugin_x]: SyntaxError"]),
    "no such import": ("import no_such_thing", ["plugins=[plugin_x]: ModuleNotFoundError: No module"]),
    "exits": ("raise SystemExit(0)", ["plugins=[plugin_x]: SystemExit: 0"]),
    "a reward twice removed": ("register_reward('r')(None)", ["plugins=[plugin_x]: AttributeError: 'NoneType'"]),
    "a name that is taken": (
        "register_model('gpt', kind='text', sampling=None, model='', objectives={}, generator='')(ModelConfig)",
        ["plugins=[plugin_x]: UserError: model 'gpt' is registered twice"],
    ),
    "a config that is none": ("family(config=3)", ["model 'own' is registered with 3, which is no dataclass"]),
    "a model that is not there": ("family(model='plugin_x:Lost')", ["model of own: plugin_x:Lost cannot be imported"]),
    "a module that is not there": (
        "family(objective='lost_x:Own')",
        ["objective for stage pretrain of own: lost_x:Own cannot be imported"],
    ),
    "a check that raises": ("family().check = lambda c: 1 / 0", ["ZeroDivisionError", "plugin_x.py, line 20"]),
    "a check of nothing": ("family().check = lambda c: c.depth", ["'Config' object has no attribute 'depth'"]),
    "a model that raises": (
        "class Broken(GPT):\n    def __init__(self, config):\n        raise KeyError('depth')\n" + BROKEN,
        ["KeyError: 'depth'", "plugin_x.py, line 22, in __init__"],
    ),
    "a forward that raises": (
        "class Broken(GPT):\n    def forward(self, *_, **__):\n        raise ValueError('shapes differ')\n" + BROKEN,
        ["ValueError: shapes differ", "plugin_x.py, line 22, in forward"],
    ),
    "a loss that raises": (
        "family()\ndef loss_sum(self, batch):\n    raise RuntimeError('no loss')\nOwn.loss_sum = loss_sum",
        ["RuntimeError: no loss", "plugin_x.py, line 22, in loss_sum"],
    ),
    "a loss that is none": ("family()\nOwn.loss_sum = lambda self, batch: None", ["returned None; a loss is"]),
    "a loss of rows": (
        "family()\nOwn.loss_sum = lambda self, batch: self.model.head.weight.sum(1)",
        ["returned a tensor (320,); a loss is a tensor of no dimensions"],
    ),
    "a loss of no weight": (
        "family()\nOwn.loss_sum = lambda self, batch: batch['tokens'].sum()",
        ["that depends on the weights"],
    ),
    "a hook that raises": (
        "family()\ndef on_train_start(*_):\n    raise OSError('no such socket')\nOwn.on_train_start = on_train_start",
        ["OSError: no such socket", "plugin_x.py, line 22, in on_train_start"],
    ),
    "an evaluation that raises": (
        "family()\ndef evaluate(*_):\n    raise IndexError('no batch')\nOwn.evaluate = evaluate",
        ["IndexError: no batch", "plugin_x.py, line 22, in evaluate"],
    ),
    "samples that raise": (
        "family()\ndef write_samples(*_):\n    raise TypeError('no text')\nOwn.write_samples = write_samples",
        ["TypeError: no text", "plugin_x.py, line 22, in write_samples"],
    ),
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that writes the module plugin_x: HEAD and these lines. What it registers is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (MODELS, DATA, STAGES):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    kept = (PLUGINS, REWARDS, CALLBACKS, PROFILERS)
    before = [set(PLUGINS), dict(REWARDS), dict(CALLBACKS), dict(PROFILERS)]

    def write(lines: str) -> None:
        (tmp_path / "plugin_x.py").write_text(HEAD + lines + "\n")

    yield write
    sys.modules.pop("plugin_x", None)
    for names, then in zip(kept, before, strict=True):
        names.clear()
        names.update(then)  # type: ignore[arg-type]


def once(settings: list[str], runs: Path) -> int:
    """A run called r of two steps, which samples in the first."""
    return main(["train", *settings, f"runs_dir={runs}", "run=r", "trainer.max_steps=2", "trainer.sample_every=1"])


@pytest.mark.parametrize("kind", PLUGINS_GONE_WRONG)
def test_a_plugin_gone_wrong_is_one_message_and_leaves_nothing(
    plugin: Callable[[str], None], tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    lines, words = PLUGINS_GONE_WRONG[kind]
    plugin(lines)
    (tmp_path / "yaml" / "model").mkdir(parents=True)
    (tmp_path / "yaml" / "model" / "own.yaml").write_text("name: own\n")
    own = [f"--config-dir={tmp_path / 'yaml'}", "plugins=[plugin_x]", *["model=own"][: "family" in lines]]
    assert once([*tiny, *own], tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert [word for word in words if word not in error] == [], error
    assert not (tmp_path / "runs" / "r").exists()


def test_a_plugin_that_never_ends_is_left_by_ctrl_c(
    plugin: Callable[[str], None], tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    assert once([*tiny, "plugins=[plugin_x]"], tmp_path / "runs") == 130
    assert capsys.readouterr().err == "interrupted\n" and not (tmp_path / "runs").exists()


# --- callbacks and profilers

OWN_CALLBACKS = """
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.profilers import Profiler
from gengen.registry import register_callback, register_profiler

HERE = Path(__file__).parent

class Noted(Callback):
    def note(self, trainer, words):
        rows = (HERE / "runs" / "r" / "metrics.csv").read_text().count("\\n") - 1
        with (HERE / "notes.txt").open("a") as file:
            file.write(f"{words} at {trainer.global_step}, {rows} rows\\n")

@register_callback("mine")
class Counter(Noted):
    steps = 0
    def on_train_batch_end(self, trainer, *_):
        self.steps += 1
        self.note(trainer, f"mine {self.steps}")

@register_callback("second")
class Second(Noted):
    def on_train_batch_end(self, trainer, *_):
        self.note(trainer, "second")

@register_callback("fails")
class Fails(Callback):
    def on_fit_start(self, trainer, objective):
        raise ValueError("no such board")

@register_callback("none")
def none():
    return 3

@register_profiler("own")
class Own(Profiler):
    def __init__(self, folder):
        super().__init__()
        self.folder, self.actions = folder, set()
    def start(self, action):
        self.actions.add(action)
    def stop(self, action):
        pass
    def teardown(self, stage):
        (self.folder / "own.txt").write_text("\\n".join(sorted(self.actions)))
"""


def test_callbacks_of_ones_own_are_called_after_ours_in_their_order(
    plugin: Callable[[str], None], tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each finds the row of its step written. A resume takes others, or none, and needs them registered."""
    plugin(OWN_CALLBACKS)
    runs, every = tmp_path / "runs", "trainer.log_every=1"
    named = ["plugins=[plugin_x]", "trainer.callbacks=mine", "trainer.callbacks=second"]
    assert once([*tiny, every, *named, "trainer.profiler=own"], runs) == 0
    notes = (tmp_path / "notes.txt").read_text().splitlines()
    assert notes == ["mine 1 at 1, 1 rows", "second at 1, 1 rows", "mine 2 at 2, 2 rows", "second at 2, 2 rows"]
    assert any("optimizer_step" in action for action in (runs / "r" / "own.txt").read_text().splitlines())
    CALLBACKS.clear()  # as in another process
    go_on = ["train", "run=r", f"runs_dir={runs}", "trainer.max_steps=3"]
    assert main(go_on) == 2
    error = capsys.readouterr().err
    assert "trainer.callbacks=mine: nothing is registered by that name" in error and "plugins=[MODULE]" in error
    assert main([*go_on, "trainer.callbacks=", "trainer.profiler=simple"]) == 0
    assert len((tmp_path / "notes.txt").read_text().splitlines()) == 4
    assert "run_training_batch" in next((runs / "r").glob("*profile*")).read_text()


def test_a_callback_that_raises_is_one_message_and_no_damage(
    plugin: Callable[[str], None], tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a resume, too, where an error of anything else before the first step is the checkpoint's."""
    plugin(OWN_CALLBACKS)
    runs, fails = tmp_path / "runs", ["plugins=[plugin_x]", "trainer.callbacks=fails"]
    assert once([*tiny, *fails], runs) == 2
    said = capsys.readouterr().err
    assert "error: ValueError: no such board" in said and "in on_fit_start" in said and not (runs / "r").exists()
    assert once([*tiny, "stop_at=1"], runs) == 0
    assert main(["train", "run=r", f"runs_dir={runs}", *fails]) == 2
    said = capsys.readouterr().err
    assert "error: ValueError: no such board" in said and "damaged" not in said
    assert main(["train", "run=r", f"runs_dir={runs}", "plugins=[plugin_x]", "trainer.callbacks=none"]) == 2
    assert "trainer.callbacks=none: plugin_x:none returned 3, not a Lightning Callback" in capsys.readouterr().err
    assert main(["train", "run=r", f"runs_dir={runs}", "trainer.profiler=simpel"]) == 2
    assert (
        "trainer.profiler=simpel: nothing is registered by that name\n  did you mean simple?"
        in capsys.readouterr().err
    )


STOPS = """
import lightning.pytorch as L
from gengen.registry import register_callback

class Stops(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == 2

@register_callback("stops")
def stops():
    return Stops()
"""


def test_what_a_callback_stops_is_saved(plugin: Callable[[str], None], tiny: list[str], tmp_path: Path) -> None:
    plugin(STOPS)
    argv = [*tiny, "trainer.max_steps=5", "trainer.save_every=9", "plugins=[plugin_x]", "trainer.callbacks=stops"]
    assert once(argv, tmp_path) == 0
    newest = store.newest(tmp_path / "r" / "checkpoints")
    assert newest is not None and store.step_of(newest) == 2


# --- the run's name


def ask_for(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; its passes count for nobody else."""
    monkeypatch.setenv("GENGEN_FAULT", fault)
    monkeypatch.setattr(faults, "passes", Counter())


def test_a_reward_that_raises_at_first_leaves_the_name_free(
    plugin: Callable[[str], None],
    base: Path,
    tiny_alignment: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PPO asks its reward before the first step: metrics.csv was there, with no row in it."""
    reward = "@register_reward('late')\ndef late(prompt, response, ended):\n    "
    plugin(reward + "raise ValueError('no idea')")
    settings = ["stage=ppo", f"init_from={base}", "data=prompts", "data.max_examples=40", "data.batch_size=4"]
    settings += [*tiny_alignment, "stage.max_tokens=4", "stage.reward=late", "plugins=[plugin_x]"]
    assert once(settings, tmp_path / "runs") != 0
    assert "no idea" in capsys.readouterr().err and not (tmp_path / "runs" / "r").exists()


@pytest.mark.parametrize("family", ["gpt", "unet", "vae", "gan"])
def test_what_ends_in_its_first_step_leaves_nothing(
    tiny: list[str], picture_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Whatever it is: an error that is nobody's own included."""
    ask_for("loss=error", monkeypatch)
    sizes = ["model.size=nano", "data.batch_size=4", "trainer.device=cpu", "trainer.precision=fp32"]
    settings = tiny if family == "gpt" else [f"model={family}", *picture_data, *sizes]
    with pytest.raises(RuntimeError, match="asked for at loss"):
        once(settings, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_was_there_is_left(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    ask_for("loss=error", monkeypatch)
    with pytest.raises(RuntimeError):
        once(tiny, tmp_path)
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_a_run_that_has_begun_is_kept(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for("loss@2=error", monkeypatch)
    with pytest.raises(RuntimeError):
        once([*tiny, "trainer.log_every=1"], tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "r" / "metrics.csv")] == [1]
