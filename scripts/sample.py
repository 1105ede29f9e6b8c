"""See docs/; `python scripts/sample.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["sample", *sys.argv[1:]]))
