"""Resized shards to training batches: `python -m benchmarks.data.loading --photos DIR --peers DIR [--rounds 5]`.

The same 256 pixel JPEGs to normalised float batches of 224 pixels on the processor: ours against open_clip's loader and
transform, plain webdataset with Pillow, mosaicml-streaming on MDS, and `datasets` with transformers' image processor.
Each runs in a process of its own, an epoch at a time. First every peer is tried with several numbers of workers (ours:
of threads); then each goes with the number that took least processor time, and where it is another with the one that
was fastest on the clock, in turn. Memory is the largest sum of PSS over a process and its workers (pages that several
share count once), also of the DataLoaders with 8 workers. How many batches should be ready ahead is measured with a
consumer that pauses between them, in the mean as long as a batch takes, now longer and now shorter.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.child import Child, surroundings
from benchmarks.data.loaders import BATCH, SIZE, tree
from benchmarks.data.peers import ROOT, interpreter, versions
from benchmarks.data.sharding import catalog
from benchmarks.measuring import environment, interleaved, ratio, wall_seconds, write_result

from facetclip.batches import PixelReader, ahead
from facetclip.index import open_index

RESULT = ROOT / "benchmarks" / "results" / "loading.json"
SHARDS = 16
WORKERS = {"ours": (1, 2, 4)}  # threads; of the peers:
PEER_WORKERS = (0, 1, 2)
ENVIRONMENTS = {"open_clip": "clip", "webdataset": "clip", "streaming": "streaming", "datasets": "clip"}
DEPTHS = (1, 2, 4, 8)
CROWD = 8  # workers of the DataLoader that memory is held against
PEERS = ["open_clip_torch", "torchvision", "torch", "webdataset", "datasets", "transformers", "pillow"]
SHARDING = """
import sys
from pathlib import Path
from facetclip.catalog import read_catalog
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_shards

if __name__ == "__main__":
    columns = {"item": "item", "product": "product", "image": "image", "title": "title"}
    attributes = {"sleeve": {"column": "sleeve", "values": ["long", "short"]}}
    schema = Schema.model_validate({"columns": columns, "attributes": attributes})
    spec = ShardSpec(out=Path(sys.argv[2]), images=Path(sys.argv[3]), resize=256, samples_per_shard=int(sys.argv[4]))
    build_shards(read_catalog(sys.argv[1]), schema, spec)
