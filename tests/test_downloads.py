import csv
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time

import numpy as np
import pytest
from image_server import serving
from PIL import Image

from facetclip import fetching
from facetclip.addresses import allowed_hosts
from facetclip.catalog import read_catalog
from facetclip.checks import CheckSpec, check_catalog
from facetclip.cli import main
from facetclip.downloads import FetchSpec, download_all, downloaded, judged
from facetclip.errors import UserError
from facetclip.fetching import Patience
from facetclip.images import CODES, BadImage, encode_jpeg, packed_image
from facetclip.index import INDEX_NAME
from facetclip.lease import LEASE, Held, Lease
from facetclip.queues import Job, Queues
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_shards
from facetclip.slices import PARTS

SCHEMA = Schema.model_validate(
    {
        "columns": {"item": "sku", "product": "style", "image": "photo"},
        "attributes": {"sleeve": {"column": "sleeve", "values": ["long", "no"]}},
    }
)
HOSTILE = [
    "http://127.0.0.1/a.jpg",
    "http://localhost/a.jpg",
    "http://LOCALHOST./a.jpg",
    "http://shop.localhost/a.jpg",
    "http://10.0.0.1/a.jpg",
    "http://172.16.0.1/a.jpg",
    "https://192.168.1.1/a.jpg",
    "http://100.64.0.1/a.jpg",
    "http://169.254.169.254/latest/meta-data/",
    "http://2130706433/a.jpg",
    "http://0x7f000001/a.jpg",
    "http://0177.0.0.1/a.jpg",
    "http://127.1/a.jpg",
    "http://１２７.０.０.１/a.jpg",
    "http://127.0.0.1./a.jpg",
    "http://0.0.0.0/a.jpg",
    "http://224.0.0.1/a.jpg",
    "http://[::]/a.jpg",
    "http://[::1]/a.jpg",
    "http://[::ffff:127.0.0.1]/a.jpg",
    "http://[::ffff:a9fe:a9fe]/a.jpg",
    "http://[64:ff9b::7f00:1]/a.jpg",
    "http://[2002:7f00:1::]/a.jpg",
    "http://[fe80::1%25eth0]/a.jpg",
    "http://[fd00:ec2::254]/a.jpg",
    "http://[fec0::1]/a.jpg",
    "http://shop.example@127.0.0.1/a.jpg",
    "http://127.0.0.1\\@shop.example/a.jpg",
    "http://shop.example:22/a.jpg",
    "http://shop.example/a\r\nHost: x",
    "file:///etc/passwd",
    "gopher://127.0.0.1/a.jpg",
    "http://private.example/a.jpg",
    "http://mixed.example/a.jpg",
]
NAMES = {"private.example": ["10.1.2.3"], "mixed.example": ["93.184.215.14", "127.0.0.1"]}


@pytest.fixture
def server():
    with serving() as server:
        server.bodies["/photo"] = photo(0)
        server.bodies["/large"] = np.random.default_rng(0).bytes(5 << 20)
        yield server


def photo(number):
    pixels = np.random.default_rng(number).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return encode_jpeg(Image.fromarray(pixels).resize((90, 70)))


def spec_for(server, **changed):
    quick = Patience(connect=2, silence=1, whole=1.5, most_bytes=20 << 20)
    settings = {"allowed": allowed_hosts([server.at]), "spacing": 0, "backoff": 0.02, "patience": quick, "threads": 8}
    return FetchSpec(**(settings | changed))


def code_of(folder, url):
    with pytest.raises(BadImage) as caught:
        downloaded(folder, url)
    assert caught.value.code in CODES
    return caught.value.code


@pytest.fixture
def listener(server, monkeypatch):
    """Where every connection ends that is not to the server; how many there were."""
    hits, connect = [], socket.create_connection

    def watched(address, *args, **kwargs):
        if f"{address[0]}:{address[1]}" != server.at:
            hits.append(address)
            raise ConnectionRefusedError
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(fetching.socket, "create_connection", watched)
    return hits


