"""A finished shard folder that is damaged: what packs it again, and what the messages say where nothing does."""

import re

import pytest
from strange_shop import ROWS, SCHEMA, build, contents, make_shop, photo, sharding, spec

from facetclip import faults
from facetclip.catalog import read_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.images import encode_jpeg
from facetclip.index import INDEX_NAME, open_index
from facetclip.inspection import verify
from facetclip.portions import Portion
from facetclip.shards import QUARANTINE, build_portion
from facetclip.slices import PARTS
from facetclip.store import ANEW


@pytest.fixture
def shop(tmp_path):
    make_shop(tmp_path)
    build(tmp_path)
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-512])


def flip(path, at=700):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def tar(shop, number):
    return shop / "shards" / f"shard-{number:06d}.tar"


def replace_photo(shop, number):
    (shop / "photos" / "a" / f"{number}.jpg").write_bytes(encode_jpeg(photo(999)))


def test_tars_that_were_cut_or_lost_are_packed_again_by_the_same_command(shop):
    before = contents(shop / "shards")
    cut(tar(shop, 1))
    tar(shop, 4).unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar: expected .* run facetclip shard again$"):
        open_index(shop / "shards")
    report = build(shop, workers=2)
    assert (report.repaired, report.reused, report.shards) == (2, 3, 5)
    assert contents(shop / "shards") == before
    assert not (shop / "shards" / PARTS).exists()
    assert build(shop).repaired == 0


def test_a_changed_byte_is_found_and_mended_where_it_is_asked_for(shop):
    before = contents(shop / "shards")
    flip(tar(shop, 2), at=int(open_index(shop / "shards").offset[18]))
    with pytest.raises(UserError, match=r"run facetclip shard again with --repair$"):
        open_index(shop / "shards").read(18)
    assert build(shop).repaired == 0, "by its length it is whole"
    assert build(shop, repair=True).repaired == 1
    assert contents(shop / "shards") == before


def test_a_shard_with_bad_photos_is_packed_again_without_them(shop):
    (shop / "photos" / "a" / "5.jpg").write_bytes(b"<html>")
    build(shop, "some", max_bad=0.1)
    before = contents(shop / "some")
    (shop / "some" / "shard-000000.tar").unlink()
    assert build(shop, "some", max_bad=0.1).repaired == 1
    assert contents(shop / "some") == before


def test_whichever_part_comes_first_mends_the_folder(shop):
    tar(shop, 3).unlink()
    catalog = read_catalog(str(shop / "catalog.csv"))
    found = [build_portion(catalog, SCHEMA, spec(shop), Portion(number, 2)) for number in range(2)]
    assert [report and report.repaired for report in found] == [1, 0]
    assert list(verify(open_index(shop / "shards"))) == []


def test_a_damaged_shard_whose_photos_changed_goes_into_a_new_one_by_an_update(shop):
    tar(shop, 1).unlink()
    replace_photo(shop, 10)
    before = contents(shop / "shards")
    with pytest.raises(UserError, match=r"shard-000001\.tar: damaged, and cannot be packed again as it was.*--update,"):
        build(shop)
    assert {name: body for name, body in contents(shop / "shards").items() if name in before} == before
    report = build(shop, update=True)
    assert report.changes
    assert (report.changes.added, report.changes.changed, report.changes.mended, report.changes.removed) == (0, 0, 9, 0)
    index = open_index(shop / "shards")
    assert [shard.name for shard in index.shards] == [f"shard-{number:06d}.tar" for number in (0, 2, 3, 4, 5)]
    assert list(verify(index)) == []
    assert index.digest == build(shop, "fresh").digest
    assert build(shop).repaired == 0


