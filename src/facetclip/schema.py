"""What a catalog's labels mean: attributes, values, spellings, applicability, prompts.

The schema is read from TOML, where values stay text (`no` never becomes a boolean), and travels with every index,
checkpoint and registered model.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from facetclip.config import FORMS, Form, Strict, closest, read_toml, validated

UNLABELLED = -1  # the catalog does not say
NOT_APPLICABLE = -2  # the attribute cannot apply to this item
UNKNOWN_VALUE = -3  # a cell that no value or alias explains; never stored in an index
BLANK_CELLS = frozenset({"", "n/a", "na", "#n/a", "nan", "null", "none", "nil", "unknown", "tbd", "?", "."})
MOST_MULTI_VALUES = 62  # the set of values of one item is a bit mask in an int64

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Wording = Text | Annotated[tuple[Text, ...], Field(min_length=1)]  # one text, or several whose features are averaged
Prompts = tuple[tuple[str, ...], ...]  # the texts that stand for each value


def spelling(cell: str) -> str:
    """The form under which two spellings of one value meet.

    >>> spelling(" Long-Sleeve "), spelling("long_sleeve"), spelling("-")
    ('long sleeve', 'long sleeve', '')
    """
    return re.sub(r"[\s_\-]+", " ", cell).strip().casefold()


def _texts(wording: str | tuple[str, ...]) -> tuple[str, ...]:
    return (wording,) if isinstance(wording, str) else wording


class Attribute(Strict):
    """One attribute: its column, its closed set of values, and how cells and prompts map to them.

    `aliases`: other spellings, and the value each stands for. `unlabelled`, `not_applicable`: words for "nobody knows"
    and "cannot apply", beside those that everybody uses (`n/a`, `none`, `unknown`, `?` and the like are gaps unless
    named here or among the values). `separator`: cells may list several values, so separated. `applies_where`: other
    attribute -> the values at which alone this one applies. `not_applicable_value`: the value that says that the
    attribute cannot apply, which is then learned like any other. `template`: the wording of every value, or several
    whose features are averaged; `read_template`: for reading, where it is not that of training; `prompts`: the wording
    of single values.
    """

    column: Text
    values: tuple[Text, ...]
    aliases: dict[Text, Text] = {}
    unlabelled: tuple[Text, ...] = ()
    not_applicable: tuple[Text, ...] = ()
    separator: Text | None = None
    applies_where: dict[Text, tuple[Text, ...]] = {}
    not_applicable_value: Text | None = None
    template: Wording = "{value}"
    read_template: Wording | None = None
    prompts: dict[Text, Wording] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "Attribute":
        self._check_values()
        for alias, value in self.aliases.items():
            if value not in self.values:
                raise ValueError(
                    f"alias {alias!r} stands for {value!r}, not one of the values{closest(value, self.values)}"
                )
        for value in self.prompts:
            if value not in self.values:
                raise ValueError(f"a prompt is given for {value!r}, not one of the values{closest(value, self.values)}")
        for template in (*_texts(self.template), *_texts(self.read_template or ())):
            if "{value}" not in template:
                raise ValueError(f"template {template!r} must contain {{value}}")
        self._check_not_applicable()
        self._check_words()
        return self

    def _check_values(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"expected two values at least, found {list(self.values)}: leave the attribute out")
        if len({spelling(value) for value in self.values}) < len(self.values):
            raise ValueError(f"two of the values {list(self.values)} are the same but for spelling")
        if self.separator and len(self.values) > MOST_MULTI_VALUES:
            raise ValueError(
                f"a multi-valued attribute takes at most {MOST_MULTI_VALUES} values, found {len(self.values)}"
            )

    def _check_words(self) -> None:
        seen: dict[str, tuple[str, int]] = {}
        for word, label in self._words():
            if self.separator and self.separator in word:
                raise ValueError(
                    f"{word!r} contains the separator {self.separator!r}: cells are cut there, so none is it"
                )
            other, meant = seen.setdefault(spelling(word), (word, label))
            if meant != label:
                raise ValueError(
                    f"{other!r} and {word!r} are the same but for spelling, and stand for different things"
                )

    def _check_not_applicable(self) -> None:
        value = self.not_applicable_value
        if value is not None and self.separator:
            raise ValueError("a multi-valued attribute cannot have a not_applicable_value")
        if value is not None and value not in self.values:
            raise ValueError(f"not_applicable_value {value!r} is not one of the values{closest(value, self.values)}")

    @property
    def multi_valued(self) -> bool:
        """Whether one cell may name several values."""
        return self.separator is not None

    @property
    def not_applicable_label(self) -> int:
        """How "cannot apply" is stored: a code of its own, or the number of the value that says so."""
        return NOT_APPLICABLE if self.not_applicable_value is None else self.values.index(self.not_applicable_value)

    @property
    def training_prompts(self) -> Prompts:
        """The texts that stand for each value in training, in the order of `values`."""
        return self._prompts(self.template)

    @property
    def reading_prompts(self) -> Prompts:
        """The texts that stand for each value when photos are read."""
        return self._prompts(self.read_template or self.template)

    def _prompts(self, templates: str | tuple[str, ...]) -> Prompts:
        return tuple(
            _texts(self.prompts[value])
            if value in self.prompts
            else tuple(template.replace("{value}", value) for template in _texts(templates))
            for value in self.values
        )

    def _words(self) -> list[tuple[str, int]]:
        """Every word that a cell may hold, with what it stands for: a value's number or a negative code."""
        return [
            *((value, place) for place, value in enumerate(self.values)),
            *((alias, self.values.index(value)) for alias, value in self.aliases.items()),
            *((word, self.not_applicable_label) for word in self.not_applicable),
            *((word, UNLABELLED) for word in self.unlabelled),
        ]

    def codes(self) -> dict[str, int]:
        """Every explained spelling -> value index or negative code. The schema's words win over blanks."""
        blank = dict.fromkeys((spelling(cell) for cell in BLANK_CELLS), UNLABELLED)
        return blank | {spelling(word): label for word, label in self._words()}

    def encode(self, cell: str | None, codes: Mapping[str, int] | None = None) -> int:
        """The label of one cell: a value index (a bit mask of them where multi-valued) or one of the negative codes.

        >>> lid = Attribute(column="lid", values=("yes", "no"), aliases={"with lid": "yes"})
        >>> [lid.encode(cell) for cell in ("No", "With-Lid", "", "N/A", "maybe")]
        [1, 0, -1, -1, -3]
        >>> Attribute(column="m", values=("wool", "silk", "hemp"), separator="|").encode("Hemp|wool|N/A")
        5
        """
        codes = self.codes() if codes is None else codes
        if cell is None:
            return UNLABELLED
        if not self.separator:
            return codes.get(spelling(cell), UNKNOWN_VALUE)
        labels = {codes.get(spelling(part), UNKNOWN_VALUE) for part in cell.split(self.separator)}
        if UNKNOWN_VALUE in labels:
            return UNKNOWN_VALUE
        chosen = [label for label in labels if label >= 0]
        if chosen:
            return sum(1 << label for label in chosen)
        return NOT_APPLICABLE if NOT_APPLICABLE in labels else UNLABELLED


