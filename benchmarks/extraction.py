"""How near extraction comes to its model: `python -m benchmarks.extraction [--work DIR] [--rounds 5] [--out FILE]`.

`facetclip extract` over pre-resized shards (rendered garments, the shorter edge as the model takes it), from the tars
to the manifest, against a bare loop of `get_image_features` of the same model over float tensors that lie in memory.
Counted from the end of its first part on: loading the model and opening the index are no matter of images per second,
and are told apart (`start`). Interleaved, with a control of the bare loop against itself. Both have one thread for the
model; extraction decodes in others beside it. Processor seconds of all of them together are compared: on a machine
without a GPU that is the harder way, since decoding on another core costs no time on the clock, which is told too.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import environment, interleaved, ratio, write_result
from benchmarks.probe import B32
from benchmarks.quality.catalogs import GARMENTS_SCHEMA

from facetclip.catalog import read_catalog
from facetclip.extract import extract
from facetclip.model import AttributeReader, load_model, save_model
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import read_schema
from facetclip.scores import BATCH
from facetclip.scratch import new_model
from facetclip.shards import ShardSpec, build_shards
from facetclip.sources import FromShards

PARTS = 3  # of which the first only starts the clock


@dataclass
class Timed:
    """What a contender's rounds took, an image: seconds on the clock and of the processors; `start`: before them."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)

    def keep(self, began: float, clock: float, processor: float, images: int) -> float:
        """Note a round that took `clock` and `processor` seconds for `images`; its processor seconds an image."""
        self.clock.append(clock / images)
        self.processor.append(processor / images)
        self.start.append(began)
        return processor / images


def shards_of(folder: Path, items: int, size: int) -> Path:
    """Shards of rendered garments whose shorter edge is `size`, from photos of twice as many pixels; made once."""
    catalog = render_catalog(RenderSpec("garments", items, size=min(2 * size, 448)), folder / f"{size}", workers=2)
    spec = ShardSpec(folder / f"{size}-shards", images=catalog.parent, resize=size)
    build_shards(read_catalog(str(catalog)), read_schema(GARMENTS_SCHEMA), spec)
    return spec.out


def ours(model: str, shards: Path, out: Path, part_size: int, timed: Timed) -> Callable[[], float]:
    """An extraction into a new folder, from the end of its first part to its manifest."""

    def once() -> float:
        marks: list[tuple[float, float]] = []
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()

        def progress(done: int, parts: int) -> None:
            if done == 1:
                marks.append((time.perf_counter(), time.process_time()))

        done = extract(model, FromShards(shards), out, part_size=part_size, progress=progress)
        clock, processor = time.perf_counter() - marks[0][0], time.process_time() - marks[0][1]
        assert done is not None
        return timed.keep(marks[0][0] - began, clock, processor, done.items - part_size)

    return once


def bare(reader: AttributeReader, images: int, timed: Timed) -> Callable[[], float]:
    """`get_image_features` over so many images in batches, float tensors that are ready."""
    size = reader.preprocessing.size
    pixels = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))

    def once() -> float:
        clock, processor = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for start in range(0, images, BATCH):
                reader.clip.get_image_features(pixel_values=pixels[: min(BATCH, images - start)])
        return timed.keep(0.0, time.perf_counter() - clock, time.process_time() - processor, images)

    return once


def compare(model: str, folder: Path, part_size: int, rounds: int) -> dict[str, Any]:
    """Images per second of both and their ratios."""
    reader = load_model(model, read_schema(GARMENTS_SCHEMA))
    shards = shards_of(folder, PARTS * part_size, reader.preprocessing.size)
    timed = {name: Timed() for name in ("extraction", "bare", "control")}
    images = (PARTS - 1) * part_size
    contenders = {
        "extraction": ours(model, shards, folder / "scores", part_size, timed["extraction"]),
        "bare": bare(reader, images, timed["bare"]),
        "control": bare(reader, images, timed["control"]),
    }
    interleaved(contenders, rounds)
    kept = {name: Timed(each.clock[1:], each.processor[1:], each.start[1:]) for name, each in timed.items()}
    speed = {name: [round(1 / seconds, 2) for seconds in each.processor] for name, each in kept.items()}
    return {
        "images": images,
        "part size": part_size,
        "batch": BATCH,
        "images per processor second": speed,
        "extraction of bare": ratio(kept["bare"].processor, kept["extraction"].processor),
        "control": ratio(kept["bare"].processor, kept["control"].processor),
        "by the clock: extraction of bare": ratio(kept["bare"].clock, kept["extraction"].clock),
        "by the clock: control": ratio(kept["bare"].clock, kept["control"].clock),
        "start, seconds": [round(seconds, 2) for seconds in kept["extraction"].start],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/extraction"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "extraction.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    schema = read_schema(GARMENTS_SCHEMA)
    large = save_model(new_model(B32, schema, ["a red top"], seed=0), args.work / "b32")
    results = {}
    for title, model, part_size in (("starter", "starter", 1024), ("ViT-B/32", str(large), 64)):
        results[title] = found = compare(model, args.work, part_size, args.rounds)
        print(title, found, flush=True)
    packages = ("torch", "transformers", "numpy", "pyarrow", "simplejpeg")
    write_result(args.out, {"environment": environment(packages), "results": results})


if __name__ == "__main__":
    main()
