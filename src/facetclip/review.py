"""`facetclip review`: suggestions as one HTML page that works offline and exports what a person decides as CSV.

Everything is inside the page: thumbnails, style and script. Its content policy lets no request out, and what comes from
the catalog reaches the page as data that the script sets as text, never as markup.
"""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.index import ShardIndex, open_index
from facetclip.page import render
from facetclip.pictures import thumbnails
from facetclip.suggestions import Suggestion, Suggestions, read_suggestions

THUMBNAIL = 224  # pixels of the longer edge, of at most SHARP items
SMALL_THUMBNAIL = 160
SHARP = 1500
PAGE = b'data-identity="'  # stands where a page begins


def write_review(folder: Path, out: Path, *, shards: Path | str | None = None, most: int | None = None) -> int:
    """Write the page for the suggestions in `folder` to the file `out`; how many suggestions are on it.

    `shards`: where they lie now, if not where `folder` says; `most`: only the first so many. UserError where the shards
    are not those that the suggestions are about.
    """
    _check_page(out)
    found = read_suggestions(folder)
    try:
        index = open_index(shards or found.shards)
    except UserError as error:
        raise UserError(f"{error}{'' if shards else '; if they lie elsewhere now, say where by --shards'}") from error
    if index.digest != found.data_digest:
        raise UserError(f"{index.store}: not the data that {folder} is about; give its shards by --shards")
    cells = found.cells[:most]
    if not cells:
        raise UserError(f"{folder}: holds no suggestion; there is nothing to review")
    items = list(dict.fromkeys(cell.item_id for cell in cells))
    rows = _rows_of(index, items)
    size = THUMBNAIL if len(items) <= SHARP else SMALL_THUMBNAIL
    photos = thumbnails(index, rows.values(), size)
    pictures = [photos.get(rows[item], "") for item in items]
    place = {item: number for number, item in enumerate(items)}
    content = _content(found, index, rows) | {"cells": [[place[cell.item_id], *_told(cell)] for cell in cells]}
    write_whole(out, _page(found.title, content, pictures).encode("utf-8"))
    return len(cells)


def _check_page(out: Path) -> None:
    """UserError where something else than a review page would be overwritten."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: expected a file that ends in .html")
    if out.exists() and (out.is_dir() or PAGE not in out.read_bytes()[:4096]):
        raise UserError(f"{out} is there already and is no review page; name another file")


def _rows_of(index: ShardIndex, items: list[str]) -> dict[str, int]:
    place = {item: row for row, item in enumerate(index.item_ids.to_pylist())}
    if strange := next((item for item in items if item not in place), None):
        raise UserError(f"{index.store}: has no item {strange!r}, which a suggestion is about")
    return {item: place[item] for item in items}


def _told(cell: Suggestion) -> tuple[Any, ...]:
    return cell.attribute, cell.listed, cell.suggested, cell.probability, cell.listed_probability, cell.reason


def _content(found: Suggestions, index: ShardIndex, rows: dict[str, int]) -> dict[str, Any]:
    """What the script shows: attributes with their values, and of each item its ids and title."""
    titled = found.schema.columns.title is not None and index.schema.columns.title is not None
    return {
        "attributes": {
            name: {"values": attribute.values, "separator": attribute.separator}
            for name, attribute in found.schema.attributes.items()
        },
        "items": [
            [item, index.product_ids[row].as_py(), (index.titles[row].as_py() or "") if titled else ""]
            for item, row in rows.items()
        ],
    }


def _page(title: str, content: dict[str, Any], pictures: list[str]) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    source = resources.files("facetclip").joinpath("review.js").read_text(encoding="utf-8")
    return render(
        "review.html.jinja",
        title=title,
        # Inside a script element only `<` could end it.
        content=text.replace("<", "\\u003c"),
        pictures="\n".join(pictures),
        script=source,
        script_hash=base64.b64encode(hashlib.sha256(source.encode()).digest()).decode(),
        identity=hashlib.sha256(text.encode()).hexdigest()[:16],
    )
