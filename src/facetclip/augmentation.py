"""What may change in a training photo without changing any attribute: its place, its side, a little of its light.

A crop keeps most of each edge, a flip keeps everything, light changes all channels by one factor: hue never changes,
so colours stay what the table says. Crops are taken as a photo is made square (`squares.cropped_square`), which resizes
it once; the rest happens on the device. Nothing is drawn here; the numbers come from `batches.uniforms`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facetclip.config import Augmentation

DRAWS = 5  # random numbers that augment one photo


def crops(draws: np.ndarray, spec: Augmentation) -> np.ndarray:
    """What of each photo is kept, from `draws` [n, DRAWS] in [0, 1): [n, 3], the share of each edge, `smallest_crop` at
    least, and how far from the left and from the top it lies, as a share of what is left over.

    >>> crops(np.array([[0.5, 0.9, 0.25, 0.75, 0.0]]), Augmentation(smallest_crop=0.8)).tolist()
    [[0.9, 0.25, 0.75]]
    """
    share = 1 - draws[:, 0] * (1 - spec.smallest_crop)
    return np.stack([share, draws[:, 2], draws[:, 3]], axis=1)


def mirrored(draws: Tensor, spec: Augmentation) -> Tensor:
    """Which photos are mirrored, bool [n]."""
    return (draws[:, 1] < 0.5) & spec.flip


def light(draws: Tensor, spec: Augmentation) -> Tensor:
    """The factor on each photo's light, float [n]."""
    return 1 + spec.brightness * (2 * draws[:, 4] - 1)


@dataclass(frozen=True)
class Levels:
    """How a photo's levels 0..255 become the image tower's: level * `scale` + `offset`, at most `white`; float
    [n or 1, 3, 1, 1] each."""

    scale: Tensor
    offset: Tensor
    white: Tensor


def levels(lights: Tensor, mean: Tensor, std: Tensor) -> Levels:
    """Light [n] and the tower's mean and deviation [1, 3, 1, 1] in one: nothing gets lighter than white."""
    mean, std = mean.float(), std.float()
    return Levels(lights[:, None, None, None] / (255 * std), -mean / std, (1 - mean) / std)


def augment(pixels: Tensor, draws: Tensor, spec: Augmentation, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [n, 3, size, size] -> floats for the image tower, of `mean` and `std` [1, 3, 1, 1]: mirrored and lightened
    as `draws` [n, DRAWS] say, and normalised."""
    turned, lights = mirrored(draws, spec), light(draws, spec)
    shown = levels(lights, mean, std)
    if pixels.device.type == "cpu":
        return one_by_one(pixels, turned, lights, shown)
    return together(pixels, turned, shown)


def together(pixels: Tensor, turned: Tensor, shown: Levels) -> Tensor:
    """All photos at once, as a GPU likes it."""
    photos = torch.where(turned[:, None, None, None], pixels.flip(3), pixels).float()
    return photos.mul_(shown.scale).add_(shown.offset).clamp_(max=shown.white)


def one_by_one(pixels: Tensor, turned: Tensor, lights: Tensor, shown: Levels) -> Tensor:
    """The same: on a processor a photo that stays in its cache is faster."""
    out = torch.from_numpy(np.empty(pixels.shape, dtype=np.float32))  # NumPy asks for huge pages: a third of the time
    photos = zip(pixels.split(1), out.split(1), shown.scale.split(1), turned.tolist(), lights.tolist(), strict=True)
    for photo, place, scale, turn, lit in photos:
        place.copy_(photo.flip(3) if turn else photo)
        place.mul_(scale).add_(shown.offset)
        if lit > 1:
            torch.minimum(place, shown.white, out=place)
    return out
