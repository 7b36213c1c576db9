"""The ONNX file reads photos as the model does."""

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_shop import SCHEMA, make_reader

from facetclip import onnx_export
from facetclip.calibration import Calibration
from facetclip.catalog import read_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.index import open_index
from facetclip.model import AttributeReader, load_model, save_model
from facetclip.onnx_export import NAME, export_onnx
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import read_schema
from facetclip.scores import score_rows
from facetclip.shards import ShardSpec, build_shards
from facetclip.squares import square_planes

GARMENTS = Path(__file__).parents[1] / "benchmarks" / "quality" / "garments_schema.toml"


def session(path: Path) -> Any:
    """The file as onnxruntime loads it."""
    return importlib.import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture
def installed() -> None:
    for name in (*onnx_export.LIBRARIES, "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'facetclip[onnx]'")


def answered(path: Path, pixels: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return dict(zip(names, session(path).run(list(names), {"pixels": pixels}), strict=True))


@pytest.mark.nightly  # torch takes fifteen seconds for the six layers of the starter
@pytest.mark.usefixtures("installed")
def test_rendered_photos_get_the_probabilities_that_extraction_gives_them(tmp_path: Path, capsys) -> None:
    catalog = render_catalog(RenderSpec("garments", 24, size=96), tmp_path / "shop", workers=1)
    schema = read_schema(GARMENTS)
    build_shards(read_catalog(str(catalog)), schema, ShardSpec(tmp_path / "shards", images=catalog.parent, workers=1))
    index = open_index(tmp_path / "shards")
    calibrated = load_model("starter", schema)
    calibrated.calibration = {name: Calibration(0.7, 0.05) for name in schema.names}
    save_model(calibrated, tmp_path / "model", card=replace(calibrated.card, calibration=calibrated.calibration))
    assert main(["export", str(tmp_path / "model")]) == 0
    assert "uint8 [n, 3, 72, 72] -> probabilities of category, sleeve" in capsys.readouterr().out
    path = tmp_path / "model" / NAME
    reader = load_model(str(tmp_path / "model"))
    wanted = score_rows(reader, index, np.arange(len(index))).probabilities
    pixels = np.stack([square_planes(index.read(row), 72, reader.preprocessing.fit) for row in range(len(index))])
    for portion in (slice(0, 24), slice(0, 1), slice(3, 10)):  # any number of photos
        found = answered(path, pixels[portion], schema.names)
        for name in schema.names:
            assert found[name].dtype == np.float32
            assert np.abs(found[name] - wanted[name][portion]).max() < 1e-4, name
    weights = sum(each.numel() for each in reader.clip.vision_model.parameters())
    assert path.stat().st_size < 4.4 * weights + 500_000, "the text tower stays out of it"


@dataclass
class Rendered:
    """Photos in memory."""

    photos: list[bytes]

    def read(self, row: int) -> bytes:
        return self.photos[row]

    def item_id(self, row: int) -> str:
        return str(row)


def heads(reader: AttributeReader) -> AttributeReader:
    """With a classifier, biases and calibration of its own."""
    generator = torch.Generator().manual_seed(3)
    values = sum(len(attribute.values) for attribute in SCHEMA.attributes.values())
    reader.classifier = torch.nn.Parameter(torch.randn(values, 16, generator=generator))
    reader.bias = torch.nn.Parameter(torch.randn(values, generator=generator))
    reader.calibration = {"colour": Calibration(2.0, 0.1), "sleeve": Calibration(0.5, 0.0)}
    return reader


@pytest.mark.usefixtures("installed")
def test_several_values_a_classifier_and_biases_are_in_the_file(tmp_path: Path) -> None:
    reader = heads(make_reader())
    render_catalog(RenderSpec("garments", 5, size=96), tmp_path / "shop", workers=1)
    photos = Rendered([path.read_bytes() for path in sorted(tmp_path.glob("shop/images/*/*.jpg"))])
    path = export_onnx(reader, tmp_path / "deep" / "shop.onnx")
    wanted = score_rows(reader, photos, np.arange(5)).probabilities
    found = answered(path, np.stack([square_planes(photo, 32, "pad") for photo in photos.photos]), SCHEMA.names)
    for name in SCHEMA.names:
        assert np.abs(found[name] - wanted[name]).max() < 1e-4, name
    facts = session(path).get_modelmeta().custom_metadata_map
    assert json.loads(facts["facetclip.values"])["colour"] == ["red", "green", "blue"]
    assert (facts["facetclip.size"], facts["facetclip.fit"]) == ("32", "pad")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(onnx_export, "LIBRARIES", ("no_such_library",))
    with pytest.raises(UserError, match=r"need no_such_library: pip install 'facetclip\[onnx\]'"):
        export_onnx(make_reader(), tmp_path / "model.onnx")
    assert main(["export", "starter"]) == 2
    assert "starter: is no folder; give --out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_attributes_may_be_called_as_steps_of_the_model(tmp_path: Path, installed: None) -> None:
    attributes = dict(zip(("linear", "softmax", "rows"), SCHEMA.attributes.values(), strict=True))
    attributes["softmax"] = attributes["softmax"].model_copy(update={"applies_where": {}})
    named = make_reader(schema=SCHEMA.model_copy(update={"attributes": attributes}))
    pixels = np.random.default_rng(0).integers(0, 255, (3, 3, 32, 32), dtype=np.uint8)
    told = answered(export_onnx(named, tmp_path / "named.onnx"), pixels, named.schema.names)
    plain = answered(export_onnx(make_reader(), tmp_path / NAME), pixels, SCHEMA.names)
    for one, other in zip(told.values(), plain.values(), strict=True):
        assert one.shape == other.shape
        assert np.allclose(one.sum(axis=1), 1) == np.allclose(other.sum(axis=1), 1)


def test_an_attribute_cannot_be_called_as_the_input(tmp_path: Path) -> None:
    attributes = {"pixels" if name == "sleeve" else name: each for name, each in SCHEMA.attributes.items()}
    reader = make_reader(schema=SCHEMA.model_copy(update={"attributes": attributes}))
    with pytest.raises(UserError, match="an attribute called 'pixels' cannot be told from the photos"):
        export_onnx(reader, tmp_path / NAME)
    assert not (tmp_path / NAME).exists()
