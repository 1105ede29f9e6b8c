"""FSDP2: the same gradients, curves and checkpoints as one process; every matrix moves; no rank waits for ever. The
pairs of ranks are forks on gloo.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from gengen.checkpoints.layout import nbytes, unique_state
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import GPTConfig
from gengen.errors import UserError
from gengen.models.dit import DiT
from gengen.models.gpt import GPT
from gengen.models.unet import UNet
from gengen.training.loop import TrainingLoop
from gengen.training.memory import in_halves
from gengen.training.optim.muon import Muon
from gengen.training.optim.owners import Owners, dealt
from gengen.training.sharding import Sharding, local, sharded_like, whole
from gengen.training.strategy import check_sharding
from helpers.ranks import on_ranks
from helpers.runs import same_checkpoint, same_run
from helpers.sharded_runs import at, saving_at_start, sharded

TENSORS = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]


# --- whole runs on two ranks


@pytest.fixture(scope="module")
def settings(tiny: list[str]) -> list[str]:
    """Eight steps, each saved; micro-batches, an average, 15 held-out windows for two ranks, an odd feature."""
    rhythm = ["max_steps=8", "save_every=1", "eval_every=1", "sample_every=8", "log_every=1", "keep=9"]
    own = ["data.micro_batch_size=2", "optim.ema=0.9", "model.context=50", "model.ff=49"]
    return ["train", *tiny, *own, *(f"trainer.{one}" for one in rhythm), "run=r"]


@pytest.fixture(scope="module")
def one(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("one")
    assert main([*settings, f"runs_dir={runs}"]) == 0
    return runs / "r"


@pytest.fixture(scope="module")
def two(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("two")
    sharded(settings, runs)
    return runs / "r"


def differences(a: Path, b: Path) -> dict[str, float]:
    """How far the tensors of two files are apart, each as a share of its largest number."""
    one, other = load_file(a), load_file(b)
    assert one.keys() == other.keys()
    largest = {name: float(tensor.abs().max()) for name, tensor in one.items()}
    return {name: float((one[name] - other[name]).abs().max()) / (largest[name] or 1.0) for name in one}


@pytest.mark.slow
def test_gradients_and_curve_are_those_of_one_process(one: Path, two: Path) -> None:
    """The first moment after a step from 0 is a tenth of the gradient. Of the steps after, Adam's first ones enlarge
    what was rounded otherwise.
    """
    apart = differences(at(one, 1) / "optimizer.safetensors", at(two, 1) / "optimizer.safetensors")
    gradients = {name: d for name, d in apart.items() if name.endswith("exp_avg")}
    assert len(gradients) == len(load_file(at(one, 1) / "model.safetensors")) and max(gradients.values()) < 1e-6
    for column in ("train/loss", "val/loss", "val/bpb", "grad_norm", "lr"):
        curves = [[row[column] for row in read_metrics(run / "metrics.csv")] for run in (one, two)]
        assert len(curves[0]) == 8 and curves[1] == pytest.approx(curves[0], rel=1e-5), column
    for file in ("model.safetensors", "ema.safetensors"):
        assert max(differences(at(one, 8) / file, at(two, 8) / file).values()) < 1e-4
    samples = [next((run / "samples").glob("*.txt")).read_text() for run in (one, two)]
    assert samples[0] and samples[0] == samples[1]


@pytest.mark.slow
def test_stopped_and_resumed_on_two_ranks_equals_never_stopped(settings: list[str], two: Path, tmp_path: Path) -> None:
    sharded(settings, tmp_path, "stop_at=3")
    sharded(["train", "run=r"], tmp_path)
    same_run(two, tmp_path / "r")


@pytest.mark.slow
def test_saves_beside_training_are_the_same(settings: list[str], two: Path, tmp_path: Path) -> None:
    sharded(settings, tmp_path, "trainer.save=async")
    for step in range(1, 9):
        same_checkpoint(at(two, step), at(tmp_path / "r", step))


@pytest.mark.slow
def test_what_one_process_saved_two_ranks_load_to_the_bit(
    settings: list[str], one: Path, two: Path, tmp_path: Path
) -> None:
    """And go on as one would."""
    assert main([*settings, "stop_at=4", f"runs_dir={tmp_path}"]) == 0
    sharded(["train", "run=r"], tmp_path, saves=tmp_path / "loaded")
    for file in TENSORS:
        assert (at(one, 4) / file).read_bytes() == (tmp_path / "loaded" / "step-000000004" / file).read_bytes()
    assert (
        max(differences(at(one, 8) / "model.safetensors", at(tmp_path / "r", 8) / "model.safetensors").values()) < 1e-4
    )


@pytest.mark.slow
def test_what_two_ranks_saved_one_process_loads_to_the_bit(
    settings: list[str], two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded(settings, tmp_path, "stop_at=4")
    monkeypatch.setattr(TrainingLoop, "on_train_start", TrainingLoop.on_train_start)  # put back by the end
    saving_at_start(tmp_path / "loaded")
    assert main(["train", "run=r", f"runs_dir={tmp_path}", "trainer.devices=1", "trainer.strategy=auto"]) == 0
    for file in TENSORS:
        assert (at(two, 4) / file).read_bytes() == (tmp_path / "loaded" / "step-000000004" / file).read_bytes()
    assert (
        max(differences(at(two, 8) / "model.safetensors", at(tmp_path / "r", 8) / "model.safetensors").values()) < 1e-4
    )


@pytest.mark.slow
def test_muon_moves_every_hidden_matrix_as_in_one_process(settings: list[str], tmp_path: Path) -> None:
    """bf16 would enlarge a gradient's rounding to 1e-4, so its products are in fp32 here."""
    muon = [
        "optim=muon",
        "optim.muon_precision=fp32",
        "trainer.max_steps=3",
        "trainer.eval_every=3",
        "model.dropout=0",
    ]
    assert main([*settings, *muon, f"runs_dir={tmp_path / 'one'}"]) == 0
    sharded(settings, tmp_path / "two", *muon)
    weights = [load_file(at(tmp_path / name / "r", 3) / "model.safetensors") for name in ("one", "two")]
    before = load_file(at(tmp_path / "two" / "r", 1) / "model.safetensors")
    hidden = [name for name, weight in before.items() if name.startswith("blocks") and weight.dim() == 2]
    assert len(hidden) == 2 * 4
    for name, weight in weights[1].items():
        assert (weight - weights[0][name]).abs().max() < 1e-5, name
    for name in hidden:
        assert (weights[1][name] - before[name]).norm() > 0.02, name


