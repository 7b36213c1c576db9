"""How well predictions agree with labels, attribute by attribute. NumPy only.

Rows without a label (unlabelled, not applicable) count nowhere but in `Detection`. What an item of a multi-valued
attribute is read as is the set of its values with a probability of at least a half, or the most probable one where
there is none; accuracy and the confusion matrix go by the most probable value alone, which is right when it is among
those listed. The truth in the confusion matrix is then the prediction, and else the first listed value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facetclip.calibration import ReliabilityBin, calibration_error, reliability
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
class Detection:
    """How well "not applicable" is told from what has a label: `items` that the catalog says it of, and the precision,
    recall and F1 of predicting it (0 where it is never predicted)."""

    items: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class AttributeMetrics:
    """One attribute, measured over `items` labelled items.

    `confusion[t][p]` counts items of true value t read as p, both in the order of `values`. `support`: items that list
    each value. `f1`: per value, 0 where it was neither there nor predicted. `macro_f1`: its mean over the values that
    are in the truth or in the predictions. `balanced_accuracy`: the mean recall over the values in the truth.
    `log_loss`: the mean of -ln(probability of the listed values together), in nats; where multi-valued the mean over
    items and values of the binary cross-entropy. `exact_match`: the share of items read as exactly the set they list;
    None where single-valued.
    `ece`: the expected calibration error, in bins of a fifteenth, of the probability of the value that is read; where
    multi-valued of the probability of each value of each item, against whether it is listed. `reliability`: those bins.
    `not_applicable`: None where nothing predicts it, or no item has it.
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
    ece: float
    reliability: tuple[ReliabilityBin, ...]
    exact_match: float | None = None
    not_applicable: Detection | None = None


def measure_attribute(
    attribute: Attribute, labels: np.ndarray, probabilities: np.ndarray, excluded: np.ndarray | None = None
) -> AttributeMetrics | None:
    """The metrics of `probabilities` [n, values] against an index's `labels` [n]; None where nothing is labelled.

    `excluded` bool [n]: where the attribute is predicted not to apply; None where nothing predicts it.
    """
    every = listed_values(attribute, labels)
    labelled = every.any(axis=1)
    if not labelled.any():
        return None
    listed, probabilities = every[labelled], probabilities[labelled].astype(np.float64)
    read = read_values(attribute, probabilities)
    confusion = confusion_matrix(listed, probabilities.argmax(axis=1))
    support, answered = listed.sum(axis=0), answers(attribute, listed, probabilities)
    return AttributeMetrics(
        values=attribute.values,
        items=len(listed),
        accuracy=accuracy(confusion),
        macro_f1=macro_f1(listed, read),
        balanced_accuracy=balanced_accuracy(listed, read),
        log_loss=float(log_losses(attribute, listed, probabilities).mean()),
        f1=tuple(f1_of_values(listed, read).tolist()),
        support=tuple(support.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
        baseline=_baseline(attribute, listed, int(support.argmax())),
        ece=calibration_error(*answered),
        reliability=reliability(*answered),
        exact_match=float((listed == read).all(axis=1).mean()) if attribute.multi_valued else None,
        not_applicable=None if excluded is None else measure_detection(attribute, labels, excluded),
    )


def measure_detection(attribute: Attribute, labels: np.ndarray, excluded: np.ndarray) -> Detection | None:
    """How well `excluded` bool [n] finds the items of which the catalog says that the attribute cannot apply, among
    those and the labelled ones; None where it says so of none."""
    found = absent(attribute, labels, excluded)
    if found is None:
        return None
    truth, read = found
    hits, items = int((truth & read).sum()), int(truth.sum())
    return Detection(items, hits / max(1, int(read.sum())), hits / items, 2 * hits / (int(read.sum()) + items))


def absent(attribute: Attribute, labels: np.ndarray, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Of which items the catalog says that the attribute cannot apply, and of which `excluded` says so, bool [n] both,
    among those that it says anything of; None where it says so of none."""
    truth = labels == attribute.not_applicable_label
    return (truth, excluded & (truth | (labels >= 0))) if truth.any() else None


def tail_f1(measured: AttributeMetrics, training: Sequence[int], share: float = 1 / 3) -> float:
    """The mean F1 of the rarest `share` of the values, at least one, by how many `training` items carry each.

    Values that no measured item lists are left out; ties go by order.
    """
    present = np.flatnonzero(measured.support)
    rare = present[np.argsort(np.asarray(training)[present], kind="stable")]
    return float(np.asarray(measured.f1)[rare[: max(1, round(share * len(present)))]].mean())


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


def read_values(attribute: Attribute, probabilities: np.ndarray) -> np.ndarray:
    """The values that each item is read as, bool [n, values]: the most probable one, or the set where multi-valued.

    >>> colour = Attribute(column="colour", values=("red", "blue", "green"), separator="|")
    >>> read_values(colour, np.array([[0.5, 0.1, 0.9], [0.2, 0.1, 0.3]])).tolist()
    [[True, False, True], [False, False, True]]
    """
    best = probabilities.argmax(axis=1)[:, None] == np.arange(probabilities.shape[1])
    return best | (probabilities >= 0.5) if attribute.multi_valued else best


def f1_of_values(listed: np.ndarray, read: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall of each value, of what was listed and read, bool [n, values]; 0 where a
    value is neither."""
    seen = listed.sum(axis=0) + read.sum(axis=0)
    return 2 * (listed & read).sum(axis=0) / np.maximum(seen, 1)


def macro_f1(listed: np.ndarray, read: np.ndarray) -> float:
    """The mean F1 over the values that are listed or read, bool [n, values]."""
    seen = listed.any(axis=0) | read.any(axis=0)
    return float(f1_of_values(listed, read)[seen].mean())


def balanced_accuracy(listed: np.ndarray, read: np.ndarray) -> float:
    """The mean recall over the values that are listed, bool [n, values]."""
    support = listed.sum(axis=0)
    recalled = (listed & read).sum(axis=0)
    return float((recalled[support > 0] / support[support > 0]).mean())


def log_losses(attribute: Attribute, listed: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What each item adds to the log loss, [n], by `probabilities` [n, values] of what is listed, bool [n, values]."""
    if attribute.multi_valued:
        right = np.where(listed, probabilities, 1 - probabilities)
    else:
        right = (probabilities * listed).sum(axis=1, keepdims=True)
    return -np.log(np.clip(right, LEAST, 1.0)).mean(axis=1)


def answers(attribute: Attribute, listed: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each answer and whether it was right, both flat: whether an item has a value, for each value
    where multi-valued, and else the most probable one."""
    if attribute.multi_valued:
        return probabilities.ravel(), listed.ravel()
    best = probabilities.argmax(axis=1)[:, None]
    return np.take_along_axis(probabilities, best, axis=1)[:, 0], np.take_along_axis(listed, best, axis=1)[:, 0]


def _baseline(attribute: Attribute, listed: np.ndarray, value: int) -> Baseline:
    read = np.broadcast_to(np.arange(listed.shape[1]) == value, listed.shape)
    return Baseline(
        value=attribute.values[value],
        accuracy=float(listed[:, value].mean()),
        macro_f1=macro_f1(listed, read),
        balanced_accuracy=balanced_accuracy(listed, read),
    )
