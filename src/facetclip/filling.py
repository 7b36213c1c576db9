"""`facetclip fill`: the catalog with its gaps filled where photos are sure enough, each cell marked with its source.

The model says how sure an answer must be for a wanted precision (`facetclip.abstention`); where the gaps are harder
than what it was tried on they ask for more. Where photos are less sure the gap stays. What is a matter of the product,
not of the photo, is read by all its photos together, and by what its other rows list, where these agree. What the table
says is never replaced unless that is asked for; then photos alone decide.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facetclip.abstention import Cutoff, cutoff, shipped_answers
from facetclip.calibration import Calibration
from facetclip.catalog import Catalog, form_of, read_catalog
from facetclip.cells import with_cells
from facetclip.errors import UserError
from facetclip.extract import MANIFEST
from facetclip.labels import as_spelled, encode_cells, labels_of, listed_text, respelled
from facetclip.metrics import listed_values
from facetclip.model import ModelCard
from facetclip.outputs import Output, clear, open_output, parted, written_before
from facetclip.remote import Absent
from facetclip.rules import apply_rules, barred
from facetclip.schema import UNKNOWN_VALUE, UNLABELLED, Schema, read_schema
from facetclip.spreadsheets import Form, separated
from facetclip.tracking import say

SOURCE, CONFIDENCE = "source", "confidence"  # of a cell, in columns beside its own
TABLE, PHOTO, PRODUCT = "table", "photo", "product"  # of the product: its other rows list it, too


@dataclass(frozen=True)
class FillSpec:
    """`precision`: the share of filled cells that shall be right; `overwrite`: replace what the table says, too, where
    the photos contradict it and are sure enough, and so what the schema does not explain."""

    precision: float = 0.95
    overwrite: bool = False


@dataclass(frozen=True)
class Filled:
    """One attribute's cells: `gaps` that said nothing and apply, how many are `filled` now, how many of these with
    what other rows of the product list, `told`, how many of the others were `replaced`; `threshold`: how sure an answer
    had to be, None where it is never sure enough."""

    gaps: int
    filled: int
    told: int
    replaced: int
    threshold: float | None


@dataclass(frozen=True)
class _Read:
    """One attribute in the catalog's order, as it was read: the answer's label (UNLABELLED: there are no scores), how
    sure, and whether other rows of the product told it."""

    label: np.ndarray
    sure: np.ndarray
    told: np.ndarray


@dataclass(frozen=True)
class _Decided:
    """What becomes of one attribute: the cells that are `new`, the label that each has as it is written, by the rules,
    and the count of what was done."""

    new: np.ndarray
    label: np.ndarray
    count: Filled


def fill(
    scores: Path | str, catalog: str, schema: Path, out: Path | str, spec: FillSpec, *, split: str | None = None
) -> dict[str, Filled]:
    """Write `catalog` (of a dataset, its `split`) to `out` (.csv or .parquet) with what the finished extraction in
    `scores` fills in; both may be URLs.

    Beside each attribute's column stand two new ones, COLUMN_source (table, product or photo) and COLUMN_confidence.
    UserError where the scores are of another schema, lack the model's cut-offs, or are not of this catalog's items.
    """
    place, name = parted(out)
    target, answered, suffix = open_output(place), written_before(scores), PurePath(name).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"{target.spot(name)}: expected a file that ends in .csv or .parquet")
    if target.exists(name):
        raise UserError(f"{target.spot(name)} is there already; name another file")
    manifest = _manifest(answered)
    card = ModelCard.from_json(json.dumps(manifest["card"]))
    meaning, table = read_schema(schema), read_catalog(catalog, split=split)
    table.require_columns(meaning, written=True)
    table.require_ids(meaning.columns.item)
    kinds = table.table.schema
    if suffix == ".csv" and (strange := next((each.name for each in kinds if each.type != pa.string()), None)):
        raise UserError(
            f"{target.spot(name)}: a .csv cannot hold the images in column {strange!r}; name a .parquet file"
        )
    _check(answered, card, meaning, table)
    cells = encode_cells(table, meaning)
    labels = {} if spec.overwrite else apply_rules(cells, meaning)
    read = _read(answered, manifest["parts"], card, meaning, table, labels)
    decided = _decided(meaning, cells, read, card.cutoffs, spec)
    whole = _marked(_filled(table, suffix, meaning, decided), meaning, read, decided)
    target.write(name, _encoded(whole, suffix, catalog))
    with suppress(UserError):  # whoever may not list the folder has written, and that is what counts
        clear(target, re.escape(name))
    return {attribute: decided[attribute].count for attribute in meaning.names}


def _manifest(scores: Output) -> dict[str, Any]:
    try:
        manifest = json.loads(scores.read(MANIFEST))
    except Absent as error:
        raise UserError(f"{scores}: no {MANIFEST}; run facetclip extract to its end first") from error
    except ValueError as error:
        raise UserError(f"{scores.spot(MANIFEST)}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or not all(manifest.get(part) for part in ("card", "schema", "parts")):
        raise UserError(f"{scores.spot(MANIFEST)}: is not what facetclip extract writes")
    if not manifest["card"].get("cutoffs"):
        raise UserError(
            f"{scores}: the model that was read with does not know when to abstain; train it with a validation split"
        )
    return manifest


def _check(scores: Output, card: ModelCard, schema: Schema, table: Catalog) -> None:
    if card.schema is None or card.schema.meanings != schema.meanings:
        raise UserError(
            f"{scores}: reads other attributes or values than the schema, or lists several where that lists one; "
            "extract with a model of it"
        )
    for attribute in schema.attributes.values():
        for part in (SOURCE, CONFIDENCE):
            if (name := f"{attribute.column}_{part}") in table.table.column_names:
                raise UserError(f"{table.name}: has a column {name!r} already; fill the catalog that it came from")


def _read(
    scores: Output,
    parts: Sequence[dict[str, Any]],
    card: ModelCard,
    schema: Schema,
    table: Catalog,
    labels: dict[str, np.ndarray],
) -> dict[str, _Read]:
    """Every attribute as it is read, by photos and, where `labels` are given, by what a product's other rows list.

    An item without scores (its photo was bad) is read with no certainty.
    """
    whole = pa.concat_tables([_part(scores, part) for part in parts])
    place = {item: row for row, item in enumerate(table.column(schema.columns.item))}
    whole = _still_there(whole, place, scores, table)
    products = _products(table, schema)
    found = {}
    for name, attribute in schema.attributes.items():
        mine = whole.filter(pc.field("attribute") == name)
        rows = np.array([place[item] for item in mine.column("item_id").to_pylist()], dtype=np.int64)
        flat = mine.column("probabilities").combine_chunks().flatten().to_numpy().astype(np.float64)
        read, calibration = flat.reshape(len(rows), len(attribute.values)), card.calibration.get(name, Calibration())
        together = products[rows] if name in card.by_product else None
        listed = labels[name][rows] if together is not None and name in labels else None
        shown, sure, word = shipped_answers(attribute, read, calibration, together, listed)
        answer = labels_of(attribute, shown)
        found[name] = _placed(len(table), rows, _Read(answer, sure, (word >= 0) & (answer == word)))
    return found


def _still_there(whole: pa.Table, place: Mapping[str | None, int], scores: Output, table: Catalog) -> pa.Table:
    """The scores of those items that are in the catalog by now, with a word about the others; UserError where these are
    the most."""
    read = pc.call_function("unique", [whole.column("item_id")]).to_pylist()
    gone = [item for item in read if item not in place]
    if 2 * len(gone) > len(read):
        raise UserError(
            f"{table.name}: has no item {gone[0]!r}, nor {len(gone) - 1} others of the {len(read)} that {scores} "
            "reads; give the catalog it was made of"
        )
    if not gone:
        return whole
    say(
        f"{table.name}: has no item {gone[0]!r}, {len(gone)} in all of the {len(read)} that {scores} reads; "
        "the others count"
    )
    return whole.filter(~pc.field("item_id").isin(gone))


def _products(table: Catalog, schema: Schema) -> np.ndarray:
    """A number for each row's product [n]; a row without one is a product of its own."""
    named = table.table.column(schema.columns.product).combine_chunks().dictionary_encode()
    numbers = named.indices.fill_null(-1).to_numpy()
    blank = [place for place, product in enumerate(named.dictionary.to_pylist()) if not product.strip()]
    nobody = (numbers < 0) | np.isin(numbers, blank)
    return np.where(nobody, len(numbers) + np.arange(len(numbers)), numbers)


