"""What a picture looks like in sixteen bytes, so that its copies are found among millions without opening them again.

`phash` is 64 bits of brightness, the signs of the lowest frequencies (a DCT of 32 x 32 without its constant): copies of
another size or quality differ in a few. Product photos on white share many of them, and the colours of one cut
nearly all; `tint` tells these apart: the brightness and colour of the picture's middle, one number a byte.
"""

import numpy as np

SIDE = 32  # pixels both ways of the picture that is looked at
BLANK = 4.0  # standard deviation of brightness, of 255, below which the signs would be those of noise
NONE = 0  # the phash of a picture on which nothing is to be seen: it is like no other
BYTES = 8  # of a tint
LEVEL = 1e-6  # of brightness: beyond the rounding of any processor, which must not decide what half of a copy is like


def _cosines(side: int) -> np.ndarray:
    """float64 [side, side]: the orthonormal DCT-II, a frequency a row."""
    place = np.arange(side)
    waves = np.cos(np.pi * (2 * place[None, :] + 1) * place[:, None] / (2 * side)) * np.sqrt(2 / side)
    waves[0] /= np.sqrt(2)
    return waves


def _lowest(count: int) -> np.ndarray:
    """int [2, count]: the lowest frequencies but the constant, by the sum of both, then by the first."""
    places = sorted((i + j, i, j) for i in range(SIDE) for j in range(SIDE))
    return np.array([(i, j) for _, i, j in places[1 : count + 1]]).T


def _middle() -> np.ndarray:
    """float64 [3, SIDE * SIDE]: what averages the upper, middle and lower part of the picture's middle third."""
    weights = np.zeros((3, SIDE, SIDE))
    for part, rows in enumerate(np.array_split(np.arange(SIDE), 3)):
        weights[part, rows, SIDE // 3 : SIDE - SIDE // 3] = 1
    return (weights / weights.sum(axis=(1, 2), keepdims=True)).reshape(3, -1)


_ROWS, _COLUMNS = _lowest(64)
_WAVES = _cosines(SIDE)[: max(_ROWS.max(), _COLUMNS.max()) + 1]
_MIDDLE = _middle()
_BRIGHTNESS = np.array([0.299, 0.587, 0.114])
_YCC = np.array([_BRIGHTNESS, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_ZERO = np.array([0, 128, 128])  # brightness, blueness, redness of black


def fingerprint(pixels: np.ndarray) -> tuple[int, int]:
    """(phash, tint) of a picture squeezed to uint8 [SIDE, SIDE, 3], sRGB; of a blank one the phash is NONE.

    >>> fingerprint(np.full((SIDE, SIDE, 3), 255, np.uint8))[0] == NONE
    True
    """
    colours = pixels.reshape(-1, 3).astype(np.float64)
    return _phash((colours @ _BRIGHTNESS).reshape(SIDE, SIDE)), _tint(colours)


def _phash(brightness: np.ndarray) -> int:
    flat = brightness.ravel()
    if flat @ flat / flat.size - flat.mean() ** 2 < BLANK**2:  # a variance, at a fifth of the time of `std`
        return NONE
    signs = (_WAVES @ brightness @ _WAVES.T)[_ROWS, _COLUMNS] > LEVEL
    return int.from_bytes(np.packbits(signs).tobytes(), "big") or 1


def _tint(colours: np.ndarray) -> int:
    """Brightness, blueness and redness from top to bottom, but for the last part's brightness."""
    parts = (_MIDDLE @ colours) @ _YCC.T + _ZERO
    parts[2, 0] = parts[2, 2]
    return int.from_bytes(np.floor(parts.ravel()[:BYTES] + 0.5 + LEVEL).clip(0, 255).astype(np.uint8).tobytes(), "big")


def tint_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """uint8 [n]: by how much, of 255, the tints uint64 [n] differ where they differ most.

    >>> tint_distance(np.array([0x0105], np.uint64), np.array([0x0401], np.uint64)).tolist()
    [4]
    """
    first, second = (np.ascontiguousarray(tints, np.uint64).view(np.uint8).reshape(-1, BYTES) for tints in (one, other))
    return (np.maximum(first, second) - np.minimum(first, second)).max(axis=1, initial=0)
