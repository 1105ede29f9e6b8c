"""The format and the store: nothing is lost, nothing damaged is used, nothing in a checkpoint can run."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gengen.checkpoints import layout, store
from gengen.checkpoints.files import Damaged, read_json, sha256, to_json
from gengen.checkpoints.layout import (
    Checkpoint,
    digest,
    load_weights,
    pack,
    read,
    read_weights,
    unique_state,
    unpack,
    verify,
)
from gengen.checkpoints.run import Run, create, find
from gengen.errors import NoCheckpoint, RunLocked, UserError


def checkpoint(step: int, value: float | None = None) -> Checkpoint:
    weight = torch.full((3, 2), float(step) if value is None else value)
    return Checkpoint(
        step=step,
        config={"model": {"name": "gpt"}},
        model={"w": weight},
        optimizer={
            "state": {"w": {"step": torch.tensor(1.0), "exp_avg": weight / 2}},
            "param_groups": [{"lr": 0.1, "betas": [0.9, 0.95]}],
        },
        state={"rng": [1, 2, None]},
        tokenizer='{"gengen": "byte"}',
        facts={"data": "abc", "clocks": {"seconds": 1.5}},
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    saved = read(store.save(tmp_path, checkpoint(7)))
    wanted = checkpoint(7)
    assert (saved.step, saved.config, saved.state, saved.tokenizer, saved.facts) == (
        7,
        wanted.config,
        wanted.state,
        wanted.tokenizer,
        wanted.facts,
    )
    torch.testing.assert_close(saved.model, wanted.model, rtol=0, atol=0)
    torch.testing.assert_close(saved.optimizer, wanted.optimizer, rtol=0, atol=0)


def no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_numbers_that_are_not_finite_are_kept_in_valid_json(tmp_path: Path) -> None:
    """At any depth; and what looks like one, but is none, is not taken for it."""
    saved = checkpoint(7)
    saved.state |= {"best": [4, math.inf], "kl": {"beta": -math.inf}, "word": {"float": "low"}, "text": "nan"}
    saved.optimizer["extra"] = {"rolled": {"score": math.nan, "sure": 0.1}, "losses": torch.tensor([math.nan, 1.0])}
    back = read(store.save(tmp_path, saved))
    assert back.state == saved.state
    extra = back.optimizer["extra"]
    assert math.isnan(extra["rolled"].pop("score")) and extra["rolled"] == {"sure": 0.1}
    assert extra["losses"].isnan().tolist() == [True, False]
    for path in (tmp_path / "step-000000007").glob("*.json"):
        json.loads(path.read_text(), parse_constant=no_json)
        if path.name != "tokenizer.json":
            assert to_json(read_json(path)) == path.read_text()


def test_whatever_keeps_a_checkpoint_from_being_written_is_a_failed_save(tmp_path: Path) -> None:
    """So that a run can go on; nothing is left of it, and the older checkpoint is there."""
    store.save(tmp_path, checkpoint(1))
    odd = checkpoint(2)
    odd.state["odd"] = {1, 2}
    with pytest.raises(store.SaveFailed, match=r"step 2 could not be written to .*: TypeError: .*set is not JSON"):
        store.save(tmp_path, odd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-000000001"]


def test_pack_moves_every_tensor_out_and_back() -> None:
    tree = {"a": [torch.arange(3), {"b": torch.ones(2, dtype=torch.bfloat16)}], "c": None, "d": {"e": 1}}
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(tree, tensors)
    assert json.loads(json.dumps(packed)) == {
        "a": [{"tensor": "a.0"}, {"b": {"tensor": "a.1.b"}}],
        "c": None,
        "d": {"e": 1},
    }
    torch.testing.assert_close(unpack(packed, tensors), tree)


def test_a_file_is_hashed_while_the_next_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first waits for the last, which hashing one after the other never could; the manifest waits for all."""
    last, hashed = threading.Event(), list[str]()

    def slow(path: Path) -> str:
        assert path.name != "optimizer.safetensors" or last.wait(10), "hashed before the next file was written"
        hashed.append(path.name)
        return sha256(path)

    def written(name: str) -> None:
        if name == "tokenizer.json":
            last.set()
        assert name != "manifest.json" or len(hashed) == 6

    monkeypatch.setattr(layout, "sha256", slow)
    layout.write(tmp_path, checkpoint(1), written)
    assert verify(tmp_path)["files"].keys() == set(FILES) - {"manifest.json"} == set(hashed)


