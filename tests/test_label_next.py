from pathlib import Path

import numpy as np
import pytest
from small_shop import SCHEMA, make_reader, make_shards

from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.label_next import _suggestion, entropy, label_next, pick
from facetclip.model import save_model
from facetclip.suggestions import read_suggestions


def test_the_unsure_and_different_are_picked_and_the_sure_never():
    features = np.eye(4)[[0, 0, 0, 1, 2, 3]]
    unsure = np.array([1.0, 0.99, 0.98, 0.5, 0.4, 0.0])
    assert pick(unsure, features, 3).tolist() == [0, 3, 4]
    assert pick(unsure, features, 9).tolist()[:3] == [0, 3, 4]
    assert sorted(pick(unsure, features, 9).tolist()) == [0, 1, 2, 3, 4]
    assert pick(np.zeros(6), features, 3).tolist() == []


def test_a_photo_is_as_unsure_as_all_its_values_together():
    assert entropy(np.array([[0.5, 0.5], [0.0, 1.0]]), multi_valued=True) == pytest.approx([2 * np.log(2), 0.0])
    assert entropy(np.full((1, 4), 0.25), multi_valued=False) == pytest.approx([np.log(4)])


def test_only_cells_that_say_nothing_and_apply_are_asked_for(tmp_path: Path, capsys) -> None:
    index = make_shards(tmp_path / "shards", items=40)
    save_model(make_reader(), tmp_path / "model")
    words = ["next", str(index.folder), "--model", str(tmp_path / "model"), "--out"]
    assert main([*words, str(tmp_path / "queue"), "--n", "5"]) == 0
    assert "5 photos to label" in capsys.readouterr().out
    found = read_suggestions(tmp_path / "queue")
    assert len({cell.item_id for cell in found.cells}) == 5
    rows = {item: row for row, item in enumerate(index.item_ids.to_pylist())}
    for cell in found.cells:
        assert index.labels[cell.attribute][rows[cell.item_id]] == -1
        assert cell.listed == ""
        assert SCHEMA.attributes[cell.attribute].encode(cell.suggested) >= 0
        assert cell.reason == "label"
    assert main([*words, str(tmp_path / "again"), "--n", "5"]) == 0
    assert read_suggestions(tmp_path / "again").cells == found.cells


def test_nothing_left_to_label_is_said(tmp_path: Path) -> None:
    full = {name: np.zeros(8, dtype=np.int64) + (name == "colour") for name in SCHEMA.names}
    index = make_shards(tmp_path / "shards", items=8, labels=full)
    save_model(make_reader(), tmp_path / "model")
    with pytest.raises(UserError, match="nothing is left to label"):
        label_next(index.folder, str(tmp_path / "model"), tmp_path / "queue", count=3)
    with pytest.raises(UserError, match="expected at least 1, found 0"):
        label_next(index.folder, str(tmp_path / "model"), tmp_path / "queue", count=0)


def test_a_set_of_values_is_as_sure_as_the_least_sure_of_them(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", items=4)
    found = _suggestion(index, 0, "colour", np.array([0.99, 0.51, 0.1]))
    assert (found.suggested, found.probability) == ("red|green", 0.51)
