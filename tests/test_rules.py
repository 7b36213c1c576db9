import itertools

import numpy as np
from small_shop import SCHEMA

from facetclip.rules import apply_rules, barred
from facetclip.schema import NOT_APPLICABLE, UNKNOWN_VALUE, UNLABELLED, Schema

FACTS = SCHEMA.model_dump()
CUFF = {"column": "cuff", "values": ["french", "plain"], "applies_where": {"sleeve": ["long"]}}
DEEPER = Schema.model_validate(FACTS | {"attributes": {"cuff": CUFF, **FACTS["attributes"]}})  # before what it leans on
SHIRT, PANTS, LONG, SHORT, FRENCH = 0, 1, 0, 1, 0


def test_what_leans_on_an_attribute_that_cannot_apply_cannot_either():
    labels = {
        "category": np.array([PANTS, SHIRT, SHIRT, UNLABELLED]),
        "sleeve": np.array([LONG, LONG, SHORT, UNKNOWN_VALUE]),
        "cuff": np.full(4, FRENCH, dtype=np.int16),
        "colour": np.full(4, 1),
    }
    ruled = apply_rules(labels, DEEPER)
    off = NOT_APPLICABLE
    assert ruled["sleeve"].tolist() == [off, LONG, SHORT, UNKNOWN_VALUE]
    assert ruled["cuff"].tolist() == [off, FRENCH, off, FRENCH]
    assert ruled["cuff"].dtype == np.int16
    kept = {name: np.array([name == "sleeve"] * 4) for name in DEEPER.names}
    assert apply_rules(labels, DEEPER, kept)["cuff"].tolist() == [FRENCH, FRENCH, off, FRENCH]


def test_after_the_rules_no_label_breaks_one_and_they_change_nothing_more():
    sizes = [range(UNKNOWN_VALUE, len(DEEPER.attributes[name].values)) for name in ("category", "sleeve", "cuff")]
    every = np.array(list(itertools.product(*sizes))).T
    labels = dict(zip(("category", "sleeve", "cuff"), every, strict=True)) | {"colour": every[0]}
    ruled = apply_rules(labels, DEEPER)
    for name in DEEPER.names:
        assert not (barred(DEEPER, name, ruled) & (ruled[name] != NOT_APPLICABLE)).any()
        np.testing.assert_array_equal(apply_rules(ruled, DEEPER)[name], ruled[name])
