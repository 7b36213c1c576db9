"""What a served model answers to good photos, bad photos, URLs and paths."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from mlflow.pyfunc.model import PythonModelContext
from small_shop import SCHEMA, make_reader, photo

from facetclip.errors import UserError
from facetclip.extract import not_applicable
from facetclip.model import save_model
from facetclip.pyfunc_model import CLIP, ROOT, AttributeModel, RequestPhotos, answers
from facetclip.registry import CLIP as REGISTERED_CLIP
from facetclip.registry import EXAMPLE, _signature
from facetclip.schema import Schema
from facetclip.scores import score_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AttributeModel:
    model = AttributeModel()
    folder = save_model(make_reader(), tmp_path_factory.mktemp("model"))
    model.load_context(PythonModelContext({CLIP: str(folder)}, None))
    return model


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def asked(model: AttributeModel, *cells: object) -> Any:
    return model.predict(pandas.DataFrame({"image": list(cells)}))


def test_a_photo_gets_the_values_that_extraction_gives_it(model: AttributeModel) -> None:
    cells = [text(photo(number)) for number in range(6)]
    rows = asked(model, *cells)
    scores = score_rows(model.reader, RequestPhotos(cells, None), np.arange(6))
    excluded = not_applicable(SCHEMA, {name: np.full(6, -1) for name in SCHEMA.names}, scores.predicted())
    for name, attribute in SCHEMA.attributes.items():
        for row in range(6):
            probabilities = scores.probabilities[name][row]
            if excluded[name][row]:
                assert rows[name][row] is None
            else:
                assert rows[name][row] == attribute.values[probabilities.argmax()]
                assert rows[f"{name}_probability"][row] == pytest.approx(probabilities.max())
    assert rows["error"].tolist() == [None] * 6


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("https://shop.example/a.jpg", "url"),
        ("file:///etc/passwd", "url"),
        ("data:image/png;base64," + EXAMPLE, "url"),
        ("/etc/passwd", "not_an_image"),
        ("photos/a.jpg", "not_an_image"),
        ("", "no_reference"),
        (None, "no_reference"),
        (3.5, "no_reference"),
        (text(b"<html>not found</html>"), "not_an_image"),
        (text(photo(1)[:-100]), "truncated"),
        ("!" * 300, "not_an_image"),
    ],
)
def test_a_bad_photo_gets_a_reason_and_harms_no_other(model: AttributeModel, cell: object, code: str) -> None:
    rows = asked(model, text(photo(0)), cell, EXAMPLE)
    assert rows["error"].isna().tolist() == [True, False, True]
    assert rows["error"][1].endswith(f"({code})"), rows["error"][1]
    for name in SCHEMA.names:
        assert pandas.isna(rows[name][1])
        assert pandas.isna(rows[f"{name}_probability"][1])
    alone = asked(model, text(photo(0)))
    assert rows["category_probability"][0] == pytest.approx(alone["category_probability"][0], abs=1e-6)


def test_paths_are_read_only_under_the_image_root(
    model: AttributeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.jpg").write_bytes(photo(0))
    (root / "abcd").write_bytes(photo(0))  # its name happens to be base64
    (tmp_path / "secret.jpg").write_bytes(photo(1))
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    monkeypatch.setenv(ROOT, str(root))
    rows = asked(model, "a.jpg", "abcd", "../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "b.jpg", EXAMPLE)
    assert rows["error"][[0, 1, 6]].isna().all()
    assert [error.rpartition("(")[2] for error in rows["error"][2:6]] == ["outside_root)"] * 3 + ["not_found)"]
    assert rows["category"][0] == asked(model, text(photo(0)))["category"][0]
    assert not [error for error in rows["error"] if error and str(tmp_path) in error], "clients learn no path"


@pytest.mark.parametrize(("names", "clash"), [(["lid", "error"], "error"), (["lid_probability", "lid"], "lid_pro")])
def test_an_attribute_with_the_name_of_another_column_is_not_served(
    names: list[str], clash: str, tmp_path: Path
) -> None:
    attributes = {name: {"column": "lid", "values": ["yes", "no"]} for name in names}
    columns = {"item": "id", "product": "product", "image": "image"}
    reader = make_reader(schema=Schema.model_validate({"columns": columns, "attributes": attributes}))
    folder = save_model(reader, tmp_path / "model")
    with pytest.raises(UserError, match=f"attribute called '{clash}.*' cannot be served"):
        AttributeModel().load_context(PythonModelContext({CLIP: str(folder)}, None))
    with pytest.raises(UserError, match=f"attribute called '{clash}.*' cannot be served"):
        _signature(reader.schema)


def test_no_rows_get_no_answers(model: AttributeModel) -> None:
    assert list(asked(model).columns) == [*(c for n in SCHEMA.names for c in (n, f"{n}_probability")), "error"]
    assert answers(model.reader, RequestPhotos([], None))["category"] == []


def test_both_sides_call_the_model_folder_by_the_same_name() -> None:
    assert CLIP == REGISTERED_CLIP
