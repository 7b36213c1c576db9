"""Cut-offs are fitted on the answers that ship."""

from pathlib import Path

import numpy as np
from small_shop import SCHEMA, make_shards

from facetclip.calibration import Calibration
from facetclip.finishing import cutoffs_of
from facetclip.schema import UNLABELLED
from facetclip.validation import Judgement


def test_labelled_cells_are_answered_as_gaps_are_with_what_other_rows_of_the_product_list(tmp_path: Path) -> None:
    place = np.arange(120)
    silent = np.full(120, UNLABELLED)
    category = np.where(place % 3 == 2, UNLABELLED, place // 2 % 2)
    index = make_shards(tmp_path, 120, labels={"category": category, "sleeve": silent, "colour": silent})
    rows = np.arange(120)
    blind = np.zeros((120, sum(len(each.values) for each in SCHEMA.attributes.values())))  # photos that tell nothing
    judgement = Judgement(None, {"category": Calibration()}, {})
    assert cutoffs_of(blind, index, rows, judgement, ())["category"] == ()
    told = cutoffs_of(blind, index, rows, judgement, ("category",))["category"]
    assert [each.precision for each in told][:4] == [0.8, 0.85, 0.9, 0.95]
    assert all(each.threshold > 0.9 for each in told)
