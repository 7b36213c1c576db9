import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_shop import SCHEMA, SCHEMA_TOML, make_labels, make_reader, make_shards, photo

from facetclip import extract as extraction
from facetclip import faults, outputs
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.extract import FromCatalog, FromShards, extract
from facetclip.index import ShardIndex
from facetclip.labels import listed_text
from facetclip.model import load_model, save_model
from facetclip.schema import UNLABELLED, Schema
from facetclip.scores import score_rows

PART = 5  # 22 items make parts of 5, 5, 5, 5 and 2


class Killed(BaseException):
    """What `kill -9` does to a process, as near as one process can come."""


@dataclass
class Launched:
    """One process of a launch, without the launch."""

    process_index: int
    num_processes: int
    device: str = "cpu"

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None: ...

    def destroy_process_group(self) -> None: ...


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU is there too: its numbers are a little different, and it cannot be used after a fork."""
    monkeypatch.setattr(extraction, "_processes", lambda: Launched(0, 1))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(make_reader(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, index: ShardIndex, model: str) -> Path:
    out = tmp_path_factory.mktemp("finished") / "scores"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "_processes", lambda: Launched(0, 1))
        extract(model, FromShards(index.folder), out, part_size=PART)
    return out


processes_of_launch = extraction._processes


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def lines(folder: Path) -> list[dict]:
    return [line for path in sorted(folder.glob("part-*.parquet")) for line in pq.read_table(path).to_pylist()]


def test_every_item_and_attribute_has_one_line_in_order(index, finished):
    names = [(line["item_id"], line["attribute"]) for line in lines(finished)]
    assert names == [(f"item {row}", name) for row in range(len(index)) for name in SCHEMA.names]


def test_lines_hold_the_scores_of_score_rows_and_the_words_of_the_catalog(index, finished, model):
    scores = score_rows(load_model(model), index, np.arange(len(index)), batch_size=PART)
    for place, line in enumerate(lines(finished)):
        row, attribute = divmod(place, 3)
        name = SCHEMA.names[attribute]
        probabilities = scores.probabilities[name][row]
        np.testing.assert_allclose(line["probabilities"], probabilities, atol=1e-5)
        assert line["product_id"] == f"P{row // 2}"
        if line["not_applicable"]:
            assert (line["value"], line["probability"]) == (None, None)
        else:
            assert line["value"] == SCHEMA.attributes[name].values[probabilities.argmax()]
            assert line["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
        label = index.labels[name][row]
        if label < 0:
            assert line["listed"] is None
        elif name == "colour":
            assert line["listed"] == {1: "red", 2: "green", 4: "blue", 6: "green|blue"}[label]
        else:
            assert line["listed"] == SCHEMA.attributes[name].values[label]


def test_a_split_is_read_alone(tmp_path, index, model):
    result = extract(model, FromShards(index.folder, "test"), tmp_path / "out")
    assert result is not None
    assert (result.items, result.parts) == (11, 1)
    assert {line["item_id"] for line in lines(tmp_path / "out")} == {f"item {row}" for row in index.rows("test")}


def test_the_manifest_names_model_data_schema_and_the_sums_of_all_parts(index, finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["request"]["data"] == index.digest
    assert Schema.model_validate(manifest["schema"]) == SCHEMA
    assert [part["items"] for part in manifest["parts"]] == [5, 5, 5, 5, 2]
    assert [part["rows"] for part in manifest["parts"]] == [15, 15, 15, 15, 6]
    assert manifest["items"] == 22
    for part in manifest["parts"]:
        path = finished / part["name"]
        assert part["sha256"] == extraction.hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that no launcher started and that has not asked yet."""
    from accelerate import PartialState

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.mark.usefixtures("alone")
def test_without_a_launcher_there_is_one_process():
    state = processes_of_launch()
    assert (state.process_index, state.num_processes, state.is_main_process) == (0, 1, True)


@pytest.mark.usefixtures("alone")
def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    processes_of_launch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but each believes to be one of 1"):
        processes_of_launch()


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_any_number_of_processes_reads_each_item_once(tmp_path, monkeypatch, index, model, finished, processes):
    for rank in reversed(range(processes)):
        monkeypatch.setattr(extraction, "_processes", lambda rank=rank: Launched(rank, processes))
        result = extract(model, FromShards(index.folder), tmp_path, part_size=PART)
        assert (result is not None) is (rank == 0)
    assert files(tmp_path) == files(finished)


