"""Photos in, probabilities out: what is measured, what is validated and what is shipped are read here, the same way."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from facetclip.batches import ahead, decoding_threads
from facetclip.calibration import Calibration, probabilities
from facetclip.errors import OwnMistake, UserError
from facetclip.images import BadImage
from facetclip.index import ShardIndex
from facetclip.model import STARTER, AttributeReader, ModelCard, load_model
from facetclip.rules import apply_rules
from facetclip.schema import NOT_APPLICABLE, Attribute, Schema
from facetclip.squares import square_planes

BATCH = 64
AT_ONCE = 8  # photos that a decoding thread is given at a time


class Photos(Protocol):
    """Images by row: a `ShardIndex`, or a catalog with an image root."""

    def read(self, row: int) -> bytes:
        """The bytes of one image; BadImage when there are none."""
        ...

    def item_id(self, row: int) -> str:
        """The catalog's id of one row."""
        ...


@dataclass(frozen=True)
class Scores:
    """For each item and attribute a probability for every value.

    `probabilities`: attribute -> float32 [n, values], in the order of `rows` [n] and `item_ids`. `bad`: the rows that
    were asked for and have no scores, with the reason.
    """

    rows: np.ndarray
    item_ids: list[str]
    schema: Schema
    probabilities: dict[str, np.ndarray]
    bad: dict[int, BadImage]

    def predicted(self) -> dict[str, np.ndarray]:
        """Attribute -> int64 [n]: the number of the most probable value."""
        return {name: scores.argmax(axis=1) for name, scores in self.probabilities.items()}

    def of(self, name: str, attribute: Attribute) -> np.ndarray:
        """float32 [n, values] in the order of `attribute`, which is what the data has under `name`: 0 for a value that
        the model does not know, and none for those that it alone knows."""
        own, read = self.schema.attributes[name].values, self.probabilities[name]
        if own == attribute.values:
            return read
        unknown = np.zeros(len(read), read.dtype)
        return np.stack([read[:, own.index(each)] if each in own else unknown for each in attribute.values], axis=1)

    def at(self, places: np.ndarray) -> "Scores":
        """Those of the items at some places."""
        probabilities = {name: scores[places] for name, scores in self.probabilities.items()}
        ids = [self.item_ids[place] for place in places.tolist()]
        return Scores(self.rows[places], ids, self.schema, probabilities, {})


def reader_for(source: str, schema: Schema, *, some: bool = False, name: str | None = None) -> AttributeReader:
    """The model in `source`, which messages call `name`, reading the attributes of `schema`.

    A fine-tuned model reads by its own prompts; its attributes and values must be those of `schema`, in their order, or
    with `some` share some with it (see `Scores.of`), or it is a UserError. A model that was never fine-tuned (a plain
    CLIP, the starter) reads `schema` zero-shot.
    """
    card = ModelCard.from_folder(STARTER if source == "starter" else Path(source))
    differs = _nothing_shared if some else _difference
    difference = differs(card.schema, schema) if card.schema else "no schema"
    if not difference:
        return load_model(source)
    if card.schema is None or card.start is None:
        return load_model(source, schema)
    advice = "; use data of the model's schema, or train a model on this data (facetclip promote compares with it)"
    raise UserError(f"model {name or source!r} reads {difference}{'' if some else advice}")


def _difference(model: Schema, data: Schema) -> str | None:
    """How what a model reads differs from what the data lists; None when it does not."""
    if model.names != data.names:
        return f"the attributes {', '.join(model.names)}, the data lists {', '.join(data.names)}"
    return next((told for name in model.names if (told := _other_values(name, model, data))), None)


def _nothing_shared(model: Schema, data: Schema) -> str | None:
    """Why a model cannot be asked for what the data lists, not even in part; None when it can."""
    shared = [name for name in model.names if name in data.names]
    for name in shared:
        (own, several), (listed, any_number) = model.meanings[name], data.meanings[name]
        if several != any_number or not set(own) & set(listed):
            return _other_values(name, model, data)
    return None if shared else _difference(model, data)


def _other_values(name: str, model: Schema, data: Schema) -> str | None:
    if model.meanings[name] == data.meanings[name]:
        return None
    return f"{name} as {_listed(*model.meanings[name])}, the data lists {_listed(*data.meanings[name])}"


def _listed(values: tuple[str, ...], several: bool) -> str:
    return f"{'several' if several else 'one'} of {', '.join(values)}"


