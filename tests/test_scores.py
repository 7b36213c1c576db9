from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shop import SCHEMA, make_reader, make_shards

from facetclip.batches import PixelReader
from facetclip.calibration import Calibration
from facetclip.errors import OwnMistake, UserError
from facetclip.images import BadImage
from facetclip.index import ShardIndex
from facetclip.model import AttributeReader, ModelCard, save_model
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Schema
from facetclip.scores import not_applicable, reader_digest, reader_for, score_rows


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def reader() -> AttributeReader:
    return make_reader()


class Patchy:
    """The photos of an index, but for some."""

    def __init__(self, index: ShardIndex, bad: set[int]) -> None:
        self.index, self.bad = index, bad

    def read(self, row: int) -> bytes:
        return b"no image" if row in self.bad else self.index.read(row)

    def item_id(self, row: int) -> str:
        return self.index.item_id(row)


def test_scores_are_the_softmax_of_what_the_model_says_to_the_pixels_of_training(index, reader):
    rows = index.rows("test")
    pixels = PixelReader(index, reader.preprocessing.size, "pad").pixels(rows)
    with torch.inference_mode():
        category, sleeve, colour = reader(pixels).logits  # an item may have several colours
        expected = [category.softmax(dim=1).numpy(), sleeve.softmax(dim=1).numpy(), colour.sigmoid().numpy()]
    scores = score_rows(reader, index, rows)
    assert scores.item_ids == [f"item {row}" for row in rows]
    assert list(scores.probabilities) == list(SCHEMA.names)
    for name, probabilities in zip(SCHEMA.names, expected, strict=True):
        assert scores.probabilities[name].dtype == np.float32
        np.testing.assert_allclose(scores.probabilities[name], probabilities, atol=1e-6)


def test_the_batch_size_does_not_matter_and_order_is_kept(index, reader):
    rows = np.random.default_rng(0).permutation(len(index))
    whole = score_rows(reader, index, rows)
    pieces = score_rows(reader, index, rows, batch_size=3)
    assert whole.item_ids == pieces.item_ids == [f"item {row}" for row in rows]
    for name in SCHEMA.names:
        np.testing.assert_allclose(whole.probabilities[name], pieces.probabilities[name], atol=1e-5)


def test_no_rows_give_empty_scores(index, reader):
    scores = score_rows(reader, index, np.zeros(0, dtype=np.int64))
    assert scores.item_ids == []
    assert {name: column.shape for name, column in scores.probabilities.items()} == {
        "category": (0, 2),
        "sleeve": (0, 3),
        "colour": (0, 3),
    }


def test_the_reader_is_left_in_the_mode_it_came_in(index, reader):
    for training in (True, False):
        reader.train(training)
        score_rows(reader, index, np.arange(3))
        assert reader.training is training


def test_a_temperature_flattens_the_probabilities_and_keeps_their_order(index, reader):
    plain = score_rows(reader, index, np.arange(8))
    reader.calibration = {"sleeve": Calibration(4.0)}
    flat = score_rows(reader, index, np.arange(8))
    assert (flat.probabilities["sleeve"].max(axis=1) < plain.probabilities["sleeve"].max(axis=1)).all()
    assert (flat.predicted()["sleeve"] == plain.predicted()["sleeve"]).all()
    assert np.array_equal(flat.probabilities["colour"], plain.probabilities["colour"])


def test_a_bad_image_is_named_or_set_aside_without_touching_the_others(index, reader):
    rows, photos = np.arange(10), Patchy(index, {2, 7})
    with pytest.raises(OwnMistake, match=r"item 'item [27]': its image cannot be read: .*not_an_image"):
        score_rows(reader, photos, rows, batch_size=4)
    whole = score_rows(reader, index, rows, batch_size=4)
    holed = score_rows(reader, photos, rows, batch_size=4, skip_bad=True)
    assert sorted(holed.bad) == [2, 7]
    assert isinstance(holed.bad[2], BadImage)
    assert holed.rows.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert holed.item_ids == [f"item {row}" for row in holed.rows]
    for name in SCHEMA.names:
        assert np.array_equal(holed.probabilities[name], whole.probabilities[name][holed.rows])


