"""`detect`: whether a text or a picture was drawn with a key, and what a picture's file says of itself."""

import json
from collections.abc import Iterator
from pathlib import Path

from gengen.config.compose import compose_flat, read_command_line
from gengen.config.detect import DetectConfig
from gengen.config.help import flat_help
from gengen.errors import UserError

MAX_FILE = 2**26  # bytes of a file of texts


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        print(flat_help("detect", DetectConfig))
        return 0
    config: DetectConfig = compose_flat(DetectConfig, line)
    if config.new_key:
        from gengen.generation.secret_key import new_key

        new_key(Path(config.new_key))
        print(f"{config.new_key}  a new key: who has it can find what it marked, and mark in your name")
        return 0
    if config.image:
        examine_pictures(config)
    if config.text or config.file:
        examine_texts(config)
    return 0


def examine_pictures(config: DetectConfig) -> None:
    """Print a line for each picture: the mark, if there is a key to look with, and what the file says of itself."""
    import numpy as np

    from gengen.data.image.decode import one_line_errors, plain, upright
    from gengen.generation.image.mark import detect
    from gengen.generation.image.provenance import read_provenance
    from gengen.generation.secret_key import read_key

    key = read_key(Path(config.key)) if config.key else None
    for name in config.image:
        try:
            with one_line_errors():
                pixels = np.asarray(plain(upright(name), 3)).transpose(2, 0, 1)  # which refuses too many of them
                record, by_model = read_provenance(Path(name))
        except ValueError as error:
            raise UserError(f"image={name}: {error}") from None
        said = [json.dumps(record, ensure_ascii=False, sort_keys=True)] if record else []
        said += ["XMP: drawn by a model"] if by_model else []
        found = [str(detect(pixels, key))] if key else []
        print("  ".join([name, *found, *(said or ["the file says nothing of where it comes from"])]))


def examine_texts(config: DetectConfig) -> None:
    """Print a line for each text: what was counted, what it means, and the z to expect of it, were it marked."""
    from gengen.generation.load import load_generator
    from gengen.generation.secret_key import read_key
    from gengen.generation.text.generator import TextGenerator
    from gengen.generation.text.watermark import Watermark, examine

    watermark = Watermark(read_key(Path(str(config.key))), config.watermark_delta)
    texts = list(read_texts(config))
    generator = load_generator(
        str(config.run), Path(config.runs_dir), config.checkpoint, config.weights, config.device, print
    )
    if not isinstance(generator, TextGenerator):
        raise UserError(f"{config.run} draws no text")
    for name, prompt, text in texts:
        evidence, expected = examine(generator, watermark, text, prompt)
        print(f"{name}  {evidence}; about z {expected:.1f} if it were marked and unchanged")


def read_texts(config: DetectConfig) -> Iterator[tuple[str, str, str]]:
    """Yield (what it is called, prompt, text) of what the command line names."""
    for i, text in enumerate(config.text):
        yield f"text {i}", config.prompt, text
    if not config.file:
        return
    path = Path(config.file)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        content = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"file={path} cannot be read: {error}") from None
    if len(raw) > MAX_FILE:
        raise UserError(f"file={path} is larger than the {MAX_FILE:,} bytes that are read")
    if path.suffix == ".txt":
        yield path.name, config.prompt, content
        return
    for number, row in enumerate(content.splitlines(), 1):
        try:
            sample = json.loads(row)
        except ValueError:
            sample = None
        if not isinstance(sample, dict) or not isinstance(sample.get("text"), str):
            raise UserError(f"{path}, line {number}: not a sample, which is an object with a text")
        yield f"{path.name}:{number}", str(sample.get("prompt", config.prompt)), sample["text"]
