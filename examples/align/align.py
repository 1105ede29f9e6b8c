"""The whole of post-training on stories whose true worth is known: each stage is trained, and measured by a gold
reward that no training sees.

    python examples/align/align.py [seeds=1] [profile=toy] [split=test]

See docs/align.md; to align a model of your own, start from `stages`: each is a command you can type.
"""

import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gengen.cli import main as gengen
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.fields import choice, option, positive
from gengen.config.help import flat_help
from gengen.config.stage import OnlineConfig
from gengen.errors import UserError

MODEL = [
    "model=gpt",
    "model.kv_heads=4",
    "model.heads=4",
    "model.mlp=gelu",
    "model.tied=true",
    "model.context=96",
    "model.dropout=0",
]
SETTINGS = ["trainer.precision=fp32", "trainer.compile=false"]
PROFILES: dict[str, dict[str, list[str]]] = {
    # Muon learns within 300 steps to say again what was said before (val/loss .99); AdamW not in 300 of twice the size
    # (1.16)
    "toy": {
        "base": ["model.width=96", "model.layers=3", "model.ff=384", "data.batch_size=32", "trainer.max_steps=400"],
        "pairs": ["n=4"],
    },
    "smoke": {
        "base": ["model.width=32", "model.layers=1", "model.ff=64", "data.max_documents=1000", "trainer.max_steps=20"],
        "sft": ["data.max_examples=200", "trainer.max_steps=5"],
        "pairs": ["max_prompts=32"],
        "reward": ["trainer.max_steps=4"],
        "ppo": ["data.batch_size=4", "trainer.max_steps=40"],
        "dpo": ["trainer.max_steps=4"],
        "grpo": ["data.batch_size=16", "trainer.max_steps=5"],
    },
}  # fmt: skip
"""What a profile sets of each stage beside the stage's own defaults, as on the command line."""
HELD_OUT = {"toy": 512, "smoke": 8}  # prompts that policies are judged on, as far as a split has them


POLICIES = ["base", "sft", "ppo", "dpo", "grpo"]


@dataclass
class AlignConfig:
    """Post-training from the beginning to the report."""

    seeds: int = positive(1, "how often, with seeds 0, 1, ...")
    runs_dir: str = option("runs", "folder that holds the runs; they are in align-PROFILE/seed-SEED of it")
    profile: str = choice(
        "toy", ["toy", "smoke"], "toy: about eight minutes a seed on two CPU cores; smoke: to see that it runs"
    )
    split: str = choice(
        "test", ["val", "test"], "held-out prompts to measure on: val to choose settings by, test for what is reported"
    )


def main(argv: list[str]) -> int:
    """Return the exit code; a mistake is one message on stderr."""
    try:
        line = read_command_line(argv)
        if line.show == "help":
            print(flat_help("align", AlignConfig).replace("scripts/align.py RUN", "examples/align/align.py"))
            return 0
        return align(compose_flat(AlignConfig, line))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def align(config: AlignConfig) -> int:
    """Train every stage of every seed, then measure all of them and write the report."""
    folder, start = Path(config.runs_dir) / f"align-{config.profile}", time.monotonic()
    for seed in range(config.seeds):
        if code := train(config.profile, folder / f"seed-{seed}", seed):
            return code
    from align_page import write_report  # late: it imports torch, which a mistake need not wait for

    seeds = [measure(config.profile, folder / f"seed-{seed}", seed, config.split) for seed in range(config.seeds)]
    report = write_report(config.profile, config.split, seeds, folder)
    print("\n".join([*map(stage_line, report["stages"]), *gate_lines(report["gates"])]))
    print(f"report {folder}/{report['file']}.html, .json  in {time.monotonic() - start:.0f} s")
    return 0


def stages(folder: Path) -> dict[str, list[str]]:
    """Return what is typed after `train` for each stage, in order; "pairs" is the command of that name."""
    sft = f"init_from={folder}/sft"
    preferences = ["data=preferences", f"data.path={folder}/pairs.jsonl"]
    return {
        "base": [*MODEL, "data=storygen"],
        "sft": ["stage=sft", f"init_from={folder}/base", "data=stories"],
        "pairs": [],
        "reward": ["stage=reward", sft, *preferences],
        "ppo": ["stage=ppo", sft, f"stage.reward={folder}/reward", "data=prompts"],
        "dpo": ["stage=dpo", sft, *preferences],
        "grpo": ["stage=grpo", sft, "stage.reward=requested_words", "data=prompts"],
    }


def train(profile: str, folder: Path, seed: int) -> int:
    """Run every stage of a seed, each a run in the folder; what is finished is not done again. Return the exit code of
    the first that fails, or 0."""
    pairs = folder / "pairs.jsonl"
    for name, settings in stages(folder).items():
        own = PROFILES[profile].get(name, [])
        if name == "pairs":
            command = ["pairs", f"{folder}/sft", f"out={pairs}", f"seed={seed}", *own]
        elif (folder / name / "config.json").exists():
            command = ["train", f"run={name}", f"runs_dir={folder}"]
        else:
            new = [*settings, f"seed={seed}", *SETTINGS, *own]
            command = ["train", f"run={name}", f"runs_dir={folder}", *new]
        if not (name == "pairs" and pairs.exists()) and (code := gengen(command)):
            return code
    return 0


def measure(profile: str, folder: Path, seed: int, split: str) -> dict[str, Any]:
    """Return what is known of a seed's runs, by the held-out prompts of a split: val or test."""
    from align_figures import evaluate_policies

    from gengen.checkpoints.metrics_csv import read_metrics
    from gengen.data.sources.storygen import examples
    from gengen.generation.load import load_generator

    policies = {name: load_generator(str(folder / name)) for name in POLICIES}
    for policy in policies.values():
        policy.batch_size = 256
    held_out = [record["messages"] for record in islice(examples("conversations", split), HELD_OUT[profile])]
    stories = [(question["content"], answer["content"]) for question, answer in held_out]
    scorer = load_generator(str(folder / "reward"))
    found = evaluate_policies(policies, scorer, stories, seed, OnlineConfig.max_tokens)
    seconds = {name: read_metrics(folder / name / "metrics.csv")[-1]["seconds"] for name in [*POLICIES, "reward"]}
    return {"seed": seed, "seconds": seconds} | found


def stage_line(row: dict[str, Any]) -> str:
    """Return a row of the report for the screen."""
    low, high = row["interval"]
    change = f"{row['before']:.3f} -> {row['after']:.3f}  {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
    kl = "" if row["kl"] is None else f"  KL {row['kl']:.1f}"
    return f"seed {row['seed']}  {row['stage']:10} {row['metric']:9} {change}{kl}"


def gate_lines(gates: list[dict[str, Any]]) -> list[str]:
    """Return how many gates every seed meets, and a line for each other one."""
    missed = [gate for gate in gates if not all(gate["met"])]
    lines = [f"gates  {len(gates) - len(missed)} of {len(gates)} met by every seed"]
    for gate in missed:
        lines.append(f"       {gate['stage']} {gate['figure']} {gate['sign']} {gate['threshold']}: {gate['values']}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
