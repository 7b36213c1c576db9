"""Small pictures for a person: thumbnails, and contact sheets with many of them in rows under a name."""

import base64
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

from facetclip.files import write_whole
from facetclip.images import BadImage, read_rgb
from facetclip.index import ShardIndex

TILE, GAP, BAND, LABEL = 104, 6, 24, 14  # pixels: a photo, between two, a row's name, an item's
INK, MUTED, GROUND, SHADE = "#1c2733", "#5c6875", "#ffffff", "#f1f3f6"
QUALITY = 80  # of a thumbnail's JPEG
THREADS = 4
LONGEST = 15  # characters of an item's name that fit under its photo


def thumbnail(data: bytes, longest: int) -> bytes:
    """A photo with its longer edge at most `longest` pixels, as a small JPEG for a page; BadImage as `read_rgb`."""
    out = io.BytesIO()
    _small(data, longest).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def thumbnails(index: ShardIndex, rows: Iterable[int], longest: int) -> dict[int, str]:
    """Row -> its photo as `thumbnail` makes it, in base64; rows whose photo cannot be decoded are left out."""

    def drawn(row: int) -> str:
        try:
            return base64.b64encode(thumbnail(index.read(row), longest)).decode()
        except BadImage:
            return ""

    wanted = list(dict.fromkeys(rows))
    with ThreadPoolExecutor(THREADS) as pool:
        return {row: photo for row, photo in zip(wanted, pool.map(drawn, wanted), strict=True) if photo}


def _small(data: bytes, longest: int) -> Image.Image:
    image = read_rgb(data, at_least=longest)
    image.thumbnail((longest, longest))
    return image


def shortened(text: str, longest: int) -> str:
    """A text without its middle, where it is longer than that: names differ at their ends.

    >>> shortened("wh06-purple_main", 15), shortened("wh06", 15)
    ('wh06-pu…le_main', 'wh06')
    """
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"


def drawable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text with the nearest ASCII in place of letters that `font` lacks; those that have none are left out.

    >>> drawable("Café ® 5″", ImageFont.load_default(10))
    'Cafe  5'
    """
    lacking = _drawn("\U0010ffff", font)  # stands for no letter, so what is drawn is the box
    return "".join(
        letter if letter.isascii() or _drawn(letter, font) != lacking else _ascii(letter)
        for letter in unicodedata.normalize("NFC", text)
    )


def _drawn(letter: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bytes:
    tile = Image.new("L", (2 * BAND, 2 * BAND))
    ImageDraw.Draw(tile).text((0, 0), letter, fill=255, font=font)
    return tile.tobytes()


def _ascii(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()


def contact_sheet(out: Path, title: str, rows: Mapping[str, Sequence[tuple[str, bytes]]]) -> Path:
    """Write the sheet `title`.png into the folder `out`: for each named row its photos, (name, bytes), in order."""
    most = max((len(photos) for photos in rows.values()), default=0)
    high = BAND + TILE + LABEL + GAP
    sheet = Image.new("RGB", (max(360, GAP + most * (TILE + GAP)), 2 * BAND + len(rows) * high), GROUND)
    draw = ImageDraw.Draw(sheet)
    title_font, name_font, item_font = (ImageFont.load_default(size) for size in (20, 15, 10))
    draw.text((GAP, GAP), drawable(title, title_font), fill=INK, font=title_font)
    for place, (name, photos) in enumerate(rows.items()):
        top = 2 * BAND + place * high
        draw.rectangle((0, top - 4, sheet.width, top + BAND - 6), fill=SHADE)
        draw.text((GAP, top - 3), drawable(name, name_font), fill=INK, font=name_font)
        for column, (item, photo) in enumerate(photos):
            left = GAP + column * (TILE + GAP)
            tile = _tile(photo)
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + BAND + (TILE - tile.height) // 2))
            shown = shortened(drawable(item, item_font), LONGEST)
            draw.text((left, top + BAND + TILE), shown, fill=MUTED, font=item_font)
    path = out / f"{quote(title, safe=' ')}.png"
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_whole(path, content.getvalue())
    return path


def _tile(photo: bytes) -> Image.Image:
    try:
        return _small(photo, TILE)
    except BadImage:
        return Image.new("RGB", (TILE, TILE), SHADE)
