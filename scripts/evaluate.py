"""See docs/; `python scripts/evaluate.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
