import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from strange_shop import ROWS, SCHEMA, STRANGE_IDS, build, contents, make_shop, photo, spec, write_photo

from facetclip import faults
from facetclip.catalog import Catalog, read_catalog
from facetclip.claims import lease_path
from facetclip.errors import UserError
from facetclip.images import BadImage, encode_jpeg, read_rgb, verdict
from facetclip.index import INDEX_NAME, open_index
from facetclip.indexing import DUPLICATES
from facetclip.lease import Lease
from facetclip.portions import WHOLE
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Schema
from facetclip.shards import QUARANTINE, build_shards
from facetclip.slices import PARTS
from facetclip.tars import read_part


@pytest.fixture
def shop(tmp_path):
    return make_shop(tmp_path)


def streamed(folder, monkeypatch):
    """What plain webdataset gives, in its own order, not decoded."""
    monkeypatch.setenv("WDS_SECURE", "1")
    from webdataset.compat import WebDataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return list(WebDataset(urls, shardshuffle=False, empty_check=False))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("resize", [64, None])
def test_plain_webdataset_streams_what_is_read_by_offset(shop, monkeypatch, resize):
    report = build(shop, resize=resize)
    index, samples = open_index(shop / "shards"), streamed(shop / "shards", monkeypatch)
    assert len(samples) == len(index) == report.samples == ROWS
    assert len({sample["__key__"] for sample in samples}) == ROWS
    for row, sample in enumerate(samples):
        kind = next(name for name in ("jpg", "png", "webp") if name in sample)
        facts = json.loads(sample["json"])
        assert sample[kind] == index.read(row)
        assert verdict(sample[kind], decode=True) is None
        assert facts["item"] == index.item_id(row)
        assert facts["product"] == index.product_ids[row].as_py()
        assert sample["txt"].decode() == (f"Größe {row}" if row % 6 else "")
        for name, attribute in SCHEMA.attributes.items():
            label = index.labels[name][row]
            assert (name in facts["not_applicable"]) == (label == NOT_APPLICABLE)
            words = facts["labels"].get(name)
            if label < 0:
                assert words is None
            elif attribute.multi_valued:
                assert sum(1 << attribute.values.index(word) for word in words) == label
            else:
                assert words == attribute.values[label]


def test_the_index_says_what_the_catalog_says(shop):
    report = build(shop)
    index = open_index(shop / "shards")
    catalog = read_catalog(str(shop / "catalog.csv"))
    assert index.item_ids.to_pylist() == catalog.column("sku")
    assert index.product_ids.to_pylist() == catalog.column("style")
    for row, category in enumerate(catalog.column("category")):
        expected = {"top": 0, "pants": 1}.get((category or "").lower(), UNLABELLED)
        assert index.labels["category"][row] == expected
        if expected == 1:
            assert index.labels["sleeve"][row] == NOT_APPLICABLE, "the rule outranks the cell"
    odd = sum(cell == "odd" for cell in catalog.column("sleeve"))
    assert report.unknown_cells == {"sleeve": odd}
    assert (index.labels["sleeve"] >= NOT_APPLICABLE).all(), "an unexplained cell counts as unlabelled"
    assert sum(report.splits.values()) == ROWS
    assert report.digest == index.digest
    for product in set(index.products.tolist()):
        assert len(set(index.splits[index.products == product].tolist())) == 1


def test_images_are_resized_or_kept_byte_for_byte(shop):
    build(shop)
    build(shop, "originals", resize=None)
    small, originals = open_index(shop / "shards"), open_index(shop / "originals")
    for row in range(ROWS):
        original = (shop / "photos" / "a" / f"{row}.jpg").read_bytes()
        assert originals.read(row) == original
        assert min(read_rgb(small.read(row)).size) == min(64, *read_rgb(original).size)


def test_two_runs_and_any_number_of_processes_give_the_same_bytes(shop):
    build(shop, "one")
    build(shop, "again")
    build(shop, "two", workers=2)
    assert contents(shop / "one") == contents(shop / "again") == contents(shop / "two")
    assert sorted(contents(shop / "one")) == [
        DUPLICATES,
        INDEX_NAME,
        QUARANTINE,
        *(f"shard-00000{n}.tar" for n in range(5)),
    ]


def test_the_tars_are_plain_and_tell_nothing_of_the_machine(shop):
    build(shop)
    path = shop / "shards" / "shard-000001.tar"
    assert path.stat().st_size % tarfile.RECORDSIZE == 0
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            assert member.isreg()
            assert member.pax_headers == {}
            assert "/" not in member.name
            assert member.name.count(".") == 1


