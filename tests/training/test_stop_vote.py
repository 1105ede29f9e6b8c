"""With several ranks a stop is voted on after every step, and nobody waits for the answer."""

import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gengen.cli import main
from gengen.training.loop import TrainingLoop
from gengen.training.objectives.language import Pretraining
from gengen.training.vote import LateVote
from helpers.families import step
from helpers.processes import forked, forked_ranks
from helpers.ranks import on_ranks
from helpers.runs import same_checkpoint

CPU = torch.device("cpu")


def test_one_wish_is_heard_by_all_a_step_later(tmp_path: Path) -> None:
    def check() -> None:
        vote, rank = LateVote(), dist.get_rank()
        assert [vote(rank == 1 and step == 2, CPU) for step in range(5)] == [False, False, False, True, False]

    on_ranks(2, tmp_path, check)


def test_nobody_waits_for_the_answer(tmp_path: Path) -> None:
    """A rank that is a second behind holds up the other's next vote, not this one; asked for at once, it would."""

    def check() -> None:
        vote, rank = LateVote(), dist.get_rank()
        for late in (vote, lambda wish, device: LateVote.__call__(vote, wish, device) or vote.answer()):
            dist.barrier()
            time.sleep(rank)
            begun = time.monotonic()
            late(False, CPU)
            if rank == 0:
                assert (time.monotonic() - begun < 0.5) == (late is vote)

    on_ranks(2, tmp_path, check)


@pytest.mark.slow
def test_steps_between_rows_reduce_nothing_that_is_waited_for(tiny: list[str], tmp_path: Path) -> None:
    """What `any_rank` decides, and waits for, belongs to rows, evaluations and saves."""

    def count_waits() -> None:
        original, waits = TrainingLoop.any_rank, defaultdict[int, int](int)

        def any_rank(self: TrainingLoop, trainer: Any, wish: bool) -> bool:
            waits[trainer.global_step] += 1
            (tmp_path / "waits.txt").write_text(" ".join(map(str, sorted(waits))))
            return original(self, trainer, wish)

        TrainingLoop.any_rank = any_rank  # type: ignore[method-assign]

    rhythm = ["max_steps=12", "log_every=3", "eval_every=6", "save_every=12", "sample_every=12", "devices=2"]
    argv = ["train", *tiny, *(f"trainer.{one}" for one in rhythm), f"runs_dir={tmp_path}", "run=r"]
    ended = forked(argv, before=forked_ranks(count_waits))
    assert ended.code == 0, ended.said
    assert (tmp_path / "waits.txt").read_text() == "6 12"


@pytest.mark.slow
@pytest.mark.fault("F15")
def test_a_signal_to_one_rank_stops_both_within_two_steps(tiny: list[str], tmp_path: Path) -> None:
    """And what goes on from there ends as if it had never stopped."""

    def signal_rank_1() -> None:
        original = Pretraining.training_step

        def training_step(self: Pretraining, *args: Any) -> None:
            if self.global_rank == 1 and self.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, *args)

        Pretraining.training_step = training_step  # type: ignore[method-assign]

    two = ["trainer.max_steps=8", "trainer.devices=2", "model.dropout=0.1", "run=r"]
    straight = forked(["train", *tiny, *two, f"runs_dir={tmp_path / 'a'}"], before=forked_ranks())
    assert straight.code == 0, straight.said
    stopped = forked(["train", *tiny, *two, f"runs_dir={tmp_path / 'b'}"], before=forked_ranks(signal_rank_1))
    assert step(tmp_path / "b" / "r") == 6, stopped.said
    assert forked(["train", "run=r", f"runs_dir={tmp_path / 'b'}"], before=forked_ranks()).code == 0
    last = [tmp_path / name / "r" / "checkpoints" / "step-000000008" for name in "ab"]
    same_checkpoint(*last)


def test_a_rank_alone_stops_at_once(tiny: list[str], tmp_path: Path) -> None:
    argv = ["train", *tiny, "trainer.max_steps=8", "stop_at=3", f"runs_dir={tmp_path}", "run=r"]
    assert main(argv) == 0 and step(tmp_path / "r") == 3
