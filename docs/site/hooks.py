"""Hooks of mkdocs: pages from other folders of the repository, and the reference of all settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdflow.config import (
    Dataset,
    Method,
    Model,
    Pair,
    Params,
    UserFolderRecipe,
)
from kdflow.teachers import TeacherEntry

ROOT = Path(__file__).parents[2]
# Files outside of docs/, by their page in the site.
PAGES = {"CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md", "data/README.md": "outputs.md"}
FILES = {
    "params.yaml": Params,
    "recipes/datasets.yaml": Dataset,
    "recipes/user_folder.yaml": UserFolderRecipe,
    "recipes/models.yaml": Model,
    "recipes/methods.yaml": Method,
    "recipes/pairs.yaml": Pair,
    "recipes/teachers.yaml": TeacherEntry,
}
BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "to {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} character",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of PAGES and the settings reference to the site."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "settings.md", content=settings_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links to files outside of docs/ by links to their pages."""
    source = next((source for source, name in PAGES.items() if name == page.file.src_uri), None)
    for path, name in PAGES.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}")
    return markdown.replace("](docs/", "](") if source else markdown


def settings_page() -> str:
    """Return the Markdown of the settings reference: one table for each class of settings in each file."""
    lines = ["# Settings", "", "Keys, allowed values and defaults, generated from the classes that check the files."]
    lines += ["A key without a default is required. An empty value is `null`.", ""]
    for file, kind in FILES.items():
        schema = kind.model_json_schema()
        lines += [f"## {file}", ""]
        entries = file.startswith("recipes/") and file != "recipes/user_folder.yaml"
        lines += ["The keys of each entry.", ""] if entries else []
        lines += [*_text(schema), *_table(schema), ""]
        for name, nested in schema.get("$defs", {}).items():
            if "properties" not in nested:  # JsonValue: any value
                continue
            lines += [f"### {_anchor(file, name)}", "", *_text(nested), *_table(nested), ""]
        if file == "params.yaml":
            lines += ["The file of the demo:", "", "```yaml", (ROOT / file).read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def _anchor(file: str, name: str) -> str:
    return f"{name} ({Path(file).stem})"


def _text(schema: dict[str, Any]) -> list[str]:
    return [re.sub(r"(?<!\n)\n(?=\S)", " ", schema["description"]), ""] if "description" in schema else []


def _table(schema: dict[str, Any]) -> Iterator[str]:
    yield from ("| Key | Value | Default |", "| --- | --- | --- |")
    for key, field in schema["properties"].items():
        default = "" if key in schema.get("required", []) else f"`{json.dumps(field.get('default'))}`"
        yield f"| `{key}` | {_value(field)} | {default} |".replace("\n", " ")


def _value(field: dict[str, Any]) -> str:
    """Return a description of the values that a field's JSON schema allows."""
    if choices := field.get("anyOf", field.get("oneOf")):
        return " or ".join(dict.fromkeys(_value(choice) for choice in choices))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "any value" if name == "JsonValue" else f"keys of {name}"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    names = {"null": "empty", "object": "keys", "array": "list"}
    text = names.get(field.get("type", "any value"), field.get("type", "any value"))
    if field.get("type") == "array" and "items" in field:
        text += f" of: {_value(field['items'])}"
    if isinstance(field.get("additionalProperties"), dict):
        text += f", each: {_value(field['additionalProperties'])}"
    bounds = [words.format(f"{field[key]:,}") for key, words in BOUNDS.items() if key in field]
    if "pattern" in field:
        bounds.append(f"matching `{field['pattern']}`".replace("|", r"\|"))
    return f"{text} ({', '.join(bounds)})" if bounds else text
