"""`sample`: draw from a run's saved weights."""

import json
import time
from pathlib import Path

from gengen.checkpoints.files import replace_text
from gengen.cli.saved import asked
from gengen.config.errors import UserError
from gengen.config.sample import SampleConfig


def main(argv: list[str]) -> int:
    config: SampleConfig | None = asked("sample", SampleConfig, argv)
    if config is None:
        return 0
    if config.out and not Path(config.out).parent.is_dir():
        raise UserError(f"out={config.out}: no such folder {Path(config.out).parent}")
    if config.stream and (config.out or config.n * max(1, len(config.prompt)) > 1):
        raise UserError("stream=true draws one sample to the screen: one prompt, n=1 and no out")
    from gengen.generation.load import load_generator

    generator = load_generator(str(config.run), Path(config.runs_dir), config.checkpoint, config.weights, config.device, print)
    settings = {
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "stop": config.stop,
        "seed": config.seed,
    }
    prompts = config.prompt or [""]
    start = time.perf_counter()
    if config.stream:
        print(prompts[0], end="", flush=True)
        for piece in generator.stream(prompts[0], **settings):
            print(piece, end="", flush=True)
        print()
        return 0
    samples = generator.generate(prompts, n=config.n, **settings)
    spent = time.perf_counter() - start
    for sample in samples:
        print(f"--- {sample.index} ({sample.finish_reason})\n{sample.prompt}{sample.text}")
    tokens = sum(len(sample.tokens) for sample in samples)
    print(f"---\n{tokens} tokens, {tokens / spent:.0f} tokens/s, {since_process_start():.1f} s from process start")
    if config.out:
        replace_text(Path(config.out), "".join(json.dumps(vars(sample), ensure_ascii=False) + "\n" for sample in samples))
    return 0


def since_process_start() -> float:
    """Seconds since this process was started, imports included."""
    import os

    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started
