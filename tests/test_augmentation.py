import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from facetclip.augmentation import DRAWS, augment, crops, levels, light, mirrored, one_by_one, together
from facetclip.batches import uniforms
from facetclip.config import Augmentation

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1)
ZERO, ONE = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)


def draws_of(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(uniforms(seed, np.arange(count), DRAWS))


def smooth(count: int, size: int) -> Tensor:
    """uint8 [count, 3, size, size] without hard edges."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)


def test_augmenting_nothing_only_normalises() -> None:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    off = Augmentation(flip=False, smallest_crop=1.0, brightness=0.0)
    expected = (pixels.float() / 255 - MEAN) / STD
    assert torch.allclose(augment(pixels, torch.rand(3, DRAWS), off, MEAN, STD), expected, atol=1e-5)


def test_a_flip_mirrors_and_leaves_colours() -> None:
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    spec = Augmentation(flip=True, smallest_crop=1.0, brightness=0.0)
    flipped = augment(pixels, torch.zeros(1, DRAWS), spec, ZERO, ONE)
    assert torch.allclose(flipped, pixels.flip(3).float() / 255, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_processor_and_a_gpu_make_the_same_of_a_photo(layout) -> None:
    pixels, draws, spec = smooth(32, 40).to(memory_format=layout), draws_of(32), Augmentation(brightness=0.5)
    turned, lights = mirrored(draws, spec), light(draws, spec)
    shown = levels(lights, MEAN, STD)
    alone = one_by_one(pixels, turned, lights, shown)
    assert torch.allclose(alone, together(pixels, turned, shown), atol=1e-6)
    assert alone.is_contiguous()


def test_a_photo_is_augmented_the_same_in_any_company() -> None:
    pixels, draws = smooth(9, 24), draws_of(9)
    whole = augment(pixels, draws, Augmentation(), MEAN, STD)
    some = [7, 2, 5]
    assert torch.equal(augment(pixels[some], draws[some], Augmentation(), MEAN, STD), whole[some])


@pytest.mark.parametrize("smallest", [0.01, 0.5, 0.8, 0.999, 1.0])
def test_crops_keep_their_share_of_each_edge_and_lie_anywhere(smallest: float) -> None:
    share, *places = crops(draws_of(5000).numpy(), Augmentation(smallest_crop=smallest)).T
    assert share.max() <= 1
    assert share.min() >= smallest - 1e-6
    assert share.min() == pytest.approx(smallest, abs=1e-3)
    for place in places:
        assert np.histogram(place, 5, (0, 1))[0].min() > 900


def test_half_of_the_photos_are_mirrored_and_none_where_left_and_right_matter() -> None:
    assert abs(mirrored(draws_of(5000), Augmentation()).float().mean() - 0.5) < 0.02
    assert not mirrored(draws_of(5000), Augmentation(flip=False)).any()


def test_no_hue_changes() -> None:
    spec = Augmentation(flip=True, smallest_crop=0.5, brightness=0.3)
    colours = torch.tensor([[180, 20, 30], [20, 150, 90], [40, 60, 190], [120, 120, 120], [150, 110, 60], [3, 3, 3]])
    pixels = colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 12, 12)
    for seed in range(20):
        shown = augment(pixels, draws_of(len(colours), seed), spec, ZERO, ONE)
        for colour, photo in zip(colours.tolist(), shown, strict=True):
            hue, saturation, _ = colorsys.rgb_to_hsv(*(level / 255 for level in colour))
            after = colorsys.rgb_to_hsv(*photo[:, 6, 6].tolist())
            assert after[:2] == pytest.approx((hue, saturation), abs=1e-4)
            assert photo.std(dim=(1, 2)).max() < 1e-6


def test_light_changes_by_its_share_and_never_beyond_white() -> None:
    pixels = torch.full((500, 3, 8, 8), 200, dtype=torch.uint8)
    shown = augment(pixels, draws_of(500), Augmentation(brightness=0.5), MEAN, STD)
    lit = (shown * STD + MEAN)[:, 0, 4, 4] * 255 / 200
    assert lit.min() >= 0.5
    assert lit.min() < 0.52
    assert lit.max() == pytest.approx(255 / 200, abs=1e-4)
