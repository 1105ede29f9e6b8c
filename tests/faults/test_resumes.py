"""Stopped and resumed equals never stopped, in every family: F1 to F6, F22, F30."""

import random
from pathlib import Path

import pytest

from gengen.checkpoints.layout import read, read_tensors
from helpers.families import EPOCH, OWN, Family, FamilyOf, on, step
from helpers.processes import forked


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.fault("F5")
@pytest.mark.fault("F6")
def test_a_stop_changes_nothing_nor_do_workers(family: Family, tmp_path: Path) -> None:
    """Without workers, with two, without again; in the middle of an epoch or an iteration, and beyond it."""
    assert forked(family.begin(tmp_path, "stop_at=5")).code == 0
    assert forked(on(tmp_path, "stop_at=10", "data.num_workers=2")).code == 0
    assert forked(on(tmp_path, "data.num_workers=0")).code == 0
    family.same(tmp_path / "r")
    updates = read(tmp_path / "r" / "checkpoints" / "step-000000012").optimizer["state"].values()
    assert {int(moments["step"]) for moments in updates} == {
        12
    }  # a step is one update, whatever else has an optimizer


@pytest.mark.fault("F3")
def test_three_resumes_inside_one_epoch(family: Family, tmp_path: Path) -> None:
    """Of PPO, inside one iteration: its answers and its place among them are carried three times."""
    assert forked(family.begin(tmp_path, "stop_at=5")).code == 0
    for stop in (6, 7, 8):
        assert forked(on(tmp_path, f"stop_at={stop}")).code == 0
        assert step(tmp_path / "r") == stop
    assert forked(on(tmp_path)).code == 0
    family.same(tmp_path / "r")


@pytest.mark.fault("F4")
def test_a_resume_at_the_end_of_an_epoch_and_at_step_0(family: Family, tmp_path: Path) -> None:
    """Killed in its first step, a run has no checkpoint and begins again."""
    assert forked(family.begin(tmp_path), "step@1").code == -9
    assert step(tmp_path / "r") == -1 or family.name == "ppo"
    assert forked(on(tmp_path, f"stop_at={EPOCH[family.name]}")).code == 0
    assert forked(on(tmp_path)).code == 0
    family.same(tmp_path / "r")


@pytest.mark.fault("F22")
def test_changed_data_are_refused(family: Family, tmp_path: Path) -> None:
    """What a run of this family reads is exchanged for another of the same form: the resume names it and exits 2."""
    data = Path(next(a for a in family.settings if a.startswith("data.path=")).removeprefix("data.path="))
    own = tmp_path / data.name
    files = {path.relative_to(data.parent): path.read_bytes() for path in [data, *data.rglob("*")] if path.is_file()}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert forked(family.begin(tmp_path, f"data.path={own}", f"data.dir={tmp_path}", "stop_at=2")).code == 0
    first, second = random.Random(0).sample(sorted(files), 2) if len(files) > 1 else (next(iter(files)),) * 2
    content = files[second] if len(files) > 1 else b"".join(files[first].splitlines(keepends=True)[1:])
    (tmp_path / first).write_bytes(content)
    ended = forked(on(tmp_path)).clear()
    assert ended.code == 2 and "the data is not what" in ended.said
    (tmp_path / first).write_bytes(files[first])
    assert forked(on(tmp_path, "stop_at=3")).code == 0


@pytest.mark.fault("F30")
@pytest.mark.parametrize("name", [name for name in OWN if name != "ppo"])  # which keeps no average here
def test_an_average_beside_the_weights_has_their_names(name: str, family_of: FamilyOf, tmp_path: Path) -> None:
    """Weights saved with an average beside them load with it and without: `raw` and `ema` are both samples of the
    run."""
    checkpoint = family_of(name).straight / "checkpoints" / "step-000000012"
    model, ema = (read_tensors(checkpoint / f"{name}.safetensors") for name in ("model", "ema"))
    assert ema.keys() <= model.keys() and any((ema[name] != model[name]).any() for name in ema)
    assert all((ema[name].shape, ema[name].dtype) == (model[name].shape, model[name].dtype) for name in ema)
    for weights in ("raw", "ema"):
        argv = ["sample", str(checkpoint), "n=2", f"weights={weights}", f"out={tmp_path / weights}"]
        argv += {"gpt": ["prompt=once", "max_tokens=4"], "ldm": ["steps=2"]}.get(name, [])
        assert forked([*argv, f"runs_dir={tmp_path}"]).code == 0
