"""From cells to labels and back: what a cell says by the schema, and how a label is written into one."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from facetclip.catalog import Catalog
from facetclip.rules import apply_rules
from facetclip.schema import Attribute, Schema, spelling


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


def as_spelled(attribute: Attribute, cells: Iterable[str | None]) -> dict[str, str]:
    """Value -> how a table's `cells` spell it mostly: in another case, with other gaps and hyphens than the schema.

    >>> sleeve = Attribute(column="sleeve", values=("long", "three quarter", "none"), aliases={"LS": "long"})
    >>> as_spelled(sleeve, ["Long", "LS", "LS", "Three-Quarter", None])
    {'long': 'Long', 'three quarter': 'Three-Quarter', 'none': 'none'}
    """
    values = {spelling(value): value for value in attribute.values}
    met: dict[str, Counter[str]] = {value: Counter() for value in attribute.values}
    for cell, count in Counter(cells).items():
        for part in (cell or "").split(attribute.separator) if attribute.separator else [cell or ""]:
            if (value := values.get(spelling(part))) is not None:
                met[value][part.strip()] += count
    return {value: found.most_common(1)[0][0] if found else value for value, found in met.items()}


def respelled(attribute: Attribute, text: str, spelled: Mapping[str, str]) -> str:
    """A text of the schema's values in a table's own spelling (`as_spelled`)."""
    parts = text.split(attribute.separator) if attribute.separator else [text]
    return str(attribute.separator or "").join(spelled.get(part, part) for part in parts)


def labels_of(attribute: Attribute, listed: np.ndarray) -> np.ndarray:
    """The labels [n] that list `listed`, bool [n, values] with one in each row at least; `listed_values` undone.

    >>> colour = Attribute(column="colour", values=("red", "blue", "green"), separator="|")
    >>> labels_of(colour, np.array([[True, False, True]])).tolist()
    [5]
    """
    if not attribute.multi_valued:
        return listed.argmax(axis=1)
    return (listed.astype(np.int64) << np.arange(listed.shape[1])).sum(axis=1)
