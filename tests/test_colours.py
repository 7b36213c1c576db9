import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_images import coded, photo, psnr

from facetclip import colours
from facetclip.images import read_rgb, shrink, verdict

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def swapped(first=b"rXYZ", second=b"gXYZ"):
    """An sRGB profile whose red is green and whose green is red."""
    return SRGB.replace(first, b"????").replace(second, first).replace(b"????", second)


def lab(colour):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    light, a, b = to_lab.apply(Image.new("RGB", (1, 1), colour)).tobytes()
    return bytes([light, a ^ 128, b ^ 128])


def four_inks(ink_colours):
    """A profile of a press whose four inks have these colours: the darkest of what is printed shows."""
    grid = b""
    for corner in range(16):
        inks = [ink_colours[place] for place in range(4) if corner >> (3 - place) & 1]
        grid += lab(tuple(min([255, *(ink[channel] for ink in inks)]) for channel in range(3)))
    ramp = bytes(range(256))
    unit = b"".join(struct.pack(">i", 65536 * (place % 4 == 0)) for place in range(9))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + 4 * ramp + grid + 3 * ramp
    head = struct.pack(
        ">I4sI4s4s4s12s4s", 128 + 16 + len(table), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ", b"", b"acsp"
    )
    white = struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(68, b"\0") + white.ljust(60, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


ORDINARY = [(0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]


def blocks(*patches):
    """Patches of colour side by side, each 32 pixels wide."""
    image = Image.new("RGB", (32 * len(patches), 32))
    for place, patch in enumerate(patches):
        image.paste(patch, (32 * place, 0, 32 * place + 32, 32))
    return image


def shown(data, count, read=read_rgb):
    """What the middle of each patch shows."""
    image = read(data)
    return [np.array(image.getpixel((32 * place + 16, 16))).astype(int) for place in range(count)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_profile_is_applied_in_every_format_and_also_when_shrunk(kind):
    options = {} if kind == "PNG" else {"quality": 95}
    data = coded(blocks(RED, GREEN, BLUE), kind, icc_profile=swapped(), **options)
    for found, expected in zip(shown(data, 3), (GREEN, RED, BLUE), strict=True):
        assert np.abs(found - expected).max() <= 6
    small = Image.open(io.BytesIO(shrink(data, 32)))
    assert np.abs(np.array(small.convert("RGB").getpixel((16, 16))) - GREEN).max() <= 6
    assert not small.info.get("icc_profile"), "its colours are sRGB's now"


def test_a_profile_of_a_palette_and_of_transparency_is_applied_too():
    clear = blocks(RED, GREEN, BLUE).convert("RGBA")
    clear.paste((0, 0, 0, 0), (64, 0, 96, 32))
    for data in (
        coded(clear, "PNG", icc_profile=swapped()),
        coded(blocks(RED, GREEN, (255, 255, 255)).quantize(4), "PNG", icc_profile=swapped()),
    ):
        for found, expected in zip(shown(data, 3), (GREEN, RED, (255, 255, 255)), strict=True):
            assert np.abs(found - expected).max() <= 6


def test_a_large_photo_with_a_profile_is_the_photo_whose_colours_were_changed_at_full_size():
    image = photo(1200, 1600)
    data = coded(image, quality=92, icc_profile=swapped())
    full = read_rgb(data).resize((168, 224), Image.Resampling.BICUBIC)
    assert psnr(read_rgb(data, at_least=168).resize((168, 224), Image.Resampling.BICUBIC), full) > 35
    red, green, blue = Image.open(io.BytesIO(data)).convert("RGB").split()
    assert psnr(read_rgb(data), Image.merge("RGB", (green, red, blue))) > 35


def test_srgb_itself_costs_nothing_whatever_it_is_called():
    plain = photo(120, 90)
    with_profile = coded(plain, icc_profile=SRGB)
    assert colours.in_srgb(plain, SRGB) is None
    assert colours.in_srgb(plain, SRGB.replace(b"sRGB", b"none")) is None
    assert shrink(with_profile, 90) == with_profile, "kept byte for byte"
    assert colours.in_srgb(plain, swapped()) is not None


@pytest.mark.parametrize(
    "profile",
    [
        b"x",
        bytes(500),
        SRGB[:-200],
        SRGB[:140],
        SRGB[:128] + b"\xff" * 400,
        SRGB.replace(b"RGB XYZ ", b"GRAYXYZ "),
        four_inks(ORDINARY),
        swapped() + bytes(5 << 20),
    ],
    ids=["a byte", "zeros", "cut", "header alone", "tags of garbage", "grey", "of four inks", "too large"],
)
def test_a_profile_that_cannot_be_used_changes_nothing_and_refuses_nothing(profile):
    image = photo(120, 90)
    data = coded(image, icc_profile=profile)
    assert verdict(data, decode=True) is None
    assert psnr(read_rgb(data), read_rgb(coded(image))) > 90


def test_grey_has_grey_profiles():
    grey = Image.linear_gradient("L").resize((96, 32))
    assert psnr(read_rgb(coded(grey, "PNG", icc_profile=swapped())), grey.convert("RGB")) > 90


def test_four_inks_are_read_as_adobe_stores_them():
    inks = [(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)]
    image = Image.new("CMYK", (160, 32))
    for place, patch in enumerate(inks):
        image.paste(patch, (32 * place, 0, 32 * place + 32, 32))
    data = coded(image, quality=95)
    for found, expected in zip(shown(data, 5), [*ORDINARY, (255, 255, 255)], strict=True):
        assert np.abs(found - expected).max() <= 8
    assert psnr(read_rgb(data), Image.open(io.BytesIO(data)).convert("RGB")) > 45
    violet = [(128, 0, 128), *ORDINARY[1:]]
    printed = coded(image, quality=95, icc_profile=four_inks(violet))
    for found, expected in zip(shown(printed, 5), [*violet, (255, 255, 255)], strict=True):
        assert np.abs(found - expected).max() <= 16, "black and white may move a little: they are stretched to sRGB's"
