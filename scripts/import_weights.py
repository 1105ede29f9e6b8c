"""See docs/; `python scripts/import_weights.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["import_weights", *sys.argv[1:]]))
