import os

import pyarrow as pa
import pytest
from small_shop import photo

from facetclip import references
from facetclip.catalog import Catalog
from facetclip.errors import UserError
from facetclip.images import BadImage
from facetclip.references import image_of, load, not_embedded, require_way, resolve

JPEG = photo(0)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "b c.jpg").write_bytes(JPEG)
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (tmp_path / "images" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    (tmp_path / "images" / "in.jpg").symlink_to(tmp_path / "images" / "a" / "b c.jpg")
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("../secret.jpg", "outside_root"),
        ("a/../../secret.jpg", "outside_root"),
        ("..\\secret.jpg", "outside_root"),
        ("/etc/passwd", "outside_root"),
        ("\\\\host\\share.jpg", "outside_root"),
        ("C:\\photos\\a.jpg", "outside_root"),
        ("out.jpg", "outside_root"),
        ("up/secret.jpg", "outside_root"),
        ("a\0b.jpg", "outside_root"),
        ("https://shop.example/a.jpg", "url"),
        ("file:///etc/passwd", "url"),
        ("data:image/png;base64,AAAA", "url"),
        ("a/missing.jpg", "not_found"),
        ("a", "not_found"),
        ("pipe.jpg", "not_found"),
        ("x" * 5000, "not_found"),
        (".", "not_found"),
        ("", "no_reference"),
        ("  ", "no_reference"),
        (None, "no_reference"),
    ],
)
def test_nothing_outside_the_image_root_is_ever_opened(root, reference, code):
    with pytest.raises(BadImage) as refused:
        load(root, reference)
    assert refused.value.code == code


def test_files_and_links_inside_the_root_are_read(root):
    assert load(root, "a/b c.jpg") == load(root, "in.jpg") == JPEG
    assert resolve(root, "in.jpg") == resolve(root, "a/b c.jpg")


def test_a_file_too_long_to_read_is_refused_unread(root, monkeypatch):
    monkeypatch.setattr(references, "MOST_BYTES", 100)
    with pytest.raises(BadImage, match="too_many_bytes"):
        load(root, "a/b c.jpg")


def test_a_file_or_a_folder_without_permission_is_unreadable_not_absent(root, monkeypatch):
    asked = os.stat

    def locked(path, *args, **kwargs):
        if os.fspath(path).endswith(f"a{os.sep}locked.jpg"):
            raise PermissionError(13, "Permission denied")
        return asked(path, *args, **kwargs)

    monkeypatch.setattr(references.os, "stat", locked)
    with pytest.raises(BadImage, match="Permission denied") as refused:
        load(root, "a/locked.jpg")
    assert refused.value.code == "unreadable"
    with pytest.raises(BadImage, match="not_found"):
        load(root, "a/other.jpg")


@pytest.mark.parametrize("blank", [" ", "\t", "\n", "\u00a0"])
def test_outer_blanks_of_a_cell_are_nobodys(blank):
    assert image_of(f"{blank}https://shop.example/a.jpg{blank}") == "https://shop.example/a.jpg"
    assert image_of(f"{blank}a/b c.jpg") == "a/b c.jpg"
    assert image_of(b" \xff ") == b" \xff "


def told(cells, *, fetches):
    with pytest.raises(UserError) as refused:
        require_way(Catalog("shop.csv", pa.table({"photo": cells}), 2), "photo", fetches=fetches)
    return str(refused.value)


def test_a_catalog_of_urls_alone_is_told_how_they_are_fetched():
    urls = ["https://shop.example/a.jpg", " http://shop.example/b.jpg ", None]
    assert told(urls, fetches=True) == "shop.csv: column 'photo' holds URLs; --fetch-urls fetches them"
    assert told(urls, fetches=False).endswith("holds URLs; shard it with --fetch-urls, then give --shards instead")
    for cells in ([*urls, "c.jpg"], ["", None]):
        assert told(cells, fetches=True).endswith(
            "holds paths; give --images, their folder, or --fetch-urls where they are URLs"
        )
        assert told(cells, fetches=False).endswith("holds paths; give --images, their folder")
    require_way(Catalog("shop", pa.table({"photo": [b"", None]}), 1), "photo", fetches=True)


def test_a_row_that_embeds_no_image_is_told_what_it_names_and_what_reads_it():
    assert not_embedded(None).message == "the catalog embeds no image for this row"
    assert (
        not_embedded("a/5.jpg").message == "the catalog names 'a/5.jpg' but embeds no image; give --images, its folder"
    )
    secret = not_embedded("https://me:CANARY@shop.example/a.jpg?CANARY").message
    assert "--fetch-urls" in secret
    assert "CANARY" not in secret
