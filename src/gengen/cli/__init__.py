"""One module a command: from a command line to a typed config to work done. No maths here."""

import os
import sys
from importlib import import_module

from gengen.cli.screen import screened
from gengen.errors import UserError, did_you_mean, place, raised
from gengen.registry import own_packages

COMMANDS = ["train", "sample", "evaluate", "prepare", "import_weights", "export", "pairs", "detect", "doctor"]
COMMANDS += ["serve", "play"]


def main(argv: list[str] | None = None) -> int:
    """Run `gengen COMMAND ...`; returns the exit code. User errors are one message on stderr, without a traceback."""
    # Threads that wait for each other give way soon: alone this costs nothing, beside another process it saves a
    # third.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    with screened():
        return answered(sys.argv[1:] if argv is None else argv)


def answered(argv: list[str]) -> int:
    """Run a command, print its errors, and return its exit code."""
    try:
        if argv in ([], ["--help"], ["-h"], ["help"]):
            print(f"gengen COMMAND ...\n  commands: {', '.join(COMMANDS)}\n  gengen COMMAND --help lists its settings")
            return 0
        if argv[0] not in COMMANDS:
            raise UserError(f"no such command: {argv[0]}" + did_you_mean(argv[0], COMMANDS))
        code: int = import_module(f"gengen.cli.{argv[0]}").main(argv[1:])
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if place(error, own := own_packages()):  # a plugin or what it has registered
            print(f"error: {raised(error, own)}", file=sys.stderr)
            return 2
        if isinstance(error, OSError):  # a folder that is gone or may not be written, a full disk: it names the file
            print(f"error: {error}", file=sys.stderr)
            return 1
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is imported late
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
            print("  fewer at once (n, batch_size, data.micro_batch_size) need less memory", file=sys.stderr)
            return 1
        raise
    except KeyboardInterrupt:  # before training starts, whose own handlers save first
        print("interrupted", file=sys.stderr)
        return 130
