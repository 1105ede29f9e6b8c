"""See docs/; `python scripts/detect.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["detect", *sys.argv[1:]]))
