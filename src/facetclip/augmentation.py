"""What may change in a training photo without changing any attribute: its place, its side, a little of its light.

A crop keeps most of each edge, a flip keeps everything, light changes all channels by one factor: hue never changes,
so colours stay what the table says. Nothing is drawn here; the numbers come from `batches.uniforms`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facetclip.config import Augmentation

DRAWS = 5  # random numbers that augment one photo


@dataclass(frozen=True)
class Changes:
    """What happens to each of n photos: the square of whole pixels that is kept, whether it is mirrored, and the
    factor on its light; all [n]."""

    left: Tensor
    top: Tensor
    side: Tensor
    mirrored: Tensor
    light: Tensor


def changes(draws: Tensor, size: int, spec: Augmentation) -> Changes:
    """What `draws` [n, DRAWS] in [0, 1) make of photos of `size` pixels: at least `smallest_crop` of each edge is kept.

    >>> changes(torch.zeros(1, 5), 100, Augmentation(smallest_crop=0.8)).side.tolist()
    [100]
    """
    least = max(1, math.ceil(spec.smallest_crop * size - 1e-6))
    side = size - (draws[:, 0] * (size - least + 1)).long()
    left, top = ((draws[:, column] * (size - side + 1)).long() for column in (2, 3))
    mirrored = (draws[:, 1] < 0.5) & spec.flip
    return Changes(left, top, side, mirrored, 1 + spec.brightness * (2 * draws[:, 4] - 1))


@dataclass(frozen=True)
class Levels:
    """How a photo's levels 0..255 become the image tower's: level * `scale` + `offset`, at most `white`; float
    [n or 1, 3, 1, 1] each."""

    scale: Tensor
    offset: Tensor
    white: Tensor


def levels(light: Tensor, mean: Tensor, std: Tensor) -> Levels:
    """Light [n] and the tower's mean and deviation [1, 3, 1, 1] in one: nothing gets lighter than white."""
    mean, std = mean.float(), std.float()
    return Levels(light[:, None, None, None] / (255 * std), -mean / std, (1 - mean) / std)


def augment(pixels: Tensor, draws: Tensor, spec: Augmentation, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [n, 3, size, size] -> floats for the image tower, of `mean` and `std` [1, 3, 1, 1]: cropped and scaled
    back, mirrored and lightened as `draws` [n, DRAWS] say, and normalised."""
    made = changes(draws, pixels.shape[-1], spec)
    way = one_by_one if pixels.device.type == "cpu" else together
    return way(pixels, made, levels(made.light, mean, std))


def together(pixels: Tensor, made: Changes, shown: Levels) -> Tensor:
    """All photos at once, as a GPU likes it."""
    size = pixels.shape[-1]
    steps = (torch.arange(size, device=pixels.device) + 0.5) / size
    inside = (made.side[:, None] * steps - 0.5).clamp(min=0).minimum(made.side[:, None] - 1)  # never beyond the crop
    across, down = made.left[:, None] + inside, made.top[:, None] + inside
    across = torch.where(made.mirrored[:, None], across.flip(1), across)
    x, y = ((2 * place + 1) / size - 1 for place in (across, down))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    cropped = functional.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cropped.mul_(shown.scale).add_(shown.offset).clamp_(max=shown.white)


def one_by_one(pixels: Tensor, made: Changes, shown: Levels) -> Tensor:
    """The same within a level of 255: on a processor whole numbers, and a photo that stays in its cache, are faster."""
    size = pixels.shape[-1]
    out = torch.from_numpy(np.empty(pixels.shape, dtype=np.float32))  # NumPy asks for huge pages: a third of the time
    listed = (each.tolist() for each in (made.left, made.top, made.side, made.mirrored, made.light))
    photos = zip(pixels.split(1), out.split(1), shown.scale.split(1), *listed, strict=True)
    for photo, place, scale, left, top, side, mirrored, light in photos:
        kept = photo[..., top : top + side, left : left + side]
        if side != size:
            kept = functional.interpolate(kept, (size, size), mode="bilinear", align_corners=False)
        place.copy_(kept.flip(3) if mirrored else kept)
        place.mul_(scale).add_(shown.offset)
        if light > 1:
            torch.minimum(place, shown.white, out=place)
    return out
