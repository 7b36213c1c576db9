import csv
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetclip.drawing import Cloth
from facetclip.errors import UserError
from facetclip.garments import STARTER_UPPERS, UPPERS
from facetclip.render import APPLIES, ATTRIBUTES, HANDLE, RenderSpec, picture, render_catalog
from facetclip.vessels import VESSELS, Form, Sight, Vessel, draw_vessel

KINDS = tuple(ATTRIBUTES)
FIXED = ["item_id", "product_id", "image", "view", "title"]
Rows = list[dict[str, str]]
Made = tuple[RenderSpec, Path, Rows, Rows]


def rows(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=float)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    spec = RenderSpec(request.param, 300, seed=3, missing=0.2, wrong=0.1, size=32)
    out = tmp_path_factory.mktemp(request.param) / "catalog"
    return spec, out, rows(render_catalog(spec, out, workers=1)), rows(out / "truth.csv")


def applies(spec: RenderSpec, attribute: str, row: dict[str, str]) -> bool:
    return all(row[column] in values for column, values in APPLIES[spec.kind].get(attribute, {}).items())


def test_any_number_of_workers_draws_the_same_bytes(tmp_path: Path) -> None:
    spec = RenderSpec("starter", 70, seed=1, size=32)
    for workers in (1, 2):
        render_catalog(spec, tmp_path / str(workers), workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_longer_catalog_begins_with_the_same_pictures(tmp_path: Path) -> None:
    spec = RenderSpec("garments", 12, size=32)
    short, long = (rows(render_catalog(replace(spec, items=n), tmp_path / str(n), workers=1)) for n in (12, 20))
    assert [row["image"] for row in short] == [row["image"] for row in long[:12]]
    assert {row["image"] for row in short} == {name for name in files(tmp_path / "12") if name.endswith(".jpg")}
    for row in short:
        assert (tmp_path / "12" / row["image"]).read_bytes() == (tmp_path / "20" / row["image"]).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_draws_another_catalog(tmp_path: Path, kind: str) -> None:
    spec = RenderSpec(kind, 8, size=32)
    one, other = (render_catalog(replace(spec, seed=seed), tmp_path / str(seed), workers=1) for seed in (0, 1))
    assert one.read_bytes() != other.read_bytes()


def test_the_table_has_its_columns_and_every_row_its_picture(made: Made) -> None:
    spec, out, listed, truth = made
    assert list(listed[0]) == list(truth[0]) == [*FIXED, *ATTRIBUTES[spec.kind]]
    assert len(listed) == len({row["item_id"] for row in listed}) == spec.items
    for row, true in zip(listed, truth, strict=True):
        assert [row[name] for name in FIXED] == [true[name] for name in FIXED]
        assert row["title"]
        assert row["image"].split("/")[1].isdigit()
    with Image.open(out / listed[0]["image"]) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (32, 32), "RGB")
    assert all((out / row["image"]).is_file() for row in listed)


def test_cells_are_missing_and_wrong_at_the_given_rates(made: Made) -> None:
    spec, _, listed, truth = made
    cells = [
        (row[n], true[n]) for row, true in zip(listed, truth, strict=True) for n in ATTRIBUTES[spec.kind] if true[n]
    ]
    filled = [(cell, true) for cell, true in cells if cell]
    assert 1 - len(filled) / len(cells) == pytest.approx(spec.missing, abs=0.04)
    assert sum(cell != true for cell, true in filled) / len(filled) == pytest.approx(spec.wrong, abs=0.04)


def test_every_value_occurs_and_cells_hold_nothing_else(made: Made) -> None:
    spec, _, listed, truth = made
    for name, values in ATTRIBUTES[spec.kind].items():
        assert {row[name] for row in truth} - {""} == set(values)
        assert {row[name] for row in listed} <= {"", *values}


def test_what_does_not_apply_is_empty_and_the_rest_is_known(made: Made) -> None:
    spec, _, listed, truth = made
    for row, true in zip(listed, truth, strict=True):
        for name in ATTRIBUTES[spec.kind]:
            assert bool(true[name]) == applies(spec, name, true)
            assert not row[name] or true[name]


def test_the_views_of_a_product_share_its_truth_and_differ_as_pictures(
    made: Made,
) -> None:
    spec, out, _, truth = made
    products: dict[str, Rows] = {}
    for row in truth:
        products.setdefault(row["product_id"], []).append(row)
    assert Counter(map(len, products.values())).keys() == {1, 2, 3}
    assert spec.items / len(products) == pytest.approx(1.5, abs=0.15)
    for views in products.values():
        assert len({tuple(row[name] for name in ATTRIBUTES[spec.kind]) for row in views}) == 1
        assert len({(out / row["image"]).read_bytes() for row in views}) == len(views)


def test_lid_and_handle_do_not_follow_from_the_kind(tmp_path: Path) -> None:
    truth = render_catalog(RenderSpec("cookware", 300, size=32), tmp_path / "out", workers=1).with_name("truth.csv")
    table = rows(truth)
    for kind in ATTRIBUTES["cookware"]["kind"]:
        of_kind = [row for row in table if row["kind"] == kind]
        assert 0.35 < sum(row["lid"] == "yes" for row in of_kind) / len(of_kind) < 0.75
        assert {row["handle"] for row in of_kind} == set(HANDLE)


