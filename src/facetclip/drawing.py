"""Drawing product photos: shapes in an object's own coordinates, then framed, lit and placed on white ground.

An object is a list of `Shape`s (y grows downwards), back to front. `paint` moves them into the frame, so a picture of
any size shows the same thing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Colour = tuple[int, int, int]
SUPERSAMPLED_BELOW = 400  # pixels: smaller pictures are drawn at twice their size and reduced
SOFTENED = ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 4, 2, 1, 2, 1))  # takes the stairs off the edges of larger ones
# Where light is computed over a shape, top to bottom and across, before it is stretched to the shape's size.
DOWN, ACROSS = np.linspace(0, 1, 8, dtype=np.float32)[:, None], np.linspace(0, 1, 32, dtype=np.float32)[None]
Light = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Cloth:
    """What covers a shape: one colour, or two in a pattern of `period` object units."""

    colour: Colour
    second: Colour = (255, 255, 255)
    pattern: str = "solid"
    period: float = 0.4
    upright: bool = False  # stripes run down rather than across
    plaid: bool = False  # checks woven from bands, rather than a chequerboard
    block: float = 1.0  # where the second colour of colour blocks begins, in object units


@dataclass(frozen=True)
class Shape:
    """A filled outline, or where `width` is given a round-ended stroke along the points.

    `shading`: `round` as a cylinder, `dome` as a sphere, `cloth` with folds, `flat` not at all.
    `bend`: how far a pattern sags across the shape, in half widths.
    """

    points: Sequence[Point]
    cloth: Cloth
    width: float = 0.0
    shading: str = "round"
    outline: float = 0.014
    bend: float = 0.0


@dataclass(frozen=True)
class Scene:
    """How an object is photographed. `fill`: share of the frame it spans; `shift`: of the free room, -1..1."""

    fill: float = 0.85
    mirrored: bool = False
    tilt: float = 0.0  # degrees
    squeeze: float = 1.0  # width seen from an angle
    shift: Point = (0.0, 0.0)
    light: float = 0.35  # where the highlight lies across a round shape, 0..1
    gloss: float = 0.3
    metal: bool = False
    contrast: float = 0.35
    ground: Colour = (255, 255, 255)
    ground_below: Colour = (255, 255, 255)
    standing: bool = True  # the shadow lies under the object; else all around it, as on a table seen from above
    shadow: float = 0.25
    blur: float = 0.0  # share of the frame
    noise: float = 0.0  # grey levels
    grain: int = 0  # seed of the noise


@dataclass(frozen=True)
class _Frame:
    """From object units to pixels: turned by `matrix`, then moved and scaled."""

    matrix: np.ndarray
    low: np.ndarray
    scale: float
    origin: np.ndarray

    def grid(self, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The object coordinates (x, y) [height, width] under the pixels of a box (left, top, right, bottom)."""
        left, top, right, bottom = box
        across = ((np.arange(left, right, dtype=np.float32) + 0.5 - self.origin[0]) / self.scale + self.low[0])[None]
        down = ((np.arange(top, bottom, dtype=np.float32) + 0.5 - self.origin[1]) / self.scale + self.low[1])[:, None]
        back = np.linalg.inv(self.matrix)
        x, y = (np.float32(back[i, 0]) * across + np.float32(back[i, 1]) * down for i in (0, 1))
        return x.astype(np.float32), y.astype(np.float32)


def ellipse(centre: Point, radii: Point, first: float = 0.0, last: float = 360.0, count: int = 40) -> list[Point]:
    """Points along an ellipse, in degrees clockwise from the right."""
    angles = math.radians(first) + math.radians(last - first) / (count - 1) * np.arange(count)
    x, y = centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def curve(points: Sequence[Point], count: int = 12) -> list[Point]:
    """A smooth line through `points` (Catmull-Rom)."""
    padded = np.array([points[0], *points, points[-1]], dtype=float)
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(count) / count)[None, :, None]
    line = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    smooth = [*line.reshape(-1, 2).tolist(), padded[-1].tolist()]
    return [(x, y) for x, y in smooth]


