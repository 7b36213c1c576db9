"""`facetclip export`: a model as one ONNX file, photos in, probabilities out, for where there is no PyTorch.

The text tower is not in it: what it says of the value prompts is, as numbers. So the file reads one schema, with the
calibration of the model; rules of applicability and what a product's photos say together are left to whoever uses it.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facetclip.calibration import Calibration
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.model import AttributeReader
from facetclip.scores import reader_digest

NAME = "model.onnx"  # beside the model card
INPUT = "pixels"
_OUTPUT = "answer {}"  # until it is named; no value inside has a blank in its name
LIBRARIES = ("onnx", "onnxscript")
OPSET = 20
MOST_BYTES = 2_000_000_000  # that a file of this format can hold


class _Probabilities(nn.Module):
    """uint8 pixels [n, 3, size, size] -> for each attribute, in schema order, float32 probabilities [n, values]."""

    rows: Tensor  # [values of all attributes, d]

    def __init__(self, reader: AttributeReader) -> None:
        super().__init__()
        self.reader = reader
        attributes = reader.schema.attributes
        self.calibrations = [reader.calibration.get(name, Calibration()) for name in attributes]
        rows = reader.embed_prompts() if reader.classifier is None else reader.classifier
        self.register_buffer("rows", rows.detach())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """As `facetclip.calibration.probabilities` of the reader's logits."""
        told = []
        logits = self.reader.logits(self.reader.embed_images(pixels), self.rows)
        for each, calibration, multi in zip(logits, self.calibrations, self.reader.multi_valued, strict=True):
            scaled = each / calibration.temperature
            seen = torch.sigmoid(scaled) if multi else torch.softmax(scaled, dim=1)
            chance = calibration.noise / (2 if multi else each.shape[1])
            told.append((1 - calibration.noise) * seen + chance)
        return tuple(told)


@torch.no_grad()
def export_onnx(reader: AttributeReader, path: Path) -> Path:
    """Write `reader` to `path`: from `pixels`, uint8 [n, 3, size, size], an output [n, values] named as each attribute.

    The file says in its metadata what the values are and how a photo becomes pixels. UserError without the libraries,
    and where an attribute is called as the input.
    """
    if INPUT in reader.schema.names:
        raise UserError(f"an attribute called {INPUT!r} cannot be told from the photos in an ONNX file; rename it")
    _require_libraries()
    reader = reader.to("cpu").eval()
    size = reader.preprocessing.size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    loud = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own workings
            program: Any = torch.onnx.export(
                _Probabilities(reader).eval(),
                (example,),
                input_names=[INPUT],
                output_names=[_OUTPUT.format(place) for place in range(len(reader.schema.names))],
                dynamic_shapes={INPUT: {0: torch.export.Dim("photos", min=1)}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(loud)
    proto = program.model_proto
    _rename_outputs(proto.graph, reader.schema.names)
    for key, value in _facts(reader).items():
        proto.metadata_props.add(key=key, value=value)
    if (count := proto.ByteSize()) > MOST_BYTES:
        raise UserError(f"{path}: an ONNX file holds at most {MOST_BYTES:,} bytes, this model has {count:,}")
    write_whole(path, proto.SerializeToString())
    return path


def _rename_outputs(graph: Any, names: Sequence[str]) -> None:
    """Call the outputs `names`; what is called so inside, a step named `softmax` perhaps, gets another name."""
    new = {name: f"{name} inside" for name in names}
    new |= {_OUTPUT.format(place): name for place, name in enumerate(names)}
    for node in graph.node:
        for listed in (node.input, node.output):
            listed[:] = [new.get(name, name) for name in listed]
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)


def _facts(reader: AttributeReader) -> dict[str, str]:
    """What the file says of itself."""
    values = {name: list(attribute.values) for name, attribute in reader.schema.attributes.items()}
    return {
        "facetclip.values": json.dumps(values, ensure_ascii=False),
        "facetclip.size": str(reader.preprocessing.size),
        "facetclip.fit": reader.preprocessing.fit,
        "facetclip.digest": reader_digest(reader),
    }


def _require_libraries() -> None:
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"ONNX files need {name}: pip install 'facetclip[onnx]'") from error
