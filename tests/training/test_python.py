"""gengen.train, load and evaluate: what a script, a thread and a notebook do with a run."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import lightning.pytorch as L
import pytest

import gengen
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.checkpoints.run import Run
from gengen.cli import main
from gengen.errors import NoCheckpoint, RunLocked, UserError
from gengen.registry import CALLBACKS, register_callback
from gengen.training.monitor.console import Console
from gengen.training.python import TrainedRun

STEPS = 6
SHORT = [f"trainer.max_steps={STEPS}", "trainer.save_every=3", "trainer.eval_every=3", "trainer.log_every=1"]


class Watcher(L.Callback):
    """What it saw at each step, in whatever run it was made for."""

    handlers: list[object] = []  # noqa: RUF012
    threads: list[str] = []  # noqa: RUF012
    interrupt_at: int | None = None

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        Watcher.handlers += [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD)]
        Watcher.threads.append(threading.current_thread().name)
        if trainer.global_step == Watcher.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Watcher]]:
    for name, value in (("handlers", []), ("threads", []), ("interrupt_at", None)):
        monkeypatch.setattr(Watcher, name, value)
    before = dict(CALLBACKS)
    register_callback("watcher")(Watcher)
    yield Watcher
    CALLBACKS.clear()
    CALLBACKS.update(before)


def weights(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:09d}"
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")}


def test_a_run_begun_resumed_loaded_and_evaluated_is_the_commands(
    tiny: list[str], tmp_path: Path, watcher: type[Watcher], capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun here, gone on with in another thread: byte for byte what one command trains. No handler is installed."""
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD)]
    own = "trainer.callbacks=watcher"
    begun = gengen.train(*tiny, *SHORT, own, run="r", runs_dir=tmp_path, seed=3, stop_at=2)
    assert (begun.name, begun.path, begun.step, begun.max_steps) == ("r", tmp_path / "r", 2, STEPS)
    said = capsys.readouterr().out
    assert f"to go on:  gengen.train(run='r', runs_dir='{tmp_path}')" in said and "scripts/train.py" not in said
    ended: list[TrainedRun] = []
    thread = threading.Thread(target=lambda: ended.append(gengen.train(run="r", runs_dir=tmp_path)))
    thread.start()
    thread.join()
    (run,) = ended
    assert (run.step, run.name) == (STEPS, "r")
    assert watcher.handlers == before * STEPS and set(watcher.threads) == {"gengen.train"}
    assert main(["train", *tiny, *SHORT, f"runs_dir={tmp_path}", "run=straight", "seed=3"]) == 0
    assert weights(tmp_path / "r", STEPS) == weights(tmp_path / "straight", STEPS)
    last = read_metrics(tmp_path / "r" / "metrics.csv")[-1]
    assert run.metrics["val/bpb"] == last["val/bpb"] and run.metrics["step"] == STEPS

    again = gengen.train(run="r", runs_dir=tmp_path)
    assert again.step == STEPS and again.metrics == run.metrics
    texts = gengen.load(again, device="cpu").generate("the", n=2, max_tokens=4)
    assert [t.text for t in texts] == [t.text for t in again.load(device="cpu").generate("the", n=2, max_tokens=4)]
    capsys.readouterr()
    found = gengen.evaluate(again, "samples=0", device="cpu")
    assert found["checkpoint"] == f"step-{STEPS:09d}" and capsys.readouterr().out == ""
    assert found["val/bpb"] == pytest.approx(last["val/bpb"], rel=1e-5)
    assert (tmp_path / "r" / "evaluation.json").exists()


def test_the_stop_button_leaves_a_checkpoint(tiny: list[str], tmp_path: Path, watcher: type[Watcher]) -> None:
    """SIGINT comes in the middle of training: the run ends at a step, saved, and is free to go on."""
    Watcher.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        gengen.train(*tiny, "trainer.max_steps=2000", "trainer.callbacks=watcher", run="r", runs_dir=tmp_path)
    (saved,) = (tmp_path / "r" / "checkpoints").glob("step-*")
    assert 2 <= int(saved.name.removeprefix("step-")) < 2000
    Watcher.interrupt_at = None
    stop_at = int(saved.name.removeprefix("step-")) + 1
    assert gengen.train(run="r", runs_dir=tmp_path, stop_at=stop_at).step == stop_at


def test_what_a_user_can_mend_is_raised(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model=gtp: no such model\n  did you mean gpt"):
        gengen.train("model=gtp", runs_dir=tmp_path)
    with pytest.raises(UserError, match="no run 'lost'"):
        gengen.train(run="lost", runs_dir=tmp_path)
    with pytest.raises(NoCheckpoint, match="resume=must"):
        gengen.train(*tiny, run="r", runs_dir=tmp_path, resume="must")
    with pytest.raises(UserError, match=r"trainer\.devices=2: other ranks are processes of the command's"):
        gengen.train(*tiny, "trainer.devices=2", run="r", runs_dir=tmp_path)
    with pytest.raises(UserError, match="are the command line's"):
        gengen.train(*tiny, "-m", runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"trainer\.callbacks=mine: nothing is registered by that name"):
        gengen.train(*tiny, "trainer.callbacks=mine", run="r", runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"no run '.*lost'"):
        gengen.evaluate(tmp_path / "lost")
    assert list(tmp_path.iterdir()) == []


def test_two_threads_do_not_write_one_run(tmp_path: Path) -> None:
    """A record lock is a process's: its threads must be told apart here."""
    run = Run(tmp_path)
    run.lock()
    with pytest.raises(RunLocked, match=f"is being written by this process, pid {os.getpid()}"):
        Run(tmp_path).lock()
    run.unlock()
    other = Run(tmp_path)
    assert other.lock() is None
    other.unlock()


def test_importing_gengen_imports_no_torch() -> None:
    code = "import gengen, sys; print(*({'torch', 'lightning', 'hydra'} & set(sys.modules)), gengen.train.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "train"


def test_in_a_notebook_one_line_moves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where IPython has a kernel, progress is one output that is replaced; lines that stay are printed."""
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append(content["text/plain"])

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        return Handle()

    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    console = Console()
    for step in range(3):
        console.progress(f"step {step}")
    console.say("a line that stays")
    console.progress("step 3", last=True)
    assert shown == ["step 0", "step 1", "step 2", "step 3"] and capsys.readouterr().out == "a line that stays\n"