def mirrored(points: Sequence[Point]) -> list[Point]:
    """The same outline on the other side of the middle, walked back, so that both together enclose an area."""
    return [(-x, y) for x, y in reversed(points)]


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, lighter above.

    >>> shade((200, 100, 0), 0.5), shade((200, 100, 0), 1.5)
    ((100, 50, 0), (228, 178, 128))
    """
    if factor <= 1:
        red, green, blue = (round(part * factor) for part in colour)
    else:
        red, green, blue = (round(255 - (255 - part) * (2 - factor)) for part in colour)
    return red, green, blue


def paint(shapes: Sequence[Shape], scene: Scene, size: int) -> Image.Image:
    """The picture, RGB [size, size]."""
    pixels = size * 2 if size < SUPERSAMPLED_BELOW else size
    frame, placed = _framed(shapes, scene, pixels)
    lights = {shading: _light(shading, scene) for shading in {shape.shading for shape in shapes} - {"flat"}}
    image = _ground(scene, pixels)
    if scene.shadow > 0:
        _cast_shadow(image, shapes, placed, scene)
    for shape, points in zip(shapes, placed, strict=True):
        if shape.width:
            _stroke(image, shape, points, frame.scale)
        else:
            _fill(image, shape, points, (frame, lights))
    image = image.reduce(2) if pixels != size else _softened(image, placed)
    if scene.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(scene.blur * size))
    if scene.noise > 0:
        grain = np.random.default_rng(scene.grain).normal(0, scene.noise, (size, size, 1))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    return image


def _framed(shapes: Sequence[Shape], scene: Scene, pixels: int) -> tuple[_Frame, list[np.ndarray]]:
    """How the object fills the frame, and each shape's points [n, 2] in pixels."""
    turn = math.radians(scene.tilt)
    side = (-1 if scene.mirrored else 1) * scene.squeeze
    matrix = np.array([[math.cos(turn) * side, -math.sin(turn)], [math.sin(turn) * side, math.cos(turn)]])
    turned = [np.asarray(shape.points, dtype=float) @ matrix.T for shape in shapes]
    low = np.min([points.min(axis=0) - shape.width / 2 for points, shape in zip(turned, shapes, strict=True)], axis=0)
    high = np.max([points.max(axis=0) + shape.width / 2 for points, shape in zip(turned, shapes, strict=True)], axis=0)
    scale = float(scene.fill * pixels / (high - low).max())
    origin = (pixels - (high - low) * scale) / 2 * (1 + np.asarray(scene.shift))
    return _Frame(matrix, low, scale, origin), [(points - low) * scale + origin for points in turned]


def _ground(scene: Scene, pixels: int) -> Image.Image:
    if scene.ground == scene.ground_below:
        return Image.new("RGB", (pixels, pixels), scene.ground)
    strip = np.array([[scene.ground], [scene.ground_below]], dtype=np.uint8)
    return Image.fromarray(strip).resize((pixels, pixels), Image.Resampling.BILINEAR)


def _softened(image: Image.Image, placed: list[np.ndarray]) -> Image.Image:
    """Without stairs at its edges. Only the object's box is filtered: the rest has no edges."""
    everything = np.concatenate(placed)
    left, top = (int(part) for part in np.maximum(everything.min(axis=0) - 8, 0))
    right, bottom = (int(part) for part in np.minimum(everything.max(axis=0) + 8, image.width))
    image.paste(image.crop((left, top, right, bottom)).filter(SOFTENED), (left, top))
    return image


def _cast_shadow(image: Image.Image, shapes: Sequence[Shape], placed: list[np.ndarray], scene: Scene) -> None:
    """Drawn small and stretched: it is soft."""
    side = 32 if image.width < SUPERSAMPLED_BELOW else 64
    unit = side / image.width
    small = Image.new("L", (side, side), 0)
    draw, fill = ImageDraw.Draw(small), round(255 * scene.shadow)
    if scene.standing:
        everything = np.concatenate(placed) * unit
        bottom, height = everything[:, 1].max(), np.ptp(everything[:, 1])
        foot = everything[everything[:, 1] > bottom - 0.1 * height, 0]
        left, right = foot.min() - side / 32, foot.max() + side / 32
        depth = max(side / 32, (right - left) * 0.08)
        draw.ellipse((left, bottom - depth * 1.2, right, bottom + depth * 0.7), fill=fill)
    else:
        for shape, points in zip(shapes, placed, strict=True):
            if not shape.width:
                draw.polygon((points * unit + (side / 80, side / 40)).ravel().tolist(), fill=fill)
    soft = small.filter(ImageFilter.BoxBlur(side / (30 if scene.standing else 45)))
    image.paste(shade(scene.ground, 0.4), mask=soft.resize(image.size, Image.Resampling.BILINEAR))


def _fill(image: Image.Image, shape: Shape, points: np.ndarray, place: tuple[_Frame, dict[str, Light]]) -> None:
    frame, lights = place
    left, top = (int(part) for part in np.maximum(np.floor(points.min(axis=0)), 0))
    right, bottom = (int(part) + 1 for part in np.minimum(np.ceil(points.max(axis=0)), image.width - 1))
    if right <= left or bottom <= top:
        return
    if shape.shading == "flat" and shape.cloth.pattern == "solid":
        ImageDraw.Draw(image).polygon(points.ravel().tolist(), fill=shape.cloth.colour)
    else:
        mask = Image.new("L", (right - left, bottom - top), 0)
        ImageDraw.Draw(mask).polygon((points - (left, top)).ravel().tolist(), fill=255)
        surface = _surface(shape, (left, top, right, bottom), frame, lights.get(shape.shading))
        image.paste(surface, (left, top), mask)
    if shape.outline:
        width = max(1, round(shape.outline * frame.scale))
        edge = [tuple(point) for point in [*points.tolist(), points[0].tolist()]]
        joint = "curve" if width > 4 else None
        ImageDraw.Draw(image).line(edge, fill=shade(shape.cloth.colour, 0.6), width=width, joint=joint)


