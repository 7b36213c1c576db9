"""A finished folder follows its catalog: what a fresh build would index, and no byte of a shard written twice."""

import csv
import os
import random
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from strange_shop import ROWS, SCHEMA, build, contents, make_shop, photo, sharding, spec, write_photo

from facetclip import faults, shards, updates
from facetclip.catalog import Catalog, read_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.images import encode_jpeg
from facetclip.index import open_index
from facetclip.indexing import NO_CHANGES, SOURCES
from facetclip.inspection import verify
from facetclip.portions import Portion
from facetclip.schema import Schema
from facetclip.shards import QUARANTINE, build_portion, build_shards
from facetclip.slices import PARTS

WANT = ("item_ids", "product_ids", "titles")


@pytest.fixture
def shop(tmp_path):
    make_shop(tmp_path)
    build(tmp_path)
    return tmp_path


def update(shop, **more):
    return build(shop, update=True, **more)


def table(shop):
    with (shop / "catalog.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(shop, rows):
    with (shop / "catalog.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def row(number, product=None, image=None):
    return {
        "sku": f"S-{number}",
        "style": product or f"P{number // 2}",
        "photo": image or f"a/{number}.jpg",
        "name": f"new {number}",
        "category": "top",
        "sleeve": "long",
        "material": "",
    }


def added(shop, numbers, **more):
    for number in numbers:
        write_photo(shop / "photos" / "a" / f"{number}.jpg", number)
    write(shop, [*table(shop), *(row(number, **more) for number in numbers)])


def tars(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def assert_as_fresh(shop, schema=SCHEMA):
    """The updated folder is, row for row, what a build of the catalog in an empty folder gives."""
    fresh_folder = f"fresh-{random.random()}"
    build(shop, fresh_folder, schema=schema, max_bad=0.3)
    index, fresh = open_index(shop / "shards"), open_index(shop / fresh_folder)
    assert index.digest == fresh.digest
    for name in WANT:
        assert getattr(index, name).to_pylist() == getattr(fresh, name).to_pylist()
    for name in ("splits", "products", "places", "checksum"):
        assert np.array_equal(getattr(index, name), getattr(fresh, name))
    assert all(np.array_equal(index.labels[name], fresh.labels[name]) for name in schema.names)
    assert [index.read(number) for number in range(len(index))] == [fresh.read(n) for n in range(len(fresh))]
    assert list(verify(index)) == []
    assert not (shop / "shards" / PARTS).exists()


def test_added_items_go_into_new_shards_and_nothing_else_is_written(shop):
    before = tars(shop / "shards")
    added(shop, range(40, 52))
    report = update(shop)
    assert report.changes
    assert (report.changes.added, report.changes.changed, report.changes.removed, report.changes.moved) == (12, 0, 0, 0)
    after = tars(shop / "shards")
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["shard-000005.tar", "shard-000006.tar"]
    assert report.changes.bytes == sum(len(after[name]) for name in set(after) - set(before))
    assert (report.samples, report.superseded) == (ROWS + 12, 0)
    assert_as_fresh(shop)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_to_a_catalog_its_shards_are_as_built_anew(shop, seed):
    """Several updates in a row, each a mix of everything."""
    draw = random.Random(seed)
    splits = {}
    for number in range(3):
        index = open_index(shop / "shards")
        splits |= dict(zip(index.product_ids.to_pylist(), index.splits.tolist(), strict=True))
        rows = table(shop)
        for _ in range(3):
            rows.pop(draw.randrange(len(rows)))
        for cells in draw.sample(rows, 6):
            cells["sleeve"] = draw.choice(["long", "no", "", "odd"])
            cells["name"] = draw.choice(["", "other"])
        for cells in draw.sample(rows, 2):  # another photo under another name, the same under another, another in place
            new = f"a/{draw.random()}.jpg"
            (shop / "photos" / new).write_bytes(encode_jpeg(photo(draw.randrange(10**6))))
            cells["photo"] = new
        moved = draw.choice(rows)
        (shop / "photos" / f"{moved['photo']}.moved").write_bytes((shop / "photos" / moved["photo"]).read_bytes())
        moved["photo"] += ".moved"
        replaced = shop / "photos" / draw.choice(rows)["photo"]
        replaced.write_bytes(encode_jpeg(photo(draw.randrange(10**6))))
        write(shop, rows)
        added(
            shop, range(100 * (number + 1), 100 * (number + 1) + draw.randrange(12)), product=f"P{draw.randrange(60)}"
        )
        rows = table(shop)
        draw.shuffle(rows)
        write(shop, rows)
        before = tars(shop / "shards")
        report = update(shop)
        assert before.items() <= tars(shop / "shards").items()
        assert report.changes
        assert report.changes.moved == 0
        assert report.superseded == sum(s.samples for s in open_index(shop / "shards").shards) - report.samples
        assert_as_fresh(shop)
    index = open_index(shop / "shards")
    now = dict(zip(index.product_ids.to_pylist(), index.splits.tolist(), strict=True))
    assert all(now[product] == splits[product] for product in now if product in splits)


def test_one_percent_more_writes_less_than_two_percent_of_the_bytes(tmp_path):
    (tmp_path / "photos").mkdir()
    rows, lines = 500, []

    def more(numbers):
        for number in numbers:
            write_photo(tmp_path / "photos" / f"{number}.jpg", number)
            lines.append(f"{number},P{number // 3},{number}.jpg,,top,long,wool")
        text = "sku,style,photo,name,category,sleeve,material\n" + "\n".join(lines) + "\n"
        (tmp_path / "catalog.csv").write_text(text)

    more(range(rows))
    build(tmp_path, samples_per_shard=100)
    folder = tmp_path / "shards"
    before, splits = contents(folder), open_index(folder).splits[:]
    products = open_index(folder).product_ids.to_pylist()
    more(range(rows, rows + 5))
    update(tmp_path, samples_per_shard=100)
    after = contents(folder)
    written = sum(len(content) for name, content in after.items() if before.get(name) != content)
    assert written < 0.02 * sum(map(len, before.values()))
    index = open_index(folder)
    assert np.array_equal(index.splits[:rows], splits)
    assert index.product_ids.to_pylist()[:rows] == products


def test_labels_alone_cost_a_new_index_and_so_does_another_schema(shop):
    before = tars(shop / "shards")
    rows = table(shop)
    rows[3]["sleeve"] = "long"
    write(shop, rows)
    report = update(shop)
    assert report.changes == NO_CHANGES
    facts = SCHEMA.model_dump()
    facts["attributes"] = {"category": facts["attributes"]["category"]}
    fewer = Schema.model_validate(facts)
    update(shop, schema=fewer)
    assert tars(shop / "shards") == before
    assert list(open_index(shop / "shards").schema.names) == ["category"]
    assert_as_fresh(shop, fewer)


def test_nothing_new_writes_nothing(shop):
    before = {path: path.stat().st_mtime_ns for path in (shop / "shards").iterdir()}
    report = update(shop)
    assert report.changes == NO_CHANGES
    assert {path: path.stat().st_mtime_ns for path in (shop / "shards").iterdir()} == before


def test_photos_touched_but_the_same_are_looked_at_once_and_kept(shop, monkeypatch):
    looked = []
    real = updates.checksum_now
    monkeypatch.setattr(updates, "checksum_now", lambda rows, number: looked.append(number) or real(rows, number))
    for number in range(5):
        write_photo(shop / "photos" / "a" / f"{number}.jpg", number)
        os.utime(shop / "photos" / "a" / f"{number}.jpg", ns=(1, 1))
    added(shop, [40])
    report = update(shop)
    assert report.changes
    assert (report.changes.added, report.changes.changed, len(looked)) == (1, 0, 5)
    added(shop, [41])
    update(shop)
    assert len(looked) == 5, "the new times are remembered"


@pytest.mark.parametrize("content", [None, b"PAR1"])
def test_without_the_photos_times_all_are_looked_at_and_kept(shop, content):
    path = shop / "shards" / SOURCES
    path.unlink() if content is None else path.write_bytes(content)
    added(shop, [40])
    report = update(shop)
    assert report.changes
    assert (report.changes.added, report.changes.changed) == (1, 0)


def test_photos_that_are_gone_stay_in_the_shards(shop):
    for number in range(ROWS):
        (shop / "photos" / "a" / f"{number}.jpg").unlink()
    added(shop, [40, 41])
    report = update(shop)
    assert (report.samples, report.bad) == (ROWS + 2, {})
    assert report.changes
    assert report.changes.gone == ROWS


def test_a_photo_that_was_replaced_by_a_bad_one_is_left_out(shop):
    (shop / "photos" / "a" / "3.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError, match=f"1 of {ROWS} images cannot be used"):
        update(shop)
    report = update(shop, max_bad=1.0)
    assert report.changes
    assert (report.changes.removed, report.samples, report.bad) == (1, ROWS - 1, {"not_an_image": 1})
    assert_as_fresh(shop)


def test_an_update_may_leave_out_as_many_images_as_a_build_from_scratch(shop):
    added(shop, range(40, 50))
    for number in (41, 43):
        (shop / "photos" / "a" / f"{number}.jpg").write_bytes(b"<html>")
    for folder in ("shards", "scratch"):
        with pytest.raises(UserError, match=r"2 of 50 images cannot be used .* --max-bad 0\.03 allows 1"):
            build(shop, folder, max_bad=0.03, update=folder == "shards", samples_per_shard=50)
    assert build(shop, "scratch", max_bad=0.04, samples_per_shard=50).bad == update(shop, max_bad=0.04).bad
    assert_as_fresh(shop)


@pytest.mark.parametrize("content", ["row;item\n5;Größe\n".encode("cp1252"), b'"' + b"x" * 200_000 + b'"', None])
def test_what_becomes_of_the_quarantine_file_means_nothing_to_an_update(tmp_path, content):
    shop = make_shop(tmp_path)
    (shop / "photos" / "a" / "5.jpg").write_bytes(b"<html>")
    build(shop, max_bad=0.1)
    quarantine = shop / "shards" / QUARANTINE
    quarantine.unlink() if content is None else quarantine.write_bytes(content)
    added(shop, [40])
    assert update(shop, max_bad=0.1).bad == {"not_an_image": 1}
    assert_as_fresh(shop)


def test_bad_images_are_tried_again(tmp_path):
    shop = make_shop(tmp_path)
    for number in (5, 8, 30):
        (shop / "photos" / "a" / f"{number}.jpg").write_bytes(b"<html>")
    build(shop, max_bad=0.1)
    write_photo(shop / "photos" / "a" / "5.jpg", 5)
    added(shop, [40, 41])
    report = update(shop, max_bad=0.05)
    assert report.changes
    assert (report.changes.added, report.bad) == (3, {"not_an_image": 2})
    assert len((shop / "shards" / QUARANTINE).read_text().splitlines()) == 3
    assert_as_fresh(shop)
    (shop / "photos" / "a" / "41.jpg").write_bytes(b"<html>")
    added(shop, [42, 43])
    (shop / "photos" / "a" / "43.jpg").unlink()
    before = contents(shop / "shards")
    with pytest.raises(UserError, match=r"4 of 44 images cannot be used .* allows 2"):
        update(shop, max_bad=0.05)
    after = contents(shop / "shards")
    assert all(after[name] == before[name] for name in before if name != QUARANTINE)


def test_a_refused_update_is_refused_again(shop):
    """What it was refused for is no news the second time, and still no better."""
    added(shop, range(40, 60))
    for number in range(40, 50):
        (shop / "photos" / "a" / f"{number}.jpg").write_bytes(b"<html>")
    for _ in range(3):
        with pytest.raises(UserError, match=r"images cannot be used .* allows 0.*refused\.csv"):
            update(shop)
    assert "S-40" in (shop / "shards" / "refused.csv").read_text()
    for number in range(40, 50):
        write_photo(shop / "photos" / "a" / f"{number}.jpg", number)
    update(shop)
    assert not (shop / "shards" / "refused.csv").exists()
    assert_as_fresh(shop)


def test_an_update_planned_before_another_one_ended_is_refused(shop, monkeypatch):
    """Its places in the old index, and its numbers of new shards, are those of the index before that."""
    mine = [*table(shop), row(40, image="a/1.jpg")]
    write(shop, mine)

    def claimed_late(*args, **more):
        monkeypatch.undo()
        write(shop, [*mine[4:-1], row(41, image="a/2.jpg")])
        update(shop)
        return shards.claimed(*args, **more)

    monkeypatch.setattr(shards, "claimed", claimed_late)
    with pytest.raises(UserError, match="updated by another process meanwhile"):
        build_shards(read_catalog(str(shop / "catalog.csv")), SCHEMA, spec(shop, update=True))
    assert list(verify(open_index(shop / "shards"))) == []
    write(shop, mine)
    update(shop)
    assert_as_fresh(shop)


def test_who_finds_nothing_to_do_leaves_the_work_of_another_alone(shop):
    before = table(shop)
    added(shop, range(40, 60))
    stopped(shop, "shards.after_part", 2)
    after = table(shop)
    write(shop, before)
    build(shop)
    update(shop)
    write(shop, after)
    assert update(shop).reused == 2
    assert_as_fresh(shop)


def test_a_catalog_of_the_new_items_alone_is_refused(shop):
    write(shop, [row(number) for number in range(40, 44)])
    with pytest.raises(UserError, match=r"40 of its 40 items are not in this catalog.*an update takes the whole"):
        update(shop)
    assert len(open_index(shop / "shards")) == ROWS


def test_more_may_be_removed_when_it_is_said(shop):
    write(shop, table(shop)[10:])
    with pytest.raises(UserError, match=r"10 of its 40 items .* --max-removed 0\.1 allows 4"):
        update(shop)
    report = update(shop, max_removed=0.25)
    assert report.changes
    assert (report.changes.removed, report.samples, report.shards) == (10, 30, 4), "one shard holds none of them now"
    assert_as_fresh(shop)


@pytest.mark.parametrize(("more", "name"), [({"resize": 48}, "--resize 64"), ({"seed": 1}, "--seed 0")])
def test_other_settings_need_another_folder(shop, more, name):
    added(shop, [40])
    with pytest.raises(UserError, match=f"was built with {name}, asked for is"):
        update(shop, **more)


def test_an_update_needs_a_finished_folder(tmp_path):
    shop = make_shop(tmp_path)
    with pytest.raises(UserError, match="nothing to update; leave out --update"):
        update(shop)


def test_a_plain_build_over_another_catalog_points_to_the_update(shop):
    added(shop, [40])
    with pytest.raises(UserError, match="use another --out, or --update"):
        build(shop)
    update(shop)
    assert build(shop).samples == ROWS + 1, "and over an updated folder it finds it finished"


def test_a_product_that_the_split_column_moves_is_counted(tmp_path):
    shop = make_shop(tmp_path)
    facts = SCHEMA.model_dump()
    facts["columns"]["split"] = "split"
    schema = Schema.model_validate(facts)
    write(shop, [{**cells, "split": "train"} for cells in table(shop)])
    build(shop, schema=schema)
    rows = table(shop)
    for cells in rows[:4]:
        cells["split"] = "test"
    write(shop, rows)
    report = update(shop, schema=schema)
    assert report.changes
    assert report.changes.moved == 2


def test_who_has_the_old_index_open_reads_on(shop):
    old = open_index(shop / "shards")
    first = old.read(0)
    rows = table(shop)[1:]
    write(shop, rows)
    added(shop, [40])
    update(shop)
    assert old.read(0) == first
    assert old.item_id(0) == "AB.12"


def test_the_number_of_a_shard_that_was_dropped_is_not_given_again(shop):
    """Whoever opened the index before two updates may be reading that shard still."""
    old = open_index(shop / "shards")
    photos = [old.read(number) for number in range(len(old))]
    write(shop, table(shop)[:36])
    update(shop)
    assert len(open_index(shop / "shards").shards) == 4
    added(shop, range(50, 54))
    update(shop)
    assert open_index(shop / "shards").shards[-1].name == "shard-000005.tar"
    assert [old.read(number) for number in range(len(old))] == photos
    assert_as_fresh(shop)


def stopped(shop, place, count=1, **more):
    """An update that ends at a place, as a kill would end it."""
    left = [count]

    def stop(reached):
        left[0] -= reached == place
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "reach", stop)
        with pytest.raises(KeyboardInterrupt):
            update(shop, **more)


@pytest.mark.parametrize(
    ("place", "count", "reused"),
    [
        ("shards.after_tar", 1, 0),
        ("shards.after_tar", 2, 1),
        ("shards.after_part", 2, 2),
        ("shards.before_index", 1, 3),
        ("shards.after_sources", 1, 3),
        ("shards.after_index", 1, 0),
    ],
)
def test_an_update_that_was_stopped_goes_on(shop, place, count, reused):
    before = tars(shop / "shards")
    (shop / "photos" / "a" / "7.jpg").write_bytes(encode_jpeg(photo(999)))
    added(shop, range(40, 60))
    stopped(shop, place, count)
    assert (len(open_index(shop / "shards")) == ROWS) == (place != "shards.after_index")
    report = update(shop)
    assert report.reused == reused
    assert before.items() <= tars(shop / "shards").items()
    assert_as_fresh(shop)


def test_an_update_that_was_stopped_gives_way_to_a_later_catalog_but_not_within_portions(shop):
    added(shop, range(40, 60))
    stopped(shop, "shards.before_index")
    assert len(tars(shop / "shards")) == 8
    write(shop, table(shop)[:-12])
    with pytest.raises(UserError, match=r"an update by another catalog.* was interrupted; run that again"):
        build_portion(read_catalog(str(shop / "catalog.csv")), SCHEMA, spec(shop, update=True), Portion(0, 2))
    update(shop)
    assert len(tars(shop / "shards")) == 6, "nothing that no index names is left for a plain reader of tars"
    assert_as_fresh(shop)


def test_a_photo_replaced_after_the_stop_is_not_missed(shop):
    added(shop, range(40, 50))
    stopped(shop, "shards.after_part")
    (shop / "photos" / "a" / "7.jpg").write_bytes(encode_jpeg(photo(999)))
    report = update(shop)
    assert report.changes
    assert report.changes.changed == 1
    assert_as_fresh(shop)


@pytest.mark.parametrize("order", list(permutations(range(3)))[::2])
def test_an_update_in_portions(shop, order):
    added(shop, range(40, 67))
    catalog = read_catalog(str(shop / "catalog.csv"))
    reports = [build_portion(catalog, SCHEMA, spec(shop, update=True), Portion(number, 3)) for number in order]
    assert reports[:2] == [None, None]
    assert reports[2]
    assert reports[2].changes
    assert reports[2].changes.added == 27
    assert_as_fresh(shop)
    again = build_portion(catalog, SCHEMA, spec(shop, update=True), Portion(0, 3))
    assert again
    assert again.changes == NO_CHANGES


def test_embedded_images_are_told_apart_by_their_bytes(tmp_path):
    shop = make_shop(tmp_path)
    photos = [(shop / "photos" / "a" / f"{number}.jpg").read_bytes() for number in range(ROWS)]
    listed = read_catalog(str(shop / "catalog.csv")).table
    place = listed.column_names.index("photo")

    def embedded(cells, rows):
        found = listed.take(pa.array(rows)).set_column(place, "photo", pa.array(cells, pa.binary()))
        return Catalog("embedded", found, 1)

    build_shards(embedded(photos[:30], range(30)), SCHEMA, spec(shop, images=None))
    changed = [photos[30], *photos[1:]]
    report = build_shards(embedded(changed, range(ROWS)), SCHEMA, spec(shop, images=None, update=True))
    assert report.changes
    assert (report.changes.added, report.changes.changed, report.superseded) == (10, 1, 1)
    index = open_index(shop / "shards")
    build_shards(embedded(changed, range(ROWS)), SCHEMA, spec(shop, "fresh", images=None))
    assert index.digest == open_index(shop / "fresh").digest


def test_the_command_says_what_it_did(tmp_path, capsys):
    shop = make_shop(tmp_path)
    command = sharding(shop)
    assert main(command) == 0
    write(shop, table(shop)[1:])
    added(shop, [40, 41])
    assert main([*command, "--max-removed", "0.5"]) == 2
    assert "--max-removed needs --update" in capsys.readouterr().err
    assert main([*command, "--update"]) == 0
    said = capsys.readouterr().out
    assert "updated: 2 items added, 0 with another photo, 1 removed; 0.0 MB of new shards" in said
    assert "1 sample in the tars counts no longer" in said
    assert main(["inspect", str(shop / "shards"), "--verify"]) == 0
    assert "1 sample in the tars counts no longer" in capsys.readouterr().out
