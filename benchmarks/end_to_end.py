"""From shards to updated weights: `python -m benchmarks.end_to_end [--peers FOLDER] [--out FILE]`.

How long facetclip's loop waits for photos: the same training from 256-pixel shards of rendered garments and from photos
that lie on the device, in turn, each in a process of its own; the stall is 1 - t(device) / t(shards), at the default
loader setting, with and without what is kept in memory from the first epoch on. The starter, and with `--peers` random
weights in the shape of ViT-B/32 against transformers' `run_clip.py`, which reads the files that the shards are made of.

Seconds of the clock say how long it waits, if the machine is not shared; processor seconds what reading costs.
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.data.peers import interpreter
from benchmarks.measuring import environment, ratio, write_result
from benchmarks.step import Place
from benchmarks.stepping.spec import Spec

CLOCKS = ("wall", "processor")


def compare(place: Place, specs: dict[str, Spec], rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a step by contender and clock, in turn, after a turn to warm up; the first one twice, as a control."""
    workers = {name: place.worker(spec) for name, spec in specs.items()}
    first = next(iter(workers))
    taken = {name: {clock: [] for clock in CLOCKS} for name in (*workers, "control")}
    for turn in range(rounds + 1):
        order = [*workers, "control"] if turn % 2 else ["control", *reversed(workers)]
        for name in order:
            told = workers[first if name == "control" else name].ask(f"steps {steps}")
            for clock in CLOCKS if turn else ():
                taken[name][clock].append(told[clock])
    for worker in workers.values():
        worker.close()
    return taken


def stall(place: Place, base: Spec, shards: Path, rounds: int, steps: int) -> dict[str, Any]:
    """How much of a training from shards is waiting."""
    taken = compare(place, {"from shards": replace(base, shards=str(shards)), "on the device": base}, rounds, steps)
    found: dict[str, Any] = {"batch": base.batch, "threads": base.threads, "load": os.getloadavg()[0]}
    for clock in CLOCKS:
        read, resident = taken["from shards"][clock], taken["on the device"][clock]
        each = [1 - device / shard for shard, device in zip(read, resident, strict=True)]
        found[clock] = {
            "stall": round(statistics.median(each), 3),
            "least and most": [round(min(each), 3), round(max(each), 3)],
            "images/s from shards": round(base.batch / statistics.median(read), 1),
            "control / itself": ratio(taken["control"][clock], read),
        }
    return found


def against_example(place: Place, base: Spec, shards: Path, photos: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Ours and the transformers example, the same photos in; and ours with adapters, which is less work, but reads as
    well (`results/quality_garments.json`)."""
    specs = {
        "ours": replace(base, shards=str(shards)),
        "ours, text locked": replace(base, shards=str(shards), locked=True),
        "ours, lora": replace(base, shards=str(shards), settings={"tuning.mode": "lora"}),
        "transformers": replace(base, who="transformers", settings={}, photos=str(photos)),
    }
    taken = compare(place, specs, rounds, steps)
    ours = [name for name in specs if name != "transformers"]
    found: dict[str, Any] = {"batch": base.batch, "threads": base.threads}
    for clock in CLOCKS:
        seconds = {name: each[clock] for name, each in taken.items()}
        found[clock] = {
            "seconds": {name: [round(one, 2) for one in each] for name, each in seconds.items()},
            "times faster": {
                name: ratio(seconds["transformers"], each) for name, each in seconds.items() if name in ours
            },
            "control / itself": ratio(seconds["control"], seconds["ours"]),
        }
    return found


def catalog_of(folder: Path, items: int) -> tuple[Path, Path]:
    """Shards of 256 pixels, and the photos that they were made of, 1000 pixels as a shop's are."""
    from benchmarks.quality.catalogs import GARMENTS_SCHEMA

    from facetclip.catalog import read_catalog
    from facetclip.render import RenderSpec, render_catalog
    from facetclip.schema import read_schema
    from facetclip.shards import ShardSpec, build_shards
    from facetclip.splits import Shares

    catalog = render_catalog(RenderSpec("garments", items, size=1000), folder / "catalog", workers=2)
    spec = ShardSpec(folder / "shards", images=catalog.parent, resize=256, shares=Shares(0.96, 0.02, 0.02))
    build_shards(read_catalog(str(catalog)), read_schema(GARMENTS_SCHEMA), spec)
    return spec.out, catalog.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="of a turn, with the starter")
    parser.add_argument("--threads", type=int, default=1, help="of torch's; the loader has its own")
    parser.add_argument("--shape", default="ViT-B-32", help="against the example")
    parser.add_argument("--batch", type=int, default=32, help="against the example")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "end_to_end.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(("torch", "transformers", "numpy", "simplejpeg"))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards, photos = catalog_of(folder, args.items)
        python = str(interpreter(args.peers, "clip")) if args.peers else None
        place = Place(folder, python, "processor")
        starter = Spec(batch=64, start="starter", threads=args.threads)
        for title, without in (("first epoch", ("photos kept",)), ("later epochs, photos kept in memory", ())):
            found = stall(place, replace(starter, without=without), shards, args.rounds, args.steps)
            result[f"starter, {title}"] = found
            print(f"starter, {title}:", found, flush=True)
        if args.peers:
            base = Spec(shape=args.shape, batch=args.batch, threads=args.threads, without=("photos kept",))
            found = against_example(place, base, shards, photos, max(1, args.rounds // 2), 1)
            result[f"{args.shape}, against transformers"] = found
            for clock in CLOCKS:
                told = found[clock]["times faster"]
                print(f"{args.shape}: times faster than transformers' example, {clock}:", told, flush=True)
    write_result(args.out, result)


if __name__ == "__main__":
    main()
