"""The console command: `facetclip VERB`. The scripts of training/ and data_prep/ enter by the same door."""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from facetclip import __version__
from facetclip.arguments import Parser
from facetclip.errors import OwnMistake, UserError, redacted
from facetclip.interruption import ANYTIME, REQUEUE, Interrupted, listening

# Verb -> (module that parses and runs it, what it does). Only the module of the verb at hand is imported, since those
# that train and read take seconds to import.
VERBS = {
    "render": ("data_commands", "draw a product catalog with known labels"),
    "schema": ("data_commands", "propose a schema for a catalog"),
    "check": ("data_commands", "list every problem of a catalog by row"),
    "shard": ("data_commands", "turn a catalog into WebDataset shards with an index"),
    "inspect": ("data_commands", "say what shards hold, check them, draw contact sheets"),
    "doctor": ("data_commands", "say what this machine has and what is wrong"),
    "train": ("model_commands", "fine-tune a model as a run file says"),
    "curve": ("study_commands", "how many labelled images it takes"),
    "captions": ("study_commands", "which captions work best"),
    "evaluate": ("model_commands", "measure a model on a split, beside its zero-shot start"),
    "extract": ("model_commands", "read every attribute of every item"),
    "fill": ("model_commands", "fill the catalog's gaps where the photos are sure enough"),
    "export": ("model_commands", "write a model as an ONNX file"),
    "audit": ("audit_commands", "find the cells that the photos contradict"),
    "next": ("audit_commands", "which photos to label next"),
    "review": ("review_commands", "suggestions as a page on which a person decides"),
    "apply": ("review_commands", "write the catalog with what was decided"),
    "promote": ("model_commands", "make the challenger the champion if it is better"),
    "rollback": ("model_commands", "make the champion before the present one champion again"),
    "sync": ("model_commands", "send what MLflow missed while it was away"),
    "demo": ("demo", "the whole system on a rendered catalog"),
}
# What is wrong with a path that was given.
OF_A_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM)
OF_A_PATH += (errno.ENAMETOOLONG, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when all went well, 1 when the answer is no, 2 for a mistake of the user's, REQUEUE when a signal
    ended it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help") or words[0] not in VERBS:
        return _overview(words)
    verb = words[0]
    with listening(signals=ANYTIME) if verb == "train" else nullcontext():  # and while that is imported
        return _run(verb, words[1:])


def _run(verb: str, words: Sequence[str]) -> int:
    module = importlib.import_module(f"facetclip.{VERBS[verb][0]}")
    configure, run = module.COMMANDS[verb]
    parser = Parser(
        prog=f"facetclip {verb}",
        description=VERBS[verb][1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    configure(parser)
    try:
        return run(parser.parse_intermixed_args(words))  # overrides may stand before or after options
    except UserError as error:
        return _refused(verb, str(error), own=isinstance(error, OwnMistake))
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"facetclip {verb}: {stop}", file=sys.stderr, flush=True)
        return REQUEUE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe has left
        return 1
    except OSError as error:
        if error.filename is None or error.errno not in OF_A_PATH:
            raise
        return _refused(verb, f"{os.fspath(error.filename)}: {error.strerror}; give another path")


def _refused(verb: str, why: str, *, own: bool = False) -> int:
    """A mistake that every process of a launch meets is told by one; its `own` by each that meets it."""
    rank = os.environ.get("RANK")
    if own or rank in (None, "0"):
        who = f"process {rank}: " if own and rank is not None else ""
        print(f"facetclip {verb}: {who}{redacted(why)}", file=sys.stderr)
    return 2


def _overview(words: Sequence[str]) -> int:
    if words == ["--version"]:
        print(__version__)
        return 0
    lines = [f"  {verb:10} {about}" for verb, (_, about) in VERBS.items()]
    text = "\n".join(["usage: facetclip VERB ...", "", *lines, "", "facetclip VERB --help says more."])
    asked = bool(words) and words[0] in ("-h", "--help")
    if words and not asked:
        text = f"facetclip: no verb {words[0]!r}\n{text}"
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2
