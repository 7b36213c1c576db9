"""`facetclip inspect`: what a shard folder holds, whether it is still what was written, and how its values look.

The reader of a shard goes by the index and would not see what lies between the photos; the check here goes through
every byte: a tar that differs from its checksum is walked header by header until the first sample not as indexed.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facetclip.images import BadImage
from facetclip.index import ShardIndex, key_of
from facetclip.metrics import listed_values
from facetclip.pictures import contact_sheet
from facetclip.schema import NOT_APPLICABLE
from facetclip.splits import SPLITS
from facetclip.tables import text_table
from facetclip.tars import intact

EACH = 14  # photos of a value on its contact sheet


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard; `offset` and `key` of the first sample concerned, None where it is all of it."""

    shard: str
    message: str
    offset: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = "" if self.offset is None else f", offset {self.offset:,}, key {self.key}"
        return f"{self.shard}{place}: {self.message}"


def describe(index: ShardIndex) -> str:
    """Counts and sizes, for a person."""
    rows = {name: len(index.rows(name)) for name in SPLITS}
    products = {name: len(np.unique(index.products[index.rows(name)])) for name in SPLITS}
    sizes = np.quantile(index.length, [0.5, 0.99]) / 1000 if len(index) else (0.0, 0.0)
    total = sum(shard.bytes for shard in index.shards)
    lines = [
        f"{index.store}: {len(index):,} items of {len(np.unique(index.products)):,} products in {len(index.shards):,} "
        f"shards, {total / 1e6:,.1f} MB; a photo has {sizes[0]:,.1f} kB, the largest hundredth over {sizes[1]:,.1f} kB",
        *(
            [f"{index.superseded:,} samples in the tars count no longer: updates replaced them"]
            * (index.superseded > 0)
        ),
        "",
        text_table(
            ["split", "items", "products"], [[name, f"{rows[name]:,}", f"{products[name]:,}"] for name in SPLITS]
        ),
    ]
    for name in index.schema.names:
        lines += ["", _attribute_table(index, name)]
    return "\n".join(lines)


def _attribute_table(index: ShardIndex, name: str) -> str:
    """How many items of each split list each value, the most frequent first, and how many say nothing."""
    attribute, labels = index.schema.attributes[name], index.labels[name]
    listed = listed_values(attribute, labels)
    of_split = [index.splits == place for place in range(len(SPLITS))]
    order = np.argsort(-listed.sum(axis=0), kind="stable")
    rows = [[attribute.values[value], *_counts(listed[:, value], of_split)] for value in order.tolist()]
    rows.append(["(unlabelled)", *_counts((labels < 0) & (labels != NOT_APPLICABLE), of_split)])
    if (labels == NOT_APPLICABLE).any():
        rows.append(["(not applicable)", *_counts(labels == NOT_APPLICABLE, of_split)])
    return text_table([name, "all", *SPLITS], rows)


def _counts(which: np.ndarray, of_split: list[np.ndarray]) -> list[str]:
    return [f"{count:,}" for count in (which.sum(), *((which & split).sum() for split in of_split))]


def verify(index: ShardIndex) -> Iterator[Damage]:
    """Everything in which the shards are not what the index was written over; reads every byte."""
    for number, shard in enumerate(index.shards):
        if not intact(index.folder, shard):
            rows = np.flatnonzero(index.shard == number)
            yield from _walk(index, index.folder / shard.name, rows[np.argsort(index.offset[rows])])


def _walk(index: ShardIndex, path: Path, rows: np.ndarray) -> Iterator[Damage]:
    """The first sample of a changed shard that is not as indexed, or what else about it is not."""
    try:
        content = path.read_bytes()
    except OSError as error:
        yield Damage(path.name, f"cannot be read ({error.strerror})")
        return
    for row in rows.tolist():
        offset, length = int(index.offset[row]), int(index.length[row])
        key = key_of(index.item_id(row))
        if problem := _sample(content, offset, length, int(index.checksum[row]), key):
            yield Damage(path.name, problem, offset, key)
            return
    yield Damage(path.name, "every photo is as indexed, but what lies between or after them is not what was written")


def _sample(content: bytes, offset: int, length: int, checksum: int, key: str) -> str | None:
    if offset + length > len(content):
        return f"the shard ends after {len(content):,} bytes, within or before this photo"
    try:
        header = tarfile.TarInfo.frombuf(content[offset - tarfile.BLOCKSIZE : offset], "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        return f"its header is damaged ({error})"
    if header.name.rpartition(".")[0] != key or not header.isreg() or header.size != length:
        return f"its header names {header.name!r}, {header.size:,} bytes; indexed are {length:,} bytes of {key}"
    if zlib.crc32(content[offset : offset + length]) != checksum:
        return "the photo is not the one that was indexed"
    return None


def draw_sheets(index: ShardIndex, out: Path, *, each: int = EACH, seed: int = 0) -> list[Path]:
    """A contact sheet for each attribute in the folder `out`: a row of `each` photos drawn at random for every value.

    One glance along a row shows what does not belong there.
    """
    drawn = []
    for name, attribute in index.schema.attributes.items():
        listed = listed_values(attribute, index.labels[name])
        order = np.argsort(-listed.sum(axis=0), kind="stable")
        random = np.random.default_rng(seed)
        rows = {}
        for value in order.tolist():
            among = np.flatnonzero(listed[:, value])
            chosen = random.permutation(among)[:each].tolist()
            rows[f"{attribute.values[value]} ({len(among):,})"] = [
                (index.item_id(row), photo) for row in chosen if (photo := _photo(index, row))
            ]
        drawn.append(contact_sheet(out, name, rows))
    return drawn


def _photo(index: ShardIndex, row: int) -> bytes | None:
    try:
        return index.read(row)
    except BadImage:
        return None
