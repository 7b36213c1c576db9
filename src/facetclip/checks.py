"""`facetclip check`: every problem of a catalog, by row, with a stable reason code, before anything is sharded."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from facetclip.addresses import is_url
from facetclip.catalog import Catalog
from facetclip.config import closest
from facetclip.downloads import FetchSpec, download_all, judged
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.images import BadImage, verdict
from facetclip.labels import encode_labels
from facetclip.references import image_of, load, not_embedded, require_way
from facetclip.schema import NOT_APPLICABLE, UNKNOWN_VALUE, UNLABELLED, Attribute, Schema, spelling
from facetclip.splits import SPLITS, WORDS, Gap, Shares, assign_splits, coverage_gaps
from facetclip.spreadsheets import csv_of
from facetclip.tables import counted

WARNING, ERROR, FATAL = "warning", "error", "fatal"
SEVERITIES = (WARNING, ERROR, FATAL)
EXAMPLES = 3  # rows shown for each code
MOST_VALUES = 20  # of an attribute that are shown, the commonest
WHOLE = 0  # the row number of a problem that is the catalog's, not a row's
PORTION = 64  # images that a thread takes at a time


@dataclass(frozen=True)
class CheckSpec:
    """How a catalog is checked. `decode`: read every pixel, not the headers alone; the rest as for sharding."""

    images: Path | None = None
    decode: bool = False
    max_bad: float = 0.01
    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    threads: int = 4
    fetch: FetchSpec | None = None  # how images named by URL are fetched, into its folder; None reports them


@dataclass(frozen=True)
class Problem:
    """What is wrong with one cell (or with the catalog: row WHOLE).

    `warning`: used as it is; `error`: the row is left out, or the cell is unlabelled; `fatal`: nothing can be sharded.
    """

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
    labels: dict[str, dict[str, int]]  # attribute -> value -> rows
    silent: dict[str, dict[str, int]]  # attribute -> `unlabelled` or `not applicable` -> rows
    splits: dict[str, int]
    gaps: list[Gap]
    bad_images: int
    max_bad: float
    decoded: bool  # whether every pixel was read

    @property
    def most_bad(self) -> int:
        """How many images may be left out; never all of them."""
        return min(self.rows - 1, int(self.max_bad * self.rows))

    @property
    def sound(self) -> bool:
        """Nothing fatal, and no more unusable images than are allowed: what `build_shards` asks too."""
        return self.bad_images <= self.most_bad and all(problem.severity != FATAL for problem in self.problems)


@dataclass(frozen=True)
class _Table:
    """The catalog with its columns at hand."""

    catalog: Catalog
    schema: Schema
    items: Sequence[str | None]
    products: Sequence[str | None]

    def problem(self, place: int, column: str, code: str, message: str, severity: str = ERROR) -> Problem:
        return Problem(self.catalog.row_number(place), self.items[place] or "", column, code, message, severity)


def check_catalog(catalog: Catalog, schema: Schema, spec: CheckSpec) -> CheckReport:
    """Every problem of `catalog`. UserError where it cannot be read as the schema says, or the image root is absent."""
    catalog.require_columns(schema)
    if spec.images is None and spec.fetch is None:
        require_way(catalog, schema.columns.image, fetches=True)
    if spec.images is not None and not spec.images.is_dir():
        raise UserError(f"{spec.images}: expected the folder of the images (--images), found no folder")
    table = _Table(catalog, schema, catalog.column(schema.columns.item), catalog.column(schema.columns.product))
    labels = encode_labels(catalog, schema)
    problems = [*_identity(table), *_products(table), *_cells(table, labels), *_splits(table)]
    gaps: list[Gap] = []
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    if not any(problem.severity == FATAL for problem in problems):
        splits = assign_splits(catalog, schema, seed=spec.seed, shares=spec.shares)
        gaps, counts = _gaps(table, labels, splits, spec), _per_split(splits)
    images = list(_images(table, spec))
    problems += [*_alone(schema), *_unlabelled(schema, labels), *images, *(_gap_problem(gap, schema) for gap in gaps)]
    return CheckReport(
        name=catalog.name,
        rows=len(catalog),
        products=len(set(table.products) - {None, ""}),
        problems=sorted(problems, key=lambda problem: (problem.row, problem.column, problem.code)),
        labels=_label_counts(schema, labels),
        silent={name: _silent_counts(column) for name, column in labels.items()},
        splits=counts,
        gaps=gaps,
        bad_images=sum(problem.severity == ERROR for problem in images),
        max_bad=spec.max_bad,
        decoded=spec.decode,
    )


def _per_split(splits: np.ndarray) -> dict[str, int]:
    return {name: int((splits == place).sum()) for place, name in enumerate(SPLITS)}


def _gaps(table: _Table, labels: dict[str, np.ndarray], splits: np.ndarray, spec: CheckSpec) -> list[Gap]:
    """Values that a split lacks, unless that split was asked to be empty."""
    products = np.unique([str(product) for product in table.products], return_inverse=True)[1]
    empty = {name for name, share in vars(spec.shares).items() if share == 0 and not _per_split(splits)[name]}
    return [gap for gap in coverage_gaps(labels, products, splits, table.schema) if gap.split not in empty]


def _gap_problem(gap: Gap, schema: Schema) -> Problem:
    message = f"{gap.attribute} = {gap.value} is in no product of the {gap.split} split"
    return Problem(WHOLE, "", schema.attributes[gap.attribute].column, "coverage_gap", message, WARNING)


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


def _unlabelled(schema: Schema, labels: dict[str, np.ndarray]) -> Iterator[Problem]:
    """Attributes of which no cell says anything, so that nothing can be learned or measured."""
    for name, attribute in schema.attributes.items():
        if not (labels[name] >= 0).any():
            message = (
                f"no cell lists a value of {name}: nothing can be learned of it; fill some, or drop it from the schema"
            )
            yield Problem(WHOLE, "", attribute.column, "no_label", message, WARNING)


def _alone(schema: Schema) -> Iterator[Problem]:
    """Items that are their own products: then nothing keeps the views of one thing in one split."""
    column = schema.columns.product
    if column == schema.columns.item:
        message = (
            "names the item and the product, so every row is a product of its own: if several show one product, its "
            "views land in train and in test; name the column in which these agree"
        )
        yield Problem(WHOLE, "", column, "product_is_item", message, WARNING)


def _products(table: _Table) -> Iterator[Problem]:
    """Products whose ids differ in case or outer blanks alone: two products, which may go to two splits."""
    first: dict[str, tuple[str, int]] = {}
    told: set[str] = set()
    for place, product in enumerate(table.products):
        if not product or not (folded := product.strip().casefold()):
            continue
        other, before = first.setdefault(folded, (product, place))
        if other != product and product not in told:
            told.add(product)
            row = table.catalog.row_number(before)
            message = f"{product!r} is another product than {other!r} in row {row}; if they are one, spell them alike"
            yield table.problem(place, table.schema.columns.product, "product_spelling", message, WARNING)


def _cells(table: _Table, labels: dict[str, np.ndarray]) -> Iterator[Problem]:
    for name, attribute in table.schema.attributes.items():
        cells, codes = table.catalog.column(attribute.column), attribute.codes()
        messages: dict[str, str] = {}
        for place in np.flatnonzero(labels[name] == UNKNOWN_VALUE).tolist():
            cell = str(cells[place])
            if cell not in messages:
                messages[cell] = f"{_unknown(cell, attribute, codes)} is no value of {name}; counts as unlabelled"
            yield table.problem(place, attribute.column, "unknown_value", messages[cell])
        if attribute.applies_where:
            for place in np.flatnonzero(labels[name] == attribute.not_applicable_label).tolist():
                cell = cells[place]
                given = attribute.encode(cell, codes)
                if given >= 0 and given != attribute.not_applicable_label:
                    message = f"{str(cell)[:80]!r} is given, but {name} cannot apply to this item; it is ignored"
                    yield table.problem(place, attribute.column, "not_applicable_value", message, WARNING)


def _unknown(cell: str, attribute: Attribute, codes: dict[str, int]) -> str:
    """What no value or alias explains in a cell, and the nearest word of the schema.

    >>> lid = Attribute(column="lid", values=("Glass", "none"), separator="|")
    >>> _unknown("none|glas", lid, lid.codes())
    "'glas' (did you mean 'Glass'?)"
    """
    words = {spelling(word): word for word in (*attribute.aliases, *attribute.values)}
    parts = cell.split(attribute.separator) if attribute.separator else [cell]
    strange = next(part for part in parts if spelling(part) not in codes)
    near = closest(spelling(strange), words)
    for folded, word in words.items():
        near = f" (did you mean {word!r}?)" if near == f"; did you mean {folded!r}?" else near
    return f"{strange[:80]!r}{near}"


def _splits(table: _Table) -> Iterator[Problem]:
    column = table.schema.columns.split
    if column is None:
        return
    first: dict[str, tuple[int, int]] = {}
    for place, cell in enumerate(table.catalog.column(column)):
        word, product = spelling(cell or ""), table.products[place] or ""
        if word and word not in WORDS:
            yield table.problem(place, column, "unknown_split", f"{cell!r}: expected train, validation or test", FATAL)
        if word not in WORDS or not product.strip():
            continue
        split, before = first.setdefault(product, (WORDS[word], place))
        if split != WORDS[word]:
            row = table.catalog.row_number(before)
            message = f"product {product!r} is in {SPLITS[split]} in row {row}, in {SPLITS[WORDS[word]]} here"
            yield table.problem(place, column, "split_disagreement", message, FATAL)


def _images(table: _Table, spec: CheckSpec) -> Iterator[Problem]:
    """Images that cannot be used; and those that are, byte for byte, also another product's."""
    column, first = table.schema.columns.image, dict[bytes, int]()
    for place, seen in enumerate(_examined(table, spec)):
        if isinstance(seen, BadImage):
            yield table.problem(place, column, seen.code, seen.message)
        elif table.products[before := first.setdefault(seen, place)] != table.products[place]:
            message = (
                f"the same image as in row {table.catalog.row_number(before)}, which is product "
                f"{table.products[before]!r}, not {table.products[place]!r}"
            )
            yield table.problem(place, column, "shared_image", message, WARNING)


