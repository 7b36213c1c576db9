"""The one place where photos are opened: the same bytes get the same verdict in check, shard, train and serve.

Only JPEG, PNG, WEBP, AVIF and the first frame of a GIF are decoded, after their header was found to be of sane size.
Every refusal is a `BadImage` with a stable reason code (`CODES`). JPEGs are decoded by libjpeg-turbo through simplejpeg
and refused for whatever libjpeg warns of, which Pillow passes over; Pillow reads all headers and decodes the rest.
"""

import ctypes
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from facetclip.colours import in_srgb

Fit = Literal["pad", "crop"]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif", "GIF": "gif"}
MOST_PIXELS = 50_000_000
FEWER_PIXELS = {"WEBP": 25_000_000, "AVIF": 40_000_000}  # 16 and 10 bytes a pixel; so every verdict stays below 512 MB
MOST_BYTES = 128 << 20
MOST_SCANNED = 1_000_000_000  # pixels times scans of a progressive JPEG; a scan without content takes 0.6 ns a pixel
FEWEST_PIXELS = 8  # of the shorter edge: less cannot show an attribute
MOST_ASPECT = 20  # longer edge / shorter edge
SPARES = ((2, 3.0), (3, 2.1), (4, 1.5))  # at so many eighths of its size a JPEG keeps this many times the target: 35 dB
WHOLE, LEAST = 8, 1  # eighths
GAP = 1.0  # `shrink` averages whole pixels as long as this many times the target is left: 42 dB, half the time
LONGEST = 4  # `shrink` keeps the longer edge within this many times the asked size
QUALITY = 92
CODES = {
    "empty": "the file has 0 bytes",
    "not_an_image": "the bytes are not an image",
    "format": "an image, but not JPEG, PNG, WEBP, AVIF or GIF",
    "truncated": "the file is cut off",
    "corrupt": "the file is damaged",
    "too_many_pixels": f"more than {MOST_PIXELS:,} pixels",
    "too_many_scans": f"more than {MOST_SCANNED:,} pixels in all scans of a progressive JPEG",
    "too_many_bytes": f"more than {MOST_BYTES:,} bytes",
    "too_small": f"the shorter edge has fewer than {FEWEST_PIXELS} pixels",
    "too_thin": f"one edge is more than {MOST_ASPECT} times the other",
    "no_reference": "the catalog names no image",
    "url": "a URL where a path under the image root is expected",
    "outside_root": "the path leads out of the image root",
    "not_found": "no such file under the image root",
    "unreadable": "the file cannot be read",
    "url_refused": "a URL that is not asked: not http(s), not to a public address, or redirected too often",
    "http_status": "the server answered with an error",
    "http_encoding": "the server sent the image compressed",
    "connection": "the server could not be reached, or broke off",
    "timeout": "the server did not answer in time",
}
_OTHER_FORMATS = (b"%!PS", b"%PDF", b"II*\x00", b"MM\x00*", b"BM", b"8BPS", b"\x00\x00\x01\x00", b"\x00\x00\x00\x0cjP")
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
_JPEG = ("JPEG", "MPO")
_START_OF_SCAN = b"\xff\xda"
_CODED = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode of a JPEG -> the colours that simplejpeg gives
_RAW = {"RGB": "RGB", "L": "L", "CMYK": "CMYK;I"}  # four inks are stored inverted, as Adobe does and all readers expect
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's numbers in glibc
_KEPT_BYTES = 32 << 20

if hasattr(ctypes.CDLL(None), "mallopt"):  # or each photo's 12 MB go back to the system and come again: 30% of the time
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 8 << 20)
    ctypes.CDLL(None).mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
ImageFile.LOAD_TRUNCATED_IMAGES = False  # True would turn garbage into grey areas without a word
warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is a BadImage: MOST_PIXELS is lower than Pillow's cap


