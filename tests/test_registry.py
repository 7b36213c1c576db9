"""A model folder goes into the registry and comes out again, and what was filed serves on its own."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_shop import SCHEMA, make_reader

from facetclip import tracking
from facetclip.errors import UserError
from facetclip.model import load_model, save_model
from facetclip.registry import DIGEST_TAG, EXAMPLE, aliases, register, resolve_model
from facetclip.scores import reader_digest
from facetclip.tracking import connector

# Loads a registered version with nothing but what it brings and what its requirements name, pickles denied.
SERVE = """
import json, sys
absent = ("accelerate", "datasets", "webdataset", "matplotlib", "jinja2", "rapidfuzz", "rich", "deepspeed")
sys.modules.update(dict.fromkeys(absent))
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
import facetclip
assert facetclip.__file__.startswith(sys.argv[1]), facetclip.__file__
rows = model.predict(pandas.DataFrame({"image": [sys.argv[2], "https://shop/a.jpg"]}))
print(rows.to_json(orient="records"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reader = make_reader()
    card = replace(reader.card, data_digest="abc", metrics={"validation_loss": 0.5, "step": 40})
    return save_model(reader, tmp_path_factory.mktemp("run") / "model", card=card)


def test_a_registered_model_is_found_again_by_alias_and_by_version(store: str, folder: Path) -> None:
    assert register(folder, name="shop") == "1"
    assert register(folder, name="shop") == "2"
    client = connector(store)()
    assert aliases(client, "shop") == {"challenger": "2"}
    for source in ("models:/shop@challenger", "models:/shop/1"):
        found = Path(resolve_model(source))
        assert (found / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert load_model(str(found)).schema == SCHEMA
    tags = client.get_model_version("shop", "1").tags
    assert tags[DIGEST_TAG] == reader_digest(load_model(str(folder)))
    assert (tags["facetclip.data_digest"], tags["facetclip.validation_loss"]) == ("abc", "0.5")


def test_a_version_belongs_to_its_run(store: str, folder: Path) -> None:
    client = connector(store)()
    run = client.create_run(client.create_experiment("shops"))
    version = register(folder, name="shop", run_id=run.info.run_id)
    assert client.get_model_version("shop", version).run_id == run.info.run_id
    assert len(client.get_run(run.info.run_id).outputs.model_outputs) == 1


def test_what_is_filed_serves_on_its_own_and_holds_no_pickle(
    store: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(folder, name="shop")
    place = Path(resolve_model("models:/shop/1")).parents[1]
    assert not [path for path in place.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt")]
    requirements = (place / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert not list(place.rglob("starter"))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    words = [sys.executable, "-I", "-c", SERVE, str(place), EXAMPLE]
    served = subprocess.run(words, capture_output=True, text=True, check=False)
    assert served.returncode == 0, served.stderr
    good, url = json.loads(served.stdout.splitlines()[-1])
    assert good["category"] in ("shirt", "pants")
    assert 0.5 <= good["category_probability"] <= 1
    assert good["error"] is None
    assert url["category"] is None
    assert url["error"].endswith("(url)")


def test_the_signature_names_every_answer(store: str, folder: Path) -> None:
    from mlflow.models import Model

    register(folder, name="shop")
    signature = Model.load(str(Path(resolve_model("models:/shop/1")).parents[1])).signature
    assert signature is not None
    assert signature.inputs.input_names() == ["image"]
    expected = [column for name in SCHEMA.names for column in (name, f"{name}_probability")]
    assert signature.outputs.input_names() == [*expected, "error"]


def test_registering_without_mlflow_is_one_line_and_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    assert register(folder, name="shop") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not registered as 'shop'" in line
    assert "secret" not in line


@pytest.mark.parametrize("uri", ["sqlite+nothing:///shop.db", "mysql+nothing://me:secret@127.0.0.1/x", "http://[bad"])
def test_a_store_that_cannot_be_used_ends_no_training_and_is_one_line(
    uri: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setitem(tracking.DEFAULT_PORTS, "mysql", server.getsockname()[1])
        assert register(folder, name="shop") is None
        with pytest.raises(UserError, match="MLflow at"):
            resolve_model("models:/shop@champion")
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not registered as 'shop'" in line
    assert "secret" not in line


def test_other_sources_are_left_alone() -> None:
    for source in ("starter", "openai/clip-vit-base-patch32", "runs/demo/model"):
        assert resolve_model(source) == source


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("models:/shop", "expected models:/NAME@ALIAS"),
        ("models:/shop/best", "expected models:/NAME@ALIAS"),
        ("models:/nothing@champion", "nothing"),
        ("models:/shop@champion", "the aliases are: challenger"),
        ("models:/shop/7", "models:/shop/7"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(store: str, folder: Path, source: str, complaint: str) -> None:
    register(folder, name="shop")
    with pytest.raises(UserError, match=complaint) as caught:
        resolve_model(source)
    assert "\n" not in str(caught.value)


def test_a_registry_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    with pytest.raises(UserError, match="cannot be reached") as caught:
        resolve_model("models:/shop@champion")
    assert "secret" not in str(caught.value)
