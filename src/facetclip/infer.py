"""`facetclip schema`: a first schema for a messy table, commented with counts, for a person to finish in a minute."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from facetclip.catalog import Catalog
from facetclip.errors import UserError
from facetclip.schema import BLANK_CELLS, MOST_MULTI_VALUES, spelling

MOST_VALUES = 60  # of an attribute; more looks like free text
LONGEST_VALUE = 40  # characters
LARGEST_SHARE = 0.2  # distinct values to rows; more looks like an identifier
RARE = 3  # products; a value with fewer is pointed out
TYPO_RATIO = 88  # rapidfuzz similarity from which a rare long word is a misspelling of a frequent one
SHORTEST_TYPO = 5  # letters: shorter words differ by meaning
SEPARATORS = ("|", ";")
COUNTING = {"one", "two", "three", "single", "double", "some", "half", "full", "low", "high", "yes", "no"}
ROLES = {
    "item": ("item_id", "item", "sku", "id", "image_id", "variant_id", "asin"),
    "product": ("product_id", "product", "style", "style_id", "parent_id", "parent", "group_id", "model"),
    "image": ("image", "image_path", "photo", "file_name", "filename", "file", "path", "picture", "img"),
    "title": ("title", "name", "product_name", "product_title"),
    "split": ("split", "fold", "subset"),
}
IMAGE_URLS = ("image_url", "photo_url", "picture_url", "img_url")
NOT_APPLICABLE_WORDS = {"n/a", "na", "#n/a"}
IMAGE_PATH = re.compile(r"\.(jpe?g|png|webp|avif|gif)([?#].*)?$", re.IGNORECASE)


@dataclass(frozen=True)
class _Column:
    """One attribute column as it was understood."""

    name: str
    separator: str | None
    values: dict[str, int]  # canonical value -> cells
    products: dict[str, int]  # canonical value -> products
    aliases: dict[str, str]  # other spelling -> canonical value
    not_applicable: tuple[str, ...]
    empty: int
    blank: frozenset[str]  # spellings that say nothing


def infer_schema(catalog: Catalog) -> str:
    """A schema for `catalog` as commented TOML. UserError when no column names the items or shows the images."""
    names = [name for name in catalog.table.column_names if name]  # pandas writes its index below an empty one
    plain = [name for name in names if _is_text(catalog, name) and name not in catalog.unfit]
    text = {name: [(cell or "").strip() for cell in catalog.column(name)] for name in plain}
    roles = _roles(catalog, text)
    products = text.get(roles["product"]) or text[roles["item"]]
    used = set(roles.values())
    columns = [
        column
        for name, cells in text.items()
        if name not in used and (column := _attribute(name, cells, products)) is not None
    ]
    if not columns:
        raise UserError(f"{catalog.name}: no column looks like an attribute; the columns are: {', '.join(names)}")
    rules = _rules(columns, text)
    passed = [name for name in names if name not in used | {column.name for column in columns}]
    return _toml(catalog, roles, columns, rules, passed)


def _is_text(catalog: Catalog, name: str) -> bool:
    return str(catalog.table.column(name).type) in ("string", "large_string")


def _roles(catalog: Catalog, text: dict[str, list[str]]) -> dict[str, str]:
    """Role -> column, by name and then by what the cells look like."""
    by_word = {spelling(name): name for name in catalog.table.column_names}
    roles = {role: _named(words, by_word) for role, words in ROLES.items()}
    roles["image"] = roles["image"] or _image_column(text) or _named(IMAGE_URLS, by_word)
    if not roles["image"]:
        known = ", ".join(catalog.table.column_names)
        raise UserError(f"{catalog.name}: no column holds image paths; the columns are: {known}")
    if len(set(text.get(roles["item"], ()))) < len(catalog):
        roles["item"] = _unique_column(text, roles["image"]) or roles["image"]
    if roles["item"] not in text:
        known = ", ".join(catalog.table.column_names)
        raise UserError(
            f"{catalog.name}: no column of text tells the rows apart, which an item's id does; add one, such as "
            f"item_id (to a folder of photos by a metadata.csv with file_name, item_id); the columns are: {known}"
        )
    roles["product"] = roles["product"] or roles["item"]
    return {role: name for role, name in roles.items() if name}


def _named(words: Sequence[str], by_word: dict[str, str]) -> str:
    """The column of the first of `words` that is a column's name."""
    return next((by_word[spelling(word)] for word in words if spelling(word) in by_word), "")


def _image_column(text: dict[str, list[str]]) -> str:
    """The column whose cells look most like photos' names, if half of them do; of two alike the first."""
    share = {name: sum(bool(IMAGE_PATH.search(cell)) for cell in cells) / len(cells) for name, cells in text.items()}
    best = max(share, key=lambda name: share[name], default="")
    return best if share.get(best, 0) >= 0.5 else ""


