import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from facetclip import images
from facetclip.images import BadImage, encode_jpeg, read_rgb, shrink, suffix, verdict


def photo(width=640, height=480, seed=0):
    """Smooth areas, edges and texture, as a product photo has."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)).resize((width, height))
    image = Image.blend(Image.new("RGB", (width, height), "white"), noise.filter(ImageFilter.GaussianBlur(2)), 0.6)
    pen = ImageDraw.Draw(image)
    pen.ellipse(
        (width // 5, height // 5, width * 4 // 5, height * 4 // 5), fill=(30, 90, 160), outline="black", width=3
    )
    pen.line((0, 0, width, height), fill=(200, 20, 20), width=4)
    return image


def coded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_header(width, height):
    """A PNG whose header promises these pixels and whose data is a few bytes."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    facts = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", facts) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def webp_header():
    """A WEBP whose header promises 16384 x 16384 pixels."""
    small = coded(Image.new("RGB", (64, 64)), "WEBP", lossless=True)
    return small[:21] + b"\xff\xff\xff\x0f" + small[25:]


def psnr(one, other):
    difference = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    return 10 * np.log10(255**2 / max(1e-9, (difference**2).mean()))


def turned_by(orientation):
    """The EXIF data of a camera that was held so."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def grey16():
    return Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))


def middle_replaced(data, by, length):
    """A file whose middle `length` bytes are these instead."""
    middle = len(data) // 2
    return data[:middle] + by + data[middle + length :]


def many_scans(count):
    """A progressive JPEG that goes over all its pixels time and again, to no purpose but to take long."""
    data = coded(Image.new("RGB", (2000, 1500), "white"), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


JPEG = coded(photo())
BAD = {
    "empty": (b"", "empty"),
    "html named jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image"),
    "zeros": (bytes(5000), "not_an_image"),
    "text": ("keine Größe".encode(), "not_an_image"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format"),
    "pdf": (b"%PDF-1.7\n", "format"),
    "tiff": (coded(photo(64, 64), "TIFF"), "format"),
    "bmp": (coded(photo(64, 64), "BMP"), "format"),
    "ico": (coded(photo(64, 64), "ICO"), "format"),
    "heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "format"),
    "jpeg cut at half": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg without its last byte": (JPEG[:-2], "truncated"),
    "jpeg with zeros inside": (middle_replaced(JPEG, bytes(512), 512), "corrupt"),
    "jpeg with a piece lost": (middle_replaced(JPEG, b"", 300), "corrupt"),
    "progressive jpeg with zeros inside": (
        middle_replaced(coded(photo(), progressive=True), bytes(512), 512),
        "corrupt",
    ),
    "cmyk jpeg with zeros inside": (middle_replaced(coded(photo().convert("CMYK")), bytes(512), 512), "corrupt"),
    "grey jpeg with zeros inside": (middle_replaced(coded(photo().convert("L")), bytes(512), 512), "corrupt"),
    "jpeg of 1000 scans": (many_scans(1000), "too_many_scans"),
    "progressive jpeg cut": (coded(photo(), progressive=True)[:-5000], "truncated"),
    "jpeg of a header": (JPEG[:30], "corrupt"),
    "png cut": (coded(photo(64, 64), "PNG")[:2000], "truncated"),
    "gif cut": (coded(photo(64, 64).quantize(), "GIF")[:900], "truncated"),
    "webp cut": (coded(photo(), "WEBP")[:3000], "corrupt"),
    "avif cut": (coded(photo(), "AVIF")[:3000], "corrupt"),
    "png with garbage inside": (coded(photo(64, 64), "PNG").replace(b"IDAT", b"IDAT\x07\x07", 1), "corrupt"),
    "one pixel": (coded(photo(64, 64).resize((1, 1)), "PNG"), "too_small"),
    "10000 x 1": (coded(Image.new("RGB", (10000, 1)), "PNG"), "too_small"),
    "4000 x 10": (coded(Image.new("RGB", (4000, 10)), "PNG"), "too_thin"),
    "60 megapixels": (png_header(10000, 6000), "too_many_pixels"),
    "170 megapixels": (png_header(17000, 10000), "too_many_pixels"),
    "a 268 megapixel webp": (webp_header(), "too_many_pixels"),
    "400 megapixels": (png_header(20000, 20000), "too_many_pixels"),
}


@pytest.mark.parametrize("edges", [(17000, 10000), (20000, 20000)])
def test_an_image_of_too_many_pixels_is_refused_with_its_size(edges):
    found = verdict(png_header(*edges))
    assert found is not None
    assert found.message == f"{edges[0]} x {edges[1]} pixels; at most 50,000,000 are decoded"


@pytest.mark.parametrize("name", BAD)
def test_c_a_bad_image_gets_its_stable_reason_everywhere(name):
    data, code = BAD[name]
    found = verdict(data, decode=True)
    assert found is not None
    assert (found.code, bool(found.message)) == (code, True)
    assert found.code in images.CODES
    for use in (read_rgb, lambda data: read_rgb(data, at_least=16), lambda data: shrink(data, 64)):
        with pytest.raises(BadImage) as refused:
            use(data)
        assert refused.value.code == code


GOOD = {
    "JPEG": coded(photo(120, 90)),
    "PNG": coded(photo(120, 90), "PNG"),
    "WEBP": coded(photo(120, 90), "WEBP", quality=95),
    "AVIF": coded(photo(120, 90), "AVIF", quality=95),
    "GIF": coded(photo(120, 90).quantize(256), "GIF"),
    "progressive": coded(photo(120, 90), progressive=True),
    "animated": coded(
        photo(120, 90).quantize(), "GIF", save_all=True, append_images=[Image.new("P", (120, 90))], duration=9
    ),
    "animated webp": coded(
        photo(120, 90), "WEBP", quality=95, save_all=True, append_images=[Image.new("RGB", (120, 90))]
    ),
    "two pictures in one jpeg": coded(
        photo(120, 90), "MPO", save_all=True, append_images=[Image.new("RGB", (120, 90))]
    ),
    "CMYK": coded(photo(120, 90).convert("CMYK")),
    "grey": coded(photo(120, 90).convert("L"), quality=95),
    "16-bit grey": coded(Image.fromarray(np.asarray(photo(120, 90).convert("L")).astype(np.uint16) * 257), "PNG"),
    "palette with transparency": coded(photo(120, 90).quantize(255), "PNG", transparency=255),
    "transparency": coded(photo(120, 90).convert("RGBA"), "PNG"),
    "exif rotation": coded(photo(120, 90).transpose(Image.Transpose.ROTATE_90), quality=95, exif=turned_by(6)),
    "exif damaged": coded(photo(120, 90), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", GOOD)
def test_c_a_good_image_of_any_kind_is_read_as_the_photo_it_shows(name):
    assert verdict(GOOD[name], decode=True) is None
    image = read_rgb(GOOD[name])
    assert (image.mode, image.size) == ("RGB", (120, 90))
    assert psnr(image, photo(120, 90).convert("L" if "grey" in name else "RGB").convert("RGB")) > 25


def test_the_suffix_is_that_of_the_bytes():
    assert [suffix(GOOD[name]) for name in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "two pictures in one jpeg")] == [
        *("jpg", "png", "webp", "avif", "gif", "jpg")
    ]


def test_transparency_shows_white_in_every_mode():
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (0, 0, 16, 32))
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.paste(0, (0, 0, 16, 32))
    grey = Image.new("LA", (32, 32), (0, 0))
    for data in (
        coded(clear, "PNG"),
        coded(clear, "WEBP", lossless=True),
        coded(palette, "PNG", transparency=1),
        coded(palette, "GIF", transparency=1),
        coded(Image.new("L", (32, 32), 0), "PNG", transparency=0),
        coded(Image.new("RGB", (32, 32), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        coded(grey, "PNG"),
    ):
        assert read_rgb(data).getpixel((24, 9)) == (255, 255, 255)
    assert read_rgb(coded(palette, "PNG", transparency=1)).getpixel((3, 9)) == (200, 0, 0)


def test_half_transparency_is_half_white():
    assert read_rgb(coded(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), "PNG")).getpixel((5, 5)) == (127, 127, 127)


def test_16_bit_grey_keeps_its_range():
    levels = np.asarray(read_rgb(coded(grey16(), "PNG")))
    assert (levels.min(), levels.max()) == (0, 255)
    assert abs(levels.mean() - 127.5) < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_also_when_decoded_at_a_part_of_the_size(orientation):
    upright = photo(640, 400)
    exif = turned_by(orientation)
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    data = coded(stored, quality=95, exif=exif.tobytes())
    assert psnr(read_rgb(data), upright) > 30
    small = read_rgb(shrink(data, 100))
    assert small.size == (160, 100)
    assert psnr(small, upright.resize((160, 100), Image.Resampling.BICUBIC)) > 30


@pytest.mark.parametrize(
    ("edge", "target"), [(768, 256), (1000, 256), (1300, 256), (1340, 224), (1600, 256), (1340, 64)]
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_decoding_at_a_part_of_the_size_is_faithful(edge, target, options):
    image = photo(edge, edge * 5 // 4)
    data = coded(image, quality=90, **options)
    shape = (target, target * 5 // 4)
    full = read_rgb(data).resize(shape, Image.Resampling.BICUBIC)
    part = read_rgb(data, at_least=target)
    assert part.width < edge
    assert part.width >= 1.5 * target
    hard = 33 if "progressive" in options else 35  # hairlines at three eighths; shop photos are tested below
    assert psnr(part.resize(shape, Image.Resampling.BICUBIC), full) >= hard


ORIGINALS = Path(__file__).parents[2] / "shared" / "data" / "luma-originals"


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="no photos of a shop here")
@pytest.mark.parametrize("target", [224, 256])
def test_a_shops_own_photos_keep_35_db_read_and_shrunk(target):
    for path in sorted(ORIGINALS.glob("*.jpg"))[::6]:
        data = path.read_bytes()
        full = Image.open(path).convert("RGB")
        shape = images.shrunk(*full.size, target)
        full = full.resize(shape, Image.Resampling.BICUBIC)
        assert psnr(read_rgb(data, at_least=target).resize(shape, Image.Resampling.BICUBIC), full) >= 35
        assert psnr(images.shrunk_image(data, target)[1], full) >= 35


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_pixels_are_those_of_the_image_also_turned_grey_or_with_a_profile():
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (JPEG, coded(photo(), exif=exif.tobytes()), coded(photo().convert("L")), *GOOD.values()):
        for at_least in (None, 100):
            pixels = images.read_pixels(data, at_least=at_least)
            assert (pixels == np.asarray(read_rgb(data, at_least=at_least))).all()


def test_a_jpeg_is_never_decoded_below_the_target():
    for edge in range(90, 700, 61):
        assert min(read_rgb(coded(photo(edge, edge + 40)), at_least=80).size) >= min(edge, 120)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 700), st.integers(8, 700), st.integers(32, 300), st.booleans())
def test_shrinking_keeps_the_aspect_and_never_enlarges(width, height, size, sideways):
    if max(width, height) > images.MOST_ASPECT * min(width, height):
        return
    exif = Image.Exif()
    exif[0x0112] = 6 if sideways else 1
    data = coded(Image.new("RGB", (width, height), "red"), exif=exif.tobytes())
    shown = (height, width) if sideways else (width, height)
    small = read_rgb(shrink(data, size))
    assert small.size == images.shrunk(*shown, size)
    assert min(small.size) <= min(size, *shown)
    assert max(small.size) <= max(images.LONGEST * size, images.MOST_ASPECT * images.FEWEST_PIXELS) + images.MOST_ASPECT
    assert abs(small.width / small.height * shown[1] / shown[0] - 1) < 0.5 / min(small.size) + 0.001


def test_a_small_upright_jpeg_is_kept_byte_for_byte_and_only_that():
    small = coded(photo(100, 80))
    assert shrink(small, 80) == small
    assert shrink(coded(photo(100, 80), "PNG"), 80)[:2] == b"\xff\xd8"
    with pytest.raises(BadImage, match="truncated"):
        shrink(small[:-9], 200)


def test_shrinking_is_deterministic():
    assert shrink(JPEG, 100) == shrink(JPEG, 100)


def test_the_jpeg_of_a_photo_is_close_to_it():
    assert psnr(read_rgb(encode_jpeg(photo())), photo()) > 38


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_a_picture_or_a_reason_never_another_error(data):
    name = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "AVIF", "GIF", "CMYK"]))
    damaged = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    found = verdict(damaged, decode=True)
    assert found is None or found.code in images.CODES
    if found is None:
        assert read_rgb(damaged).mode == "RGB"
    else:
        with pytest.raises(BadImage):
            read_rgb(damaged)


def outcome(data: bytes) -> bytes | str:
    try:
        pixels = images.read_pixels(data, at_least=20)
    except BadImage as bad:
        return bad.code
    return bytes(str(pixels.shape), "ascii") + pixels.tobytes()


@pytest.mark.parametrize("size", [(33, 70), (257, 129), (16, 16)])
def test_what_we_packed_is_read_without_its_header_as_with_it(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode_jpeg(photo(*size))
    assert images._own_size(data) == size
    header = len(b"".join(images._own_header())) + 4
    draw = random.Random(0)
    damaged = [data, *(data[:cut] for cut in (0, 3, header - 1, header, len(data) - 2, len(data) - 60))]
    for place in (*range(header), *(draw.randrange(header, len(data)) for _ in range(200))):
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        damaged.append(bytes(changed))
    quick = [outcome(each) for each in damaged]
    monkeypatch.setattr(images, "_own_size", lambda data: None)
    assert quick == [outcome(each) for each in damaged]
