"""What is to be read: a shard folder, or a catalog with its own images."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from facetclip.catalog import Catalog, read_catalog
from facetclip.errors import UserError
from facetclip.index import SPLITS, canonical, open_index
from facetclip.labels import encode_labels
from facetclip.references import image_of, load, not_embedded, require_way
from facetclip.schema import Schema, read_schema
from facetclip.scores import Photos
from facetclip.tars import source_of


@dataclass(frozen=True)
class FromShards:
    """Read shards, in a folder or at a URL: all of it, or one split."""

    shards: Path | str
    split: str = "all"


@dataclass(frozen=True)
class FromCatalog:
    """Read a catalog's own images under the folder `images` (None: they are embedded in it).

    `dataset_split`: which, where the catalog is a dataset of several. More than the share `max_bad` of images that
    cannot be read is a UserError.
    """

    catalog: str
    schema: Path
    images: Path | None = None
    max_bad: float = 0.01
    dataset_split: str | None = None


@dataclass(frozen=True)
class Items:
    """What is to be read, one entry a row of the source; `rows` are those that are asked for. Made by `open_items`."""

    source: str
    digest: str
    split: str
    schema: Schema
    rows: np.ndarray
    photos: Photos
    products: pa.Array | pa.ChunkedArray
    labels: Mapping[str, np.ndarray]
    catalog: Catalog | None = None
    max_bad: float = 0.0

    def photographs(self, rows: np.ndarray) -> str | None:
        """A digest of the files that the photos of `rows` are in now, by name, size and time (see `tars.source_of`);
        None where `digest` says it all."""
        if not isinstance(self.photos, CatalogPhotos):
            return None
        return hashlib.sha256(repr([self.photos.file(row) for row in rows.tolist()]).encode()).hexdigest()


def open_items(source: FromShards | FromCatalog) -> Items:
    """The items of a source; UserError when it is absent, unfinished, or its rows cannot be told apart."""
    return _from_shards(source) if isinstance(source, FromShards) else _from_catalog(source)


def _from_shards(source: FromShards) -> Items:
    index = open_index(source.shards)
    if source.split != "all" and source.split not in SPLITS:
        raise UserError(f"split {source.split!r}: expected all, {', '.join(SPLITS)}")
    rows = np.arange(len(index)) if source.split == "all" else index.rows(source.split)
    if not len(rows):
        raise UserError(f"{index.store}: the {source.split} split is empty; there is nothing to read")
    return Items(
        source=str(index.store),
        digest=index.digest,
        split=source.split,
        schema=index.schema,
        rows=rows,
        photos=index,
        products=index.product_ids,
        labels=index.labels,
    )


def _from_catalog(source: FromCatalog) -> Items:
    schema = read_schema(source.schema)
    catalog = read_catalog(source.catalog, split=source.dataset_split)
    catalog.require_columns(schema)
    if source.images is not None and not source.images.is_dir():
        raise UserError(f"{source.images}: expected the folder of the images (--images), found no folder")
    ids, products, images = (
        catalog.table.column(name) for name in (schema.columns.item, schema.columns.product, schema.columns.image)
    )
    if source.images is None:
        require_way(catalog, schema.columns.image, fetches=False)
    catalog.require_ids(schema.columns.item)
    labels = encode_labels(catalog, schema)
    total = hashlib.sha256(schema.to_json().encode())
    for column in (ids, products, *(images.flatten() if pa.types.is_struct(images.type) else [images])):
        for part in canonical(column):
            total.update(part)
    for name in schema.names:
        total.update(labels[name].tobytes())
    return Items(
        source=source.catalog,
        digest=total.hexdigest(),
        split="all",
        schema=schema,
        rows=np.arange(len(ids)),
        photos=CatalogPhotos(ids, images, source.images),
        products=products,
        labels=labels,
        catalog=catalog,
        max_bad=source.max_bad,
    )


class CatalogPhotos:
    """The images of a catalog, embedded or as paths under `root`, by row."""

    def __init__(self, ids: pa.ChunkedArray, images: pa.ChunkedArray, root: Path | None) -> None:
        self._ids, self._images, self._root = ids, images, root

    def _cell(self, row: int) -> bytes | str | None:
        return image_of(self._images[row].as_py())

    def file(self, row: int) -> int | None:
        """A number for the file that one image is in, which changes when that is touched; None: embedded, or gone."""
        cell = self._cell(row)
        return None if isinstance(cell, bytes) else source_of(self._root, cell)

    def read(self, row: int) -> bytes:
        """The bytes of one image; BadImage when there are none."""
        cell = self._cell(row)
        if isinstance(cell, bytes):
            return cell
        if self._root is None:
            raise not_embedded(cell)
        return load(self._root, cell)

    def item_id(self, row: int) -> str:
        """The catalog's id of one row."""
        return self._ids[row].as_py()
