"""See docs/; `python scripts/align.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["align", *sys.argv[1:]]))