def _examined(table: _Table, spec: CheckSpec) -> Iterator[BadImage | bytes]:
    """What is wrong with each row's image, or a digest of its bytes, in the order of rows; read by several threads."""
    cells = table.catalog.table.column(table.schema.columns.image)
    starts = range(0, len(cells), PORTION)
    if spec.fetch is not None and spec.fetch.folder is not None:
        references = (image_of(cell) for start in starts for cell in cells.slice(start, PORTION).to_pylist())
        download_all(filter(is_url, references), spec.fetch, spec.fetch.folder)
    with ThreadPoolExecutor(spec.threads, thread_name_prefix="check") as pool:
        for seen in pool.map(lambda start: _examine(cells.slice(start, PORTION).to_pylist(), spec), starts):
            yield from seen


def _examine(cells: list[str | bytes | dict | None], spec: CheckSpec) -> list[BadImage | bytes]:
    return [_image(cell, spec) for cell in cells]


def _image(cell: str | bytes | dict | None, spec: CheckSpec) -> BadImage | bytes:
    image = image_of(cell)
    fetched = spec.fetch and spec.fetch.folder
    try:
        if fetched and is_url(image):
            return judged(fetched, image, partial(_digest, decode=spec.decode))
        if not isinstance(image, bytes):
            if spec.images is None:
                raise not_embedded(image)
            image = load(spec.images, image)
        return _digest(image, decode=spec.decode)
    except BadImage as bad:
        return bad


