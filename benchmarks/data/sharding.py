"""A catalog to resized shards: `python -m benchmarks.data.sharding --photos DIR --peers DIR [--rounds 5]`.

From disk against the script that one writes with Pillow and `webdataset.ShardWriter`; from an HTTP server on loopback
against img2dataset. Both give WebDataset tars of JPEGs of the same quality with 256 pixels on the shorter edge, by one
process (and 16 threads for the network). What counts is processor time of the whole command, less that of the same
command on a few rows: start-up is not counted for anybody. Without --peers, from disk alone.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data.peers import ROOT, interpreter, versions
from benchmarks.measuring import environment, interleaved, ratio, write_result

RESULT = ROOT / "benchmarks" / "results" / "sharding.json"
ROWS, FEW = 496, 16  # enough for what differs from start to start to be little beside it
THREADS = 16
SCRIPT = """
import csv
import io
import sys
from pathlib import Path
import webdataset
from PIL import Image

if __name__ == "__main__":
    with open(sys.argv[1], newline="", encoding="utf-8") as table, webdataset.ShardWriter(
        f"{sys.argv[2]}-%06d.tar", maxcount=64, verbose=0
    ) as writer:
        for row in csv.DictReader(table):
            image = Image.open(Path(sys.argv[4], row["image"])).convert("RGB")
            scale = 256 / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=92, subsampling=0)
            labels = {name: row[name] for name in ("item", "product", "sleeve")}
            writer.write({"__key__": row["item"], "jpg": jpeg.getvalue(), "json": labels, "txt": row["title"]})
"""
PEER = """
import sys
from img2dataset import download

if __name__ == "__main__":
    download(
        url_list=sys.argv[1], output_folder=sys.argv[2], processes_count=1, thread_count=int(sys.argv[3]),
        input_format="csv", url_col="image", caption_col="title", save_additional_columns=["item", "product", "sleeve"],
        output_format="webdataset", image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True,
        encode_quality=92, number_sample_per_shard=10_000, disallowed_header_directives=[],
    )
"""
OURS = """
import sys
from pathlib import Path
from urllib.parse import urlsplit
from facetclip.catalog import read_catalog
from facetclip.downloads import FetchSpec
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_shards

if __name__ == "__main__":
    catalog = read_catalog(sys.argv[1])
    schema = Schema.model_validate(
        {
            "columns": {"item": "item", "product": "product", "image": "image", "title": "title"},
            "attributes": {"sleeve": {"column": "sleeve", "values": ["long", "short"]}},
        }
    )
    first, threads = urlsplit(catalog.column("image")[0]), int(sys.argv[3])
    if first.scheme:
        allowed = frozenset({(first.hostname, first.port)})
        where = {"fetch": FetchSpec(allowed=allowed, per_host=threads, threads=threads, spacing=0.0)}
    else:
        where = {"images": Path(sys.argv[4])}
    build_shards(catalog, schema, ShardSpec(out=Path(sys.argv[2]), resize=256, **where))
"""


def catalog(path: Path, names: list[str], where: str, rows: int) -> Path:
    """A catalog of so many rows that goes round the photos under `where`, each row with an address of its own."""
    with path.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["item", "product", "image", "title", "sleeve"])
        for row in range(rows):
            image = f"{where}{names[row % len(names)]}" + (f"?row={row}" if where else "")
            facts = [f"item-{row}", f"product-{row // 4}", image, f"A shirt, number {row}"]
            table.writerow([*facts, ("long", "short", "")[row % 3]])
    return path


def cpu_of(command: list[str]) -> float:
    """Processor seconds of a command and all that it waited for."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_ALBUMENTATIONS_UPDATE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:2]} ended with status {status}")
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Contest:
    """One peer against ours on two catalogs, the second of a few rows."""

    many: Path
    few: Path
    photos: Path
    scratch: Path

    def contender(self, python: Path, script: str) -> Callable[[], float]:
        """What runs a script on both, and gives the difference in processor seconds."""
        path, out = self.scratch / f"script{abs(hash(script))}.py", self.scratch / "out"
        path.write_text(script)

        def seconds(rows: Path) -> float:
            shutil.rmtree(self.scratch / "out", ignore_errors=True)
            return cpu_of([str(python), str(path), str(rows), str(out), str(THREADS), str(self.photos)])

        return lambda: seconds(self.many) - seconds(self.few)

    def result(self, name: str, python: Path, script: str, rounds: int) -> dict[str, Any]:
        """In turn: the peer, ours, the peer again."""
        peer, ours = self.contender(python, script), self.contender(Path(sys.executable), OURS)
        taken = interleaved({name: peer, "ours": ours, f"{name} again": peer}, rounds)
        return {
            "images_per_cpu_second": {who: round((ROWS - FEW) / statistics.median(t), 1) for who, t in taken.items()},
            "ours_times_faster": ratio(taken[name], taken["ours"]),
            "control_peer_against_itself": ratio(taken[name], taken[f"{name} again"]),
            "cpu_seconds": {who: [round(seconds, 3) for seconds in t] for who, t in taken.items()},
        }


@contextmanager
def served(photos: Path) -> Iterator[str]:
    """The address under which a server on loopback has the photos."""
    command = [sys.executable, "-m", "benchmarks.data.photo_server", str(photos)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stdout
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/"
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of .jpg files")
    parser.add_argument("--peers", type=Path, help="where the peers' environments are or shall be")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    names = sorted(path.name for path in args.photos.glob("*.jpg"))
    result: dict[str, Any] = {"rows": ROWS - FEW, "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as folder, served(args.photos) as address:
        for way, where in {"disk": "", "http": address}.items():
            scratch = Path(folder) / way
            scratch.mkdir()
            many, few = (catalog(scratch / f"{rows}.csv", names, where, rows) for rows in (ROWS, FEW))
            contest = Contest(many, few, args.photos, scratch)
            if way == "disk":
                result["from_disk"] = contest.result("script", Path(sys.executable), SCRIPT, args.rounds)
            elif args.peers:
                peer = interpreter(args.peers, "img2dataset")
                result["from_http"] = contest.result("img2dataset", peer, PEER, args.rounds)
                result["peers"] = versions(peer, ["img2dataset", "opencv-python-headless", "webdataset"])
    result["environment"] = environment(["pillow", "simplejpeg", "webdataset", "numpy", "pyarrow"])
    write_result(args.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
