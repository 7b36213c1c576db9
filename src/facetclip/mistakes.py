"""The answers that were surest and wrong, attribute by attribute."""

import numpy as np

from facetclip.abstention import answers
from facetclip.index import ShardIndex
from facetclip.labels import labels_of, listed_text
from facetclip.metrics import listed_values
from facetclip.report import Mistake
from facetclip.schema import Attribute
from facetclip.scores import Scores

MOST = 12  # of an attribute


def worst_mistakes(index: ShardIndex, scores: Scores, most: int = MOST) -> dict[str, tuple[Mistake, ...]]:
    """Attribute -> its surest mistakes, the surest first, one a product; only of attributes with any."""
    found = {}
    for name, attribute in index.schema.attributes.items():
        listed = listed_values(attribute, index.labels[name][scores.rows])
        mistakes = _of_attribute(index, scores, attribute, listed, scores.probabilities[name], most)
        if mistakes:
            found[name] = mistakes
    return found


def _of_attribute(
    index: ShardIndex, scores: Scores, attribute: Attribute, listed: np.ndarray, read: np.ndarray, most: int
) -> tuple[Mistake, ...]:
    shown, sure = answers(attribute, read)
    places = np.flatnonzero((shown != listed).any(axis=1) & listed.any(axis=1))
    places = places[np.argsort(-sure[places], kind="stable")]
    _, first = np.unique(index.products[scores.rows[places]], return_index=True)
    places = places[np.sort(first)[:most]]
    rows = scores.rows[places]
    read_as, told = (listed_text(attribute, labels_of(attribute, each[places])) for each in (shown, listed))
    titles = index.titles.take(rows).to_pylist() if index.schema.columns.title else [None] * len(rows)
    ids, products = index.item_ids.take(rows).to_pylist(), index.product_ids.take(rows).to_pylist()
    believed = _how_probable(attribute, listed[places], read[places])
    return tuple(
        Mistake(
            row=int(rows[place]),
            item_id=ids[place],
            product_id=products[place],
            title=titles[place] or "",
            listed=told[place] or "",
            read=read_as[place] or "",
            probability=float(sure[places[place]]),
            listed_probability=float(believed[place]),
        )
        for place in range(len(rows))
    )


def _how_probable(attribute: Attribute, listed: np.ndarray, read: np.ndarray) -> np.ndarray:
    """How probable what is `listed` is, [n]; of several values as probable as the least of them."""
    if not attribute.multi_valued:
        return (read * listed).max(axis=1)
    return np.where(listed, read, 1 - read).min(axis=1)
