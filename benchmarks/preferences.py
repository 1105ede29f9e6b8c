"""What keeps a reward model of `align` from its gates: pairs, or the noise of their labels?

    python benchmarks/preferences.py SFT_RUN [answers=8] [epochs=2] [prompts=8] [lr=3e-3] [noise=1] [threads=2]
        [questions=2000] [held_out=512]

Draws `answers` answers to each of `questions` training prompts from the run, and trains a reward model from its
trunk on all pairs of the answers to a prompt, each answer read once (Ouyang et al. 2022, section 3.5), `prompts`
prompts a step, for some epochs. The label of a pair is drawn from Bradley-Terry on gold; with noise=0 it is that
probability itself. Judged on held-out prompts with 16 answers each: accuracy that is to be expected (over all
labels that could be drawn) beside its ceiling, Spearman with gold, and what an ending and a requested word are
worth in a least-squares fit of the outputs (in gold: 1 and 1). A line every 100 steps.
"""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from turns import arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "align"))
from align_figures import Drawn, draw

from gengen.data.sources.storygen import LABEL_SCALE, examples
from gengen.evaluation.preference import pair_gaps, sigmoid, spearman
from gengen.generation.load import load_generator
from gengen.models.completions import right_padded
from gengen.models.reward import RewardModel


def outputs(model: RewardModel, drawn: Drawn) -> np.ndarray:
    rows = [answer.row(drawn.end) for answer in drawn.answers]
    with torch.no_grad():
        parts = [model.raw_scores(*right_padded(rows[i : i + 256])) for i in range(0, len(rows), 256)]
    return torch.cat(parts).double().numpy().reshape(drawn.gold.shape)


def judged(model: RewardModel, held_out: Drawn) -> str:
    raw, gold = outputs(model.eval(), held_out), held_out.gold
    gaps = LABEL_SCALE * pair_gaps(gold)
    right = np.where(pair_gaps(raw) * gaps > 0, sigmoid(abs(gaps)), 1 - sigmoid(abs(gaps))).mean()
    parts = np.stack([(gold - held_out.coverage).ravel(), held_out.coverage.ravel(), np.ones(gold.size)], 1)
    ending, word, _ = np.linalg.lstsq(parts, raw.ravel(), rcond=None)[0]
    order = f"Spearman {spearman(raw.ravel(), gold.ravel()):.3f}"
    return f"accuracy {right:.3f} of {sigmoid(abs(gaps)).mean():.3f}  {order}  ending {ending:.2f}  word {word:.2f}"


def main(
    run: str,
    answers: int,
    epochs: int,
    prompts: int,
    lr: float,
    noise: int,
    threads: int,
    questions: int,
    held_out: int,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    policy, random = load_generator(run), np.random.default_rng(0)
    policy.batch_size = 256
    drawn, judges = (
        draw(policy, [row["prompt"] for row in islice(examples("prompts", part), count)], n, seed, 64)
        for part, count, n, seed in (("train", questions, answers, 1), ("val", held_out, 16, 2))
    )
    model = RewardModel(policy.model.config)
    model.load_state_dict(model.adapt_weights(policy.model.state_dict(), policy.model.vocab_size), strict=False)
    first, second = np.triu_indices(answers, 1)
    likely = sigmoid(LABEL_SCALE * (drawn.gold[:, first] - drawn.gold[:, second]))  # (prompts, pairs)
    labels = torch.tensor(random.random(likely.shape) < likely if noise else likely).float()
    count = len(labels)
    print(f"{labels.numel():,} pairs of {count * answers:,} answers, {'drawn' if noise else 'noiseless'} labels")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.0)
    steps = epochs * (count // prompts)
    order = np.concatenate([random.permutation(count)[: count // prompts * prompts] for _ in range(epochs)])
    for step, chosen in enumerate(order.reshape(steps, prompts)):
        rows = [drawn.answers[p * answers + i].row(drawn.end) for p in chosen for i in range(answers)]
        scores = model.train().raw_scores(*right_padded(rows)).view(prompts, answers)
        a, b = scores[:, first], scores[:, second]
        loss = F.binary_cross_entropy_with_logits(a - b, labels[chosen]) + 0.01 * (a + b).square().mean()
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 30) * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps}  {judged(model, judges)}", flush=True)


if __name__ == "__main__":
    sizes = {"answers": 8, "epochs": 2, "prompts": 8, "questions": 2000, "held_out": 512}
    asked, _ = arguments(sys.argv[2:], lr=3e-3, noise=1, threads=2, **sizes)
    main(sys.argv[1], **asked)
