"""A shop whose catalog is as strange as shops are: odd ids, blank cells, rules, and photos of several kinds."""

import csv

import numpy as np
from PIL import Image

from facetclip.catalog import read_catalog
from facetclip.images import encode_jpeg
from facetclip.indexing import SOURCES
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_shards

SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "sku", "product": "style", "image": "photo", "title": "name"},
        "attributes": {
            "category": {"column": "category", "values": ["top", "pants"]},
            "sleeve": {"column": "sleeve", "values": ["long", "no"], "applies_where": {"category": ["top"]}},
            "material": {"column": "material", "values": ["wool", "silk", "yes"], "separator": "|"},
        },
    }
)
STRANGE_IDS = [
    "AB.12",
    "AB.13",
    "AB",
    "rot/groß",
    "../../etc",
    "名前 1",
    "x" * 300,
    "a b\n",
    "=1+1",
    "%2E",
    "a.jpg",
    ".",
]
ROWS = 40


def photo(number, width=90, height=70):
    draw = np.random.default_rng(number)
    return Image.fromarray(draw.integers(0, 255, (7, 9, 3), dtype=np.uint8)).resize((width, height))


def write_photo(path, number):
    """Mostly JPEG, some large, some of other kinds."""
    if number % 7 == 3:
        photo(number).save(path, "PNG")
    elif number % 7 == 5:
        photo(number).save(path, "WEBP")
    else:
        path.write_bytes(encode_jpeg(photo(number, 300, 400) if number % 3 else photo(number)))


def make_shop(tmp_path):
    """A catalog of ROWS rows with strange ids, blank cells and rules, and its photos."""
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    with (tmp_path / "catalog.csv").open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["sku", "style", "photo", "name", "category", "sleeve", "material"])
        for number in range(ROWS):
            write_photo(root / "a" / f"{number}.jpg", number)
            sku = STRANGE_IDS[number] if number < len(STRANGE_IDS) else f"S-{number}"
            category = ["top", "pants", "Top", ""][number % 4]
            cells = [
                ["long", "no", "N/A", "odd"][number % 4 if number % 5 else 0],
                ["wool|yes", "silk", ""][number % 3],
            ]
            name = f"Größe {number}" if number % 6 else ""
            table.writerow([sku, f"P{number // 2}", f"a/{number}.jpg", name, category, *cells])
    return tmp_path


def spec(shop, out="shards", **more):
    return ShardSpec(**{"out": shop / out, "images": shop / "photos", "resize": 64, "samples_per_shard": 9, **more})


def build(shop, out="shards", *, schema=SCHEMA, **more):
    return build_shards(read_catalog(str(shop / "catalog.csv")), schema, spec(shop, out, **more))


def sharding(shop):
    """The words of a command that shards it by one attribute."""
    (shop / "schema.toml").write_text(
        """columns = {item = "sku", product = "style", image = "photo", title = "name"}
[attributes.category]
column = "category"
values = ["top", "pants"]
"""
    )
    command = ["shard", str(shop / "catalog.csv"), "--schema", str(shop / "schema.toml"), "--workers", "1"]
    return [*command, "--images", str(shop / "photos"), "--resize", "64", "--out", str(shop / "shards")]


def contents(folder):
    """Every file under a folder, by its relative path, but for the times of the photos that it was made from."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != SOURCES)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
