"""`facetclip check`: every problem of a catalog, by row, with a stable reason code, before anything is sharded."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from facetclip.catalog import Catalog, encode_labels
from facetclip.config import closest
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.images import BadImage, load, verdict
from facetclip.schema import NOT_APPLICABLE, UNKNOWN_VALUE, UNLABELLED, Schema, spelling
from facetclip.splits import SPLITS, WORDS, Gap, Shares, assign_splits, coverage_gaps

WARNING, ERROR, FATAL = "warning", "error", "fatal"
EXAMPLES = 3  # rows shown for each code
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class CheckSpec:
    """How a catalog is checked. `decode`: read every pixel, not the headers alone; the rest as for sharding."""

    images: Path | None = None
    decode: bool = False
    max_bad: float = 0.01
    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    threads: int = 4


@dataclass(frozen=True)
class Problem:
    """What is wrong with one cell. `error`: row left out, or cell unlabelled; `fatal`: nothing can be sharded."""

    row: int
    item: str
    column: str
    code: str
    message: str
    severity: str


@dataclass(frozen=True)
class CheckReport:
    """What was found. `sound`: the catalog may be sharded."""

    name: str
    rows: int
    products: int
    problems: list[Problem]
    labels: dict[str, dict[str, int]]  # attribute -> value, `unlabelled` or `not applicable` -> rows
    splits: dict[str, int]
    gaps: list[Gap]
    bad_images: int
    max_bad: float

    @property
    def sound(self) -> bool:
        """Nothing fatal, and no more unusable images than are allowed."""
        fatal = any(problem.severity == FATAL for problem in self.problems)
        return not fatal and self.bad_images <= self.max_bad * self.rows and self.bad_images < self.rows


@dataclass(frozen=True)
class _Table:
    """The catalog with its columns at hand."""

    catalog: Catalog
    schema: Schema
    items: list[str | None]
    products: list[str | None]

    def problem(self, place: int, column: str, code: str, message: str, severity: str = ERROR) -> Problem:
        return Problem(self.catalog.row_number(place), self.items[place] or "", column, code, message, severity)


def check_catalog(catalog: Catalog, schema: Schema, spec: CheckSpec) -> CheckReport:
    """Every problem of `catalog`. UserError where it cannot be read as the schema says, or the image root is absent."""
    catalog.require_columns(schema)
    embedded = not _holds_paths(catalog, schema)
    if spec.images is None and not embedded:
        raise UserError(f"{catalog.name}: column {schema.columns.image!r} holds paths; give --images, their folder")
    if spec.images is not None and not spec.images.is_dir():
        raise UserError(f"{spec.images}: expected the folder of the images (--images), found no folder")
    columns = schema.columns
    table = _Table(catalog, schema, catalog.column(columns.item), catalog.column(columns.product))
    labels = encode_labels(catalog, schema)
    problems = [*_identity(table), *_cells(table, labels), *_splits(table)]
    images = list(_images(table, spec))
    problems += images
    bad_rows = {problem.row for problem in images if problem.severity == ERROR}
    gaps: list[Gap] = []
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    if not any(problem.severity == FATAL for problem in problems):
        splits = assign_splits(catalog, schema, seed=spec.seed, shares=spec.shares)
        numbers = np.unique([str(product) for product in table.products], return_inverse=True)[1]
        gaps = coverage_gaps(labels, numbers, splits, schema)
        counts = {name: int((splits == place).sum()) for place, name in enumerate(SPLITS)}
    return CheckReport(
        name=catalog.name,
        rows=len(catalog),
        products=len(set(table.products)),
        problems=sorted(problems, key=lambda problem: (problem.row, problem.column, problem.code)),
        labels=_label_counts(schema, labels),
        splits=counts,
        gaps=gaps,
        bad_images=len(bad_rows),
        max_bad=spec.max_bad,
    )


def _holds_paths(catalog: Catalog, schema: Schema) -> bool:
    return str(catalog.table.column(schema.columns.image).type) in ("string", "large_string")


def _identity(table: _Table) -> Iterator[Problem]:
    columns, first = table.schema.columns, dict[str, int]()
    for place, (item, product) in enumerate(zip(table.items, table.products, strict=True)):
        if not (item or "").strip():
            yield table.problem(place, columns.item, "no_item_id", "every row needs an id", FATAL)
        elif item in first:
            before = table.catalog.row_number(first[item])
            yield table.problem(place, columns.item, "duplicate_id", f"{item!r} is already in row {before}", FATAL)
        else:
            first[str(item)] = place
        if not (product or "").strip():
            yield table.problem(place, columns.product, "no_product", "every row needs a product", FATAL)


def _cells(table: _Table, labels: dict[str, np.ndarray]) -> Iterator[Problem]:
    for name, attribute in table.schema.attributes.items():
        cells, codes = table.catalog.column(attribute.column), attribute.codes()
        words = [*attribute.values, *attribute.aliases]
        for place in np.flatnonzero(labels[name] == UNKNOWN_VALUE):
            cell = str(cells[place])
            hint = closest(cell.strip().lower(), [word.lower() for word in words])
            message = f"{cell[:80]!r} is no value of {name}{hint}; counts as unlabelled"
            yield table.problem(int(place), attribute.column, "unknown_value", message)
        if attribute.applies_where:
            for place in np.flatnonzero(labels[name] == NOT_APPLICABLE):
                cell = cells[place]
                if attribute.encode(cell, codes) >= 0:
                    message = f"{str(cell)[:80]!r} is given, but {name} cannot apply to this item; it is ignored"
                    yield table.problem(int(place), attribute.column, "not_applicable_value", message, WARNING)


def _splits(table: _Table) -> Iterator[Problem]:
    column = table.schema.columns.split
    if column is None:
        return
    first: dict[str, tuple[int, int]] = {}
    for place, cell in enumerate(table.catalog.column(column)):
        word, product = spelling(cell or ""), str(table.products[place])
        if not word:
            continue
        if word not in WORDS:
            yield table.problem(place, column, "unknown_split", f"{cell!r}: expected train, validation or test", FATAL)
            continue
        split, before = first.setdefault(product, (WORDS[word], place))
        if split != WORDS[word]:
            message = f"product {product!r} is in {SPLITS[split]} in row {table.catalog.row_number(before)}"
            yield table.problem(place, column, "split_disagreement", message, FATAL)


def _images(table: _Table, spec: CheckSpec) -> Iterator[Problem]:
    column = table.schema.columns.image
    cells = table.catalog.table.column(column).to_pylist()
    with ThreadPoolExecutor(spec.threads, thread_name_prefix="check") as pool:
        for place, bad in enumerate(pool.map(partial(_image_verdict, spec=spec), cells)):
            if bad is not None:
                yield table.problem(place, column, bad.code, bad.message)
    if not _holds_paths(table.catalog, table.schema):
        return
    users: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for place, cell in enumerate(cells):
        users[cell or ""].setdefault(str(table.products[place]), place)
    for image, places in users.items():
        for product, place in list(places.items())[1:] if image else ():
            other = next(iter(places))
            message = f"{image[:80]!r} is also the photo of product {other!r}, not of {product!r} alone"
            yield table.problem(place, column, "shared_image", message, WARNING)


def _image_verdict(cell: str | bytes | dict | None, *, spec: CheckSpec) -> BadImage | None:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    try:
        if isinstance(cell, bytes):
            return verdict(cell, decode=spec.decode)
        if spec.images is None:
            return BadImage("no_reference", "the row has no embedded image")
        return verdict(load(spec.images, cell), decode=spec.decode)
    except BadImage as bad:
        return bad


def _label_counts(schema: Schema, labels: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    counts = {}
    for name, attribute in schema.attributes.items():
        column = labels[name]
        has = [
            (column >= 0) & (column >> place & 1 == 1) if attribute.multi_valued else column == place
            for place in range(len(attribute.values))
        ]
        silent = (column == UNLABELLED) | (column == UNKNOWN_VALUE)
        counts[name] = {value: int(rows.sum()) for value, rows in zip(attribute.values, has, strict=True)}
        counts[name] |= {"unlabelled": int(silent.sum()), "not applicable": int((column == NOT_APPLICABLE).sum())}
    return counts


def write_problems(report: CheckReport, path: Path) -> None:
    """Every problem as CSV; a cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "item", "column", "code", "severity", "message"])
    for found in report.problems:
        cells = (found.item, found.column, found.code, found.severity, found.message)
        writer.writerow([found.row, *("'" + cell if cell.startswith(FORMULA) else cell for cell in cells)])
    write_whole(path, text.getvalue().encode())


