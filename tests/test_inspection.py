"""What shards hold, and the ways in which a tar can be bad (row D of what must be survived)."""

import io
import pickle
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flaky_server import serving
from PIL import Image
from small_shop import SCHEMA, make_shards, photo

from facetclip import inspection
from facetclip.catalog import read_catalog
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.index import INDEX_NAME, ShardIndex, key_of, open_index, write_parquet
from facetclip.inspection import Damage, describe, draw_sheets, verify
from facetclip.metrics import listed_values
from facetclip.pictures import contact_sheet, thumbnail
from facetclip.shards import ShardSpec, build_shards

ITEMS = 9


def shop(folder: Path) -> ShardIndex:
    """Real shards of three samples each."""
    (folder / "images").mkdir(parents=True)
    lines = ["id,product,image,category,sleeve,colour"]
    for number in range(ITEMS):
        (folder / "images" / f"{number}.jpg").write_bytes(photo(number))
        lines.append(f"{number},P{number // 2},{number}.jpg,{'shirt' if number % 3 else 'pants'},,red|blue")
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    spec = ShardSpec(folder / "shards", images=folder / "images", samples_per_shard=3)
    build_shards(read_catalog(str(folder / "shop.csv")), SCHEMA, spec)
    return open_index(folder / "shards")


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    return shop(tmp_path)