def _part(scores: Output, part: dict[str, Any]) -> pa.Table:
    """One part of the scores; UserError where it is not what the manifest says."""
    content = scores.read(part["name"])
    if hashlib.sha256(content).hexdigest() != part["sha256"]:
        raise UserError(f"{scores.spot(part['name'])}: is not what {MANIFEST} says; run facetclip extract again")
    # `read_table` leaves threads behind, and where the process then ends at once, with a refusal, it aborts.
    return pq.ParquetFile(pa.BufferReader(content)).read()


def _placed(items: int, rows: np.ndarray, read: _Read) -> _Read:
    """What was read of `rows`, in the catalog's order."""

    def spread(column: np.ndarray, empty: int = 0) -> np.ndarray:
        whole = np.full(items, empty, column.dtype)
        whole[rows] = column
        return whole

    return _Read(spread(read.label, UNLABELLED), spread(read.sure), spread(read.told))


def _decided(
    schema: Schema,
    cells: dict[str, np.ndarray],
    read: dict[str, _Read],
    cutoffs: Mapping[str, Sequence[Cutoff]],
    spec: FillSpec,
) -> dict[str, _Decided]:
    """What becomes of every attribute, those first that others lean on, so that no filled cell breaks a rule.

    Where a cell is silent and nothing is sure enough, the rules of others go by what it is read as.
    """
    written, ruled, known = dict(cells), dict(cells), dict(cells)
    found = {}
    for name in schema.parents_first:
        attribute, said, by = schema.attributes[name], cells[name], read[name]
        never = attribute.not_applicable_label
        silent = (said == UNLABELLED) | (said == UNKNOWN_VALUE)
        out = barred(schema, name, ruled)
        off = out | (silent & barred(schema, name, known))
        gaps = (said == UNLABELLED) & ~off & (by.label != never)
        says = listed_values(attribute, said).any(axis=1) & (said != never) | (said == UNKNOWN_VALUE)
        contradicted = says & ~off & (by.label >= 0) & (by.label != said) & spec.overwrite
        open_ = (gaps & (by.label >= 0) | contradicted) & ~_belied(schema, name, written, by.label)
        cut = cutoff(cutoffs.get(name, ()), spec.precision, by.sure[open_])
        new = open_ & (by.sure >= (np.inf if cut is None else cut))
        written[name] = np.where(new, by.label, said)
        ruled[name] = np.where(out, never, written[name])
        known[name] = np.where(off, never, np.where(silent & ~new, by.label, written[name]))
        filled, replaced = new & gaps, new & contradicted
        told = filled & by.told
        count = Filled(int(gaps.sum()), int(filled.sum()), int(told.sum()), int(replaced.sum()), cut)
        found[name] = _Decided(new, ruled[name], count)
    return found


