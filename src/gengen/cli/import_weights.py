"""`import_weights`: a new run from weights in the Hugging Face layout."""

from pathlib import Path
from typing import Any

from gengen.checkpoints.files import Damaged, read_json, read_text
from gengen.checkpoints.run import Run, check_name
from gengen.config.commands import ImportConfig
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.data import DataConfig
from gengen.config.help import flat_help
from gengen.config.resume import stored
from gengen.config.train import TrainConfig
from gengen.errors import UserError

NO_DATA = "none (imported weights: train.py init_from=RUN data=NAME trains on from them)"
"""The name of an imported run's data: what is asked to train or evaluate on it answers that there is no such data."""


def words(path: Path) -> dict[str, Any]:
    """A JSON file that may be missing."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise Damaged(path, "not a JSON object")
    return found


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        print(flat_help("import_weights", ImportConfig).replace(" RUN ", " FOLDER ", 1))
        return 0
    if line.run:  # here the first argument is the folder
        line.settings.insert(0, ("folder", line.run))
        line.run = None
    config: ImportConfig = compose_flat(ImportConfig, line)
    folder, run = Path(str(config.folder)), Run(Path(config.runs_dir) / str(config.run))
    check_name(str(config.run))
    if run.path.exists():
        raise UserError(f"{run.path} exists, and no run is overwritten: choose another run=NAME")
    import torch

    import gengen
    from gengen.checkpoints import store
    from gengen.checkpoints.convert.huggingface import ends, from_config, from_tensors, read_folder
    from gengen.checkpoints.layout import MAX_TOKENIZER, Checkpoint, blueprint, unique_state
    from gengen.data.text.foreign_tokenizer import ForeignTokenizer
    from gengen.models.gpt import GPT

    try:
        known, generation, spelling = (
            words(folder / f"{name}.json") for name in ("config", "generation_config", "tokenizer_config")
        )
        layout, model = from_config(known)
        assert model.vocab_size
        found = read_folder(folder)
        own = unique_state(blueprint(GPT, model, len(found)))
        weights = from_tensors(layout, model, found, {name: tensor.shape for name, tensor in own.items()})
        if not (path := folder / "tokenizer.json").is_file():
            raise UserError(
                "there is no tokenizer.json\n  in transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
            )
        start, (end, *more) = ends(spelling, known, generation)
        tokenizer = ForeignTokenizer.wrap(read_text(path, MAX_TOKENIZER), start, end, model.vocab_size, more)
    except UserError as error:
        raise UserError(f"{folder} cannot be imported: {error}") from None
    tree = stored(TrainConfig(model=model, data=DataConfig(name=NO_DATA), run=run.name, runs_dir=config.runs_dir))
    facts = {
        "data": "none: imported",
        "imported": {"layout": layout.name},
        "versions": {"gengen": gengen.__version__, "torch": torch.__version__},
    }
    run.path.mkdir(parents=True)
    run.lock()
    store.save(run.checkpoints, Checkpoint(0, tree, weights, tokenizer=tokenizer.to_json(), facts=facts))
    run.write_config(tree)
    run.unlock()
    print(f"run    {run.path}")
    print(
        f"model  {layout.name}, {sum(tensor.numel() for tensor in found.values()) / 1e6:.2f} M parameters, {model.vocab_size} tokens"
    )
    print(f'to sample:   python scripts/sample.py {run.path} prompt="Once upon a time"')
    print(f"to train on: python scripts/train.py init_from={run.path} data=text data.path=FILE")
    return 0