def _digest(content: bytes, *, decode: bool) -> bytes:
    """A digest of an image; BadImage where it cannot be used."""
    if (bad := verdict(content, decode=decode)) is not None:
        raise bad
    return hashlib.blake2b(content, digest_size=16).digest()


def _label_counts(schema: Schema, labels: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for name, attribute in schema.attributes.items():
        told = labels[name][labels[name] >= 0]
        counts[name] = {
            value: int((told >> place & 1).sum() if attribute.multi_valued else (told == place).sum())
            for place, value in enumerate(attribute.values)
        }
    return counts


def _silent_counts(labels: np.ndarray) -> dict[str, int]:
    unlabelled = (labels == UNLABELLED) | (labels == UNKNOWN_VALUE)
    return {"unlabelled": int(unlabelled.sum()), "not applicable": int((labels == NOT_APPLICABLE).sum())}


def write_problems(report: CheckReport, path: Path) -> None:
    """Every problem as CSV; a cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    names = ("row", "item", "column", "code", "severity", "message")
    write_whole(path, csv_of(names, ([getattr(found, name) for name in names] for found in report.problems)))


def render_text(report: CheckReport) -> str:
    """The summary for a terminal: what the labels are, problems by code with their first rows, and the verdict."""
    lines = [f"{report.name}: {counted('row', report.rows)} of {counted('product', report.products)}"]
    if any(report.splits.values()):
        lines.append("splits: " + ", ".join(f"{name} {count}" for name, count in report.splits.items()))
    lines += ["", *_label_table(report), ""]
    by_code: dict[tuple[str, str], list[Problem]] = {}
    for problem in report.problems:
        by_code.setdefault((problem.severity, problem.code), []).append(problem)
    for severity, code in sorted(by_code, key=lambda key: (SEVERITIES.index(key[0]), key[1])):
        lines += _examples(severity, code, by_code[severity, code])
    lines += _verdict(report)
    return "\n".join(lines)


def _verdict(report: CheckReport) -> Iterator[str]:
    if report.bad_images > report.most_bad:
        found = f"{report.bad_images} of {counted('image', report.rows)} cannot be used"
        yield f"{found}; --max-bad {report.max_bad:g} allows {report.most_bad}"
    if not report.decoded:
        yield "of the images only the headers were examined; --decode reads every pixel, as sharding does"
    yield "the catalog can be sharded" if report.sound else "the catalog must not be sharded as it is"


def _label_table(report: CheckReport) -> Iterator[str]:
    """An aligned table of attribute, value and rows, where rows there are."""
    rows = [("attribute", "value", "rows")]
    for name, counts in report.labels.items():
        told = [value for value in counts if counts[value]]
        common = set(sorted(told, key=lambda value: -counts[value])[:MOST_VALUES])
        rows += [(name, value, f"{counts[value]}") for value in told if value in common]
        if rest := [counts[value] for value in told if value not in common]:
            rows.append((name, f"({counted('more value', len(rest))})", f"{sum(rest)}"))
        rows += [(name, f"({word})", f"{count}") for word, count in report.silent[name].items() if count]
    first, second, third = (max(map(len, column)) for column in zip(*rows, strict=True))
    return (f"  {name:<{first}}  {value:<{second}}  {count:>{third}}" for name, value, count in rows)


def _examples(severity: str, code: str, problems: Sequence[Problem]) -> Iterator[str]:
    """How often a code was found, and the first rows."""
    yield f"{severity}: {code}: {len(problems)}"
    for found in problems[:EXAMPLES]:
        place = f"row {found.row}, item {found.item[:80]!r}, " if found.row != WHOLE else ""
        yield f"  {place}{found.column}: {found.message}"
    if len(problems) > EXAMPLES:
        yield f"  and {len(problems) - EXAMPLES} more"