def _belied(schema: Schema, name: str, labels: dict[str, np.ndarray], answer: np.ndarray) -> np.ndarray:
    """bool [n]: with this `answer` for attribute `name` something else that the row lists could not apply."""
    found = np.zeros(len(answer), dtype=bool)
    if not any(name in each.applies_where for each in schema.attributes.values()):
        return found
    before, after = apply_rules(labels, schema), apply_rules(labels | {name: answer}, schema)
    for other, attribute in schema.attributes.items():
        never = attribute.not_applicable_label
        found |= (other != name) & (labels[other] >= 0) & (before[other] != never) & (after[other] == never)
    return found


def _filled(table: Catalog, suffix: str, schema: Schema, decided: dict[str, _Decided]) -> pa.Table:
    """The catalog's table with the new cells in it; for CSV as text."""
    cells = {}
    for name, attribute in schema.attributes.items():
        new = np.flatnonzero(decided[name].new).tolist()
        words = listed_text(attribute, decided[name].label[new])
        texts = table.column(attribute.column)
        spelled = as_spelled(attribute, texts)
        for row, word in zip(new, words, strict=True):
            texts[row] = None if word is None else respelled(attribute, word, spelled)
        cells |= {attribute.column: texts} if new else {}
    return with_cells(table.table if suffix == ".csv" else table.original, cells)


def _marked(filled: pa.Table, schema: Schema, read: dict[str, _Read], decided: dict[str, _Decided]) -> pa.Table:
    """The filled table with two columns beside each attribute's: where each cell is from, and how sure a new one is."""
    for name, attribute in schema.attributes.items():
        new, label, told = decided[name].new, decided[name].label, read[name].told
        source = np.where(new, np.where(told, PRODUCT, PHOTO), np.where(label == UNLABELLED, "", TABLE))
        sure = pa.array(np.round(read[name].sure, 4), pa.float32(), mask=~new)
        place = [column.strip() for column in filled.column_names].index(attribute.column)
        filled = filled.add_column(place + 1, f"{attribute.column}_{SOURCE}", pa.array(source.tolist(), pa.string()))
        filled = filled.add_column(place + 2, f"{attribute.column}_{CONFIDENCE}", sure)
    return filled


def _form(catalog: str) -> Form:
    """How a .csv is written: as the catalog is, where that is one."""
    path = Path(catalog)
    return form_of(path) if path.suffix.lower() == ".csv" and path.is_file() else Form()


def _encoded(table: pa.Table, suffix: str, catalog: str) -> bytes:
    out = io.BytesIO()
    if suffix == ".parquet":
        pq.write_table(table, out)
        return out.getvalue()
    return separated(
        [table.column_names, *zip(*(_cells(column) for column in table.columns), strict=True)], _form(catalog)
    )


def _cells(column: pa.ChunkedArray) -> list[str]:
    numbers = pa.types.is_floating(column.type)
    return ["" if cell is None else f"{cell:.4f}" if numbers else str(cell) for cell in column.to_pylist()]
