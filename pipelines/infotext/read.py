"""Reading the "parameters" text of a picture, field by field as the webui does.

a cat, (best quality:1.2)                      Prompt; so are all lines up to
Negative prompt: lowres                        Negative prompt, with the lines behind it
Steps: 20, Sampler: Euler a, Size: 512x768     the last line: fields, if there are at least three

Size: 512x768             Size-1 "512", Size-2 "768"
Other: "a, b: c"          a, b: c       JSON where the value has commas, colons or line breaks
Empty: ,                  dropped
a: 1                      no field: a name has two letters or more
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from ...loaders.utils import LOGGER
from ..prompt.attention import parse_attention
from .styles import PromptStyle, extract_styles, read_styles


# The webui's settings that reading depends on, with its defaults.
INFOTEXT_READ_OPTIONS: dict[str, Any] = {
    "infotext_styles": "Apply if any",  # "Ignore", "Apply", "Discard"
    "auto_backcompat": True,
    "infotext_skip_pasting": (),
    "use_old_hires_fix_width_height": False,
}

_FIELD_KEY = re.compile(r"\w[\w \-/]+")
_FIELD_VALUE = re.compile(r'\s*("(?:\\.|[^\\"])+"(?=,|$)|[^,]*),?')
_FIELD_SIZE = re.compile(r"(\d+)x(\d+)")
_NEGATIVE_MARK = "Negative prompt:"
_HIRES_STYLES_SINCE = Version("1.8.0-139")

# What the webui takes a field for that is not there.
_ABSENT_FIRST = {
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
}
_ABSENT_LAST = {
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
}


def parse_infotext(
    text: str,
    *,
    options: Mapping[str, Any] | None = None,
    styles: Mapping[str, PromptStyle] | str | Path | None = None,
) -> dict[str, Any]:
    """The fields of a picture's parameters text, with "Prompt" and "Negative prompt", as the webui reads them.

    Values are text as written; fields that the webui fills in where they are absent have its own types (0, 32, False,
    True). options: the webui's settings of INFOTEXT_READ_OPTIONS that differ from its defaults. styles: the user's
    styles, or the styles file; those found in the prompts are taken out and listed in "Styles array".
    Raises ValueError for an unknown option, and for a weight in a prompt that is no number (`(cat:1.2.3)`).

    >>> fields = parse_infotext("a cat\\nSteps: 20, Seed: 1, Size: 512x768")
    >>> fields["Prompt"], fields["Steps"], fields["Size-2"], fields["RNG"]
    ('a cat', '20', '768', 'GPU')
    """
    settings = _reading_options(options)
    prompt, negative_prompt, line = _split_infotext(text)
    fields = dict(_readable_fields(line))
    if styles is not None and settings["infotext_styles"] != "Ignore":
        known = read_styles(styles) if isinstance(styles, (str, Path)) else styles
        prompt, negative_prompt = _take_styles(fields, prompt, negative_prompt, known, settings["infotext_styles"])
    fields["Prompt"] = prompt
    fields["Negative prompt"] = negative_prompt
    _fill_in(fields, settings)
    if settings["auto_backcompat"]:
        fields |= _old_version_fields(fields)
    for name in settings["infotext_skip_pasting"]:
        fields.pop(name, None)
    return fields


def unquote_field(value: str) -> str:
    """A field's value as meant: JSON in double quotes is decoded, everything else is itself.

    >>> unquote_field('"a, b"'), unquote_field('"a'), unquote_field("a")
    ('a, b', '"a', 'a')
    """
    if value[:1] != '"' or value[-1:] != '"':
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def infotext_version(fields: Mapping[str, Any]) -> Version | None:
    """The webui version that wrote a text (`v1.7.0-225-gaaaa` is 1.7.0.post225), None where it is not readable."""
    written = str(fields.get("Version") or "")
    try:
        return Version("-".join(written.split("-")[:2]))
    except InvalidVersion:
        return None


def _reading_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    for name in options or {}:
        if name not in INFOTEXT_READ_OPTIONS:
            raise ValueError(
                f"`options`: `{name}` is no setting that reading parameters depends on. "
                f"Known: {', '.join(INFOTEXT_READ_OPTIONS)}."
            )
    return INFOTEXT_READ_OPTIONS | dict(options or {})


def _split_infotext(text: str) -> tuple[str, str, str]:
    """Prompt, negative prompt, and the line of fields ("" where the last line has fewer than three)."""
    *lines, last = text.strip().split("\n")
    if sum(1 for _ in line_fields(last)) < 3:
        lines, last = [*lines, last], ""
    parts: list[list[str]] = [[], []]
    side = 0
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE_MARK):
            side = 1
            line = line.removeprefix(_NEGATIVE_MARK).strip()
        if parts[side] or line:  # empty lines at the start vanish
            parts[side].append(line)
    return "\n".join(parts[0]), "\n".join(parts[1]), last


def line_fields(line: str) -> Iterator[tuple[str, str]]:
    """Names and values as written. Each character is looked at a few times at most, however long the line."""
    position = 0
    while (colon := line.find(":", position)) >= 0:
        start = colon
        while start > position and (line[start - 1].isalnum() or line[start - 1] in "_ -/"):
            start -= 1
        key = _FIELD_KEY.search(line, start, colon)
        position = colon + 1
        if key and (value := _FIELD_VALUE.match(line, position)):
            position = value.end()
            yield key[0], value[1]


def _readable_fields(line: str) -> Iterator[tuple[str, Any]]:
    for key, written in line_fields(line):
        if not written:
            LOGGER.warning("Parameters text: field %r is empty and left out.", key)
            continue
        value = unquote_field(written)
        size = _FIELD_SIZE.fullmatch(value)
        if size:
            yield f"{key}-1", size[1]
            yield f"{key}-2", size[2]
        else:
            yield key, value


def _take_styles(
    fields: dict[str, Any], prompt: str, negative_prompt: str, styles: Mapping[str, PromptStyle], mode: str
) -> tuple[str, str]:
    """The prompts without the styles found in them; hires prompts and "Styles array" go into `fields`."""
    names, cleaned, negative_cleaned = extract_styles(prompt, negative_prompt, styles)
    version = infotext_version(fields)
    has_hires = "Hires prompt" in fields or "Hires negative prompt" in fields
    if has_hires and (version is None or version > _HIRES_STYLES_SINCE):
        hires_names, hires, negative_hires = extract_styles(
            fields.get("Hires prompt", prompt), fields.get("Hires negative prompt", negative_prompt), styles
        )
        if hires_names != names:
            return prompt, negative_prompt
        fields["Hires prompt"] = hires if hires != cleaned else ""
        fields["Hires negative prompt"] = negative_hires if negative_hires != negative_cleaned else ""
    if mode == "Apply" or (mode == "Apply if any" and names):
        fields["Styles array"] = names
    return cleaned, negative_cleaned


def _fill_in(fields: dict[str, Any], settings: Mapping[str, Any]) -> None:
    fields.setdefault("Clip skip", "1")
    if "Hypernet" in fields:
        fields["Prompt"] += f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>"
    for name, value in _ABSENT_FIRST.items():
        fields.setdefault(name, value)
    fields |= _old_hires_sizes(fields, settings["use_old_hires_fix_width_height"])
    for name, value in _ABSENT_LAST.items():
        fields.setdefault(name, value)
    if fields["FP8 weight"] != "Disable":
        fields.setdefault("Cache FP16 weight for LoRA", False)
    if "Emphasis" not in fields and (_has_weights(fields["Prompt"]) or _has_weights(fields["Negative prompt"])):
        fields["Emphasis"] = "Original"
    fields.setdefault("Refiner switch by sampling steps", False)


def _has_weights(prompt: str) -> bool:
    return any(weight != 1.0 and fragment != "BREAK" for fragment, weight in parse_attention(prompt))


def _old_hires_sizes(fields: Mapping[str, Any], use_hires_size: bool) -> dict[str, int]:
    """Sizes of a text from before hires fix wrote its own, or with the option that the size is the final one."""
    hires = _whole_number(fields["Hires resize-1"]), _whole_number(fields["Hires resize-2"])
    if use_hires_size and all(hires):
        return {"Size-1": hires[0], "Size-2": hires[1]}
    if "First pass size-1" not in fields or "First pass size-2" not in fields:
        return {}
    first = _whole_number(fields["First pass size-1"]), _whole_number(fields["First pass size-2"])
    width, height = _whole_number(fields.get("Size-1", 512)), _whole_number(fields.get("Size-2", 512))
    if not all(first) and width and height:
        scale = math.sqrt(512 * 512 / (width * height))
        first = math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64
    return {"Size-1": first[0], "Size-2": first[1], "Hires resize-1": width, "Hires resize-2": height}


def _whole_number(value: Any) -> int:
    return int(value) if str(value).isdecimal() else 0


def _old_version_fields(fields: Mapping[str, Any]) -> dict[str, bool]:
    """Settings that stand for how an old version drew."""
    version = infotext_version(fields)
    if version is None:
        return {}
    rules = {
        "Old prompt editing timelines": version < Version("1.6.0") and "[" in fields["Prompt"],
        "Pad conds v0": version < Version("1.6.0") and fields.get("Sampler") in ("DDIM", "PLMS"),
        "Downcast alphas_cumprod": version < Version("1.7.0-225"),
        "Refiner switch by sampling steps": version < Version("1.8.0") and "Refiner" in fields,
    }
    return {name: True for name, holds in rules.items() if holds}
