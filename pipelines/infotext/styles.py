"""Styles: named pieces of prompt, kept in a table (`styles.csv`).

style text                  prompt a cat becomes
film grain                  a cat, film grain
photo of {prompt}, 8k       photo of a cat, 8k
(nothing)                   a cat, stripped of blanks at both ends
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class PromptStyle(NamedTuple):
    """One row of a styles file. An empty text changes nothing."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


_PLACE = "{prompt}"


def read_styles(path: str | Path) -> dict[str, PromptStyle]:
    """Read a styles file: UTF-8 CSV with `name,prompt,negative_prompt`, or `name,text` of old versions.

    Rows whose name starts with `#` are comments; of two rows with one name the later counts. Raises ValueError for a
    file that is no such table.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"`{path.name}` cannot be read as a table ({error}); a styles file is CSV in UTF-8. Save it as such."
        ) from error
    columns = set(rows[0]) if rows else {"name", "prompt"}
    if "name" not in columns or not columns & {"prompt", "text"}:
        raise ValueError(
            f"`{path.name}` has the columns {sorted(map(str, columns))}; a styles file has `name`, `prompt` and "
            "`negative_prompt`. Give it that first line."
        )
    text = "prompt" if "prompt" in columns else "text"
    styles = (PromptStyle(row["name"] or "", row[text] or "", row.get("negative_prompt") or "") for row in rows)
    return {style.name: style for style in styles if not style.name.startswith("#")}


def apply_styles(
    prompt: str, negative_prompt: str, names: Iterable[str], styles: Mapping[str, PromptStyle]
) -> tuple[str, str]:
    """Prompt and negative prompt with styles merged in, one after the other. An unknown name acts as an empty style.

    >>> apply_styles("a cat", "", ["film"], {"film": PromptStyle("film", "film grain", "digital")})
    ('a cat, film grain', 'digital')
    """
    for name in names:
        style = styles.get(name, PromptStyle(name))
        prompt = _merge_style(style.prompt, prompt)
        negative_prompt = _merge_style(style.negative_prompt, negative_prompt)
    return prompt, negative_prompt


def extract_styles(prompt: str, negative_prompt: str, styles: Mapping[str, PromptStyle]) -> tuple[list[str], str, str]:
    """Which styles were merged into a pair of prompts: (names in the order of merging, prompt, negative prompt).

    A style counts when both its texts are found. The table is searched from its start again after every find.

    >>> extract_styles("a cat, film grain", "digital", {"film": PromptStyle("film", "film grain", "digital")})
    (['film'], 'a cat', '')
    """
    found: list[str] = []
    while match := _find_style(prompt, negative_prompt, [s for s in styles.values() if s.name not in found]):
        name, prompt, negative_prompt = match
        found.append(name)
    return found[::-1], prompt, negative_prompt


def _merge_style(style_text: str, prompt: str) -> str:
    if _PLACE in style_text:
        return style_text.replace(_PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style_text.strip()) if part)


def _find_style(prompt: str, negative_prompt: str, styles: Sequence[PromptStyle]) -> tuple[str, str, str] | None:
    for style in styles:
        if not style.prompt and not style.negative_prompt:
            continue
        rest, negative_rest = (
            _without_style(style.prompt, prompt),
            _without_style(style.negative_prompt, negative_prompt),
        )
        if rest is not None and negative_rest is not None:
            return style.name, rest, negative_rest
    return None


def _without_style(style_text: str, prompt: str) -> str | None:
    """The prompt that `style_text` was merged into, or None where it was not."""
    prompt, style_text = prompt.strip(), style_text.strip()
    if _PLACE in style_text:
        left, _, right = style_text.partition(_PLACE)
        if not (prompt.startswith(left) and prompt.endswith(right)):
            return None
        return prompt[len(left) : len(prompt) - len(right)]
    return prompt.removesuffix(style_text).removesuffix(", ") if prompt.endswith(style_text) else None
