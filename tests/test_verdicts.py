"""The same verdict on every bad image, whoever looks at it, within a bound of memory and time."""

import base64
import csv
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image
from small_shop import SCHEMA, SCHEMA_TOML, make_reader
from test_colours import swapped
from test_images import BAD, GOOD, coded, photo

from facetclip.catalog import read_catalog
from facetclip.checks import CheckSpec, check_catalog
from facetclip.errors import OwnMistake, UserError
from facetclip.extract import FromCatalog, extract
from facetclip.model import save_model
from facetclip.pyfunc_model import CLIP, AttributeModel
from facetclip.shards import ShardSpec, build_shards

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")

FILES = {**{name: data for name, (data, _) in BAD.items()}, **GOOD}
EXPECTED = {name: code for name, (_, code) in BAD.items()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with every kind of image, bad and good, the catalog that names them, its schema and a model."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    columns = [SCHEMA.columns.item, SCHEMA.columns.product, SCHEMA.columns.image]
    columns += [attribute.column for attribute in SCHEMA.attributes.values()]
    with (folder / "catalog.csv").open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(columns)
        for number, (name, data) in enumerate(FILES.items()):
            (folder / "images" / f"{number}.jpg").write_bytes(data)
            table.writerow([name, f"P{number}", f"{number}.jpg", *[""] * len(SCHEMA.attributes)])
    (folder / "schema.toml").write_text(SCHEMA_TOML)
    save_model(make_reader(), folder / "model")
    return folder


def quarantined(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as table:
        return {line["item"]: line["code"] for line in csv.DictReader(table)}


def test_c_check_calls_every_bad_image_by_its_code_and_passes_every_good_one(shop):
    report = check_catalog(
        read_catalog(str(shop / "catalog.csv")), SCHEMA, CheckSpec(images=shop / "images", decode=True)
    )
    assert {problem.item: problem.code for problem in report.problems if problem.severity == "error"} == EXPECTED


@pytest.mark.parametrize("resize", [None, 64])
def test_c_shard_leaves_out_the_same_images_for_the_same_reasons(shop, tmp_path, resize):
    catalog = read_catalog(str(shop / "catalog.csv"))
    report = build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "out", shop / "images", resize=resize, max_bad=0.9))
    assert report.samples == len(GOOD)
    assert quarantined(tmp_path / "out" / "quarantine.csv") == EXPECTED


def test_c_extract_leaves_out_the_same_images_for_the_same_reasons(shop, tmp_path):
    source = FromCatalog(str(shop / "catalog.csv"), shop / "schema.toml", shop / "images", max_bad=0.9)
    done = extract(str(shop / "model"), source, tmp_path / "out")
    assert done is not None
    assert done.bad == len(EXPECTED)
    assert quarantined(tmp_path / "out" / "quarantine.csv") == EXPECTED


def test_c_a_served_model_answers_with_the_same_codes(shop):
    model = AttributeModel()
    model.load_context(PythonModelContext({CLIP: str(shop / "model")}, None))
    cells = [base64.b64encode(data).decode() for data in FILES.values()]
    errors = model.predict(pandas.DataFrame({"image": cells}))["error"].tolist()
    for name, error in zip(FILES, errors, strict=True):
        if EXPECTED.get(name) in ("empty", "not_an_image"):
            assert error, name  # may as well be no base64 of an image but a path
        else:
            assert pandas.isna(error) == (name not in EXPECTED), (name, error)
            assert name not in EXPECTED or f"({EXPECTED[name]})" in error, (name, error)


def test_c_more_than_a_hundredth_of_bad_images_stops_with_the_top_reasons(shop, tmp_path):
    catalog = read_catalog(str(shop / "catalog.csv"))
    with pytest.raises(OwnMistake, match=r"images cannot be used \(\d+ \w+, \d+ \w+.*--max-bad 0\.01 allows 0"):
        build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "out", shop / "images"))
    source = FromCatalog(str(shop / "catalog.csv"), shop / "schema.toml", shop / "images")
    with pytest.raises(UserError, match=r"\d+ \w+, \d+ \w+"):
        extract(str(shop / "model"), source, tmp_path / "scores")


LOOK = """
import sys, time
from pathlib import Path
from facetclip.images import BadImage, read_rgb, shrink, verdict

def peak():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    for use in (lambda: verdict(data, decode=True), lambda: read_rgb(data, at_least=224), lambda: shrink(data, 256)):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = time.process_time()
        try:
            use()
        except BadImage:
            pass
        print(path.name, time.process_time() - start, peak())
"""


def looked_at(folder: Path) -> list[tuple[str, float, int]]:
    """(file, seconds, megabytes at most) of each look at each file, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOOK, str(folder)], capture_output=True, text=True, check=True)
    return [(name, float(took), int(peak)) for name, took, peak in map(str.split, done.stdout.splitlines())]


def test_c_no_file_takes_more_than_two_seconds_or_512_megabytes(tmp_path):
    for number, data in enumerate(FILES.values()):
        (tmp_path / f"{number:03d}").write_bytes(data)
    looks = looked_at(tmp_path)
    assert len(looks) == 3 * len(FILES)
    assert max(took for _, took, _ in looks) < 2
    assert max(peak for _, _, peak in looks) < 512


@pytest.mark.nightly
def test_c_nor_does_the_largest_image_of_each_kind(tmp_path):
    tile = photo(1000, 1000)
    for name, size, options in (
        ("jpeg", (7000, 7000), {"quality": 90}),
        ("progressive", (7000, 7000), {"quality": 90, "progressive": True, "subsampling": 0}),
        ("jpeg with profile", (7000, 7000), {"quality": 90, "icc_profile": swapped()}),
        ("png", (7000, 7000), {"compress_level": 1}),
        ("png with profile", (7000, 7000), {"compress_level": 1, "icc_profile": swapped()}),
        ("webp", (5000, 5000), {"quality": 80, "method": 0}),
        ("avif", (6300, 6300), {"quality": 60, "speed": 10}),
        ("gif", (7000, 7000), {}),
    ):
        image = Image.new("RGB", size)
        for place in range(0, size[0] * size[1], 1_000_000):
            across, down = divmod(place // 1_000_000, -(-size[0] // 1000))
            image.paste(tile, (1000 * across, 1000 * down))
        kind = name.split()[0].replace("progressive", "jpeg").upper()
        (tmp_path / name.replace(" ", "-")).write_bytes(coded(image, kind, **options))
    looks = looked_at(tmp_path)
    slow = [look for look in looks if look[1] >= 2]
    assert not slow
    assert not [look for look in looks if look[2] >= 512]
