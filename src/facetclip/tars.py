"""One shard: a plain POSIX tar of samples, and beside it, until the index is written, a part that says what it holds.

The tar's bytes are a pure function of the rows: fixed times, owners and modes, nothing left to defaults.
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facetclip import faults
from facetclip.addresses import is_url
from facetclip.downloads import judged
from facetclip.files import writing
from facetclip.fingerprints import SIDE, fingerprint
from facetclip.images import BadImage, packed_image, suffix
from facetclip.index import Shard, ShardIndex, key_of, write_parquet
from facetclip.references import load, not_embedded
from facetclip.schema import NOT_APPLICABLE, Schema

PART_COLUMNS = pa.schema(
    [
        ("place", pa.int64()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("checksum", pa.uint32()),
        ("phash", pa.uint64()),
        ("tint", pa.uint64()),
        ("source", pa.uint64()),
    ]
)


@dataclass(frozen=True)
class Slice:
    """The catalog rows of one shard, and what is needed to pack them in any process."""

    tar: Path
    part: Path
    digest: str  # of the whole build: a part of another build is never taken for one's own
    schema: Schema
    images_root: Path | None
    downloads: Path | None  # where images named by URL were fetched to; None refuses URLs
    resize: int | None
    places: Sequence[int]  # of the rows in the catalog
    items: Sequence[str]
    products: Sequence[str]
    titles: Sequence[str | None] | None
    images: Sequence[str | bytes | None]
    labels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """What was packed: the tar (None when every row is bad), its rows; and those left out as (place, code, message)."""

    shard: Shard | None
    rows: pa.Table
    bad: tuple[tuple[int, str, str], ...]


class _Tar:
    """A POSIX ustar stream; `add` tells where the body begins."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self.bytes = 0

    def _write(self, content: bytes) -> None:
        self._out.write(content)
        self._hash.update(content)
        self.bytes += len(content)

    def add(self, name: str, body: bytes) -> int:
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.mtime = len(body), 0o644, 0
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.bytes
        self._write(body)
        self._write(bytes(-len(body) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> str:
        """Write the end-of-archive record; the sha256 of all that was written."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.bytes % tarfile.RECORDSIZE))
        return self._hash.hexdigest()


def pack(rows: Slice) -> int:
    """Write the tar of one slice, then its part; the number of rows left out. With no good image there is no tar."""
    found: list[tuple[int, ...]] = []
    bad: list[tuple[int, str, str]] = []
    with writing(rows.tar) as out:
        tar = _Tar(out)
        for number, place in enumerate(rows.places):
            source = source_of(rows.images_root, rows.images[number])  # before it is read: a later touch will show
            try:
                image, pixels = read_image(rows, number)
            except BadImage as error:
                bad.append((place, error.code, error.message))
                continue
            offset = _add_sample(tar, rows, number, image)
            found.append((place, offset, len(image), zlib.crc32(image), *fingerprint(pixels), source or 0))
        sha256 = tar.close()
    if not found:
        rows.tar.unlink()
    faults.reach("shards.after_tar")
    shard = Shard(rows.tar.name, len(found), tar.bytes, sha256)
    _write_part(rows, Part(shard if found else None, _part_table(found), tuple(bad)))
    faults.reach("shards.after_part")
    return len(bad)


def read_image(rows: Slice, number: int) -> tuple[bytes, np.ndarray]:
    """The image of one row as it goes into the tar, and uint8 [SIDE, SIDE, 3] of it; BadImage where it is none."""
    image = rows.images[number]
    if rows.downloads is not None and is_url(image):
        return judged(rows.downloads, image, lambda content: packed_image(content, rows.resize, SIDE))
    if not isinstance(image, bytes):
        if rows.images_root is None:
            raise not_embedded(image)
        image = load(rows.images_root, image)
    return packed_image(image, rows.resize, SIDE)


def _add_sample(tar: _Tar, rows: Slice, number: int, image: bytes) -> int:
    key = key_of(rows.items[number])
    offset = tar.add(f"{key}.{suffix(image)}", image)
    tar.add(f"{key}.json", json.dumps(_facts(rows, number), ensure_ascii=False, sort_keys=True).encode())
    if rows.titles is not None:
        tar.add(f"{key}.txt", (rows.titles[number] or "").encode())
    return offset


def _facts(rows: Slice, number: int) -> dict[str, Any]:
    """The JSON of a sample: labels as the schema's words; unlabelled attributes are left out."""
    labels: dict[str, str | list[str]] = {}
    for name, attribute in rows.schema.attributes.items():
        label = int(rows.labels[name][number])
        if label >= 0 and attribute.multi_valued:
            labels[name] = [value for place, value in enumerate(attribute.values) if label >> place & 1]
        elif label >= 0:
            labels[name] = attribute.values[label]
    return {
        "item": rows.items[number],
        "product": rows.products[number],
        "labels": labels,
        "not_applicable": [name for name in rows.schema.names if rows.labels[name][number] == NOT_APPLICABLE],
    }


def _part_table(found: Sequence[tuple[int, ...]]) -> pa.Table:
    columns = list(zip(*found, strict=True)) or [()] * len(PART_COLUMNS)
    return pa.table(
        [pa.array(column, kind.type) for column, kind in zip(columns, PART_COLUMNS, strict=True)], PART_COLUMNS
    )


def _write_part(rows: Slice, part: Part) -> None:
    shard = None if part.shard is None else vars(part.shard)
    facts = {"digest": rows.digest, "shard": json.dumps(shard), "bad": json.dumps(part.bad)}
    write_parquet(rows.part, part.rows.replace_schema_metadata(facts))


def read_part(path: Path, digest: str) -> Part | None:
    """The part written for this build, or None when it is absent, damaged or of another build."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if facts["digest"] != digest:
            return None
        shard = json.loads(facts["shard"])
        bad = tuple((place, code, message) for place, code, message in json.loads(facts["bad"]))
        return Part(shard and Shard(**shard), table.replace_schema_metadata(None), bad)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def intact(path: Path, shard: Shard) -> bool:
    """Whether the tar is byte for byte what was packed; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256


def damaged(index: ShardIndex) -> list[int]:
    """Which shards of a folder are missing, cannot be read, or are not what was packed."""

    def whole(shard: Shard) -> bool:
        try:
            return intact(index.folder / shard.name, shard)
        except OSError:  # it is gone, or the disk fails
            return False

    return [number for number, shard in enumerate(index.shards) if not whole(shard)]


Packed = Mapping[int, tuple[int, int]]  # place -> checksum of the image that was packed for it, and its source


def packed(places: np.ndarray, checksum: np.ndarray, source: np.ndarray) -> Packed:
    """What was packed for each of these places."""
    return dict(zip(places.tolist(), zip(checksum.tolist(), source.tolist(), strict=True), strict=True))


def first_changed(rows: Slice, kept: Packed) -> int | None:
    """The first place whose image is another one now than what was packed, or was left out and is good now.

    An image whose source was not touched is taken as unchanged; one that is gone is in the shard still.
    """
    for number, place in enumerate(rows.places):
        checksum, source = kept.get(place, (None, None))
        if checksum is not None and source_of(rows.images_root, rows.images[number]) in (None, source):
            continue
        if checksum_now(rows, number) != checksum:
            return place
    return None


def checksum_now(rows: Slice, number: int) -> int | None:
    """crc32 of the image of one row as it would be packed now; None where it cannot be used."""
    try:
        return zlib.crc32(read_image(rows, number)[0])
    except BadImage:
        return None


def source_of(root: Path | None, image: str | bytes | None) -> int | None:
    """A number for what an image is packed from: bytes, a URL, or a file with its size and time; None where it is gone.

    The same number as before means that nothing touched it (as `git` and `rsync` tell); another one, that it is to be
    looked at. A URL stands for its content.
    """
    if isinstance(image, str) and not is_url(image):
        if not image:
            return None
        try:
            found = os.stat(os.path.join(root or "", image))  # noqa: PTH116, PTH118 - once an image
        except (OSError, ValueError):
            return None
        image = f"{image}\0{found.st_size}\0{found.st_mtime_ns}"
    if image is None:
        return None
    content = image if isinstance(image, bytes) else image.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
