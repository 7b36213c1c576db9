"""Shirts, dresses, trousers and skirts, laid flat or worn by a person, drawn from a few proportions.

Lengths are in shoulder half widths; the shoulder line is near y = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from facetclip.drawing import Cloth, Colour, Point, Shape, curve, ellipse, mirrored, shade
from facetclip.figures import behind_lower, behind_upper, skin_of

REACH = {"short": 0.66, "three-quarter": 1.35, "long": 2.35}  # of a sleeve, from shoulder to hem
NECKS = {"crew": 0.35, "v-neck": 0.38, "scoop": 0.5, "collar": 0.36, "hood": 0.4, "turtleneck": 0.33}  # half widths

HANGING = (66.0, 84.0)  # degrees below the horizontal at which worn sleeves hang


@dataclass(frozen=True)
class Cut:
    """The proportions of an upper garment; `details` are drawn on top."""

    length: tuple[float, float] = (2.1, 2.5)
    hem: tuple[float, float] = (0.85, 1.0)  # half width at the hem
    waist: tuple[float, float] = (0.85, 0.95)
    strap: float = 0.84  # half width of the shoulder line where sleeveless: narrow straps below 0.8
    loose: float = 0.42  # width of a sleeve at its hem
    angle: tuple[float, float] = (58, 70)  # of the sleeves below the horizontal, degrees
    details: tuple[str, ...] = ()
    legs: float = 0.0  # length of trouser legs below the hem


@dataclass(frozen=True)
class Bottom:
    """The proportions of what is worn below the waist: legs of a width, or none for skirts with `folds`."""

    length: tuple[float, float]
    leg: float = 0.0
    folds: int = 0


UPPERS = {
    "t-shirt": Cut(loose=0.46),
    "shirt": Cut(length=(2.25, 2.6), details=("buttons",)),
    "sweater": Cut(length=(1.95, 2.3), hem=(0.8, 0.9), loose=0.48, details=("rib",)),
    "hoodie": Cut(length=(2.05, 2.4), hem=(0.85, 0.95), loose=0.5, details=("pouch", "rib")),
    "jacket": Cut(length=(1.95, 2.35), details=("zip", "pockets"), loose=0.52),
    "dress": Cut(length=(3.2, 3.8), hem=(1.2, 1.7), waist=(0.62, 0.74)),
    "tank top": Cut(strap=0.66),
}
LOWERS = {"pants": Bottom((3.0, 3.5), 0.62), "shorts": Bottom((1.3, 1.6), 0.72), "skirt": Bottom((1.5, 2.2), folds=4)}
_OTHERS = {
    "polo": Cut(loose=0.44, details=("placket",)),
    "blouse": Cut(hem=(0.95, 1.2), waist=(0.78, 0.88), loose=0.5, details=("frill",)),
    "coat": Cut(length=(2.8, 3.4), hem=(0.95, 1.15), loose=0.54, details=("open", "buttons", "pockets")),
    "cardigan": Cut(length=(2.1, 2.6), details=("open", "buttons"), loose=0.46),
    "vest": Cut(length=(1.7, 2.1), details=("quilt", "zip")),
    "tunic": Cut(length=(2.6, 3.0), hem=(1.05, 1.35), waist=(0.85, 0.95)),
    "jumpsuit": Cut(length=(1.9, 2.1), waist=(0.68, 0.78), hem=(0.84, 0.92), legs=2.0, details=("belt",)),
    "robe": Cut(length=(3.2, 3.7), hem=(1.0, 1.2), loose=0.62, details=("open", "belt")),
}
STARTER_UPPERS = {kind: replace(cut, angle=(46, 76)) for kind, cut in _OTHERS.items()}
STARTER_LOWERS = {"leggings": Bottom((3.0, 3.4), 0.4), "kilt": Bottom((1.2, 1.6), folds=9)}


@dataclass(frozen=True)
class Garment:
    """One product; `draws` in 0..1 [20] make it differ from its like. Without sleeve and neckline below the waist.

    `person`: draws [10] of who wears it, none where it lies flat.
    """

    category: str
    sleeve: str
    neckline: str
    cloth: Cloth
    trim: Colour
    draws: Sequence[float]
    person: Sequence[float] = ()


def draw_garment(garment: Garment) -> list[Shape]:
    """The shapes of a garment from back to front."""
    cut = (UPPERS | STARTER_UPPERS).get(garment.category)
    if cut is None:
        return _lower(garment, (LOWERS | STARTER_LOWERS)[garment.category])
    return _upper(garment, cut)


def _between(limits: tuple[float, float], draw: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * draw


def _shoulder(x: float) -> float:
    """Where the shoulder line lies at `x` from the middle."""
    return -0.14 + (x - 0.3) * 0.34


def _upper(garment: Garment, cut: Cut) -> list[Shape]:
    draws, bare = garment.draws, garment.sleeve == "sleeveless"
    length, hem, waist = (_between(span, draws[i]) for i, span in enumerate((cut.length, cut.hem, cut.waist)))
    cloth = replace(garment.cloth, block=length * 0.5)
    tip = cut.strap if bare else 1.0
    neck = min(NECKS[garment.neckline] + 0.06 * draws[3], tip - 0.2)
    pit = 0.66 + 0.1 * draws[4]
    hollow = tip - 0.06 if bare else 0.93
    arm = curve([(tip, _shoulder(tip)), (hollow, 0.4), (0.88, pit)], 6)
    side = curve([(0.88, pit), (waist, pit + (min(length, 2.5) - pit) * 0.5), (hem, length)], 8)
    right: list[Point] = [(neck, _shoulder(neck)), *arm, *side]
    shapes = behind_upper(garment.person, _angle(garment, cut), length) if garment.person else []
    shapes += [] if bare else _sleeves(garment, cut, pit)
    shapes = [*_above(garment), *shapes] if garment.person else [*shapes, *_above(garment)]
    if cut.legs:
        shapes += _legs(cloth, length - 0.1, length + cut.legs, (hem, 0.42))
    shapes.append(Shape([*right, *mirrored(right)], cloth, shading="cloth"))
    for detail in cut.details:
        shapes += _detail(detail, garment, length, hem)
    return shapes + _neckline(garment, neck)


def _sleeves(garment: Garment, cut: Cut, pit: float) -> list[Shape]:
    """Both sleeves, reaching under the body: a long one is narrow and ends in a cuff."""
    draws, reach = garment.draws, REACH[garment.sleeve] * (1 + 0.06 * (2 * garment.draws[6] - 1))
    angle = np.radians(_angle(garment, cut))
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    wide = cut.loose * (0.9 + 0.2 * draws[7]) * {"short": 1.25, "three-quarter": 0.95, "long": 0.75}[garment.sleeve]
    tip = np.array([1.0, _shoulder(1.0)])
    outer, inner = tip + along * reach, tip + along * reach + across * wide
    outline = [(0.7, _shoulder(0.7)), (1.0, _shoulder(1.0)), *map(_point, (outer, inner)), (0.88, pit), (0.7, pit)]
    band = 0.16 if garment.sleeve == "long" else 0.07
    cuff = [_point(corner) for corner in (outer, inner, inner - along * band, outer - along * band)]
    pattern = "solid" if garment.cloth.pattern == "colour-blocked" else garment.cloth.pattern
    cloth, edge = replace(garment.cloth, pattern=pattern), Cloth(shade(garment.trim, 0.85))
    shapes = []
    for sign in (1, -1):
        shapes.append(Shape([(sign * x, y) for x, y in outline], cloth, shading="cloth"))
        shapes.append(Shape([(sign * x, y) for x, y in cuff], edge, shading="flat"))
    return shapes


def _angle(garment: Garment, cut: Cut) -> float:
    """Of the sleeves below the horizontal, degrees; arms hang."""
    return _between(HANGING if garment.person else cut.angle, garment.draws[5])


def _point(place: np.ndarray) -> Point:
    return float(place[0]), float(place[1])


def _above(garment: Garment) -> list[Shape]:
    """What stands above the shoulder line, behind the body."""
    cloth, draw = Cloth(shade(garment.cloth.colour, 0.92)), garment.draws[8]
    if garment.neckline == "turtleneck":
        top = -0.5 - 0.1 * draw
        return [Shape([(-0.4, 0.0), (-0.34, top), (0.34, top), (0.4, 0.0)], cloth, shading="cloth")]
    if garment.neckline == "hood":
        peak = -0.9 - 0.15 * draw
        side: list[Point] = [(-0.62, 0.05), (-0.67, -0.4), (-0.38, peak * 0.92)]
        return [Shape(curve([*side, (0.0, peak), *mirrored(side)], 6), cloth, shading="cloth")]
    return []


def _neckline(garment: Garment, neck: float) -> list[Shape]:
    colour, draw, top = garment.cloth.colour, garment.draws[9], _shoulder(neck)
    inside = shade(colour, 0.42 if sum(colour) > 180 else 0.5)
    dark = Cloth(skin_of(garment.person) if garment.person else inside)
    if garment.neckline in ("collar", "hood", "turtleneck"):
        return _covered(garment, neck, dark)
    if garment.neckline == "v-neck":
        edge: list[Point] = [(-neck, top), (0, 0.62 + 0.28 * draw), (neck, top)]
    else:
        depth = 0.2 if garment.neckline == "crew" else 0.6 + 0.16 * draw
        edge = ellipse((0, top), (neck, depth), 180, 0, 24)
    back = ellipse((0, top), (neck, 0.07), 360, 180, 12)
    band = Cloth(shade(garment.trim, 1.3 if sum(garment.trim) < 240 else 0.8))
    return [Shape([*edge, *back], dark, shading="flat"), Shape(edge, band, width=0.09, shading="flat")]


def _covered(garment: Garment, neck: float, dark: Cloth) -> list[Shape]:
    """Necklines with cloth around the neck: a rolled turtleneck, a hood with its cords, a collar of two wings."""
    colour, top = garment.cloth.colour, _shoulder(neck)
    if garment.neckline == "turtleneck":
        fold = ellipse((0, -0.16), (0.36, 0.12), 180, 0, 16)
        return [Shape(fold, Cloth(shade(colour, 0.6)), width=0.06, shading="flat")]
    if garment.neckline == "hood":
        cord = Cloth((238, 238, 234) if sum(colour) < 560 else (90, 90, 96))
        place, size = ((0.0, -0.08), 0.24) if garment.person else ((0.0, -0.32), 0.42 + 0.06 * garment.draws[9])
        opening = Shape(ellipse(place, (0.38, size)), dark, shading="flat")
        lines = [[(sign * 0.16, 0.06), (sign * 0.18, 0.66)] for sign in (1, -1)]
        return [opening, *[Shape(line, cord, width=0.07, shading="flat") for line in lines]]
    opening = [(-neck, top), (0, top - 0.1), (neck, top), (0, 0.32)]
    flap = [(neck * 0.85, top - 0.2), (neck * 1.35, top + 0.08), (neck * 1.15, 0.42), (0.02, 0.26)]
    wing = Cloth(shade(colour, 1.3 if sum(colour) < 560 else 0.94))
    wings = [Shape([(sign * x, y) for x, y in flap], wing, shading="flat", outline=0.035) for sign in (1, -1)]
    return [Shape(opening, dark, shading="flat"), *wings]


def _detail(detail: str, garment: Garment, length: float, hem: float) -> list[Shape]:
    """Buttons, zips, pockets and the like on a body of this length."""
    colour = garment.cloth.colour
    line = Cloth(shade(colour, 0.55))
    if detail in ("zip", "open", "placket"):
        end, width = (0.8 if detail == "placket" else length), (0.1 if detail == "open" else 0.06)
        return [Shape([(0, 0.25), (0, end)], line, width=width, shading="flat")]
    if detail == "rib":
        corners = [(-hem, length), (-hem, length - 0.16), (hem, length - 0.16), (hem, length)]
        return [Shape(corners, Cloth(shade(colour, 0.78)), shading="cloth")]
    if detail == "belt":
        return [Shape([(-0.8, 1.5), (-0.8, 1.34), (0.8, 1.34), (0.8, 1.5)], line, shading="flat")]
    if detail == "frill":
        zigzag = [(x, length - 0.1 + 0.07 * (i % 2)) for i, x in enumerate(np.linspace(-hem, hem, 13).tolist())]
        return [Shape(zigzag, line, width=0.05, shading="flat")]
    if detail in ("buttons", "quilt"):
        return _rows(detail, colour, length)
    return _pockets(detail, length, line)


def _rows(detail: str, colour: Colour, length: float) -> list[Shape]:
    """What repeats down the front: buttons, or the seams of a quilt."""
    if detail == "buttons":
        bright = Cloth((235, 232, 225) if sum(colour) < 380 else (70, 70, 74))
        spots = np.arange(0.55, length - 0.15, 0.36).tolist()
        return [Shape(ellipse((0.0, y), (0.06, 0.06), count=12), bright, shading="flat") for y in spots]
    seams = np.arange(0.8, length - 0.1, 0.26).tolist()
    return [Shape([(-0.84, y), (0.84, y)], Cloth(shade(colour, 0.55)), width=0.03, shading="flat") for y in seams]


def _pockets(detail: str, length: float, line: Cloth) -> list[Shape]:
    if detail == "pouch":
        outline = [(-0.5, length - 0.22), (-0.32, length - 0.68), (0.32, length - 0.68), (0.5, length - 0.22)]
        return [Shape(outline, line, width=0.045, shading="flat")]
    low = min(length - 0.3, 1.6)
    return [
        Shape([(sign * 0.35, low), (sign * 0.68, low - 0.12)], line, width=0.07, shading="flat") for sign in (1, -1)
    ]


def _legs(cloth: Cloth, top: float, bottom: float, widths: tuple[float, float]) -> list[Shape]:
    """Two legs as wide as (hip half width, ankle)."""
    hip, ankle = widths
    leg = [(0.0, top), (hip, top), (0.14 + ankle * 1.44, bottom), (0.14, bottom)]
    return [Shape([(sign * x, y) for x, y in leg], cloth, shading="cloth") for sign in (1, -1)]


def _lower(garment: Garment, bottom: Bottom) -> list[Shape]:
    length, draw = _between(bottom.length, garment.draws[0]), garment.draws[1]
    cloth, colour = replace(garment.cloth, block=length * 0.5), garment.cloth.colour
    person = behind_lower(garment.person, length) if garment.person else []
    band = Shape([(-0.72, 0), (0.72, 0), (0.76, 0.2), (-0.76, 0.2)], Cloth(shade(colour, 0.75)), shading="cloth")
    if bottom.leg:
        hips = [(-0.76, 0.15), (0.76, 0.15), (0.95, 0.85), (-0.95, 0.85)]
        fly = Shape([(0, 0.2), (0, 0.85)], Cloth(shade(colour, 0.6)), width=0.03, shading="flat")
        legs = _legs(cloth, 0.83, length, (0.95, bottom.leg * (0.85 + 0.3 * draw)))
        return [*person, *legs, Shape(hips, cloth, shading="cloth", outline=0), fly, band]
    flare = 1.0 + 0.6 * draw
    skirt = Shape([(-0.74, 0.12), (0.74, 0.12), (flare, length), (-flare, length)], cloth, shading="cloth")
    line, width = Cloth(shade(colour, 0.7)), 0.03 if bottom.folds < 6 else 0.05
    places = np.linspace(-0.75, 0.75, bottom.folds).tolist()
    folds = [Shape([(0.67 * x, 0.25), (x * flare, length)], line, width=width, shading="flat") for x in places]
    return [*person, skirt, *folds, band]
