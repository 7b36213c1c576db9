"""Probabilities from models that never saw the item they judge: a linear probe an attribute, by turns over folds.

A cell is to be doubted by a model that did not learn from it, so the products are dealt into folds, and the items of a
fold are read by logistic regressions on features of the others (cross-prediction, as confident learning does it:
Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021). What share of an attribute's
cells is wrong falls out of the calibration of those readings, whose noise it is (see `facetclip.calibration`).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from facetclip.calibration import Calibration, fit_calibration, probabilities
from facetclip.errors import UserError
from facetclip.metrics import listed_values, read_values
from facetclip.schema import Attribute, Schema

STRENGTH = 3.0  # of a probe against its penalty (scikit-learn's C), on features of length 1; 1 to 100 do as well
MOST_ROWS = 50_000  # labelled items that teach one probe; more teach it no more
ROUNDS = 500
UNSEEN = -30.0  # the logit of a value that no item of the other folds carries


@dataclass(frozen=True)
class Doubt:
    """One attribute of n items, judged by models that did not see them.

    `read` float [n, values]: how probable each value is by the photo alone; `judged` bool [n]: the cell says something,
    and whoever read the photo had seen what it says; `wrong` [n]: how probable it is that such a cell does not say what
    the photo shows, 0 for others; `share`: of those cells, in all.
    """

    read: np.ndarray
    judged: np.ndarray
    wrong: np.ndarray
    share: float
    calibration: Calibration


def folds_of(products: np.ndarray, folds: int, *, seed: int) -> np.ndarray:
    """The fold of each item [n]: products are dealt out at random, all items of one to the same. UserError where there
    are fewer products than folds."""
    count = int(products.max(initial=-1)) + 1
    if count < 2:
        raise UserError("all items are of one product, so none could judge it; an audit needs two products at least")
    if not 2 <= folds <= count:
        raise UserError(f"folds: expected 2 to {count}, the number of products, found {folds}")
    return np.random.default_rng(seed).permutation(count)[products] % folds


def probed(
    features: np.ndarray, labels: Mapping[str, np.ndarray], schema: Schema, folds: np.ndarray, *, seed: int
) -> dict[str, np.ndarray]:
    """Attribute -> logits [n, values] of items with `features` [n, d] (of length 1) and `labels` [n], each by probes
    that learned from the other `folds` [n]."""
    return {
        name: crossed_logits(
            features,
            listed_values(attribute, labels[name]),
            folds,
            multi_valued=attribute.multi_valued,
            seed=seed,
        )
        for name, attribute in schema.attributes.items()
    }


def doubts(
    logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], schema: Schema, folds: np.ndarray
) -> dict[str, Doubt]:
    """Attribute -> `Doubt`, from `logits` [n, values] by models that learned from the other `folds` [n], and `labels`
    [n].

    Attributes with fewer than two values listed are left out: nothing can be learned of them.
    """
    found = {}
    for name, attribute in schema.attributes.items():
        listed = listed_values(attribute, labels[name])
        if listed.any(axis=0).sum() >= 2:
            found[name] = doubt(attribute, listed, logits[name], seen_values(listed, folds))
    return found


def seen_values(listed: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Which values an item's judges have seen, bool [n, values]: those that other `folds` [n] list. `listed` bool
    [n, values]."""
    seen = np.zeros_like(listed)
    for fold in np.unique(folds):
        seen[folds == fold] = listed[folds != fold].any(axis=0)
    return seen


def crossed_logits(
    features: np.ndarray, listed: np.ndarray, folds: np.ndarray, *, multi_valued: bool, seed: int
) -> np.ndarray:
    """Logits [n, values] of every item by probes that learned from the other folds; `listed` bool [n, values]."""
    logits = np.full(listed.shape, UNSEEN)
    for fold in np.unique(folds):
        theirs = folds == fold
        taught = np.flatnonzero(~theirs & listed.any(axis=1))
        if len(taught) > MOST_ROWS:
            some = np.random.default_rng([seed, fold]).choice(taught, MOST_ROWS, replace=False)
            each = taught[listed[taught].argmax(axis=0)[listed[taught].any(axis=0)]]  # no value that is there is missed
            taught = np.union1d(some, each)
        if multi_valued:
            for value in range(listed.shape[1]):
                logits[theirs, value] = _yes(features[taught], listed[taught, value], features[theirs])
        else:
            _read(logits, theirs, features, taught, listed)
    return logits


def _probe(features: np.ndarray, answers: np.ndarray):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly the best weights do as well
        return LogisticRegression(C=STRENGTH, max_iter=ROUNDS).fit(features, answers)


def _read(logits: np.ndarray, theirs: np.ndarray, features: np.ndarray, taught: np.ndarray, listed: np.ndarray) -> None:
    answers = listed[taught].argmax(axis=1)
    known = np.unique(answers)
    if len(known) < 2:
        logits[np.ix_(theirs, known)] = 0.0
        return
    probe = _probe(features[taught], answers)
    logits[np.ix_(theirs, probe.classes_)] = probe.predict_log_proba(features[theirs])


def _yes(taught: np.ndarray, answers: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The log odds [n] that a value is there."""
    if answers.all() or not answers.any():
        return np.full(len(asked), -UNSEEN if answers.any() else UNSEEN)
    return _probe(taught, answers).decision_function(asked)


def doubt(attribute: Attribute, listed: np.ndarray, logits: np.ndarray, seen: np.ndarray) -> Doubt:
    """What logits [n, values] say of the cells that list `listed`, bool [n, values], by judges that know the values
    `seen`, bool [n, values]; of a cell that lists another they say nothing.

    A cell that says anything at random, in `noise` of all, is wrong unless it happens to be right: by Bayes' rule the
    less probable the photo makes what the cell says, the more probable it is that the cell is one of those. Where the
    fit finds no noise, one cell in all and two is taken to be random (Laplace's rule of succession): photos rank them
    all the same.
    """
    multi = attribute.multi_valued
    judged = np.logical_and(listed.any(axis=1), ~(listed & ~seen).any(axis=1))
    calibration = fit_calibration(logits[judged], listed[judged], multi_valued=multi) if judged.any() else Calibration()
    read = probabilities(logits, Calibration(calibration.temperature), multi_valued=multi)
    told = np.where(listed, read, 1 - read) if multi else (read * listed).sum(axis=1, keepdims=True)
    chance = 0.5 if multi else 1 / listed.shape[1]
    noise = max(calibration.noise, 1 / (np.count_nonzero(judged) + 2))
    random = noise * chance
    wrong = random * (1 - told) / ((1 - noise) * told + random)
    whole = 1 - (1 - wrong).prod(axis=1)  # any value of the cell
    whole[~judged] = 0.0
    return Doubt(read, judged, whole, float(whole[judged].mean()) if judged.any() else 0.0, calibration)


def alternatives(attribute: Attribute, listed: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the photo shows in place of what is listed: the values bool [n, values], how probable they are [n], and how
    probable what is listed is [n]. Where multi-valued, by the value that is least sure of those that differ."""
    shown = read_values(attribute, read)
    if not attribute.multi_valued:
        return shown, read.max(axis=1), (read * listed).sum(axis=1)
    sure = np.where(shown, read, 1 - read)
    differs = shown != listed
    least = np.where(differs, sure, np.inf).min(axis=1)
    return shown, np.where(differs.any(axis=1), least, sure.min(axis=1)), np.where(differs, 1 - sure, 1.0).min(axis=1)
