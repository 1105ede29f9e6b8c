"""What comes after pretraining, and what a run must bear, on a GPU: stages beside trl, DDP and FSDP with one rank, a
run that is resumed, and memory that runs out.

Arguments and rehearsal: rows.py. Fine-tuning and preferences: a Llama and conversations of one length, of which the
second half is the answer, so that neither side pads; GRPO is that of benchmarks/alignment.py. trl does without the
gradient checkpointing that is its default.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from language import Bench, Ours
from rows import TINY, Asked, Figures, Pace, Rows, Stopwatch, read_arguments, train
from torch import Tensor

from gengen import cli
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.config.compose import compose_train, read_command_line
from gengen.models.kernels.cross_entropy import IGNORED
from gengen.training.build import build_objective, compile_where_it_pays
from gengen.training.objective import Batch, Objective

# --- a run that is stopped and resumed


def resumed(asked: Asked, folder: Path) -> Figures:
    """Return the largest difference of a loss between a run that was never stopped and one stopped in its middle."""
    texts = folder / "texts"
    texts.mkdir()
    letters = torch.randint(97, 123, asked.pick((100, 2_000), (20, 200)), generator=torch.Generator().manual_seed(0))
    for number, text in enumerate(letters.tolist()):
        (texts / f"{number:03}.txt").write_bytes(bytes(text))
    size = asked.pick(["model.size=small"], ["model.size=nano", "model.layers=1", "model.context=16"])
    line = ["model=gpt", *size, "data=text", f"data.path={texts}"]
    line += ["data.tokenizer=byte", f"data.dir={folder}", "data.batch_size=8", f"runs_dir={folder}/runs"]
    line += [f"trainer.device={asked.device}", "trainer.precision=bf16", "trainer.max_steps=8", "optim=muon"]
    line += ["trainer.log_every=1", "trainer.sample_every=100", f"trainer.compile={str(asked.compiled).lower()}"]
    for more in (["run=whole"], ["run=parts", "stop_at=4"]):
        assert cli.main(["train", *line, *more]) == 0
    assert cli.main(["train", f"runs_dir={folder}/runs", "run=parts"]) == 0
    whole, parts = (read_metrics(folder / "runs" / run / "metrics.csv") for run in ("whole", "parts"))
    differences = [abs(a["train/loss"] - b["train/loss"]) for a, b in zip(whole, parts, strict=True)]
    return {"steps": len(differences), "largest_difference": max(differences), "equal": not any(differences)}


# --- ranks


def alone(bench: Bench, batch: int, settings: list[str], strategy: str) -> Figures:
    """Train as one rank of a strategy."""
    try:
        horizon = f"trainer.max_steps={bench.pace.steps}"
        return Ours(bench, batch, [*settings, horizon, f"trainer.strategy={strategy}"]).figures()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# --- memory that runs out


@contextmanager
def little_memory(ours: Ours, device: torch.device) -> Iterator[None]:
    """Inside, memory is too small for the whole batch: so little is allowed, or on a CPU it is pretended."""
    if device.type == "cuda":
        share = 0.6 * torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    objective, allowed = ours.objective, ours.config.data.batch_size // 2
    within = objective.loss_sum

    def loss_sum(batch: Batch) -> Tensor:
        if len(batch["tokens"]) > allowed:
            raise torch.OutOfMemoryError("pretended")
        return within(batch)

    objective.loss_sum = loss_sum  # type: ignore[method-assign]
    yield


def halved(bench: Bench, batch: int, settings: list[str]) -> Figures:
    """Return how far losses are from those of the same run where memory does not run out."""
    losses = []
    for enough in (True, False):
        ours = Ours(bench, batch, settings)
        fit = partial(ours.fit, Pace(warmup=1, window=1, windows=3))
        if enough:
            losses.append(torch.stack(fit().losses))
            continue
        with little_memory(ours, bench.device):
            losses.append(torch.stack(fit().losses))
    now = ours.objective.micro_batch_size
    return {"rows": batch, "rows_at_once": now, "largest_difference": (losses[0] - losses[1]).abs().max().item()}


# --- stages


class Conversations:
    """Rows of random tokens, of one length."""

    def __init__(self, rows: int, length: int, vocab: int):
        self.rows, self.length, self.half = rows, length, length // 2
        self.tokens = torch.randint(vocab, (rows, 2, length), generator=torch.Generator().manual_seed(0))
        self.tokens[:, 1, : self.half] = self.tokens[:, 0, : self.half]  # both answers are to one prompt

    def batch(self, stage: str) -> Batch:
        """What one of our steps is given."""
        if stage == "dpo":
            mask = (torch.arange(self.length - 1) >= self.half - 1).expand(self.rows, 2, -1)
            return {"tokens": self.tokens, "mask": mask}
        tokens, labels = self.tokens[:, 0, :-1], self.tokens[:, 0, 1:].clone()
        labels[:, : self.half - 1] = IGNORED
        return {"tokens": tokens, "labels": labels}

    def records(self, stage: str) -> list[dict[str, Any]]:
        """The same for trl: as tokens, or as numbers in writing."""
        if stage == "sft":
            mask = [int(i >= self.half) for i in range(self.length)]
            return [{"input_ids": row.tolist(), "completion_mask": mask} for row in self.tokens[:, 0]]
        chosen, rejected = ([" ".join(map(str, row.tolist())) for row in rows] for rows in self.tokens.unbind(1))
        parts = zip(chosen, rejected, strict=True)
        return [
            {
                "prompt": " ".join(a.split()[: self.half]) + " ",
                "chosen": end(a, self.half),
                "rejected": end(b, self.half),
            }
            for a, b in parts
        ]


def end(text: str, words: int) -> str:
    return " ".join(text.split()[words:])


def ours(asked: Asked, stage: str, conversations: Conversations, pace: Pace) -> Figures:
    from alignment import SIZES, VOCAB

    width, layers, heads, ff = SIZES[asked.pick("124M", "tiny")]
    shape = {"width": width, "layers": layers, "heads": heads, "kv_heads": heads, "ff": ff, "vocab_size": VOCAB}
    shape |= {"context": conversations.length, "qk_norm": "false", "tied": "true"}
    data = {"sft": "instructions", "dpo": "preferences"}[stage]
    line = ["model=gpt", f"stage={stage}", "init_from=base", f"data={data}", f"data.batch_size={conversations.rows}"]
    line += [f"trainer.device={asked.device}", "trainer.precision=bf16", "optim=adamw"]
    line += [f"trainer.compile={str(asked.compiled).lower()}", *(f"model.{key}={v}" for key, v in shape.items())]
    config = compose_train(read_command_line(line))
    objective: Objective = build_objective(config, None)  # without data its reference is the model as it is
    compile_where_it_pays(objective, config, print)

    def steps() -> Iterator[Batch]:
        while True:
            yield conversations.batch(stage)

    timed = train(config, objective, pace, train_dataloaders=steps())
    return timed.stopwatch.figures("rows", conversations.rows)


def theirs(asked: Asked, stage: str, conversations: Conversations, pace: Pace, folder: Path) -> Figures:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from alignment import llama, their_tokenizer

    class Timer(TrainerCallback):
        def __init__(self) -> None:
            self.stopwatch, self.device = Stopwatch(pace), torch.device(asked.device)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.stopwatch.start(self.device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.stopwatch.tick(self.device)

    kind, config = cast(Any, {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}[stage])
    net = llama(asked.pick("124M", "tiny"))
    net.config.max_position_embeddings = conversations.length
    settings = config(
        output_dir=str(folder / f"trl-{stage}"), per_device_train_batch_size=conversations.rows, max_steps=pace.steps,
        max_length=conversations.length + 1, gradient_checkpointing=False, bf16=True, use_cpu=asked.device == "cpu",
        torch_compile=asked.compiled, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    timer, records = Timer(), Dataset.from_list(conversations.records(stage))
    reference = {"ref_model": deepcopy(net)} if stage == "dpo" else {}
    trainer = kind(
        model=net,
        **reference,
        args=settings,
        train_dataset=records,
        processing_class=their_tokenizer(),
        callbacks=[timer],
    )
    trainer.train()
    return timer.stopwatch.figures("rows", conversations.rows)


def iterations(asked: Asked, contestant: Callable[[int], float]) -> Figures:
    """Measure a contestant of benchmarks/alignment.py."""
    return {"unit": "episodes/s", "median": round(contestant(asked.pick(3, 1)), 1)}


def grpo(asked: Asked, folder: Path) -> dict[str, Callable[[], Figures]]:
    """Return GRPO by us and by trl, from the same weights."""

    @cache
    def net() -> Any:
        from alignment import llama

        made = llama(asked.pick("124M", "tiny"))
        made.save_pretrained(folder)
        return made

    def ours() -> Figures:
        from alignment import Ours as Contestant

        settings = [f"trainer.device={asked.device}", f"trainer.compile={str(asked.compiled).lower()}"]
        return iterations(asked, Contestant("GRPO", net(), folder, "bf16", settings))

    def theirs() -> Figures:
        from alignment import Trl

        return iterations(asked, Trl("GRPO", net(), folder, "bf16", [], device=asked.device))

    return {"grpo": ours, "trl grpo": theirs}


def main(asked: Asked, folder: Path) -> None:
    rows, pace = Rows(asked), asked.pick(Pace(warmup=10, window=5, windows=5), TINY)
    bench = Bench(asked, rows, folder)
    bench.pace = pace
    rows.measure("resume", partial(resumed, asked, folder))
    batch = asked.pick(64, 2)
    gpt2 = ["model=gpt2", "optim=adamw", f"trainer.compile={str(asked.compiled).lower()}"]
    for strategy in ("auto", "fsdp", "ddp"):
        rows.measure(f"gpt2 124M, one rank, {strategy}", partial(alone, bench, batch, gpt2, strategy))
        if strategy != "auto":
            rows.ratio(f"{strategy} / alone", f"gpt2 124M, one rank, {strategy}", "gpt2 124M, one rank, auto")
    conversations = Conversations(asked.pick(32, 2), asked.pick(512, 16), vocab=1_000)
    for stage in ("sft", "dpo"):
        rows.measure(stage, partial(ours, asked, stage, conversations, pace))
        rows.measure(f"trl {stage}", partial(theirs, asked, stage, conversations, pace, folder))
        rows.ratio(f"{stage} / trl", stage, f"trl {stage}")
    for name, act in grpo(asked, folder).items():
        rows.measure(name, act)
    rows.ratio("grpo / trl", "grpo", "trl grpo")
    rows.measure("out of memory, in halves", partial(halved, bench, batch, [*gpt2[:2], "trainer.compile=false"]))
    rows.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(read_arguments(), Path(folder))
