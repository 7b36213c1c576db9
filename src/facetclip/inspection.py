"""`facetclip inspect`: what a shard folder holds, whether it is still what was written, and how its values look.

The reader of a shard goes by the index and would not see what lies between the photos; the check here goes through
every byte: a tar that differs from its checksum is walked header by header until the first sample not as indexed.
"""

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facetclip.errors import UserError
from facetclip.index import INDEX_NAME, ShardIndex, index_problem, key_of, read_metadata
from facetclip.metrics import listed_values
from facetclip.pictures import contact_sheet
from facetclip.schema import NOT_APPLICABLE, Attribute
from facetclip.splits import SPLITS
from facetclip.tables import counted, text_table
from facetclip.tars import intact

EACH = 14  # photos of a value on its contact sheet
ROWS = 40  # values on a sheet: as many as a picture can show


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard or the index; `offset` and `key` of the first sample concerned, where it is one."""

    shard: str
    message: str
    offset: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = "" if self.offset is None else f", offset {self.offset:,}, key {self.key}"
        return f"{self.shard}{place}: {self.message}"


def describe(index: ShardIndex) -> str:
    """Counts and sizes, for a person."""
    rows = dict(zip(SPLITS, _per_split(index.splits).tolist(), strict=True))
    products = {name: _distinct(index.products[index.splits == place]) for place, name in enumerate(SPLITS)}
    sizes = np.quantile(index.length, [0.5, 0.99]) / 1000 if len(index) else (0.0, 0.0)
    lapsed = counted("sample in the tars counts", index.superseded, "samples in the tars count")
    total = sum(shard.bytes for shard in index.shards)
    lines = [
        f"{index.store}: {counted('item', len(index))} of {counted('product', _distinct(index.products))} in "
        f"{counted('shard', len(index.shards))}, {total / 1e6:,.1f} MB; a photo has {sizes[0]:,.1f} kB, the largest "
        f"hundredth over {sizes[1]:,.1f} kB",
        *([f"{lapsed} no longer: replaced by updates"] * (index.superseded > 0)),
        "",
        text_table(
            ["split", "items", "products"], [[name, f"{rows[name]:,}", f"{products[name]:,}"] for name in SPLITS]
        ),
    ]
    lines += _shared(index)
    for name in index.schema.names:
        lines += ["", _attribute_table(index, name)]
    return "\n".join(lines)


def _distinct(numbers: np.ndarray) -> int:
    """How many different ones there are among the numbers of products, which leave no large gaps."""
    return int((np.bincount(numbers) > 0).sum())


def _shared(index: ShardIndex) -> list[str]:
    """What the index says of photos that several products have in common."""
    stored = json.loads(read_metadata(index.store.index, f"{index.store}/{INDEX_NAME}").get("duplicates", "{}"))
    if not stored.get("pairs"):
        return []
    alike = counted("pair of photos looks", stored["pairs"], "pairs of photos look")
    apart = f"{stored['apart']:,} of them in two splits"
    return ["", f"{alike} the same under two products, {apart}: duplicates.csv"]


def _attribute_table(index: ShardIndex, name: str) -> str:
    """How many items of each split list each value, the most frequent first, and how many say nothing."""
    attribute, labels = index.schema.attributes[name], index.labels[name]
    counts = _listed(attribute, labels, index.splits)
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    rows = [[attribute.values[value], *_shown(counts[value])] for value in order.tolist()]
    silent, absent = labels < 0, labels == NOT_APPLICABLE
    rows.append(["(unlabelled)", *_shown(_per_split(index.splits[silent & ~absent]))])
    if absent.any():
        rows.append(["(not applicable)", *_shown(_per_split(index.splits[absent]))])
    return text_table([name, "all", *SPLITS], rows)


def _listed(attribute: Attribute, labels: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """int64 [values, splits]: how many items list each value."""
    told = labels >= 0
    labels, splits = labels[told], splits[told]
    if attribute.multi_valued:
        return np.stack([_per_split(splits[(labels >> place & 1) > 0]) for place in range(len(attribute.values))])
    cells = labels.astype(np.int64) * len(SPLITS) + splits
    return np.bincount(cells, minlength=len(attribute.values) * len(SPLITS)).reshape(-1, len(SPLITS))


def _per_split(splits: np.ndarray) -> np.ndarray:
    return np.bincount(splits, minlength=len(SPLITS))


def _shown(of_split: np.ndarray) -> list[str]:
    return [f"{count:,}" for count in (of_split.sum(), *of_split)]


def verify(index: ShardIndex) -> Iterator[Damage]:
    """Everything in which the shards are not what the index was written over, and the index not what its digest says;
    reads every byte where they lie.

    Those at a URL are brought here one by one, whatever the cache holds, and thrown away again.
    """
    with index.store.index.open("rb") as file:
        if problem := index_problem(file):
            yield Damage(INDEX_NAME, problem)
    for number, shard in enumerate(index.shards):
        try:
            with index.store.original(shard) as path:
                if not intact(path, shard):
                    rows = np.flatnonzero(index.shard == number)
                    yield from _walk(index, path, shard.name, rows[np.argsort(index.offset[rows])])
        except (OSError, UserError) as error:
            yield Damage(shard.name, f"cannot be read ({getattr(error, 'strerror', None) or error})")


def _walk(index: ShardIndex, path: Path, name: str, rows: np.ndarray) -> Iterator[Damage]:
    """The first sample of a changed shard that is not as indexed, or what else about it is not."""
    content = path.read_bytes()
    for row in rows.tolist():
        offset, length = int(index.offset[row]), int(index.length[row])
        key = key_of(index.item_id(row))
        if problem := _sample(content, offset, length, int(index.checksum[row]), key):
            yield Damage(name, problem, offset, key)
            return
    yield Damage(name, "every photo is as indexed, but what lies between or after them is not what was written")


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
    """Contact sheets for each attribute in the folder `out`: a row of `each` photos drawn at random for every value,
    the most frequent first, `ROWS` of them on a sheet.

    One glance along a row shows what does not belong there.
    """
    drawn = []
    for name, attribute in index.schema.attributes.items():
        listed = listed_values(attribute, index.labels[name])
        order = np.argsort(-listed.sum(axis=0), kind="stable").tolist()
        random = np.random.default_rng(seed)
        sheets = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
        for number, values in enumerate(sheets, start=1):
            rows = {}
            for value in values:
                among = np.flatnonzero(listed[:, value])
                chosen = random.permutation(among)[:each].tolist()
                rows[f"{attribute.values[value]} ({len(among):,})"] = [
                    (index.item_id(row), index.read(row)) for row in chosen
                ]
            title = name if len(sheets) == 1 else f"{name} {number} of {len(sheets)}"
            drawn.append(contact_sheet(out, title, rows))
    return drawn
