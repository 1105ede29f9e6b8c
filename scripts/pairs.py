"""See docs/; `python scripts/pairs.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["pairs", *sys.argv[1:]]))
