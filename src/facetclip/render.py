"""`facetclip render`: a product catalog with photos, gaps and wrong cells, and beside it the truth.

Every picture is a function of (kind, seed, item), so any number of processes draw the same catalog.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from facetclip.drawing import Cloth, Colour, Scene, paint, shade
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.garments import LOWERS, STARTER_LOWERS, STARTER_UPPERS, UPPERS, Garment, draw_garment
from facetclip.images import encode_jpeg
from facetclip.vessels import BLACK, COOKWARE, STEEL, VESSELS, WOOD, Sight, Vessel, draw_vessel
from facetclip.workers import each

COLOURS: dict[str, Colour] = {
    "black": (38, 38, 42),
    "grey": (140, 143, 148),
    "white": (236, 236, 232),
    "red": (196, 34, 40),
    "blue": (36, 84, 172),
    "green": (44, 128, 72),
    "yellow": (238, 196, 40),
    "copper": (184, 104, 60),
}
CLOTH_COLOURS = {name: rgb for name, rgb in COLOURS.items() if name != "copper"} | {
    "purple": (116, 60, 148),
    "orange": (236, 124, 32),
}
PATTERNS = ("solid", "striped", "dotted", "checked", "colour-blocked")
NECKLINES = ("crew", "v-neck", "scoop", "collar", "hood", "turtleneck")
SLEEVES = ("sleeveless", "short", "three-quarter", "long")
LID, HANDLE = ("yes", "no"), ("none", "one", "two")

# Catalog kind -> attribute -> values. Attributes that cannot apply to an item are left empty.
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "cookware": {"lid": LID, "handle": HANDLE, "colour": tuple(COLOURS), "kind": tuple(COOKWARE)},
    "garments": {
        "category": (*UPPERS, *LOWERS),
        "sleeve": SLEEVES,
        "neckline": NECKLINES,
        "colour": tuple(CLOTH_COLOURS),
        "pattern": PATTERNS,
    },
    "starter": {
        "kind": (*VESSELS, *STARTER_UPPERS, *STARTER_LOWERS),
        "lid": LID,
        "handle": HANDLE,
        "sleeve": SLEEVES,
        "neckline": NECKLINES,
        "pattern": PATTERNS,
        "colour": tuple(COLOURS | CLOTH_COLOURS),
    },
}
# Catalog kind -> attribute -> the column that says whether it applies -> the values of that column for which it does.
# An attribute that is not listed applies to every item.
APPLIES: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "cookware": {},
    "garments": {name: {"category": tuple(UPPERS)} for name in ("sleeve", "neckline")},
    "starter": {name: {"kind": tuple(VESSELS)} for name in ("lid", "handle")}
    | {name: {"kind": tuple(STARTER_UPPERS)} for name in ("sleeve", "neckline")},
}
VIEWS = ("front", "left", "right")
PREFIXES = {"cookware": "CW", "garments": "GM", "starter": "ST"}
WORN = 0.65  # share of the starter's garments that a person wears; the others lie flat
PORTION = 64  # pictures drawn at a time by a worker
QUALITY = 90  # of the JPEGs
EVENEST = 1000  # evenness from which on values are alike in number
BRANDS = ("Alder", "Borough", "Cinder", "Dunmore", "Elbe", "Fjord", "Garnet", "Hearth", "Ivo", "Juniper")
EXTRAS = ("new in", "bestseller", "limited edition", "online only", "made to last", "gift idea")
LINES = ("Classic", "Studio", "Heritage", "Everyday", "Nova", "Prime", "Terra", "Loft")


@dataclass(frozen=True)
class RenderSpec:
    """What to draw: `items` rows of a catalog of `kind`; `missing`: share of cells emptied; `wrong`: of the others.

    `evenness`: how much more alike in number than by Zipf's law the values are; 0 is that law.
    """

    kind: str
    items: int
    seed: int = 0
    missing: float = 0.1
    wrong: float = 0.03
    size: int = 1000
    evenness: float = 1.0


@dataclass(frozen=True)
class _Product:
    number: int
    product_id: str
    title: str
    truth: dict[str, str]


@dataclass(frozen=True)
class _Item:
    item_id: str
    image: str
    view: int
    product: _Product


@dataclass(frozen=True)
class _Studio:
    """How far photos vary within a catalog; see `Scene`."""

    fill: tuple[float, float]
    tilt: float
    shift: float
    light: tuple[float, float]
    shadow: tuple[float, float]
    ground: int  # the darkest
    spoilt: float  # share of the photos with blur, and of those with noise


STRICT = _Studio((0.8, 0.94), 2.0, 0.35, (0.28, 0.42), (0.25, 0.4), ground=255, spoilt=0.0)
LOOSE = _Studio((0.72, 0.95), 10.0, 0.8, (0.22, 0.78), (0.0, 0.5), ground=230, spoilt=0.2)


def render_catalog(spec: RenderSpec, out: Path, *, workers: int = 1) -> Path:
    """Draw the catalog into `out`; returns the path of its `catalog.csv`, which is written last.

    A finished catalog of the same spec is left as it is. UserError for a spec that cannot be drawn, and for a folder
    that holds anything else.
    """
    _check(spec, workers)
    catalog = out / "catalog.csv"
    stamp = json.dumps(asdict(spec), indent=1).encode()
    made = out / "render.json"
    if made.is_file() and made.read_bytes() != stamp:
        raise UserError(
            f"{made}: a catalog of another specification; name another folder with --out, or delete this one"
        )
    if out.is_dir() and not made.is_file() and any(out.iterdir()):
        raise UserError(f"{out}: expected a new or empty folder, found other files; name another with --out")
    if catalog.is_file():
        return catalog
    write_whole(made, stamp)
    items = _items(spec)
    for folder in sorted({(out / item.image).parent for item in items}):
        folder.mkdir(parents=True, exist_ok=True)
    portions = [items[start : start + PORTION] for start in range(0, len(items), PORTION)]
    for _ in each(partial(_draw_portion, spec, out), portions, workers=workers):
        pass
    write_whole(out / "truth.csv", _table(spec, items, [item.product.truth for item in items]))
    write_whole(catalog, _table(spec, items, _listed(spec, items)))
    return catalog


def _check(spec: RenderSpec, workers: int) -> None:
    if spec.kind not in ATTRIBUTES:
        raise UserError(f"--kind {spec.kind!r}: expected one of {', '.join(ATTRIBUTES)}")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")
    if spec.items < 1:
        raise UserError(f"--items {spec.items}: expected at least 1")
    if spec.seed < 0:
        raise UserError(f"--seed {spec.seed}: expected 0 or more")
    if spec.size < 32:
        raise UserError(f"--size {spec.size}: expected at least 32 pixels")
    if not 0 <= spec.evenness <= EVENEST:
        raise UserError(f"--evenness {spec.evenness}: expected 0 to {EVENEST}")
    for name in ("missing", "wrong"):
        if not 0 <= getattr(spec, name) <= 1:
            raise UserError(f"--{name} {getattr(spec, name)}: expected a share from 0 to 1")


def _random(spec: RenderSpec, *place: int) -> np.random.Generator:
    return np.random.default_rng([spec.seed, sorted(ATTRIBUTES).index(spec.kind), *place])


def _products(spec: RenderSpec) -> Iterator[_Product]:
    number = 0
    while True:
        random = _random(spec, 0, number)
        truth = {"cookware": _cookware, "garments": _garment, "starter": _starter}[spec.kind](random, spec.evenness)
        name = truth["kind"] if "kind" in truth else truth["category"]
        title = f"{random.choice(BRANDS)} {random.choice(LINES)} {name}, {random.choice(EXTRAS)}"
        yield _Product(number, f"{PREFIXES[spec.kind]}-{number:06d}", title, truth)
        number += 1


def _items(spec: RenderSpec) -> list[_Item]:
    items: list[_Item] = []
    for product in _products(spec):
        views = int(_random(spec, 1, product.number).choice((1, 2, 3), p=(0.6, 0.3, 0.1)))
        for view in range(min(views, spec.items - len(items))):
            item_id = f"{product.product_id}-{view + 1}"
            items.append(_Item(item_id, f"images/{product.number % 100:02d}/{item_id}.jpg", view, product))
        if len(items) >= spec.items:
            return items
    raise AssertionError("products are endless")


def _skewed(random: np.random.Generator, values: tuple[str, ...], evenness: float) -> str:
    shares = 1 / (np.arange(len(values)) + 1 + evenness * len(values))
    return str(random.choice(values, p=shares / shares.sum()))


def _cookware(random: np.random.Generator, evenness: float) -> dict[str, str]:
    return {
        "lid": str(random.choice(LID, p=(0.55, 0.45))),
        "handle": str(random.choice(HANDLE, p=(0.25, 0.35, 0.4))),
        "colour": _skewed(random, tuple(COLOURS), 0.5 * evenness),
        "kind": _skewed(random, tuple(COOKWARE), 0.5 * evenness),
    }


def _garment(random: np.random.Generator, evenness: float) -> dict[str, str]:
    category = _skewed(random, (*UPPERS, *LOWERS), 0.5 * evenness)
    return {"category": category, **_worn(random, category, tuple(UPPERS), evenness), **_looks(random, evenness)}


def _worn(random: np.random.Generator, category: str, uppers: tuple[str, ...], evenness: float) -> dict[str, str]:
    if category not in uppers:
        return {"sleeve": "", "neckline": ""}
    sleeve = (
        "sleeveless" if category in ("tank top", "vest") else str(random.choice(SLEEVES, p=(0.18, 0.32, 0.18, 0.32)))
    )
    necks = ("crew", "v-neck", "scoop") if category == "tank top" else NECKLINES
    neckline = "hood" if category == "hoodie" else _skewed(random, necks, evenness)
    return {"sleeve": sleeve, "neckline": neckline}


def _looks(random: np.random.Generator, evenness: float) -> dict[str, str]:
    colour = _skewed(random, tuple(CLOTH_COLOURS), 0.5 * evenness)
    return {"colour": colour, "pattern": _skewed(random, PATTERNS, 0.15 * evenness)}


def _starter(random: np.random.Generator, evenness: float) -> dict[str, str]:
    blank = dict.fromkeys(ATTRIBUTES["starter"], "")
    colour = str(random.choice(ATTRIBUTES["starter"]["colour"]))
    if random.random() < 0.5:
        truth = {name: str(random.choice(values)) for name, values in (("lid", LID), ("handle", HANDLE))}
        kind = str(random.choice(list(VESSELS)))
        pattern = "solid" if random.random() < 0.5 else str(random.choice(PATTERNS))
        return blank | truth | {"kind": kind, "pattern": pattern, "colour": colour}
    kind = str(random.choice([*STARTER_UPPERS, *STARTER_LOWERS]))
    worn = _worn(random, kind, tuple(STARTER_UPPERS), evenness)
    return blank | {"kind": kind, **worn, "pattern": str(random.choice(PATTERNS)), "colour": colour}


def _listed(spec: RenderSpec, items: list[_Item]) -> list[dict[str, str]]:
    """The truth with gaps and wrong cells, drawn for each item and cell."""
    listed = []
    for place, item in enumerate(items):
        random, row = _random(spec, 2, place), dict(item.product.truth)
        for name, values in ATTRIBUTES[spec.kind].items():
            gap, slip, other = random.random(3)
            if not row[name]:
                continue
            if gap < spec.missing:
                row[name] = ""
            elif slip < spec.wrong:
                others = [value for value in values if value != row[name]]
                row[name] = others[int(other * len(others))]
        listed.append(row)
    return listed


def _table(spec: RenderSpec, items: list[_Item], labels: list[dict[str, str]]) -> bytes:
    names = ["item_id", "product_id", "image", "view", "title", *ATTRIBUTES[spec.kind]]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for item, row in zip(items, labels, strict=True):
        fixed = {"item_id": item.item_id, "product_id": item.product.product_id, "image": item.image}
        writer.writerow({**fixed, "view": VIEWS[item.view], "title": item.product.title, **row})
    return text.getvalue().encode()


def _draw_portion(spec: RenderSpec, out: Path, items: list[_Item]) -> None:
    """Draw what is not there yet: a picture that an interrupted run left is whole, since it is renamed at the end."""
    for item in items:
        path = out / item.image
        if not path.is_file():
            beside = path.with_suffix(".tmp")
            beside.write_bytes(picture(spec, item.product.truth, item.product.number, item.view))
            beside.replace(path)


def picture(spec: RenderSpec, truth: dict[str, str], number: int, view: int) -> bytes:
    """The JPEG of one view of a product."""
    look, snap = _random(spec, 3, number), _random(spec, 4, number, view)
    draws, wide = look.uniform(size=20).tolist(), spec.kind == "starter"
    kind = truth["kind"] if "kind" in truth else truth["category"]
    cloth = _cloth(truth, look, wide=wide)
    scene = _scene(snap, wide=wide)
    if kind not in COOKWARE and kind not in VESSELS:
        trim = cloth.second if cloth.pattern != "solid" or look.random() < 0.3 else cloth.colour
        worn = _random(spec, 5, number, view).uniform(size=11).tolist() if wide else [1.0]
        person = worn[1:] if worn[0] < WORN else ()
        shapes = draw_garment(Garment(kind, truth["sleeve"], truth["neckline"], cloth, trim, draws, person))
        squeeze = 1.0 if view == 0 else float(snap.uniform(0.88, 0.98))
        return encode_jpeg(
            paint(shapes, replace(scene, standing=False, gloss=0.0, squeeze=squeeze), spec.size), QUALITY
        )
    fittings = (BLACK, STEEL, WOOD, shade(cloth.colour, 0.7))[int(look.integers(4))]
    form = (COOKWARE | VESSELS)[kind]
    vessel = Vessel(form, truth["lid"] == "yes", HANDLE.index(truth["handle"]), cloth, fittings, draws)
    yaw = float(snap.uniform(-6, 6) if view == 0 else snap.uniform(10, 22) * (-1 if view == 1 else 1))
    sight = Sight(float(snap.uniform(0.14, 0.38) if wide else snap.uniform(0.18, 0.33)), yaw)
    metal = truth["colour"] in ("grey", "copper") and look.random() < 0.6
    gloss = float(look.choice((0.0, 0.3, 0.55)))
    return encode_jpeg(paint(draw_vessel(vessel, sight), replace(scene, gloss=gloss, metal=metal), spec.size), QUALITY)


def _cloth(truth: dict[str, str], random: np.random.Generator, *, wide: bool) -> Cloth:
    """The product's colour, a little off the palette's, and the second colour of its pattern."""
    spread = (0.05 if wide else 0.03) * (0.25 if truth["colour"] in ("black", "grey", "white") else 1.0)
    off = random.normal(1, 0.05 if wide else 0.03) + random.normal(0, spread, 3)
    red, green, blue = (off * (COLOURS | CLOTH_COLOURS)[truth["colour"]]).clip(8, 246).round().astype(int).tolist()
    colour, period = (red, green, blue), float(random.uniform(0.34, 0.56))
    plaid, tonal, upright = random.random(3) < (0.6, 0.3, 0.2)
    if truth["colour"] == "black":
        second: Colour = (186, 182, 174)  # beside white it would be white with black
    elif sum(colour) > 420:
        second = shade(colour, 0.45) if tonal else (44, 48, 66)
    else:
        second = shade(colour, 1.7) if tonal else (238, 236, 228)
    pattern = truth.get("pattern", "solid")
    return Cloth(colour, second, pattern, period, bool(upright), bool(plaid))


def _scene(random: np.random.Generator, *, wide: bool) -> Scene:
    """The photographer's part; a starter's varies more."""
    studio = LOOSE if wide and random.random() < 0.6 else STRICT
    bright, below = (int(grey) for grey in random.integers(studio.ground, 256, 2))
    below = below if random.random() < 0.6 else bright
    left, up = random.uniform(-studio.shift, studio.shift, 2).tolist()
    blur, noise = (random.random(2) < studio.spoilt) * random.uniform((0.002, 2.0), (0.008, 6.0))
    return Scene(
        fill=float(random.uniform(*studio.fill)),
        mirrored=bool(random.random() < 0.5),
        tilt=float(random.uniform(-studio.tilt, studio.tilt)),
        shift=(left, up),
        light=float(random.uniform(*studio.light)),
        contrast=float(random.uniform(0.2, 0.45)),
        ground=(bright, bright, bright),
        ground_below=(below, below, below),
        shadow=float(random.uniform(*studio.shadow)),
        blur=float(blur),
        noise=float(noise),
        grain=int(random.integers(2**31)),
    )
