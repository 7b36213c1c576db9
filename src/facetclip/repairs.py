"""A finished shard folder whose tars were damaged since: packed again, byte for byte as they were.

The bytes of a tar follow from its rows, so the index alone says whether the mended one is the old one. Where a photo,
title or label is another one now it cannot be had again, and nothing is changed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from facetclip.claims import claimed
from facetclip.errors import UserError
from facetclip.files import sync_folder
from facetclip.index import INDEX_NAME, ShardIndex, open_index, read_metadata
from facetclip.portions import WHOLE
from facetclip.slices import PARTS, Build, fetch_images
from facetclip.tars import Slice, damaged, pack, read_part
from facetclip.workers import each


def repaired(build: Build) -> int:
    """Pack the damaged shards of the finished folder of these inputs again; how many there were.

    UserError where one does not come out as it was, and nothing is changed then. Held where another process is at work
    in the folder.
    """
    facts = read_metadata(build.spec.out / INDEX_NAME)
    build = replace(build, digest=facts["work"])  # what is left of it counts as done
    with claimed(build, WHOLE):
        index = open_index(build.spec.out, lengths=False)
        if read_metadata(build.spec.out / INDEX_NAME) != facts:
            raise UserError(f"{build.spec.out}: was changed meanwhile; run the same command again")
        numbers = damaged(index)
        if numbers:
            _pack_again(build, index, numbers)
    return len(numbers)


def _pack_again(build: Build, index: ShardIndex, numbers: Sequence[int]) -> None:
    slices = [_slice(build, index, number) for number in numbers]
    fetch_images(build, slices)
    for _ in each(pack, slices, workers=build.spec.workers):
        pass
    try:
        for number, rows in zip(numbers, slices, strict=True):
            _require_same(index, number, rows)
    except UserError:
        for rows in slices:
            rows.tar.unlink(missing_ok=True)
        raise
    for rows in slices:
        rows.tar.replace(index.folder / rows.tar.name)
    sync_folder(index.folder)


def _require_same(index: ShardIndex, number: int, rows: Slice) -> None:
    """UserError where what was packed is not the shard of the index."""
    part, shard = read_part(rows.part, rows.digest), index.shards[number]
    if part is not None and part.shard == shard:
        return
    why = f" ({part.bad[0][2]})" if part and part.bad else ""
    raise UserError(
        f"{index.folder / shard.name}: damaged, and cannot be packed again as it was: a photo, title or label in it is "
        f"another one now{why}; nothing was changed. Give what was there back, or build anew with another --out"
    )


def _slice(build: Build, index: ShardIndex, number: int) -> Slice:
    """The rows that the index has in a shard, in their order there, to be packed beside the folder's own tars."""
    rows = np.flatnonzero(index.shard == number)
    places = index.places[rows[np.argsort(index.offset[rows])]]
    spec = replace(build.spec, samples_per_shard=max(1, len(places)))
    packed = replace(build, places=places, spec=spec).slice(0)
    folder, name = build.spec.out / PARTS, index.shards[number].name
    return replace(packed, tar=folder / name, part=(folder / name).with_suffix(".parquet"))
