"""A finished shard folder that is damaged: what packs it again, and what the messages say where nothing does."""

import errno
import re

import pytest
from strange_shop import SCHEMA, build, contents, make_shop, photo, sharding, spec

from facetclip import faults, tars
from facetclip.catalog import read_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.images import encode_jpeg
from facetclip.index import INDEX_NAME, open_index
from facetclip.portions import Portion
from facetclip.shards import build_portion
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


@pytest.mark.parametrize("workers", [1, 2])
def test_tars_that_were_cut_or_lost_or_have_other_bytes_are_packed_again_where_it_is_asked_for(shop, workers):
    before = contents(shop / "shards")
    cut(tar(shop, 1))
    flip(tar(shop, 2), at=int(open_index(shop / "shards", lengths=False).offset[18]))
    tar(shop, 4).unlink()
    for update in (False, True):
        with pytest.raises(UserError, match=r"shard-000001\.tar: expected .*; run .* shard again with --repair$"):
            build(shop, update=update)
    report = build(shop, repair=True, workers=workers)
    assert (report.repaired, report.reused, report.shards) == (3, 2, 5)
    assert contents(shop / "shards") == before
    assert not (shop / "shards" / PARTS).exists()
    assert build(shop, repair=True).repaired == 0


def test_a_changed_byte_is_told_with_what_mends_it(shop):
    flip(tar(shop, 2), at=int(open_index(shop / "shards").offset[18]))
    with pytest.raises(UserError, match=r"run the same facetclip shard again with --repair$"):
        open_index(shop / "shards").read(18)
    assert build(shop).repaired == 0, "by its length it is whole"


def test_a_disk_that_fails_to_read_a_tar_has_damaged_it(shop, monkeypatch):
    def fails(path, shard):
        if path.name == "shard-000003.tar":
            raise OSError(errno.EIO, "Input/output error")
        return intact(path, shard)

    intact = tars.intact
    monkeypatch.setattr(tars, "intact", fails)
    assert tars.damaged(open_index(shop / "shards")) == [3]


def test_a_shard_with_bad_photos_is_packed_again_without_them(shop):
    (shop / "photos" / "a" / "5.jpg").write_bytes(b"<html>")
    build(shop, "some", max_bad=0.1)
    before = contents(shop / "some")
    (shop / "some" / "shard-000000.tar").unlink()
    assert build(shop, "some", max_bad=0.1, repair=True).repaired == 1
    assert contents(shop / "some") == before


@pytest.mark.parametrize("changes", [{"update": True}, {"portion": Portion(0, 2)}])
def test_a_repair_is_of_the_whole_folder_as_it_is(shop, changes):
    portion = changes.pop("portion", None)
    catalog = read_catalog(str(shop / "catalog.csv"))
    with pytest.raises(UserError, match="leave out --update and --part"):
        build_portion(catalog, SCHEMA, spec(shop, repair=True), portion) if portion else build(
            shop, repair=True, **changes
        )


@pytest.mark.parametrize("gone", [False, True])
def test_what_cannot_be_packed_again_as_it_was_changes_nothing(shop, gone):
    tar(shop, 1).unlink()
    cut(tar(shop, 3))
    photo_10 = shop / "photos" / "a" / "10.jpg"
    before = photo_10.read_bytes()
    photo_10.unlink() if gone else replace_photo(shop, 10)
    left = contents(shop / "shards")
    with pytest.raises(UserError, match=r"shard-000001\.tar: damaged, and cannot be packed again.*another --out"):
        build(shop, repair=True)
    assert {name: body for name, body in contents(shop / "shards").items() if not name.startswith(PARTS)} == left
    photo_10.write_bytes(before)
    assert build(shop, repair=True, max_bad=1).repaired == 2


def test_an_updated_folder_is_mended_too(shop):
    replace_photo(shop, 20)
    build(shop, update=True)
    rows = (shop / "catalog.csv").read_text(encoding="utf-8").splitlines()
    rows[3], rows[5] = rows[5], rows[3]  # rows of a shard are no longer in the catalog's order
    (shop / "catalog.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    build(shop, update=True)
    before = contents(shop / "shards")
    cut(tar(shop, 0))
    tar(shop, 5).unlink()
    assert build(shop, repair=True).repaired == 2
    assert contents(shop / "shards") == before


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
            build(shop, repair=True)
    assert build(shop, repair=True).repaired == 2
    assert contents(shop / "shards") == before


def _stop():
    raise KeyboardInterrupt
