"""Checkpoints that two ranks write: the same tensors as in one file, whatever reads them, and no kill tears one."""

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from gengen.checkpoints.files import read_json
from gengen.checkpoints.layout import nbytes, pack, read, read_tensors, unique_state
from gengen.checkpoints.saving import Save, SaverInTurn
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.errors import UserError
from gengen.training.loop import TrainingLoop
from gengen.training.ranks import TRY_AGAIN
from gengen.training.sharding import Sharding, local, sharded_like
from helpers.families import step
from helpers.processes import Ended, forked, forked_ranks
from helpers.ranks import on_ranks
from helpers.runs import FREE, same_checkpoint, same_run
from helpers.sharded_runs import at, saving_at_start, sharded

PARTS = ["model", "ema", "optimizer"]


@pytest.fixture(scope="module")
def settings(tiny: list[str]) -> list[str]:
    """Four steps, each saved; an average."""
    rhythm = ["max_steps=4", "save_every=1", "eval_every=4", "sample_every=4", "log_every=1", "keep=9"]
    return ["train", *tiny, "optim.ema=0.9", "model.ff=49", *(f"trainer.{one}" for one in rhythm), "run=r"]


@pytest.fixture(scope="module")
def shards(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoints both ranks write."""
    runs = tmp_path_factory.mktemp("shards")
    sharded(settings, runs, "trainer.sharded_save=true")
    return runs / "r"


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, whose checkpoints rank 0 writes."""
    runs = tmp_path_factory.mktemp("whole")
    sharded(settings, runs)
    return runs / "r"


def files(checkpoint: Path, part: str) -> list[Path]:
    return sorted(checkpoint.glob(f"{part}-*.safetensors"))


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    saved, found = read(checkpoint), dict[str, Tensor]()
    pack({"model": saved.model, "ema": saved.ema, "optimizer": saved.optimizer}, found)
    return found


def same_tensors(a: Path, b: Path) -> None:
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_shards_hold_what_one_file_holds(shards: Path, whole: Path) -> None:
    """Bit for bit, about half in each; every tensor is in one file, where the index says."""
    for number in range(1, 5):
        a, b = at(shards, number), at(whole, number)
        same_tensors(a, b)
        for name in ("state.json", "optimizer.json", "tokenizer.json"):
            assert (a / name).read_bytes() == (b / name).read_bytes()
    for part in PARTS:
        held = {path.name: load_file(path) for path in files(at(shards, 4), part)}
        sizes = [nbytes(found) for found in held.values()]
        index = read_json(at(shards, 4) / f"{part}.safetensors.index.json")
        assert len(held) == 2 and max(sizes) < 0.7 * sum(sizes) and index["metadata"]["total_size"] == sum(sizes)
        assert index["weight_map"] == {name: file for file, found in held.items() for name in found}
        assert sum(map(len, held.values())) == len(index["weight_map"])


@pytest.mark.slow
def test_stopped_and_resumed_with_shards_equals_never_stopped(
    settings: list[str], shards: Path, whole: Path, tmp_path: Path
) -> None:
    """And so does one that goes on with one file, or comes from one."""
    sharded(settings, tmp_path / "a", "stop_at=2", "trainer.sharded_save=true")
    sharded(["train", "run=r"], tmp_path / "a")
    same_run(shards, tmp_path / "a" / "r")
    sharded(settings, tmp_path / "b", "stop_at=2")
    sharded(["train", "run=r", "trainer.sharded_save=true"], tmp_path / "b")
    same_run(shards, tmp_path / "b" / "r")
    sharded(["train", "run=r", "trainer.sharded_save=false", "trainer.max_steps=5"], tmp_path / "b")
    assert step(tmp_path / "b" / "r") == 5


@pytest.mark.slow
def test_shards_of_two_ranks_are_loaded_to_the_bit_by_one_process(
    settings: list[str], shards: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded(settings, tmp_path, "stop_at=2", "trainer.sharded_save=true")
    monkeypatch.setattr(TrainingLoop, "on_train_start", TrainingLoop.on_train_start)  # put back by the end
    saving_at_start(tmp_path / "loaded")
    alone = ["trainer.devices=1", "trainer.strategy=auto", "trainer.sharded_save=false"]
    assert main(["train", "run=r", f"runs_dir={tmp_path}", *alone]) == 0
    for part in PARTS:
        file = f"{part}.safetensors"
        assert (at(whole, 2) / file).read_bytes() == (tmp_path / "loaded" / "step-000000002" / file).read_bytes()


@pytest.mark.slow
def test_what_one_process_saved_is_loaded_to_the_bit_and_saved_in_shards(settings: list[str], tmp_path: Path) -> None:
    assert main([*settings, "stop_at=2", f"runs_dir={tmp_path}"]) == 0
    sharded(["train", "run=r", "trainer.sharded_save=true"], tmp_path, saves=tmp_path / "loaded")
    loaded = tmp_path / "loaded" / "step-000000002"
    assert len(files(loaded, "model")) == 2
    same_tensors(at(tmp_path / "r", 2), loaded)


@pytest.mark.slow
def test_every_command_reads_either(
    shards: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in ("raw", "ema"):
        drawn = []
        for run in (shards, whole):
            out = tmp_path / f"{run.parent.name}-{weights}"
            argv = [
                "sample",
                str(at(run, 4)),
                "n=3",
                "prompt=once",
                "max_tokens=16",
                f"weights={weights}",
                f"out={out}",
            ]
            assert main(argv) == 0
            drawn.append(out.read_bytes())
        assert drawn[0] == drawn[1] and drawn[0]
    for run in (shards, whole):
        assert main(["export", str(run), f"out={tmp_path / f'hf-{run.parent.name}'}"]) == 0
    a, b = (load_file(tmp_path / f"hf-{run.parent.name}" / "model.safetensors") for run in (shards, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    capsys.readouterr()
    assert main(["doctor", str(shards)]) == 0, capsys.readouterr().out


# --- what goes wrong


def killed_in_a_save(rank: int, number: int, delay: float) -> Callable[[], None]:
    """Has one rank die so many seconds after it has begun its n-th save."""

    def change() -> None:
        begin, begun = SaverInTurn.begin, iter(range(1, 100))

        def begin_and_die(self: SaverInTurn, save: Save) -> None:
            if next(begun) == number and int(os.environ.get("LOCAL_RANK", 0)) == rank:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            begin(self, save)

        SaverInTurn.begin = begin_and_die  # type: ignore[method-assign]

    return change


def two_ranks(argv: list[str], runs: Path, change: Callable[[], object] = lambda: None, fault: str = "") -> Ended:
    two = ["trainer.devices=2", "trainer.strategy=fsdp", "trainer.sharded_save=true", f"runs_dir={runs}"]
    return forked([*argv, *two], fault, before=forked_ranks(change))


@pytest.mark.fault("F32", "kill -9 of either of two ranks in a save of shards", "the checkpoint before verifies")
@pytest.mark.slow
def test_twenty_kills_in_a_save_of_shards(settings: list[str], shards: Path, tmp_path: Path) -> None:
    """Each at another place; torn saves leave a stage, which is never read, and the run goes on from what is there."""
    draw, torn = random.Random(0), 0
    for kill in range(20):
        runs, rank, number = tmp_path / str(kill), kill % 2, draw.choice([2, 3])
        ended = two_ranks(
            [*settings, "trainer.eval_every=9"], runs, killed_in_a_save(rank, number, draw.uniform(0, 0.06))
        )
        assert ended.code in (TRY_AGAIN, -signal.SIGKILL), ended.said
        assert number - 1 <= step(runs / "r") <= 4
        torn += bool(list(runs.glob("r/checkpoints/.tmp-*")))
        last = runs
    assert torn >= 5
    assert two_ranks(["train", "run=r", "trainer.eval_every=4"], last).code == 0
    same_checkpoint(at(shards, 4), at(last / "r", 4), FREE | {"trainer.eval_every"})
    assert not list(last.glob("r/checkpoints/.t*"))


@pytest.mark.fault("F10")
@pytest.mark.slow
@pytest.mark.parametrize(
    "point, rank", [("begin", 0), ("ema-00001-of-00002.safetensors", 0), ("model-00002-of-00002.safetensors", 1)]
)
def test_a_rank_whose_disk_is_full_is_named(
    settings: list[str], shards: Path, tmp_path: Path, point: str, rank: int
) -> None:
    """All go on, the next save is the same, and nothing is left of the one that failed."""
    ended = two_ranks(settings, tmp_path, fault=f"save:{point}@2=full")
    assert ended.code == 0 and ended.said.count("could not be written") == 1
    assert f"by rank {rank}: " in ended.said and "No space left on device" in ended.said
    same_run(shards, tmp_path / "r")
    assert not at(tmp_path / "r", 2).exists() and not list(tmp_path.glob("r/checkpoints/.t*"))


def test_what_cannot_be_written_in_shards_is_refused() -> None:
    for line, words in {
        ("trainer.strategy=ddp",): r"take trainer\.sharded_save=false, or trainer\.strategy=fsdp",
        ("trainer.strategy=fsdp", "trainer.save=async"): "take trainer.save=auto or sync",
    }.items():
        with pytest.raises(UserError, match=words):
            compose_train(read_command_line(["model=gpt", "trainer.max_steps=9", "trainer.sharded_save=true", *line]))


# --- a rank reads its rows


def resident(path: Path) -> int:
    """Bytes of a file that this process has mapped and read."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and first == "Rss:":
            found += 1024 * int(line.split()[1])
    return found


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ParameterList([torch.arange(2**23, dtype=torch.float32).view(1024, -1) for _ in range(2)])

    def units(self) -> list[nn.Module]:
        return []


def test_a_rank_reads_the_rows_that_it_needs(tmp_path: Path) -> None:
    """Of 64 MB in one file, two ranks read half each: the system maps pages of up to 2 MB."""
    path, model = tmp_path / "model.safetensors", Wide()
    save_file({name: tensor.detach() for name, tensor in unique_state(model).items()}, path)

    def check() -> None:
        model = Wide()
        Sharding(model, init_device_mesh("cpu", (2,)), compiled=False)
        weights = read_tensors(path)
        before = resident(path)
        own = unique_state(model)
        rows = {name: sharded_like(tensor, own[name]) for name, tensor in weights.items()}
        assert all(torch.equal(local(rows[name]), local(own[name])) for name in own)
        assert 0.45 < (resident(path) - before) / path.stat().st_size < 0.6

    on_ranks(2, tmp_path, check)