@pytest.mark.slow
def test_compiled_in_place_trains_as_uncompiled(settings: list[str], two: Path, tmp_path: Path) -> None:
    sharded(settings, tmp_path, "trainer.compile=true", "stop_at=2", "trainer.eval_every=9")
    curves = [[row["train/loss"] for row in read_metrics(run / "metrics.csv")][:2] for run in (two, tmp_path / "r")]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


@pytest.mark.slow
def test_diffusion_is_that_of_one_process(picture_data: list[str], tmp_path: Path) -> None:
    model = ["model=unet", "model.widths=[16,32]", "model.blocks=1", "model.attention=[1]", "optim.ema=0.9"]
    machine = ["trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1", "data.batch_size=12", "run=r"]
    rhythm = ["trainer.max_steps=4", "trainer.eval_every=1", "trainer.log_every=1"]
    argv = ["train", *model, *picture_data, *machine, *rhythm]
    assert main([*argv, f"runs_dir={tmp_path / 'one'}"]) == 0
    sharded(argv, tmp_path / "two")
    runs = [tmp_path / name / "r" for name in ("one", "two")]
    for column in ("train/loss", "val/loss"):
        curves = [[row[column] for row in read_metrics(run / "metrics.csv")] for run in runs]
        assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert all(list((run / "samples").glob("*.png")) for run in runs)


# --- the parts, on three ranks


SMALL = {
    "size": "nano",
    "layers": 2,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "ff": 49,
    "vocab_size": 90,
    "context": 16,
}
WIDE = ["model.widths=[16,32]", "model.blocks=1", "model.attention=[1]"]


