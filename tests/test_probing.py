import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facetclip import probing
from facetclip.errors import UserError
from facetclip.metrics import listed_values
from facetclip.probing import Doubt, alternatives, crossed_logits, doubts, folds_of, probed
from facetclip.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "id", "product": "product", "image": "image"},
        "attributes": {
            "shape": {"column": "shape", "values": ["round", "square", "oval", "star"]},
            "colour": {"column": "colour", "values": ["red", "green", "blue"], "separator": "|"},
            "empty": {"column": "empty", "values": ["yes", "no"]},
        },
    }
)

EMPTY = SCHEMA.attributes["empty"]


def shop(items: int = 900, wrong: float = 0.05, seed: int = 0) -> tuple[np.ndarray, dict, dict, np.ndarray]:
    """Unit features that show what is there, labels with a share of them wrong, the truth, and products of two."""
    random = np.random.default_rng(seed)
    shape = random.choice(4, items, p=[0.55, 0.25, 0.15, 0.05])
    colours = random.random((items, 3)) < 0.4
    colours[~colours.any(axis=1), 0] = True
    features = np.concatenate([np.eye(4)[shape], colours, random.normal(size=(items, 6)) * 0.25], axis=1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    masks = (colours << np.arange(3)).sum(axis=1)
    truth = {"shape": shape, "colour": masks, "empty": np.full(items, -1)}
    labels = {name: column.copy() for name, column in truth.items()}
    said = random.random((2, items)) < wrong
    labels["shape"][said[0]] = (shape[said[0]] + random.integers(1, 4, said[0].sum())) % 4
    labels["colour"][said[1]] = 7 ^ masks[said[1]]
    labels["colour"][labels["colour"] == 0] = 7
    labels["shape"][::9] = -1
    return features, labels, truth, np.arange(items) // 2


def judged(features: np.ndarray, labels: dict, products: np.ndarray) -> dict[str, Doubt]:
    folds = folds_of(products, 5, seed=0)
    return doubts(probed(features, labels, SCHEMA, folds, seed=0), labels, SCHEMA, folds)


def test_what_is_planted_is_found_first_and_its_share_is_estimated():
    features, labels, truth, products = shop()
    found = judged(features, labels, products)
    assert set(found) == {"shape", "colour"}
    for name in found:
        known = labels[name] >= 0
        planted = known & (labels[name] != truth[name])
        top = np.argsort(-found[name].wrong)[: planted.sum()]
        assert planted[top].mean() > 0.9
        assert found[name].share == pytest.approx(planted[known].mean(), abs=0.02)
        assert not found[name].wrong[~known].any()


def test_a_clean_table_is_hardly_doubted():
    features, labels, _, products = shop(wrong=0.0)
    found = judged(features, labels, products)
    assert found["shape"].share < 0.01


@pytest.mark.parametrize("name", ["shape", "colour"])
def test_a_value_of_one_product_alone_is_not_doubted_since_no_judge_has_seen_it(name):
    features, labels, _, products = shop(wrong=0.0)
    rare = {"shape": 3, "colour": 0b101}[name]
    labels[name] = np.where((labels[name] == 3) | (labels[name] & 0b100 > 0) & (name == "colour"), -1, labels[name])
    before = judged(features, labels, products)[name]
    only = np.flatnonzero(products == 7)
    labels[name][only] = rare
    found = judged(features, labels, products)[name]
    assert not found.judged[only].any()
    assert not found.wrong[only].any()
    assert found.judged.sum() == (labels[name] >= 0).sum() - len(only)
    assert found.share == pytest.approx(before.share, abs=0.002)


def test_a_rare_value_is_taught_where_only_some_of_many_rows_are(monkeypatch):
    monkeypatch.setattr(probing, "MOST_ROWS", 100)
    features, labels, _, products = shop(wrong=0.0)
    labels["shape"] = np.where(labels["shape"] == 3, -1, labels["shape"])
    rare = np.flatnonzero((products == 7) | (products == 300))
    labels["shape"][rare] = 3
    folds = folds_of(products, 5, seed=0)
    folds[products == 7], folds[products == 300] = 0, 1
    for seed in range(4):
        logits = crossed_logits(
            features, listed_values(SCHEMA.attributes["shape"], labels["shape"]), folds, multi_valued=False, seed=seed
        )
        assert (logits[rare, 3] > probing.UNSEEN).all()


def test_nothing_is_said_of_a_table_that_no_judge_has_seen_any_value_of():
    labels = {"empty": np.array([0, 1])}
    schema = SCHEMA.model_copy(update={"attributes": {"empty": EMPTY}})
    found = doubts({"empty": np.zeros((2, 2))}, labels, schema, np.array([0, 1]))["empty"]
    assert (found.share, found.judged.any()) == (0.0, False)


def test_cells_are_ranked_where_no_noise_was_found():
    """A reader that is unsure explains every cell, and still contradicts some more than others."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 2))
    chance = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    labels = (random.random(400) < chance).astype(np.int64)
    schema = SCHEMA.model_copy(update={"attributes": {"empty": EMPTY}})
    found = doubts({"empty": logits}, {"empty": labels}, schema, np.arange(400) % 5)
    told = np.where(labels == 1, chance, 1 - chance)
    assert found["empty"].calibration.noise == 0
    assert np.array_equal(np.argsort(-found["empty"].wrong), np.argsort(told))
    assert found["empty"].share < 0.01


def test_no_item_is_read_by_a_probe_that_saw_its_product():
    """Features that name the product let a probe learn every label by heart, right or wrong: only others may judge."""
    random = np.random.default_rng(0)
    products = np.arange(120) // 2
    features = np.eye(60)[products]
    listed = np.eye(2, dtype=bool)[random.integers(0, 2, 60)[products]]
    logits = crossed_logits(features, listed, folds_of(products, 4, seed=1), multi_valued=False, seed=0)
    right = (logits.argmax(axis=1) == listed.argmax(axis=1)).mean()
    assert 0.2 < right < 0.8


@given(products=st.integers(2, 40), folds=st.integers(2, 8), seed=st.integers(0, 5))
def test_folds_are_even_and_never_cut_a_product(products, folds, seed):
    rows = np.repeat(np.arange(products), 3)
    if folds > products:
        with pytest.raises(UserError, match=f"expected 2 to {products}, the number of products, found {folds}"):
            folds_of(rows, folds, seed=seed)
        return
    dealt = folds_of(rows, folds, seed=seed)
    assert all(len(set(dealt[rows == product])) == 1 for product in range(products))
    counts = np.bincount(dealt, minlength=folds)
    assert counts.max() - counts.min() <= 3


def test_a_value_that_the_other_folds_lack_is_never_read_and_one_value_alone_is_no_news():
    features = np.eye(4)
    listed = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=bool)
    logits = crossed_logits(features, listed, np.array([0, 0, 1, 1]), multi_valued=False, seed=0)
    assert logits[3].argmax() == 0  # the other fold knows nothing but the first value
    assert np.isfinite(logits).all()


def test_alternatives_say_the_read_value_and_both_probabilities():
    shape = SCHEMA.attributes["shape"]
    read = np.array([[0.7, 0.2, 0.1, 0.0]])
    shown, sure, told = alternatives(shape, listed_values(shape, np.array([1])), read)
    assert (shown.tolist(), sure.tolist(), told.tolist()) == ([[True, False, False, False]], [0.7], [0.2])
    colour = SCHEMA.attributes["colour"]
    read = np.array([[0.9, 0.6, 0.1]])
    shown, sure, told = alternatives(colour, listed_values(colour, np.array([0b001])), read)
    assert (shown.tolist(), sure.tolist()) == ([[True, True, False]], [0.6])
    assert told.tolist() == pytest.approx([0.4])