def test_an_inspection_counts_splits_values_and_silence(index, capsys):
    assert main(["inspect", str(index.folder), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "9 items of 5 products in 3 shards" in said
    rows = [line.split() for line in said.splitlines()]
    for start in (["shirt", "6"], ["pants", "3"], ["red", "9"], ["green", "0"], ["(not", "applicable)", "3"]):
        assert any(row[: len(start)] == start for row in rows), start
    assert "every byte is as it was written" in said
    assert describe(index) in said


def members(content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr] - plain files


def packed(found: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, body in found:
            tar.addfile(member, io.BytesIO(body))
    return out.getvalue()


def renamed(content: bytes, name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The second sample's photo under another name; a link points outside."""
    found = members(content)
    found[2][0].name = name
    found[2][0].type = kind
    if kind != tarfile.REGTYPE:
        found[2][0].linkname, found[2][0].size = "/etc/passwd", 0
        found[2] = (found[2][0], b"")
    return packed(found)


def replaced(content: bytes, body: bytes, suffix: str = "jpg") -> bytes:
    found = members(content)
    member = found[2][0]
    member.size, member.name = len(body), member.name.rpartition(".")[0] + "." + suffix
    found[2] = (member, body)
    return packed(found)


def swapped(content: bytes) -> bytes:
    found = members(content)
    found[0], found[2] = found[2], found[0]
    return packed(found)


def interleaved(content: bytes) -> bytes:
    """The photos first, then what is said of them."""
    found = members(content)
    return packed(sorted(found, key=lambda member: member[0].name.endswith(".json")))


def without(content: bytes, place: int) -> bytes:
    found = members(content)
    del found[place]
    return packed(found)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :]


BAD: dict[str, Callable[[bytes, int], bytes]] = {  # the tar, the offset of its second photo
    "empty": lambda tar, at: b"",
    "cut in a photo": lambda tar, at: tar[: at + 100],
    "cut on a block": lambda tar, at: tar[: at - 512],
    "a bit of a photo": lambda tar, at: flipped(tar, at + 50),
    "a bit of a header": lambda tar, at: flipped(tar, at - 500),
    "a header of zeros": lambda tar, at: tar[: at - 512] + bytes(512) + tar[at:],
    "a header's checksum": lambda tar, at: flipped(tar, at - 512 + 150),
    "another photo": lambda tar, at: replaced(tar, photo(77)),
    "a pickle in a photo's place": lambda tar, at: replaced(tar, pickle.dumps(print), "pkl"),
    "a path that climbs": lambda tar, at: renamed(tar, "../../evil.jpg"),
    "an absolute path": lambda tar, at: renamed(tar, "/etc/evil.jpg"),
    "a symbolic link": lambda tar, at: renamed(tar, "link.jpg", tarfile.SYMTYPE),
    "a hard link": lambda tar, at: renamed(tar, "link.jpg", tarfile.LNKTYPE),
    "a key twice": lambda tar, at: renamed(tar, members(tar)[0][0].name),
    "samples exchanged": lambda tar, at: swapped(tar),
    "samples interleaved": lambda tar, at: interleaved(tar),
    "a photo lost": lambda tar, at: without(tar, 2),
    "a named pipe": lambda tar, at: renamed(tar, "pipe.jpg", tarfile.FIFOTYPE),
    "a folder in a photo's place": lambda tar, at: renamed(tar, "folder.jpg", tarfile.DIRTYPE),
    "not a tar": lambda tar, at: b"<html>" * (len(tar) // 6),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_d_a_bad_tar_is_named_with_shard_offset_and_key(index: ShardIndex, kind: str, capsys) -> None:
    path = index.folder / index.shards[1].name
    at = int(index.offset[4])
    path.write_bytes(BAD[kind](path.read_bytes(), at))
    found = list(verify(index))
    assert [damage.shard for damage in found] == [path.name], kind
    first = found[0]
    around = {(int(index.offset[row]), key_of(index.item_id(row))) for row in (3, 4)}
    assert (first.offset, first.key) in around
    assert main(["inspect", str(index.folder), "--verify"]) == 1
    assert f"{first.shard}, offset {first.offset:,}, key {first.key}" in capsys.readouterr().out
    if path.stat().st_size != index.shards[1].bytes:  # whoever goes by the index sees it when it is opened
        with pytest.raises(UserError, match=r"shard-000001.tar: expected .* bytes, found"):
            open_index(index.folder)


def test_d_an_index_whose_labels_changed_is_named(index: ShardIndex, capsys: pytest.CaptureFixture[str]) -> None:
    path = index.folder / INDEX_NAME
    table = pq.read_table(path)
    place = table.column_names.index("label:category")
    flipped = pa.array(1 - table.column(place).to_numpy(), pa.int16())
    write_parquet(path, table.set_column(place, "label:category", flipped))
    assert main(["inspect", str(index.folder), "--verify"]) == 1
    said = capsys.readouterr().out
    assert "index.parquet: the index does not have the digest that it names" in said
    assert "1 of 4 files damaged" in said


def test_d_damage_is_told_before_sheets_are_drawn(index: ShardIndex, tmp_path: Path, capsys) -> None:
    path = index.folder / index.shards[1].name
    path.write_bytes(flipped(path.read_bytes(), int(index.offset[4]) + 50))
    assert main(["inspect", str(index.folder), "--verify", "--sheets", str(tmp_path / "sheets")]) == 2
    said = capsys.readouterr()
    assert "1 of 4 files damaged" in said.out
    assert "the image is not the one that was indexed" in said.err


def test_d_what_lies_behind_the_samples_is_noticed(index: ShardIndex) -> None:
    path = index.folder / index.shards[0].name
    content = bytearray(path.read_bytes())
    content[-1] = 1
    path.write_bytes(bytes(content))
    assert [str(damage) for damage in verify(index)] == [
        "shard-000000.tar: every photo is as indexed, but what lies between or after them is not what was written"
    ]


def test_d_a_shard_that_is_gone_is_named(index: ShardIndex) -> None:
    (index.folder / index.shards[2].name).unlink()
    assert "shard-000002.tar: cannot be read" in str(next(verify(index)))


def test_d_every_damaged_tar_of_a_folder_is_listed(index: ShardIndex, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (index.folder / shard.name for shard in index.shards)
    first.write_bytes(first.read_bytes()[:-20_000])
    second.write_bytes(flipped(second.read_bytes(), int(index.offset[4]) + 50))
    third.unlink()
    assert main(["inspect", str(index.folder), "--verify"]) == 1
    said = capsys.readouterr().out
    assert [name for name in ("000000", "000001", "000002") if f"\nshard-{name}.tar" in said] == [
        "000000",
        "000001",
        "000002",
    ]
    assert "3 of 4 files damaged" in said
    assert main(["inspect", str(index.folder)]) == 2, "without --verify a folder is not half described"


def test_d_shards_at_a_url_are_read_there_whatever_the_cache_has(
    index: ShardIndex, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("FACETCLIP_CACHE", str(tmp_path / "cache"))
    with serving(index.folder) as server:
        there = open_index(server.url)
        assert [there.read(row) for row in range(ITEMS)] == [index.read(row) for row in range(ITEMS)]
        assert list(verify(there)) == []
        held = {path.name for path in (tmp_path / "cache").iterdir()}
        path = index.folder / index.shards[1].name
        path.write_bytes(flipped(path.read_bytes(), int(index.offset[4]) + 50))
        assert [there.read(row) for row in range(ITEMS)], "from the cache"
        damage = Damage(path.name, "the photo is not the one that was indexed", int(index.offset[4]), key_of("4"))
        assert list(verify(there)) == [damage]
        (index.folder / index.shards[2].name).unlink()
        assert main(["inspect", server.url, "--verify"]) == 1
        said = capsys.readouterr().out
        assert str(damage) in said
        assert f"shard-000002.tar: cannot be read ({server.url}/shard-000002.tar: not found)" in said
        assert "2 of 4 files damaged" in said
        assert {path.name for path in (tmp_path / "cache").iterdir()} == held, "what is looked at is not kept"


def test_counts_are_those_of_looking_at_every_row(tmp_path: Path) -> None:
    index = make_shards(tmp_path, items=60, validation=True)
    said = [line.split() for line in describe(index).splitlines()]
    for name, attribute in index.schema.attributes.items():
        start = next(place for place, words in enumerate(said) if words[:2] == [name, "all"])
        for words in said[start + 2 : start + 2 + len(attribute.values)]:
            listed = listed_values(attribute, index.labels[name])[:, attribute.values.index(words[0])]
            expected = [listed.sum(), *((listed & (index.splits == place)).sum() for place in range(3))]
            assert [int(word) for word in words[1:]] == expected


def test_a_million_rows_are_counted_in_seconds(tmp_path: Path) -> None:
    index = make_shards(tmp_path, items=20)
    times = 50_000
    columns = {"splits": index.splits, "products": index.products, "length": index.length}
    for name, column in columns.items():
        object.__setattr__(index, name, np.tile(column, times))  # as if it had been read
    object.__setattr__(index, "labels", {name: np.tile(column, times) for name, column in index.labels.items()})
    object.__setattr__(index, "size", len(index) * times)
    start = time.process_time()
    assert "1,000,000 items of 10 products" in describe(index)
    assert time.process_time() - start < 3


def test_a_contact_sheet_has_a_row_a_value(index: ShardIndex, tmp_path: Path) -> None:
    drawn = draw_sheets(index, tmp_path / "sheets", each=4)
    assert [path.name for path in drawn] == ["category.png", "sleeve.png", "colour.png"]
    again = draw_sheets(index, tmp_path / "again", each=4)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in drawn]
    with Image.open(drawn[0]) as sheet:
        assert sheet.height > 2 * 104
        red, *_ = np.asarray(sheet.convert("RGB"))[48 + 24 + 52, 6 + 52]
        assert red != 255  # a photo lies there


def test_more_values_than_a_sheet_can_show_go_on_further_ones(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "ROWS", 2)
    names = [path.name for path in draw_sheets(index, tmp_path, each=1)]
    assert names == ["category.png", "sleeve 1 of 2.png", "sleeve 2 of 2.png", "colour 1 of 2.png", "colour 2 of 2.png"]


def test_a_sheet_shows_grey_where_a_photo_is_bad_and_names_it_anyway(tmp_path: Path) -> None:
    path = contact_sheet(tmp_path, "a/b", {"red (1)": [("item", b"no photo")]})
    assert path.name == "a%2Fb.png"


def test_items_whose_names_differ_at_the_end_alone_look_different_on_a_sheet(tmp_path: Path) -> None:
    sheets = [
        contact_sheet(tmp_path, end, {"red (1)": [(f"wh06-purple-long_{end}", b"no photo")]}).read_bytes()
        for end in ("main", "back")
    ]
    main, back = [np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))[-20:] for sheet in sheets]  # below the title
    assert not np.array_equal(main, back)


def test_letters_that_the_font_lacks_are_drawn_as_their_nearest_or_not_at_all(tmp_path: Path) -> None:
    def body(name: str, item: str) -> np.ndarray:
        path = contact_sheet(tmp_path, "x", {name: [(item, b"no photo")]})
        return np.asarray(Image.open(path).convert("RGB"))

    for strange, plain in (("Lycra®", "Lycra"), ("crème", "creme"), ("cre\u0300me", "creme"), ("名 XXL", " XXL")):
        assert np.array_equal(body(strange, "a"), body(plain, "a")), strange
        assert np.array_equal(body("a", strange), body("a", plain)), strange


def test_a_thumbnail_is_small_and_keeps_its_shape() -> None:
    with Image.open(io.BytesIO(thumbnail(photo(1), 20))) as small:
        assert small.size == (16, 20)
