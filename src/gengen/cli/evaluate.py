"""`evaluate`: the metrics of a run's saved weights, on held-out data and of what they generate."""

import json

from gengen.checkpoints.files import without_special_floats
from gengen.cli.run_command import parse_run_command
from gengen.training.evaluate import evaluate_run, evaluation_config


def main(argv: list[str]) -> int:
    wanted = parse_run_command("evaluate", evaluation_config, argv)
    if wanted is not None:
        print(json.dumps(without_special_floats(evaluate_run(wanted, print))))
    return 0
