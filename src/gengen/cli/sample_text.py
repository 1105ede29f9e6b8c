"""What `sample` does for a language model: show the texts, and write them to a .jsonl file if `out` names one."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from gengen.config.commands import TextSampling
from gengen.config.limits import parse_json
from gengen.errors import UserError
from gengen.generation.base import Generator, Sample
from gengen.generation.filters.base import (
    Action,
    Filter,
    FilteredText,
    FilterRequest,
    allowed_prompt,
    filtered_sample,
    load_filters,
)
from gengen.generation.secret_key import read_key
from gengen.generation.text.best_of import best_of
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.grammar import GrammarSpec
from gengen.generation.text.rewards import load_reward
from gengen.generation.text.watermark import Watermark
from gengen.training.evaluate import training_text_of


def sample_text(generator: Generator, config: TextSampling, say: Callable[[str], None]) -> str:
    """Draw texts, show and write them a batch at a time. Returns a line that sums it up; none of a stream."""
    if not isinstance(generator, TextGenerator):
        raise UserError(
            f"{config.run} scores answers and draws none: sample another run with best_of=8 reward={config.run}"
        )
    generator.use(config.precision, config.compile, config.exact)
    filters, action = filters_of(generator, config, say), cast(Action, config.filter_action)
    config = replace(config, prompt=[allowed_prompt(filters, prompt, action) for prompt in config.prompt or [""]])
    if config.stream:
        print_stream(generator, config, FilteredText(filters, action, config.prompt[0]))
        return ""
    between = "\n" if generator.tokenizer.chat else ""  # an answer does not go on with its prompt
    start, tokens = time.perf_counter(), 0
    with appending(config.out) as write:
        for sample in drawn(generator, config):
            tokens += len(sample.tokens)
            sample = filtered_sample(filters, sample, action)
            write(json.dumps(vars(sample), ensure_ascii=False) + "\n")
            say(f"--- {sample.index} ({sample.finish_reason})\n{sample.prompt}{between}{sample.text}")
    return f"---\n{tokens} tokens, {tokens / (time.perf_counter() - start):.0f} tokens/s"


def print_stream(generator: TextGenerator, config: TextSampling, filtered: FilteredText) -> None:
    """Print the first prompt and its text while it is drawn, as far as the filters allow."""
    print(config.prompt[0], end="", flush=True)
    prompt, grammar, processor = config.prompt[0], grammar_spec(config), watermark_of(config)
    for piece in generator.pieces(prompt, config, grammar=grammar, processor=processor):
        print(filtered.add(piece), end="", flush=True)
        if filtered.refused:
            break
    print(filtered.finish() + (f"\n--- filtered: {filtered.refused.kind}" if filtered.refused else ""))


def filters_of(generator: TextGenerator, config: TextSampling, say: Callable[[str], None]) -> list[Filter]:
    """Make the filters that the config names."""
    request = FilterRequest(
        option="",
        tokenizer=generator.tokenizer,
        training_text=lambda: training_text_of(config, say),
        threshold=config.filter_threshold,
        runs_dir=Path(config.runs_dir),
        device=config.device,
    )
    return load_filters(config.filter, request)


def drawn(generator: TextGenerator, config: TextSampling) -> Iterator[Sample]:
    """Yield the samples, each the best of several if the config names a reward."""
    prompts, grammar, processor = config.prompt, grammar_spec(config), watermark_of(config)
    if not config.reward:
        return generator.samples(prompts, config, n=config.n, grammar=grammar, processor=processor)
    reward = load_reward(config.reward, Path(config.runs_dir), generator.tokenizer, str(generator.engine.device))
    how = {"n": config.n, "of": config.best_of}
    return best_of(generator, prompts, reward, config, **how, grammar=grammar, processor=processor)


def grammar_spec(config: TextSampling) -> GrammarSpec | None:
    """Return what each text must obey, None where the config says nothing of it."""
    if config.json_schema:
        try:
            return GrammarSpec(json_schema=parse_json(Path(config.json_schema).read_text(encoding="utf8")))
        except ValueError as error:
            raise UserError(f"json_schema={config.json_schema}: no JSON: {str(error)[:200]}") from None
    if config.lark:
        return GrammarSpec(lark=Path(config.lark).read_text(encoding="utf8", errors="replace"))
    if config.json:
        return GrammarSpec(json_object=True)
    if config.regex is not None:
        return GrammarSpec(regex=config.regex)
    return GrammarSpec(choice=config.choice) if config.choice else None


def watermark_of(config: TextSampling) -> Watermark | None:
    """Return what marks the texts, if the config names a key."""
    return Watermark(read_key(Path(config.watermark)), config.watermark_delta) if config.watermark else None


@contextmanager
def appending(path: str | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that appends text to a file, where it can be read at once; without a path it does nothing. The
    file is new with the first text: until then, what was there stays."""
    if path is None:
        yield lambda text: None
        return
    with ExitStack() as stack:
        file: IO[str] | None = None

        def write(text: str) -> None:
            nonlocal file
            if file is None:
                file = stack.enter_context(open(path, "w", encoding="utf8", errors="replace"))
            file.write(text)
            file.flush()

        yield write
