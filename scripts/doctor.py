"""See docs/; `python scripts/doctor.py --help` lists every key."""

import sys

from gengen.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["doctor", *sys.argv[1:]]))
