"""A shop small enough for a test: a few coloured photos, an index over them, and a CLIP of two layers."""

import hashlib
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from facetclip.config import NewModel
from facetclip.fingerprints import SIDE, fingerprint
from facetclip.images import encode_jpeg, packed_image
from facetclip.index import ShardIndex, open_index, write_index
from facetclip.model import AttributeReader
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Schema
from facetclip.scratch import new_model
from facetclip.store import Shard


@contextmanager
def killed_before(module: ModuleType, name: str) -> Iterator[None]:
    """A kill inside, where `module` would write the file of that name."""
    written = module.write_whole

    def killed(path: Path, content: bytes) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        written(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


SCHEMA_TOML = """
[columns]
item = "id"
product = "product"
image = "image"
[attributes.category]
column = "category"
values = ["shirt", "pants"]
[attributes.sleeve]
column = "sleeve"
values = ["long", "short", "none"]
applies_where = { category = ["shirt"] }
[attributes.colour]
column = "colour"
values = ["red", "green", "blue"]
separator = "|"
"""
SCHEMA = Schema.model_validate(tomllib.loads(SCHEMA_TOML))
SHAPE = NewModel(
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    text_width=32,
    text_layers=2,
    text_heads=2,
    embedding=16,
    vocabulary=600,
)


def make_reader(seed: int = 0, schema: Schema = SCHEMA) -> AttributeReader:
    return new_model(SHAPE, schema, ["red shirt", "long sleeve", "blue pants"], seed=seed).eval()


def photo(number: int) -> bytes:
    """A JPEG that no other number gives, not square."""
    draw = np.random.default_rng(number)
    pixels = np.repeat(np.repeat(draw.integers(0, 255, (5, 4, 3), dtype=np.uint8), 10, axis=0), 10, axis=1)
    return encode_jpeg(Image.fromarray(pixels))


def make_labels(items: int) -> dict[str, np.ndarray]:
    """Skewed, with gaps: pants have no sleeves, some categories are unknown, some colours are double."""
    place = np.arange(items)
    category = np.where(place % 5 == 4, UNLABELLED, (place % 3 == 2).astype(np.int16))
    sleeve = np.where(category == 1, NOT_APPLICABLE, np.where(place % 4 == 3, UNLABELLED, place % 2))
    colour = np.where(place % 7 == 6, UNLABELLED, np.where(place % 6 == 5, 0b110, 1 << (place % 3)))
    return {"category": category.astype(np.int16), "sleeve": sleeve.astype(np.int16), "colour": colour.astype(np.int64)}


def make_shards(
    folder: Path,
    items: int = 22,
    *,
    labels: Mapping[str, np.ndarray] | None = None,
    validation: bool = False,
    shards: int = 1,
) -> ShardIndex:
    """An index over files of photos laid end to end (readers only look where it points); `labels` replace some.

    Items go to training and test by turns; with `validation` every second one of the test's to that.
    """
    photos = [photo(number) for number in range(items)]
    looks = np.array([fingerprint(packed_image(image, None, SIDE)[1]) for image in photos], dtype=np.uint64)
    lengths = np.array([len(image) for image in photos])
    folder.mkdir(parents=True, exist_ok=True)
    shard = np.arange(items) * shards // items
    files = [b"".join(photos[place] for place in np.flatnonzero(shard == number)) for number in range(shards)]
    names = [f"shard-{number:06d}.tar" for number in range(shards)]
    for name, content in zip(names, files, strict=True):
        (folder / name).write_bytes(content)
    starts = np.cumsum([0, *(len(content) for content in files)])[shard]
    product = np.arange(items) // 2
    columns = {
        "place": np.arange(items),
        "item": pa.array([f"item {number}" for number in range(items)]),
        "product_id": pa.array([f"P{number}" for number in product]),
        "product": product,
        "split": np.array([0, 2, 0, 1 if validation else 2])[np.arange(items) % 4],
        **{f"label:{name}": column for name, column in (make_labels(items) | dict(labels or {})).items()},
        "shard": shard,
        "offset": np.cumsum(lengths) - lengths - starts,
        "length": lengths,
        "checksum": np.array([zlib.crc32(image) for image in photos]),
        "phash": looks[:, 0],
        "tint": looks[:, 1],
    }
    facts = [
        Shard(name, int((shard == number).sum()), len(content), hashlib.sha256(content).hexdigest())
        for number, (name, content) in enumerate(zip(names, files, strict=True))
    ]
    write_index(folder, pa.table(columns), SCHEMA, facts, {})
    return open_index(folder)
