"""From cells to labels and back: what a cell says by the schema, and how a label is written into one."""

import numpy as np
import pyarrow as pa

from facetclip.catalog import Catalog
from facetclip.rules import apply_rules
from facetclip.schema import Attribute, Schema


def encode_labels(catalog: Catalog, schema: Schema) -> dict[str, np.ndarray]:
    """Attribute -> label of every row: `encode_cells`, but applicability rules outrank cells."""
    return apply_rules(encode_cells(catalog, schema), schema)


def encode_cells(catalog: Catalog, schema: Schema) -> dict[str, np.ndarray]:
    """Attribute -> what each row's cell says: a label in int16, in int64 bit masks where multi-valued.

    A cell that nothing explains is UNKNOWN_VALUE.
    """
    labels: dict[str, np.ndarray] = {}
    for name, attribute in schema.attributes.items():
        cells = catalog.table.column(attribute.column).cast(pa.string()).dictionary_encode(null_encoding="encode")
        codes, kind = attribute.codes(), np.int64 if attribute.multi_valued else np.int16
        parts = []
        for chunk in cells.chunks:
            words = np.array([attribute.encode(word, codes) for word in chunk.dictionary.to_pylist()], dtype=kind)
            parts.append(words[chunk.indices.to_numpy(zero_copy_only=False)])
        labels[name] = np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
    return labels


def listed_text(attribute: Attribute, labels: np.ndarray) -> list[str | None]:
    """What a cell with each label lists, as the schema spells it; None where it says nothing (see `encode_labels`).

    >>> colour = Attribute(column="colour", values=("red", "blue", "green"), separator="|")
    >>> listed_text(colour, np.array([0b101, -1]))
    ['red|green', None]
    """
    if not attribute.multi_valued:
        return [attribute.values[label] if label >= 0 else None for label in labels.tolist()]
    numbered = list(enumerate(attribute.values))
    text = {
        mask: str(attribute.separator).join(value for place, value in numbered if mask >> place & 1)
        for mask in np.unique(labels).tolist()
        if mask >= 0
    }
    return [text.get(label) for label in labels.tolist()]


def labels_of(attribute: Attribute, listed: np.ndarray) -> np.ndarray:
    """The labels [n] that list `listed`, bool [n, values] with one in each row at least; `listed_values` undone.

    >>> colour = Attribute(column="colour", values=("red", "blue", "green"), separator="|")
    >>> labels_of(colour, np.array([[True, False, True]])).tolist()
    [5]
    """
    if not attribute.multi_valued:
        return listed.argmax(axis=1)
    return (listed.astype(np.int64) << np.arange(listed.shape[1])).sum(axis=1)
