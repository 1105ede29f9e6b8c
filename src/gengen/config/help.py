"""`--help`: groups, fields, types and defaults, printed from the dataclasses without importing torch."""

from dataclasses import MISSING, Field

from gengen.config.compose import CommandLine, compose_groups, groups
from gengen.config.fields import allowed
from gengen.config.schema import Kind, get, schema, type_name
from gengen.config.train import TrainConfig
from gengen.errors import UserError, did_you_mean
from gengen.io import Json


def default(f: "Field[Json]") -> Json:
    return f.default if f.default_factory is MISSING else f.default_factory()


def field_line(key: str, f: "Field[Json]", kind: Kind, value: Json) -> str:
    words = "; ".join(part for part in (f.metadata.get("doc", ""), allowed(f)) if part)
    return f"  {key:26} {type_name(kind):13} {'null' if value is None else value!s:<14} {words}"


def train_help(line: CommandLine) -> str:
    """List every key of train.py, or those of one group (`--help trainer`, `--help model`)."""
    tree = compose_groups(line)
    known = schema(TrainConfig, tree)
    tops = {key.split(".")[0] for key in known if "." in key}
    if line.topic and line.topic not in tops:
        raise UserError(f"--help {line.topic}: no such group" + did_you_mean(line.topic, tops))
    text = []
    if not line.topic:
        text += [
            "python scripts/train.py [group=option ...] [key=value ...] "
            "[-m] [--cfg job] [--config-dir DIR] [--help [group]]",
            "",
        ]
        text += ["groups", *(f"  {group:12} {', '.join(names)}" for group, names in groups(line.config_dir).items())]
        text += ["", "run"] + [field_line(k, f, t, default(f)) for k, (f, t) in known.items() if "." not in k]
    for top in sorted(tops):
        if line.topic in (None, top):
            fields = [(k, f, t) for k, (f, t) in known.items() if k.startswith(top + ".")]
            text += ["", top] + [field_line(k, f, t, get(tree, k, default(f))) for k, f, t in fields]
    return "\n".join(text)


def flat_help(command: str, cls: type) -> str:
    """List the keys of a command without groups."""
    head = f"python scripts/{command}.py RUN [key=value ...]    {(cls.__doc__ or '').splitlines()[0]}"
    return "\n".join([head, "", *(field_line(k, f, t, default(f)) for k, (f, t) in schema(cls, {}).items())])