def test_weights_that_are_no_numbers_are_refused(index, reader):
    torch.nn.init.constant_(reader.clip.visual_projection.weight, float("nan"))
    with pytest.raises(UserError, match="no numbers"):
        score_rows(reader, index, np.arange(2))


def test_the_digest_follows_the_weights_and_the_prompts_not_the_files(tmp_path, reader):
    digest = reader_digest(reader)
    save_model(reader, tmp_path / "copy")
    assert reader_digest(reader_for(str(tmp_path / "copy"), SCHEMA)) == digest
    assert reader_digest(make_reader(seed=1)) != digest
    prompted = SCHEMA.model_dump()
    prompted["attributes"]["colour"]["template"] = "a {value} thing"
    assert reader_digest(make_reader(schema=Schema.model_validate(prompted))) != digest


def renamed(old: str, new: str) -> Schema:
    return Schema.from_json(SCHEMA.to_json().replace(f'"{old}"', f'"{new}"'))


def one_colour_each() -> Schema:
    facts = SCHEMA.model_dump()
    facts["attributes"]["colour"]["separator"] = None
    return Schema.model_validate(facts)


def saved(folder: Path, reader: AttributeReader, **card: str | None) -> str:
    save_model(reader, folder, card=replace(reader.card, **card))
    return str(folder)


def test_a_fine_tuned_model_keeps_its_own_prompts(tmp_path):
    prompted = SCHEMA.model_dump()
    prompted["attributes"]["colour"]["template"] = "a {value} thing"
    source = saved(tmp_path / "model", make_reader(schema=Schema.model_validate(prompted)), start="starter")
    assert reader_for(source, SCHEMA).schema.attributes["colour"].template == "a {value} thing"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            renamed("green", "teal"),
            "reads colour as several of red, green, blue, the data lists several of red, teal, blue",
        ),
        (one_colour_each(), "reads colour as several of red, green, blue, the data lists one of red, green, blue"),
        (
            renamed("colour", "hue"),
            "the attributes category, sleeve, colour, the data lists category, sleeve, hue",
        ),
    ],
)
def test_a_fine_tuned_model_refuses_data_of_another_schema(tmp_path, reader, schema, words):
    source = saved(tmp_path / "model", reader, start="starter")
    with pytest.raises(UserError, match=words):
        reader_for(source, schema)


def test_a_model_that_was_never_fine_tuned_reads_any_schema(tmp_path, reader):
    other = renamed("green", "teal")
    trained_on_other_things = saved(tmp_path / "base", reader)
    assert reader_for(trained_on_other_things, other).schema == other
    save_model(reader, tmp_path / "plain", card=ModelCard())
    assert reader_for(str(tmp_path / "plain"), other).schema == other


def test_a_wrong_model_path_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="expected a folder"):
        reader_for(str(tmp_path / "nothing"), SCHEMA)


def test_an_attribute_is_not_applicable_by_label_first_and_prediction_second():
    labels = {
        "category": np.array([0, 1, UNLABELLED, UNLABELLED, UNLABELLED, 0]),
        "sleeve": np.array([UNLABELLED, UNLABELLED, UNLABELLED, UNLABELLED, 1, NOT_APPLICABLE]),
        "colour": np.full(6, UNLABELLED),
    }
    predicted = {"category": np.array([1, 0, 0, 1, 1, 0]), "sleeve": np.zeros(6, int), "colour": np.zeros(6, int)}
    found = not_applicable(SCHEMA, labels, predicted)
    # shirt; pants; read as shirt; read as pants; read as pants but its sleeve is listed; excluded by its own cell
    assert found["sleeve"].tolist() == [False, True, False, True, False, True]
    assert not found["category"].any()
    assert not found["colour"].any()


def test_a_rule_that_leans_on_an_excluded_attribute_excludes_too():
    deeper = SCHEMA.model_dump()
    cuff = {"column": "cuff", "values": ["ribbed", "plain"], "applies_where": {"sleeve": ["long"]}}
    deeper["attributes"] = {"cuff": cuff, **deeper["attributes"]}
    schema = Schema.model_validate(deeper)
    labels = {name: np.full(2, UNLABELLED) for name in schema.names}
    predicted = {name: np.zeros(2, int) for name in schema.names} | {"category": np.array([0, 1])}
    assert not_applicable(schema, labels, predicted)["cuff"].tolist() == [False, True]
