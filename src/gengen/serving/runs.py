"""A run that is served: its generator, its worker, and what is said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gengen.checkpoints.files import read_json
from gengen.checkpoints.migrate import read_config
from gengen.config.serve import ServeConfig
from gengen.data.dialogue.template import prompt_tokens
from gengen.errors import UserError
from gengen.generation.load import find_checkpoint, generator_of, load_as
from gengen.generation.text.generator import PromptTooLong, TextGenerator
from gengen.generation.text.prefixes import PrefixCache
from gengen.generation.text.scheduler import Scheduler
from gengen.generation.text.speculation import DraftModel, Guesser, PromptLookup, Speculation
from gengen.io import Say
from gengen.registry import family_and_stage
from gengen.serving.answers import Spelling
from gengen.serving.protocol import ApiError, invalid
from gengen.serving.worker import Worker


@dataclass
class ServedRun:
    """name: what requests call it by. facts: what /v1/models says of it. fingerprint: equal fingerprints, seeds and
    settings mean equal bytes, where `exact` stands in it."""

    name: str
    generator: TextGenerator
    worker: Worker
    facts: dict[str, Any]
    fingerprint: str

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


def load_run(where: str, config: ServeConfig, say: Say, share_prefixes: bool = True) -> ServedRun:
    """Load a run to be served. Raises UserError where it draws no text.

    share_prefixes: whether prompts of one client may be what another's need not read again; how long an answer takes
    then tells of them.
    """
    directory = find_checkpoint(where, Path(config.runs_dir), config.checkpoint, say)
    generator = generator_of(directory, config.weights, config.device)
    if not isinstance(generator, TextGenerator):
        raise UserError(f"{where} draws no text, and only text is served by now")
    generator.use(config.precision, compile=False, exact=config.exact)
    run = directory.parent.parent if directory.parent.name == "checkpoints" else directory
    generator.generate("", max_tokens=2)  # a first text takes longer than all later ones
    worker = Worker(schedulers(generator, config, share_prefixes), generator.tokenizer, config.rows, config.queue)
    return ServedRun(
        run.name, generator, worker, facts(run.name, directory, generator), fingerprint(directory, generator)
    )


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


def facts(name: str, directory: Path, generator: TextGenerator) -> dict[str, Any]:
    """Return a model of OpenAI's list, and under `gengen` what else there is to know."""
    entry, stage = family_and_stage(read_config(directory), directory)
    manifest = read_json(directory / "manifest.json")
    return {
        "id": name,
        "object": "model",
        "created": int((directory / "manifest.json").stat().st_mtime),
        "owned_by": "gengen",
        "gengen": {
            "family": entry.name,
            "kind": entry.kind,
            "stage": stage or "pretrain",
            "step": manifest["step"],
            "sha256": manifest["sha256"],
            "context": generator.context,
            "vocabulary": generator.tokenizer.vocab_size,
            "chat": bool(generator.tokenizer.chat),
            "precision": generator.precision,
            "exact": generator.engine.exact,
        },
    }


def fingerprint(directory: Path, generator: TextGenerator) -> str:
    """Return what tells engines apart whose texts may differ: weights, precision, kernels."""
    sha, engine = read_json(directory / "manifest.json")["sha256"], generator.engine
    rows = f"exact{engine.least_rows}" if engine.exact else "fast"
    return f"{sha[:16]}-{generator.precision}-{rows}-torch{torch.__version__}"


def by_name(runs: list[ServedRun]) -> dict[str, ServedRun]:
    """Return the runs by the names that requests call them by. Raises UserError for a name that two have."""
    found: dict[str, ServedRun] = {}
    for run in runs:
        if run.name in found:
            raise UserError(f"two of the runs are called {run.name}: a request could not tell them apart")
        found[run.name] = run
    return found


def model_not_found(name: str, runs: dict[str, ServedRun]) -> ApiError:
    return ApiError(404, f"no run is served as {name[:80]!r}; there is {', '.join(runs)}", "model_not_found", "model")