RUN = """
import sys
from pathlib import Path
from facetclip.catalog import read_catalog
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_shards

if __name__ == "__main__":
    shop, workers, schema = Path(sys.argv[1]), int(sys.argv[2]), Schema.from_json(sys.argv[3])
    spec = ShardSpec(shop / "shards", shop / "photos", 64, samples_per_shard=9, workers=workers)
    build_shards(read_catalog(str(shop / "catalog.csv")), schema, spec)
"""


def run_and_die(shop, fault, workers=1):
    script = shop / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(shop), str(workers), SCHEMA.to_json()]
    environment = {**os.environ, "FACETCLIP_FAULT": fault}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("fault", "finished"),
    [
        ("shards.after_tar:3", 2),
        ("shards.after_part:2", 2),
        ("shards.after_index:1", 5),
    ],
)
def test_after_kill_9_the_same_command_goes_on_to_the_same_bytes(shop, fault, finished):
    assert run_and_die(shop, fault).returncode == -9
    assert (shop / "shards" / INDEX_NAME).exists() == (fault == "shards.after_index:1")
    assert build(shop).reused == finished
    build(shop, "whole")
    assert contents(shop / "shards") == contents(shop / "whole")


def test_a_killed_worker_ends_the_build_with_one_line_and_it_can_go_on(shop):
    died = run_and_die(shop, "shards.after_part:2", workers=2)
    assert "a worker was killed" in died.stderr.splitlines()[-1]
    assert build(shop).reused >= 2
    build(shop, "whole")
    assert contents(shop / "shards") == contents(shop / "whole")


def interrupted(shop):
    """A build stopped after its last shard, without the start of a process."""

    def stop(place):
        if place == "shards.before_index":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "reach", stop)
        with pytest.raises(KeyboardInterrupt):
            build(shop)
    return shop / "shards"


def test_a_finished_shard_that_was_damaged_since_is_packed_again(shop):
    folder = interrupted(shop)
    damaged = bytearray((folder / "shard-000001.tar").read_bytes())
    damaged[700] ^= 1
    (folder / "shard-000001.tar").write_bytes(damaged)
    (folder / "shard-000002.tar").unlink()
    (folder / PARTS / "shard-000003.parquet").write_bytes(b"PAR1 cut")
    (folder / ".shard-000004.tar.12ab.tmp").write_bytes(b"half")
    assert build(shop).reused == 2
    build(shop, "whole")
    assert contents(folder) == contents(shop / "whole")


def test_a_photo_that_changed_between_the_runs_is_packed_again(shop):
    interrupted(shop)
    (shop / "photos" / "a" / "20.jpg").write_bytes(encode_jpeg(photo(999)))
    assert build(shop).reused == 4
    build(shop, "whole")
    assert contents(shop / "shards") == contents(shop / "whole")


def test_photos_written_again_with_the_same_content_are_not(shop):
    interrupted(shop)
    for number in range(ROWS):
        write_photo(shop / "photos" / "a" / f"{number}.jpg", number)
    assert build(shop).reused == 5


def test_a_finished_build_is_left_as_it_is(shop):
    first = build(shop)
    before = {path: path.stat().st_mtime_ns for path in (shop / "shards").iterdir()}
    again = build(shop, workers=2, max_bad=0.5)
    assert (again.reused, again.shards, again.digest) == (5, 5, first.digest)
    assert (again.splits, again.bad, again.unknown_cells) == (first.splits, first.bad, first.unknown_cells)
    assert {path: path.stat().st_mtime_ns for path in (shop / "shards").iterdir()} == before


def test_a_finished_build_whose_photos_changed_says_so(shop):
    build(shop)
    (shop / "photos" / "a" / "20.jpg").write_bytes(encode_jpeg(photo(999)))
    with pytest.raises(UserError, match=r"catalog\.csv, row 22: its image changed after"):
        build(shop)


@pytest.mark.parametrize("change", ["resize", "seed", "samples_per_shard", "schema", "catalog"])
def test_other_inputs_need_another_folder(shop, change):
    build(shop)
    more: dict[str, Any] = {"resize": 48, "seed": 1, "samples_per_shard": 8}
    schema = SCHEMA
    if change == "schema":
        facts = SCHEMA.model_dump()
        facts["attributes"]["sleeve"]["template"] = "{value} sleeves"
        schema = Schema.model_validate(facts)
    if change == "catalog":
        text = (shop / "catalog.csv").read_text(encoding="utf-8")
        (shop / "catalog.csv").write_text(text.replace("Größe 7", "Größe 8"), encoding="utf-8")
    with pytest.raises(UserError, match="use another --out"):
        build(shop, schema=schema, **{name: value for name, value in more.items() if name == change})


