"""The one place where photos are opened: the same bytes get the same verdict in check, shard, train and serve.

Only JPEG, PNG, WEBP, AVIF and the first frame of a GIF are decoded, after their header was found to be of sane size.
Every refusal is a `BadImage` with a stable reason code (`CODES`).
"""

import io
import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile

Fit = Literal["pad", "crop"]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif", "GIF": "gif"}
MOST_PIXELS = 50_000_000
MOST_WEBP_PIXELS = 30_000_000  # its decoder takes 16 bytes a pixel; so every verdict stays below 512 MB
MOST_BYTES = 128 << 20
FEWEST_PIXELS = 8  # of the shorter edge: less cannot show an attribute
MOST_ASPECT = 20  # longer edge / shorter edge
SPARES = ((4, 3.0), (2, 1.5))  # a JPEG decoded at 1/4 or 1/2 keeps this many times the target: PSNR stays over 35 dB
LONGEST = 4  # `shrink` keeps the longer edge within this many times the asked size
QUALITY = 92
THUMBNAIL_QUALITY = 80
CODES = {
    "empty": "the file has 0 bytes",
    "not_an_image": "the bytes are not an image",
    "format": "an image, but not JPEG, PNG, WEBP, AVIF or GIF",
    "truncated": "the file is cut off",
    "corrupt": "the file is damaged",
    "too_many_pixels": f"more than {MOST_PIXELS:,} pixels",
    "too_many_bytes": f"more than {MOST_BYTES:,} bytes",
    "too_small": f"the shorter edge has fewer than {FEWEST_PIXELS} pixels",
    "too_thin": f"one edge is more than {MOST_ASPECT} times the other",
    "no_reference": "the catalog names no image",
    "url": "a URL where a path under the image root is expected",
    "outside_root": "the path leads out of the image root",
    "not_found": "no such file under the image root",
    "unreadable": "the file cannot be read",
}
_OTHER_FORMATS = (b"%!PS", b"%PDF", b"II*\x00", b"MM\x00*", b"BM", b"8BPS", b"\x00\x00\x01\x00", b"\x00\x00\x00\x0cjP")
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
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


def resolve(root: Path, reference: str | None) -> Path:
    """The regular file that `reference` names under `root`; BadImage when it is absent or anywhere else.

    Refused: absolute paths, `..`, symbolic links that leave the root, NUL, URLs, folders, pipes and devices.
    """
    if reference is None or not reference.strip():
        raise BadImage("no_reference", CODES["no_reference"])
    if "://" in reference or reference.lower().startswith("data:"):
        raise BadImage("url", f"{reference[:80]!r} is a URL; expected a path under {root}")
    parts = reference.replace("\\", "/").split("/")
    if "\0" in reference or ".." in parts or not parts[0] or parts[0].endswith(":"):
        raise BadImage("outside_root", f"{reference[:80]!r} leads out of {root}")
    path = os.path.realpath(root / reference)
    if os.path.commonpath([path, os.path.realpath(root)]) != os.path.realpath(root):
        raise BadImage("outside_root", f"{reference[:80]!r} is a link that leads out of {root}")
    if not os.path.isfile(path):  # noqa: PTH113 - realpath gave a str; pathlib costs 4 times as much here
        raise BadImage("not_found", f"image {reference[:200]!r} not found under {root}")
    return Path(path)


