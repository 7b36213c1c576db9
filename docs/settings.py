"""Write settings.md beside this file: `python docs/settings.py`.

Every key of a run file and of a schema file, with what it takes and its default, as the code has them;
`tests/test_guides.py` holds the page to that.
"""

import inspect
import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from facetclip.config import NewModel, RunConfig
from facetclip.schema import Attribute, Columns

HEAD = """# Every setting

Written by `python docs/settings.py` from the code. A run file is TOML with the tables of the first part; on the command
line a setting is `table.key=value`. A schema file has `[columns]` and a table `[attributes.NAME]` for each attribute.
"""
BOUNDS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
TYPES = {"integer": "a whole number", "number": "a number", "boolean": "`true` or `false`", "string": "text"}


def page() -> str:
    """The whole page."""
    parts = [HEAD, "# The run file\n"]
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        parts.append(described(f"[{name}]", section))
        if name == "model":
            parts.append(described("[model.new]", NewModel))
    parts += ["# The schema file\n", described("[columns]", Columns), described("[attributes.NAME]", Attribute)]
    return "\n".join(parts)


def described(title: str, section: type[BaseModel]) -> str:
    """One table: what it is about, and a line for each key."""
    schema = section.model_json_schema()
    lines = [f"## `{title}`\n", inspect.getdoc(section) or "", "", "| key | takes | default |", "|---|---|---|"]
    for name, field in section.model_fields.items():
        if any(isinstance(part, type) and issubclass(part, BaseModel) for part in get_args(field.annotation)):
            continue  # a table of its own
        takes = accepted(schema["properties"][name]).replace("|", "\\|")
        default = "required" if field.is_required() else shown(field.default)
        lines.append(f"| `{name}` | {takes} | {default} |")
    return "\n".join([*lines, ""])


def accepted(schema: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "anyOf" in schema:
        return ", or ".join(accepted(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"a list of: {accepted(schema['items'])}" if "items" in schema else "a list"
    if schema.get("type") == "object":
        return f"a table of: {accepted(schema['additionalProperties'])}"
    bounds = [text.format(shortest(schema[key])) for key, text in BOUNDS.items() if key in schema]
    return " ".join([TYPES[schema["type"]], *bounds])


def shortest(number: float) -> str:
    """A bound as one would write it."""
    return f"2^{int(number).bit_length() - 1}" if number >= 2**20 else f"{number:g}"


def shown(default: Any) -> str:
    """A default as TOML has it; empty for none."""
    if default is None or default in ((), {}):
        return ""
    return f"`{json.dumps(default)}`"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
