"""Photos as a model sees them: squares of pixels, resized by torch.

torch's antialiased bicubic gives what Pillow's does within a level or two, in a quarter of the time
(docs/log.md). It stands apart from `images`, so that `check` and `shard` start without torch.
"""

import numpy as np
import torch
from torch.nn import functional

from facetclip.images import Fit, read_pixels


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
    rows, columns = (max(1, round(edge * size / long)) for edge in (height, width))
    square = np.full((size, size, 3), 255, dtype=np.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    square[top : top + rows, left : left + columns] = _resized(pixels, rows, columns)
    return square.transpose(2, 0, 1)


def _resized(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Antialiased bicubic, uint8 [rows, columns, 3]. As a batch of one whose channels lie last: torch goes by the
    strides, and a batch that is added to a turned photo has others, which takes twice as long."""
    if pixels.shape[:2] == (rows, columns):
        return pixels
    planes = torch.from_numpy(np.require(pixels, requirements="W"))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(planes, (rows, columns), mode="bicubic", antialias=True)[0]
    return resized.permute(1, 2, 0).numpy()
