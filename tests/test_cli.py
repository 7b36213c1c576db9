"""The console command: one door, clear refusals, exit codes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_shop import make_shards

from facetclip.cli import VERBS, main

RUN = """
data.shards = "{shards}"
model.start = "starter"
train = {{ steps = 2, batch = 4 }}
output.folder = "{out}"
"""
SCHEMA = """
[columns]
item = "id"
product = "style"
image = "image"
[attributes.lid]
column = "lid"
values = ["yes", "no"]
"""


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.toml"
    path.write_text(SCHEMA)
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says as it exits with code 2: one line, no traceback."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"facetclip {verb}" in capsys.readouterr().out


def test_an_unknown_verb_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "shrad")
    assert "no verb 'shrad'" in said
    assert "shard" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-bad", "nan"], "argument --max-bad: expected a share from 0 to 1"),
        (["--max-bad", "2"], "such as 0.9 for 9 in 10, found '2'"),
        (["--resize", "big"], "argument --resize: invalid int value: 'big'"),
        (["--resise", "64"], "unrecognized arguments: --resise 64"),
    ],
)
def test_a_word_that_cannot_be_read_is_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["shard", "shop.csv", "--schema", "shop.toml", "--out", str(out), *words]) == 2
    refused = capsys.readouterr().err
    assert told in refused
    assert refused.endswith("; facetclip shard --help lists what it takes\n")
    assert refused.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "review queue --out page.html --most -1",
            "argument --most: expected a whole number of at least 1, found '-1'",
        ),
        ("audit shards --out queue --most 0", "argument --most: expected a whole number of at least 1, found '0'"),
        ("audit shards --out queue --most ten", "argument --most: expected a whole number of at least 1, found 'ten'"),
        ("audit shards --out queue --seed -1", "argument --seed: expected a whole number of at least 0, found '-1'"),
        ("render --kind cookware --items 3 --out shop --evenness nan", "--evenness nan: expected 0 to 1000"),
        ("render --kind cookware --items 3 --out shop --evenness inf", "--evenness inf: expected 0 to 1000"),
        ("shard s --schema s --out o --fetch-urls --most-download inf", "--most-download: expected at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, *line.split())


@pytest.mark.parametrize(
    "line", ["fill scores shop.csv --schema s.toml --out f.csv --precision 95", "promote shop --shards s --margin 5"]
)
def test_a_share_given_in_percent_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "expected a share from 0 to 1" in capsys.readouterr().err


def test_a_file_where_a_folder_is_to_be_is_one_line(
    schema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = tmp_path / "shop.csv"
    catalog.write_text("id,style,image,lid\n1,a,1.jpg,yes\n")
    assert main(["shard", str(catalog), "--schema", schema, "--images", str(tmp_path), "--out", str(catalog)]) == 2
    assert capsys.readouterr().err == f"facetclip shard: {catalog}: Not a directory; give another path\n"


@pytest.mark.parametrize(
    "line",
    [
        "shard https://me:s3cret@host/shop.csv --schema shop.toml --out out",
        "train https://me:s3cret@host/run.toml",
    ],
)
def test_a_refusal_never_repeats_a_password(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "s3cret" not in refused(capsys, *line.split())


@pytest.mark.parametrize("verb", ["shard", "check", "schema", "inspect", "sync"])
def test_a_path_that_is_too_long_is_one_line(
    verb: str, schema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = tmp_path / "shop.csv"
    catalog.write_text("id,style,image,lid\n1,a,1.jpg,yes\n")
    long = str(tmp_path / ("x" * 300))
    words = {
        "shard": (str(catalog), "--schema", schema, "--images", str(tmp_path), "--out", long),
        "check": (str(catalog), "--schema", schema, "--images", str(tmp_path), "--out", f"{long}/found.csv"),
        "schema": (str(catalog), "--out", long),
    }
    said = refused(capsys, verb, *words.get(verb, (long,)))
    assert "File name too long" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_path_that_cannot_be_used_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: str, **_: object) -> None:
        raise OSError(number, os.strerror(number), "out/index.parquet")

    monkeypatch.setattr("facetclip.data_commands.open_index", fail)
    expected = f"facetclip inspect: out/index.parquet: {os.strerror(number)}; give another path\n"
    assert refused(capsys, "inspect", "out") == expected


def test_an_error_that_is_of_no_path_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, **_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "out/index.parquet")

    monkeypatch.setattr("facetclip.data_commands.open_index", fail)
    with pytest.raises(OSError, match="out/index"):
        main(["inspect", "out"])


def test_a_misspelt_key_of_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.toml"
    run.write_text(RUN.format(shards=tmp_path, out=tmp_path / "out").replace("steps", "stpes"))
    assert "run.toml: train: unknown key 'stpes'; did you mean 'steps'?" in refused(capsys, "train", str(run))


def test_a_run_that_could_not_begin_is_not_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(shards=tmp_path / "none", out=tmp_path / "run"))
    for _ in range(2):
        assert main(["train", str(path)]) == 2
        assert "none: no index.parquet" in capsys.readouterr().err


def test_a_run_whose_model_could_not_be_registered_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path / "shards", 24, validation=True)
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(shards=tmp_path / "shards", out=tmp_path / "run") + 'tracking.register_as = "shop"\n')
    monkeypatch.setattr("facetclip.answering.ERROR", "colour")
    assert "an attribute called 'colour' cannot be served" in refused(capsys, "train", str(path))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_misspelt_key_of_a_schema_is_one_line(
    tmp_path: Path, schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = tmp_path / "shop.csv"
    catalog.write_text("id,style,image,lid\n1,a,1.jpg,yes\n")
    Path(schema).write_text(SCHEMA.replace("values", "valeus"))
    said = refused(capsys, "check", str(catalog), "--schema", schema, "--images", str(tmp_path))
    assert "schema.toml: attributes.lid: unknown key 'valeus'; did you mean 'values'?" in said


@pytest.mark.parametrize("name", ["shop.csv", "schema.toml"])
def test_the_problems_do_not_overwrite_what_is_checked(
    name: str, tmp_path: Path, schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shop.csv").write_text("id,style,image,lid\n1,a,1.jpg,yes\n")
    before = (tmp_path / name).read_text()
    words = ("--schema", schema, "--images", str(tmp_path), "--out", str(tmp_path / name))
    assert "is what is checked; name another file" in refused(capsys, "check", str(tmp_path / "shop.csv"), *words)
    assert (tmp_path / name).read_text() == before


@pytest.mark.parametrize("verb", ["check", "shard"])
def test_a_missing_column_root_or_row_is_one_line(
    verb: str, tmp_path: Path, schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog, out = tmp_path / "shop.csv", ("--out", str(tmp_path / "out"))
    words = (verb, str(catalog), "--schema", schema, *out)
    catalog.write_text("id,style,image,lit\n1,a,1.jpg,yes\n")
    assert "no column 'lid'" in refused(capsys, *words, "--images", str(tmp_path))
    catalog.write_text("id,style,image,lid\n1,a,1.jpg,yes\n")
    assert "none: expected the folder of the images" in refused(capsys, *words, "--images", str(tmp_path / "none"))
    catalog.write_text("id,style,image,lid\n")
    assert "shop.csv: 0 rows" in refused(capsys, *words, "--images", str(tmp_path))
    catalog.unlink()
    assert "no such catalog" in refused(capsys, *words, "--images", str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_wrong_model_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shards(tmp_path / "shards", 12)
    words = ("--shards", str(tmp_path / "shards"), "--out", str(tmp_path / "out"))
    for verb in ("evaluate", "extract"):
        assert "expected a folder, a hub id" in refused(capsys, verb, "no/such/model", *words)
    assert not (tmp_path / "out").exists()


def test_a_schema_that_was_edited_is_never_overwritten(
    tmp_path: Path, schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = tmp_path / "shop.csv"
    catalog.write_text("id,style,image,lid\n1,a,1.jpg,yes\n")
    assert "exists already" in refused(capsys, "schema", str(catalog), "--out", schema)
    assert Path(schema).read_text() == SCHEMA


def test_a_script_and_its_verb_are_the_same_door() -> None:
    script = Path(__file__).parents[1] / "data_prep" / "check_catalog.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "facetclip check" in done.stdout


def test_a_process_tells_the_mistake_that_it_alone_meets_and_leaves_the_others_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = make_shards(tmp_path / "shards", 12)
    words = ("evaluate", "starter", "--shards", str(index.folder), "--out", str(tmp_path / "out"))
    shard = index.folder / index.shards[0].name
    shard.write_bytes(bytes(shard.stat().st_size))
    monkeypatch.setenv("RANK", "3")
    assert refused(capsys, *words).startswith(f"facetclip evaluate: process 3: {shard}, offset ")
    shard.unlink()
    assert refused(capsys, *words) == ""
    monkeypatch.setenv("RANK", "0")
    assert refused(capsys, *words).startswith(f"facetclip evaluate: {shard}: cannot be read")