def test_a_killed_extraction_continues_to_the_same_bytes(tmp_path, monkeypatch, index, model, finished):
    """Killed before and after each write, one kill after another, in the same folder."""
    write, due = outputs.write_whole, [0]

    def count_down() -> None:
        due[0] -= 1
        if due[0] == 0:
            raise Killed

    def deadly(path: Path, content: bytes) -> None:
        (path.parent / f".{path.name}.0badcafe.tmp").write_bytes(content[: len(content) // 2])
        count_down()
        write(path, content)
        count_down()

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(outputs, "write_whole", deadly)
    kills = 0
    for kill_at in (1, 2, 1, 3, 2, 1, 4, 1, 2):
        due[0] = kill_at
        try:
            extract(model, FromShards(index.folder), tmp_path / "out", part_size=PART)
        except Killed:
            kills += 1
    assert kills >= 6
    due[0] = -1
    monkeypatch.setattr(outputs, "write_whole", write)
    extract(model, FromShards(index.folder), tmp_path / "out", part_size=PART)
    assert files(tmp_path / "out") == files(finished)


@pytest.mark.parametrize(
    ("fault", "parts"), [("extract.after_part:1", 1), ("extract.after_part:4", 4), ("extract.before_manifest:1", 5)]
)
def test_a_process_killed_for_real_is_continued_without_doing_a_part_twice(
    tmp_path, monkeypatch, index, model, finished, fault, parts
):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    monkeypatch.setenv("FACETCLIP_FAULT", fault)
    child = os.fork()
    if child == 0:
        try:
            faults._reached.clear()
            extract(model, FromShards(index.folder), tmp_path / "out", part_size=PART)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    torch.set_num_threads(threads)
    monkeypatch.delenv("FACETCLIP_FAULT")
    assert not (tmp_path / "out" / "manifest.json").exists()
    left = len(list((tmp_path / "out").glob("part-*")))
    result = extract(model, FromShards(index.folder), tmp_path / "out", part_size=PART)
    assert result is not None
    assert result.reused == left == parts
    assert list(files(tmp_path / "out")) == list(files(finished))
    assert [line["item_id"] for line in lines(tmp_path / "out")] == [line["item_id"] for line in lines(finished)]


def copy_of(finished: Path, out: Path) -> Path:
    out.mkdir()
    for name, content in files(finished).items():
        (out / name).write_bytes(content)
    return out


def test_a_finished_extraction_is_left_as_it_is(tmp_path, index, model, finished):
    out = copy_of(finished, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    result = extract(model, FromShards(index.folder), out, part_size=PART)
    assert result is not None
    assert result.reused == result.parts == 5
    assert {path: path.stat().st_mtime_ns for path in out.glob("part-*")} == before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "text"])
def test_a_damaged_part_is_read_again(tmp_path, index, model, finished, damage):
    out = copy_of(finished, tmp_path / "out")
    path = out / "part-000002.parquet"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 4] ^= 0xFF
    path.write_bytes({"cut": content[:-9], "empty": b"", "text": b"no parquet"}.get(damage, bytes(content)))
    if damage == "gone":
        path.unlink()
    result = extract(model, FromShards(index.folder), out, part_size=PART)
    assert result is not None
    assert result.reused == 4
    assert files(out) == files(finished)


