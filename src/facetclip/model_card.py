"""The page that every model folder carries for whoever finds it: what it reads, how well, where it came from."""

from collections.abc import Mapping, Sequence
from typing import Any

from facetclip.abstention import Cutoff
from facetclip.calibration import Calibration
from facetclip.schema import Schema

SHOWN = 12  # values of an attribute that are listed
USED = 0.95  # the precision whose cut-off is shown
PAGE = """---
library_name: transformers
tags: [clip, product-attributes, facetclip]
---

# A reader of product attributes

A CLIP that reads the attributes below off product photos. `transformers` loads its towers as any other; `facetclip
extract` and the registered MLflow model read attributes with it, by the prompts and the calibration in
`facetclip.json`, and tell every probability; `facetclip fill` answers, by the cut-offs in it.

| attribute | values | wrong cells in its table | sure enough for 95% | answered by |
| --- | --- | --- | --- | --- |
{rows}

Wrong cells: the share of the validation split's cells that say anything at random, by the calibration; the model's
probabilities allow for them, since they say what the table lists. Sure enough: how probable `facetclip fill` must find
what the photo shows, without that allowance and, where answered by product, by all its photos together, for 95% of such
answers to be right, by the same split. It is not to be held against the probabilities themselves.

## Where it came from

{facts}

## What it is for, and what not

Filling gaps in a catalog like the one it was trained on, finding cells that its photos contradict, and search. Its
probabilities hold for photos like those of the validation split; another shop's photos, drawings and worn goods are
another matter: measure first (`facetclip evaluate`). It reads products, not people: nothing that it says about a photo
is about whoever wears the product.
"""


def model_card(
    schema: Schema,
    *,
    origin: Mapping[str, Any],
    calibration: Mapping[str, Calibration],
    cutoffs: Mapping[str, Sequence[Cutoff]],
    by_product: Sequence[str],
) -> str:
    """Markdown about a model that reads `schema`; `origin`: what is known of its making, name -> value."""
    rows = [_row(name, schema, calibration, cutoffs, name in by_product) for name in schema.names]
    facts = [f"- {_plain(name)}: `{_plain(str(value))}`" for name, value in origin.items() if value is not None]
    return PAGE.format(rows="\n".join(rows), facts="\n".join(facts or ["Not stated."]))


def _row(
    name: str,
    schema: Schema,
    calibration: Mapping[str, Calibration],
    cutoffs: Mapping[str, Sequence[Cutoff]],
    together: bool,
) -> str:
    values = schema.attributes[name].values
    shown = ", ".join(values[:SHOWN]) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")
    wrong = f"{100 * calibration[name].noise:.1f}%" if name in calibration else "unknown"
    sure = [each.threshold for each in cutoffs.get(name, ()) if each.precision >= USED]
    cut = f"{min(sure):.2f}" if sure else "never"
    return f"| {_plain(name)} | {_plain(shown)} | {wrong} | {cut} | {'product' if together else 'photo'} |"


def _plain(text: str) -> str:
    """Text that is no markup in a Markdown table.

    >>> _plain("a|b <script>`x`")
    'a\\\\|b &lt;script&gt;x'
    """
    return (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("|", "\\|")
        .replace("`", "")
        .replace("\n", " ")
    )