def test_a_finished_catalog_is_left_as_it_is_and_an_interrupted_one_completed(tmp_path: Path) -> None:
    spec = RenderSpec("cookware", 6, size=32)
    out = tmp_path / "out"
    catalog = render_catalog(spec, out, workers=1)
    before, times = files(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert render_catalog(spec, out, workers=1) == catalog
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    catalog.unlink()
    next(out.rglob("*.jpg")).unlink()
    render_catalog(spec, out, workers=1)
    assert files(out) == before


def test_a_folder_of_another_catalog_or_of_other_files_is_refused(tmp_path: Path) -> None:
    spec = RenderSpec("cookware", 3, size=32)
    render_catalog(spec, tmp_path / "ours", workers=1)
    with pytest.raises(UserError, match="another specification"):
        render_catalog(replace(spec, seed=1), tmp_path / "ours", workers=1)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="new or empty folder"):
        render_catalog(spec, tmp_path / "theirs", workers=1)
    assert list(files(tmp_path / "theirs")) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cars"}, "expected one of cookware, garments, starter"),
        ({"items": 0}, "--items 0: expected at least 1"),
        ({"size": 31}, "expected at least 32"),
        ({"missing": 1.2}, "--missing 1.2: expected a share from 0 to 1"),
        ({"wrong": -0.1}, "--wrong -0.1: expected a share"),
        ({"wrong": float("nan")}, "--wrong nan: expected a share"),
        ({"seed": -1}, "--seed -1: expected"),
    ],
)
def test_arguments_that_cannot_be_drawn_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    spec = replace(RenderSpec("cookware", 3, size=32), **change)
    with pytest.raises(UserError, match=message):
        render_catalog(spec, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers 0: expected at least 1"):
        render_catalog(RenderSpec("cookware", 3), tmp_path / "out", workers=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_an_attribute_shows(kind: str) -> None:
    """Two pictures that differ in one value alone differ in many pixels, for each pair of values."""
    spec = RenderSpec(kind, 1, size=64)
    whole = {"lid": "no", "handle": "one", "sleeve": "short", "neckline": "crew", "colour": "red", "pattern": "solid"}
    for name, values in ATTRIBUTES[kind].items():
        if name in ("kind", "category"):
            continue  # these decide what the others may be
        garment = "sleeve" in ATTRIBUTES[kind] and name not in ("lid", "handle")
        base = whole | ({"category": "t-shirt"} if kind == "garments" else {"kind": "tunic" if garment else "wok"})
        base |= {"kind": "jar"} if kind == "starter" and not garment else {}
        seen = [pixels(picture(spec, base | {name: value}, 5, 0)) for value in values]
        for first, one in enumerate(seen):
            for other in seen[first + 1 :]:
                assert (np.abs(one - other).max(axis=2) > 24).mean() > 0.008, (name, values[first])


@pytest.mark.parametrize("kind", ["saucepan", "kettle", "frying pan", "wok"])
def test_a_lid_closes_the_dark_opening(kind: str) -> None:
    spec = RenderSpec("cookware", 1, size=96)
    truth = {"handle": "none", "colour": "yellow", "kind": kind}
    opened, closed = (pixels(picture(spec, truth | {"lid": lid}, 2, 0)) for lid in ("no", "yes"))
    dark = [((image.max(axis=2) < 115) & (image[..., 0] > image[..., 2] + 25)).mean() for image in (opened, closed)]
    assert dark[0] > dark[1] + 0.01


@pytest.mark.parametrize("form", VESSELS.values(), ids=VESSELS.keys())
@pytest.mark.parametrize("yaw", [-22.0, 0.0, 22.0])
def test_two_handles_stand_out_at_both_sides_and_none_at_neither(form: Form, yaw: float) -> None:
    def reaches(handles: int) -> tuple[float, float]:
        """How far strokes, which only handles are here, reach out of the body to the left and right."""
        plain = replace(form, spout=False, knobs=("ball",), stick=0.0, bail=0.0)
        draws = np.random.default_rng(4).uniform(size=20).tolist()
        cloth = Cloth((200, 40, 40))
        shapes = draw_vessel(Vessel(plain, True, handles, cloth, (0, 0, 0), draws), Sight(0.25, yaw))
        across = [x for shape in shapes if shape.width for x, _ in shape.points] or [0.0]
        return -min(across), max(across)

    assert reaches(0) == (0.0, 0.0)
    assert min(reaches(2)) > 1.0
    assert reaches(1)[1] > 1.0 > reaches(1)[0]


def test_sleeves_and_necks_are_free_of_the_category_where_reality_is() -> None:
    assert set(APPLIES["garments"]["sleeve"]["category"]) == set(UPPERS)
    assert set(APPLIES["starter"]["neckline"]["kind"]) == set(STARTER_UPPERS)
    assert not set(ATTRIBUTES["starter"]["kind"]) & {
        *ATTRIBUTES["cookware"]["kind"],
        *ATTRIBUTES["garments"]["category"],
    }