def load(root: Path, reference: str | None) -> bytes:
    """The bytes of the file that `reference` names under `root`, unless there are more than MOST_BYTES."""
    path = resolve(root, reference)
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise BadImage("too_many_bytes", f"{size:,} bytes; at most {MOST_BYTES:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise BadImage("unreadable", f"cannot be read: {error.strerror}") from error


def verdict(data: bytes, *, decode: bool = False) -> BadImage | None:
    """What is wrong with an image, or None: by its header, or with `decode` by every byte of it."""
    try:
        image = _open(data)
        if decode:
            _rgb(_loaded(image, scale=8))  # reads all of a JPEG, at an eighth of its size
    except BadImage as bad:
        return bad
    return None


def suffix(data: bytes) -> str:
    """The file name suffix of the true format: `jpg`, `png`, `webp`, `avif` or `gif`."""
    return SUFFIXES[str(_open(data).format)]


def read_rgb(data: bytes, *, at_least: int | None = None) -> Image.Image:
    """The upright image, in RGB over white; BadImage when it cannot be decoded whole.

    With `at_least`, the pixels that its shorter edge will be resized to, a large JPEG comes at 1/2 or 1/4 of its size,
    which gives nearly the same result at half the time (SPARES; measured by benchmarks/sharding.py).
    """
    image = _open(data)
    return _rgb(_loaded(image, 1 if at_least is None else _scale(image, at_least)))


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

    An upright RGB JPEG that is small enough already is kept byte for byte.
    """
    image = _open(data)
    before, shape = image.size, shrunk(*image.size, size)
    turn = _orientation(_loaded(image, _scale(image, min(shape))))
    if shape == before and turn == 1 and image.format == "JPEG" and image.mode == "RGB":
        return data
    width, height = reversed(shape) if turn in _SIDEWAYS else shape
    return encode_jpeg(_resized(_rgb(image), (width, height)))


def thumbnail(data: bytes, longest: int) -> bytes:
    """The image with its longer edge at most `longest` pixels, as a small JPEG for a page."""
    image = read_rgb(data, at_least=longest)
    image.thumbnail((longest, longest))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=THUMBNAIL_QUALITY)
    return out.getvalue()


def encode_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    """JPEG without chroma subsampling: at equal bytes 2.3 dB closer than 4:2:0, and colour is an attribute."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def to_square(image: Image.Image, size: int, fit: Fit) -> np.ndarray:
    """An RGB image as uint8 [size, size, 3]: `pad` shows all of it on white, `crop` its centre as CLIP does."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if fit == "crop":
        side = int(size * long / short)
        shape = (size, side) if width <= height else (side, size)
        left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
        square = _resized(image, shape).crop((left, top, left + size, top + size))
    else:
        shape = (max(1, round(width * size / long)), max(1, round(height * size / long)))
        square = Image.new("RGB", (size, size), "white")
        square.paste(_resized(image, shape), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(square)


def _resized(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """Antialiased bicubic; very large images are halved first, at over 49 dB and half the time."""
    return image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=2.0)


def square_planes(data: bytes, size: int, fit: Fit) -> np.ndarray:
    """A photo's bytes as a model sees them, uint8 [3, size, size]; BadImage when they cannot be decoded."""
    return to_square(read_rgb(data, at_least=size), size, fit).transpose(2, 0, 1)


def _open(data: bytes) -> Image.Image:
    """The image with its header read and found sane; nothing is decoded yet."""
    if not data:
        raise BadImage("empty", CODES["empty"])
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_many_pixels", CODES["too_many_pixels"]) from error
    except MemoryError:
        raise
    except Exception as error:
        raise _unopened(data) from error
    width, height = image.size
    most = MOST_WEBP_PIXELS if image.format == "WEBP" else MOST_PIXELS
    if width * height > most:
        raise BadImage("too_many_pixels", f"{width} x {height} pixels; at most {most:,} are decoded")
    if min(width, height) < FEWEST_PIXELS:
        raise BadImage("too_small", f"{width} x {height} pixels; at least {FEWEST_PIXELS} each way are needed")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise BadImage("too_thin", f"{width} x {height} pixels; {CODES['too_thin']}")
    return image


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


def _scale(image: Image.Image, at_least: int) -> int:
    return next((scale for scale, spare in SPARES if min(image.size) >= scale * spare * at_least), 1)


def _loaded(image: Image.Image, scale: int) -> Image.Image:
    """The opened image decoded to its last byte, a JPEG at 1/scale of its size."""
    try:
        if scale > 1:
            image.draft("RGB", (image.width // scale, image.height // scale))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise BadImage("truncated" if cut else "corrupt", f"cannot be decoded: {error}") from error
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 to 8; damaged EXIF data counts as upright.

    Before loading, Pillow would decode a PNG to look for it, and a failure of that would be lost here.
    """
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # the parser raises a dozen kinds; the pixels are good
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """A loaded image upright, in RGB over white."""
    turn = _TURNS.get(_orientation(image))
    try:
        flat = _flattened(image)
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
