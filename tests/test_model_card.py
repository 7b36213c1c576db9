from dataclasses import replace
from pathlib import Path

from small_shop import SCHEMA, make_reader

from facetclip.abstention import Cutoff
from facetclip.calibration import Calibration
from facetclip.model import save_model
from facetclip.model_card import model_card
from facetclip.schema import Schema


def test_every_model_folder_says_what_it_reads_and_where_it_came_from(tmp_path: Path) -> None:
    reader = make_reader()
    card = replace(
        reader.card,
        start="starter",
        data_digest="abc",
        metrics={"validation_loss": 0.25},
        calibration={"sleeve": Calibration(1.2, 0.034)},
        cutoffs={"sleeve": (Cutoff(0.9, 0.5), Cutoff(0.95, 0.61), Cutoff(0.99, 0.9))},
        by_product=("sleeve",),
    )
    save_model(reader, tmp_path, card=card)
    page = (tmp_path / "README.md").read_text()
    assert "| sleeve | long, short, none | 3.4% | 0.61 | product |" in page
    assert "| category | shirt, pants | unknown | never | photo |" in page
    assert "- start: `starter`" in page
    assert "- validation_loss: `0.25`" in page
    assert page.startswith("---\nlibrary_name: transformers\n")


def test_names_and_values_are_text_and_long_lists_are_cut() -> None:
    values = ["<b>|`", *(f"v{number}" for number in range(20))]
    schema = Schema.model_validate(
        {
            "columns": {"item": "i", "product": "p", "image": "x"},
            "attributes": {"<script>": {"column": "c", "values": values}},
        }
    )
    page = model_card(schema, origin={"start": None}, calibration={}, cutoffs={}, by_product=())
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "&lt;b&gt;\\|, v0" in page
    assert "and 9 more" in page
    assert "Not stated." in page
    assert SCHEMA.names