def _unique_column(text: dict[str, list[str]], image: str) -> str:
    """The first column whose cells are all different."""
    return next((name for name, cells in text.items() if len(set(cells)) == len(cells) and name != image), "")


def _attribute(name: str, cells: list[str], products: list[str]) -> _Column | None:
    """The column as an attribute, or None where it is constant, an identifier, or free text."""
    separator = _separator(cells)
    rows = [_parts(cell, separator) for cell in cells]
    words = Counter(word for row in rows for word in row)
    blank = BLANK_CELLS - {"none"} if _none_is_a_value(words) else BLANK_CELLS
    spelled = Counter({word: count for word, count in words.items() if spelling(word) not in blank})
    if not spelled or max(map(len, spelled)) > LONGEST_VALUE:
        return None
    canonical = _merge(spelled)
    values, of_products = _counted(rows, products, canonical)
    if not _closed(values, separator):
        return None
    return _Column(
        name=name,
        separator=separator,
        values=dict(values.most_common()),
        products=of_products,
        aliases=_aliases(canonical),
        not_applicable=tuple(sorted(word for word in words if spelling(word) in NOT_APPLICABLE_WORDS)),
        empty=words.total() - spelled.total(),
        blank=frozenset(blank),
    )


def _separator(cells: list[str]) -> str | None:
    """What joins several values in a cell, where at least one cell in a hundred holds several."""
    return next((mark for mark in SEPARATORS if sum(mark in cell for cell in cells) > 0.01 * len(cells)), None)


def _parts(cell: str, separator: str | None) -> list[str]:
    return [part.strip() for part in cell.split(separator)] if separator else [cell]


def _counted(
    rows: list[list[str]], products: list[str], canonical: dict[str, str]
) -> tuple[Counter[str], dict[str, int]]:
    """Canonical value -> cells, and -> products."""
    values: Counter[str] = Counter()
    members: dict[str, set[str]] = {}
    for row, product in zip(rows, products, strict=True):
        for value in {canonical[word] for word in row if word in canonical}:
            values[value] += 1
            members.setdefault(value, set()).add(product)
    return values, {value: len(names) for value, names in members.items()}


def _closed(values: Counter[str], separator: str | None) -> bool:
    """Whether the values are few, and recur, as those of an attribute do."""
    most = MOST_MULTI_VALUES if separator else MOST_VALUES
    return 2 <= len(values) <= most and len(values) <= max(10, LARGEST_SHARE * values.total())


def _aliases(canonical: dict[str, str]) -> dict[str, str]:
    return {word: value for word, value in sorted(canonical.items()) if spelling(word) != spelling(value)}


def _none_is_a_value(words: Counter[str]) -> bool:
    """Whether `none` counts among counts and levels (a handle: none, one, two) rather than saying nothing."""
    met = {spelling(word) for word in words}
    siblings = {word for word in met if word in COUNTING or word.isdigit()}
    return "none" in met and bool(siblings)


def _merge(spelled: Counter[str]) -> dict[str, str]:
    """Spelling -> canonical value: the same but for case, hyphens and gaps, misspelt, or short for one longer name."""
    families: dict[str, Counter[str]] = {}
    for word, count in spelled.items():
        families.setdefault(spelling(word), Counter())[word] += count
    order = sorted(families, key=lambda form: (-sum(families[form].values()), form))
    heads: dict[str, str] = {}
    for form in order:
        heads[form] = heads.get(
            _head(form, [other for other in order if other in heads and heads[other] == other]), form
        )
    name = {form: families[form].most_common(1)[0][0].lower() for form in order}
    return {word: name[heads[form]] for form, family in families.items() for word in family}


def _head(form: str, known: Sequence[str]) -> str:
    """The more frequent form that `form` is a variant of, or itself."""
    from rapidfuzz import fuzz

    joined = next((other for other in known if _closed_up(other) == _closed_up(form)), None)
    if joined is not None:
        return joined
    longer = [other for other in known if _inside(form, other)]  # a longer form says more than a known one
    if len(longer) == 1:
        return longer[0]
    if len(form) >= SHORTEST_TYPO and form.isalpha():
        near = [other for other in known if other.isalpha() and fuzz.ratio(form, other) >= TYPO_RATIO]
        if len(near) == 1 and form[0] == near[0][0]:
            return near[0]
    return form


def _closed_up(form: str) -> str:
    """A form without its gaps, but for those between numbers.

    >>> _closed_up("cross training"), _closed_up("4 way"), _closed_up("age 1 2")
    ('crosstraining', '4way', 'age1 2')
    """
    return re.sub(r"(?<!\d) | (?!\d)", "", form)


def _inside(short: str, long: str) -> bool:
    """`scoop` in `scoop neck`: one word of two, the first."""
    return " " not in short and len(short) >= SHORTEST_TYPO - 1 and long.split(" ")[0] == short and long.count(" ") == 1