def render_text(report: CheckReport) -> str:
    """The summary for a terminal."""
    lines = [f"{report.name}: {report.rows} rows of {report.products} products"]
    if any(report.splits.values()):
        lines.append("splits: " + ", ".join(f"{name} {count}" for name, count in report.splits.items()))
    lines += [f"  {name}: {_listed(counts)}" for name, counts in report.labels.items()]
    by_code = Counter((problem.severity, problem.code) for problem in report.problems)
    for (severity, code), count in sorted(by_code.items()):
        lines.append(f"{severity}: {code}: {count} rows")
        lines += _examples(problem for problem in report.problems if problem.code == code)
    for gap in report.gaps:
        lines.append(f"warning: {gap.attribute} = {gap.value} is in no product of the {gap.split} split")
    if report.bad_images > report.max_bad * report.rows:
        lines.append(f"{report.bad_images} of {report.rows} images cannot be used; --max-bad allows {report.max_bad:g}")
    lines.append("the catalog can be sharded" if report.sound else "the catalog must not be sharded as it is")
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} {count}" for value, count in counts.items() if count)


def _examples(problems: Iterable[Problem]) -> list[str]:
    shown = [f"  row {p.row}, item {p.item!r}, {p.column}: {p.message}" for p in problems]
    more = [f"  and {len(shown) - EXAMPLES} more"] if len(shown) > EXAMPLES else []
    return [*shown[:EXAMPLES], *more]
