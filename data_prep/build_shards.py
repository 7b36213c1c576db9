"""`facetclip shard` as a file, for schedulers that start files."""

import sys

from facetclip.cli import main

if __name__ == "__main__":
    sys.exit(main(["shard", *sys.argv[1:]]))
