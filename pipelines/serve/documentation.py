"""/docs: the OpenAPI description as a page that needs no script and nothing from elsewhere."""

from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse


_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem }}
code {{ background: #8882; padding: 0 .2em }} summary {{ cursor: pointer; padding: .3em 0 }}
table {{ border-collapse: collapse }} td, th {{ text-align: left; padding: .1em .8em .1em 0; vertical-align: top }}
:root {{ color-scheme: light dark }}
</style><h1>{title}</h1><p>Version {version}. For programs: <a href="openapi.json">openapi.json</a>.</p>"""
_NO_SCRIPTS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def add_documentation(made: FastAPI) -> None:
    """Answer /docs."""

    @made.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(documentation_page(made.openapi()), headers=_NO_SCRIPTS)


def documentation_page(description: Mapping[str, Any]) -> str:
    """An OpenAPI description as HTML: a line for each route, its fields below."""
    models = description.get("components", {}).get("schemas", {})
    page = [_HEAD.format(title=escape(description["info"]["title"]), version=escape(description["info"]["version"]))]
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            told = escape(route.get("description") or route.get("summary", ""))
            page.append(f"<details><summary><code>{method.upper()} {escape(path)}</code> {told}</summary>")
            page.append(_table(_fields(route, models)) + "</details>")
    return "\n".join(page)


def _fields(route: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name -> schema of what a route takes, in its query and its body."""
    found = {one["name"]: one["schema"] for one in route.get("parameters", ())}
    for content in route.get("requestBody", {}).get("content", {}).values():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        found |= models.get(name, {}).get("properties", {})
    return found


def _table(fields: Mapping[str, Mapping[str, Any]]) -> str:
    if not fields:
        return "<p>Takes nothing, or anything.</p>"
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(schema))}<td>{escape(str(schema.get('default', '')))}"
        f"<td>{escape(schema.get('description', ''))}"
        for name, schema in fields.items()
    )
    return f"<table><tr><th>field<th>kind<th>default<th>{rows}</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in few words: its type and its range.

    >>> _kind({"type": "integer", "minimum": 1, "maximum": 64})
    'integer 1 to 64'
    """
    inner = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if inner:
        return " or ".join(_kind(one) for one in inner)
    kind = schema.get("type") or schema.get("$ref", "anything").rpartition("/")[2]
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    limits = [schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")]
    return kind if limits == [None, None] else f"{kind} {limits[0] if limits[0] is not None else ''} to {limits[1]}"
