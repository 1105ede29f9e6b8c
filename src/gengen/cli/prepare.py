"""`prepare`: make the training data and show what was made."""

from gengen.config.compose import compose_train, read_command_line
from gengen.config.help import train_help
from gengen.registry import DATA


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        line.topic = line.topic or "data"
        print(train_help(line))
        return 0
    from gengen.cli.train import check_paths

    config = compose_train(line)
    check_paths(config)
    prepared = DATA[config.data.name].load("prepare")(config.data, config.model.resolved(), print, None)
    print("\n".join(prepared.describe()))
    return 0
