"""`pairs`: preferences from a policy's own answers, two by two; the better one is chosen with the noise of
Bradley-Terry."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gengen.checkpoints.files import replace_text
from gengen.cli.run_command import parse_run_command
from gengen.config.commands import PairsConfig
from gengen.config.data import PromptsConfig
from gengen.errors import UserError

if TYPE_CHECKING:
    from gengen.data.dialogue.template import Messages
    from gengen.generation.text.generator import TextGenerator
    from gengen.generation.text.rewards import Answer, Reward


def main(argv: list[str]) -> int:
    config = parse_run_command("pairs", lambda entry: PairsConfig, argv)
    if config is None:
        return 0
    from gengen.evaluation.preference import pair_gaps
    from gengen.generation.load import load_generator
    from gengen.generation.text.generator import TextGenerator

    policy = load_generator(
        str(config.run), Path(config.runs_dir), config.checkpoint, config.weights, config.device, print
    )
    if not isinstance(policy, TextGenerator) or not policy.tokenizer.chat:
        raise UserError(f"{config.run} answers no prompts: take a run of stage=sft or later")
    prompts = read_prompts(config)
    answers = draw_answers(config, policy, prompts)
    gaps = pair_gaps(labelling_reward(config, policy)(answers).view(-1, config.n).double().numpy())
    records = list(labelled(config, prompts, answers, gaps.tolist()))
    if not records:
        raise UserError(f"none of the {len(gaps)} pairs has a reward for both of its answers")
    if left_out := len(gaps) - len(records):
        print(f"left out {left_out} pairs, as there is no reward for one of their answers")
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    replace_text(Path(str(config.out)), "\n".join(lines) + "\n")
    print(
        f"{config.out}  {len(lines)} pairs for {len(prompts)} prompts; "
        f"to learn from them: data=preferences data.path={config.out}"
    )
    return 0


def read_prompts(config: PairsConfig) -> "list[Messages]":
    """Return the prompts to answer: the user's, or those that storygen has for training."""
    from gengen.data.dialogue.records import records
    from gengen.data.sources.skips import Skips

    kind = "files" if config.prompts else "storygen"
    source = PromptsConfig("prompts", source=kind, path=config.prompts, max_examples=config.max_prompts)
    found = records(source, Skips(source.max_bad), print)
    return [record["prompt"] for record in found if record["split"] != "val"]


def draw_answers(config: PairsConfig, policy: "TextGenerator", prompts: "Sequence[Messages]") -> "list[Answer]":
    """Draw n answers to each prompt, those to one prompt side by side."""
    from gengen.data.dialogue.template import prompt_tokens
    from gengen.generation.text.rewards import answer_of

    tokens = [prompt_tokens(policy.tokenizer, messages) for messages in prompts]
    samples = policy.generate(
        tokens, n=config.n, seed=config.seed, temperature=config.temperature, max_tokens=config.max_tokens
    )
    return [answer_of(tokens[i // config.n], sample) for i, sample in enumerate(samples)]


def labelling_reward(config: PairsConfig, policy: "TextGenerator") -> "Reward":
    """Return the reward whose gaps are the log-odds of a label: the named one, or storygen's truth."""
    import torch

    from gengen.data.sources.storygen import LABEL_SCALE, gold
    from gengen.generation.text.rewards import Interrupted, load_reward, never

    if config.reward:
        return load_reward(config.reward, Path(config.runs_dir), policy.tokenizer, config.device)

    def truth(answers: "Sequence[Answer]", interrupted: Interrupted = never) -> torch.Tensor:
        return torch.tensor([LABEL_SCALE * gold(answer.question, answer.text, answer.ended) for answer in answers])

    return truth


def labelled(
    config: PairsConfig, prompts: "Sequence[Messages]", answers: "Sequence[Answer]", gaps: list[float]
) -> Iterator[dict[str, object]]:
    """Yield a record for each pair whose gap is known: answers 2 i and 2 i + 1, gap i."""
    import numpy as np

    from gengen.evaluation.preference import draw_preferences

    first_wins = draw_preferences(np.array(gaps), config.seed).tolist()
    for i, (gap, first_is_chosen) in enumerate(zip(gaps, first_wins, strict=True)):
        if gap == gap:  # NaN: no reward for one of the two
            first, second = answers[2 * i], answers[2 * i + 1]
            chosen, rejected = (first, second) if first_is_chosen else (second, first)
            yield {
                "prompt": prompts[2 * i // config.n],
                "chosen": chosen.text,
                "rejected": rejected.text,
                "chosen_ended": chosen.ended,
                "rejected_ended": rejected.ended,
            }
