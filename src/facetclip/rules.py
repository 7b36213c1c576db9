"""Where attributes cannot apply: the schema's rules, followed from attribute to attribute."""

from collections.abc import Mapping

import numpy as np

from facetclip.schema import NOT_APPLICABLE, Schema


def barred(schema: Schema, name: str, labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [n]: attribute `name` cannot apply, by the labels [n] of the attributes that its rules name; where these are
    silent, it can."""
    found = np.zeros(len(labels[name]), dtype=bool)
    for other, values in schema.attributes[name].applies_where.items():
        allowed = [schema.attributes[other].values.index(value) for value in values]
        told = (labels[other] >= 0) | (labels[other] == NOT_APPLICABLE)
        found |= told & ~np.isin(labels[other], allowed)
    return found


def apply_rules(
    labels: Mapping[str, np.ndarray], schema: Schema, kept: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The same labels, not applicable where the rules say so; but none where `kept`, attribute -> bool [n].

    A rule may lean on an attribute that another rule rules out.
    """
    ruled = dict(labels)
    for name in schema.parents_first:
        out = barred(schema, name, ruled)
        if kept is not None:
            out &= ~kept[name]
        label = schema.attributes[name].not_applicable_label
        ruled[name] = np.where(out, label, ruled[name]).astype(labels[name].dtype)
    return ruled
