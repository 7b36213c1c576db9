"""What a catalog's image cells name: the bytes of an embedded image, a path under the image root, or a URL.

What cannot be read of them is told with the option that has it read.
"""

import os
import stat
from pathlib import Path

from facetclip.addresses import is_url, shown
from facetclip.catalog import Catalog
from facetclip.errors import UserError
from facetclip.images import CODES, MOST_BYTES, BadImage


def image_of(cell: str | bytes | dict | None) -> str | bytes | None:
    """The bytes of an embedded image, else what names it; outer blanks of a text are nobody's.

    >>> image_of(" https://shop.example/a.jpg "), image_of({"bytes": None, "path": "a.jpg"})
    ('https://shop.example/a.jpg', 'a.jpg')
    """
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path")
    return cell.strip() if isinstance(cell, str) else cell


def require_way(catalog: Catalog, column: str, *, fetches: bool) -> None:
    """UserError where the image column is text, for whoever was given no folder, and no leave to fetch if it `fetches`
    at all: paths alone lead nowhere."""
    if str(catalog.table.column(column).type) not in ("string", "large_string"):
        return
    named = [image for image in map(image_of, catalog.column(column)) if image]
    if named and all(map(is_url, named)):
        kind = "URLs"
        advice = "--fetch-urls fetches them" if fetches else "shard it with --fetch-urls, then give --shards instead"
    else:
        kind = "paths"
        advice = "give --images, their folder" + (", or --fetch-urls where they are URLs" if fetches else "")
    raise UserError(f"{catalog.name}: column {column!r} holds {kind}; {advice}")


def not_embedded(image: str | None) -> BadImage:
    """Of a row that embeds no image, where nothing else is read."""
    if not image:
        return BadImage("no_reference", "the catalog embeds no image for this row")
    named = f"the catalog names {shown(image)[:80]!r} but embeds no image"
    if is_url(image):
        return BadImage("no_reference", f"{named}; check and shard take --fetch-urls")
    return BadImage("no_reference", f"{named}; give --images, its folder")


def resolve(root: Path, reference: str | None) -> Path:
    """The regular file that `reference` names under `root`; BadImage when it is absent or anywhere else.

    Refused: absolute paths, `..`, symbolic links that leave the root, NUL, URLs, folders, pipes and devices.
    """
    if reference is None or not reference.strip():
        raise BadImage("no_reference", CODES["no_reference"])
    if "://" in reference or reference.lower().startswith("data:"):
        raise BadImage(
            "url", f"{reference[:80]!r} is a URL; expected a path under {root} (check and shard take --fetch-urls)"
        )
    parts = reference.replace("\\", "/").split("/")
    if "\0" in reference or ".." in parts or not parts[0] or parts[0].endswith(":"):
        raise BadImage("outside_root", f"{reference[:80]!r} leads out of {root}")
    path = os.path.realpath(root / reference)
    if os.path.commonpath([path, os.path.realpath(root)]) != os.path.realpath(root):
        raise BadImage("outside_root", f"{reference[:80]!r} is a link that leads out of {root}")
    if not _is_file(path):
        raise BadImage("not_found", f"image {reference[:200]!r} not found under {root}")
    return Path(path)


def _is_file(path: str) -> bool:
    """Whether there is a regular file; BadImage where nobody may look."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - a str; pathlib costs 4 times as much here
    except PermissionError as error:
        raise BadImage("unreadable", f"cannot be read: {error.strerror}") from error
    except (OSError, ValueError):
        return False


def load(root: Path, reference: str | None) -> bytes:
    """The bytes of the file that `reference` names under `root`, unless there are more than MOST_BYTES."""
    path = resolve(root, reference)
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise BadImage("too_many_bytes", f"{size:,} bytes; at most {MOST_BYTES:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise BadImage("unreadable", f"cannot be read: {error.strerror}") from error
