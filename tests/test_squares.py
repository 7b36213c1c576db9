import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_images import coded, photo, psnr

from facetclip.squares import cropped_square, square_planes, to_square


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (224, 224), (900, 100), (33, 31)])
def test_a_square_has_its_size_and_pad_shows_everything_on_white(shape):
    image = np.asarray(Image.new("RGB", shape, (10, 200, 30)))
    padded, cropped = (to_square(image, 96, fit).transpose(1, 2, 0) for fit in ("pad", "crop"))
    assert padded.shape == cropped.shape == (96, 96, 3)
    assert padded.dtype == np.uint8
    assert (cropped == (10, 200, 30)).all()
    green = (padded == (10, 200, 30)).all(axis=2)
    assert abs(green.mean() - min(shape) / max(shape)) < 0.02
    assert (padded[~green] == 255).all()
    assert green[48, 48]


@pytest.mark.parametrize("shape", [(330, 250), (250, 330), (700, 500), (120, 100)])
def test_the_crop_is_the_centre_as_clip_cuts_it(shape):
    image = photo(*shape)
    short, long = sorted(shape)
    side = int(224 * long / short)
    resized = image.resize((side, 224) if shape[0] > shape[1] else (224, side), Image.Resampling.BICUBIC)
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    found = to_square(np.asarray(image), 224, "crop").transpose(1, 2, 0)
    assert np.abs(found - expected).max() <= 2
    assert psnr(found, expected) > 50


def test_the_square_of_a_large_photo_is_that_of_its_full_decode():
    image = photo(1300, 1600)
    for progressive, subsampling in ((False, 2), (True, 2), (False, 0)):
        data = coded(image, quality=92, progressive=progressive, subsampling=subsampling)
        whole = Image.open(io.BytesIO(data)).resize((182, 224), Image.Resampling.BICUBIC)
        assert psnr(square_planes(data, 224, "pad")[:, :, 21:203].transpose(1, 2, 0), whole) >= 35


SHARES = st.floats(0, 1, exclude_max=True, width=32)
EDGES = st.integers(8, 60)


@given(EDGES, EDGES, st.integers(4, 40), st.floats(0.0625, 1, width=32), SHARES, SHARES)
@settings(max_examples=150, deadline=None)
def test_a_crop_of_any_photo_is_a_square_of_its_pixels(width, height, size, share, across, down) -> None:
    photo = np.full((height, width, 3), (20, 90, 160), dtype=np.uint8)
    for fit in ("pad", "crop"):
        found = cropped_square(photo, size, fit, (share, across, down)).transpose(1, 2, 0).reshape(-1, 3)
        assert found.shape == (size * size, 3)
        seen = {tuple(pixel) for pixel in found.tolist()}
        assert seen <= ({(20, 90, 160), (255, 255, 255)} if fit == "pad" else {(20, 90, 160)})


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (80, 80)])
def test_a_crop_shows_that_part_of_the_square(fit, shape):
    image = photo(*shape)
    assert np.array_equal(
        cropped_square(np.asarray(image), 48, fit, (1.0, 0.7, 0.2)), to_square(np.asarray(image), 48, fit)
    )
    edge = min(shape) if fit == "crop" else max(shape)
    whole = Image.new("RGB", (edge, edge), "white")
    whole.paste(image, tuple(-((extent - edge) // 2) for extent in shape))
    side = -(-3 * edge // 4)
    left = (edge - side + 1) // 2
    expected = to_square(np.asarray(whole.crop((left, 0, left + side, side))), 48, "crop").astype(int)
    apart = np.abs(cropped_square(np.asarray(image), 48, fit, (0.75, 0.5, 0.0)) - expected).max(axis=0)
    seams = 0 if fit == "crop" or shape[0] == shape[1] else 0.25  # white begins with a whole pixel
    assert (apart > 8).mean() <= seams


def test_a_crop_of_the_white_beside_a_photo_is_white() -> None:
    found = cropped_square(np.zeros((60, 6, 3), dtype=np.uint8), 20, "pad", (0.2, 0.0, 0.5))
    assert (found == 255).all()
