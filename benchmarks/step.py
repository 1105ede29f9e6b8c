"""What parts of a training step cost: the head with its loss, in memory and time, and fetching a batch.

    python benchmarks/step.py [rounds=3] [threads=2] [tokens=4096] [vocab=32768] [train.py's own settings ...]

Head and loss of so many tokens, 384 features, forward and backward in bf16 autocast, each in a process of its own:
all logits at once with torch's cross-entropy, and ours. Peak memory is what the process holds at most beyond what it
held before.
Fetching: a batch of the default run from prepared data, against a step of it.
"""

import json
import resource
import subprocess
import sys
import time
from statistics import median

import torch
import torch.nn.functional as F
from turns import arguments

from gengen.config.compose import compose_train, read_command_line
from gengen.data.prepared import PrepareRequest
from gengen.data.text.prepare import prepare_for
from gengen.models.kernels.cross_entropy import linear_cross_entropy
from gengen.training.budget import StepTimes
from gengen.training.build import build_datamodule, build_objective, build_trainer

WIDTH = 384


def head(which: str, threads: int, tokens: int, vocab: int) -> None:
    """Print megabytes and milliseconds of one way, as JSON."""
    torch.set_num_threads(threads)
    x, weight = torch.randn(tokens, WIDTH, requires_grad=True), torch.randn(vocab, WIDTH, requires_grad=True)
    labels = torch.randint(0, vocab, (tokens,))
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(4):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            if which == "ours":
                loss = linear_cross_entropy(x, weight, labels)
            else:
                loss = F.cross_entropy((x @ weight.T).float(), labels, reduction="sum")
        loss.backward()
        x.grad = weight.grad = None
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"megabytes": peak / 1024, "ms": 1000 * median(times[1:])}))


def fetching(threads: int, settings: list[str]) -> tuple[float, float]:
    """Milliseconds to fetch a batch, and those of a step."""
    line = [
        "model=gpt",
        "data=storybook",
        "trainer.max_steps=12",
        f"trainer.threads={threads}",
        "trainer.precision=bf16",
        *settings,
    ]
    config = compose_train(read_command_line([*line, "trainer.device=cpu", "trainer.compile=false"]))
    prepared = prepare_for(PrepareRequest(config.data, config.model, lambda line: None))  # type: ignore[arg-type]
    config.data, config.model = prepared.config, config.model.resolved()
    module = build_datamodule(config, prepared)
    batches, fetched = iter(module.loader(0)), []
    for _ in range(100):
        start = time.perf_counter()
        next(batches)
        fetched.append(time.perf_counter() - start)
    times = StepTimes()
    build_trainer(config, times, 12).fit(build_objective(config, prepared), datamodule=module)
    return 1000 * median(fetched), 1000 * median(b - a for a, b in zip(times.ends[2:], times.ends[3:], strict=False))


def main(rounds: int, threads: int, tokens: int, vocab: int, settings: list[str]) -> None:
    found: dict[str, list[dict[str, float]]] = {"all logits at once": [], "ours": []}
    for _ in range(rounds):
        for name, results in found.items():
            command = [sys.executable, __file__, "head", name, *map(str, (threads, tokens, vocab))]
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(out.stdout.splitlines()[-1]))
    print(f"head and loss, {tokens:,} tokens, vocabulary {vocab:,}, bf16 (medians of {rounds} processes)")
    for name, results in found.items():
        print(
            f"  {name:20} {median(r['megabytes'] for r in results):7.0f} MB  "
            f"{median(r['ms'] for r in results):7.0f} ms"
        )
    fetch, step = fetching(threads, settings)
    print(f"fetching a batch of the default run: {fetch:.2f} ms, a step of it {step:.0f} ms: {fetch / step:.2%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["head"]:
        head(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        asked, rest = arguments(sys.argv[1:], rounds=3, threads=2, tokens=4096, vocab=32_768)
        main(**asked, settings=rest)
