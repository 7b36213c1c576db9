"""What training starts from: its words must tell the values apart."""

import pytest
from small_shop import SHAPE

from facetclip.errors import UserError
from facetclip.schema import Schema
from facetclip.scratch import new_model
from facetclip.start import check_words


def check(**settings: object) -> None:
    attribute = {"column": "lid", "values": ["yes", "no"], **settings}
    table = {"columns": {"item": "i", "product": "p", "image": "f"}, "attributes": {"lid": attribute}}
    schema = Schema.model_validate(table)
    check_words(new_model(SHAPE, schema, ["yes no pot with a lid"], seed=0))


def test_prompts_that_differ_are_let_through() -> None:
    check()
    check(values=["grün {value}", 'a "quoted" one', "黒", "白"])
    check(template=["a pot, lid {value}", "{value}"], prompts={"no": "open pot"})


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": {"yes": "a pot", "no": "a pot"}},
        {"prompts": {"yes": "A Pot", "no": "a pot"}},
        {"template": "a very long way round " * 20 + "{value}"},
        {"read_template": "with the difference far behind " * 20 + "{value}"},
        {"prompts": {"yes": ["a pot", "a lid"], "no": ["a lid", "a pot"]}},
    ],
    ids=["same words", "same but for case", "cut off", "cut off in reading", "other order"],
)
def test_values_that_the_model_cannot_tell_apart_by_their_prompts_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match="the prompts of 'yes' and 'no' are the same to this model") as error:
        check(**settings)
    assert "\n" not in str(error.value)