@pytest.mark.parametrize("url", HOSTILE)
def test_f_no_hostile_url_reaches_anything_nor_does_a_redirect_to_it(server, listener, tmp_path, url):
    urls = [url, *([server.url(f"/to/{url}")] if "\r" not in url and url.isascii() else [])]
    download_all(
        urls, spec_for(server), tmp_path, names=lambda host, port: NAMES.get(host) or fetching.resolve(host, port)
    )
    assert listener == []
    assert {code_of(tmp_path, url) for url in urls} == {"url_refused"}


def test_f_an_allowed_host_does_not_open_its_other_ports(server, listener, tmp_path):
    port = int(server.at.split(":")[1])
    urls = [
        server.url("/to//photo"),
        f"http://127.0.0.1:{port + 1}/a",
        server.url(f"/to/http://127.0.0.1:{port + 1}/a"),
    ]
    download_all(urls, spec_for(server), tmp_path)
    assert downloaded(tmp_path, urls[0]) == photo(0)
    assert [code_of(tmp_path, url) for url in urls[1:]] == ["url_refused"] * 2
    assert listener == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/round/1", "url_refused"),
        ("/large/1", "too_many_bytes"),
        ("/endless/1", "too_many_bytes"),
        ("/gzip/1", "http_encoding"),
        ("/drip/1", "timeout"),
        ("/slow/1", "timeout"),
        ("/headers/1", "connection"),
        ("/missing/1", "http_status"),
        ("/broken/1", "http_status"),
    ],
)
def test_f_a_server_that_misbehaves_gets_a_reason_code_in_time(server, tmp_path, path, code):
    start = time.monotonic()
    download_all([server.url(path)], spec_for(server, attempts=1), tmp_path)
    assert time.monotonic() - start < 4
    assert code_of(tmp_path, server.url(path)) == code


