import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from small_shop import SCHEMA, make_labels, make_reader, make_shards

from facetclip.audit import AuditSpec, audit
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.images import encode_jpeg, read_pixels
from facetclip.index import ShardIndex, open_index
from facetclip.model import save_model
from facetclip.photo_flags import BLURRED, FLAT, PhotoFlag, clarity, flag_photos, write_flags
from facetclip.squares import to_longest
from facetclip.suggestions import read_suggestions


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), items=60, labels=make_labels(60))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(make_reader(), folder)
    return folder


def test_an_audit_is_the_same_each_time_and_says_what_disagrees(tmp_path, index, model, capsys):
    words = ["audit", str(index.folder), "--model", str(model), "--folds", "4", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    assert "wrong by estimate" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "two"), "--most", "3"]) == 0
    found, again = read_suggestions(tmp_path / "one"), read_suggestions(tmp_path / "two")
    assert again.cells == found.cells[:3]
    assert found.data_digest == index.digest
    rows = {item: row for row, item in enumerate(index.item_ids.to_pylist())}
    for cell in found.cells:
        attribute = SCHEMA.attributes[cell.attribute]
        label = attribute.encode(cell.listed)
        assert label == index.labels[cell.attribute][rows[cell.item_id]]
        assert cell.suggested != cell.listed
        assert cell.reason == "disagrees"


def test_a_model_tuned_on_these_very_shards_may_not_judge_them(tmp_path, index):
    reader = make_reader()
    save_model(reader, tmp_path / "tuned", card=replace(reader.card, start="starter", data_digest=index.digest))
    with pytest.raises(UserError, match="was fine-tuned on these very shards"):
        audit(index.folder, tmp_path / "audit", AuditSpec(str(tmp_path / "tuned")))
    assert not (tmp_path / "audit" / "about.json").exists()


RUN = """
[data]
shards = "elsewhere"
[model]
start = "START"
[train]
steps = 2
batch = 8
[output]
folder = "unused"
"""


def test_fine_tuned_judges_see_no_item_of_their_fold_and_go_on_where_they_stopped(tmp_path, index, model, capsys):
    (tmp_path / "run.toml").write_text(RUN.replace("START", str(model)))
    out = tmp_path / "audit"
    words = ["audit", str(index.folder), "--run", str(tmp_path / "run.toml"), "--folds", "2", "--out", str(out)]
    assert main([*words, "optimizer.lr=1e-3"]) == 0
    first = read_suggestions(out)
    assert "fine-tuned" in first.facts["judges"]
    assert sorted(path.name for path in out.glob("fold-*/model")) == ["model", "model"]
    (out / "about.json").unlink()
    assert main([*words, "optimizer.lr=1e-3"]) == 0
    assert read_suggestions(out) == first
    assert "resumed from step 2" in capsys.readouterr().out


def test_settings_without_a_run_file_are_refused(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "shards"), "optimizer.lr=1e-3", "--out", str(tmp_path / "out")]) == 2
    assert "'optimizer.lr=1e-3' replaces a setting of a run file; name that with --run" in capsys.readouterr().err


def test_one_product_alone_is_said(tmp_path, model):
    index = make_shards(tmp_path / "shards", items=2)
    with pytest.raises(UserError, match="all items are of one product"):
        audit(index.folder, tmp_path / "audit", AuditSpec(model=str(model)))


def test_nothing_to_learn_from_is_said(tmp_path, model):
    silent = {name: np.full(8, -1) for name in SCHEMA.names}
    index = make_shards(tmp_path / "shards", items=8, labels=silent)
    with pytest.raises(UserError, match="no attribute lists two values"):
        audit(index.folder, tmp_path / "audit", AuditSpec(str(model), folds=2))


def drawn() -> Image.Image:
    image = Image.new("RGB", (200, 260), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((50, 60, 150, 220), fill=(40, 60, 120))
    draw.line((50, 60, 150, 220), fill="white", width=3)
    return image


def test_blank_and_blurred_photos_are_told_from_good_ones():
    def looks(image: Image.Image) -> tuple[float, float]:
        return clarity(to_longest(read_pixels(encode_jpeg(image), at_least=128), 128))

    spread, edge = looks(drawn())
    assert spread > FLAT
    assert edge > BLURRED
    assert looks(Image.new("RGB", (200, 200), (200, 10, 10)))[0] < FLAT
    for size in ((200, 260), (400, 300), (30, 300)):
        assert max(looks(Image.new("RGB", size, colour))[0] for colour in ("white", "grey", "black")) < FLAT
    spread, edge = looks(drawn().filter(ImageFilter.GaussianBlur(12)))
    assert spread > FLAT
    assert edge < BLURRED


def test_photos_shared_by_products_and_odd_ones_are_flagged(tmp_path):
    index = make_shards(tmp_path, items=150)
    products = np.arange(150) // 3
    columns = {name: getattr(index, name).copy() for name in ("offset", "checksum", "length", "phash", "tint")}
    changed = open_index(tmp_path)
    for column in columns.values():
        column[149] = column[0]  # the first photo again
    for name, column in (columns | {"products": products}).items():
        object.__setattr__(changed, name, column)  # as if it had been read
    random = np.random.default_rng(0)
    features = np.eye(50)[products] + random.normal(size=(150, 50)) * 0.02
    features[4] = -features[4]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    flags = list(flag_photos(changed, features))
    assert [flag.item_id for flag in flags if flag.flag == "shared"] == ["item 0", "item 149"]
    assert [flag.item_id for flag in flags if flag.flag == "odd_one_out"] == ["item 4"]


def test_products_of_one_picture_in_many_sizes_do_not_make_views_odd(tmp_path):
    index = make_shards(tmp_path, items=240)
    products = np.arange(240) // 3
    object.__setattr__(index, "products", products)
    random = np.random.default_rng(0)
    features = np.eye(80)[products]
    features[180:] += random.normal(size=(60, 80)) * 0.01  # only the last twenty products have real views
    features[200] = -features[200]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert [flag.item_id for flag in flag_photos(index, features) if flag.flag == "odd_one_out"] == ["item 200"]


def test_flags_are_written_so_that_a_spreadsheet_runs_nothing(tmp_path):
    write_flags([PhotoFlag("=1+1", "P", "blank", "d")], tmp_path / "photos.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "photos.csv").read_text())))
    assert rows == [["item_id", "product_id", "flag", "detail"], ["'=1+1", "P", "blank", "d"]]