class BadImage(Exception):
    """An image that will not be used: `code` is one of CODES, `message` says what was found."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


def reasons(codes: Iterable[str], shown: int = 5) -> str:
    """How often each reason code was found, the commonest first; those beyond `shown` together.

    >>> reasons(["format", "url", "format"]), reasons(["format", "url", "empty", "format"], shown=1)
    ('2 format, 1 url', '2 format and 2 others')
    """
    found = Counter(codes).most_common()
    told = ", ".join(f"{count} {code}" for code, count in found[:shown])
    others = sum(count for _, count in found[shown:])
    return f"{told} and {others} other{'s' if others > 1 else ''}" if others else told


def verdict(data: bytes, *, decode: bool = False) -> BadImage | None:
    """What is wrong with an image, or None: by its header, or with `decode` by every byte of it."""
    try:
        image = _open(data)
        if decode:
            _rgb(image, _decoded(data, image, LEAST), colours=False)  # all of a JPEG, at an eighth of its size
    except BadImage as bad:
        return bad
    return None


def suffix(data: bytes) -> str:
    """The file name suffix of the true format: `jpg`, `png`, `webp`, `avif` or `gif`."""
    return SUFFIXES[str(_open(data).format)]


def read_rgb(data: bytes, *, at_least: int | None = None) -> Image.Image:
    """The upright image in sRGB over white; BadImage when it cannot be decoded whole.

    With `at_least`, the pixels that its shorter edge will be resized to, a large JPEG comes at a part of its size,
    which gives nearly the same result at half the time (SPARES; docs/log.md has the numbers).
    """
    image = _open(data)
    pixels = _decoded(data, image, _eighths_of(image, at_least))
    if at_least is not None and image.info.get("icc_profile"):
        pixels = _halved(pixels, at_least)  # or the profile of a large image would take seconds
    return _rgb(image, pixels)


def read_pixels(data: bytes, *, at_least: int | None = None) -> np.ndarray:
    """What `read_rgb` gives, as uint8 [height, width, 3]; a JPEG as cameras and shops make them goes no detour."""
    if (own := _own_size(data)) is not None:
        return _decoded_jpeg(data, "RGB", own, _eighths(own, at_least))
    image = _open(data)
    if image.format in _JPEG and image.mode == "RGB" and not image.info.get("icc_profile"):
        pixels = _decoded_jpeg(data, "RGB", image.size, _eighths_of(image, at_least))
        if (turn := _TURNS.get(_orientation(image))) is None:
            return pixels
        return np.asarray(Image.fromarray(pixels).transpose(turn))
    return np.asarray(read_rgb(data, at_least=at_least))


def shrunk(width: int, height: int, size: int) -> tuple[int, int]:
    """The size of an image brought to `size` pixels on its shorter edge: never enlarged, and never one to be refused.

    Where it is long and thin, the longer edge is held at LONGEST times `size` instead.

    >>> shrunk(1000, 1500, 256), shrunk(100, 90, 256), shrunk(3000, 300, 256)
    ((256, 384), (100, 90), (1030, 103))
    """
    short, long = min(width, height), max(width, height)
    less = min(short, size, max(FEWEST_PIXELS, -(-LONGEST * size * short // long)))
    more = round(long * less / short)
    return (less, more) if width <= height else (more, less)


def shrink(data: bytes, size: int) -> bytes:
    """The image with its shorter edge at `size` pixels (see `shrunk`), as JPEG; the same input gives the same bytes.

    An upright RGB JPEG that is small enough already, and in sRGB, is kept byte for byte.
    """
    return shrunk_image(data, size)[0]


def shrunk_image(data: bytes, size: int) -> tuple[bytes, Image.Image]:
    """What `shrink` gives, and the picture that it shows, for whoever looks at it without decoding it again."""
    image = _open(data)
    before, shape = image.size, shrunk(*image.size, size)
    pixels = _decoded(data, image, _eighths_of(image, min(shape)))
    turn = _orientation(image)
    if image.info.get("icc_profile"):
        pixels = _halved(pixels, min(shape))
    flat = _rgb(image, pixels)
    if shape == before and turn == 1 and image.format == "JPEG" and image.mode == "RGB" and flat is pixels:
        return data, flat
    width, height = reversed(shape) if turn in _SIDEWAYS else shape
    small = _resized(flat, (width, height))
    return encode_jpeg(small), small


def encode_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    """JPEG without chroma subsampling: at equal bytes 2.3 dB closer than 4:2:0, and colour is an attribute."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def packed_image(data: bytes, size: int | None, side: int) -> tuple[bytes, np.ndarray]:
    """The image as a shard holds it: `shrink` to `size`, or where that is None as it is; and what it shows, `squeezed`.

    BadImage when it cannot be decoded whole.
    """
    if size is None:
        return data, squeezed(read_rgb(data, at_least=side), side)
    small, picture = shrunk_image(data, size)
    return small, squeezed(picture, side)


