import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_shop import SCHEMA, make_labels, make_shards, photo

from facetclip import index as index_module
from facetclip import store as store_module
from facetclip.errors import OwnMistake, UserError
from facetclip.index import INDEX_NAME, canonical, key_of, open_index
from facetclip.schema import Schema


@pytest.fixture
def index(tmp_path):
    return make_shards(tmp_path / "shards")


def test_what_was_written_is_read_with_the_promised_types(index):
    assert len(index) == index.size == 22
    assert (index.splits.dtype, index.products.dtype, index.shard.dtype) == (np.int8, np.int32, np.int32)
    assert (index.offset.dtype, index.length.dtype, index.checksum.dtype) == (np.int64, np.int32, np.uint32)
    assert index.labels["sleeve"].dtype == np.int16
    assert index.labels["colour"].dtype == np.int64, "several values an item: a bit mask"
    for name, labels in make_labels(22).items():
        assert (index.labels[name] == labels).all()
    assert index.item_id(7) == "item 7"
    assert index.product_ids[3].as_py() == "P1"
    assert index.products.tolist() == [number // 2 for number in range(22)]


def test_columns_cannot_be_changed_by_their_readers(index):
    for column in (index.splits, index.labels["sleeve"], index.offset):
        with pytest.raises(ValueError):
            column[0] = 1


def test_the_rows_of_a_split_and_their_labels(index):
    assert index.rows("test").tolist() == list(range(1, 22, 2))
    assert len(index.rows("validation")) == 0
    matrix = index.label_matrix(index.rows("test"))
    assert (matrix.shape, matrix.dtype) == ((11, 3), np.int64)
    assert (matrix[:, 1] == make_labels(22)["sleeve"][1::2]).all()
    with pytest.raises(UserError, match="expected one of train, validation, test"):
        index.rows("tset")


def test_every_image_is_read_by_its_offset_from_many_threads(index, monkeypatch):
    monkeypatch.setattr(store_module, "MOST_OPEN", 0)  # every read evicts the file that others are reading
    with ThreadPoolExecutor(8) as pool:
        rows = list(range(22)) * 20
        assert list(pool.map(index.read, rows)) == [photo(row) for row in rows]


def test_the_index_travels_to_another_process_with_its_folder_alone(index):
    index.read(0)
    again = pickle.loads(pickle.dumps(index))
    assert again.read(5) == photo(5)
    assert again.digest == index.digest


@pytest.mark.parametrize("row", [-1, 22])
def test_a_row_out_of_range_is_never_another_row(index, row):
    with pytest.raises(IndexError):
        index.read(row)


def test_a_changed_byte_is_named_with_shard_offset_and_key(index):
    path = index.folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[index.offset[5] + 99] ^= 1
    path.write_bytes(content)
    again = open_index(index.folder)
    assert again.read(4) == photo(4)
    with pytest.raises(OwnMistake, match=rf"shard-000000\.tar, offset {index.offset[5]}, key item%205: "):
        again.read(5)


def test_a_shard_cut_or_removed_is_found_when_the_index_is_opened(index):
    path = index.folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"expected \d+ bytes, found \d+"):
        open_index(index.folder)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-000000\.tar: cannot be read"):
        open_index(index.folder)


def test_a_shard_cut_while_the_index_is_open_is_found_when_it_is_read(index):
    path = index.folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OwnMistake, match="ends 100 bytes early"):
        index.read(21)


def test_a_changed_byte_of_the_index_is_never_read_as_a_label(index):
    path = index.folder / INDEX_NAME
    whole = path.read_bytes()
    facts = whole.rindex(b"ARROW:schema")  # behind the columns
    told, found = index.labels["category"].tolist(), set()
    for place in range(4, facts, 29):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert open_index(index.folder).labels["category"].tolist() == told
        except UserError as error:
            found.add(re.sub(r"\(.*", "", str(error).partition("index.parquet: ")[2]).strip())
    assert "column label:category: damaged" in found


def test_an_index_whose_facts_were_changed_is_one_line(index):
    table = pq.read_table(index.folder / INDEX_NAME)
    for name, fact in ((b"shards", b"{"), (b"schema", b"{}"), (b"size", b"many")):
        facts = {**(table.schema.metadata or {}), name: fact}
        pq.write_table(table.replace_schema_metadata(facts), index.folder / INDEX_NAME)
        with pytest.raises(
            UserError, match=r"index\.parquet: damaged .*; delete the folder, or .* run facetclip shard again"
        ):
            open_index(index.folder)


def test_a_folder_without_an_index_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run facetclip shard first"):
        open_index(tmp_path)
    (tmp_path / ".parts").mkdir()
    with pytest.raises(UserError, match="interrupted; run the same command again"):
        open_index(tmp_path)


def test_a_parquet_file_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / INDEX_NAME)
    with pytest.raises(UserError, match="expected format"):
        open_index(tmp_path)
    (tmp_path / INDEX_NAME).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_index(tmp_path)


def test_the_digest_follows_content_and_nothing_else(tmp_path):
    one, again = make_shards(tmp_path / "a"), make_shards(tmp_path / "b")
    other = make_shards(tmp_path / "c", labels={"sleeve": np.zeros(22, dtype=np.int16)})
    assert one.digest == again.digest
    assert one.digest != other.digest
    assert (tmp_path / "a" / INDEX_NAME).read_bytes() == (tmp_path / "b" / INDEX_NAME).read_bytes()


def test_a_prompt_does_not_change_the_digest_but_a_value_does(index):
    table = pq.read_table(index.folder / INDEX_NAME)
    facts = SCHEMA.model_dump()
    facts["attributes"]["sleeve"]["template"] = "a shirt with {value} sleeves"
    assert index_module.digest_of(table, Schema.model_validate(facts)) == index.digest
    facts["attributes"]["sleeve"]["values"] = ("long", "none", "short")
    assert index_module.digest_of(table, Schema.model_validate(facts)) != index.digest


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=9), st.integers(0, 9))
def test_the_canonical_bytes_of_text_do_not_depend_on_chunks_types_or_slices(cells, cut):
    def content(column):
        return b"".join(bytes(part) for part in canonical(column))

    whole = pa.chunked_array([pa.array(cells, pa.string())])
    parts = pa.chunked_array([pa.array(cells[:cut], pa.string()), pa.array(cells[cut:], pa.string())])
    sliced = pa.chunked_array([pa.array(["x", *cells, "yy"], pa.string())]).slice(1, len(cells))
    assert content(whole) == content(parts) == content(sliced) == content(whole.cast(pa.large_string()))


@settings(deadline=None)
@given(st.lists(st.text(max_size=2), min_size=2, max_size=3))
def test_different_texts_have_different_canonical_bytes(cells):
    def content(texts):
        return b"".join(bytes(part) for part in canonical(pa.chunked_array([pa.array(texts, pa.string())])))

    joined = ["".join(cells), *[""] * (len(cells) - 1)]
    assert (content(cells) == content(joined)) == (cells == joined)


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
@example("%2E", ".")
@example("x" * 300, "x" * 299)
@example("x" * 64, "x" * 65)
@example("%" * 40, "%" * 41)
def test_keys_are_unique_short_and_plain(one, other):
    keys = {key_of(one), key_of(other)}
    assert len(keys) == len({one, other})
    for key in keys:
        assert len(f"{key}.webp") < 100
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-%")
