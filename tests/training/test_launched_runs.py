"""Ranks that another program has started: torchrun by itself, SLURM by its variables. The same files come out."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gengen.training.place import Place, find_place
from helpers.families import step
from helpers.processes import HANGS, Ended, alive, forked, forked_ranks, start, waited
from helpers.runs import FREE, last_checkpoint, same_checkpoint, same_run

pytestmark = [pytest.mark.slow, pytest.mark.fault("F31")]
RHYTHM = ["trainer.max_steps=8", "trainer.save_every=4", "trainer.eval_every=4", "trainer.sample_every=8"]
GONE = "error: rank {} is gone; the last checkpoint is step {}; the same command goes on"


@pytest.fixture(scope="module")
def settings(tiny: list[str]) -> list[str]:
    return ["train", *tiny, *RHYTHM, "trainer.log_every=1", "model.dropout=0.1", "run=r"]


@pytest.fixture(scope="module")
def straight(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never stopped, whose ranks we start ourselves."""
    runs = tmp_path_factory.mktemp("straight")
    ended = forked([*settings, "trainer.devices=2", f"runs_dir={runs}"], before=forked_ranks())
    assert ended.code == 0, ended.said
    return runs / "r"


def slurm(job: int, rank: int, nodes: int) -> dict[str, str]:
    """What srun sets for one of two tasks, on one node or on two of 127.0.0.2 and 127.0.0.3."""
    env = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_NNODES": str(nodes), "SLURM_JOB_ID": str(job)}
    env |= {"SLURM_LOCALID": str(rank // nodes), "SLURM_NODEID": str(rank * (nodes - 1)), "SLURM_STEP_ID": "0"}
    return env | {"SLURM_JOB_NODELIST": "127.0.0.2" if nodes == 1 else "127.0.0.[2-3]"}


def srun(argv: list[str], runs: Path, job: int, nodes: int = 1) -> list[Ended]:
    """Run a command as two tasks, each a fork in a session of its own; nothing ends one for the other.

    Each node has a working directory of its own, as if it were a disk.
    """
    children = []
    for rank in range(2):
        env, folder = slurm(job, rank, nodes), runs / f"node-{rank * (nodes - 1)}"
        folder.mkdir(exist_ok=True)
        children.append(start([*argv, f"runs_dir={runs}"], runs / f"said-{rank}.txt", before=sets(env, folder)))
    codes = [waited(child, HANGS) for child in children]
    said = [(runs / f"said-{rank}.txt").read_text() for rank in range(2)]
    assert None not in codes, said
    return [Ended(code, words) for code, words in zip(codes, said, strict=True) if code is not None]


def sets(env: dict[str, str], folder: Path) -> Callable[[], None]:
    def before() -> None:
        os.environ.update(env)
        os.chdir(folder)

    return before


def test_what_is_pretended_here_are_places() -> None:
    one, two = (find_place(slurm(77, 1, nodes)) for nodes in (1, 2))
    assert one == Place(1, 1, 2, 2, 0, "127.0.0.2", 20077, "slurm")
    assert two == Place(1, 0, 2, 1, 1, "127.0.0.2", 20077, "slurm")


def test_tasks_of_slurm_make_the_files_of_our_own_ranks(settings: list[str], straight: Path, tmp_path: Path) -> None:
    """Rank 1 says nothing, and a finished run needs nobody: the same command ends at once, on both."""
    first, second = srun(settings, tmp_path, 101)
    assert (first.code, second.code, second.said) == (0, 0, ""), first.said + second.said
    same_run(straight, tmp_path / "r")
    again, silent = srun(["train", "run=r"], tmp_path, 102)
    assert (again.code, silent.code, silent.said) == (0, 0, "") and "is finished" in again.said


def test_two_nodes_of_one_rank_each_make_them_too(settings: list[str], straight: Path, tmp_path: Path) -> None:
    """Each prepares the data on its own disk; the checkpoints alone are shared."""
    first, second = srun([*settings, "data.dir=disk"], tmp_path, 103, nodes=2)
    assert (first.code, second.code, second.said) == (0, 0, ""), first.said + second.said
    assert all(list((tmp_path / f"node-{node}" / "disk" / "prepared").glob("text-*")) for node in range(2))
    free = FREE | {"trainer.devices", "data.dir"}
    same_checkpoint(last_checkpoint(straight), last_checkpoint(tmp_path / "r"), free)


def test_a_node_with_other_data_is_refused(settings: list[str], texts: Path, tmp_path: Path) -> None:
    """Files of the same names on each node's own disk, one of which has a line more."""
    for node in range(2):
        shutil.copytree(texts, tmp_path / f"node-{node}" / "texts")
    next((tmp_path / "node-1" / "texts").iterdir()).write_text("once more")
    own = ["data.path=texts", "data.dir=disk"]
    first, second = srun([*settings, *own], tmp_path, 109, nodes=2)
    assert (first.code, second.code) == (2, 2), first.said + second.said
    assert "error: rank 1 on" in second.said and "has other data than rank 0: its fingerprint is" in second.said
    assert first.said.endswith("error: rank 1 ended with exit code 2, and the run with it\n")


@pytest.mark.parametrize("killed", [0, 1])
def test_all_end_soon_after_one_is_killed_and_the_same_command_goes_on(
    settings: list[str], straight: Path, tmp_path: Path, killed: int
) -> None:
    """Nobody but the ranks themselves sees to it: each task is alone, as under srun without --kill-on-bad-exit."""
    children = [
        start([*settings, f"runs_dir={tmp_path}"], tmp_path / f"{rank}.txt", before=dies(rank, rank == killed))
        for rank in range(2)
    ]
    assert waited(children[killed], HANGS) == -signal.SIGKILL, (tmp_path / "0.txt").read_text()
    begun = time.monotonic()
    assert waited(children[1 - killed], HANGS) == 75
    assert time.monotonic() - begun < 10
    said = (tmp_path / f"{1 - killed}.txt").read_text()
    assert said.count("\n" if killed == 0 else "error:") == 1 and GONE.format(killed, 4) in said, said
    assert step(tmp_path / "r") == 4 and not alive(children[1 - killed])
    first, second = srun(settings, tmp_path, 105 + killed)
    assert first.code == second.code == 0, first.said + second.said
    same_run(straight, tmp_path / "r")


def dies(rank: int, is_killed: bool) -> Callable[[], None]:
    """A task of SLURM that is killed, if it is to be, when step 6 begins."""

    def before() -> None:
        from gengen.training.objectives.language import Pretraining

        os.environ.update(slurm(104, rank, nodes=1))
        right = Pretraining.training_step

        def training_step(self: Pretraining, *args: Any) -> None:
            if is_killed and self.global_step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            right(self, *args)

        Pretraining.training_step = training_step  # type: ignore[method-assign]

    return before


def test_what_rank_0_refuses_ends_all_without_another_word(settings: list[str], tmp_path: Path) -> None:
    """With the exit code of what is to be mended, which nothing tries again."""
    first, second = srun([*settings, "trainer.max_step=3"], tmp_path, 107)
    assert (first.code, second.code, second.said) == (2, 2, "") and "unknown key trainer.max_step" in first.said
    first, second = srun([*settings, "data.batch_size=7"], tmp_path, 108)
    assert (first.code, second.code) == (2, 2) and "cannot be shared by trainer.devices=2 equally" in first.said


def test_torchrun_starts_the_ranks_anew_and_ends_as_if_none_had_been_killed(
    settings: list[str], straight: Path, tmp_path: Path
) -> None:
    """Processes as a user's. Rank 0 is killed as it begins its fourth save; after the restart there are fewer."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [*torchrun, "-m", "gengen.cli", *settings, "trainer.save_every=2", f"runs_dir={tmp_path}"],
        env=os.environ | {"GENGEN_FAULT": "save:begin@4=kill", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf8",
        timeout=2 * HANGS,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and said.count(GONE.format(0, 6)) == 1, said
    assert said.count("resume step-000000006, verified") == 1
    same_run(straight, tmp_path / "r", FREE | {"trainer.save_every"})
