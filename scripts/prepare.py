"""See docs/; `python scripts/prepare.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
