"""`pairs`: preferences from a policy's own answers, two by two, the better one chosen with the noise of Bradley-Terry."""

import json
from collections.abc import Sequence
from pathlib import Path

from gengen.checkpoints.files import replace_text
from gengen.cli.run_command import parse_run_command
from gengen.config.commands import PairsConfig
from gengen.config.data import PromptsConfig
from gengen.errors import UserError


def main(argv: list[str]) -> int:
    config = parse_run_command("pairs", lambda entry: PairsConfig, argv)
    if config is None:
        return 0
    import numpy as np
    import torch

    from gengen.data.dialogue.records import records
    from gengen.data.dialogue.template import prompt_tokens
    from gengen.data.sources.files import Skips
    from gengen.data.sources.storygen import LABEL_SCALE, gold
    from gengen.evaluation.alignment import pair_gaps, preferred
    from gengen.generation.load import load_generator
    from gengen.generation.text.generator import TextGenerator
    from gengen.generation.text.rewards import Answer, answer_of, load_reward

    policy = load_generator(
        str(config.run), Path(config.runs_dir), config.checkpoint, config.weights, config.device, print
    )
    if not isinstance(policy, TextGenerator) or not policy.tokenizer.chat:
        raise UserError(f"{config.run} answers no prompts: take a run of stage=sft or later")
    source = PromptsConfig(
        "prompts",
        source="files" if config.prompts else "storygen",
        path=config.prompts,
        max_examples=config.max_prompts,
    )
    found = [r["prompt"] for r in records(source, "prompts", Skips(source.max_bad), print) if r["split"] != "val"]
    prompts = [prompt_tokens(policy.tokenizer, messages) for messages in found]
    samples = policy.generate(
        prompts, n=config.n, seed=config.seed, temperature=config.temperature, max_tokens=config.max_tokens
    )
    answers = [answer_of(prompts[i // config.n], sample) for i, sample in enumerate(samples)]

    def truth(answers: Sequence[Answer], interrupted: object = None) -> torch.Tensor:
        return torch.tensor([LABEL_SCALE * gold(answer.question, answer.text, answer.ended) for answer in answers])

    reward = (
        load_reward(config.reward, Path(config.runs_dir), policy.tokenizer, config.device) if config.reward else truth
    )
    gaps = pair_gaps(reward(answers).view(-1, config.n).double().numpy())
    lines, unknown = [], np.isnan(gaps)
    for i, first in enumerate(preferred(gaps, config.seed)):
        if unknown[i]:
            continue
        chosen, rejected = answers[2 * i : 2 * i + 2][:: 1 if first else -1]
        record = {"prompt": found[2 * i // config.n], "chosen": chosen.text, "rejected": rejected.text}
        lines.append(
            json.dumps(record | {"chosen_ended": chosen.ended, "rejected_ended": rejected.ended}, ensure_ascii=False)
        )
    if not lines:
        raise UserError(f"none of the {len(gaps)} pairs has a reward for both of its answers")
    if unknown.any():
        print(f"left out {unknown.sum()} pairs, as there is no reward for one of their answers")
    replace_text(Path(str(config.out)), "\n".join(lines) + "\n")
    print(
        f"{config.out}  {len(lines)} pairs for {len(prompts)} prompts; to learn from them: data=preferences data.path={config.out}"
    )
    return 0
