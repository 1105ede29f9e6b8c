"""What a filter is, and what is done where one finds something: allow, redact or refuse; whole texts and streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from gengen import registry
from gengen.data.text.shards import TokenStream
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError, did_you_mean
from gengen.generation.base import Sample
from gengen.registry import OWN_CODE, imported

Action = Literal["redact", "refuse"]
STEP = 32  # characters of a stream that are judged together, as each time its neighbourhood is looked at again


@dataclass(frozen=True, order=True)
class Finding:
    """Characters start .. end - 1 of a text are of this kind, such as "e-mail"."""

    start: int
    end: int
    kind: str


class Filter(Protocol):
    """Finds what should not be in a text.

    reach: whether a finding begins at a character, and where it ends, depends on the text from `reach` characters
    before it to `reach` behind it alone, and no finding is longer. So a stream holds back as much. None: the filter
    judges whole texts, and a stream holds back all. reads_prompts: whether prompts are shown to it, too.
    """

    @property
    def reach(self) -> int | None: ...

    @property
    def reads_prompts(self) -> bool: ...

    def find(self, text: str, prompt: str) -> Sequence[Finding]:
        """Return what is found in a text that goes on from a prompt; findings may overlap."""
        ...


@dataclass(frozen=True)
class FilterRequest:
    """What a filter is made of. option: what follows the colon of its name; threshold: of a reward.

    training_text: opens the tokens that the run was trained on. tokenizer, device: the run's own.
    """

    option: str
    tokenizer: TextTokenizer
    training_text: Callable[[], TokenStream]
    threshold: float = 0.0
    runs_dir: Path = Path("runs")
    device: str = "auto"


MakeFilter = Callable[[FilterRequest], Filter]
"""What `register_filter` takes."""


def load_filters(names: Sequence[str], request: FilterRequest) -> list[Filter]:
    """Make the named filters: "patterns", "words:FILE", "copies:TOKENS", a user's own, or a reward run."""
    filters = []
    for name in names:
        base, _, option = name.partition(":")
        if base in registry.FILTERS:
            make: MakeFilter = imported(registry.FILTERS[base])
            filters.append(make(replace(request, option=option)))
        elif (request.runs_dir / name).exists() or Path(name).exists():
            filters.append(imported(registry.FILTERS["reward"])(replace(request, option=name)))
        else:
            raise UserError(
                f"filter={name}: no such filter, and no such run{did_you_mean(base, registry.FILTERS)}{OWN_CODE}"
            )
    return filters


class FilteredText:
    """A text that comes in pieces, as it may be shown: what is sure to be allowed, or redacted, is released at once.

    The pieces that `add` and `finish` return make the same text wherever the borders of the pieces lie. refused: the
    finding that ended the text, if the action is to refuse; what comes after it is dropped.
    """

    def __init__(self, filters: Sequence[Filter], action: Action, prompt: str = ""):
        self.filters, self.action, self.prompt = filters, action, prompt
        reaches = [each.reach for each in filters]
        self.reach = None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)
        self.text, self.judged, self.written = "", 0, 0
        self.findings: list[Finding] = []
        self.refused: Finding | None = None

    def add(self, piece: str) -> str:
        """Take the next piece. Returns what may be shown of the text by now, beyond what was returned before."""
        self.text += piece
        if self.reach is None or (self.reach and len(self.text) - self.reach < self.judged + STEP):
            return ""
        return self._release(len(self.text) - self.reach)

    def finish(self) -> str:
        """End the text. Returns what is left to be shown."""
        return self._release(len(self.text))

    def _release(self, limit: int) -> str:
        """Judge where findings may begin up to `limit`, and return the characters up to there, redacted.

        judged: so far; written: shown or redacted up to here, which may be beyond it, where a finding ends later.
        """
        if limit <= self.judged or self.refused:
            return ""
        first = max(0, self.judged - (self.reach or 0))
        window, found = self.text[first:], list[Finding]()
        for each in self.filters:
            shifted = (replace(f, start=f.start + first, end=f.end + first) for f in each.find(window, self.prompt))
            found += [finding for finding in shifted if self.judged <= finding.start < limit]
        shown = []
        for finding in sorted(found):
            self.findings.append(finding)
            if finding.start >= self.written:
                shown.append(self.text[self.written : finding.start])
                if self.action == "refuse":
                    self.refused = finding
                    return "".join(shown)
                shown.append(f"[{finding.kind}]")
            self.written = max(self.written, finding.end)
        shown.append(self.text[self.written : limit])
        self.judged, self.written = limit, max(self.written, limit)
        return "".join(shown)


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a text. text: what may be shown of it; findings: why."""

    action: Literal["allow", "redact", "refuse"]
    text: str
    findings: tuple[Finding, ...] = ()


def judge(filters: Sequence[Filter], text: str, action: Action, prompt: str = "") -> Verdict:
    """Judge a whole text, such as a prompt."""
    filtered = FilteredText(filters, action, prompt)
    shown = filtered.add(text) + filtered.finish()
    return Verdict(action if filtered.findings else "allow", shown, tuple(filtered.findings))


def allowed_prompt(filters: Sequence[Filter], prompt: str, action: Action) -> str:
    """Return a prompt as the model may read it. Raises UserError for one that is refused."""
    verdict = judge([each for each in filters if each.reads_prompts], prompt, action)
    if verdict.action == "refuse":
        first = verdict.findings[0]
        raise UserError(f"the prompt is refused: {first.kind} at characters {first.start} to {first.end - 1}")
    return verdict.text


def filtered_sample(filters: Sequence[Filter], sample: Sample, action: Action) -> Sample:
    """Return a sample as it may be shown. One that is not allowed as it is loses its tokens, which would spell it; a
    refused one ends before what was found, with the finish_reason "filtered"."""
    verdict = judge(filters, sample.text, action, sample.prompt)
    if verdict.action == "allow":
        return sample
    reason = "filtered" if verdict.action == "refuse" else sample.finish_reason
    return replace(sample, text=verdict.text, tokens=[], logprobs=[], finish_reason=reason)