def test_an_updated_folder_is_mended_too_as_often_as_it_takes(shop):
    text = (shop / "catalog.csv").read_text(encoding="utf-8")
    (shop / "catalog.csv").write_text(text.replace("Größe 7", "Größe 8"), encoding="utf-8")
    build(shop, update=True)  # the tar of row 7 has its old title
    before = contents(shop / "shards")
    cut(tar(shop, 1))
    assert build(shop).repaired == 1
    assert contents(shop / "shards") == before
    digest = open_index(shop / "shards").digest
    cut(tar(shop, 0))
    with pytest.raises(UserError, match="cannot be packed again as it was"):
        build(shop)
    for number in (0, 5, 6):  # each takes the place of the one before
        flip(tar(shop, number))
        report = build(shop, update=True, repair=True)
        assert report.changes
        assert report.changes.mended == 9
        assert (report.digest, report.samples) == (digest, ROWS)
    assert list(verify(open_index(shop / "shards"))) == []


def test_a_photo_that_is_gone_from_a_damaged_shard_and_the_catalogs_folder_is_told(shop):
    tar(shop, 1).unlink()
    (shop / "photos" / "a" / "10.jpg").unlink()
    with pytest.raises(UserError, match="1 of 40 images cannot be used"):
        build(shop, update=True, max_bad=0)
    report = build(shop, update=True, max_bad=0.1)
    assert report.changes
    assert (report.changes.mended, report.changes.removed, report.changes.gone, report.samples) == (8, 1, 0, 39)
    assert "10.jpg" in (shop / "shards" / QUARANTINE).read_text(encoding="utf-8")


def test_a_broken_index_is_told_with_what_helps(shop, capsys):
    index = shop / "shards" / INDEX_NAME
    words = sharding(shop)
    for content in (b"PAR1 cut", None):
        index.write_bytes(content) if content else index.unlink()
        for verb in (words, ["inspect", str(shop / "shards")]):
            assert main(verb) == 2
            assert ANEW in capsys.readouterr().err, verb
    for path in (shop / "shards").iterdir():
        path.unlink()
    assert main(words) == 0


def test_a_command_line_says_what_it_packed_again(shop, capsys):
    words = [word if word != str(shop / "shards") else str(shop / "other") for word in sharding(shop)]
    assert main(words) == 0
    flip(next((shop / "other").glob("*.tar")))
    capsys.readouterr()
    assert main([*words, "--repair"]) == 0
    assert "1 damaged shard was packed again, byte for byte as before" in capsys.readouterr().out


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"join": 4}, "was built without --join-duplicates, asked for is one with --join-duplicates 4; neither"),
        ({"resize": None}, "was built with --resize 64, asked for is one without --resize; neither"),
    ],
)
def test_a_setting_that_a_finished_folder_keeps_is_told_by_its_option(shop, update, more, said):
    with pytest.raises(UserError, match=f"{re.escape(said)}.* use another --out$"):
        build(shop, update=update, **more)


@pytest.mark.parametrize("fault", ["shards.after_tar", "shards.after_part"])
def test_a_repair_that_was_interrupted_is_gone_on_with(shop, monkeypatch, fault):
    before = contents(shop / "shards")
    cut(tar(shop, 1))
    tar(shop, 4).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(faults, "reach", lambda name: _stop() if name == fault else None)
        with pytest.raises(KeyboardInterrupt):
            build(shop)
    assert build(shop).repaired == 2
    assert contents(shop / "shards") == before


def _stop():
    raise KeyboardInterrupt


def test_a_folder_damaged_in_the_middle_of_an_update_is_mended_by_that_update(shop, monkeypatch):
    replace_photo(shop, 20)
    with monkeypatch.context() as patch:
        patch.setattr(faults, "reach", lambda name: _stop() if name == "shards.after_part" else None)
        with pytest.raises(KeyboardInterrupt):
            build(shop, update=True)
    cut(tar(shop, 1))
    with pytest.raises(UserError, match="an update was interrupted; run it again, with --update"):
        build(shop)
    assert build(shop, update=True).digest == build(shop, "fresh").digest
    assert list(verify(open_index(shop / "shards"))) == []