def reader_digest(reader: AttributeReader) -> str:
    """sha256 over all that decides what a reader answers: weights, shape, prompts, preprocessing, schema, calibration.

    It does not depend on how the model's files are written.
    """
    towers = [reader.clip.config.text_config, reader.clip.config.vision_config]
    shape = [
        getattr(tower, name) for tower in towers for name in ("num_attention_heads", "hidden_act", "layer_norm_eps")
    ]
    facts = (reader.preprocessing, shape, sorted((name, astuple(each)) for name, each in reader.calibration.items()))
    total = hashlib.sha256(f"{reader.schema.to_json()}\0{facts}".encode())
    prompts = {"reading_ids": reader.reading_ids, "reading_values": reader.reading_values}
    for name, tensor in sorted({**reader.state_dict(), **prompts}.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        total.update(f"\0{name}\0{array.dtype}\0{array.shape}\0".encode())
        total.update(array.data)
    return total.hexdigest()


def score_rows(
    reader: AttributeReader,
    photos: Photos,
    rows: np.ndarray,
    *,
    batch_size: int = BATCH,
    skip_bad: bool = False,
) -> Scores:
    """Score `rows` on the reader's device, with images decoded by threads ahead of it.

    An image that cannot be read is an OwnMistake naming the item, or with `skip_bad` lands in `Scores.bad`. Batches are
    cut from `rows` alone, so the same rows give the same numbers.
    """
    rows = np.asarray(rows, dtype=np.int64)
    bad: dict[int, BadImage] = {}
    portions = iter([rows[start : start + batch_size] for start in range(0, len(rows), batch_size)])
    if isinstance(photos, ShardIndex):
        portions = photos.coming(portions, lambda portion: portion)
    was_training = reader.training
    if was_training:
        reader.eval()
    try:
        with ThreadPoolExecutor(decoding_threads(), thread_name_prefix="decode") as pool:
            prepare = partial(_squares, reader, photos, pool, bad)
            batches = [_probabilities(reader, pixels) for pixels in ahead(prepare, portions)]
    finally:
        if was_training:
            reader.train()
    for row, reason in bad.items():
        if not skip_bad:
            raise OwnMistake(f"item {photos.item_id(row)!r}: its image cannot be read: {reason}")
    return _joined(reader, photos, rows, batches, bad)


def _squares(
    reader: AttributeReader, photos: Photos, pool: ThreadPoolExecutor, bad: dict[int, BadImage], rows: np.ndarray
) -> Tensor:
    """uint8 [n, 3, size, size]; black where the image is bad, so that bad images do not change the batches."""
    size = reader.preprocessing.size
    pixels = np.zeros((len(rows), 3, size, size), dtype=np.uint8)

    def fill(first: int) -> None:
        for place, row in enumerate(rows[first : first + AT_ONCE].tolist(), first):
            square = _square(reader, photos, row)
            if isinstance(square, BadImage):
                bad[row] = square
            else:
                pixels[place] = square

    for _ in pool.map(fill, range(0, len(rows), AT_ONCE)):
        pass  # raises what a thread raised
    return torch.from_numpy(pixels)


def _square(reader: AttributeReader, photos: Photos, row: int) -> np.ndarray | BadImage:
    """One photo as training sees it before augmentation, uint8 [3, size, size]."""
    try:
        return square_planes(photos.read(row), reader.preprocessing.size, reader.preprocessing.fit)
    except BadImage as bad:
        return bad


@torch.inference_mode()
def _probabilities(reader: AttributeReader, pixels: Tensor) -> list[np.ndarray]:
    """Calibrated probabilities [n, values] of each attribute."""
    logits = reader(pixels.to(reader.device)).logits
    read = []
    for (name, attribute), scores in zip(reader.schema.attributes.items(), logits, strict=True):
        calibration = reader.calibration.get(name, Calibration())
        each = probabilities(scores.float().cpu().numpy(), calibration, multi_valued=attribute.multi_valued)
        read.append(each.astype(np.float32))
    return read


def _joined(
    reader: AttributeReader, photos: Photos, rows: np.ndarray, batches: list[list[np.ndarray]], bad: dict[int, BadImage]
) -> Scores:
    good = ~np.isin(rows, list(bad))
    probabilities = {}
    for place, (name, attribute) in enumerate(reader.schema.attributes.items()):
        empty = np.zeros((0, len(attribute.values)), dtype=np.float32)
        probabilities[name] = np.concatenate([empty, *(batch[place] for batch in batches)])[good]
        if not np.isfinite(probabilities[name]).all():
            raise UserError(f"the model gives probabilities of {name!r} that are no numbers; its weights are damaged")
    rows = rows[good]
    return Scores(rows, [photos.item_id(row) for row in rows.tolist()], reader.schema, probabilities, bad)


def not_applicable(
    schema: Schema, labels: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Attribute -> bool [n]: it cannot apply, by the catalog's word or else by the schema's rules.

    The rules go by the catalog's label where it has one, else by the prediction. An attribute that the catalog labels
    applies.
    """
    listed = {name: labels[name] >= 0 for name in schema.names}
    silent = {name: ~listed[name] & (labels[name] != NOT_APPLICABLE) for name in schema.names}
    known = {name: np.where(silent[name], predicted[name], labels[name]) for name in schema.names}
    ruled = apply_rules(known, schema, listed)
    return {name: ruled[name] == attribute.not_applicable_label for name, attribute in schema.attributes.items()}
