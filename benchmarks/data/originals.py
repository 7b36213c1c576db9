"""Full-size photos to training tensors: `python -m benchmarks.data.originals --photos DIR --peers DIR [--rounds 7]`.

From the same tar of originals to normalised float batches of 224 pixels, once each in turn: ours (read by offset,
decode, square, augment, normalise), open_clip's loader and training transform, plain webdataset with Pillow, and
`datasets` with transformers' CLIP image processor. Each runs in a process of its own without workers; what counts
is its processor time.
"""

import argparse
import json
import statistics
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.data.peers import ROOT, interpreter, versions
from benchmarks.measuring import environment, interleaved, ratio, write_result

RESULT = ROOT / "benchmarks" / "results" / "originals.json"
PEERS = ["open_clip_torch", "torchvision", "torch", "webdataset", "datasets", "transformers", "pillow"]


def tar_of(photos: list[Path], out: Path) -> None:
    """A plain WebDataset tar of the photos."""
    with tarfile.open(out, "w") as tar:
        for number, path in enumerate(photos):
            tar.add(path, f"{number:06d}.jpg")


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of .jpg files")
    parser.add_argument("--peers", type=Path, required=True, help="where the peers' environments are or shall be")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    photos = sorted(args.photos.glob("*.jpg"))
    peer, here = interpreter(args.peers, "clip"), Path(sys.executable)
    with tempfile.TemporaryDirectory() as scratch:
        tar = Path(scratch) / "originals.tar"
        tar_of(photos, tar)
        pythons = {"open_clip": peer, "webdataset": peer, "datasets": peer, "ours": here, "open_clip again": peer}
        runners = {
            name: Child(python, "benchmarks.data.running", name.split()[0], str(tar))
            for name, python in pythons.items()
        }
        taken = interleaved({name: runner.ask for name, runner in runners.items()}, args.rounds)
        for runner in runners.values():
            runner.close()
    result: dict[str, Any] = {
        "photos": len(photos),
        "rounds": args.rounds,
        "images_per_cpu_second": {name: round(len(photos) / statistics.median(t), 1) for name, t in taken.items()},
        "ours_times_faster": {name: ratio(t, taken["ours"]) for name, t in taken.items() if name != "ours"},
        "control_open_clip_against_itself": ratio(taken["open_clip"], taken["open_clip again"]),
        "cpu_seconds": {name: [round(seconds, 3) for seconds in t] for name, t in taken.items()},
        "environment": environment(["pillow", "simplejpeg", "numpy", "torch"]),
        "peers": versions(peer, PEERS),
    }
    write_result(args.out, result)
    print(json.dumps({name: value for name, value in result.items() if name != "cpu_seconds"}, indent=2))


if __name__ == "__main__":
    main()
