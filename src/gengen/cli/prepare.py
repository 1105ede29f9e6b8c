"""`prepare`: make the training data and show what was made."""

from pathlib import Path

from gengen.config.compose import read_command_line, selections, train_tree
from gengen.config.data import DataConfig
from gengen.config.help import train_help
from gengen.config.model import ModelConfig
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.registry import DATA, MODELS


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        line.topic = line.topic or "data"
        print(train_help(line))
        return 0
    from gengen.training.request import check_paths

    chosen, tokenizer = selections(line), None
    if "model" not in chosen and (data := DATA.entries.get(chosen.get("data", ""))):  # any model of its kind will do
        line.settings[:0] = [("model", name) for name in MODELS if MODELS[name].kind == data.kind][:1]
    tree, _ = train_tree(line)
    if tree.get("init_from"):
        from gengen.checkpoints.layout import read_tokenizer
        from gengen.checkpoints.migrate import read_config
        from gengen.generation.load import find_checkpoint

        source = find_checkpoint(tree["init_from"], Path(tree.get("runs_dir", "runs")), "latest", print)
        tree["model"], tokenizer = read_config(source)["model"], read_tokenizer(source)
    config = TrainConfig(
        data=build(DataConfig, tree["data"], "data."), model=build(ModelConfig, tree["model"], "model.")
    )
    check_paths(config)
    prepared = DATA[config.data.name].load("prepare")(config.data, config.model.resolved(), print, tokenizer)
    print("\n".join(prepared.describe()))
    return 0
