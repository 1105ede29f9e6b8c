"""A reward model as a filter: a whole text that it scores below a threshold is found."""

from collections.abc import Sequence

from gengen.errors import UserError
from gengen.generation.filters.base import FilterRequest, Finding
from gengen.generation.load import load_generator
from gengen.generation.text.rewards import Scorer, check_scale


class RewardFilter:
    """Finds texts, each as a whole, that a reward model scores below a threshold, where answers like those it was
    trained on have mean 0 and variance 1. It knows no more than its preferences taught it."""

    reach = None
    reads_prompts = False

    def __init__(self, scorer: Scorer, threshold: float):
        self.scorer, self.threshold = scorer, threshold

    def find(self, text: str, prompt: str = "") -> Sequence[Finding]:
        score = float(self.scorer.score([prompt], [text])[0])
        return [] if score >= self.threshold else [Finding(0, len(text), "low reward")]


def make(request: FilterRequest) -> RewardFilter:
    scorer = load_generator(request.option, request.runs_dir, device=request.device)
    if not isinstance(scorer, Scorer):
        raise UserError(f"filter={request.option} is no reward model: stage=reward trains one")
    check_scale(request.option, dict(scorer.model.named_buffers()))
    return RewardFilter(scorer, request.threshold)