class Columns(Strict):
    """The catalog's columns that are not attributes.

    `item`: the photo's id, each its own. `product`: what the photos are of, by which splits are made. `image`: paths or
    URLs, or the photos themselves. `split`: train, validation or test, where the catalog says so itself.
    """

    item: Text
    product: Text
    image: Text
    title: Text | None = None
    split: Text | None = None


class Schema(Strict):
    """Everything that gives labels their meaning. Attribute order is the order of label columns everywhere."""

    columns: Columns
    attributes: Annotated[dict[Text, Attribute], Field(min_length=1)]

    @model_validator(mode="after")
    def _applicability_refers_to_attributes(self) -> "Schema":
        for name, attribute in self.attributes.items():
            for other, values in attribute.applies_where.items():
                if other not in self.attributes or other == name:
                    raise ValueError(
                        f"{name}: applies_where names {other!r}, not another attribute{closest(other, self.attributes)}"
                    )
                target = self.attributes[other]
                if target.multi_valued:
                    raise ValueError(
                        f"{name}: applies_where names {other!r}, which is multi-valued; it must have one value an item"
                    )
                for value in set(values) - set(target.values):
                    raise ValueError(
                        f"{name}: applies_where: {value!r} is not a value of {other!r}{closest(value, target.values)}"
                    )
        return self

    @model_validator(mode="after")
    def _rules_end(self) -> "Schema":
        try:
            _ = self.parents_first
        except CycleError as error:
            raise ValueError(f"applies_where goes in a circle: {', '.join(error.args[1])}") from error
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The attribute names, in label order."""
        return tuple(self.attributes)

    @property
    def meanings(self) -> dict[str, tuple[tuple[str, ...], bool]]:
        """What the labels of each attribute stand for: its values, and whether a label is a set of them."""
        return {name: (each.values, each.multi_valued) for name, each in self.attributes.items()}

    @property
    def parents_first(self) -> tuple[str, ...]:
        """The attribute names, each after those that its rules name."""
        return tuple(
            TopologicalSorter({name: each.applies_where for name, each in self.attributes.items()}).static_order()
        )

    def worded(self, form: Form) -> "Schema":
        """The same values under the prompts of a caption form; `schema` keeps their own."""
        if form == "schema":
            return self
        attributes = {
            name: attribute.model_copy(
                update={
                    "template": tuple(text.replace("{attribute}", name) for text in FORMS[form]),
                    "read_template": None,
                    "prompts": {},
                }
            )
            for name, attribute in self.attributes.items()
        }
        return self.model_copy(update={"attributes": attributes})

    def to_json(self) -> str:
        """A compact form with every default left out; `from_json` restores it."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """The schema stored by `to_json`."""
        return cls.model_validate_json(text)


def read_schema(path: Path) -> Schema:
    """The schema in a TOML file; UserError naming every misspelt key, unknown value or missing field."""
    return validated(Schema, read_toml(path), path.name)


def spans(sizes: Sequence[int]) -> list[slice]:
    """Where each attribute's values lie when all values are laid side by side.

    >>> spans([2, 3])
    [slice(0, 2, None), slice(2, 5, None)]
    """
    starts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(starts)]
