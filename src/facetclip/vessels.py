"""Pots, kettles, jars and mugs, drawn from a few proportions. Lid and handles are chosen freely for every kind.

Lengths are in half widths of the widest place; the rim is at y = 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from facetclip.drawing import Cloth, Colour, Point, Shape, curve, ellipse, shade

STEEL: Colour = (176, 180, 186)
GLASS: Colour = (206, 218, 222)
ENAMEL: Colour = (232, 226, 212)
BLACK: Colour = (44, 44, 48)
WOOD: Colour = (150, 104, 62)


@dataclass(frozen=True)
class Form:
    """The proportions of a kind. `profile`: half widths at equal steps from rim to foot, the widest is 1."""

    profile: tuple[float, ...]
    height: tuple[float, float]
    spout: bool = False
    stick: float = 0.5  # how often a single handle is a long stick
    bail: float = 0.0  # how often it arches over the top; else it is a loop at one side
    dome: tuple[float, float] = (0.22, 0.42)  # lid height in rim half widths
    thick: tuple[float, float] = (0.13, 0.19)  # of handles
    knobs: tuple[str, ...] = ("ball", "strap")
    modern: float = 0.0  # how often a lid is of glass, an inside enamelled white, and one of two handles a lug


_POTS = {
    "saucepan": Form((1.0, 1.0, 1.0, 0.98, 0.93), (0.95, 1.15), stick=0.8),
    "stockpot": Form((1.0, 1.0, 1.0, 1.0, 0.97), (1.6, 2.0), stick=0.3, bail=0.15),
    "casserole": Form((0.96, 1.0, 1.0, 0.95, 0.82), (0.75, 0.95), stick=0.35),
    "frying pan": Form((1.0, 0.93, 0.86, 0.8), (0.34, 0.46), stick=0.9),
    "wok": Form((1.0, 0.95, 0.83, 0.62, 0.34), (0.72, 0.9), stick=0.7),
    "kettle": Form((0.52, 0.72, 0.9, 1.0, 0.98), (1.25, 1.55), spout=True, stick=0.0, bail=0.45),
}
# What the starter never saw, so that it has something left to learn.
COOKWARE = {kind: replace(form, modern=0.5) for kind, form in _POTS.items()}
_OTHERS = {
    "jar": Form((0.72, 0.98, 1.0, 1.0, 0.94), (1.5, 2.1), stick=0.2, dome=(0.12, 0.35)),
    "teapot": Form((0.45, 0.85, 1.0, 0.95, 0.62), (1.15, 1.45), spout=True, stick=0.0, bail=0.35, dome=(0.3, 0.6)),
    "mug": Form((0.98, 1.0, 0.99, 0.94), (1.7, 2.2), stick=0.15, dome=(0.1, 0.25)),
    "bucket": Form((1.0, 0.94, 0.87, 0.8), (1.5, 1.9), stick=0.25, bail=0.45),
    "basket": Form((0.94, 0.98, 1.0, 0.9), (0.9, 1.2), stick=0.3, bail=0.4),
    "bowl": Form((1.0, 0.97, 0.86, 0.5), (0.7, 1.0), stick=0.65),
    "canister": Form((1.0, 1.0, 1.0), (1.9, 2.5), stick=0.4, dome=(0.08, 0.2)),
    "pitcher": Form((0.62, 0.58, 0.82, 1.0, 0.9), (1.9, 2.4), spout=True, stick=0.0, bail=0.1),
    "dish": Form((1.0, 0.95, 0.84, 0.7), (0.36, 0.6), stick=0.65, dome=(0.15, 0.5)),
}
VESSELS = {
    kind: replace(form, thick=(0.1, 0.25), knobs=("ball", "disc", "strap", "cone")) for kind, form in _OTHERS.items()
}


@dataclass(frozen=True)
class Vessel:
    """One product: its kind, what is on it, its colours; `draws` in 0..1 [20] make it differ from its like."""

    form: Form
    lid: bool
    handles: int
    cloth: Cloth
    fittings: Colour  # of handles and knob
    draws: Sequence[float]

    @property
    def height(self) -> float:
        """Of the body, rim to foot."""
        return _between(self.form.height, self.draws[0])

    def radius(self, depth: float) -> float:
        """The half width at `depth` (0 rim, 1 foot)."""
        return float(np.interp(depth, np.linspace(0, 1, len(self.form.profile)), self.form.profile))


@dataclass(frozen=True)
class Sight:
    """Where a vessel is seen from. `elevation`: height over width of the rim's ellipse; `yaw`: degrees to the right."""

    elevation: float = 0.25
    yaw: float = 0.0

    def project(self, points: Sequence[Point], side: int) -> list[Point]:
        """Points (distance from the axis, y) at the right (1) or left (-1) side of the vessel, as they are seen."""
        turn = math.radians(self.yaw)
        return [(side * r * math.cos(turn), y + side * r * math.sin(turn) * self.elevation) for r, y in points]

    def in_front(self, side: int) -> bool:
        """Whether what is fixed at this side lies before the body."""
        return side * self.yaw > 0


