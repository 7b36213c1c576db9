"""The registry of models in MLflow: file a trained model, find one again."""

import atexit
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from facetclip.answering import answer_columns
from facetclip.errors import UserError, first_line, redacted
from facetclip.model import AttributeReader, load_model
from facetclip.report_page import FILES
from facetclip.schema import Schema
from facetclip.scores import reader_digest
from facetclip.spool import MOST_POINTS, RunRecord
from facetclip.tracking import connector, metric_name, say, tracking_uri, unreachable

CHALLENGER = "challenger"
DIGEST_TAG = "facetclip.digest"
PACKAGE = Path(__file__).parent
CLIP = "clip"  # the model folder's name among the artifacts, as pyfunc_model.py knows it
NOT_SERVED = ("starter", "__pycache__")  # what the copy of this package beside a registered model goes without
SERVED_WITH = (  # what the code in a registered model imports
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow"),
    *("pydantic", "pillow", "simplejpeg", "fsspec", "aiohttp"),
)
EXAMPLE = (  # a red disc on white, 16 x 16 pixels
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAMAAAAoLQ9TAAAABlBMVEXIKCj////MVeAQAAAALUlEQVR42mNgRAMMOAQYgABJgAEKYAIMDEgi2A"
    "QYGJBFyBMgbAumwzCdjte3AE2QAJEPSb88AAAAAElFTkSuQmCC"
)


def register(model_folder: Path, *, name: str, run_id: str | None = None) -> str | None:
    """File a model folder as a new version of `name`, with the alias `challenger`; returns the version.

    What is filed serves on its own: safetensors, the code that reads them, pinned requirements, signature and example.
    None, and one line of warning, when that cannot be done: a training must not end badly for it.
    """
    reader = load_model(str(model_folder))
    try:
        return _register(connect_registry(), model_folder, reader, name, run_id)
    except Exception as error:  # whatever it is, the training has ended well
        say(f"{model_folder} is not registered as {name!r}: {first_line(error)}")
        return None


def _register(client: Any, folder: Path, reader: AttributeReader, name: str, run_id: str | None) -> str:
    experiment = client.get_run(run_id).info.experiment_id if run_id else "0"
    logged = client.create_logged_model(
        experiment, name=metric_name(name), source_run_id=run_id, model_type="facetclip"
    )
    with tempfile.TemporaryDirectory(prefix="facetclip-") as scratch:
        place = Path(scratch) / "model"
        _save_pyfunc(place, folder, reader.schema, logged)
        client.log_model_artifacts(logged.model_id, str(place))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {DIGEST_TAG: reader_digest(reader), "facetclip.data_digest": str(reader.card.data_digest)}
    tags |= {f"facetclip.{metric_name(key)}": str(value) for key, value in reader.card.metrics.items()}
    source = f"models:/{logged.model_id}"
    version = client.create_model_version(name, source, run_id=run_id, tags=tags, model_id=logged.model_id).version
    client.set_registered_model_alias(name, CHALLENGER, version)
    return str(version)


def _save_pyfunc(place: Path, folder: Path, schema: Schema, logged: Any) -> None:
    """The MLflow model in `place`: models-from-code over the safetensors of `folder`, with our package beside it."""
    code = place.with_name(PACKAGE.name)
    import pandas
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    shutil.copytree(PACKAGE, code, ignore=shutil.ignore_patterns(*NOT_SERVED))
    save_model(
        str(place),
        mlflow_model=Model(
            artifact_path=logged.artifact_location, model_id=logged.model_id, run_id=logged.source_run_id
        ),
        python_model=str(code / "pyfunc_model.py"),
        artifacts={CLIP: str(folder)},
        code_paths=[str(code)],
        signature=_signature(schema),
        input_example=pandas.DataFrame({"image": [EXAMPLE]}),
        pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in ("mlflow", *SERVED_WITH)],
    )


def _signature(schema: Schema) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec
    from mlflow.types import Schema as Columns

    columns, kinds = answer_columns(schema.names), [*("string", "double") * len(schema.names), "string"]
    answers: list[Any] = [ColSpec(kind, name, required=False) for name, kind in zip(columns, kinds, strict=True)]
    return ModelSignature(inputs=Columns([ColSpec("string", "image")]), outputs=Columns(answers))


def resolve_model(source: str) -> str:
    """The local model folder of `models:/NAME@ALIAS` or `models:/NAME/VERSION`; any other source as it is.

    What has to be downloaded is deleted when this process ends. UserError where there is no such version.
    """
    if not source.startswith("models:/"):
        return source
    name, version = version_of(source)
    return model_folder(connect_registry(), name, version)


