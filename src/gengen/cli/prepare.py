"""`prepare`: make the training data and show what was made."""

from gengen.config.compose import compose_train, read_command_line, selections
from gengen.config.help import train_help
from gengen.registry import DATA, MODELS


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        line.topic = line.topic or "data"
        print(train_help(line))
        return 0
    from gengen.cli.train import check_paths

    chosen = selections(line)
    if "model" not in chosen and (data := DATA.entries.get(chosen.get("data", ""))):  # any model of its kind will do
        line.settings.insert(0, ("model", next(name for name in MODELS if MODELS[name].kind == data.kind)))
    config = compose_train(line)
    check_paths(config)
    prepared = DATA[config.data.name].load("prepare")(config.data, config.model.resolved(), print, None)
    print("\n".join(prepared.describe()))
    return 0
