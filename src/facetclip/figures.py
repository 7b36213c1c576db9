"""A person in a garment: skin, hair, and the clothes that go with it, drawn from a few proportions.

Catalogs photograph clothes on people as often as laid flat. Lengths are in shoulder half widths, as in `garments`.
"""

from collections.abc import Sequence

import numpy as np

from facetclip.drawing import Cloth, Colour, Point, Shape, ellipse, mirrored

SKINS: tuple[Colour, ...] = (
    (245, 208, 184),
    (226, 178, 148),
    (198, 146, 112),
    (150, 102, 74),
    (104, 70, 52),
    (78, 52, 40),
)
HAIRS: tuple[Colour, ...] = ((36, 28, 26), (72, 48, 34), (122, 80, 48), (188, 150, 96), (96, 92, 90))
CLOTHES: tuple[Colour, ...] = (
    (30, 30, 34),
    (70, 74, 84),
    (44, 58, 96),
    (150, 148, 146),
    (196, 178, 146),
    (120, 44, 50),
)
ARM = 2.62  # from the shoulder to the finger tips


def skin_of(draws: Sequence[float]) -> Colour:
    """The skin of the person that `draws` [10] describe."""
    return SKINS[int(draws[0] * len(SKINS))]


def behind_upper(draws: Sequence[float], angle: float, length: float) -> list[Shape]:
    """What shows around a garment of the upper body: head, arms at `angle` degrees, legs below its `length`."""
    skin, other = Cloth(skin_of(draws)), Cloth(CLOTHES[int(draws[2] * len(CLOTHES))])
    cut = 2.4 + 2.8 * draws[3]  # where the picture ends
    bare = draws[4] < 0.2
    shapes = _legs(skin if bare else other, min(length - 0.3, 2.2), max(cut, length + 0.1), slim=draws[5])
    shapes += _arms(skin, angle)
    return shapes + _head(draws)


def behind_lower(draws: Sequence[float], length: float) -> list[Shape]:
    """What shows around trousers, shorts or a skirt: a body above the waist, bare legs and shoes below."""
    skin, other = Cloth(skin_of(draws)), Cloth(CLOTHES[int(draws[2] * len(CLOTHES))])
    top = -0.5 - 2.0 * draws[3]
    torso: list[Point] = [(0.78, 0.1), (0.74, -0.6), (0.88, top)]
    shapes = _legs(skin, 0.6, max(length, 3.3) + 0.1, slim=0.3)
    shapes += [Shape([(s * 0.9, top), (s * 1.12, -0.4), (s * 1.2, 0.9)], skin, width=0.26) for s in (1, -1)]
    shapes.append(Shape([*torso, *mirrored(torso)], skin if draws[4] < 0.4 else other, shading="cloth"))
    if draws[6] < 0.8:
        shoe = Cloth(CLOTHES[int(draws[7] * len(CLOTHES))])
        low = max(length, 3.3) + 0.12
        shapes += [Shape(ellipse((s * 0.48, low), (0.3, 0.16), count=16), shoe) for s in (1, -1)]
    return shapes


def _head(draws: Sequence[float]) -> list[Shape]:
    """Hair behind, neck, face, hair above; some pictures end at the chin."""
    if draws[8] < 0.25:
        return [Shape([(-0.26, 0.15), (-0.22, -0.55), (0.22, -0.55), (0.26, 0.15)], Cloth(skin_of(draws)), outline=0)]
    skin, hair = Cloth(skin_of(draws)), Cloth(HAIRS[int(draws[1] * len(HAIRS))])
    long = draws[9] < 0.5
    fall = 0.25 if long else -0.75
    back: list[Point] = [(0.44, -1.1), (0.5, fall)] if long else [(0.42, -1.2), (0.4, fall)]
    return [
        Shape([*back, *mirrored(back)], hair, outline=0),
        Shape([(-0.24, 0.15), (-0.2, -0.75), (0.2, -0.75), (0.24, 0.15)], skin, outline=0),
        Shape(ellipse((0, -0.98), (0.36, 0.48), count=24), skin, shading="dome", outline=0),
        Shape(ellipse((0, -1.15), (0.42, 0.4), 175, 365, 20), hair, outline=0),
    ]


def _arms(skin: Cloth, angle: float) -> list[Shape]:
    turn = np.radians(angle)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    start = np.array([0.92, 0.12]) + 0.16 * across
    (x, y), (hand_x, hand_y) = start.tolist(), (start + ARM * along).tolist()
    shapes = []
    for side in (1, -1):
        shapes.append(Shape([(side * x, y), (side * hand_x, hand_y)], skin, width=0.32))
        shapes.append(Shape(ellipse((side * hand_x, hand_y), (0.17, 0.22), count=14), skin, outline=0))
    return shapes


def _legs(cloth: Cloth, top: float, bottom: float, *, slim: float) -> list[Shape]:
    """Hips and two legs, cut off at `bottom`."""
    crotch = top + 1.1
    ankle = 0.62 - 0.2 * slim
    hips: list[Point] = [(0.76, top), (0.94, top + 0.7), (0.92, min(bottom, crotch + 0.05))]
    shapes = [Shape([*hips, *mirrored(hips)], cloth, shading="cloth", outline=0)]
    if bottom > crotch:
        leg = [(0.02, crotch - 0.05), (0.93, crotch - 0.05), (0.16 + ankle, bottom), (0.16, bottom)]
        shapes += [Shape([(side * x, y) for x, y in leg], cloth, shading="cloth") for side in (1, -1)]
    return shapes
