from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.calibration import Calibration, calibration_error, probabilities
from facetclip.metrics import LEAST, Detection, listed_values, macro_f1, measure_attribute, measure_detection, tail_f1
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Attribute

oracle: Any = sklearn.metrics  # it declares no types


def attribute(values: int, *, multi: bool = False) -> Attribute:
    names = tuple(f"value {place}" for place in range(values))
    return Attribute(column="a", values=names, separator="|" if multi else None)


def draw_scores(seed: int, items: int, values: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(items, values)) * sharpness
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(-2, 4), min_size=1, max_size=60).filter(lambda labels: max(labels) >= 0),
    seed=st.integers(0, 10_000),
    sharpness=st.floats(0.1, 30),
)
def test_every_number_is_that_of_scikit_learn(labels, seed, sharpness):
    labels = np.array(labels, dtype=np.int16)
    probabilities = draw_scores(seed, len(labels), 5, sharpness)
    ours = measure_attribute(attribute(5), labels, probabilities)
    assert ours is not None
    truth, scores = labels[labels >= 0], probabilities[labels >= 0].astype(np.float64)
    predicted = scores.argmax(axis=1)
    present = np.union1d(truth, predicted)
    assert ours.items == len(truth)
    assert ours.accuracy == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert ours.macro_f1 == pytest.approx(
        oracle.f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
    )
    recalls = oracle.recall_score(truth, predicted, labels=np.unique(truth), average=None, zero_division=0)
    assert ours.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert ours.f1 == pytest.approx(
        oracle.f1_score(truth, predicted, labels=range(5), average=None, zero_division=0).tolist()
    )
    assert np.array_equal(ours.confusion, oracle.confusion_matrix(truth, predicted, labels=range(5)))
    clipped = np.clip(scores, LEAST, 1)
    expected = -np.log(clipped[np.arange(len(truth)), truth]).mean()
    assert ours.log_loss == pytest.approx(expected)
    assert list(ours.support) == np.bincount(truth, minlength=5).tolist()


def test_log_loss_of_moderate_scores_is_that_of_scikit_learn():
    labels = np.random.default_rng(0).integers(0, 3, size=40)
    probabilities = draw_scores(1, 40, 3, 1.0)
    ours = measure_attribute(attribute(3), labels, probabilities)
    assert ours is not None
    assert ours.log_loss == pytest.approx(oracle.log_loss(labels, probabilities, labels=range(3)), rel=1e-5)


def test_rows_without_a_label_change_nothing():
    labels = np.array([0, 1, 1, 2], dtype=np.int16)
    probabilities = draw_scores(3, 4, 3, 2.0)
    alone = measure_attribute(attribute(3), labels, probabilities)
    silent = np.array([UNLABELLED, NOT_APPLICABLE, UNLABELLED], dtype=np.int16)
    mixed = measure_attribute(
        attribute(3), np.concatenate([silent, labels]), np.concatenate([draw_scores(4, 3, 3, 2.0), probabilities])
    )
    assert alone == mixed


def test_an_attribute_without_any_label_has_no_metrics():
    labels = np.array([UNLABELLED, NOT_APPLICABLE], dtype=np.int16)
    assert measure_attribute(attribute(3), labels, draw_scores(0, 2, 3, 1.0)) is None
    assert measure_attribute(attribute(3), labels[:0], np.zeros((0, 3), np.float32)) is None


# listed 0 and 2, 1 and 2, 2, nothing; read as 0 and 2, 0, the most probable 1 though below a half, 0
MASKS = np.array([0b101, 0b110, 0b100, UNLABELLED], dtype=np.int64)
SIGMOIDS = np.array([[0.6, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.4, 0.1], [0.9, 0.1, 0.1]], dtype=np.float32)


def test_a_prediction_among_several_listed_values_is_right():
    ours = measure_attribute(attribute(3, multi=True), MASKS, SIGMOIDS)
    assert ours is not None
    assert ours.items == 3
    assert ours.accuracy == pytest.approx(1 / 3)
    # Truths: 2 (it was predicted), 1 (the first of 1 and 2), 2.
    assert ours.confusion == ((0, 0, 0), (1, 0, 0), (0, 1, 1))
    assert ours.support == (1, 1, 3)
    assert ours.baseline.value == "value 2"
    assert ours.baseline.accuracy == 1.0


def test_several_values_are_read_as_a_set():
    ours = measure_attribute(attribute(3, multi=True), MASKS, SIGMOIDS)
    assert ours is not None
    assert ours.f1 == pytest.approx((2 / 3, 0.0, 2 / 4))
    assert ours.macro_f1 == pytest.approx(np.mean(ours.f1))
    assert ours.balanced_accuracy == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert ours.exact_match == pytest.approx(1 / 3)
    chances = [0.6, 0.8, 0.7, 0.4, 0.3, 0.1, 0.8, 0.6, 0.1]  # of what is so: listed or not
    assert ours.log_loss == pytest.approx(-np.log(chances).mean())


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), items=st.integers(1, 40), values=st.integers(2, 6), spread=st.floats(0.1, 10))
def test_every_number_of_a_set_is_that_of_scikit_learn(seed, items, values, spread):
    random = np.random.default_rng(seed)
    labels = random.integers(1, 2**values, items)
    scores = probabilities(random.normal(size=(items, values)) * spread, Calibration(), multi_valued=True)
    ours = measure_attribute(attribute(values, multi=True), labels, scores)
    assert ours is not None
    listed = (labels[:, None] >> np.arange(values) & 1).astype(bool)
    read = scores >= 0.5
    read[np.arange(items), scores.argmax(axis=1)] = True
    f1 = oracle.f1_score(listed, read, average=None, zero_division=0)
    assert ours.f1 == pytest.approx(f1.tolist())
    assert ours.macro_f1 == pytest.approx(f1[listed.any(axis=0) | read.any(axis=0)].mean())
    assert ours.exact_match == pytest.approx(oracle.accuracy_score(listed, read))
    recalls = oracle.recall_score(listed, read, average=None, zero_division=0)
    assert ours.balanced_accuracy == pytest.approx(recalls[listed.any(axis=0)].mean())
    assert sum(each.items for each in ours.reliability) == items * values


