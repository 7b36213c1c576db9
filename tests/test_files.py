"""What a file that cannot be written says."""

from pathlib import Path

import pytest

from facetclip.errors import UserError
from facetclip.files import write_whole


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match=r"taken/new\.csv: could not be written: .*taken is a file, not a folder$"):
        write_whole(tmp_path / "taken" / "new.csv", b"x")
    assert (tmp_path / "taken").read_text() == "mine"