def draw_vessel(vessel: Vessel, sight: Sight) -> list[Shape]:
    """The shapes of a vessel from back to front."""
    behind: list[Shape] = []
    before: list[Shape] = []
    for in_front, shapes in _fixtures(vessel, sight):
        (before if in_front else behind).extend(shapes)
    body = Shape(_body(vessel, sight), replace(vessel.cloth, block=vessel.height * 0.5), bend=sight.elevation * 0.8)
    modern = vessel.draws[15] < vessel.form.modern
    cover = _glass_lid if modern else _lid
    top = cover(vessel, sight.elevation) if vessel.lid else _opening(vessel, sight.elevation, enamelled=modern)
    over = _bail(vessel, sight) if _single(vessel) == "bail" else []
    return [*behind, body, *top, *before, *over]


def _between(limits: tuple[float, float], draw: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * draw


def _single(vessel: Vessel) -> str:
    """What the only handle is; empty where there is another number of them."""
    if vessel.handles != 1:
        return ""
    if vessel.draws[7] < vessel.form.stick:
        return "stick"
    return "bail" if vessel.draws[7] < vessel.form.stick + vessel.form.bail else "loop"


def _fixtures(vessel: Vessel, sight: Sight) -> list[tuple[bool, list[Shape]]]:
    """What is fixed at the sides: (whether it lies before the body, shapes)."""
    found: list[tuple[bool, list[Shape]]] = []
    if vessel.form.spout:
        spout_sight = replace(sight, yaw=sight.yaw * 0.3 - 48) if vessel.handles == 2 else sight
        found.append((spout_sight.in_front(-1), _spout(vessel, spout_sight)))
    if vessel.handles == 2 and vessel.draws[16] < vessel.form.modern:
        long = _loop(vessel, sight, 1) if vessel.form.spout or vessel.form.stick < 0.32 else None
        found.append((sight.in_front(1), [long] if long else _stick(vessel, sight)))
        found.append((sight.in_front(-1), [_lug(vessel, sight)]))
    elif vessel.handles == 2:
        found += [(sight.in_front(side), [_loop(vessel, sight, side)]) for side in (-1, 1)]
    elif _single(vessel) == "stick":
        found.append((sight.in_front(1), _stick(vessel, sight)))
    elif _single(vessel) == "loop":
        found.append((sight.in_front(1), [_loop(vessel, sight, 1)]))
    return found


def _body(vessel: Vessel, sight: Sight) -> list[Point]:
    profile, height, elevation = vessel.form.profile, vessel.height, sight.elevation
    right = curve([(profile[i], float(y)) for i, y in enumerate(np.linspace(0, height, len(profile)))], 8)
    foot = ellipse((0, height), (profile[-1], profile[-1] * elevation * 0.75), 0, 180, 24)
    rim = ellipse((0, 0), (profile[0], profile[0] * elevation), 180, 360, 24)
    return [*right, *foot, *[(-x, y) for x, y in reversed(right)], *rim]


def _opening(vessel: Vessel, elevation: float, *, enamelled: bool) -> list[Shape]:
    """Looking into an open vessel: a bright lip, the dark or enamelled inside, its darker floor."""
    colour, rim = vessel.cloth.colour, vessel.form.profile[0]
    lip = 0.05 + 0.04 * vessel.draws[1]
    outer = Shape(ellipse((0, 0), (rim, rim * elevation)), Cloth(shade(colour, 1.3)), shading="flat")
    dark = Cloth(ENAMEL if enamelled else shade(colour, 0.38 if sum(colour) > 180 else 0.5))
    inside = ellipse((0, 0.01), (rim * (1 - lip), rim * (elevation - lip * 0.55)))
    floor = ellipse((0, rim * elevation * 0.32), (rim * (1 - 2.6 * lip), rim * (elevation - lip) * 0.52))
    deep = Cloth(shade(dark.colour, 0.86 if enamelled else 0.72))
    return [outer, Shape(inside, dark, shading="flat"), Shape(floor, deep, shading="flat", outline=0)]


def _lid(vessel: Vessel, elevation: float) -> list[Shape]:
    """A cap that overlaps the rim, with a knob in its middle."""
    draws, rim = vessel.draws, vessel.form.profile[0] * (1.03 + 0.03 * vessel.draws[1])
    rise = rim * (_between(vessel.form.dome, draws[2]) + elevation * 0.55)
    colour = STEEL if draws[3] < 0.12 else shade(vessel.cloth.colour, 0.92 + 0.2 * draws[4])
    skirt = [*ellipse((0, 0.02), (rim, rim * elevation), 0, 180, 30), (-rim, -0.07), (rim, -0.07)]
    angles = np.linspace(0.05, math.pi - 0.05, 30)
    top = [(rim * math.cos(a), -0.06 - rise * math.sin(a)) for a in angles]
    front = ellipse((0, -0.06), (rim, rim * elevation * 0.9), 180, 0, 30)
    cap = [(rim, -0.06), *top, (-rim, -0.06), *front]
    knob = _knob(vessel, -0.06 - rise + 0.04)
    return [Shape(skirt, Cloth(shade(colour, 0.75))), Shape(cap, Cloth(colour), shading="dome"), *knob]


def _glass_lid(vessel: Vessel, elevation: float) -> list[Shape]:
    """A low dome of glass in a steel ring: the dark inside shows through it."""
    rim = vessel.form.profile[0] * 1.02
    rise = rim * (0.1 + 0.12 * vessel.draws[2] + elevation * 0.8)
    angles = np.linspace(0, math.pi, 30)
    dome = [(rim * math.cos(a), -rise * math.sin(a)) for a in angles]
    through = shade(vessel.cloth.colour, 0.5)
    red, green, blue = (round(0.55 * t + 0.45 * g) for t, g in zip(through, GLASS, strict=True))
    front = ellipse((0, 0), (rim, rim * elevation), 180, 0, 30)
    gleam = ellipse((0, -0.02), (rim * 0.72, rise * 0.62), 200, 260, 12)
    return [
        Shape([*dome, *front], Cloth((red, green, blue)), shading="flat"),
        Shape(gleam, Cloth((246, 249, 250)), width=0.05, shading="flat"),
        Shape(front, Cloth(STEEL), width=0.06),
        *_knob(vessel, 0.04 - rise),
    ]


def _knob(vessel: Vessel, top: float) -> list[Shape]:
    """`top`: where the lid ends. Small beside any handle, and always in the middle."""
    draws, cloth = vessel.draws, Cloth(vessel.fittings)
    size = 0.11 + 0.06 * draws[5]
    style = vessel.form.knobs[int(draws[13] * len(vessel.form.knobs))]
    if style == "strap":
        arch = ellipse((0, top + 0.03), (size * 1.7, size * 1.5), 180, 360, 16)
        return [Shape(arch, cloth, width=0.1)]
    if style == "cone":
        outline = [(-size * 0.5, top + 0.05), (-size * 1.1, top - size * 1.9), (size * 1.1, top - size * 1.9)]
        return [Shape([*outline, (size * 0.5, top + 0.05)], cloth)]
    wide, high = (1.9, 0.45) if style == "disc" else (0.9 + 0.5 * draws[6], 0.85)
    stem = [(-size * 0.45, top - size), (size * 0.45, top - size), (size * 0.6, top + 0.05), (-size * 0.6, top + 0.05)]
    head = ellipse((0, top - size * 1.2), (size * wide, size * high), count=20)
    return [Shape(stem, cloth), Shape(head, cloth, shading="dome")]


def _loop(vessel: Vessel, sight: Sight, side: int) -> Shape:
    """A grip at one side: a small ear of a pair, or the tall handle of a mug or kettle."""
    draws, single = vessel.draws, vessel.handles == 1
    thick = _between(vessel.form.thick, draws[11])
    long = max((0.62 if single else 0.36) * vessel.height * (0.8 + 0.3 * draws[9]), thick * 2.4)
    first = (0.12 + 0.1 * draws[8]) * vessel.height
    last = min(first + long, vessel.height * 0.98 + 0.12)
    upper, lower = (vessel.radius(min(1.0, y / vessel.height)) for y in (first, last))
    reach = (0.36 + 0.2 * draws[10]) * (1.3 if single else 1.0)
    inset = 0.06
    points = [
        (upper - inset, first),
        (upper + reach * 0.75, first - 0.02),
        (max(upper, lower) + reach, (first + last) / 2),
        (lower + reach * 0.7, last + 0.02),
        (lower - inset, last),
    ]
    return Shape(sight.project(curve(points, 10), side), Cloth(vessel.fittings), width=thick)


def _lug(vessel: Vessel, sight: Sight) -> Shape:
    """A short solid grip at the left, opposite a longer handle."""
    start, depth = vessel.radius(0.14), 0.14 * vessel.height + 0.03
    points = [(start - 0.04, depth), (start + 0.3 + 0.1 * vessel.draws[17], depth - 0.03)]
    return Shape(sight.project(points, -1), Cloth(vessel.fittings), width=0.2)


def _stick(vessel: Vessel, sight: Sight) -> list[Shape]:
    """A long handle from just under the rim: a steel joint, then the grip."""
    draws, swung = vessel.draws, replace(sight, yaw=sight.yaw * 1.6)
    start, depth = vessel.radius(0.12), 0.12 * vessel.height + 0.04
    length, lift = 1.0 + 0.55 * draws[8], -0.32 * draws[9]
    thick = _between(vessel.form.thick, draws[10]) + 0.03
    joint = [(start - 0.05, depth), (start + 0.28, depth + lift * 0.25)]
    middle = (start + length * 0.6, depth + lift * 0.7)
    grip = curve([(start + 0.22, depth + lift * 0.2), middle, (start + length, depth + lift)])
    return [
        Shape(swung.project(joint, 1), Cloth(STEEL), width=thick * 0.7),
        Shape(swung.project(grip, 1), Cloth(vessel.fittings), width=thick),
    ]


def _bail(vessel: Vessel, sight: Sight) -> list[Shape]:
    """One handle that arches over the top from side to side, well clear of any knob."""
    draws, thick = vessel.draws, _between(vessel.form.thick, vessel.draws[11]) * 0.85
    reach, foot = vessel.radius(0.1) * 0.97, 0.1 * vessel.height
    clear = vessel.form.profile[0] * (vessel.form.dome[1] + sight.elevation) + 0.5 if vessel.lid else 0.0
    rise = max(clear, 0.75 + 0.35 * draws[9]) + foot
    arch = ellipse((0, foot), (reach, rise), 180, 360, 30)
    pins = [ellipse((x, foot), (0.09, 0.09), count=12) for x in (-reach, reach)]
    cloth = Cloth(vessel.fittings)
    return [*[Shape(sight.project(pin, 1), cloth) for pin in pins], Shape(sight.project(arch, 1), cloth, width=thick)]


def _spout(vessel: Vessel, sight: Sight) -> list[Shape]:
    """A pouring spout at the left, or between two handles, towards us: tapered, so that it cannot pass for a loop."""
    draws, height = vessel.draws, vessel.height
    low, high = vessel.radius(0.62), vessel.radius(0.3)
    reach, tip = 0.35 + 0.2 * draws[12], 0.1 * height - 0.25 * draws[14]
    end = high + reach
    under = [(low - 0.1, 0.72 * height), (low + reach * 0.55, 0.45 * height), (end + 0.12, tip)]
    over = [(end - 0.06, tip + 0.02), (high + reach * 0.3, 0.3 * height), (high - 0.15, 0.36 * height)]
    outline = [*curve(under, 8), *curve(over, 8)]
    return [Shape(sight.project(outline, -1), replace(vessel.cloth, block=height * 0.5))]
