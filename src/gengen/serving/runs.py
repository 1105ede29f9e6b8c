"""Runs that are served: their generators, their engines, and what is said of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch

from gengen.checkpoints.files import read_json
from gengen.checkpoints.migrate import read_config
from gengen.config.serve import ServeConfig
from gengen.data.dialogue.template import prompt_tokens
from gengen.data.text.shards import TokenStream
from gengen.errors import UserError
from gengen.generation.filters.base import Action, FilterRequest, load_filters
from gengen.generation.load import load_as
from gengen.generation.text.generator import PromptTooLong, TextGenerator
from gengen.generation.text.prefixes import PrefixCache
from gengen.generation.text.scheduler import Scheduler
from gengen.generation.text.speculation import DraftModel, Guesser, PromptLookup, Speculation
from gengen.generation.text.watermark import Watermark
from gengen.registry import family_and_stage
from gengen.serving.answers import Spelling
from gengen.serving.engine_thread import EngineThread
from gengen.serving.protocol import ApiError, invalid
from gengen.serving.screen import Screen, shown_name
from gengen.serving.worker import Worker


class Served(Protocol):
    """What all runs that are served have. name: what requests call it by. facts: what /v1/models says of it."""

    does: ClassVar[str]  # what it is for, and by which endpoints

    @property
    def name(self) -> str: ...
    @property
    def worker(self) -> EngineThread[Any]: ...
    @property
    def facts(self) -> dict[str, Any]: ...
    @property
    def summary(self) -> str:
        """Return what the command says of it when it starts, in a line."""
        ...


S = TypeVar("S", bound=Served)
TrainingText = Callable[[Path], TokenStream]
"""Opens the tokens that the run of a checkpoint was trained on."""


def named(runs: Mapping[str, Served], name: str, key: str = "model") -> Served:
    """Return the run of this name. Raises ApiError, naming the parameter `key`, where there is none."""
    if name not in runs:
        raise ApiError(404, f"no run is served as {name[:80]!r}; there is {', '.join(runs)}", "model_not_found", key)
    return runs[name]


def picked(runs: Mapping[str, Served], name: str, kind: type[S], key: str = "model") -> S:
    """Return the run of this name. Raises ApiError where there is none, or one of another kind."""
    run = named(runs, name, key)
    if not isinstance(run, kind):
        raise invalid(key, f"{name} {run.does}", "wrong_kind_of_model")
    return run


@dataclass
class ServedRun:
    """A language model. directory: of its checkpoint. fingerprint: equal fingerprints, seeds and settings mean equal
    bytes, where `exact` stands in it."""

    name: str
    directory: Path
    generator: TextGenerator
    worker: Worker
    facts: dict[str, Any]
    fingerprint: str
    screen: Screen
    watermark: Watermark | None
    does: ClassVar[str] = "continues texts: /v1/completions, and /v1/chat/completions where it knows roles"

    @property
    def summary(self) -> str:
        about = self.facts["gengen"]
        kind = "chat" if about["chat"] else "text"
        exact = "exact" if about["exact"] else "not exact: other requests may change a text"
        return f"step {about['step']}, {kind}, context {about['context']}, {about['precision']}, {exact}"

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.generator.tokenizer)

    def prompt_tokens(self, prompt: str | list[int], key: str) -> list[int]:
        """Return a prompt as tokens. Raises ApiError, naming the parameter, for what the model cannot read."""
        vocabulary = self.generator.tokenizer.vocab_size
        if not isinstance(prompt, str) and (outside := [t for t in prompt if not 0 <= t < vocabulary]):
            raise invalid(
                key, f"{key}: there is no token {str(outside[0])[:20]}; the vocabulary has 0..{vocabulary - 1}"
            )
        try:
            return self.generator.prompt_tokens(prompt)
        except PromptTooLong as error:
            raise invalid(key, str(error), "context_length_exceeded") from None
        except UserError as error:
            raise invalid(key, str(error)) from None

    def chat_tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """Return a conversation as tokens, up to where the assistant speaks."""
        if not self.generator.tokenizer.chat:
            message = (
                f"{self.name} was not trained on conversations: its tokenizer has no tokens for their roles; "
                "use /v1/completions, or serve a run of stage=sft"
            )
            raise invalid("model", message, "not_a_chat_model")
        return self.prompt_tokens(prompt_tokens(self.generator.tokenizer, messages), "messages")

    def room(self, prompt: list[int]) -> int:
        """Return how many tokens can follow a prompt before the context is full."""
        return self.generator.context - len(prompt) + 1


def load_text(
    name: str,
    directory: Path,
    generator: TextGenerator,
    config: ServeConfig,
    share_prefixes: bool,
    training_text: TrainingText,
    watermark: Watermark | None,
) -> ServedRun:
    """Return a language model to be served. The other arguments are those of `load_run`."""
    generator.use(config.precision, compile=False, exact=config.exact)
    generator.generate("", max_tokens=2)  # a first text takes longer than all later ones
    worker = Worker(schedulers(generator, config, share_prefixes), generator.tokenizer, config.rows, config.queue)
    about = {
        "context": generator.context,
        "vocabulary": generator.tokenizer.vocab_size,
        "tokenizer": generator.tokenizer.text_hash,
        "chat": bool(generator.tokenizer.chat),
        "precision": generator.precision,
        "exact": generator.engine.exact,
        "filters": [shown_name(each) for each in config.filter],
        "watermark": watermark is not None,
    }
    screen = screen_of(generator, config, lambda: training_text(directory))
    known, mark = facts(name, directory, about), fingerprint(directory, generator, watermark)
    return ServedRun(name, directory, generator, worker, known, mark, screen, watermark)


def screen_of(generator: TextGenerator, config: ServeConfig, training_text: Callable[[], TokenStream]) -> Screen:
    """Make the filters that the config names. Raises UserError for one that cannot be had."""
    request = FilterRequest(
        option="",
        tokenizer=generator.tokenizer,
        training_text=training_text,
        threshold=config.filter_threshold,
        runs_dir=Path(config.runs_dir),
        device=config.device,
    )
    filters = load_filters(config.filter, request)
    return Screen(dict(zip(config.filter, filters, strict=True)), cast(Action, config.filter_action))


def schedulers(generator: TextGenerator, config: ServeConfig, share_prefixes: bool) -> Callable[[], Scheduler]:
    """Return what makes a new scheduler of a run. Raises UserError for a draft with another tokenizer."""
    draft = load_as(TextGenerator, config.draft, Path(config.runs_dir), device=config.device) if config.draft else None
    if draft and draft.tokenizer.hash != generator.tokenizer.hash:
        raise UserError(f"draft={config.draft} has another tokenizer than the run it is to guess for")

    def make() -> Scheduler:
        guesser: Guesser | None = PromptLookup() if config.guess else None
        if draft:
            guesser = DraftModel(draft.engine, draft.tokenizer.vocab_size, draft.context, config.rows)
        return Scheduler(
            generator.engine,
            generator.tokenizer,
            generator.context,
            config.rows,
            prefixes=PrefixCache(config.prefix_cache * 2**20) if config.prefix_cache and share_prefixes else None,
            speculation=Speculation(guesser) if guesser else None,
        )

    return make


def facts(name: str, directory: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return a model of OpenAI's list, and under `gengen` what else there is to know, of its kind too."""
    entry, stage = family_and_stage(read_config(directory), directory)
    manifest = read_json(directory / "manifest.json")
    always = {
        "family": entry.name,
        "kind": entry.kind,
        "stage": stage or "pretrain",
        "step": manifest["step"],
        "sha256": manifest["sha256"],
    }
    created = int((directory / "manifest.json").stat().st_mtime)
    return {"id": name, "object": "model", "created": created, "owned_by": "gengen", "gengen": always | about}


def fingerprint(directory: Path, generator: TextGenerator, watermark: Watermark | None) -> str:
    """Return what tells engines apart whose texts may differ: weights, precision, kernels, a watermark's key."""
    sha, engine = read_json(directory / "manifest.json")["sha256"], generator.engine
    rows = f"exact{engine.least_rows}" if engine.exact else "fast"
    marked = f"-marked{watermark.delta:g}-{watermark.key_id}" if watermark else ""
    return f"{sha[:16]}-{generator.precision}-{rows}-torch{torch.__version__}{marked}"


def by_name(runs: Sequence[Served]) -> dict[str, Served]:
    """Return the runs by the names that requests call them by. Raises UserError for a name that two have."""
    found: dict[str, Served] = {}
    for run in runs:
        if run.name in found:
            raise UserError(f"two of the runs are called {run.name}: a request could not tell them apart")
        found[run.name] = run
    return found
