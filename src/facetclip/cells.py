"""Cells of any type as text, and texts back as cells of their column's type.

A list of plain values is one cell that names several of them, joined by JOINT; an empty one is an empty cell.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

JOINT = "|"  # between the values of a list
Unfit = tuple[int, str]  # the place of the first list that cannot be one cell, and why


def joined(values: Sequence[str | None]) -> str | None:
    """The text of a list; None where it says nothing. ValueError where it would be read back as another list.

    >>> joined(["red", None, "blue"]), joined([None])
    ('red|blue', None)
    """
    told = [value for value in values if value is not None]
    if mixed := next((value for value in told if JOINT in value), None):
        raise ValueError(f"a list with {mixed[:80]!r} in it, where {JOINT!r} stands between the values of a cell")
    return JOINT.join(told) if told else None


def json_texts(values: Sequence[object]) -> tuple[list[str | None], Unfit | None]:
    """Values of JSON as they were written, lists joined; a list that cannot be stays JSON, and the first is told."""
    texts: list[str | None] = []
    unfit: Unfit | None = None
    for place, value in enumerate(values):
        try:
            texts.append(_joined_json(value) if isinstance(value, list) else json_text(value))
        except ValueError as error:
            texts.append(json_text(value))
            unfit = unfit or (place, str(error))
    return texts, unfit


def _joined_json(values: list[object]) -> str | None:
    if odd := [value for value in values if isinstance(value, list | dict)]:
        raise ValueError(_not_plain(json_text(odd[0])))
    return joined([json_text(value) for value in values])


def _not_plain(odd: object) -> str:
    return f"a list with {str(odd)[:80]} in it; expected texts, numbers or truths"


def json_text(value: object) -> str | None:
    """A JSON value as the text it was written as."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda odd: type(odd).__name__)


def is_image(kind: pa.DataType) -> bool:
    """Whether cells of this type are embedded images, with their paths."""
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def column_as_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Unfit | None]:
    """A column as text, but for images; lists that cannot be one cell stay JSON, and the first is told."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column_as_text(column.cast(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or is_image(kind):
        return column, None
    if _is_list(kind):
        return _lists_as_text(column)
    if pa.types.is_floating(kind):
        pairs = zip(column.to_pylist(), column.cast(pa.string()).to_pylist(), strict=True)
        return _texts(_number(cell, text) for cell, text in pairs), None
    try:
        return column.cast(pa.string()), None
    except pa.ArrowException:  # structs, maps, durations ...
        return _texts(json_text(cell) for cell in column.to_pylist()), None


def _texts(cells: Iterable[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, pa.string())])


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _lists_as_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Unfit | None]:
    inner = column.type.value_type
    inner = inner.value_type if pa.types.is_dictionary(inner) else inner
    lengths = pc.call_function("list_value_length", [column]).to_pylist()
    if pa.types.is_nested(inner) or pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
        first = next((place for place, length in enumerate(lengths) if length), None)
        unfit = None if first is None else (first, _not_plain(f"{inner} values"))
        return _texts(json_text(cell) for cell in column.to_pylist()), unfit
    values = iter(column_as_text(pc.call_function("list_flatten", [column]))[0].to_pylist())
    cells: list[str | None] = []
    unfit: Unfit | None = None
    for place, length in enumerate(lengths):
        listed = [next(values) for _ in range(length or 0)]
        try:
            cells.append(joined(listed))
        except ValueError as error:
            cells.append(json_text(listed))
            unfit = unfit or (place, str(error))
    return _texts(cells), unfit


def _number(cell: float | None, text: str | None) -> str | None:
    """A float as it was in the source, where a column of ids with gaps has become one.

    >>> _number(6e18, "6e+18"), _number(0.1, "0.1"), _number(float("nan"), "nan")
    ('6000000000000000000', '0.1', None)
    """
    if cell is None or cell != cell:
        return None
    return str(int(cell)) if cell.is_integer() and abs(cell) < 2**63 else text


def with_cells(table: pa.Table, cells: Mapping[str, Sequence[str | None]]) -> pa.Table:
    """`table` with other texts in some of its columns; such a column keeps its type where all of its texts fit that.

    >>> stock = pa.table({"lid": [True, None], "price": [9.5, 12.0], "colour": [["red"], []]})
    >>> with_cells(stock, {"lid": ["true", "false"], "colour": ["red|blue", None]}).to_pylist()
    [{'lid': True, 'price': 9.5, 'colour': ['red', 'blue']}, {'lid': False, 'price': 12.0, 'colour': []}]
    """
    place_of = {name.strip(): place for place, name in enumerate(table.column_names)}
    for name, texts in cells.items():
        field, column = table.schema.field(place_of[name]), pa.array(texts, pa.string())
        with suppress(pa.ArrowException):
            column = _typed(column, table.column(place_of[name]))
        table = table.set_column(place_of[name], field.name, column)
    return table


def _typed(texts: pa.Array, before: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The texts in the type of the column `before`; lists that say what they said stay as they are."""
    kind = before.type
    if pa.types.is_dictionary(kind):
        return texts.dictionary_encode()
    if not _is_list(kind):
        return texts.cast(kind)
    said = column_as_text(before)[0].to_pylist()
    same = [text == was for text, was in zip(texts.to_pylist(), said, strict=True)]
    new = [text.split(JOINT) if text and not kept else None for text, kept in zip(texts.to_pylist(), same, strict=True)]
    return pc.call_function("if_else", [pa.array(same), before, pa.array(new, pa.list_(pa.string())).cast(kind)])
