"""Sharding full-size photos against a plain script: `python benchmarks/sharding.py [--photos DIR] [--rounds 7]`.

The plain script opens each photo with Pillow, converts it to RGB, resizes it (bicubic, antialiased) to 256 pixels on
its shorter edge, and writes JPEGs of the same quality with `webdataset.ShardWriter`. Both run in one process; what
counts is processor time. Also measured: how close our photos are to a full decode, before both are JPEG again.
"""

import argparse
import io
import math
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset
from measuring import cpu_seconds, environment, interleaved, ratio, write_result
from PIL import Image, ImageDraw, ImageFilter

from facetclip.catalog import Catalog
from facetclip.images import QUALITY, read_rgb, shrunk
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_shards

EDGE = 256
ROWS = 256
RESULT = Path(__file__).parent / "results" / "sharding.json"
SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "item", "product": "product", "image": "image", "title": "title"},
        "attributes": {"sleeve": {"column": "sleeve", "values": ["long", "short"]}},
    }
)


def synthetic(folder: Path) -> None:
    """64 photos of about 1300 pixels, where no real ones are at hand: a textured shape on white."""
    for number in range(64):
        draw = np.random.default_rng(number)
        cloth = Image.fromarray(draw.integers(40, 220, (650, 520, 3), dtype=np.uint8)).filter(
            ImageFilter.GaussianBlur(1)
        )
        mask = Image.new("L", (1300, 1600))
        ImageDraw.Draw(mask).polygon([tuple(point) for point in draw.integers(100, 1200, (7, 2)).tolist()], fill=255)
        photo = Image.new("RGB", mask.size, "white")
        photo.paste(cloth.resize(mask.size), mask=mask)
        photo.save(folder / f"{number:02d}.jpg", quality=88, progressive=number % 2 == 0)


def rows_of(photos: Path) -> list[dict[str, str]]:
    """A catalog of ROWS rows that goes round the photos."""
    names = sorted(path.name for path in photos.glob("*.jpg"))
    facts = ["long", "short", ""]
    return [
        {
            "item": f"item-{row}",
            "product": f"product-{row // 4}",
            "image": names[row % len(names)],
            "title": f"A shirt, number {row}",
            "sleeve": facts[row % 3],
        }
        for row in range(ROWS)
    ]


def plain(photos: Path, rows: list[dict[str, str]], out: Path) -> None:
    """What one writes without facetclip."""
    out.mkdir()
    with webdataset.ShardWriter(str(out / "shard-%06d.tar"), maxcount=64, verbose=0) as writer:
        for row in rows:
            image = Image.open(photos / row["image"]).convert("RGB")
            scale = EDGE / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=QUALITY, subsampling=0)
            labels = {"item": row["item"], "product": row["product"], "sleeve": row["sleeve"]}
            writer.write({"__key__": row["item"], "jpg": jpeg.getvalue(), "json": labels, "txt": row["title"]})


def ours(photos: Path, rows: list[dict[str, str]], out: Path) -> None:
    """The same by facetclip, index and checksums included."""
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    build_shards(Catalog("benchmark", table, 1), SCHEMA, ShardSpec(out=out, images=photos, resize=EDGE))


def closeness(photos: Path) -> dict[str, float]:
    """PSNR in dB of our decoded and resized photos against the full decode and antialiased bicubic."""
    found = []
    for path in sorted(photos.glob("*.jpg")):
        content = path.read_bytes()
        full = Image.open(path).convert("RGB")
        shape = shrunk(*full.size, EDGE)
        whole = np.asarray(full.resize(shape, Image.Resampling.BICUBIC), dtype=float)
        part = np.asarray(read_rgb(content, at_least=EDGE).resize(shape, Image.Resampling.BICUBIC), dtype=float)
        found.append(10 * math.log10(255**2 / max(1e-9, float(((whole - part) ** 2).mean()))))
    return {"median": round(statistics.median(found), 1), "least": round(min(found), 1)}


def measure(photos: Path, rounds: int, scratch: Path) -> dict[str, object]:
    """One result: images per second and core, their ratio, and the plain script against itself."""
    rows = rows_of(photos)

    def contender(make):
        def run() -> float:
            shutil.rmtree(scratch / "out", ignore_errors=True)
            return cpu_seconds(lambda: make(photos, rows, scratch / "out"))

        return run

    taken = interleaved({"plain": contender(plain), "ours": contender(ours), "plain again": contender(plain)}, rounds)
    return {
        "photos": len(list(photos.glob("*.jpg"))),
        "rows": ROWS,
        "rounds": rounds,
        "images_per_second_per_core": {name: round(ROWS / statistics.median(t), 1) for name, t in taken.items()},
        "ours_times_faster": ratio(taken["plain"], taken["ours"]),
        "control_plain_against_itself": ratio(taken["plain"], taken["plain again"]),
        "psnr_db_against_full_decode": closeness(photos),
        "cpu_seconds": {name: [round(seconds, 3) for seconds in t] for name, t in taken.items()},
        "environment": environment(["pillow", "webdataset", "numpy", "pyarrow"]),
    }


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of .jpg files; synthetic photos where not given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        photos = args.photos
        if photos is None:
            photos = Path(scratch) / "photos"
            photos.mkdir()
            synthetic(photos)
        result = {
            "photos_are": "synthetic" if args.photos is None else "given",
            **measure(photos, args.rounds, Path(scratch)),
        }
    write_result(args.out, result)
    for name, value in result.items():
        if name != "cpu_seconds":
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
