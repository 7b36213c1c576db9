"""How well predictions agree with labels, attribute by attribute. NumPy only.

Rows without a label (unlabelled, not applicable) count nowhere. Where an item lists several values, a prediction is
right when it is among them; the truth in the confusion matrix is then the prediction, and else the first listed value.
"""

from dataclasses import dataclass

import numpy as np

from facetclip.schema import Attribute

LEAST = float(np.finfo(np.float32).eps)  # probabilities below this count as this in the log loss


@dataclass(frozen=True)
class Baseline:
    """What always answering `value`, the most frequent label of these very items, scores."""

    value: str
    accuracy: float
    macro_f1: float
    balanced_accuracy: float


@dataclass(frozen=True)
class AttributeMetrics:
    """One attribute, measured over `items` labelled items.

    `confusion[t][p]` counts items of true value t read as p, both in the order of `values`. `support`: items that list
    each value. `f1`: per value, 0 where it was neither there nor predicted. `macro_f1`: its mean over the values that
    are in the truth or in the predictions. `balanced_accuracy`: the mean recall over the values in the truth.
    `log_loss`: the mean of -ln(probability of the listed values together), in nats.
    """

    values: tuple[str, ...]
    items: int
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    log_loss: float
    f1: tuple[float, ...]
    support: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    baseline: Baseline


def measure_attribute(attribute: Attribute, labels: np.ndarray, probabilities: np.ndarray) -> AttributeMetrics | None:
    """The metrics of `probabilities` [n, values] against an index's `labels` [n]; None where nothing is labelled."""
    listed = listed_values(attribute, labels)
    labelled = listed.any(axis=1)
    if not labelled.any():
        return None
    listed, probabilities = listed[labelled], probabilities[labelled].astype(np.float64)
    confusion = confusion_matrix(listed, probabilities.argmax(axis=1))
    support = listed.sum(axis=0)
    right = np.clip((probabilities * listed).sum(axis=1), LEAST, 1.0)
    return AttributeMetrics(
        values=attribute.values,
        items=len(listed),
        accuracy=accuracy(confusion),
        macro_f1=macro_f1(confusion),
        balanced_accuracy=balanced_accuracy(confusion),
        log_loss=float(-np.log(right).mean()),
        f1=tuple(f1_of_values(confusion).tolist()),
        support=tuple(support.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
        baseline=_baseline(attribute, listed, int(support.argmax())),
    )


def listed_values(attribute: Attribute, labels: np.ndarray) -> np.ndarray:
    """Which values each label names, bool [n, values]; none where unlabelled or not applicable.

    >>> colour = Attribute(column="colour", values=("red", "blue", "green"), separator="|")
    >>> listed_values(colour, np.array([0b101, -1])).tolist()
    [[True, False, True], [False, False, False]]
    """
    places = np.arange(len(attribute.values))
    if not attribute.multi_valued:
        return labels[:, None] == places
    return (np.maximum(labels, 0)[:, None] >> places & 1).astype(bool)


def confusion_matrix(listed: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts [true, predicted] of predictions [n] against the values each item lists, bool [n, values]."""
    items, values = listed.shape
    truth = np.where(listed[np.arange(items), predicted], predicted, listed.argmax(axis=1))
    return np.bincount(truth * values + predicted, minlength=values * values).reshape(values, values)


def accuracy(confusion: np.ndarray) -> float:
    """The share of items on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


def f1_of_values(confusion: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall of each value; 0 where a value is neither true nor predicted."""
    seen = confusion.sum(axis=0) + confusion.sum(axis=1)
    return 2 * np.diag(confusion) / np.maximum(seen, 1)


def macro_f1(confusion: np.ndarray) -> float:
    """The mean F1 over the values that are in the truth or in the predictions.

    >>> macro_f1(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == (6 / 7 + 8 / 9) / 2
    True
    """
    seen = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(f1_of_values(confusion)[seen].mean())


def balanced_accuracy(confusion: np.ndarray) -> float:
    """The mean recall over the values in the truth.

    >>> balanced_accuracy(np.array([[3, 1], [0, 2]]))
    0.875
    """
    support = confusion.sum(axis=1)
    return float((np.diag(confusion)[support > 0] / support[support > 0]).mean())


def _baseline(attribute: Attribute, listed: np.ndarray, value: int) -> Baseline:
    confusion = confusion_matrix(listed, np.full(len(listed), value))
    return Baseline(
        value=attribute.values[value],
        accuracy=accuracy(confusion),
        macro_f1=macro_f1(confusion),
        balanced_accuracy=balanced_accuracy(confusion),
    )
