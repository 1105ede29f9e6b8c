"""`align`: the whole of post-training on stories whose worth is known: each stage is trained, and judged by the gold
reward.
"""

import time
from itertools import islice
from pathlib import Path
from typing import Any

from gengen.cli import main as gengen
from gengen.config.commands import AlignConfig
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.help import flat_help
from gengen.config.stage import OnlineConfig

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


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        print(flat_help("align", AlignConfig).replace(" RUN ", " ", 1))
        return 0
    config: AlignConfig = compose_flat(AlignConfig, line)
    folder, start = Path(config.runs_dir) / f"align-{config.profile}", time.monotonic()
    for seed in range(config.seeds):
        if code := train(config.profile, folder / f"seed-{seed}", seed):
            return code
    from gengen.evaluation.alignment_page import write_report

    seeds = [judged(config.profile, folder / f"seed-{seed}", seed, config.split) for seed in range(config.seeds)]
    report = write_report(config.profile, config.split, seeds, folder)
    for row in report["stages"]:
        low, high = row["interval"]
        figures = f"{row['before']:.3f} -> {row['after']:.3f}  {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(
            f"seed {row['seed']}  {row['stage']:10} {row['metric']:9} {figures}"
            + (f"  KL {row['kl']:.1f}" if row["kl"] is not None else "")
        )
    missed = [
        f"{g['stage']} {g['figure']} {g['sign']} {g['threshold']}: {g['values']}"
        for g in report["gates"]
        if not all(g["met"])
    ]
    print(
        f"gates  {len(report['gates']) - len(missed)} of {len(report['gates'])} met by every seed",
        *missed,
        sep="\n       ",
    )
    print(f"report {folder}/{report['file']}.html, .json  in {time.monotonic() - start:.0f} s")
    return 0


def train(profile: str, folder: Path, seed: int) -> int:
    """Every stage of a seed, each a run in the folder. What is finished is not done again. The exit code of the first
    that fails, or 0.
    """
    sft, pairs = f"init_from={folder}/sft", f"{folder}/pairs.jsonl"
    preferences = ["data=preferences", f"data.path={pairs}"]
    stages = {
        "base": [*MODEL, "data=storygen"],
        "sft": ["stage=sft", f"init_from={folder}/base", "data=stories"],
        "pairs": [],
        "reward": ["stage=reward", sft, *preferences],
        "ppo": ["stage=ppo", sft, f"stage.reward={folder}/reward", "data=prompts"],
        "dpo": ["stage=dpo", sft, *preferences],
        "grpo": ["stage=grpo", sft, "stage.reward=requested_words", "data=prompts"],
    }
    for name, settings in stages.items():
        own = PROFILES[profile].get(name, [])
        if name == "pairs":
            command = ["pairs", f"{folder}/sft", f"out={pairs}", f"seed={seed}", *own]
        else:
            new = [] if (folder / name / "config.json").exists() else [*settings, f"seed={seed}", *SETTINGS, *own]
            command = ["train", f"run={name}", f"runs_dir={folder}", *new]
        if (name != "pairs" or not Path(pairs).exists()) and (code := gengen(command)):
            return code
    return 0


def judged(profile: str, folder: Path, seed: int, split: str) -> dict[str, Any]:
    """What is known of a seed's runs, by the held-out prompts of a split: val or test."""
    from gengen.checkpoints.metrics_csv import read_metrics
    from gengen.data.sources.storygen import examples
    from gengen.evaluation.alignment import judge
    from gengen.generation.load import load_as
    from gengen.generation.text.generator import TextGenerator
    from gengen.generation.text.rewards import Scorer

    names = ["base", "sft", "ppo", "dpo", "grpo"]
    policies = {name: load_as(TextGenerator, str(folder / name)) for name in names}
    for policy in policies.values():
        policy.batch_size = 256
    told = (record["messages"] for record in islice(examples("conversations", split), HELD_OUT[profile]))
    stories = [(messages[0]["content"], messages[1]["content"]) for messages in told]
    found = judge(policies, load_as(Scorer, str(folder / "reward")), stories, seed, OnlineConfig.max_tokens)
    seconds = {name: read_metrics(folder / name / "metrics.csv")[-1]["seconds"] for name in [*names, "reward"]}
    return {"seed": seed, "seconds": seconds} | found