def _rules(columns: list[_Column], text: dict[str, list[str]]) -> dict[str, tuple[str, list[str]] | None]:
    """Column -> its rule, none of which leads back to where it starts."""
    rules: dict[str, tuple[str, list[str]] | None] = {}
    for column in columns:
        free = [other for other in columns if column.name not in _leans_on(other.name, rules)]
        rules[column.name] = _rule(column, free, text)
    return rules


def _leans_on(name: str, rules: dict[str, tuple[str, list[str]] | None]) -> set[str]:
    """The column itself, and all that its rule leads to."""
    met = {name}
    while (rule := rules.get(name)) is not None:
        name = rule[0]
        met.add(name)
    return met


def _rule(column: _Column, columns: list[_Column], text: dict[str, list[str]]) -> tuple[str, list[str]] | None:
    """(other attribute, its values) outside of which this one is never filled."""
    filled = [spelling(cell) not in column.blank for cell in text[column.name]]
    for other in columns:
        if other.separator:
            continue
        allowed = _mostly_filled(_by_value(other, text[other.name], filled), filled.count(False))
        if allowed:
            return other.name, [value for value in other.values if value in allowed]
    return None


def _by_value(other: _Column, cells: list[str], filled: list[bool]) -> dict[str, list[bool]]:
    """Value of another attribute -> whether this one is filled, for each of its rows."""
    forms = {spelling(word): value for word, value in other.aliases.items()}
    forms |= {spelling(value): value for value in other.values}
    groups: dict[str, list[bool]] = {}
    for cell, told in zip(cells, filled, strict=True):
        if spelling(cell) in forms:
            groups.setdefault(forms[spelling(cell)], []).append(told)
    return groups


def _mostly_filled(groups: dict[str, list[bool]], silent: int) -> list[str]:
    """The values where it is mostly filled, if it is never filled in all others and they explain the gaps."""
    never = [value for value, told in groups.items() if not any(told)]
    mostly = [value for value, told in groups.items() if sum(told) > 0.5 * len(told)]
    explained = sum(len(groups[value]) for value in never)
    whole = len(never) + len(mostly) == len(groups)
    return mostly if whole and never and explained > 0.5 * silent else []


def _quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _listed(words: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, words)) + "]"


def _comment(text: str) -> str:
    """Text that cannot end its comment."""
    return re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]", " ", text)


def _toml(
    catalog: Catalog,
    roles: dict[str, str],
    columns: list[_Column],
    rules: dict[str, tuple[str, list[str]] | None],
    passed: list[str],
) -> str:
    lines = [
        f"# Proposed from {_comment(catalog.name)}, {len(catalog)} rows. Finish it by hand: drop what a photo cannot",
        "# show, join values, put prompts into words, then run facetclip check.",
        "",
        "[columns]",
        *(line for role, name in roles.items() for line in _role_toml(role, name, roles)),
    ]
    if passed:
        lines += ["", f"# Not taken for attributes: {_comment(', '.join(passed))}"]
    for name, (place, why) in catalog.unfit.items():
        lines.append(f"# {_comment(f'{catalog.where(place)}: column {name!r}: {why}')}")
    for column in columns:
        lines += ["", *_attribute_toml(column, rules[column.name])]
    return "\n".join(lines) + "\n"


def _role_toml(role: str, name: str, roles: dict[str, str]) -> list[str]:
    """A role's line; above that of the product, where no column was found for it, what that would do."""
    lines = [f"{role} = {_quoted(name)}"]
    if role == "product" and name == roles["item"]:
        lines[:0] = [
            "# No column was found that says which product a row shows: every row counts as one of its own. If several",
            "# show the same, name the column in which these agree (a style, a parent's id); otherwise views of one",
            "# product land in train and in test, and what is measured is too good.",
        ]
    return lines


def _attribute_toml(column: _Column, rule: tuple[str, list[str]] | None) -> list[str]:
    counted = ", ".join(f"{value} {count}" for value, count in column.values.items())
    lines = [
        f"[attributes.{_quoted(column.name)}]",
        f"# cells: {_comment(counted)}; silent {column.empty}",
    ]
    rare = [value for value, count in column.products.items() if count < RARE]
    if rare:
        lines.append(f"# fewer than {RARE} products, so not in every split: {_comment(', '.join(rare))}")
    lines += [f"column = {_quoted(column.name)}", f"values = {_listed(list(column.values))}"]
    if column.separator:
        lines.append(f"separator = {_quoted(column.separator)}")
    if column.not_applicable:
        lines.append(f"not_applicable = {_listed(column.not_applicable)}")
    if column.aliases:
        pairs = ", ".join(f"{_quoted(alias)} = {_quoted(value)}" for alias, value in column.aliases.items())
        lines.append(f"aliases = {{ {pairs} }}")
    if rule:
        lines += ["# never filled elsewhere", f"applies_where = {{ {_quoted(rule[0])} = {_listed(rule[1])} }}"]
    lines.append(f"# template = {_quoted('a photo of a product, ' + _comment(column.name) + ': {value}')}")
    return lines