"""


def prepare(folder: Path, photos: Path, rows: int, pythons: dict[str, Path]) -> None:
    """The shards, and their photos once more in the formats of two peers."""
    names = sorted(path.name for path in photos.glob("*.jpg"))
    table, shards = str(catalog(folder / "catalog.csv", names, "", rows)), str(folder / "shards")
    asked = [[sys.executable, "-c", SHARDING, table, shards, str(photos), str(-(-rows // SHARDS))]]
    asked += [
        [str(pythons[who]), "-m", "benchmarks.data.loaders", "prepare", str(folder), kind]
        for who, kind in (("streaming", "mds"), ("datasets", "arrow"))
    ]
    for command in asked:
        subprocess.run(
            command, check=True, env=surroundings(HF_DATASETS_DISABLE_PROGRESS_BARS="1"), stdout=subprocess.DEVNULL
        )


def tried(make: Callable[[str, int], Child], who: str) -> dict[int, dict[str, float]]:
    """Workers -> photos per second of processor time and of the clock, in the second epoch."""
    found = {}
    for workers in WORKERS.get(who, PEER_WORKERS):
        loader = make(who, workers)
        loader.ask()
        epoch = loader.ask()
        loader.close()
        found[workers] = {f"per_{what}_second": round(epoch["photos"] / epoch[what], 1) for what in ("cpu", "wall")}
    return found


def side_by_side(make: Callable[[str, int], Child], workers: dict[str, int], rounds: int) -> dict[str, Any]:
    """All in turn, and open_clip a second time as the control."""
    names = {who: who for who in workers} | {"open_clip again": "open_clip"}
    loaders = {name: make(who, workers[who]) for name, who in names.items()}
    wall: dict[str, list[float]] = {name: [] for name in names}

    def cpu_of(name: str) -> float:
        """Processor seconds for one photo; a peer may repeat some to fill its last batches."""
        found = loaders[name].ask()
        wall[name].append(found["wall"] / found["photos"])
        return found["cpu"] / found["photos"]

    cpu = interleaved({name: partial(cpu_of, name) for name in names}, rounds)
    for loader in loaders.values():
        loader.close()
    measured = {"processor": cpu, "clock": {name: each[1:] for name, each in wall.items()}}  # the first warms up
    return {"workers": workers} | {what: compared(taken) for what, taken in measured.items()}


def compared(taken: dict[str, list[float]]) -> dict[str, Any]:
    """What the seconds a photo say."""
    return {
        "photos_per_second": {name: round(1 / statistics.median(each), 1) for name, each in taken.items()},
        "ours_times_faster": {name: ratio(each, taken["ours"]) for name, each in taken.items() if name != "ours"},
        "control_open_clip_against_itself": ratio(taken["open_clip"], taken["open_clip again"]),
        "milliseconds_a_photo": {name: [round(1000 * t, 4) for t in each] for name, each in taken.items()},
    }


def depths(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds on the clock of an epoch by how many batches are prepared ahead, and of no pause or no batch alone."""
    torch.set_num_threads(1)
    index, random = open_index(folder / "shards"), np.random.default_rng(0)
    reader, order = PixelReader(index, SIZE, "crop", threads=threads), random.permutation(len(index))
    portions = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def batches() -> None:
        for rows in portions:
            reader.batch(rows)

    batches()
    alone = wall_seconds(batches)
    pauses = random.permutation(np.resize([0.2, 0.6, 1.0, 1.4, 1.8], len(portions))) * alone / len(portions)

    def consumed(depth: int) -> None:
        for pause, _ in zip(pauses, ahead(reader.batch, portions, depth), strict=True):
            time.sleep(pause)

    ways = {str(depth): partial(wall_seconds, partial(consumed, depth)) for depth in DEPTHS}
    taken = interleaved({"batches alone": partial(wall_seconds, batches)} | ways, rounds)
    seconds = {name: round(statistics.median(each), 3) for name, each in taken.items()}
    return {"threads": threads, "pauses_alone": round(float(pauses.sum()), 3), "seconds": seconds}


def pss(process: int) -> int:
    """Bytes of a process, of shared pages its share."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def peak_megabytes(loader: Child, epochs: int = 2) -> float:
    """The most that a loader and its workers hold while it goes through epochs."""
    most, done = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, sum(map(pss, tree(loader.pid))))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(epochs):
        loader.ask()
    done.set()
    thread.join()
    loader.close()
    return round(most / 1e6, 1)


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of .jpg files")
    parser.add_argument("--peers", type=Path, required=True, help="where the peers' environments are or shall be")
    parser.add_argument("--rows", type=int, default=2048, help="how many photos an epoch has, going round the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    pythons = {"ours": Path(sys.executable)}
    pythons |= {who: interpreter(args.peers, name) for who, name in ENVIRONMENTS.items()}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, args.photos, args.rows, pythons)

        def make(who: str, workers: int) -> Child:
            words = (who, str(folder), str(workers))
            return Child(pythons[who], "benchmarks.data.loaders", *words, quiet=True)

        trials = {who: tried(make, who) for who in pythons}
        best = {
            what: {who: max(found, key=lambda n: found[n][f"per_{what}_second"]) for who, found in trials.items()}
            for what in ("cpu", "wall")
        }
        result: dict[str, Any] = {
            "photos": args.rows,
            "rounds": args.rounds,
            "trials": trials,
            "least_processor_time": side_by_side(make, best["cpu"], args.rounds),
            "peak_megabytes": {
                "least_processor_time": {who: peak_megabytes(make(who, n)) for who, n in best["cpu"].items()},
                f"{CROWD}_workers": {who: peak_megabytes(make(who, CROWD)) for who in ENVIRONMENTS},
            },
        }
        result["batches_ahead"] = depths(folder, best["wall"]["ours"], args.rounds)
        if best["wall"] != best["cpu"]:
            result["fastest_on_the_clock"] = side_by_side(make, best["wall"], args.rounds)
    result["seconds"] = round(time.monotonic() - start)
    result["environment"] = environment(["pillow", "simplejpeg", "numpy", "torch"])
    result["peers"] = versions(pythons["open_clip"], PEERS) | versions(pythons["streaming"], ["mosaicml-streaming"])
    write_result(args.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