def test_a_file_that_cannot_be_hashed_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    store.save(tmp_path, checkpoint(1))
    monkeypatch.setattr(layout, "sha256", broken)
    with pytest.raises(store.SaveFailed, match=r"step 2 could not be written .*Input/output error"):
        store.save(tmp_path, checkpoint(2))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step-000000001"]


FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "config.json",
    "state.json",
    "tokenizer.json",
    "manifest.json",
]


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.fault("F12")
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    older, newer = store.save(tmp_path, checkpoint(1)), store.save(tmp_path, checkpoint(2))
    DAMAGES[damage](newer / file)
    with pytest.raises(Damaged, match=file):
        verify(newer)
    said: list[str] = []
    assert store.newest(tmp_path, said.append) == older
    assert file in said[0] and newer.exists()  # who only reads moves nothing
    assert store.newest(tmp_path, said.append, quarantine=True) == older
    assert (
        not newer.exists()
        and (tmp_path / f"damaged-{newer.name}").exists()
        and store.pointed(tmp_path, "LATEST") == older
    )


@pytest.mark.fault("F12")
@pytest.mark.parametrize("file", FILES)
def test_every_single_flipped_byte_is_noticed(tmp_path: Path, file: str) -> None:
    path = store.save(tmp_path, checkpoint(3)) / file
    good = path.read_bytes()
    for at in range(0, len(good), max(1, len(good) // 60)):
        for bit in (1, 4, 128):
            path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            with pytest.raises(Damaged):
                verify(path.parent)


@pytest.mark.fault("F28")
def test_a_newer_format_is_refused_politely(tmp_path: Path) -> None:
    path = store.save(tmp_path, checkpoint(3)) / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": 99}
    del manifest["sha256"]
    path.write_text(to_json(manifest | {"sha256": digest(manifest)}))
    with pytest.raises(UserError, match="has format 99; this gengen reads up to 4"):
        verify(path.parent)


@pytest.mark.fault("F12")
def test_no_checkpoint_left_is_exit_4(tmp_path: Path) -> None:
    flip(store.save(tmp_path, checkpoint(1)) / "model.safetensors")
    with pytest.raises(NoCheckpoint) as caught:
        store.choose(tmp_path, "latest")
    assert caught.value.exit_code == 4


def killed_while_saving(root: Path, point: str, step: int) -> None:
    """Fork a process that dies at a named point of saving."""
    if (child := os.fork()) == 0:
        os.environ["GENGEN_FAULT"] = point
        store.save(root, checkpoint(step))
        store.prune(root, keep=2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, point


POINTS = [
    "save:begin",
    *(f"save:{name}" for name in FILES),
    "save:staged",
    "save:renamed",
    "save:latest",
    "save:prune",
]


@pytest.mark.fault("F8")
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_point_leaves_the_old_or_the_new(tmp_path: Path, point: str, again: bool) -> None:
    """`again`: the same step is saved once more, over itself."""
    store.save(tmp_path, checkpoint(1))
    store.save(tmp_path, checkpoint(2))
    killed_while_saving(tmp_path, point, step=2 if again else 3)
    path = store.newest(tmp_path, quarantine=True)
    assert path is not None
    complete = point in ("save:renamed", "save:latest", "save:prune")
    assert store.step_of(path) == (2 if again else 3 if complete else 2)
    assert read(path).model["w"][0, 0] == store.step_of(path)
    store.sweep(tmp_path)
    assert not list(tmp_path.glob(".t*")) and store.pointed(tmp_path, "LATEST") == path


@pytest.mark.fault("F12")
def test_pruning_keeps_the_newest_the_best_and_the_newest_that_verifies(tmp_path: Path) -> None:
    for step in range(1, 7):
        store.save(tmp_path, checkpoint(step))
    store.mark_best(tmp_path, tmp_path / "step-000000002")
    for step in (5, 6):
        flip(tmp_path / f"step-{step:09d}" / "model.safetensors")
    store.prune(tmp_path, keep=2)
    assert [store.step_of(p) for p in store.all_steps(tmp_path)] == [6, 5, 4, 2]


@pytest.mark.fault("F13")
@pytest.mark.parametrize("pointer", ["", "../../elsewhere\n", "step-000000099\n", "step-1\n", "\x00"])
def test_a_pointer_that_leads_nowhere_is_mended(tmp_path: Path, pointer: str) -> None:
    path = store.save(tmp_path, checkpoint(4))
    (tmp_path / "LATEST").write_text(pointer)
    assert store.pointed(tmp_path, "LATEST") is None
    assert store.newest(tmp_path, quarantine=True) == path == store.pointed(tmp_path, "LATEST")


def test_choosing(tmp_path: Path) -> None:
    for step in (1, 2):
        store.save(tmp_path, checkpoint(step))
    store.mark_best(tmp_path, tmp_path / "step-000000001")
    assert [store.step_of(store.choose(tmp_path, which)) for which in ("latest", "best", "1")] == [2, 1, 1]
    with pytest.raises(UserError, match=r"checkpoint=3: .* its steps are \[2, 1\]"):
        store.choose(tmp_path, "3")
    with pytest.raises(UserError, match="latest, best, or a step"):
        store.choose(tmp_path, "newest")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight


def test_a_tied_weight_is_saved_once_and_stays_tied(tmp_path: Path) -> None:
    model = Tied()
    assert list(unique_state(model)) == ["a.weight"]
    saved = checkpoint(1)
    saved.model = {"a.weight": torch.ones(2, 2)}
    load_weights(model, read_weights(store.save(tmp_path, saved)), tmp_path)
    assert model.a.weight.data_ptr() == model.b.weight.data_ptr() and (model.b.weight == 1).all()


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    for weights, words in [
        ({}, "a.weight is missing"),
        ({"a.weight": torch.ones(3, 2)}, r"shape \(3, 2\), the model's is \(2, 2\)"),
        ({"a.weight": torch.ones(2, 2), "x": torch.ones(1)}, "x is not a weight"),
    ]:
        with pytest.raises(UserError, match=words):
            load_weights(Tied(), weights, tmp_path)


# --- runs


def test_new_runs_never_share_a_directory(tmp_path: Path) -> None:
    assert [create(tmp_path, None, "gpt-text").name for _ in range(3)] == ["gpt-text-1", "gpt-text-2", "gpt-text-3"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 81, "a b", "a\x00"])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a run"):
        create(tmp_path, name, "stem")


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    create(tmp_path, "gpt-stories-1", "").write_config({})
    with pytest.raises(UserError, match=r"no run 'gpt-story-1'.*\n.*did you mean gpt-stories-1"):
        find("gpt-story-1", tmp_path)
    assert find("gpt-stories-1", tmp_path) == find(str(tmp_path / "gpt-stories-1"), Path("elsewhere"))


HOLD = """
import sys, time
from pathlib import Path
from gengen.checkpoints.run import Run
run = Run(Path(sys.argv[1]))
run.lock()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.fault("F26")
def test_a_run_has_one_writer_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunLocked, match=f"pid {holder.pid} on {os.uname().nodename}") as caught:
        Run(tmp_path).lock()
    assert caught.value.exit_code == 3
    holder.kill()
    holder.wait()
    run = Run(tmp_path)
    run.samples.mkdir()
    for name in ("step-1.txt", f".step-2.txt.{holder.pid}", f".step-3.txt.{holder.pid}1"):
        (run.samples / name).touch()
    assert f"took over the lock of pid {holder.pid}" in (run.lock() or "")
    left = {path.name for path in run.samples.iterdir()}
    assert left == {"step-1.txt", f".step-3.txt.{holder.pid}1"}  # what it had begun to write is gone, and no more
    run.unlock()
    assert run.lock() is None  # left in order: nothing to take over
    run.unlock()
