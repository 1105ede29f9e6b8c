"""Writes alignment_report.json, and the same as a page: what each stage gained, which gates are met, gold against KL,
samples side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from align_figures import BEST_OF, Figures, gates

from gengen.checkpoints.files import replace_text, to_json
from gengen.config.redact import redact
from gengen.evaluation import html

HEADLINES = {
    "sft": "coverage",
    "reward": "accuracy",
    "ppo": "gold",
    "dpo": "gold",
    "grpo": "passed",
    f"best_of_{BEST_OF[-1]}": "gold",
}
COLOURS = {"ppo": "C0", "dpo": "C1", "grpo": "C2", "best of n": "0.4"}


def stage_rows(seed: Figures) -> list[Figures]:
    """Return a row a stage: its metric before and after, the gain with its interval, KL in nats, training seconds."""
    rows = []
    for stage, name in HEADLINES.items():
        f = seed["figures"][stage]
        row = {"stage": stage, "seed": seed["seed"], "metric": name, "before": f[f"{name}_before"], "after": f[name]}
        row |= {"gain": f[f"{name}_gain"], "interval": [f[f"{name}_gain_low"], f[f"{name}_gain_high"]]}
        rows.append(row | {"kl": f.get("kl"), "seconds": seed["seconds"].get(stage)})
    return rows


def write_report(profile: str, split: str, seeds: Sequence[Figures], folder: Path) -> Figures:
    """Write alignment_report.json and .html in the folder (alignment_report_val.* for split=val); return what the
    former holds.

    seeds: of each `seed`, `seconds` (stage -> training time), and what `evaluate_policies` returned.
    """
    stages = [row for seed in seeds for row in stage_rows(seed)]
    file = "alignment_report" if split == "test" else f"alignment_report_{split}"
    held = gates([seed["figures"] for seed in seeds])
    found = {"profile": profile, "split": split, "file": file, "stages": stages, "gates": held, "seeds": list(seeds)}
    replace_text(folder / f"{file}.json", redact(to_json(found)))
    replace_text(folder / f"{file}.html", redact(page(found)))
    return found


def plots(seeds: Sequence[Figures]) -> str:
    """Draw gold against KL, of each policy and of the best of n, and the reward model's reliability curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    frontier, reliability = figure.subplots(1, 2)
    for seed in seeds:
        f = seed["figures"]
        for name, colour in COLOURS.items():
            start = {"kl": 0.0, "gold": f["sft"]["gold"]}
            points = [f[f"best_of_{n}"] for n in BEST_OF] if name == "best of n" else [start, f[name]]
            label = name if seed is seeds[0] else None
            frontier.plot([p["kl"] for p in points], [p["gold"] for p in points], "o:", color=colour, label=label)
        curve, label = f["reward"]["reliability"], f"seed {seed['seed']}, ECE {f['reward']['ece']:.3f}"
        reliability.plot([p["confidence"] for p in curve], [p["accuracy"] for p in curve], "o-", label=label)
    reliability.plot([0.5, 1], [0.5, 1], "--", color="0.6")
    frontier.set(xlabel="KL to the SFT policy, nats an answer", ylabel="gold reward")
    reliability.set(xlabel="probability of the likelier answer", ylabel="share of pairs in which it was preferred")
    for axis in (frontier, reliability):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return html.drawn(figure)


def cell(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(cell, value))}]"
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else escape(str(value))


def table(rows: Sequence[Figures]) -> str:
    """Return rows with the same keys, which are its head."""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    lines = ["".join(f"<td>{cell(value)}</td>" for value in row.values()) for row in rows]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def page(found: Figures) -> str:
    """Return one file that needs no network."""
    seeds = found["seeds"]
    gates_met = [gate | {"met": f"{sum(gate['met'])} of {len(seeds)}"} for gate in found["gates"]]
    samples = []
    for sample in seeds[0]["samples"]:
        answers = {name: text for name, text in sample.items() if name != "prompt"}
        samples.append(f"<p>{escape(sample['prompt'])}</p>{table([answers])}")
    return html.page(
        "Alignment",
        f"<h2>Stages</h2>{table(found['stages'])}",
        f"<h2>Gold against KL; the reward model's reliability</h2>{plots(seeds)}",
        f"<h2>Gates</h2>{table(gates_met)}<h2>Samples</h2>",
        *samples,
    )
