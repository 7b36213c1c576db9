"""When to answer and when to abstain: how sure an answer must be for a wanted share of answers to be right.

Answers are ranked by how sure they are, and as many of the surest are given as keep the wanted precision (selective
classification: El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", 2010). How often they
are right is judged by the validation split's cells, a share of which says anything at random: what they disagree in by
that alone is no fault of the answers. A few hundred cells say it with an error of several points, so the calibrated
answers must expect a standard error more than that of themselves: on the validation split, which calibrates them, and
again where they are given, since there photos may be harder, or other rows of a product may say less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facetclip.calibration import Calibration
from facetclip.metrics import listed_values, read_values
from facetclip.schema import UNLABELLED, Attribute

TARGETS = (0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
FEWEST_ANSWERS = 20  # that a cut-off rests on
SAME = 0.99  # of the products with several labelled photos list one value alone: the attribute is the product's
FEWEST_PRODUCTS = 10  # that can say so
MOST_WRONG = 0.05  # share of the cells that may be slips in that


@dataclass(frozen=True)
class Cutoff:
    """For a share `precision` of answers to be right, give those that are at least as sure as `threshold`; wherever
    that is done they must expect to be right by `margin` more, in the mean."""

    precision: float
    threshold: float
    margin: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """How often a cell of a table, some of which are wrong, says what an answer says that is `right`, and that is
    `wrong`."""

    right: float
    wrong: float


def cutoff(cutoffs: Sequence[Cutoff], precision: float, sure: np.ndarray) -> float | None:
    """How sure an answer must be for `precision` of those given to be right; `sure` [n]: how sure those to choose from
    are.

    At least what the nearest target not below it asks for, and so sure that the answers given expect as much of
    themselves in the mean, and its margin. None where none is to be given.

    >>> fitted, sure = [Cutoff(0.9, 0.4), Cutoff(0.95, 0.6)], np.array([0.99, 0.9, 0.8, 0.5])
    >>> cutoff(fitted, 0.92, sure[:2]), cutoff(fitted, 0.92, sure), cutoff(fitted[:1], 0.95, sure)
    (0.9, 0.9, None)
    """
    enough = [each for each in cutoffs if each.precision >= precision]
    fitted = min(enough, key=lambda each: each.threshold, default=None)
    if fitted is None:
        return None
    ranked, wanted = np.sort(sure)[::-1], precision + fitted.margin
    expected = _deepest(ranked, np.cumsum(ranked) / np.arange(1, len(ranked) + 1), wanted)
    return max(fitted.threshold, wanted if expected is None else expected)


def _deepest(ranked: np.ndarray, precision: np.ndarray, wanted: float) -> float | None:
    """The lowest of `ranked` [n], descending, that can be cut at: the answers down to it have a `precision` [n] of at
    least `wanted`. A cut-off lets in all that are equally sure."""
    good = np.flatnonzero((precision >= wanted) & (np.diff(ranked, append=-np.inf) < 0))
    return float(ranked[good[-1]]) if len(good) else None


def without_noise(probabilities: np.ndarray, calibration: Calibration, *, multi_valued: bool) -> np.ndarray:
    """How probable each value is by the photo, [n, values], from how probable it is that the table lists it."""
    chance = 0.5 if multi_valued else 1 / probabilities.shape[1]
    return np.clip((probabilities - calibration.noise * chance) / (1 - calibration.noise), 0.0, 1.0)


def answers(attribute: Attribute, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each item is read as, bool [n, values], and how sure that is [n], from `read` [n, values]; where several
    values may be listed, as sure as the least sure of them."""
    shown = read_values(attribute, read)
    if not attribute.multi_valued:
        return shown, read.max(axis=1)
    return shown, np.where(shown, read, 1 - read).min(axis=1)


def fused(read: np.ndarray, products: np.ndarray, *, multi_valued: bool) -> np.ndarray:
    """One reading for all photos of a product, [n, values] given to each of them: the geometric mean of their `read`.

    Views of one product are no independent witnesses, so their odds are averaged, not multiplied.
    """
    _, place, count = np.unique(products, return_inverse=True, return_counts=True)

    def averaged(values: np.ndarray) -> np.ndarray:
        total = np.zeros((len(count), values.shape[1]))
        np.add.at(total, place, np.log(np.clip(values, 1e-9, None)))
        return np.exp(total / count[:, None])

    yes = averaged(read)
    whole = yes + averaged(1 - read) if multi_valued else yes.sum(axis=1, keepdims=True)
    return (yes / whole)[place]


