"""Made-up pictures and their judge, trained once a session."""

import pytest

from gengen.evaluation import floor, judges
from helpers.made_up_pictures import Prepared, made_up


@pytest.fixture(scope="session")
def short_training():
    """Judges of this session see 2,400 images: 8 epochs of 300, the least there is. Floors are redrawn six times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "SEEN", 2400)
        patch.setattr(floor, "REDRAWS", 6)
        yield


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, short_training) -> Prepared:
    return made_up(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def judge(prepared):
    return judges.judge_for(prepared, lambda line: None)