def test_an_unfinished_build_of_other_inputs_is_not_continued(shop):
    interrupted(shop)
    with pytest.raises(UserError, match="unfinished build of another catalog"):
        build(shop, seed=1)


def test_a_folder_with_other_things_in_it_is_refused(shop):
    (shop / "photos" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        build(shop, "photos")


def test_two_builds_in_one_folder_are_refused(shop):
    lease = Lease(lease_path(shop / "shards" / PARTS, WHOLE), "")
    with pytest.raises(UserError, match="is packing part 0/1"):
        build(shop)
    lease.release()
    assert build(shop).samples == ROWS


def spoil(shop):
    photos = shop / "photos" / "a"
    (photos / "5.jpg").unlink()
    (photos / "6.jpg").write_bytes(b"<html>")
    (photos / "8.jpg").write_bytes((photos / "8.jpg").read_bytes()[:-50])


def test_bad_images_are_left_out_and_listed(shop):
    spoil(shop)
    report = build(shop, max_bad=0.1)
    assert report.bad == {"not_found": 1, "not_an_image": 1, "truncated": 1}
    index = open_index(shop / "shards")
    assert index.places.tolist() == [place for place in range(ROWS) if place not in (5, 6, 8)]
    assert index.item_id(5) == STRANGE_IDS[7]
    with (shop / "shards" / QUARANTINE).open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [(row["row"], row["code"]) for row in listed] == [
        ("7", "not_found"),
        ("8", "not_an_image"),
        ("10", "truncated"),
    ]
    assert listed[2]["item"] == "'=1+1", "no spreadsheet may take it for a formula"
    assert listed[0]["image"] == "a/5.jpg"
    again = build(shop, max_bad=0.1)
    assert (again.reused, again.bad) == (5, report.bad)


def test_the_quarantine_shows_the_beginning_of_a_long_cell(shop):
    catalog = shop / "catalog.csv"
    catalog.write_text(catalog.read_text().replace("a/1.jpg", "data:" + "A" * 200_000))
    build(shop, max_bad=0.1)
    with (shop / "shards" / QUARANTINE).open(encoding="utf-8", newline="") as file:
        assert [len(row["image"]) for row in csv.DictReader(file)] == [200]


def test_too_many_bad_images_stop_the_build_with_the_reasons(shop):
    spoil(shop)
    reasons = (
        r"3 of 9 images cannot be used \(1 not_found, 1 not_an_image, 1 truncated\), where --max-bad 0\.01 allows 0"
    )
    with pytest.raises(UserError, match=reasons):
        build(shop)
    assert not (shop / "shards" / INDEX_NAME).exists()
    assert len((shop / "shards" / QUARANTINE).read_text().splitlines()) == 4
    assert build(shop, max_bad=0.2).reused == 1, "what is packed is kept"


def test_a_refusal_counts_also_the_reasons_that_it_does_not_list(shop):
    spoil(shop)
    catalog = shop / "catalog.csv"
    text = catalog.read_text()
    for number, cell in enumerate(("../a.jpg", "https://shop.example/a.jpg", '""', "b/none.jpg", "a/empty.jpg"), 10):
        text = text.replace(f"a/{number}.jpg", cell)
    (shop / "photos" / "a" / "empty.jpg").write_bytes(b"")
    catalog.write_text(text)
    listed = r"8 of \d+ images cannot be used \(2 not_found(, 1 \w+){4} and 2 others\)"
    with pytest.raises(UserError, match=listed):
        build(shop, samples_per_shard=ROWS)


def test_a_dataset_folder_without_its_images_folder_is_told_what_to_give(shop):
    catalog = read_catalog(str(shop / "catalog.csv"))
    paths = [{"bytes": None, "path": path} for path in catalog.column("photo")]
    place = catalog.table.column_names.index("photo")
    dataset = Catalog("shop", catalog.table.set_column(place, "photo", pa.array(paths)), 1)
    with pytest.raises(UserError, match=r"'a/0\.jpg' but embeds no image; give --images, its folder"):
        build_shards(dataset, SCHEMA, spec(shop, images=None))


def test_mended_images_are_taken_when_the_command_runs_again(shop):
    spoil(shop)
    (shop / "photos" / "a" / "30.jpg").unlink()
    with pytest.raises(UserError, match="4 of 36 images cannot be used"):
        build(shop, max_bad=0.08)
    for number in (5, 6, 8, 30):
        write_photo(shop / "photos" / "a" / f"{number}.jpg", number)
    report = build(shop)
    assert (report.samples, report.reused) == (ROWS, 2)
    build(shop, "whole")
    assert contents(shop / "shards") == contents(shop / "whole")


def test_a_shard_without_one_good_image_is_no_file(shop):
    for number in range(9, 18):
        (shop / "photos" / "a" / f"{number}.jpg").write_bytes(b"")
    report = build(shop, max_bad=0.5)
    assert (report.shards, report.samples) == (4, ROWS - 9)
    assert not (shop / "shards" / "shard-000001.tar").exists()
    index = open_index(shop / "shards")
    assert all(zlib.crc32(index.read(row)) == index.checksum[row] for row in range(len(index)))


def test_a_catalog_without_one_good_image_is_refused(shop):
    with pytest.raises(UserError, match="40 of 40 images cannot be used"):
        build(shop, images=shop, max_bad=1.0)


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_embedded_images_need_no_root(shop, kind):
    photos = [(shop / "photos" / "a" / f"{number}.jpg").read_bytes() for number in range(ROWS)]
    table = read_catalog(str(shop / "catalog.csv")).table
    cells = [{"bytes": photo, "path": None} for photo in photos] if kind == "struct" else photos
    embedded = table.set_column(table.column_names.index("photo"), "photo", pa.array(cells))
    build_shards(Catalog("embedded", embedded, 1), SCHEMA, spec(shop, "embedded", images=None))
    build(shop)
    assert (shop / "embedded" / "shard-000002.tar").read_bytes() == (shop / "shards" / "shard-000002.tar").read_bytes()
    assert open_index(shop / "embedded").digest == open_index(shop / "shards").digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("AB.13,", "AB.12,", r"catalog\.csv, row 3: item id 'AB\.12' is already in row 2"),
        ("AB.13,", " ,", r"catalog\.csv, row 3: column 'sku' is empty"),
        (",P1,", ",,", r"catalog\.csv, row 4: column 'style' is empty"),
        ("sku,", "skus,", r"no column 'sku'.*did you mean 'skus'"),
    ],
)
def test_a_catalog_that_names_no_row_or_one_twice_is_refused(shop, old, new, message):
    text = (shop / "catalog.csv").read_text(encoding="utf-8")
    (shop / "catalog.csv").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        build(shop)
    assert not (shop / "shards").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": Path("/nowhere")}, "/nowhere: expected the folder of the images"),
        ({"images": None}, "give --images, their folder, or --fetch-urls"),
        ({"resize": 5}, "resize: expected at least 32, found 5"),
        ({"workers": 0}, "workers: expected at least 1, found 0"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(shop, more, message):
    with pytest.raises(UserError, match=message):
        build(shop, **more)


def test_nothing_outside_the_image_root_gets_into_a_shard(shop):
    secret = encode_jpeg(photo(0))
    (shop / "secret.jpg").write_bytes(secret)
    (shop / "photos" / "a" / "1.jpg").unlink()
    (shop / "photos" / "a" / "1.jpg").symlink_to(shop / "secret.jpg")
    text = (shop / "catalog.csv").read_text(encoding="utf-8")
    (shop / "catalog.csv").write_text(text.replace("a/2.jpg", "../secret.jpg"), encoding="utf-8")
    assert build(shop, max_bad=0.1).bad == {"outside_root": 2}


def test_a_part_of_another_build_is_not_ones_own(shop):
    folder = interrupted(shop)
    path = folder / PARTS / "shard-000000.parquet"
    assert read_part(path, "another digest") is None
    path.write_bytes(b"")
    assert read_part(path, "any") is None


def test_progress_counts_to_the_end(shop):
    told = []
    catalog = read_catalog(str(shop / "catalog.csv"))
    build_shards(catalog, SCHEMA, spec(shop), progress=lambda done, whole: told.append((done, whole)))
    assert told == [(done, 5) for done in range(1, 6)]


def test_a_small_catalog_still_makes_work_for_several_processes(shop):
    assert build(shop, samples_per_shard=None).shards == 1, "64 rows and fewer are one shard"


def test_a_full_disk_is_one_clear_line_and_leaves_no_half_file(shop, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        build(shop)
    assert [path.name for path in (shop / "shards").iterdir()] == [PARTS]


def test_the_jpeg_in_a_shard_is_the_photo(shop):
    build(shop)
    index = open_index(shop / "shards")
    full = read_rgb((shop / "photos" / "a" / "1.jpg").read_bytes()).resize((64, 85), Image.Resampling.BICUBIC)
    packed = Image.open(io.BytesIO(index.read(1)))
    difference = np.asarray(packed, dtype=float) - np.asarray(full, dtype=float)
    assert packed.size == (64, 85)
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 35


def test_bad_image_is_an_error_that_crosses_processes():
    import pickle

    bad = pickle.loads(pickle.dumps(BadImage("empty", "the file has 0 bytes")))
    assert (bad.code, str(bad)) == ("empty", "the file has 0 bytes (empty)")
