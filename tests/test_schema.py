from pathlib import Path

import pytest

from facetclip.errors import UserError
from facetclip.schema import NOT_APPLICABLE, UNKNOWN_VALUE, UNLABELLED, Attribute, Schema, read_schema

SCHEMA = """
[columns]
item = "sku"
product = "style"
image = "photo"

[attributes.category]
column = "category"
values = ["shirt", "pants"]

[attributes.sleeve]
column = "sleeve"
values = ["no", "short", "long"]
aliases = { "Long Sleeved" = "long" }
not_applicable = ["N/A"]
applies_where = { category = ["shirt"] }
template = "a shirt with {value} sleeves"
prompts = { no = "a sleeveless shirt" }
"""


@pytest.fixture
def schema_file(tmp_path: Path) -> Path:
    path = tmp_path / "schema.toml"
    path.write_text(SCHEMA)
    return path


def test_values_stay_text_and_spellings_meet(schema_file: Path) -> None:
    sleeve = read_schema(schema_file).attributes["sleeve"]
    assert sleeve.values == ("no", "short", "long")
    cells = ["NO", "Short", "long-sleeved", "", None, "N/A", "puffy"]
    assert [sleeve.encode(cell) for cell in cells] == [0, 1, 2, UNLABELLED, UNLABELLED, NOT_APPLICABLE, UNKNOWN_VALUE]


def test_none_is_a_value_where_the_schema_says_so() -> None:
    handle = Attribute(column="handle", values=("none", "one", "two"))
    assert [handle.encode(cell) for cell in ("none", "None", "n/a")] == [0, 0, UNLABELLED]


def test_an_attribute_comes_after_those_that_its_rules_name(schema_file: Path) -> None:
    facts = read_schema(schema_file).model_dump()
    sleeve, category = facts["attributes"]["sleeve"], facts["attributes"]["category"]
    cuff = {"column": "cuff", "values": ["french", "plain"], "applies_where": {"sleeve": ["long"]}}
    facts["attributes"] = {"cuff": cuff, "sleeve": sleeve, "category": category}
    assert Schema.model_validate(facts).parents_first == ("category", "sleeve", "cuff")
    facts["attributes"]["category"] = category | {"applies_where": {"cuff": ["french"]}}
    with pytest.raises(ValueError, match=r"applies_where goes in a circle: .*sleeve"):
        Schema.model_validate(facts)


def test_prompts_come_from_the_template_unless_given(schema_file: Path) -> None:
    sleeve = read_schema(schema_file).attributes["sleeve"]
    asked = (("a sleeveless shirt",), ("a shirt with short sleeves",), ("a shirt with long sleeves",))
    assert sleeve.training_prompts == sleeve.reading_prompts == asked


def test_several_templates_stand_for_a_value_together_and_reading_may_have_its_own() -> None:
    lid = Attribute(
        column="lid",
        values=("yes", "no"),
        template=("a pot, lid: {value}", "lid {value}"),
        read_template="{value}",
        prompts={"no": ("no lid", "open")},
    )
    assert lid.training_prompts == (("a pot, lid: yes", "lid yes"), ("no lid", "open"))
    assert lid.reading_prompts == (("yes",), ("no lid", "open"))


def test_what_does_not_apply_is_learned_where_it_is_one_of_the_values() -> None:
    sleeve = Attribute(column="s", values=("long", "short", "n/a"), not_applicable_value="n/a")
    assert sleeve.encode("n/a") == 2
    assert sleeve.not_applicable_label == 2
    assert Attribute(column="s", values=("long", "short")).not_applicable_label == NOT_APPLICABLE


def test_several_values_in_a_cell_are_a_bit_mask_without_order() -> None:
    material = Attribute(column="m", values=("wool", "silk", "hemp"), separator="|")
    assert material.encode("hemp|Wool") == material.encode("Wool|hemp|wool") == 0b101
    assert material.encode("wool|tin") == UNKNOWN_VALUE
    assert material.encode("|") == UNLABELLED


def test_a_schema_survives_its_json(schema_file: Path) -> None:
    schema = read_schema(schema_file)
    assert Schema.from_json(schema.to_json()) == schema
    assert Schema.from_json(schema.to_json()).names == ("category", "sleeve")


def test_a_word_may_be_explained_twice_if_both_say_the_same() -> None:
    lid = Attribute(
        column="lid",
        values=("yes", "none"),
        aliases={"YES": "yes", "with lid": "yes", "With-Lid": "yes"},
        not_applicable=("none",),
        not_applicable_value="none",
    )
    assert [lid.encode(cell) for cell in ("Yes", "with_lid", "None")] == [0, 0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("template", "tempalte", r"attributes\.sleeve: unknown key 'tempalte'; did you mean 'template'"),
        ('item = "sku"', "", r"columns\.item: required, but not given"),
        ('"long" }', '"lnog" }', "stands for 'lnog', not one of the values; did you mean 'long'"),
        ('category = ["shirt"] }', 'categroy = ["shirt"] }', "did you mean 'category'"),
        ('category = ["shirt"] }', 'category = ["shrit"] }', "did you mean 'shirt'"),
        ('"no", "short"', '"no", "No", "short"', "are the same but for spelling"),
        ("{value} sleeves", "sleeves", r"must contain \{value\}"),
        ("no = ", "on = ", "a prompt is given for 'on'"),
        ('values = ["shirt", "pants"]', 'values = ["shirt"]', "expected two values at least, found ..shirt..: leave"),
        (
            'values = ["shirt", "pants"]',
            'values = ["1/4 zip", "no"]\nseparator = "/"',
            "'1/4 zip' contains the separator",
        ),
        ('= "long" }', '= "long", LONG = "no" }', "'long' and 'LONG' are the same but for spelling, and stand for"),
        ('= "long" }', '= "long", long-sleeved = "short" }', "'Long Sleeved' and 'long-sleeved' are the same but"),
        ('["N/A"]', '["N/A", "no"]', "'no' and 'no' are the same"),
    ],
)
def test_a_mistake_is_refused_with_its_place(schema_file: Path, old: str, new: str, message: str) -> None:
    schema_file.write_text(SCHEMA.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_schema(schema_file)
