"""What a save costs training: how long a step has to wait for it, and how much slower steps are while it is written.

    python benchmarks/saving.py [megabytes=1000] [rounds=7] [threads=1] [device=cpu] [folder=]

A state of so many megabytes (weights, an average, two moments) is saved, in turn (`trainer.save=sync`) and beside
training (`async`), between steps of a small network. Waited: from the end of a step until the next may begin, beside
the time to clone the state on its device, which is the least that a copy can take. Run it on a machine that does
nothing else, with at least two cores: whatever else runs there slows the steps, the copy and the writer. folder: where
to write; the default is the system's folder for temporary files, which may be memory.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from turns import arguments, spread

from gengen.checkpoints.background import BackgroundSaver
from gengen.checkpoints.layout import Checkpoint
from gengen.checkpoints.saving import Keeping, Save, Saver, SaverInTurn

WARMUP = 2  # saves: the writer is started, and memory is taken
TENSORS = 64  # in each of the four parts


def state(step: int, megabytes: int, device: str) -> Checkpoint:
    size = megabytes * 10**6 // 4 // 4 // TENSORS  # fp32

    def part() -> dict[str, Tensor]:
        return {f"block.{i}.weight": torch.randn(size, device=device) for i in range(TENSORS)}

    second = part()
    moments = {name: {"exp_avg": first, "exp_avg_sq": second[name]} for name, first in part().items()}
    return Checkpoint(step, {}, part(), {"state": moments, "param_groups": []}, ema=part(), facts={"data": "none"})


def stepper(device: str) -> Callable[[], float]:
    """Return a step of training, which says how many seconds it took."""
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))).to(device)
    optimizer, batch = torch.optim.AdamW(model.parameters()), torch.randn(256, 512, device=device)

    def step() -> float:
        begun = time.perf_counter()
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        wait_for(device)
        return time.perf_counter() - begun

    return step


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def clone_seconds(checkpoint: Checkpoint, device: str) -> float:
    begun = time.perf_counter()
    moments = [moment.clone() for one in checkpoint.optimizer["state"].values() for moment in one.values()]
    copies = [moments, *([t.clone() for t in part.values()] for part in (checkpoint.model, checkpoint.ema or {}))]
    wait_for(device)
    assert copies
    return time.perf_counter() - begun


def measure(saver: Saver, checkpoint: Checkpoint, folder: Path, rounds: int, device: str) -> dict[str, list[float]]:
    """Return seconds: of a clone, of a save until the next step may begin, and its end; of steps alone and beside."""
    step, found = stepper(device), {name: list[float]() for name in ("clone", "waited", "alone", "during", "written")}
    for i in range(WARMUP + rounds):
        now: dict[str, list[float]] = {"clone": [clone_seconds(checkpoint, device)], "alone": [], "during": []}
        now["alone"] = [step() for _ in range(10)]
        checkpoint.step = i
        begun = time.perf_counter()
        saver.begin(Save(folder, checkpoint, Keeping(False, 2)))
        now["waited"] = [time.perf_counter() - begun]
        while (saved := saver.ended(wait=False)) is None:
            now["during"].append(step())
        now["written"] = [time.perf_counter() - begun]
        assert saved.failure is None, saved.failure
        if i >= WARMUP:
            for name, seconds in now.items():
                found[name] += seconds
    saver.close()
    return found


def main(megabytes: int, rounds: int, threads: int, device: str, folder: str) -> None:
    torch.set_num_threads(threads)
    checkpoint = state(0, megabytes, device)
    print(f"{megabytes} MB on {device}, {threads} threads; median, least to most")
    for name, saver in (("sync", SaverInTurn()), ("async", BackgroundSaver())):
        with TemporaryDirectory(dir=folder or None) as root:
            found = measure(saver, checkpoint, Path(root), rounds, device)
        for what, seconds in found.items():
            if seconds:
                print(f"  {name:6}{what:8}{spread([1000 * s for s in seconds], 1)}  ms")
        print(f"  {name:6}waited / clone: {median(found['waited']) / median(found['clone']):.2f}")
        if found["during"]:
            print(f"  {name:6}steps during a write / alone: {median(found['during']) / median(found['alone']):.2f}")


if __name__ == "__main__":
    asked, _ = arguments(sys.argv[1:], megabytes=1000, rounds=7, threads=1, device="cpu", folder="")
    main(**asked)
