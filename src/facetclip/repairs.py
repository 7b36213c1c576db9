"""A finished shard folder whose tars were damaged since: packed again, byte for byte as they were.

The bytes of a tar follow from its rows, so the index alone says whether the mended one is the old one. Where a photo,
title or label is another one now it cannot be had again, and nothing is changed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from facetclip.addresses import is_url
from facetclip.claims import claimed
from facetclip.downloads import download_all
from facetclip.errors import UserError
from facetclip.files import sync_folder
from facetclip.index import INDEX_NAME, ShardIndex, open_index, read_metadata
from facetclip.portions import WHOLE
from facetclip.slices import PARTS, Build
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
    if build.spec.fetch is not None and build.downloads is not None:
        download_all(
            (cell for rows in slices for cell in rows.images if is_url(cell)), build.spec.fetch, build.downloads
        )
    for _ in each(pack, slices, workers=build.spec.workers):
        pass
    for number, rows in zip(numbers, slices, strict=True):
        part = read_part(rows.part, rows.digest)
        if part is None or part.shard != index.shards[number]:
            for left in slices:
                left.tar.unlink(missing_ok=True)
            why = next((message for _, _, message in part.bad), "") if part else ""
            raise UserError(
                f"{index.folder / index.shards[number].name}: damaged, and cannot be packed again as it was: a photo, "
                f"title or label in it is another one now{f' ({why})' if why else ''}; nothing was changed. Give what "
                "was there back, or build anew with another --out"
            )
    for rows in slices:
        rows.tar.replace(index.folder / rows.tar.name)
    sync_folder(index.folder)


def _slice(build: Build, index: ShardIndex, number: int) -> Slice:
    """The rows that the index has in a shard, in their order there, to be packed beside the folder's own tars."""
    rows = np.flatnonzero(index.shard == number)
    places = index.places[rows[np.argsort(index.offset[rows])]]
    spec = replace(build.spec, samples_per_shard=max(1, len(places)))
    packed = replace(build, places=places, spec=spec).slice(0)
    folder, name = build.spec.out / PARTS, index.shards[number].name
    return replace(packed, tar=folder / name, part=(folder / name).with_suffix(".parquet"))