def test_f_a_name_is_resolved_once_and_what_it_says_later_gains_nothing(server, listener, tmp_path):
    port = int(server.at.split(":")[1])
    asked = []

    def rebinding(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    server.bodies |= {f"/{number}": photo(number) for number in range(20)}
    urls = [f"http://shop.example:{port}/{number}" for number in range(20)]
    spec = spec_for(server, allowed=allowed_hosts([f"shop.example:{port}"]), threads=1)
    download_all([*urls, f"http://shop.example:{port}/dropped/1"], spec, tmp_path, names=rebinding)
    assert asked == ["shop.example"]
    assert listener == []
    assert downloaded(tmp_path, urls[7]) == photo(7)
    assert server.headers[0]["Host"] == f"shop.example:{port}"


def test_f_https_asks_the_pinned_address_for_the_named_host_and_checks_its_certificate(server, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=shop.example"]
    command += ["-addext", "subjectAltName=DNS:shop.example", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    port = int(server.at.split(":")[1])
    hosts = [f"shop.example:{port}", f"other.example:{port}"]
    good, wrong = (f"https://{host}/photo" for host in hosts)
    spec = spec_for(server, allowed=allowed_hosts(hosts))
    download_all([good], spec, tmp_path / "strange", names=lambda host, port: ["127.0.0.1"])
    assert code_of(tmp_path / "strange", good) == "connection"
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    download_all([good, wrong], spec, tmp_path / "known", names=lambda host, port: ["127.0.0.1"])
    assert downloaded(tmp_path / "known", good) == photo(0)
    assert code_of(tmp_path / "known", wrong) == "connection"
    assert server.hits == {"/photo": 1}


def test_a_dropped_connection_goes_on_where_it_ended(server, tmp_path):
    url = server.url("/dropped/1")
    download_all([url], spec_for(server), tmp_path)
    assert downloaded(tmp_path, url) == server.bodies["/large"]
    assert server.hits["/dropped/1"] == 3
    assert server.sent == len(server.bodies["/large"])
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file() and path.name != LEASE} == {""}


def test_a_version_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    url = server.url("/dropped/1")
    download_all([url], spec_for(server, attempts=1), tmp_path)
    assert code_of(tmp_path, url) == "connection"
    (tag,) = tmp_path.rglob("*.tag")
    tag.write_text('"v0"')
    download_all([url], spec_for(server), tmp_path)
    assert downloaded(tmp_path, url) == server.bodies["/large"]


def test_within_a_run_a_busy_server_is_asked_again_and_no_lasting_failure_is_the_next_run_asks_all(server, tmp_path):
    urls = [server.url(path) for path in ("/busy/1", "/missing", "/broken/1")]
    download_all(urls, spec_for(server, attempts=3), tmp_path)
    assert downloaded(tmp_path, urls[0]) == photo(0)
    assert server.hits == {"/busy/1": 2, "/missing": 1, "/broken/1": 3}
    download_all([*urls, *urls], spec_for(server, attempts=3), tmp_path)
    assert server.hits == {"/busy/1": 2, "/missing": 2, "/broken/1": 6}


def test_a_photo_that_came_after_a_404_is_fetched_by_the_next_run(server, tmp_path):
    url = server.url("/late.jpg")
    download_all([url], spec_for(server), tmp_path)
    assert code_of(tmp_path, url) == "http_status"
    server.bodies["/late.jpg"] = photo(1)
    download_all([url], spec_for(server), tmp_path)
    assert downloaded(tmp_path, url) == photo(1)


def test_the_advice_that_a_refusal_gives_helps_in_the_same_folder(server, tmp_path, capsys):
    shop(server, tmp_path)
    command = ["check", str(tmp_path / "shop.csv"), "--schema", str(tmp_path / "schema.toml"), "--max-bad", "0.1"]
    command += ["--images", str(tmp_path / "photos"), "--fetch-urls", "--downloads", str(tmp_path / "downloads")]
    assert main(command) == 1
    told = capsys.readouterr().out
    assert "url_refused: 29" in told
    assert f"(--allow-host {server.at} lets it in)" in told
    assert not server.hits
    assert main([*command, "--allow-host", server.at]) == 0
    assert "url_refused: 1" in capsys.readouterr().out


def test_a_host_is_asked_politely(server, tmp_path):
    server.bodies |= {f"/{number}": photo(number) for number in range(60)}
    server.slowness = 0.01
    urls = [server.url(f"/{number}") for number in range(60)]
    download_all([*urls, *urls], spec_for(server, per_host=3, threads=16, contact="a@shop.example"), tmp_path)
    assert server.most_running == 3
    assert server.connections == 3
    assert set(server.hits.values()) == {1}
    sent = server.headers[0]
    assert sent["User-Agent"].startswith("facetclip/")
    assert sent["User-Agent"].endswith(" (a@shop.example)")
    assert not {"Cookie", "Authorization", "Referer"} & set(sent)


def test_requests_are_spaced_and_wait_out_a_pause_while_other_hosts_go_on():
    queues = Queues(per_host=2, spacing=1.0)
    for number in range(4):
        queues.put(Job(f"a{number}", "", "a"))
    queues.put(Job("b0", "", "b"))

    def url(now):
        job, _ = queues.take(now)
        return job and job.url

    assert {url(0.0), url(0.0)} == {"a0", "b0"}
    assert queues.take(0.5) == (None, 0.5)
    assert url(1.0) == "a1"
    assert queues.take(5.0) == (None, None)  # two are running
    queues.pause("a", 30.0)
    queues.done("a")
    assert queues.take(6.0) == (None, 24.0)
    queues.put(Job("b1", "", "b"), not_before=7.0)
    queues.done("b")
    assert queues.take(6.0) == (None, 1.0)
    assert url(7.0) == "b1"
    assert url(30.0) == "a2"


def test_the_limit_of_bytes_stops_with_a_word_and_a_higher_one_goes_on(server, tmp_path):
    server.bodies |= {f"/{number}": photo(number) for number in range(20)}
    urls = [server.url(f"/{number}") for number in range(20)]
    with pytest.raises(UserError, match="most-download"):
        download_all(urls, spec_for(server, most_bytes=5 * len(photo(0)), threads=1), tmp_path)
    assert 4 <= sum(server.hits.values()) <= 8
    download_all(urls, spec_for(server), tmp_path)
    assert set(server.hits.values()) == {1}


def test_no_password_or_signature_of_a_url_is_in_a_message(server, tmp_path):
    urls = [server.url("/gone?sig=CANARY"), "http://me:CANARY@shop.example/a.jpg", "http://[CANARY@x/a?b=CANARY"]
    download_all([*urls, server.url("/to/file:///a?CANARY")], spec_for(server), tmp_path)
    for url in urls:
        with pytest.raises(BadImage) as caught:
            downloaded(tmp_path, url)
        assert "CANARY" not in str(caught.value)


def test_a_full_disk_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        download_all([server.url("/photo")], spec_for(server), tmp_path / "file" / "downloads")


def shop(server, folder, count=30):
    """A catalog of URLs, with a path, a page that is gone and a hostile URL among them."""
    server.bodies |= {f"/{number}.jpg": photo(number) for number in range(count)}
    (folder / "photos").mkdir(exist_ok=True)
    (folder / "photos" / "own.jpg").write_bytes(photo(99))
    cells = [server.url(f"/{number}.jpg") for number in range(count)]
    cells[3:6] = ["own.jpg", server.url("/gone.jpg"), "http://169.254.169.254/"]
    with (folder / "shop.csv").open("w", newline="") as file:
        rows = [[f"i{n}", f"p{n}", cell, "long" if n % 2 else "no"] for n, cell in enumerate(cells)]
        csv.writer(file).writerows([["sku", "style", "photo", "sleeve"], *rows])
    (folder / "schema.toml").write_text(SCHEMA_TOML)
    return read_catalog(str(folder / "shop.csv"))


SCHEMA_TOML = """
[columns]
item = "sku"
product = "style"
image = "photo"
[attributes.sleeve]
column = "sleeve"
values = ["long", "no"]
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_urls_and_paths_are_sharded_alike_and_check_agrees(server, tmp_path):
    catalog, fetch = shop(server, tmp_path), spec_for(server, folder=tmp_path / "downloads")
    given = {"images": tmp_path / "photos", "max_bad": 0.2}
    checked = check_catalog(catalog, SCHEMA, CheckSpec(**given, fetch=fetch))
    found = {problem.row: problem.code for problem in checked.problems if problem.column == "photo"}
    assert found == {6: "http_status", 7: "url_refused"}
    asked = server.hits.total()
    report = build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "a", **given, fetch=fetch))
    assert server.hits.total() == asked + 1, "the page that was gone"
    assert report.bad == {"http_status": 1, "url_refused": 1}
    assert report.samples == 28
    build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "b", **given, fetch=spec_for(server)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not (tmp_path / "b" / PARTS).exists()
    hits = server.hits.total()
    build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "b", **given, fetch=spec_for(server)))
    assert server.hits.total() == hits


def test_urls_are_refused_unless_asked_for(server, tmp_path, capsys):
    catalog = shop(server, tmp_path)
    checked = check_catalog(catalog, SCHEMA, CheckSpec(images=tmp_path / "photos"))
    assert sum(problem.code == "url" and "--fetch-urls" in problem.message for problem in checked.problems) == 29
    with pytest.raises(UserError, match="--fetch-urls"):
        build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "out"))
    common = [str(tmp_path / "shop.csv"), "--schema", str(tmp_path / "schema.toml")]
    for more, words in (
        (["--downloads", "x"], "--downloads needs --fetch-urls"),
        (["--fetch-urls", "--per-host", "0"], "--per-host: expected at least 1"),
        (["--fetch-urls", "--spacing", "nan"], "--spacing"),
        (["--fetch-urls", "--allow-host", "http://x"], "--allow-host"),
        (["--fetch-urls", "--contact", "a\r\nCookie: b"], "--contact"),
    ):
        assert main(["shard", *common, "--out", str(tmp_path / "out"), *more]) == 2
        assert words in capsys.readouterr().err
    assert main(["check", *common, "--fetch-urls"]) == 2
    assert not server.hits


def test_outer_blanks_of_a_url_are_nobodys(server, tmp_path):
    catalog = shop(server, tmp_path)
    path = tmp_path / "shop.csv"
    path.write_text(path.read_text().replace("http://", " http://").replace(".jpg,", ".jpg ,"))
    fetch = spec_for(server, folder=tmp_path / "downloads")
    given = {"images": tmp_path / "photos", "max_bad": 0.2, "fetch": fetch}
    spaced = read_catalog(str(path))
    assert spaced.column("photo") != catalog.column("photo")
    checked = check_catalog(spaced, SCHEMA, CheckSpec(**given))
    found = {problem.row: problem.code for problem in checked.problems if problem.column == "photo"}
    assert found == {6: "http_status", 7: "url_refused"}
    assert build_shards(spaced, SCHEMA, ShardSpec(tmp_path / "out", **given)).samples == 28


def test_what_failed_is_asked_for_again_by_the_same_command(server, tmp_path):
    catalog, fetch = shop(server, tmp_path), spec_for(server, attempts=1)
    spec = ShardSpec(tmp_path / "out", tmp_path / "photos", max_bad=0.2, fetch=fetch)
    server.bodies, kept = {}, server.bodies
    with pytest.raises(UserError, match="http_status"):
        build_shards(catalog, SCHEMA, spec)
    server.bodies = kept
    assert build_shards(catalog, SCHEMA, spec).samples == 28


def test_a_body_that_is_no_image_is_asked_for_again_by_the_next_run(server, tmp_path):
    catalog, fetch = shop(server, tmp_path), spec_for(server, folder=tmp_path / "downloads")
    given = {"images": tmp_path / "photos", "max_bad": 0.2, "fetch": fetch}
    server.bodies |= {f"/{number}.jpg": b"<html>busy</html>" for number in (7, 8, 9)}
    found = [problem.code for problem in check_catalog(catalog, SCHEMA, CheckSpec(**given)).problems]
    assert found.count("not_an_image") == 3
    server.bodies["/7.jpg"] = photo(7)
    report = build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "out", **given))
    assert (report.samples, report.bad["not_an_image"]) == (26, 2)
    server.bodies["/8.jpg"] = photo(8)
    report = build_shards(catalog, SCHEMA, ShardSpec(tmp_path / "out", **given, update=True))
    assert (report.samples, report.bad["not_an_image"]) == (27, 1)
    hits = [server.hits[f"/{number}.jpg"] for number in (6, 7, 8, 9)]
    assert hits == [1, 2, 3, 3], "what is good is not asked for again"


def test_a_bad_body_that_two_rows_name_is_the_same_to_both(server, tmp_path):
    server.bodies["/page"] = b"<html>busy</html>"
    url = server.url("/page")
    download_all([url], spec_for(server), tmp_path)
    for _ in range(2):
        with pytest.raises(BadImage, match="not_an_image"):
            judged(tmp_path, url, lambda content: packed_image(content, None, 8))


def test_two_processes_do_not_fetch_into_one_folder_at_once(server, tmp_path):
    lease = Lease(tmp_path / LEASE, "is fetching into this folder")
    with pytest.raises(Held, match="is fetching into this folder; wait"):
        download_all([server.url("/photo")], spec_for(server), tmp_path)
    lease.release()
    download_all([server.url("/photo")], spec_for(server), tmp_path)
    lease = Lease(tmp_path / LEASE, "is fetching into this folder")
    download_all([server.url("/photo")], spec_for(server), tmp_path)  # nothing is left to fetch
    lease.release()


def test_after_a_kill_nothing_that_is_had_is_asked_for_twice(server, tmp_path):
    shop(server, tmp_path)
    command = [
        sys.executable,
        "-c",
        "import sys; from facetclip.cli import main; sys.exit(main(sys.argv[1:]))",
        "shard",
    ]
    command += [
        str(tmp_path / "shop.csv"),
        "--schema",
        str(tmp_path / "schema.toml"),
        "--images",
        str(tmp_path / "photos"),
    ]
    command += ["--out", str(tmp_path / "out"), "--max-bad", "0.2", "--workers", "1"]
    command += ["--fetch-urls", "--per-host", "1", "--allow-host", server.at]
    killed = subprocess.run(
        command, env=os.environ | {"FACETCLIP_FAULT": "downloads.after_file:9"}, capture_output=True
    )
    assert killed.returncode == -9
    before = server.hits.total()
    assert 9 <= before <= 10
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / INDEX_NAME).exists()
    assert max(hits for path, hits in server.hits.items() if path != "/gone.jpg") == 1