def test_single_labels_and_one_value_masks_have_the_same_confusions():
    labels = np.array([0, 3, 1, UNLABELLED, 2, 2], dtype=np.int16)
    masks = np.where(labels >= 0, 1 << np.maximum(labels, 0).astype(np.int64), UNLABELLED)
    scores = draw_scores(9, 6, 4, 2.0)
    one, several = (
        measure_attribute(attribute(4), labels, scores),
        measure_attribute(attribute(4, multi=True), masks, scores),
    )
    assert one is not None
    assert several is not None
    assert several.confusion == one.confusion
    assert several.support == one.support
    assert one.exact_match is None
    # No two values of a softmax pass a half, so both read the same sets.
    assert (several.f1, several.macro_f1, several.baseline) == (one.f1, one.macro_f1, one.baseline)
    assert several.exact_match == one.accuracy


def test_the_highest_bit_of_a_mask_is_a_value_like_any_other():
    listed = listed_values(attribute(62, multi=True), np.array([1 << 61 | 1], dtype=np.int64))
    assert np.flatnonzero(listed[0]).tolist() == [0, 61]


def test_the_baseline_answers_the_most_frequent_value_always():
    labels = np.array([1] * 6 + [0] * 3 + [2], dtype=np.int16)
    ours = measure_attribute(attribute(4), labels, draw_scores(0, 10, 4, 1.0))
    assert ours is not None
    assert ours.baseline.value == "value 1"
    assert ours.baseline.accuracy == pytest.approx(0.6)
    assert ours.baseline.balanced_accuracy == pytest.approx(1 / 3)
    assert ours.baseline.macro_f1 == pytest.approx(oracle.f1_score(labels, np.ones(10), average="macro"))


def test_a_value_never_seen_does_not_lower_macro_f1_but_a_false_alarm_does():
    truth = np.eye(3, dtype=bool)[[0] * 4 + [1] * 3]
    assert macro_f1(truth, truth) == 1.0
    alarmed = truth.copy()
    alarmed[0] = [False, False, True]
    assert macro_f1(truth, alarmed) == pytest.approx((6 / 7 + 1 + 0) / 3)


def test_the_calibration_error_is_that_of_the_value_read():
    labels = np.array([0, 1, 2, 2, 1, UNLABELLED], dtype=np.int16)
    scores = draw_scores(5, 6, 3, 3.0)
    ours = measure_attribute(attribute(3), labels, scores)
    assert ours is not None
    known = scores[:5].astype(np.float64)
    assert ours.ece == calibration_error(known.max(axis=1), known.argmax(axis=1) == labels[:5])
    assert sum(each.items for each in ours.reliability) == 5
    assert sum(each.items * each.accuracy for each in ours.reliability) == pytest.approx(5 * ours.accuracy)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.integers(-2, 3), st.booleans()), min_size=1, max_size=40))
def test_not_applicable_is_scored_against_labels_as_scikit_learn_would(rows):
    labels, excluded = np.array([label for label, _ in rows]), np.array([each for _, each in rows])
    found = measure_detection(attribute(2), labels, excluded)
    if not (labels == NOT_APPLICABLE).any():
        assert found is None
        return
    known = labels != UNLABELLED
    truth, read = labels[known] == NOT_APPLICABLE, excluded[known]
    expected = oracle.precision_recall_fscore_support(truth, read, average="binary", zero_division=0)[:3]
    assert found is not None
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected)
    assert found.items == truth.sum()


def test_an_attribute_carries_the_detection_only_where_something_predicts_it():
    labels = np.array([0, 1, NOT_APPLICABLE, UNLABELLED], dtype=np.int16)
    excluded = np.array([False, True, True, True])
    scores = draw_scores(0, 4, 2, 1.0)
    with_rule, without = (measure_attribute(attribute(2), labels, scores, each) for each in (excluded, None))
    assert with_rule is not None
    assert without is not None
    assert with_rule.not_applicable == Detection(items=1, precision=0.5, recall=1.0, f1=2 / 3)
    assert without.not_applicable is None
    assert with_rule.macro_f1 == without.macro_f1


def test_the_tail_is_the_rarest_third_of_the_values_that_were_measured():
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2 + [3] * 2 + [5, 5], dtype=np.int16)
    ours = measure_attribute(attribute(7), labels, draw_scores(1, len(labels), 7, 1.0))
    assert ours is not None
    training = [90, 4, 7, 50, 0, 7, 0]  # values 4 and 6 are in no item here
    assert tail_f1(ours, training) == pytest.approx((ours.f1[1] + ours.f1[2]) / 2)
    assert tail_f1(ours, training, share=0.01) == ours.f1[1]
    assert tail_f1(ours, training, share=1) == pytest.approx(np.mean([ours.f1[v] for v in (0, 1, 2, 3, 5)]))