def mesh_of_all() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def gpt(seed: int = 0, **more: Any) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(**(SMALL | more)))


def image_models() -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """A UNet and a DiT with an input for each; what begins at 0 is drawn anew, so that all of it has a gradient."""
    data = ["data=imagefolder", "data.resolution=16", "data.channels=1"]
    for line in (
        ["model=unet", *WIDE, *data],
        ["model=dit", "model.layers=2", "model.width=32", "model.heads=2", *data],
    ):
        config: Any = compose_train(read_command_line(line)).model
        facts = {"channels": 1, "resolution": 16, "classes": ["a", "b"], "sigma_data": 0.5}
        model = (UNet if "unet" in line[0] else DiT)(config.with_data(facts).resolved())
        g = torch.Generator().manual_seed(1)
        for p in model.parameters():
            nn.init.normal_(p, std=0.1, generator=g)
        yield model, {"x": torch.randn(6, 1, 16, 16, generator=g), "level": torch.rand(6, generator=g)}


def gradients(model: nn.Module, inputs: dict[str, Tensor], factor: float = 1.0) -> dict[str, Tensor]:
    """Of a loss that is a sum over rows: of cross-entropies, or of squares."""
    out = model(**inputs)
    (factor * (out.square().sum() if out.dim() else out)).backward()
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_models_on_three_ranks(tmp_path: Path) -> None:
    """Gradients, what is gathered, and a whole copy are those of the unsharded model; each rank has a third."""

    def check() -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        tokens = torch.randint(90, (6, 16), generator=torch.Generator().manual_seed(0))
        cases = [
            (gpt(tied=tied, residual_init="scaled"), {"tokens": tokens, "labels": tokens}) for tied in (True, False)
        ]
        for model, inputs in [*cases, *image_models()]:
            before = {name: tensor.detach().clone() for name, tensor in unique_state(model).items()}
            expected = gradients(model, inputs)
            model.zero_grad()
            sharding = Sharding(model, mesh_of_all(), compiled=False)
            mine = sum(nbytes(local(p)) for p in model.parameters())
            assert mine < 0.4 * nbytes(before) <= 1.3 * nbytes(dict(model.named_parameters()))
            share = {name: tensor[2 * rank : 2 * rank + 2] for name, tensor in inputs.items()}
            found = gradients(model, share, ranks)  # averaged over ranks
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                assert (found[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name
            copied = sharding.whole_model(unique_state(model))
            gathered = sharding.gathered(unique_state(model))
            assert bool(gathered) == (rank == 0)
            for name, tensor in gathered.items():
                assert torch.equal(tensor, before[name]) and torch.equal(unique_state(copied)[name], before[name])
            if rank == 0:
                assert not any(isinstance(p, DTensor) for p in copied.parameters()) and not copied.training

    on_ranks(3, tmp_path, check)


def test_no_rank_is_left_waiting_by_uneven_batches(tmp_path: Path) -> None:
    """Of 3, 2 and 2 batches each rank yields three, the last of which counts on one; with none at all, all refuse."""

    def check() -> None:
        rank = dist.get_rank()
        sharding = Sharding(gpt(), mesh_of_all(), compiled=False)
        found = list(sharding.side_by_side(range(3 if rank == 1 else 2)))
        assert found == [(0, True), (1, True), (2, True) if rank == 1 else (1, False)]
        with pytest.raises(UserError, match="1 of 3 ranks have nothing to evaluate"):
            list(sharding.side_by_side(range(min(rank, 1))))
        with torch.no_grad():
            sharding.model(torch.zeros(1, 4, dtype=torch.long))
        sharding.reshard()
        assert all(isinstance(p, DTensor) for p in sharding.model.parameters())

    on_ranks(3, tmp_path, check)


class Maps(nn.Module):
    """Matrices whose rows three ranks cannot share equally, one of fewer rows than ranks; a convolution; a stack."""

    SHAPES = ((7, 5), (2, 9), (12, 4), (5, 3, 3, 3), (10, 6), (12, 4))

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.maps = nn.ParameterList([torch.randn(shape, generator=g) for shape in self.SHAPES])
        setattr(self.maps[4], "stacked_rows", [7, 3])

    def units(self) -> list[nn.Module]:
        return []


def moved(model: nn.Module, steps: int = 3) -> dict[str, Tensor]:
    """The weights after some steps of Muon, one of them a bad one."""
    groups = [{"params": list(model.named_parameters()), "muon": True, "weight_decay": 0.1}]
    optimizer = Muon(groups, lr=0.05, dtype=torch.float32)
    for step in range(steps):
        for i, p in enumerate(model.parameters()):
            g = torch.Generator().manual_seed(100 * step + i)
            p.grad = sharded_like(torch.randn(p.shape, generator=g), p)
        optimizer.found_inf = torch.tensor(float(step == 1))
        optimizer.step()
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


def muon_on_ranks() -> None:
    """Check that three steps move sharded matrices as whole ones, and far."""
    start, expected, model = Maps(), moved(Maps()), Maps()
    Sharding(model, mesh_of_all(), compiled=False)
    found = moved(model)
    for (name, before), after in zip(start.named_parameters(), found.values(), strict=True):
        assert (after - expected[name]).abs().max() < 1e-5, name
        decayed = before * (1 - 0.05 * 0.1) ** 2
        assert (after - decayed).norm() > 0.05, f"{name} does not move"


@pytest.mark.parametrize("ranks", [1, 3])
def test_muon_of_sharded_matrices(ranks: int, tmp_path: Path) -> None:
    on_ranks(ranks, tmp_path, muon_on_ranks)


def test_an_update_that_does_not_land_would_be_noticed(tmp_path: Path) -> None:
    """The bug put back: matrices that only decay, as where a copy of the rows is moved."""

    def check() -> None:

        def scattered(self: Owners, wholes: Any, like: list[Tensor]) -> list[Tensor]:
            return [torch.zeros_like(rows) for rows in like]

        Owners.scattered = scattered  # type: ignore[assignment, method-assign]
        with pytest.raises(AssertionError):
            muon_on_ranks()

    on_ranks(1, tmp_path, check)


def test_matrices_are_dealt_out_by_size() -> None:
    assert dealt([5, 9, 1, 9, 3], 2) == [[0, 1, 2], [3, 4]] and dealt([4], 3) == [[0], [], []]


def test_an_evaluation_on_shares_is_not_halved() -> None:
    """Other ranks would wait for the weights of the second half."""

    def act(rows: int) -> int:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="out of memory in an evaluation, 8 rows at a time"):
        in_halves(act, 8, "in an evaluation", least=8)


# --- what is refused


@pytest.mark.parametrize(
    "line, words",
    [
        (["model=gan", "data=animals"], "model=gan does not say what it is sharded by"),
        (["model=vae", "data=animals"], "model=vae does not say what it is sharded by"),
        (["model=gpt", "stage=dpo", "data=preferences", "init_from=x"], "stage=dpo of model=gpt calls more"),
        (["model=gpt", "stage=reward", "data=preferences", "init_from=x"], "stage=reward of model=gpt"),
    ],
)
def test_what_cannot_be_sharded_is_refused(line: list[str], words: str) -> None:
    config = compose_train(read_command_line([*line, "trainer.strategy=fsdp", "trainer.max_steps=9"]))
    with pytest.raises(UserError, match=words):
        check_sharding(config)


def test_a_budget_is_refused_for_shards() -> None:
    with pytest.raises(UserError, match=r"trainer\.strategy=fsdp needs trainer\.max_steps"):
        compose_train(read_command_line(["model=gpt", "trainer.strategy=fsdp", "trainer.max_steps=null"]))


def test_refused_before_a_run_begins(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "model=gan", "data=animals", "trainer.strategy=fsdp", "trainer.max_steps=3"]
    assert main([*line, f"runs_dir={tmp_path}", "run=r"]) == 2
    assert "take trainer.strategy=ddp or auto" in capsys.readouterr().err and not (tmp_path / "r").exists()
