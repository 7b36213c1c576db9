"""What the answers of one or several models about the same items are worth: from scores to the numbers of a report.

Evaluation and promotion tally answers here, by the same code. The models share their draws of products, so that their
differences are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facetclip.abstention import cutoff, shipped_answers
from facetclip.calibration import Calibration
from facetclip.coverage import TARGETS, curve
from facetclip.index import ShardIndex
from facetclip.intervals import Draws, Tally, draws, estimate, mean_draws, share, share_draws, tally
from facetclip.metrics import AttributeMetrics, listed_values, measure_attribute, read_values
from facetclip.model import ModelCard
from facetclip.report import Comparison, Estimates, Promise, Reading
from facetclip.schema import UNLABELLED, Schema
from facetclip.scores import Scores, not_applicable


@dataclass(frozen=True)
class Answered:
    """What the model `source`, with weights of `digest`, answered."""

    source: str
    digest: str
    card: ModelCard
    scores: Scores


@dataclass(frozen=True)
class Questions:
    """What the table says of the items that were read, in their order: attribute -> labels [n], and products [n]."""

    schema: Schema
    labels: Mapping[str, np.ndarray]
    products: np.ndarray

    @classmethod
    def of(cls, index: ShardIndex, rows: np.ndarray) -> "Questions":
        """Those of some rows."""
        return cls(index.schema, {name: each[rows] for name, each in index.labels.items()}, index.products[rows])

    def of_slice(self, places: np.ndarray) -> "Questions":
        """Those at some places."""
        labels = {name: column[places] for name, column in self.labels.items()}
        return Questions(self.schema, labels, self.products[places])


def tallies(asked: Questions, scores: Scores, *, ranked: bool = False) -> dict[str, Tally]:
    """Attribute -> what its answers sum up to, of those that are labelled and were asked for; `ranked`: with what
    coverage needs."""
    excluded, found = ruled_out(scores), {}
    for name, attribute in asked.schema.attributes.items():
        if name not in scores.probabilities:
            continue
        labels, answered = asked.labels[name], scores.of(name, attribute)
        each = tally(attribute, labels, answered, asked.products, excluded=excluded.get(name), ranked=ranked)
        if each is not None:
            found[name] = each
    return found


def measured(asked: Questions, scores: Scores) -> dict[str, AttributeMetrics]:
    """Attribute -> its metrics, of those that are labelled."""
    excluded, found = ruled_out(scores), {}
    for name, attribute in asked.schema.attributes.items():
        each = measure_attribute(attribute, asked.labels[name], scores.probabilities[name], excluded.get(name))
        if each is not None:
            found[name] = each
    return found


def ruled_out(scores: Scores) -> dict[str, np.ndarray]:
    """Attribute -> bool [n]: by the predictions alone it cannot apply. Only of attributes that can be found so."""
    schema, silent = scores.schema, np.full(len(scores.rows), UNLABELLED)
    found = not_applicable(schema, dict.fromkeys(schema.names, silent), scores.predicted())
    ruled = {name for name, each in schema.attributes.items() if each.applies_where or each.not_applicable_value}
    return {name: column for name, column in found.items() if name in ruled}


def exact(asked: Questions, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Of which items every labelled attribute is read as exactly what is listed, and which have any label, bool [n]."""
    right = np.ones(len(scores.rows), dtype=bool)
    known = np.zeros(len(scores.rows), dtype=bool)
    for name, attribute in asked.schema.attributes.items():
        listed = listed_values(attribute, asked.labels[name])
        labelled = listed.any(axis=1)
        right &= ~labelled | (read_values(attribute, scores.probabilities[name]) == listed).all(axis=1)
        known |= labelled
    return right, known


def readings(asked: Questions, answered: Sequence[Answered]) -> tuple[list[Reading], list[Comparison]]:
    """How right each model is, and what the first has more than each of the others. Something is labelled."""
    summed = [tallies(asked, each.scores, ranked=True) for each in answered]
    drawn, matched = draws(summed), []
    for each in answered:
        right, known = exact(asked, each.scores)
        matched.append(share_draws(right[known], asked.products[known]))
    read = [
        Reading(
            source=each.source,
            digest=each.digest,
            attributes=measured(asked, each.scores),
            estimates={name: _estimates(numbers) for name, numbers in own.items()},
            mean=_estimates(mean_draws(own)),
            exact_match=estimate(match),
            curves={name: curve(found.ranking) for name, found in sums.items() if found.ranking is not None},
            promises=promises(asked, each),
        )
        for each, sums, own, match in zip(answered, summed, drawn, matched, strict=True)
    ]
    return read, [
        _more(drawn[0], other, matched[0] - match) for other, match in zip(drawn[1:], matched[1:], strict=True)
    ]


def _estimates(numbers: Draws) -> Estimates:
    return {name: estimate(drawn) for name, drawn in numbers.items()}


def _more(ours: Mapping[str, Draws], theirs: Mapping[str, Draws], matched: np.ndarray) -> Comparison:
    """What `ours` has more, of the numbers that both have; in the mean, too."""
    ours, theirs = _common(ours, theirs), _common(theirs, ours)
    pairs = [(ours[name], theirs[name]) for name in ours]
    means = mean_draws(ours), mean_draws(theirs)
    each = [{key: estimate(drawn - other[key]) for key, drawn in one.items()} for one, other in (*pairs, means)]
    return Comparison(dict(zip(ours, each, strict=False)), each[-1], estimate(matched))


def _common(draws: Mapping[str, Draws], others: Mapping[str, Draws]) -> dict[str, Draws]:
    return {name: {key: drawn for key, drawn in own.items() if key in others[name]} for name, own in draws.items()}


def promises(asked: Questions, answered: Answered) -> dict[str, tuple[Promise, ...]]:
    """Attribute -> what the model's own cut-offs keep, where it has some and the attribute is labelled.

    Each labelled cell is answered as `fill` would were it a gap; an item that what else the table lists, or else is
    read, rules out gets none.
    """
    silent, predicted, found = np.full(len(asked.products), UNLABELLED), answered.scores.predicted(), {}
    for name, attribute in asked.schema.attributes.items():
        listed = listed_values(attribute, asked.labels[name])
        known = listed.any(axis=1)
        if not known.any() or name not in answered.card.cutoffs:
            continue
        calibration = answered.card.calibration.get(name, Calibration())
        together = asked.products if name in answered.card.by_product else None
        read = answered.scores.probabilities[name]
        shown, sure, _ = shipped_answers(attribute, read, calibration, together, asked.labels[name])
        excluded = not_applicable(asked.schema, {**asked.labels, name: silent}, predicted)[name]
        right, open_to = (shown == listed).all(axis=1), known & ~excluded
        found[name] = tuple(
            _promise(target, threshold, open_to & (sure >= threshold), right, asked.products, int(known.sum()))
            for target in TARGETS.values()
            if (threshold := cutoff(answered.card.cutoffs[name], target, sure[open_to])) is not None
        )
    return found


def _promise(
    precision: float, threshold: float, given: np.ndarray, right: np.ndarray, products: np.ndarray, items: int
) -> Promise:
    kept = share(right[given], products[given]) if given.any() else None
    return Promise(precision, threshold, float(given.sum() / items), kept)
