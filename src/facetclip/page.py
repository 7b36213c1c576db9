"""HTML pages that need nothing beside them, from the templates of this package; every text in them is escaped."""

import re
from importlib import resources
from typing import Any


def render(template: str, **content: Any) -> str:
    """The page that `template`, a file of this package, makes of `content`."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text = resources.files("facetclip").joinpath(template).read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # A line may end between values.
    page.filters["breakable"] = lambda text: Markup("<wbr>").join(re.split(r"(?<=[|;,/])", text))
    return page.from_string(text).render(content)
