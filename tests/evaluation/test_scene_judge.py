"""A detector of a grid of cells: what it is trained towards, what is read off it, and what a trained one sees."""

import numpy as np
import pytest
import torch

from gengen.data.image.sources.base import Thing
from gengen.errors import UserError
from gengen.evaluation import prompt_judges
from gengen.evaluation.prompt_judges import checked, prompt_judge_for
from gengen.evaluation.prompts import evaluate_prompts
from gengen.evaluation.scene_judge import Grid, SceneJudge, detection_loss, peaks, turned_about
from helpers import captioned_pictures
from helpers.captioned_pictures import Captioned, scene_of, scenes

THINGS = (
    Thing({"shape": "ring", "colour": "red"}, (0.2, 0.3)),
    Thing({"shape": "cross", "colour": "blue"}, (0.75, 0.8)),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Captioned:
    return scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def untrained(data: Captioned) -> SceneJudge:
    torch.manual_seed(0)
    return SceneJudge(data).eval()


def ideal(judge: SceneJudge, things: tuple[Thing, ...], side: int = 8, sure: float = 9.0) -> Grid:
    """What a detector that is never wrong says of one picture."""
    presence, offset = torch.full((1, side, side), -sure), torch.zeros(1, 2, side, side)
    attributes = [torch.zeros(1, size, side, side) for size in judge.vocabulary.sizes]
    for row, column, dx, dy, *values in judge.targets(things, side).tolist():
        y, x = int(row), int(column)
        presence[0, y, x] = sure
        offset[0, :, y, x] = torch.tensor([dx, dy])
        for logits, value in zip(attributes, values, strict=True):
            logits[0, int(value), y, x] = sure
    return Grid(presence, offset, attributes)


def test_what_is_read_off_is_what_was_put_in(untrained: SceneJudge, monkeypatch) -> None:
    monkeypatch.setattr(untrained, "grid", lambda images: ideal(untrained, THINGS))
    (found,) = untrained.read(torch.zeros(1))
    assert [thing.attributes for thing in found] == [thing.attributes for thing in THINGS]
    for thing, wanted in zip(found, THINGS, strict=True):
        assert thing.centre == pytest.approx(wanted.centre, abs=1e-5)


def test_the_loss_of_what_is_right_is_next_to_nothing(untrained: SceneJudge) -> None:
    targets, image = untrained.targets(THINGS, 8), torch.zeros(2, dtype=torch.int64)
    right = detection_loss(ideal(untrained, THINGS), targets, image)
    assert right < 0.02
    for wrong in (
        THINGS[:1],  # one is not seen
        (THINGS[0], Thing({"shape": "ring", "colour": "blue"}, (0.75, 0.8))),  # another shape
        (THINGS[0], Thing(THINGS[1].attributes, (0.4, 0.8))),  # another place
    ):
        assert detection_loss(ideal(untrained, wrong), targets, image) > 1


def test_cells_next_to_a_middle_may_say_anything(untrained: SceneJudge) -> None:
    targets, image = untrained.targets(THINGS[:1], 8), torch.zeros(1, dtype=torch.int64)
    grid = ideal(untrained, THINGS[:1])
    row, column = targets[0, :2].long().tolist()
    before = detection_loss(grid, targets, image)
    grid.presence[0, row, column + 1] = 9.0
    assert detection_loss(grid, targets, image) == before
    grid.presence[0, row, column + 2] = 9.0
    assert detection_loss(grid, targets, image) > before + 1


def test_what_is_turned_about_lies_where_its_things_are_said_to_lie() -> None:
    """A bright pixel is in the cell, and on the side of its middle, that the turned things name."""
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        image[0, 0, 1, 7] = 255  # of cells of 4 pixels: row 0, column 1, above and right of the middle
        turned, things = turned_about(image, torch.tensor([[0.0, 1.0, 0.375, -0.125, 7.0]]), 2)
        ((_, _, y, x),) = turned.nonzero().tolist()
        row, column, dx, dy, value = things[0].tolist()
        assert (row, column, value) == (y // 4, x // 4, 7) and (x % 4 - 1.5) * dx > 0 and (y % 4 - 1.5) * dy > 0
        seen.add((y, x))
    assert len(seen) == 8


def test_of_cells_near_each_other_the_likeliest_is_one_thing() -> None:
    presence = torch.zeros(1, 9, 9)
    presence[0, 2, 2], presence[0, 2, 3], presence[0, 3, 4] = 0.9, 0.8, 0.7  # one thing, three cells
    presence[0, 2, 7], presence[0, 7, 1], presence[0, 8, 8] = 0.6, 0.55, 0.4
    assert peaks(presence, 0.5) == [[(2, 2), (2, 7), (7, 1)]]
    assert peaks(presence, 0.3) == [[(2, 2), (2, 7), (7, 1), (8, 8)]]


def test_the_probability_is_that_of_readings_which_obey(untrained: SceneJudge, monkeypatch) -> None:
    captions = {"a red ring and a blue cross": 1.0, "a ring and a cross": 1.0, "a red ring": 0.0, "a cross": 0.0}
    monkeypatch.setattr(untrained, "grid", lambda images: ideal(untrained, THINGS))
    for caption, obeyed in captions.items():
        found = untrained.log_probs(torch.zeros(1), [caption]).exp().item()
        assert found == pytest.approx((32 * obeyed + 0.5) / 33), caption
    doubtful = ideal(untrained, THINGS)
    doubtful.presence[0][untrained.targets(THINGS, 8)[1, 0].long(), untrained.targets(THINGS, 8)[1, 1].long()] = 0.0
    monkeypatch.setattr(untrained, "grid", lambda images: doubtful)  # the cross is there or not
    assert 0.25 < untrained.log_probs(torch.zeros(1), ["a red ring"]).exp().item() < 0.75
    with pytest.raises(UserError, match="no caption of scenes"):
        untrained.log_probs(torch.zeros(1), ["a red pizza"])


@pytest.mark.slow
def test_a_trained_one_sees_a_new_combination_and_its_figures_are_by_category(tmp_path, monkeypatch) -> None:
    """One of nine: of shapes that look the same however they are turned, three would tell colours by shapes."""
    monkeypatch.setattr(captioned_pictures, "UNSEEN", {("cross", "red")})
    monkeypatch.setattr(SceneJudge, "SEEN", 20_000)
    data = scenes(tmp_path)
    judge = prompt_judge_for(data, lambda line: None)
    assert isinstance(judge, SceneJudge) and judge.facts["real"] >= 0.95 and judge.facts["noisy"] >= 0.9
    assert checked(judge, data.val)["real"] == judge.facts["real"]
    by_caption = {row.caption: image for row, image in zip(data.train.descriptions, data.train.images, strict=True)}
    by_caption |= {row.caption: image for row, image in zip(data.val.descriptions, data.val.images, strict=True)}

    def real(captions: list[str]) -> torch.Tensor:
        return torch.stack([by_caption[caption] for caption in captions])

    rows = evaluate_prompts(real, data, lambda line: None, 40)[0]["rows"]
    assert set(rows) == {"colour", "binding"}
    for row in rows.values():
        assert row["unseen"]["accuracy"] >= 0.9 and row["seen"]["floor"] < 0.5
    first, second = (scene_of(np.random.default_rng(seed)) for seed in (4, 5))
    images = torch.stack([first.pixels, second.pixels])
    found = judge.log_probs(images, [first.captions[0]] * 2)
    assert found[0] > found[1]


def test_scenes_are_judged_by_a_detector(data: Captioned, monkeypatch) -> None:
    monkeypatch.setattr(SceneJudge, "train_on", lambda self, prepared: None)
    assert isinstance(prompt_judge_for(data, lambda line: None, seed=1), SceneJudge)
    assert prompt_judges.REPORTS != prompt_judges.SELECTS
