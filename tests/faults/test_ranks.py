"""Several ranks: what one of them meets, all of them decide on; none waits for ever, and none is left behind. F31."""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from gengen.checkpoints.metrics_csv import read_metrics
from gengen.config.compose import compose_train, read_command_line
from gengen.errors import UserError
from gengen.training.build import build_trainer
from gengen.training.objectives.language import Pretraining
from gengen.training.place import Place
from gengen.training.ranks import Ranks
from helpers.families import on, step
from helpers.processes import Ended, forked, forked_ranks, left_behind, start, waited

pytestmark = pytest.mark.fault("F31")
EVERY = ["trainer.save_every=2", "trainer.eval_every=2", "trainer.sample_every=9", "trainer.log_every=1"]
Change = Callable[[], object]


def command(tiny: list[str], runs: Path, *more: str) -> list[str]:
    return ["train", *tiny, *EVERY, "trainer.max_steps=4", "trainer.devices=2", *more, f"runs_dir={runs}", "run=r"]


def two_ranks(tiny: list[str], runs: Path, *more: str, fault: str = "", change: Change = lambda: None) -> Ended:
    return forked(command(tiny, runs, *more), fault, before=forked_ranks(change))


def doing(what: Callable[[], object], rank: int, at: int = 3) -> Change:
    """Has one rank do something when step `at` begins."""

    def change() -> None:
        right = Pretraining.training_step

        def training_step(self: Pretraining, *args: Any) -> None:
            if self.global_rank == rank and self.global_step == at - 1:
                what()
            right(self, *args)

        Pretraining.training_step = training_step  # type: ignore[method-assign]

    return change


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise UserError("this rank will not")


@pytest.mark.parametrize("save", ["sync", "async"])
def test_a_failed_save_and_an_odd_last_batch(tiny: list[str], tmp_path: Path, save: str) -> None:
    """The first save fails, and both ranks try again; what they find on 15 held-out windows, one rank finds."""
    one = forked(command(tiny, tmp_path / "one", "model.context=50", "trainer.devices=1"))
    two = two_ranks(tiny, tmp_path / "two", "model.context=50", f"trainer.save={save}", fault="save:begin@1=full")
    assert one.code == 0 and two.code == 0, two.said
    assert two.said.count("could not be written") == 1 and "(1 failed in a row)" in two.said
    assert step(tmp_path / "two" / "r") == 4
    curves = [
        [row["val/bpb"] for row in read_metrics(tmp_path / n / "r" / "metrics.csv")][1::2] for n in ("one", "two")
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)


def test_ranks_wait_for_each_other_as_long_as_the_watchdog_would(tiny: list[str]) -> None:
    config = compose_train(read_command_line([*tiny, "trainer.devices=2", "trainer.watchdog=2h"]))
    strategy = build_trainer(config, Callback(), 1, ranks=Ranks(Place(world=2, local_world=2))).strategy
    assert isinstance(strategy, DDPStrategy) and strategy._timeout == timedelta(hours=2)


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_both_ranks(tiny: list[str], tmp_path: Path) -> None:
    """One message, though two processes end with it."""
    ended = two_ranks(tiny, tmp_path, "trainer.max_failed_saves=1", fault="save:begin=full").clear()
    assert ended.code == 1 and ended.said.count("error:") == 1 and "(1 failed in a row)" in ended.said


@pytest.mark.slow
def test_a_best_that_one_rank_alone_would_see(tiny: list[str], tmp_path: Path) -> None:
    """Metrics of which ranks differ (as by what batch normalisation has seen of each) lead to no save of one rank
    alone.
    """

    def change() -> None:
        def metrics(self: Pretraining, sums: Any) -> dict[str, float]:
            return {"val/loss": 0.0, "val/bpb": 5.0 + self.global_step * (1, -1)[self.global_rank]}

        Pretraining.evaluation_metrics = metrics  # type: ignore[method-assign]

    ended = two_ranks(tiny, tmp_path, "trainer.eval_every=1", "trainer.save_every=9", change=change)
    assert ended.code == 0 and (tmp_path / "r" / "checkpoints" / "BEST").read_text() == "step-000000001\n"


@pytest.mark.slow
def test_an_evaluation_and_samples_that_outlast_the_watchdog(tiny: list[str], tmp_path: Path) -> None:
    """Both go on all the time; while rank 0 samples, rank 1 waits, and is not stuck."""

    def change() -> None:
        right = Pretraining.evaluation_sums

        def evaluation_sums(self: Pretraining, batch: Any) -> Any:
            time.sleep(0.5)
            return right(self, batch)

        def write_samples(self: Pretraining, stem: Path, interrupted: Callable[[], bool]) -> str:
            for _ in range(8):
                time.sleep(0.5)
                assert not interrupted()
            return "written"

        Pretraining.evaluation_sums = evaluation_sums  # type: ignore[method-assign]
        Pretraining.write_samples = write_samples  # type: ignore[method-assign]

    settings = ["trainer.watchdog=2s", "data.micro_batch_size=1", "trainer.sample_every=4", "trainer.eval_every=4"]
    ended = two_ranks(tiny, tmp_path, *settings, change=change)
    assert ended.code == 0 and "sample written" in ended.said, ended.said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stuck_ends_both(tiny: list[str], tmp_path: Path, rank: int) -> None:
    ended = two_ranks(tiny, tmp_path, "trainer.watchdog=3s", change=doing(lambda: time.sleep(900), rank)).clear()
    assert ended.code == 70 and "nothing has moved for 3 s" in ended.said and step(tmp_path / "r") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, code, said",
    [
        (die, 75, "rank 1 is gone; the last checkpoint is step 2; the same command goes on"),
        (refuse, 2, "rank 1 ended with exit code 2, and the run with it"),
    ],
    ids=["killed", "refuses"],
)
def test_a_rank_that_fails_alone_is_named(tiny: list[str], tmp_path: Path, what: Change, code: int, said: str) -> None:
    """The checkpoint of before is there, and the run goes on from it."""
    ended = two_ranks(tiny, tmp_path, change=doing(what, rank=1)).clear()
    assert ended.code == code and ended.said.count(f"error: {said}\n") == 1, ended.said
    assert ("this rank will not" in ended.said) == (what is refuse) and step(tmp_path / "r") == 2
    assert forked(on(tmp_path), before=forked_ranks()).code == 0 and step(tmp_path / "r") == 4


@pytest.mark.slow
def test_a_killed_rank_ends_one_that_waits_for_it_without_a_word(tiny: list[str], tmp_path: Path) -> None:
    """As in a collective on GPUs, where no connection is closed."""

    def change() -> None:
        doing(die, rank=1)()
        doing(lambda: time.sleep(900), rank=0)()

    ended = two_ranks(tiny, tmp_path, change=change).clear()
    assert ended.code == 75 and "error: rank 1 is gone" in ended.said


@pytest.mark.slow
@pytest.mark.parametrize("save", ["sync", "async"])
def test_no_rank_is_left_where_rank_0_is_killed(tiny: list[str], tmp_path: Path, save: str) -> None:
    def change() -> None:
        doing(die, rank=0)()
        doing(lambda: time.sleep(900), rank=1)()

    child = start(command(tiny, tmp_path, f"trainer.save={save}"), tmp_path / "said.txt", before=forked_ranks(change))
    assert waited(child, 60) == -signal.SIGKILL
    assert not left_behind(child)
    said = (tmp_path / "said.txt").read_text()
    assert said.count("error: rank 0 is gone; ") == 1
    assert save == "async" or "the last checkpoint is step 2" in said  # beside training it may not be there yet
