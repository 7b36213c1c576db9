"""Print the run folder of a training with these words: where the scripts beside this look for the file `requeue`."""

import sys

from facetclip.arguments import Parser, add_train
from facetclip.config import read_run
from facetclip.errors import UserError

if __name__ == "__main__":
    parser = Parser("facetclip train", add_help=False)
    add_train(parser)
    try:
        words = parser.parse_intermixed_args()
        folder = read_run(words.run, words.overrides).output.folder
        if words.fresh:  # a job that is queued again would start over again
            raise UserError(
                f"no --fresh in a job that goes on by itself; delete {folder}, or take another output.folder"
            )
        print(folder)
    except UserError as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(2)