def shipped_answers(
    attribute: Attribute,
    probabilities: np.ndarray,
    calibration: Calibration,
    products: np.ndarray | None,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`answers` of `probabilities` [n, values] as the gaps of a catalog are filled with them: by what the photo shows,
    with `products` [n] by all photos of a product together, and with `labels` [n] by what its other rows list, too;
    and that word of theirs, a label [n], UNLABELLED where it was not asked for.

    What a row lists itself never counts, so that labelled rows tell how gaps are answered.
    """
    word = np.full(len(probabilities), UNLABELLED)
    multi = attribute.multi_valued
    read = without_noise(probabilities, calibration, multi_valued=multi)
    if products is not None:
        read = fused(read, products, multi_valued=multi)
    if products is not None and labels is not None:
        word = of_siblings(labels, products)
        noise = word_noise(attribute, labels, products)
        read = with_word(read, listed_values(attribute, word), noise, multi_valued=multi)
    return *answers(attribute, read), word


def of_product(labels: np.ndarray, products: np.ndarray) -> bool:
    """Whether an attribute with `labels` [n] is a matter of the product [n], not of the single photo.

    A table has its slips: where a share of MOST_WRONG of the cells is wrong, m cells of a product agree in
    (1 - MOST_WRONG)^m.
    """
    known = labels >= 0
    pairs = np.unique(np.stack([products[known], labels[known].astype(np.int64)]), axis=1)
    _, items = np.unique(products[known], return_counts=True)
    _, values = np.unique(pairs[0], return_counts=True)
    several = items > 1
    if several.sum() < FEWEST_PRODUCTS:
        return False
    return bool((values[several] == 1).mean() >= SAME * ((1 - MOST_WRONG) ** items[several]).mean())


def word_noise(attribute: Attribute, labels: np.ndarray, products: np.ndarray) -> float:
    """The share of cells that say anything at random of their product, by `labels` [n] themselves.

    Two cells of a product that both mean it agree; so of a share e, 1 - (1 - e)^2 of the pairs agree by chance alone.
    """
    _, place = np.unique(products, return_inverse=True)
    known = labels >= 0
    if not known.any():
        return 1.0
    cells = np.unique(np.stack([place[known], labels[known].astype(np.int64)]), axis=1, return_counts=True)
    listed, count = cells[0][0], cells[1]
    whole = np.bincount(listed, weights=count)
    pairs, same = (whole * (whole - 1)).sum(), (count * (count - 1)).sum()
    differing = (pairs - same + 1) / (pairs + 2)  # as if one pair of two had differed before
    questions, choices = _questions(attribute)
    return float(1 - np.sqrt(max(0.0, 1 - differing / (1 - float(choices) ** -questions))))


def of_siblings(labels: np.ndarray, products: np.ndarray) -> np.ndarray:
    """What the other items of the same product that are labelled list, [n]; UNLABELLED where none is, or they differ.

    >>> of_siblings(np.array([2, -1, 1, 0, -1]), np.array([7, 7, 5, 5, 5])).tolist()
    [-1, 2, 0, 1, -1]
    """
    _, place = np.unique(products, return_inverse=True)
    values, code = np.unique(labels, return_inverse=True)
    known = (labels >= 0).astype(np.int64)

    def others(counted: np.ndarray) -> np.ndarray:
        counted = counted * known
        return np.bincount(place, weights=counted)[place].astype(np.int64) - counted

    several, total, squares = others(known), others(code), others(code**2)
    same = (several > 0) & (several * squares == total**2)  # by the Cauchy-Schwarz inequality
    return np.where(same, values[total // np.maximum(several, 1)], UNLABELLED)


def with_word(read: np.ndarray, listed: np.ndarray, noise: float, *, multi_valued: bool) -> np.ndarray:
    """`read` [n, values] and a cell that lists `listed`, bool [n, values], taken together by Bayes' rule.

    A share `noise` of such cells says anything at random; one that lists nothing says nothing.

    >>> with_word(np.array([[0.5, 0.5]]), np.array([[True, False]]), 0.2, multi_valued=False)
    array([[0.9, 0.1]])
    """
    chance = noise / (2 if multi_valued else read.shape[1])
    yes = read * np.where(listed, 1 - noise + chance, chance)
    no = (1 - read) * np.where(listed, chance, 1 - noise + chance)
    whole = yes + no if multi_valued else yes.sum(axis=1, keepdims=True)
    spoken = listed.any(axis=1, keepdims=True) & (whole > 0)
    return np.where(spoken, yes / np.where(whole > 0, whole, 1.0), read)


def cutoffs(sure: np.ndarray, agrees: np.ndarray, table: Agreement) -> tuple[Cutoff, ...]:
    """For each target of TARGETS that can be kept, where to cut.

    `sure` [n] and `agrees` bool [n]: how probable each answer is, and whether the `table` says the same. The less it
    says, the further off the share that it makes out to be right; what that error has more than a clean table's counts
    against the answers.
    """
    order = np.argsort(-sure, kind="stable")
    given = np.arange(1, len(order) + 1)
    seen, told = true_precision(np.cumsum(agrees[order]) / given, table), table.right - table.wrong
    expected, found = np.cumsum(sure[order]) / given, []
    for target in TARGETS:
        margin = np.sqrt(target * (1 - target) / given)
        agreeing = table.wrong + target * told
        precision = np.minimum(seen + margin - np.sqrt(agreeing * (1 - agreeing) / given) / told, expected - margin)
        precision[: FEWEST_ANSWERS - 1] = 0.0
        if (threshold := _deepest(sure[order], precision, target)) is not None:
            found.append(Cutoff(target, threshold, float(margin[(sure >= threshold).sum() - 1])))
    return tuple(found)


def true_precision(agreeing: np.ndarray | float, table: Agreement) -> np.ndarray:
    """What share of answers is right where the table agrees with a share `agreeing` of them.

    >>> float(true_precision(0.9, Agreement(right=0.9, wrong=0.0)))
    1.0
    """
    return np.clip((np.asarray(agreeing) - table.wrong) / (table.right - table.wrong), 0.0, 1.0)


def agreement(attribute: Attribute, noise: float) -> Agreement:
    """That of a table a share `noise` of whose cells, or where multi-valued of whose values, say anything at random.

    A set of values is wrong in one of them at least; were it in more, a cell would agree even less.
    """
    questions, choices = _questions(attribute)
    others = (1 - noise + noise / choices) ** (questions - 1)
    return Agreement(right=others * (1 - noise + noise / choices), wrong=others * noise / choices)


def _questions(attribute: Attribute) -> tuple[int, int]:
    """How many independent questions a cell answers, and out of how many choices each."""
    return (len(attribute.values), 2) if attribute.multi_valued else (1, len(attribute.values))
