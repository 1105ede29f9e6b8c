"""The best of several samples, by a reward."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from gengen.config.commands import DecodingSettings
from gengen.generation.base import Sample
from gengen.generation.text.generator import Prompt, TextGenerator
from gengen.generation.text.grammar import GrammarSpec
from gengen.generation.text.processor import Processor
from gengen.generation.text.rewards import BATCH, Reward, answer_of


def best_of(
    generator: TextGenerator,
    prompts: Sequence[Prompt],
    reward: Reward,
    settings: DecodingSettings,
    *,
    n: int,
    of: int,
    grammar: GrammarSpec | None = None,
    processor: Processor | None = None,
) -> Iterator[Sample]:
    """Yield n samples of each prompt, each the one with the highest reward of `of` drawn for it (the first of them
    where none can be scored); they are drawn when asked for."""
    drawn = generator.samples(prompts, settings, n=n * of, grammar=grammar, processor=processor)
    tokens = [generator.prompt_tokens(prompt) for prompt in prompts]
    while group := list(islice(drawn, of * max(1, BATCH // of))):
        answers = [answer_of(tokens[sample.index // (n * of)], sample) for sample in group]
        scores = reward(answers).view(-1, of).nan_to_num(-torch.inf)  # (groups, of)
        for start, best in zip(range(0, len(group), of), scores.argmax(1).tolist(), strict=True):
            yield group[start + best]
