"""`facetclip audit` as a file, which `accelerate launch` needs."""

import sys

from facetclip.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
