import numpy as np

from facetclip.captions import value_captions
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Schema

SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "id", "product": "product", "image": "image"},
        "attributes": {
            "sleeve": {"column": "s", "values": ["long", "short"], "template": ["a {value} sleeve", "{value}"]},
            "colour": {"column": "c", "values": ["red", "green", "blue"], "separator": "|"},
        },
    }
)


def test_a_caption_names_what_the_table_knows_and_nothing_else() -> None:
    labels = {
        "sleeve": np.array([0, 1, UNLABELLED, NOT_APPLICABLE]),
        "colour": np.array([0b001, 0b110, UNLABELLED, 0b100]),
    }
    assert value_captions(SCHEMA, labels) == ["a long sleeve, red", "a short sleeve, green, blue", "", "blue"]