def pinned(source: str) -> str:
    """`models:/NAME/VERSION` of what an alias stands for now; any other source as it is."""
    return "models:/{}/{}".format(*version_of(source)) if source.startswith("models:/") else source


def version_of(source: str) -> tuple[str, str]:
    """Name and version of `models:/NAME@ALIAS` or `models:/NAME/VERSION`; UserError where there is no such version."""
    rest = source.removeprefix("models:/")
    at = rest.rfind("@")
    name, found = (rest[:at], rest[at + 1 :]) if at > 0 else (rest.rpartition("/")[0], rest.rpartition("/")[2])
    if not name or not found or (at < 0 and not found.isdigit()):
        raise UserError(
            f"model {source!r}: expected models:/NAME@ALIAS, such as models:/shop@champion, or models:/NAME/3"
        )
    if at < 0:
        return name, found
    client = connect_registry()
    version = aliases(client, name).get(found)
    if version is None:
        known = ", ".join(sorted(aliases(client, name))) or "none"
        raise UserError(f"model {source!r}: no version of {name!r} has the alias {found!r}; the aliases are: {known}")
    return name, version


def file_evaluation(source: str, split: str, numbers: Mapping[str, float], report: Path) -> str | None:
    """Log an evaluation of the model `source` to the MLflow run that trained it; returns that run.

    The numbers become the metrics evaluation/SPLIT/... (validation/... are the training's own), the files of the
    folder `report` artifacts under evaluation/SPLIT. None where no run is known, and with a line of warning where
    MLflow cannot be used.
    """
    try:
        run_id = _run_of(source)
        if run_id is None:
            return None
        client, now = connect_registry(), int(time.time() * 1000)
        from mlflow.entities import Metric

        points = [Metric(metric_name(f"evaluation/{split}/{name}"), number, now, 0) for name, number in numbers.items()]
        with told(f"run {run_id} of {tracking_uri()}"):
            for first in range(0, len(points), MOST_POINTS):
                client.log_batch(run_id, metrics=points[first : first + MOST_POINTS])
            for name in FILES:
                client.log_artifact(run_id, str(report / name), artifact_path=f"evaluation/{split}")
    except UserError as error:
        say(f"the evaluation is in {report}, but not in MLflow: {error}")
        return None
    return run_id


def _run_of(source: str) -> str | None:
    """The MLflow run that a registered version or the model of a run folder came from, where it is known here."""
    if source.startswith("models:/"):
        client, (name, version) = connect_registry(), version_of(source)
        with told(source):
            return client.get_model_version(name, version).run_id or None
    if not Path(source).is_dir():  # `starter`, or a hub id: in a run folder it would count as that run's
        return None
    record = RunRecord.read(Path(source).resolve().parent)
    return record.run_id if record is not None and record.uri == redacted(tracking_uri()) else None


def connect_registry() -> Any:
    """A client of the registry; UserError, within seconds, where it cannot be reached."""
    uri = tracking_uri()
    if problem := unreachable(uri):
        raise UserError(f"MLflow at {redacted(uri)} cannot be reached ({problem}); see MLFLOW_TRACKING_URI")
    connect = connector(uri)
    try:
        return connect()
    except Exception as error:  # a driver of a database raises what it likes, where it is there at all
        raise UserError(f"MLflow at {redacted(uri)} cannot be used: {first_line(error)}") from error


def _mlflow_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when it, its server or its disk is at fault."""
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError)


@contextmanager
def told(what: str) -> Iterator[None]:
    """What MLflow raises inside becomes a UserError about `what`."""
    try:
        yield
    except _mlflow_errors() as error:
        raise UserError(f"{redacted(what)}: {first_line(error)}") from error


def aliases(client: Any, name: str) -> dict[str, str]:
    """Alias -> version of a registered model; UserError where there is none of that name."""
    with told(f"registered model {name!r} at {tracking_uri()}"):
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def model_folder(client: Any, name: str, version: str) -> str:
    """The model folder inside a registered version, as a local path."""
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    with told(f"models:/{name}/{version}"):
        uri = client.get_model_version_download_uri(name, version)
        place = uri.removeprefix("file://")
        if not Path(place).is_dir():
            scratch = tempfile.mkdtemp(prefix="facetclip-")
            atexit.register(shutil.rmtree, scratch, ignore_errors=True)
            place = download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=tracking_uri())
        artifacts = Model.load(place).flavors.get("python_function", {}).get("artifacts", {})
    if CLIP not in artifacts:
        raise UserError(f"models:/{name}/{version}: no model of facetclip; expected one that a training registered")
    return str(Path(place) / artifacts[CLIP]["path"])