def test_a_folder_of_another_request_is_refused_with_what_differs(tmp_path, index, model, finished):
    out = copy_of(finished, tmp_path / "out")
    save_model(make_reader(seed=5), tmp_path / "other")
    others = make_shards(tmp_path / "shards", labels={"colour": np.full(22, UNLABELLED)})
    for source, asked, size, words in (
        (str(tmp_path / "other"), FromShards(index.folder), PART, "other model"),
        (model, FromShards(others.folder), PART, "other data"),
        (model, FromShards(index.folder, "test"), PART, "other split, items"),
        (model, FromShards(index.folder), PART + 1, "other part_size"),
    ):
        with pytest.raises(UserError, match=words):
            extract(source, asked, out, part_size=size)
        assert files(out) == files(finished)
    for path in out.glob("part-*"):
        path.unlink()
    with pytest.raises(UserError, match=r"manifest\.json: answers another request"):
        extract(model, FromShards(index.folder), out, part_size=PART + 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b'{"a": 1}', "is nothing that facetclip extract wrote"),
        ("manifest.json", b"[]", "is nothing that facetclip extract wrote"),
        ("manifest.json", b'{"request": "GET /"}', "is nothing that facetclip extract wrote"),
        ("part-000000.parquet", b"id,product\n", "is nothing that facetclip extract wrote"),
        ("index.parquet", b"", "holds shards"),
    ],
)
def test_what_somebody_else_wrote_is_not_overwritten(tmp_path, index, model, name, content, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        extract(model, FromShards(index.folder), tmp_path / "out", part_size=PART)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {name: content}


def test_a_long_extraction_says_how_far_it_is_once_in_a_while_and_once_for_all_processes(
    tmp_path, monkeypatch, capsys, index, model
):
    words = ["extract", model, "--shards", str(index.folder), "--part-size", str(PART), "--out"]
    assert main([*words, str(tmp_path / "quick")]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("facetclip.model_commands.TELL_EVERY", 0.0)
    assert main([*words, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.splitlines() == [f"facetclip: {done} of 5 parts" for done in range(1, 6)]
    monkeypatch.setenv("RANK", "1")
    assert main([*words, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == ""


def test_a_changed_shard_stops_the_extraction_with_its_place(tmp_path, model):
    index = make_shards(tmp_path / "shards")
    with (tmp_path / "shards" / "shard-000000.tar").open("r+b") as tar:
        tar.seek(int(index.offset[7]) + 30)
        tar.write(b"\0\0\0\0\0\0")
    with pytest.raises(UserError, match=r"shard-000000\.tar, offset \d+, key item%207"):
        extract(model, FromShards(index.folder), tmp_path / "out", part_size=PART)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_mistakes_are_user_errors(tmp_path, index, model):
    for asked, words in (
        (FromShards(tmp_path / "nothing"), r"no index\.parquet"),
        (FromShards(index.folder, "tset"), "expected all, train, validation, test"),
        (FromShards(index.folder, "validation"), "the validation split is empty"),
    ):
        with pytest.raises(UserError, match=words):
            extract(model, asked, tmp_path / "out")
    with pytest.raises(UserError, match="at least 1"):
        extract(model, FromShards(index.folder), tmp_path / "out", part_size=0)
    with pytest.raises(UserError, match="expected a folder"):
        extract(str(tmp_path / "no-model"), FromShards(index.folder), tmp_path / "out")


def make_catalog(folder: Path, items: int = 22, *, missing: tuple[int, ...] = ()) -> FromCatalog:
    """The shop of `make_shards` as a CSV file with a folder of photos."""
    (folder / "images").mkdir(parents=True)
    for number in set(range(items)) - set(missing):
        (folder / "images" / f"{number}.jpg").write_bytes(photo(number))
    labels = make_labels(items)
    rows = ["id,product,image,category,sleeve,colour"]
    for number in range(items):
        cells = [listed_text(SCHEMA.attributes[name], labels[name])[number] for name in SCHEMA.names]
        rows.append(",".join([f"item {number}", f"P{number // 2}", f"{number}.jpg", *(cell or "" for cell in cells)]))
    (folder / "catalog.csv").write_text("\n".join(rows) + "\n")
    (folder / "schema.toml").write_text(SCHEMA_TOML)
    return FromCatalog(str(folder / "catalog.csv"), folder / "schema.toml", folder / "images")


def test_a_catalog_gives_the_same_lines_as_its_shards(tmp_path, model, finished):
    result = extract(model, make_catalog(tmp_path / "shop"), tmp_path / "out", part_size=PART)
    assert result is not None
    assert (result.items, result.bad) == (22, 0)
    assert lines(tmp_path / "out") == lines(finished)
    assert (tmp_path / "out" / "quarantine.csv").read_text() == "row,item,code,message\n"


def test_images_that_cannot_be_read_go_to_the_quarantine_and_the_rest_is_read(tmp_path, model, finished):
    source = make_catalog(tmp_path / "shop", missing=(3, 9))
    (tmp_path / "shop" / "images" / "4.jpg").write_text("<html>not found</html>")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"3 of 22 images cannot be read \(2 not_found, 1 not_an_image\).*row 5"):
        extract(model, source, out, part_size=PART)
    assert not (out / "manifest.json").exists()
    result = extract(model, replace(source, max_bad=0.2), out, part_size=PART)
    assert result is not None
    assert (result.items, result.bad, result.reused) == (19, 3, 5)
    quarantine = (out / "quarantine.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in quarantine[1:]] == [
        ["5", "item 3", "not_found"],
        ["6", "item 4", "not_an_image"],
        ["11", "item 9", "not_found"],
    ]
    left_out = {"item 3", "item 4", "item 9"}
    assert lines(out) == [line for line in lines(finished) if line["item_id"] not in left_out]


def test_no_spreadsheet_runs_what_the_quarantine_names(tmp_path, model):
    source = make_catalog(tmp_path / "shop", items=5, missing=(3,))
    catalog = tmp_path / "shop" / "catalog.csv"
    catalog.write_text(catalog.read_text().replace("item 3", "=item(3)"))
    extract(model, replace(source, max_bad=0.5), tmp_path / "out")
    assert "\n5,'=item(3),not_found," in (tmp_path / "out" / "quarantine.csv").read_text()


def test_an_image_that_came_back_is_read_by_the_same_command(tmp_path, model, finished):
    source = make_catalog(tmp_path / "shop", missing=(3,))
    with pytest.raises(UserError, match="1 of 22"):
        extract(model, source, tmp_path / "out", part_size=PART)
    (tmp_path / "shop" / "images" / "3.jpg").write_bytes(photo(3))
    result = extract(model, source, tmp_path / "out", part_size=PART)
    assert result is not None
    assert (result.bad, result.reused) == (0, 4)
    assert lines(tmp_path / "out") == lines(finished)


def test_photos_that_were_replaced_or_lie_in_another_folder_are_read_again(tmp_path, model):
    source, out = make_catalog(tmp_path / "shop"), tmp_path / "out"
    extract(model, source, out, part_size=PART)
    (tmp_path / "shop" / "images" / "7.jpg").write_bytes(photo(70))
    result = extract(model, source, out, part_size=PART)
    assert result is not None
    assert (result.parts, result.reused) == (5, 4)
    others = make_catalog(tmp_path / "others")
    for number in range(22):
        (tmp_path / "others" / "images" / f"{number}.jpg").write_bytes(photo(number + 100))
    elsewhere = replace(source, images=others.images)
    result = extract(model, elsewhere, out, part_size=PART)
    assert result is not None
    assert result.reused == 0
    extract(model, elsewhere, tmp_path / "fresh", part_size=PART)
    assert files(out) == files(tmp_path / "fresh")


def test_rows_that_cannot_be_told_apart_are_refused(tmp_path, model):
    source = make_catalog(tmp_path / "shop")
    path = Path(source.catalog)
    path.write_text(path.read_text().replace("item 7,", "item 2,"))
    with pytest.raises(UserError, match=r"row 9: item id 'item 2' is already in row 4"):
        extract(model, source, tmp_path / "out")
    with pytest.raises(UserError, match="found no folder"):
        extract(model, replace(source, images=tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(UserError, match="--images"):
        extract(model, replace(source, images=None), tmp_path / "out")


def test_a_catalog_of_urls_is_told_to_be_sharded_first(tmp_path, model):
    source = make_catalog(tmp_path / "shop")
    path = Path(source.catalog)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    lines = [rows[0], *([*row[:2], f" https://shop.example/{row[2]}", *row[3:]] for row in rows[1:])]
    path.write_text("\n".join(map(",".join, lines)) + "\n")
    with pytest.raises(UserError, match="holds URLs; shard it with --fetch-urls, then give --shards"):
        extract(model, replace(source, images=None), tmp_path / "out")


def test_a_refused_extraction_counts_also_the_reasons_that_it_does_not_list(tmp_path, model):
    source = make_catalog(tmp_path / "shop")
    for number, content in enumerate((b"", b"<html>", b"%PDF", b"GIF89a", photo(4)[:-99])):
        (tmp_path / "shop" / "images" / f"{number}.jpg").write_bytes(content)
    path = Path(source.catalog)
    path.write_text(path.read_text().replace(",5.jpg", ",../5.jpg").replace(",6.jpg", ",6/6.jpg"))
    with pytest.raises(UserError, match=r"7 of 22 images cannot be read \(1 \w+(, 1 \w+){4} and 2 others\)"):
        extract(model, source, tmp_path / "out")


def test_images_embedded_in_a_parquet_catalog_need_no_folder(tmp_path, model, finished):
    source = make_catalog(tmp_path / "shop")
    rows = [line.split(",") for line in Path(source.catalog).read_text().splitlines()]
    table = {name: list(cells) for name, *cells in zip(*rows, strict=True)}
    table["image"] = [{"bytes": photo(number), "path": name} for number, name in enumerate(table["image"])]
    pq.write_table(pa.table(table), tmp_path / "catalog.parquet")
    embedded = FromCatalog(str(tmp_path / "catalog.parquet"), source.schema)
    extract(model, embedded, tmp_path / "out", part_size=PART)
    assert lines(tmp_path / "out") == lines(finished)
