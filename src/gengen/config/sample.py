"""The configs of the commands that read a run."""

from dataclasses import dataclass

from gengen.config.fields import choice, option, positive


@dataclass
class RunConfig:
    """Which weights a command reads."""

    run: str | None = option(None, "run or checkpoint directory; also as the first argument")
    runs_dir: str = option("runs", "folder that holds the runs")
    checkpoint: str = option("latest", "latest, best, or the number of a step")
    weights: str | None = choice(None, ["ema", "raw"], "which weights; null = ema where the run has them")
    device: str = choice("auto", ["auto", "cpu", "cuda"], "auto = cuda if there is one")
    plugins: list[str] = option([], "your modules to import, which register your own components")


@dataclass
class SampleConfig(RunConfig):
    """What to draw from a run."""

    prompt: list[str] = option([], "text to go on from; repeat for several prompts in one batch")
    n: int = positive(1, "samples of each prompt")
    max_tokens: int = positive(200, "new tokens at most")
    temperature: float = option(0.8, "divides the logits; 0 takes the likeliest token", low=0)
    top_k: int | None = positive(None, "draw from the k likeliest tokens only")
    top_p: float | None = option(None, "draw from the fewest tokens that hold this much probability", above=0, high=1)
    stop: list[str] = option([], "end a sample before this text; repeat for several")
    seed: int = option(0, "sample i is a function of seed and i alone", low=0)
    stream: bool = option(False, "print the text while it is drawn (one sample)")
    out: str | None = option(None, "also write the samples to this .jsonl file")


@dataclass
class EvaluateConfig(RunConfig):
    """What to measure of a run."""
