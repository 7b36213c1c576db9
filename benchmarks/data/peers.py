"""The peers' environments, which the project itself never sees: `python -m benchmarks.data.peers --peers FOLDER`.

`clip` holds open_clip, webdataset, datasets and transformers beside the torch that this project is tested with;
`decoders` what opens and resizes photos; `streaming` and `img2dataset` have environments of their own, since they want
older libraries.
"""

import argparse
import importlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "clip": ["torch", "torchvision", "open_clip_torch>=3.3", "webdataset", "datasets", "transformers[torch]", "pillow"],
    "decoders": ["pillow", "simplejpeg", "opencv-python-headless", "pyvips[binary]", "kornia-rs", "torch", "numpy"],
    "streaming": ["torch", "torchvision", "mosaicml-streaming", "pillow"],
    "img2dataset": ["img2dataset"],
}
# These take the versions of constraints.txt: all of them, or those of some packages.
TESTED = {"clip": None, "decoders": None, "streaming": ("torch", "pillow")}


def interpreter(peers: Path, name: str) -> Path:
    """The Python of one environment, which is made where it is absent: some minutes."""
    folder = peers / name
    python, done = folder / "bin" / "python", folder / ".done"
    if not done.exists():
        venv.create(folder, with_pip=True)
        pins = folder / "constraints.txt"
        pins.write_text("\n".join(pinned(name)))
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", pins, *PACKAGES[name]], check=True)
        done.touch()
    return python


def pinned(name: str) -> list[str]:
    """The lines of constraints.txt that an environment goes by."""
    lines, some = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(), TESTED.get(name, ())
    return [line for line in lines if some is None or line.partition("==")[0] in some]


def torchvision_operators() -> object:
    """What torchvision's wheel wants declared before it imports beside a CPU build of torch; to be kept alive."""
    library = importlib.import_module("torch").library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def versions(python: Path, packages: list[str]) -> dict[str, str]:
    """What is installed there."""
    asked = "import sys; from importlib.metadata import version; print(*[version(n) for n in sys.argv[1:]])"
    found = subprocess.run([python, "-c", asked, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, found.stdout.split(), strict=True))


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    args = parser.parse_args()
    for name in PACKAGES:
        sys.stdout.write(f"{interpreter(args.peers, name)}\n")


if __name__ == "__main__":
    main()
