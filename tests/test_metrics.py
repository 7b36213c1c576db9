from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from facetclip.metrics import LEAST, listed_values, macro_f1, measure_attribute
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


def test_a_prediction_among_several_listed_values_is_right():
    #                  listed 0 and 2    1 and 2    2        nothing
    labels = np.array([0b101, 0b110, 0b100, UNLABELLED], dtype=np.int64)
    probabilities = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [1, 0, 0]], dtype=np.float32)
    ours = measure_attribute(attribute(3, multi=True), labels, probabilities)
    assert ours is not None
    assert ours.items == 3
    assert ours.accuracy == pytest.approx(1 / 3)
    # Truths: 2 (it was predicted), 1 (the first of 1 and 2), 2.
    assert ours.confusion == ((0, 0, 0), (1, 0, 0), (0, 1, 1))
    assert ours.support == (1, 1, 3)
    assert ours.log_loss == pytest.approx(-np.log([0.8, 0.4, 0.1]).mean())
    assert ours.baseline.value == "value 2"
    assert ours.baseline.accuracy == 1.0


def test_single_labels_mean_the_same_as_one_value_masks():
    labels = np.array([0, 3, 1, UNLABELLED, 2, 2], dtype=np.int16)
    masks = np.where(labels >= 0, 1 << np.maximum(labels, 0).astype(np.int64), UNLABELLED)
    probabilities = draw_scores(9, 6, 4, 2.0)
    assert measure_attribute(attribute(4), labels, probabilities) == measure_attribute(
        attribute(4, multi=True), masks, probabilities
    )


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
    perfect = np.diag([4, 3, 0])
    assert macro_f1(perfect) == 1.0
    false_alarm = np.array([[3, 0, 1], [0, 3, 0], [0, 0, 0]])
    assert macro_f1(false_alarm) == pytest.approx((6 / 7 + 1 + 0) / 3)