def squeezed(image: Image.Image, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: the whole RGB image, its aspect lost."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _resized(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """Antialiased bicubic, from the mean of whole pixels where there are many: over 42 dB, at half the time."""
    return image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=GAP)


def _halved(pixels: Image.Image, at_least: int) -> Image.Image:
    """The mean of whole pixels while GAP times the target is left: fewer pixels, whose colours are to be changed."""
    factor = int(min(pixels.size) / (GAP * at_least))
    plain = pixels.mode in ("RGB", "L", "CMYK") and not pixels.has_transparency_data
    return pixels.reduce(factor) if plain and factor > 1 else pixels


def _open(data: bytes) -> Image.Image:
    """The image with its header read and found sane; nothing is decoded yet."""
    if not data:
        raise BadImage("empty", CODES["empty"])
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(data) from error
    except MemoryError:
        raise
    except Exception as error:
        raise _unopened(data) from error
    _check_size(data, image.size, str(image.format))
    return image


def _too_large(data: bytes) -> BadImage:
    """Of an image that Pillow does not open for its size: how large it says it is, unless its reader refuses it too."""
    for kind in FORMATS:
        with suppress(Exception):  # of another format
            return _too_many_pixels(Image.OPEN[kind][0](io.BytesIO(data), "").size, kind)
    return BadImage("too_many_pixels", CODES["too_many_pixels"])


def _too_many_pixels(size: tuple[int, int], kind: str) -> BadImage:
    most = FEWER_PIXELS.get(kind, MOST_PIXELS)
    return BadImage("too_many_pixels", f"{size[0]} x {size[1]} pixels; at most {most:,} are decoded")


def _check_size(data: bytes, size: tuple[int, int], kind: str) -> None:
    """BadImage where an image of this size and format is not decoded."""
    width, height = size
    if width * height > FEWER_PIXELS.get(kind, MOST_PIXELS):
        raise _too_many_pixels(size, kind)
    if min(width, height) < FEWEST_PIXELS:
        raise BadImage("too_small", f"{width} x {height} pixels; at least {FEWEST_PIXELS} each way are needed")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise BadImage("too_thin", f"{width} x {height} pixels; {CODES['too_thin']}")
    scanned = len(data) // 2 * width * height > MOST_SCANNED  # can they be so many at all? counting takes its time
    if kind in _JPEG and scanned and (scans := data.count(_START_OF_SCAN)) * width * height > MOST_SCANNED:
        raise BadImage("too_many_scans", f"{width} x {height} pixels in {scans} scans; {CODES['too_many_scans']}")


@cache
def _own_header() -> tuple[bytes, bytes]:
    """What stands before the height and after the width in the header of every JPEG by `encode_jpeg`."""
    before, _, rest = encode_jpeg(Image.new("RGB", (258, 772))).partition(bytes([3, 4, 1, 2]))
    scan = rest.index(_START_OF_SCAN)
    return before, rest[: scan + 2 + int.from_bytes(rest[scan + 2 : scan + 4], "big")]


def _own_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG whose header else is that of `encode_jpeg`: no profile, no orientation. None for any
    other image."""
    before, after = _own_header()
    at = len(before)
    if not data.startswith(before) or data[at + 4 : at + 4 + len(after)] != after:
        return None
    size = int.from_bytes(data[at + 2 : at + 4], "big"), int.from_bytes(data[at : at + 2], "big")
    _check_size(data, size, "JPEG")
    return size


def _unopened(data: bytes) -> BadImage:
    """Why the header of `data` could not be read."""
    start = data[:256].lstrip()
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return BadImage("corrupt", f"begins as {name}, but its header is damaged or cut off")
    riff = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if riff or data[4:12] in (b"ftypavif", b"ftypavis"):
        return BadImage("corrupt", f"begins as {'WEBP' if riff else 'AVIF'}, but its header is damaged or cut off")
    if start.startswith(_OTHER_FORMATS) or b"<svg" in data[:1024] or data[4:8] == b"ftyp":
        return BadImage("format", CODES["format"])
    return BadImage("not_an_image", f"the bytes are not an image; they begin {start[:16]!r}")


def _eighths_of(image: Image.Image, at_least: int | None) -> int:
    return _eighths(image.size, at_least, progressive=bool(image.info.get("progressive")))


def _eighths(size: tuple[int, int], at_least: int | None, *, progressive: bool = False) -> int:
    """At how many eighths of its size a JPEG is decoded; three pay off only for progressive ones."""
    if at_least is None:
        return WHOLE
    for eighths, spare in SPARES:
        if min(size) * eighths >= WHOLE * spare * at_least and (eighths != 3 or progressive):
            return eighths
    return WHOLE


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a decoder raises as a BadImage: OSError, SyntaxError, ValueError, struct.error, zlib.error ..."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        said = str(error).lower()
        cut = isinstance(error, EOFError) or "truncated" in said or "premature end of jpeg" in said
        raise BadImage("truncated" if cut else "corrupt", f"cannot be decoded: {error}") from error


def _decoded(data: bytes, image: Image.Image, eighths: int) -> Image.Image:
    """The pixels of the opened image, decoded to its last byte; a JPEG at so many eighths of its size."""
    if image.format in _JPEG and image.mode in _CODED:
        found = _decoded_jpeg(data, image.mode, image.size, eighths)
        pixels = Image.new(image.mode, found.shape[1::-1], None)  # `frombuffer` would fill it with black first
        pixels.frombytes(found.data, "raw", _RAW[image.mode])
        return pixels
    with _decoding():
        image.load()
    return image


def _decoded_jpeg(data: bytes, mode: str, size: tuple[int, int], eighths: int) -> np.ndarray:
    """What libjpeg-turbo makes of a JPEG, uint8 [height, width, channels]; refused for as much as a warning."""
    width, height = (-(-edge * eighths // WHOLE) for edge in size)
    with _decoding():
        found = simplejpeg.decode_jpeg(data, _CODED[mode], min_width=width, min_height=height, min_factor=1)
        if found.shape[:2] != (height, width):
            raise ValueError(f"expected {width} x {height} pixels, found {found.shape[1]} x {found.shape[0]}")
    return found


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 to 8; damaged EXIF data counts as upright.

    Before loading, Pillow would decode a PNG to look for it, and a failure of that would be lost here.
    """
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # the parser raises a dozen kinds; the pixels are good
        return 1


def _rgb(image: Image.Image, pixels: Image.Image, *, colours: bool = True) -> Image.Image:
    """Pixels of an opened image upright, over white, and in RGB: in sRGB, unless without `colours`."""
    turn = _TURNS.get(_orientation(image))
    profile = image.info.get("icc_profile") if colours else None
    try:
        flat = in_srgb(pixels, profile) if profile and pixels.mode in ("L", "CMYK") else None
        if flat is None:
            flat = _flattened(pixels)
            flat = flat if not profile else in_srgb(flat, profile) or flat
    except (OSError, ValueError) as error:
        raise BadImage("corrupt", f"cannot be brought to RGB: {error}") from error
    return flat if turn is None else flat.transpose(turn)


def _flattened(image: Image.Image) -> Image.Image:
    """RGB: transparency over white, 16-bit grey by its high byte."""
    if image.mode in _GREY_16:
        high = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")
