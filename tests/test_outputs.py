"""Results at a URL: as in a folder, each item once, however often it was interrupted."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from s3_server import meet, s3_server
from small_shop import SCHEMA, make_reader, make_shards
from test_extract import PART, Launched, make_catalog

from facetclip import extract as extraction
from facetclip import faults
from facetclip import remote as remote_module
from facetclip.abstention import Cutoff
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.extract import FromShards, extract
from facetclip.filling import FillSpec, fill
from facetclip.model import save_model
from facetclip.outputs import LocalFolder, Output, open_output
from facetclip.remote import Absent, RemoteFolder

KINDS = ["folder", "file", "memory", "renamed", "s3"]


class Killed(BaseException):
    """What `kill -9` does to a process, as near as one process can come."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_processes", lambda: Launched(0, 1))
    monkeypatch.setattr(remote_module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as (address, _):
        yield address


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A new, empty place of a kind."""

    def make(kind: str) -> str:
        if kind == "s3":
            meet(request.getfixturevalue("bucket"), monkeypatch)
            return f"s3://shop/{tmp_path.name}/scores"
        if kind == "renamed":  # as where a file is seen before it is whole
            monkeypatch.setattr(remote_module, "_WHOLE", set())
        memory = fsspec.filesystem("memory")
        if memory.exists("/out"):
            memory.rm("/out", recursive=True)
        places = {"folder": f"{tmp_path}/scores", "file": f"file://{tmp_path}/scores"}
        return places.get(kind, "memory://out/scores")

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A forked child cannot use its parent's threads. Other tests compare bits, which their number may change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> FromShards:
    return FromShards(make_shards(tmp_path_factory.mktemp("shards")).folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    reader = make_reader()
    low = {name: (Cutoff(0.95, 0.0),) for name in SCHEMA.names}
    save_model(reader, folder, card=replace(reader.card, start="starter", cutoffs=low))
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: FromShards, model: str) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("finished") / "scores"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "_processes", lambda: Launched(0, 1))
        extract(model, shards, out, part_size=PART)
    return content(open_output(out))


def content(output: Output) -> dict[str, bytes]:
    return {name: output.read(name) for name in output.names()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_keeps_whole_files(kind: str, place: Callable[[str], str]) -> None:
    output = open_output(place(kind))
    assert isinstance(output, LocalFolder if kind in ("folder", "file") else RemoteFolder)
    assert output.names() == []
    assert not output.exists("a.txt")
    with pytest.raises(Absent, match=r"a\.txt: not found"):
        output.read("a.txt")
    for words in (b"first", b"the second, which is longer", b"3"):
        output.write("a.txt", words)
        assert (output.read("a.txt"), output.read("a.txt", 2), output.names()) == (words, words[-2:], ["a.txt"])
    assert output.exists("a.txt")
    assert output.spot("a.txt").endswith("scores/a.txt")
    output.remove("a.txt")
    output.remove("a.txt")
    assert output.names() == []


@pytest.mark.parametrize("kind", KINDS[1:])
def test_scores_anywhere_are_those_of_a_folder(kind, place, shards, model, finished) -> None:
    where = place(kind)
    done = extract(model, shards, where, part_size=PART)
    assert done is not None
    assert (done.items, done.parts, done.reused, str(done.out)) == (22, 5, 0, where.removeprefix("file://"))
    assert content(open_output(where)) == finished
    again = extract(model, shards, where, part_size=PART)
    assert again is not None
    assert again.reused == 5
    with pytest.raises(UserError, match=r"scores/manifest\.json: answers another request \(other part_size\)"):
        extract(model, shards, where, part_size=PART + 1)
    assert content(open_output(where)) == finished


@pytest.mark.parametrize("kind", ["renamed", "s3"])
def test_killed_between_any_two_steps_it_goes_on_to_the_same_bytes(kind, place, shards, model, monkeypatch) -> None:
    where, half, steps, due = place(kind), 11, [0], [0]

    def deadly(at: str) -> None:
        if at.startswith(("remote.", "extract.")):
            steps[0] += 1
            due[0] -= 1
            if due[0] == 0:
                raise Killed

    monkeypatch.setattr(faults, "reach", deadly)
    extract(model, shards, f"{where}/whole", part_size=half)
    whole, count = content(open_output(f"{where}/whole")), steps[0]
    assert (len(whole), count) == (3, 9 if kind == "renamed" else 6)
    for step in range(1, count + 1):
        due[0] = step
        out = f"{where}/{step}"
        with pytest.raises(Killed):
            extract(model, shards, out, part_size=half)
        assert "manifest.json" not in open_output(out).names()
        assert extract(model, shards, out, part_size=half) is not None
        assert content(open_output(out)) == whole


def test_a_process_killed_for_real_while_it_writes_to_s3_is_gone_on_with(
    place, shards, model, finished, monkeypatch, one_thread
) -> None:
    where = place("s3")
    for fault, parts in (("remote.before_put:3", 2), ("extract.after_part:2", 4), ("extract.before_manifest:1", 5)):
        monkeypatch.setenv("FACETCLIP_FAULT", fault)
        child = os.fork()
        if child == 0:
            try:
                faults._reached.clear()
                extract(model, shards, where, part_size=PART)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        assert open_output(where).names() == [f"part-{number:06d}.parquet" for number in range(parts)]
    monkeypatch.delenv("FACETCLIP_FAULT")
    done = extract(model, shards, where, part_size=PART)
    assert done is not None
    assert done.reused == 5
    assert list(content(open_output(where))) == list(finished)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_part_damaged_at_a_url_is_read_again(damage, place, shards, model, finished) -> None:
    where = place("memory")
    extract(model, shards, where, part_size=PART)
    output, name = open_output(where), "part-000002.parquet"
    whole = bytearray(finished[name])
    whole[len(whole) // 4] ^= 0xFF
    if damage == "gone":
        output.remove(name)
    else:
        output.write(name, bytes(whole) if damage == "flip" else finished[name][:-9])
    done = extract(model, shards, where, part_size=PART)
    assert done is not None
    assert done.reused == 4
    assert content(output) == finished


def test_scores_and_the_filled_catalog_go_to_s3(place, model, tmp_path, capsys) -> None:
    source, where = make_catalog(tmp_path / "shop", missing=(3,)), place("s3")
    words = ["--catalog", source.catalog, "--schema", str(source.schema), "--images", str(source.images)]
    assert main(["extract", model, *words, "--out", where, "--max-bad", "0.1"]) == 0
    assert f"{where}: 21 items in 1 part; 1 unreadable, see {where}/quarantine.csv" in capsys.readouterr().out
    assert b"item 3,not_found" in open_output(where).read("quarantine.csv")
    above = where.removesuffix("/scores")
    words = ["fill", where, source.catalog, "--schema", str(source.schema), "--precision", "0.2"]
    for ending in ("csv", "parquet"):
        assert main([*words, "--out", f"{above}/filled.{ending}"]) == 0
    out = open_output(above)
    rows = list(csv.DictReader(io.StringIO(out.read("filled.csv").decode())))
    parquet = pq.read_table(io.BytesIO(out.read("filled.parquet"))).to_pylist()
    assert [row["category"] or None for row in parquet] == [row["category"] or None for row in rows]
    filled = [row for row in rows if row["category_source"] == "photo"]
    assert filled
    assert all(0 < float(row["category_confidence"]) <= 1 for row in filled)
    assert main([*words, "--out", f"{above}/filled.csv"]) == 2
    assert "filled.csv is there already; name another file" in capsys.readouterr().err


def test_scores_that_changed_after_their_manifest_are_not_filled_from(place, model, tmp_path) -> None:
    source, where = make_catalog(tmp_path / "shop"), place("memory")
    extract(model, source, where, part_size=PART)
    output = open_output(where)
    output.write("part-000001.parquet", output.read("part-000002.parquet"))
    with pytest.raises(UserError, match=r"part-000001\.parquet: is not what manifest\.json says"):
        fill(where, source.catalog, source.schema, tmp_path / "filled.csv", FillSpec())


@pytest.mark.parametrize("kind", ["folder", "renamed"])
def test_what_a_killed_fill_left_is_cleared_by_the_next(kind, place, model, tmp_path, monkeypatch) -> None:
    source, where = make_catalog(tmp_path / "shop"), place(kind)
    extract(model, source, where, part_size=PART)
    out = f"{where.removesuffix('/scores')}/filled"
    others = ["filled.csv.bak.tmp", "more filled.csv.0123abcd.tmp"]
    for name in others:
        open_output(out).write(name, b"of somebody else")

    def deadly(at: str) -> None:
        if at == "remote.before_rename":
            raise Killed

    if kind == "folder":
        (tmp_path / "filled" / ".filled.csv.0123abcd.tmp").write_bytes(b"half a fi")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(faults, "reach", deadly)
            with pytest.raises(Killed):
                fill(where, source.catalog, source.schema, f"{out}/filled.csv", FillSpec())
    assert len(open_output(out).names()) == 3
    fill(where, source.catalog, source.schema, f"{out}/filled.csv", FillSpec())
    assert open_output(out).names() == sorted(["filled.csv", *others])


def test_places_that_cannot_be_written_to_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="nothing can be written over the web"):
        open_output("https://shop.example/scores?token=canary7")
    with pytest.raises(UserError, match="cannot be read here"):
        open_output("nothing://x")


def test_a_store_that_refuses_is_named_and_one_that_stumbles_is_asked_again(place, monkeypatch) -> None:
    output = open_output(place("memory"))
    system = fsspec.filesystem("memory")
    put, answers = system.pipe_file, [OSError("busy"), OSError("busy"), None]

    def stumbling(path: str, data: bytes) -> None:
        if answers and (error := answers.pop(0)) is not None:
            raise error
        put(path, data)

    monkeypatch.setattr(system, "pipe_file", stumbling)
    output.write("a.txt", b"here")
    assert (output.read("a.txt"), answers) == (b"here", [])
    answers[:] = [PermissionError("no")]
    with pytest.raises(UserError, match=r"memory://out/scores/b\.txt: access is denied"):
        output.write("b.txt", b"here")
    answers[:] = [OSError("busy")] * 99
    with pytest.raises(UserError, match=r"b\.txt: could not be written in 6 tries: busy"):
        output.write("b.txt", b"here")
