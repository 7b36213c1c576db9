"""Photos as a model sees them: squares of pixels, resized by torch.

torch's antialiased bicubic gives what Pillow's does within a level or two, in a quarter of the time
(docs/log.md). It stands apart from `images`, so that `check` and `shard` start without torch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from facetclip.images import Fit, read_pixels

WHOLE = (1.0, 0.0, 0.0)  # the crop that keeps everything


def square_planes(data: bytes, size: int, fit: Fit) -> np.ndarray:
    """A photo's bytes as a model sees them, uint8 [3, size, size]; BadImage when they cannot be decoded."""
    return to_square(read_pixels(data, at_least=size), size, fit)


def to_square(pixels: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """uint8 [height, width, 3] as uint8 [3, size, size]: `pad` shows all on white, `crop` the centre as CLIP does.

    The channels of a pixel lie side by side in memory, as in a photo.
    """
    height, width = pixels.shape[:2]
    short, long = min(width, height), max(width, height)
    if fit == "crop":
        side = int(size * long / short)
        rows, columns = (side, size) if width <= height else (size, side)
        top, left = (rows - size) // 2, (columns - size) // 2
        return _resized(pixels, rows, columns)[top : top + size, left : left + size].transpose(2, 0, 1)
    photo = to_longest(pixels, size)
    rows, columns = photo.shape[:2]
    square = np.full((size, size, 3), 255, dtype=np.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    square[top : top + rows, left : left + columns] = photo
    return square.transpose(2, 0, 1)


def to_longest(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [height, width, 3] with its longer edge of `size` pixels."""
    height, width = pixels.shape[:2]
    return _resized(pixels, *(max(1, round(edge * size / max(height, width))) for edge in (height, width)))


def cropped_square(pixels: np.ndarray, size: int, fit: Fit, crop: Sequence[float]) -> np.ndarray:
    """A part of the square that `to_square` shows, uint8 [3, size, size]: of each edge the share crop[0], so that
    crop[1] of what is left over lies to its left, and crop[2] above it. The photo is resized once.

    >>> cropped_square(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), 2, "crop", (0.5, 0.0, 0.99))[0].tolist()
    [[24, 27], [36, 39]]
    """
    height, width = pixels.shape[:2]
    edge = min(height, width) if fit == "crop" else max(height, width)
    side = max(1, math.ceil(crop[0] * edge - 1e-3))
    if side == edge:
        return to_square(pixels, size, fit)
    left, top = (int(place * (edge - side + 1)) for place in crop[1:])
    columns, across = _seen((width - edge) // 2 + left, side, width, size)
    rows, down = _seen((height - edge) // 2 + top, side, height, size)
    part = pixels[rows.start : rows.stop, columns.start : columns.stop]
    if len(down) == len(across) == size:
        return _resized(part, size, size).transpose(2, 0, 1)
    square = np.full((size, size, 3), 255, dtype=np.uint8)
    if columns and rows:
        square[down.start : down.stop, across.start : across.stop] = _resized(part, len(down), len(across))
    return square.transpose(2, 0, 1)


def _seen(start: int, side: int, extent: int, size: int) -> tuple[range, range]:
    """Along one edge: which of a photo's `extent` pixels lie in a crop of `side` from `start` on, and which of `size`
    pixels show them; the others show white."""
    first, last = max(start, 0), min(start + side, extent)
    if first >= last:
        return range(0), range(0)
    low = min(round((first - start) * size / side), size - 1)
    return range(first, last), range(low, max(low + 1, round((last - start) * size / side)))


def _resized(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Antialiased bicubic, uint8 [rows, columns, 3]. As a batch of one whose channels lie last: torch goes by the
    strides, and a batch that is added to a turned photo has others, which takes twice as long."""
    if pixels.shape[:2] == (rows, columns):
        return pixels
    planes = torch.from_numpy(np.require(pixels, requirements="W"))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(planes, (rows, columns), mode="bicubic", antialias=True)[0]
    return resized.permute(1, 2, 0).numpy()
