"""The captions of photos: their titles, or what the table says of them in the words of the prompts."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from facetclip.index import ShardIndex
from facetclip.metrics import listed_values
from facetclip.schema import Schema

Captions = Literal["values", "titles"]


def captions_of(index: ShardIndex, rows: np.ndarray, kind: Captions, schema: Schema) -> list[str]:
    """One caption for each of `rows` [n], values in the words of `schema`; UserError where titles are wanted that the
    shards do not hold."""
    if kind == "titles":
        return [title or "" for title in index.titles.take(rows).to_pylist()]
    return value_captions(schema, {name: index.labels[name][rows] for name in index.schema.names})


def value_captions(schema: Schema, labels: Mapping[str, np.ndarray]) -> list[str]:
    """The prompts of the known values, joined; empty where nothing is known. `labels`: attribute -> [n].

    >>> from facetclip.schema import Attribute, Columns
    >>> red = Attribute(column="c", values=("red", "blue"), template="a {value} top")
    >>> lid = Attribute(column="l", values=("lid", "no lid"))
    >>> schema = Schema(columns=Columns(item="i", product="p", image="f"), attributes={"colour": red, "lid": lid})
    >>> value_captions(schema, {"colour": np.array([0, -1]), "lid": np.array([1, -1])})
    ['a red top, no lid', '']
    """
    words: list[list[str]] = [[] for _ in next(iter(labels.values()))]
    for name, attribute in schema.attributes.items():
        prompts = [texts[0] for texts in attribute.training_prompts]
        for place, value in np.argwhere(listed_values(attribute, labels[name])).tolist():
            words[place].append(prompts[value])
    return [", ".join(parts) for parts in words]
