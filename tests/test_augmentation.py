import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from facetclip.augmentation import DRAWS, augment, changes, levels, one_by_one, together
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


@pytest.mark.parametrize("spec", [Augmentation(), Augmentation(smallest_crop=0.3, brightness=0.5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_processor_and_a_gpu_make_the_same_of_a_photo_within_a_level(spec, layout) -> None:
    pixels = smooth(32, 40).to(memory_format=layout)
    made = changes(draws_of(32), 40, spec)
    shown = levels(made.light, ZERO, ONE)
    alone, all_at_once = one_by_one(pixels, made, shown), together(pixels, made, shown)
    assert (255 * (alone - all_at_once).abs()).max() < 1.1 * made.light.max()
    assert alone.is_contiguous()


def test_a_photo_is_augmented_the_same_in_any_company() -> None:
    pixels, draws = smooth(9, 24), draws_of(9)
    whole = augment(pixels, draws, Augmentation(), MEAN, STD)
    some = [7, 2, 5]
    assert torch.equal(augment(pixels[some], draws[some], Augmentation(), MEAN, STD), whole[some])


@pytest.mark.parametrize("smallest", [0.01, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("size", [8, 72, 224])
def test_a_crop_lies_inside_the_photo_and_keeps_its_share_of_each_edge(smallest: float, size: int) -> None:
    made = changes(draws_of(5000), size, Augmentation(smallest_crop=smallest))
    assert made.side.max() == size
    assert made.side.min() >= smallest * size
    for start in (made.left, made.top):
        assert start.min() >= 0
        assert (start + made.side).max() <= size
    if smallest == 0.5:
        assert made.side.min() == size / 2
        assert made.left.max() >= size / 2 - 2


def test_half_of_the_photos_are_mirrored_and_none_where_left_and_right_matter() -> None:
    assert abs(changes(draws_of(5000), 8, Augmentation()).mirrored.float().mean() - 0.5) < 0.02
    assert not changes(draws_of(5000), 8, Augmentation(flip=False)).mirrored.any()


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
    light = (shown * STD + MEAN)[:, 0, 4, 4] * 255 / 200
    assert light.min() >= 0.5
    assert light.min() < 0.52
    assert light.max() == pytest.approx(255 / 200, abs=1e-4)
