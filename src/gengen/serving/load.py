"""From a run's folder to a run that is served."""

from pathlib import Path

from gengen.config.serve import ServeConfig
from gengen.data.text.shards import TokenStream
from gengen.errors import UserError
from gengen.generation.base import GeneratesImages
from gengen.generation.load import find_checkpoint, generator_of
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Scorer
from gengen.generation.text.watermark import Watermark
from gengen.io import Say
from gengen.serving.image_runs import load_images
from gengen.serving.runs import Served, TrainingText, load_text
from gengen.serving.scores import load_scorer


def no_training_text(directory: Path) -> TokenStream:
    raise UserError(f"filter=copies: what {directory} was trained on is not at hand here")


def load_run(
    where: str,
    config: ServeConfig,
    say: Say,
    share_prefixes: bool = True,
    training_text: TrainingText = no_training_text,
    watermark: Watermark | None = None,
) -> Served:
    """Load a run to be served, whatever it does. Raises UserError where that is nothing a server can do.

    share_prefixes: whether prompts of one client may be what another's need not read again; how long an answer takes
    then tells of them. training_text: opens what a run was trained on, which filter=copies needs.
    watermark: marks all texts; one for all runs.
    """
    directory = find_checkpoint(where, Path(config.runs_dir), config.checkpoint, say)
    generator = generator_of(directory, config.weights, config.device)
    run = directory.parent.parent if directory.parent.name == "checkpoints" else directory
    if isinstance(generator, TextGenerator):
        return load_text(run.name, directory, generator, config, share_prefixes, training_text, watermark)
    if isinstance(generator, Scorer):
        return load_scorer(run.name, directory, generator, config)
    if isinstance(generator, GeneratesImages):
        return load_images(run.name, directory, generator, config)
    raise UserError(f"{where}: {type(generator).__name__} draws neither texts nor images, and scores nothing")
