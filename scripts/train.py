"""See docs/; `python scripts/train.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
