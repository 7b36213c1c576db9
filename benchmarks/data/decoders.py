"""Who opens and resizes photos how fast, how faithfully, and what they let pass.

`python -m benchmarks.data.decoders --photos DIR --peers DIR [--rounds 5]`. Shop originals to 256 and to 224 pixels on
the shorter edge, and photos of 256 pixels, as shards hold them, to 224: each way in a process of its own with one
thread, once a round in turn; processor time. Then damaged files: who refuses how many of each kind.
"""

import argparse
import io
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.data.decoding import WAYS
from benchmarks.data.peers import ROOT, interpreter, versions
from benchmarks.measuring import environment, interleaved, ratio, write_result
from PIL import Image

RESULT = ROOT / "benchmarks" / "results" / "decoders.json"
PEERS = ["pillow", "simplejpeg", "opencv-python-headless", "pyvips", "pyvips-binary", "kornia-rs", "torch", "numpy"]
TASKS = {"originals to 256": ("originals", 256), "originals to 224": ("originals", 224), "256 to 224": ("small", 224)}
CONTROL = "pillow again"
OPENED_WHOLE = ("opencv half", "pillow draft")  # what they let pass is that of the same library's other way
SEED = 7


def way(python: Path, who: str, target: int, folder: Path) -> Child:
    """One of `decoding`."""
    words, single = (who, str(target), str(folder)), {"VIPS_CONCURRENCY": "1", "RAYON_NUM_THREADS": "1"}
    return Child(python, "benchmarks.data.decoding", *words, quiet=True, **single)


def _garbage(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + 64] = draw.randbytes(64)


def _zeros(data: bytearray, at: int, _: random.Random) -> None:
    data[at : at + 512] = bytes(512)


def _lost(data: bytearray, at: int, draw: random.Random) -> None:
    del data[at : at + draw.randrange(1, 2000)]


def _flipped(data: bytearray, at: int, draw: random.Random) -> None:
    data[at] ^= 1 << draw.randrange(8)


def _cut(data: bytearray, at: int, _: random.Random) -> None:
    del data[at:]


DAMAGE: dict[str, Callable[[bytearray, int, random.Random], None]] = {
    "64 random bytes": _garbage,
    "512 zeros": _zeros,
    "a piece lost": _lost,
    "a bit flipped": _flipped,
    "cut": _cut,
}


def coded(path: Path, edge: int, **options: Any) -> bytes:
    """A photo with `edge` pixels on its shorter edge, as JPEG."""
    image, out = Image.open(path).convert("RGB"), io.BytesIO()
    scale = edge / min(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    image.resize(shape, Image.Resampling.BICUBIC).save(out, "JPEG", **options)
    return out.getvalue()


def damage(photos: Sequence[Path], each: int, out: Path) -> None:
    """`each` files of every kind of damage, somewhere in the middle eight tenths, by turns of three codings."""
    codings = [{"quality": 85}, {"quality": 90, "progressive": True}, {"quality": 90, "subsampling": 0}]
    draw = random.Random(SEED)
    for kind, harm in DAMAGE.items():
        (out / kind).mkdir(parents=True)
        for number in range(each):
            data = bytearray(coded(photos[number % len(photos)], 400, **codings[number % len(codings)]))
            harm(data, draw.randrange(len(data) // 10, len(data) * 9 // 10), draw)
            (out / kind / f"{number:04d}.jpg").write_bytes(data)


def measured(python: Path, target: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Images per processor second, how many times Pillow's, and how close to it, of every way."""
    count = len(list(folder.glob("*.jpg")))
    ways = {name: way(python, name, target, folder) for name in WAYS}
    ways[CONTROL] = way(python, "pillow", target, folder)
    taken = interleaved({name: child.ask for name, child in ways.items()}, rounds)
    close = {name: child.ask("close") for name, child in ways.items() if name != CONTROL}
    for child in ways.values():
        child.close()
    return {
        "images_per_cpu_second": {name: round(count / statistics.median(took), 1) for name, took in taken.items()},
        "times_as_fast_as_pillow": {name: ratio(taken["pillow"], took) for name, took in taken.items()},
        "psnr_median_and_least": {
            name: [round(statistics.median(found), 1), round(min(found), 1)] for name, found in close.items()
        },
    }


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of large .jpg files")
    parser.add_argument("--peers", type=Path, required=True, help="where the peers' environments are or shall be")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=32, help="photos")
    parser.add_argument("--damaged", type=int, default=96, help="files of each kind of damage")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    photos = sorted(args.photos.rglob("*.jpg"))[: args.most]
    python = interpreter(args.peers, "decoders")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("originals", "small", "damaged")}
        for name in ("originals", "small"):
            folders[name].mkdir()
        for path in photos:
            (folders["originals"] / path.name).write_bytes(path.read_bytes())
            (folders["small"] / path.name).write_bytes(coded(path, 256, quality=92, subsampling=0))
        damage(photos, args.damaged, folders["damaged"])
        result: dict[str, Any] = {"photos": len(photos), "rounds": args.rounds}
        for task, (folder, target) in TASKS.items():
            result[task] = measured(python, target, folders[folder], args.rounds)
            sys.stdout.write(f"{task}: {json.dumps(result[task]['images_per_cpu_second'])}\n")
        refusals = {}
        for name in WAYS:
            if name not in OPENED_WHOLE:
                child = way(python, name, 128, folders["originals"])
                refusals[name] = {
                    kind: round(share, 3) for kind, share in child.ask(f"refused {folders['damaged']}").items()
                }
                child.close()
    result |= {"refused": refusals, "damaged_files_of_a_kind": args.damaged}
    result |= {"environment": environment(["pillow", "simplejpeg", "numpy"]), "peers": versions(python, PEERS)}
    write_result(args.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
