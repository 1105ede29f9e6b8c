"""The loss curve of nano is fixed. A change that moves it comes with a new golden file in the same commit:

GENGEN_GOLDEN=write python -m pytest tests/golden
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main

FILE = Path(__file__).with_name("gpt-nano.json")


def machine() -> dict[str, str]:
    """What bit equality depends on."""
    model = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": model[0] if model else platform.machine(), "capability": capability, "torch": torch.__version__}


def test_twenty_steps_of_nano(texts: Path, shared_data: Path, tmp_path: Path) -> None:
    argv = [
        "model=gpt", "optim=adamw", "model.size=nano", "model.dropout=0", "data=text", f"data.path={texts}",
        f"data.dir={shared_data}", "data.split=documents", "data.tokenizer=byte",
        "data.batch_size=4", "trainer.precision=fp32", "trainer.device=cpu", "trainer.compile=false",
        "trainer.threads=1",
        "trainer.max_steps=20", "trainer.log_every=1", "trainer.save_every=20", "trainer.eval_every=20",
        "trainer.sample_every=20",
    ]  # fmt: skip
    assert main(["train", *argv, f"runs_dir={tmp_path}", "run=golden"]) == 0
    rows = read_metrics(tmp_path / "golden" / "metrics.csv")
    curve = {"train/loss": [row["train/loss"] for row in rows], "val/bpb": rows[-1]["val/bpb"]}
    if os.environ.get("GENGEN_GOLDEN") == "write":
        FILE.write_text(json.dumps({"machine": machine(), "curve": curve}, indent=1) + "\n")
    golden = json.loads(FILE.read_text())
    assert len(curve["train/loss"]) == 20
    assert curve["train/loss"] == pytest.approx(golden["curve"]["train/loss"], rel=1e-5)
    assert curve["val/bpb"] == pytest.approx(golden["curve"]["val/bpb"], rel=1e-5)
    if machine() == golden["machine"]:
        assert curve == golden["curve"]
