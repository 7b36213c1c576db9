import json
import pickle
import signal
import threading
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from flaky_server import serving
from s3_server import meet, s3_server
from small_shop import make_labels, make_shards, photo
from test_cache import ended, fork

from facetclip import remote as remote_module
from facetclip.cache import CacheSpec
from facetclip.errors import OwnMistake, UserError
from facetclip.index import INDEX_NAME, open_index
from facetclip.store import CachedShards, cache_spec, is_url, open_store

ITEMS, SHARDS = 24, 4


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch, tmp_path):
    monkeypatch.setattr(remote_module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote_module, "CHUNK", 1500)
    monkeypatch.setenv("FACETCLIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shop"), ITEMS, shards=SHARDS).folder


@pytest.fixture
def server(shop):
    with serving(shop) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(shop):
    """The shop in a real S3 server's bucket."""
    with s3_server() as (address, client):
        for path in shop.iterdir():
            client.upload_file(str(path), "shop", f"shards/{path.name}")
        yield address


def place_of(kind: str, shop: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if kind == "s3":
        meet(request.getfixturevalue("bucket"), monkeypatch)
        return "s3://shop/shards"
    if kind == "http":
        return request.getfixturevalue("server").url
    if kind == "memory":
        memory = fsspec.filesystem("memory")
        for path in shop.iterdir():
            memory.pipe_file(f"/shop/{path.name}", path.read_bytes())
        return "memory://shop/"
    return f"file://{shop}"


@pytest.mark.parametrize("kind", ["file", "memory", "http", "s3"])
def test_shards_anywhere_read_as_in_a_folder(kind, shop, request, monkeypatch, tmp_path):
    index, local = open_index(place_of(kind, shop, request, monkeypatch)), open_index(shop)
    assert [index.read(row) for row in range(ITEMS)] == [photo(row) for row in range(ITEMS)]
    assert (index.digest, index.shards, index.size) == (local.digest, local.shards, local.size)
    for name, labels in make_labels(ITEMS).items():
        assert (index.labels[name] == labels).all()
    kept = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert kept == {shard.sha256 for shard in index.shards}
    again = pickle.loads(pickle.dumps(index))
    assert again.read(3) == photo(3)


def test_a_cut_connection_is_gone_on_with_where_it_broke(server, monkeypatch):
    monkeypatch.setattr(remote_module, "CHUNK", 3000)
    index = open_index(server.url)
    size = index.shards[0].bytes
    assert size > 6000
    server.cuts, server.asked, server.sent = 3, [], 0
    assert index.read(0) == photo(0)
    starts = [first for name, first in server.asked if name == "shard-000000.tar"]
    assert Counter(starts)[0] <= 4
    assert starts == sorted(starts), "nothing that had come whole is asked for again"
    assert server.sent <= size + 3 * 1500


def test_a_server_without_ranges_is_read_in_one_go(server, monkeypatch):
    monkeypatch.setattr(remote_module, "CHUNK", 3000)
    server.ranges, server.cuts = False, 1
    index = open_index(server.url)
    assert [index.read(row) for row in range(ITEMS)] == [photo(row) for row in range(ITEMS)]
    assert {first for _, first in server.asked} == {0}


def test_a_wrong_hash_is_named_with_shard_and_url_and_nothing_is_kept(server, tmp_path):
    index = open_index(f"{server.url}/?token=canary7")
    server.lies = {"shard-000001.tar"}
    assert index.read(0) == photo(0)
    with pytest.raises(OwnMistake, match=r"http://127.*/shard-000001\.tar.*6 tries: expected sha256 \w{12}") as caught:
        index.read(7)
    assert "canary7" not in str(caught.value)
    shard = index.shards[1]
    assert not (tmp_path / "cache" / f"{shard.sha256}.tar").exists()
    assert (tmp_path / "cache" / f"{shard.sha256}.tar.{shard.bytes}.part").stat().st_size == 0
    server.lies = set()
    assert index.read(7) == photo(7)


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(server):
    index = open_index(server.url)
    server.statuses = [503, 500, 429]
    assert index.read(0) == photo(0)
    server.asked.clear()
    for status, words in ((404, "not found"), (403, "access is denied")):
        server.statuses = [status]
        with pytest.raises(OwnMistake, match=rf"/shard-000001\.tar: {words}"):
            index.read(7)
        assert server.statuses == []
    assert server.asked == []


def test_a_server_that_is_busy_when_the_index_is_opened_is_asked_again(server):
    server.statuses = [503, 503, 500]
    assert open_index(server.url).read(0) == photo(0)


def test_a_place_without_an_index_is_named(shop, tmp_path):
    with pytest.raises(UserError, match=r"file:///.*/index\.parquet: not found"):
        open_index(f"file://{tmp_path}")
    with pytest.raises(UserError, match=r"nothing://x: cannot be read here: .*nothing"):
        open_index("nothing://x")
    with pytest.raises(UserError, match=r"gs://shop/x: cannot be read here: .*gcsfs"):
        open_index("gs://shop/x")
    with pytest.raises(UserError, match=r"ftp://127\.0\.0\.1:9/x: cannot be reached: .*refused"):
        open_index("ftp://127.0.0.1:9/x")


def test_an_address_that_nobody_listens_at_is_given_up():
    with pytest.raises(UserError, match=r"could not be read in 6 tries: Cannot connect"):
        open_index("http://127.0.0.1:1/shop")


def test_secrets_in_an_address_are_in_no_message(server):
    place = f"{server.url}/?X-Amz-Signature=canary7&x=1".replace("http://", "http://me:canary8@")
    index = open_index(place)
    server.statuses = [404]
    with pytest.raises(UserError, match="not found") as caught:
        index.read(7)
    shown = f"{caught.value} {index.store} {index!r} {index.name}"
    assert "canary" not in shown
    assert "X-Amz-Signature=***&x=1" in shown


def test_the_index_is_fetched_anew_when_it_changed_and_only_then(tmp_path, monkeypatch):
    make_shards(tmp_path / "shop", 8)
    with serving(tmp_path / "shop") as server:

        def fetched():
            return sum(name == INDEX_NAME for name, _ in server.asked)

        first = open_index(server.url)
        before = fetched()
        assert open_index(server.url).digest == first.digest
        assert fetched() == before
        make_shards(tmp_path / "shop", 10)
        assert len(open_index(server.url)) == 10
        assert (len(first), len(first.splits), len(first.item_ids)) == (8, 8, 8), "an open one stays what it was"
        server.stamped = False
        assert len(open_index(server.url)) == 10
        make_shards(tmp_path / "shop", 12)
        assert len(open_index(server.url)) == 12


def test_an_index_in_which_another_took_the_place_is_not_reopened(tmp_path):
    make_shards(tmp_path / "shop", 8)
    index = open_index(f"file://{tmp_path / 'shop'}")
    travelling = pickle.dumps(index)
    make_shards(tmp_path / "shop", 10)
    with pytest.raises(UserError, match="another index has taken the place"):
        pickle.loads(travelling)


def test_a_damaged_index_is_refused(tmp_path):
    index = make_shards(tmp_path / "shop", 8)
    path = tmp_path / "shop" / INDEX_NAME
    table = pq.read_table(path)
    place = table.schema.get_field_index("checksum")
    pq.write_table(table.set_column(place, "checksum", table.column("checksum").take([0] * 8)), path)
    with pytest.raises(UserError, match="does not have the digest that it names"):
        open_index(f"file://{tmp_path / 'shop'}")
    path.write_text("<html>Please log in</html>")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_index(f"file://{tmp_path / 'shop'}")
    assert index.size == 8


@pytest.mark.parametrize(
    ("fact", "value", "words"),
    [
        ("name", "../secret", "no plain file name"),
        ("name", "/etc/passwd", "no plain file name"),
        ("sha256", "../../x", "no sha256 of"),
        ("sha256", "", "no sha256 of"),
        ("bytes", -1, "no sha256 of"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(fact, value, words, tmp_path):
    folder = make_shards(tmp_path / "shop", 8).folder
    table = pq.read_table(folder / INDEX_NAME)
    shards = json.loads(table.schema.metadata[b"shards"])
    shards[0][fact] = value
    pq.write_table(
        table.replace_schema_metadata(table.schema.metadata | {b"shards": json.dumps(shards)}), folder / INDEX_NAME
    )
    for place in [f"file://{folder}", *([folder] if fact == "name" else [])]:
        with pytest.raises(UserError, match=words):
            open_index(place)


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_copy_damaged_in_the_cache_is_fetched_again(damage, shop, tmp_path):
    index = open_index(f"file://{shop}")
    assert index.read(0) == photo(0)
    path = tmp_path / "cache" / f"{index.shards[0].sha256}.tar"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content if damage == "changed" else content[:50])
    assert index.read(0) == photo(0)


def test_a_process_killed_in_a_download_is_followed_by_one_that_goes_on(server, monkeypatch, tmp_path):
    spec = CacheSpec(tmp_path / "cache")
    monkeypatch.setenv("FACETCLIP_FAULT", "remote.chunk:4")  # the index takes two

    def work():
        open_index(server.url, spec).read(0)

    assert ended(fork(work)) == -signal.SIGKILL
    monkeypatch.setenv("FACETCLIP_FAULT", "cache.before_rename:1")
    assert ended(fork(work)) == -signal.SIGKILL
    monkeypatch.delenv("FACETCLIP_FAULT")
    server.asked.clear()
    index = open_index(server.url, spec)
    assert [index.read(row) for row in range(ITEMS)] == [photo(row) for row in range(ITEMS)]
    assert not list(spec.folder.glob("*.part"))


def test_a_prefetch_that_is_told_to_stop_stops_between_chunks(server):
    index = open_index(server.url)
    stop = threading.Event()
    stop.set()
    store = index.store
    assert isinstance(store, CachedShards)
    with pytest.raises(remote_module.Stopped):
        store.prefetch(index.shards[2], stop)
    assert len([name for name, _ in server.asked if name == "shard-000002.tar"]) == 1


def test_the_cache_is_where_the_run_file_or_the_environment_says(monkeypatch, tmp_path):
    assert cache_spec() == CacheSpec(tmp_path / "cache", None)
    assert cache_spec("here", 5) == CacheSpec(Path("here"), 5)
    monkeypatch.setenv("FACETCLIP_CACHE_BYTES", "1_000")
    assert cache_spec().limit == 1000
    monkeypatch.setenv("FACETCLIP_CACHE_BYTES", "many")
    with pytest.raises(UserError, match="FACETCLIP_CACHE_BYTES: expected a number of bytes, found 'many'"):
        cache_spec()
    monkeypatch.delenv("FACETCLIP_CACHE")
    monkeypatch.delenv("FACETCLIP_CACHE_BYTES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_spec().folder == tmp_path / "facetclip" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_spec().folder == Path.home() / ".cache" / "facetclip" / "shards"


def test_a_folder_is_no_address(tmp_path):
    assert not is_url(tmp_path / "a:b")
    assert not is_url("shards")
    assert is_url("hf://datasets/shop/shards")
    assert str(open_store(tmp_path, None, lambda _: None)) == str(tmp_path)
