"""`facetclip check` as a file, for schedulers that start files."""

import sys

from facetclip.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
