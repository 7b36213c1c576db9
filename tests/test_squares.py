import io

import numpy as np
import pytest
from PIL import Image
from test_images import coded, photo, psnr

from facetclip.squares import square_planes, to_square


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
