"""What MLflow serves: the code beside the model folder in every registered version (models-from-code, never a pickle).

A request has a column `image`: base64 of a photo, or, where FACETCLIP_IMAGE_ROOT is set, a path under it. The answer
has for each attribute `<attribute>` and `<attribute>_probability`, and `error`, why a photo could not be read.
"""

import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from facetclip.answering import ERROR, PROBABILITY, answer_columns
from facetclip.extract import not_applicable
from facetclip.images import CODES, MOST_BYTES, BadImage, verdict
from facetclip.model import AttributeReader, load_model
from facetclip.references import load
from facetclip.schema import UNLABELLED
from facetclip.scores import score_rows

CLIP = "clip"  # the model folder's name among the artifacts
ROOT = "FACETCLIP_IMAGE_ROOT"
LONGEST_TEXT = 4 * MOST_BYTES // 3 + 4  # characters of base64 of the largest image that is read
MOST_TEXT = 50_000_000  # characters of all cells of a request: what comes after them is refused, row by row


class RequestPhotos:
    """The photos of one request, by row."""

    def __init__(self, cells: Sequence[Any], root: Path | None) -> None:
        self.cells, self.root = cells, root
        self.ends = np.cumsum([len(cell) if isinstance(cell, str) else 0 for cell in cells])

    def item_id(self, row: int) -> str:
        """The number of the row; requests bring no ids."""
        return str(row)

    def read(self, row: int) -> bytes:
        """The bytes of one photo; BadImage for a URL, for what is no image, and for a path where none may be read."""
        cell = self.cells[row]
        if not isinstance(cell, str) or not cell.strip():
            raise BadImage("no_reference", "the cell is empty; expected base64 of a photo")
        if "://" in cell[:20] or cell[:5].lower() == "data:":
            raise BadImage("url", "URLs are not fetched; send base64 of the photo")
        if self.ends[row] > MOST_TEXT:
            raise BadImage(
                "too_many_bytes", f"the request has over {MOST_TEXT:,} characters up to here; send fewer photos"
            )
        if len(cell) > LONGEST_TEXT:
            raise BadImage("too_many_bytes", f"{len(cell):,} characters; at most {MOST_BYTES:,} bytes are read")
        image = decoded(cell)
        if image is not None:
            return image
        if self.root is None:
            raise BadImage("not_an_image", f"expected base64 of a photo (paths are read only where {ROOT} is set)")
        try:
            return load(self.root, cell)
        except BadImage as bad:  # whose message names the root, which is nobody's business who asks
            raise BadImage(bad.code, CODES[bad.code]) from bad


def decoded(cell: str) -> bytes | None:
    """The image that base64 text stands for, however damaged; None where it stands for no image, as a path does."""
    try:
        content = base64.b64decode("".join(cell.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    bad = verdict(content)
    return None if bad and bad.code in ("not_an_image", "empty") else content


def answers(reader: AttributeReader, photos: RequestPhotos) -> dict[str, list[Any]]:
    """Column -> one answer for each photo: the most probable value and its probability.

    None where the photo has an `error`, and where by the schema's rules the attribute does not apply to what was read.
    """
    count = len(photos.cells)
    scores = score_rows(reader, photos, np.arange(count), skip_bad=True)
    silent = np.full(len(scores.rows), UNLABELLED)
    excluded = not_applicable(reader.schema, dict.fromkeys(reader.schema.names, silent), scores.predicted())
    columns: dict[str, list[Any]] = {}
    for name, attribute in reader.schema.attributes.items():
        values = columns[name] = [None] * count
        certainties = columns[name + PROBABILITY] = [None] * count
        for place in np.flatnonzero(~excluded[name]):
            probabilities, row = scores.probabilities[name][place], scores.rows[place]
            values[row], certainties[row] = attribute.values[probabilities.argmax()], float(probabilities.max())
    columns[ERROR] = [str(scores.bad[row]) if row in scores.bad else None for row in range(count)]
    return columns


class AttributeModel(PythonModel):
    """Photos in, values out."""

    reader: AttributeReader

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder that lies beside this file."""
        self.reader = load_model(context.artifacts[CLIP])
        answer_columns(self.reader.schema.names)  # refuses names that its answers have otherwise

    def predict(self, model_input: pandas.DataFrame, params: dict | None = None) -> pandas.DataFrame:  # type: ignore[override]  # MLflow lets `context` be left out
        """One row of answers for each row of `model_input`."""
        root = os.environ.get(ROOT)
        photos = RequestPhotos(model_input["image"].tolist(), Path(root) if root else None)
        # As objects: a column of text or numbers would turn None into NaN, which is no JSON.
        return pandas.DataFrame(answers(self.reader, photos), index=model_input.index, dtype=object)


set_model(AttributeModel())
