import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from facetclip.fingerprints import NONE, SIDE, fingerprint, tint_distance
from facetclip.images import read_rgb, squeezed
from facetclip.near_duplicates import MOST_BITS, MOST_TINT
from facetclip.render import RenderSpec, render_catalog

ITEMS = 80


@pytest.fixture(scope="module")
def garments(tmp_path_factory):
    """Photos of rendered garments, all in one studio's light and from one distance: as alike as packshots are."""
    catalog = render_catalog(RenderSpec("garments", ITEMS, size=200), tmp_path_factory.mktemp("garments") / "shop")
    photos = sorted((catalog.parent / "images").rglob("*.jpg"))
    return [(path.stem.rpartition("-")[0], read_rgb(path.read_bytes())) for path in photos]


def prints(picture):
    return fingerprint(squeezed(picture, SIDE))


def bits(one, other):
    return (one ^ other).bit_count()


def tints(one, other):
    return int(tint_distance(np.array([one], np.uint64), np.array([other], np.uint64))[0])


def same(one, other):
    """Whether two fingerprints are taken for those of one photo."""
    return (
        NONE not in (one[0], other[0]) and bits(one[0], other[0]) <= MOST_BITS and tints(one[1], other[1]) <= MOST_TINT
    )


def coded(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def cropped(picture, share):
    width, height = picture.size
    box = (width * share, height * share, width * (1 - share), height * (1 - share))
    return picture.crop(tuple(map(round, box)))


COPIES = {
    "half the size": (1.0, lambda picture: picture.resize((picture.width // 2, picture.height // 2))),
    "one and a half times the size": (1.0, lambda picture: picture.resize((300, 300))),
    "jpeg of quality 30": (1.0, lambda picture: coded(picture, "JPEG", quality=30)),
    "webp of quality 50": (1.0, lambda picture: coded(picture, "WEBP", quality=50)),
    "png": (1.0, lambda picture: coded(picture, "PNG")),
    "small and poor": (1.0, lambda picture: coded(picture.resize((100, 100)), "JPEG", quality=60)),
    "cut by a hundredth at each edge": (0.5, lambda picture: cropped(picture, 0.01)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_has_the_fingerprint_of_its_photo(garments, kind):
    share, copy = COPIES[kind]
    found = [same(prints(picture), prints(copy(picture))) for _, picture in garments]
    assert np.mean(found) >= share


def test_photos_of_different_products_have_different_ones(garments):
    found = [(product, prints(picture)) for product, picture in garments]
    pairs = [(a, b) for place, (one, a) in enumerate(found) for other, b in found[place + 1 :] if one != other]
    assert len(pairs) > 2500
    assert not any(same(a, b) for a, b in pairs)


def test_another_colour_of_the_same_cut_is_another_photo(garments):
    turned, missed = 0, 0
    for _, picture in garments:
        hue, saturation, value = picture.convert("HSV").split()
        if np.asarray(saturation).mean() < 30:
            continue  # a grey garment has no hue to turn
        other = Image.merge("HSV", (hue.point(lambda x: (x + 90) % 256), saturation, value)).convert("RGB")
        turned, missed = turned + 1, missed + same(prints(picture), prints(other))
    assert turned > 10
    assert missed == 0


@pytest.mark.parametrize("colour", ["white", "black", (200, 30, 30)])
def test_a_picture_with_nothing_on_it_is_like_no_other(colour):
    plain = Image.new("RGB", (256, 256), colour)
    noise = np.random.default_rng(0).normal(0, 3, (256, 256, 3))
    noisy = Image.fromarray((np.asarray(plain) + noise).clip(0, 255).astype(np.uint8))
    for blank in (plain, noisy, coded(plain, "JPEG", quality=20)):
        assert prints(blank)[0] == NONE
        assert not same(prints(blank), prints(plain))


def test_a_small_product_on_white_has_a_fingerprint():
    picture = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(picture).ellipse((110, 110, 150, 146), fill=(40, 40, 60))
    assert prints(picture)[0] != NONE
    assert same(prints(picture), prints(coded(picture, "JPEG", quality=40)))


def test_a_fingerprint_is_two_numbers_of_64_bits_the_same_every_time(garments):
    for _, picture in garments[:9]:
        one = prints(picture)
        assert one == prints(picture.copy())
        assert all(isinstance(number, int) and 0 <= number < 2**64 for number in one)


SYMMETRIC = """
import numpy as np
from facetclip.fingerprints import SIDE, fingerprint
for half in range(3, 15):
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pixels[half:-half, half:-half] = np.random.default_rng(half).integers(0, 200, 3)
    print(fingerprint(pixels))
"""


def test_an_older_processor_gives_the_same_fingerprints():
    """Of a symmetric picture half the frequencies are nothing but what a processor makes of rounding."""
    told = [
        subprocess.run([sys.executable, "-c", SYMMETRIC], env={**os.environ, **more}, capture_output=True, check=True)
        for more in ({}, {"OPENBLAS_CORETYPE": "Prescott"})
    ]
    assert told[0].stdout == told[1].stdout
    assert len(set(told[0].stdout.splitlines())) == 12


def test_tints_differ_by_their_most_different_byte():
    one = np.array([0x00FF0000000000FF, 7, 0], np.uint64)
    other = np.array([0x00F0000000000000, 7, 0xFF00000000000000], np.uint64)
    assert tint_distance(one, other).tolist() == [255, 0, 255]
    assert tint_distance(one[:0], other[:0]).tolist() == []