def _stroke(image: Image.Image, shape: Shape, points: np.ndarray, scale: float) -> None:
    """A tube: dark edges, its colour, and a gleam to the upper left; or one flat band."""
    draw, colour = ImageDraw.Draw(image), shape.cloth.colour
    tube = [(1.0, 0.0, shade(colour, 0.55)), (0.74, 0.04, colour), (0.26, 0.14, shade(colour, 1.35))]
    for share, aside, tone in tube if shape.shading == "round" else [(1.0, 0.0, colour)]:
        width = shape.width * scale * share
        line = points - aside * shape.width * scale
        corners = [tuple(point) for point in line.tolist()]
        draw.line(corners, fill=tone, width=max(1, round(width)))
        if len(line) > 2 or shape.shading == "round":
            draw.polygon(_ribbon(line, width).ravel().tolist(), fill=tone)
            for x, y in (corners[0], corners[-1]):
                draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=tone)


def _ribbon(line: np.ndarray, width: float) -> np.ndarray:
    """The outline of a band of `width` along `line` [n, 2]."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * width / 2
    return np.concatenate([line + across, (line - across)[::-1]])


def _surface(shape: Shape, box: tuple[int, int, int, int], frame: _Frame, light: Light | None) -> Image.Image:
    """The cloth over a box of the picture, lit."""
    extent, cloth = (box[2] - box[0], box[3] - box[1]), shape.cloth
    base = _lit(cloth.colour, light, extent)
    if cloth.pattern != "solid":
        base.paste(_lit(cloth.second, light, extent), mask=_pattern(shape, box, frame))
    return base


def _light(shading: str, scene: Scene) -> Light:
    """(factor, gleam) [rows, columns] over a shape's box: a colour is multiplied, then drawn towards white."""
    light = 1 - scene.light if scene.mirrored else scene.light
    if shading == "cloth":
        folds = 0.035 * np.sin(ACROSS * 17 + DOWN * 3 + 9 * light) * (0.4 + DOWN)
        return 1 - 0.5 * scene.contrast * np.abs(ACROSS - light) ** 1.5 + folds - 0.06 * DOWN, np.zeros((1, 1))
    factor = 1 - scene.contrast * np.minimum(1.5, np.abs(ACROSS - light) * 1.6) ** 2 - 0.1 * DOWN
    gleam = scene.gloss * np.exp(-(((ACROSS - light) / 0.09) ** 2)) + 0 * DOWN
    if scene.metal:
        factor = factor - 0.3 * np.exp(-(((ACROSS - light - 0.22) / 0.1) ** 2))
        gleam = gleam + 0.4 * np.exp(-(((ACROSS - light - 0.42) / 0.07) ** 2))
    if shading == "dome":
        gleam = gleam * np.exp(-(((DOWN - 0.4) / 0.28) ** 2))
    return factor, gleam


def _lit(colour: Colour, light: Light | None, extent: tuple[int, int]) -> Image.Image:
    if light is None:
        return Image.new("RGB", extent, colour)
    factor, gleam = light
    seen = np.array(colour, dtype=np.float32) * factor[..., None]
    seen += (255 - seen) * gleam[..., None]
    return Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8)).resize(extent, Image.Resampling.BILINEAR)


def _pattern(shape: Shape, box: tuple[int, int, int, int], frame: _Frame) -> Image.Image:
    """How much of the second colour shows, 0..255. The first covers more, since it names the product."""
    cloth, (x, y) = shape.cloth, frame.grid(box)
    if shape.bend:
        middle = (x.min() + x.max()) / 2
        half = max(float(x.max() - middle), 1e-6)
        y = y - shape.bend * half * np.sqrt(np.maximum(0, 1 - ((x - middle) / half) ** 2))
    if cloth.pattern == "colour-blocked":
        return Image.fromarray(((y > cloth.block) * 255).astype(np.uint8))
    if cloth.pattern == "striped":
        return Image.fromarray(((_phase(x if cloth.upright else y, cloth) < 0.42) * 255).astype(np.uint8))
    u, v = _phase(x, cloth), _phase(y, cloth)
    if cloth.pattern == "dotted":
        shown = ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.085) * 255
    elif cloth.pattern == "checked" and cloth.plaid:
        shown = (u < 0.42) * 120 + (v < 0.42) * 120
    elif cloth.pattern == "checked":
        shown = ((u < 0.46) ^ (v < 0.46)) * 255
    else:
        raise ValueError(f"no pattern {cloth.pattern!r}")
    return Image.fromarray(shown.astype(np.uint8))


def _phase(along: np.ndarray, cloth: Cloth) -> np.ndarray:
    """How far into its repeat the pattern is, 0..1; several times faster than `% 1`."""
    repeats = along * np.float32(1 / cloth.period)
    return repeats - np.floor(repeats)
